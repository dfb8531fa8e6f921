//! The loops of a product, for any instruction set.

use super::super::matrix::{BLOCK, Bits, Codes, Dense, Format, LANES, Matrix, UnitScales, halves};
use super::words::Words;
use super::{Activations, PAIRS, Tile};

/// A block's codes as numbers: each word is two columns of a row, side by side.
#[repr(align(64))]
pub(super) struct Unpacked(pub(super) [[u32; LANES]; PAIRS]);

impl Unpacked {
    pub(super) const EMPTY: Unpacked = Unpacked([[0; LANES]; PAIRS]);
}

/// A block's dense weights.
#[repr(align(64))]
struct UnpackedDense([[f32; LANES]; BLOCK]);

/// Rows of the tallest tile: what registers can hold the sums of.
pub(super) const fn tallest<L: Words>() -> usize {
    match L::WIDE {
        true => 2 * L::TALLEST,
        false => L::TALLEST,
    }
}

/// How far ahead of the block at hand memory is asked for, in bytes.
const fn ahead<L: Words>() -> usize {
    match L::WIDE {
        true => 8192,
        false => 4096,
    }
}

/// Calls a kernel with the height of a tile as a constant.
macro_rules! by_height {
    ($height:expr, $lanes:ident, $rows:ident => $call:expr) => {
        by_height!(@ $height, $lanes, $rows => $call; 1 2 3 4 5 6 7 8 9 10 11 12)
    };
    (@ $height:expr, $lanes:ident, $rows:ident => $call:expr; $($constant:literal)*) => {
        match $height {
            $($constant if $constant <= tallest::<$lanes>() => {
                const $rows: usize = $constant;
                $call
            })*
            _ => unreachable!("no tile is taller than the tallest"),
        }
    };
}

/// The outputs of a panel for the first rows, as many as `out` takes.
#[inline(always)]
pub(super) fn panel<L: Words>(
    lanes: L,
    matrix: &Matrix,
    panel: usize,
    rows: &Activations,
    out: &mut [[f32; LANES]],
) {
    out.fill([0.0; LANES]);
    let bytes = matrix.panel(panel);
    let columns = matrix.padded();
    match matrix.format() {
        Format::Codes(codes) => match (codes.group, codes.has_minimum()) {
            (16, false) => run_codes::<L, 2, false>(lanes, codes, columns, bytes, rows, out),
            (16, true) => run_codes::<L, 2, true>(lanes, codes, columns, bytes, rows, out),
            (_, false) => run_codes::<L, 1, false>(lanes, codes, columns, bytes, rows, out),
            (_, true) => run_codes::<L, 1, true>(lanes, codes, columns, bytes, rows, out),
        },
        Format::Dense(dense) => run_dense(lanes, dense, bytes, rows, out),
    }
}

/// Asks for the memory that comes some time after a block.
#[inline(always)]
pub(super) fn prefetch<L: Words>(lanes: L, block: &[u8]) {
    for line in (0..block.len()).step_by(64) {
        let at = block.as_ptr().wrapping_add(line + ahead::<L>());
        lanes.prefetch(at.cast());
    }
}

#[inline(always)]
fn run_codes<L: Words, const GROUPS: usize, const MINIMUM: bool>(
    lanes: L,
    codes: Codes,
    columns: usize,
    panel: &[u8],
    rows: &Activations,
    out: &mut [[f32; LANES]],
) {
    let (headers, blocks) = panel.split_at(codes.codes_at(columns));
    let mut weights = Unpacked::EMPTY;
    let mut scales = UnitScales::new();
    let per_unit = codes.unit() / BLOCK;
    let units = headers
        .chunks_exact(codes.header_bytes())
        .zip(blocks.chunks_exact(per_unit * codes.code_bytes()));
    for (unit, (header, blocks)) in units.enumerate() {
        scales.read(lanes, codes, header);
        for (index, block) in blocks.chunks_exact(codes.code_bytes()).enumerate() {
            let groups = index * GROUPS..(index + 1) * GROUPS;
            let (scales, minima) = (&scales.scales[groups.clone()], &scales.minima[groups]);
            prefetch(lanes, block);
            unpack(lanes, codes, block, &mut weights);
            let block = unit * per_unit + index;
            for &(first, height) in rows.tiles() {
                let tile = rows.tile(block, first, height);
                let out = &mut out[first..first + height];
                by_height!(height, L, R => {
                    multiply::<L, R, GROUPS, MINIMUM>(lanes, &weights, scales, minima, tile, out)
                });
            }
        }
    }
}

#[inline(always)]
fn run_dense<L: Words>(
    lanes: L,
    dense: Dense,
    panel: &[u8],
    rows: &Activations,
    out: &mut [[f32; LANES]],
) {
    let mut weights = UnpackedDense([[0.0; LANES]; BLOCK]);
    let blocks = panel.chunks_exact(dense.width() * LANES * BLOCK);
    for (block, bytes) in blocks.enumerate() {
        prefetch(lanes, bytes);
        unpack_dense(lanes, dense, bytes, &mut weights);
        for &(first, height) in rows.dense_tiles() {
            let tile = rows.dense_tile(block, first, height);
            let out = &mut out[first..first + height];
            by_height!(height, L, R => multiply_dense::<L, R>(lanes, &weights, tile, out));
        }
    }
}

/// The words numbered `index` of a block, one per row.
#[inline(always)]
fn words<L: Words>(lanes: L, block: &[u8], index: usize) -> L::Words {
    let bytes = &block[4 * LANES * index..][..4 * LANES];
    let words = bytes.as_chunks::<4>().0;
    lanes.words(&std::array::from_fn(|row| u32::from_le_bytes(words[row])))
}

/// The same bits in both halves of all words.
#[inline(always)]
fn in_halves<L: Words>(lanes: L, bits: u32) -> L::Words {
    lanes.same(bits | bits << 16)
}

/// The lower four bits of eight columns: four pairs.
#[inline(always)]
fn nibbles<L: Words>(lanes: L, block: &[u8], index: usize) -> [L::Words; 4] {
    let (words, low) = (words(lanes, block, index), in_halves(lanes, 0xF));
    [
        lanes.and(words, low),
        lanes.and(lanes.lower(words, 4), low),
        lanes.and(lanes.lower(words, 8), low),
        lanes.lower(words, 12),
    ]
}

/// Puts a pair's codes where they belong, less what stands for 0.
#[inline(always)]
fn put<L: Words>(lanes: L, out: &mut [u32; LANES], codes: L::Words, zero: L::Words) {
    lanes.put(lanes.subtract(codes, zero), out);
}

/// Unpacks a block of codes.
#[inline(always)]
pub(super) fn unpack<L: Words>(lanes: L, codes: Codes, block: &[u8], out: &mut Unpacked) {
    let zero = in_halves(lanes, u32::from(codes.zero.cast_unsigned()));
    let out = &mut out.0;
    match codes.bits {
        Bits::Four => {
            for index in 0..4 {
                for (pair, codes) in nibbles(lanes, block, index).into_iter().enumerate() {
                    put(lanes, &mut out[4 * index + pair], codes, zero);
                }
            }
        }
        Bits::Five => {
            let plane = words(lanes, block, 4);
            let bit = in_halves(lanes, 0x10);
            // Pair s has its bits at place s of each half; they belong at place 4.
            let mut fifth = lanes.raise(plane, 4);
            for index in 0..4 {
                if index == 3 {
                    fifth = lanes.lower(plane, 8);
                }
                for (pair, codes) in nibbles(lanes, block, index).into_iter().enumerate() {
                    let codes = lanes.or(codes, lanes.and(fifth, bit));
                    put(lanes, &mut out[4 * index + pair], codes, zero);
                    fifth = lanes.lower(fifth, 1);
                }
            }
        }
        Bits::Six => {
            let bits = in_halves(lanes, 0x30);
            for half in 0..2 {
                let plane = words(lanes, block, 4 + half);
                let mut upper = lanes.raise(plane, 4);
                for index in 2 * half..2 * half + 2 {
                    for (pair, codes) in nibbles(lanes, block, index).into_iter().enumerate() {
                        // Pairs 6 and 7 of a plane were shifted out.
                        if index % 2 == 1 && pair == 2 {
                            upper = lanes.lower(plane, 8);
                        }
                        let codes = lanes.or(codes, lanes.and(upper, bits));
                        put(lanes, &mut out[4 * index + pair], codes, zero);
                        upper = lanes.lower(upper, 2);
                    }
                }
            }
        }
        Bits::Eight => {
            let mask = in_halves(lanes, 0xFF);
            for index in 0..8 {
                let words = words(lanes, block, index);
                put(lanes, &mut out[2 * index], lanes.and(words, mask), zero);
                put(lanes, &mut out[2 * index + 1], lanes.lower(words, 8), zero);
            }
        }
    }
}

#[inline(always)]
fn unpack_dense<L: Words>(lanes: L, dense: Dense, block: &[u8], out: &mut UnpackedDense) {
    match dense {
        Dense::F16 => {
            for (out, bytes) in out.0.iter_mut().zip(block.as_chunks::<32>().0) {
                lanes.store(lanes.load_half(&halves(bytes)), out);
            }
        }
        Dense::BF16 => {
            for (out, bytes) in out.0.iter_mut().zip(block.as_chunks::<32>().0) {
                for (out, half) in out.iter_mut().zip(halves(bytes)) {
                    *out = f32::from_bits(u32::from(half) << 16);
                }
            }
        }
        Dense::F32 => {
            let out = out.0.as_flattened_mut();
            for (out, bytes) in out.iter_mut().zip(block.as_chunks::<4>().0) {
                *out = f32::from_le_bytes(*bytes);
            }
        }
    }
}

/// Adds a block's product with `R` rows to `out`. The block has one group of 32
/// columns or two of 16, with their scales and minima.
#[inline(always)]
fn multiply<L: Words, const R: usize, const GROUPS: usize, const MINIMUM: bool>(
    lanes: L,
    weights: &Unpacked,
    scales: &[[f32; LANES]],
    minima: &[[f32; LANES]],
    tile: Tile<'_>,
    out: &mut [[f32; LANES]],
) {
    let codes = tile.codes.as_chunks::<R>().0;
    assert!(codes.len() == PAIRS && out.len() == R);
    assert!(tile.scales.len() == R && tile.sums.len() == R);
    for group in 0..GROUPS {
        let mut whole = [lanes.same(0); R];
        for pair in group * PAIRS / GROUPS..(group + 1) * PAIRS / GROUPS {
            let weights = lanes.words(&weights.0[pair]);
            for (whole, &codes) in whole.iter_mut().zip(&codes[pair]) {
                *whole = lanes.add_products(*whole, weights, lanes.same(codes));
            }
        }
        let (scales, minima) = (lanes.load(&scales[group]), lanes.load(&minima[group]));
        for (row, &whole) in whole.iter().enumerate() {
            let product = lanes.multiply(lanes.numbers(whole), lanes.splat(tile.scales[row]));
            let mut total = lanes.mul_add(product, scales, lanes.load(&out[row]));
            if MINIMUM {
                let sum = match GROUPS {
                    1 => tile.sums[row][0] + tile.sums[row][1],
                    _ => tile.sums[row][group],
                };
                total = lanes.mul_add(lanes.splat(sum), minima, total);
            }
            lanes.store(total, &mut out[row]);
        }
    }
}

/// Adds a dense block's product with `R` rows, `[column][row]`, to `out`.
#[inline(always)]
fn multiply_dense<L: Words, const R: usize>(
    lanes: L,
    weights: &UnpackedDense,
    tile: &[f32],
    out: &mut [[f32; LANES]],
) {
    let values = tile.as_chunks::<R>().0;
    assert!(values.len() == BLOCK && out.len() == R);
    let mut sums = [lanes.zero(); R];
    for (weights, values) in weights.0.iter().zip(values) {
        let weights = lanes.load(weights);
        for (sum, &value) in sums.iter_mut().zip(values) {
            *sum = lanes.mul_add(lanes.splat(value), weights, *sum);
        }
    }
    for (&sum, out) in sums.iter().zip(out) {
        let total = lanes.add(lanes.load(out), sum);
        lanes.store(total, out);
    }
}
