//! The inner loops of a product, generic over the instruction set.

use super::super::matrix::{
    Bits, COLUMNS_PER_BLOCK, Codes, Dense, Format, LANES, Matrix, UnitScales, read_u16s,
};
use super::words::Words;
use super::{Activations, PAIRS, Tile};

/// The unpacked codes of a block: each word holds two adjacent columns of a row.
#[repr(align(64))]
pub(super) struct Unpacked(pub(super) [[u32; LANES]; PAIRS]);

impl Unpacked {
    pub(super) const EMPTY: Unpacked = Unpacked([[0; LANES]; PAIRS]);
}

/// The unpacked dense weights of a block.
#[repr(align(64))]
pub(super) struct UnpackedDense(pub(super) [[f32; LANES]; COLUMNS_PER_BLOCK]);

/// The height of the tallest tile whose sums fit in the registers.
pub(super) const fn max_tile_rows<L: Words>() -> usize {
    if L::WIDE {
        2 * L::MAX_TILE_ROWS
    } else {
        L::MAX_TILE_ROWS
    }
}

/// The prefetch distance in bytes, from the current block.
const fn ahead<L: Words>() -> usize {
    if L::WIDE { 8192 } else { 4096 }
}

/// Calls a kernel with the height of a tile as a constant.
macro_rules! by_height {
    ($height:expr, $lanes:ident, $rows:ident => $call:expr) => {
        by_height!(@ $height, $lanes, $rows => $call; 1 2 3 4 5 6 7 8 9 10 11 12)
    };
    (@ $height:expr, $lanes:ident, $rows:ident => $call:expr; $($constant:literal)*) => {
        match $height {
            $($constant if $constant <= max_tile_rows::<$lanes>() => {
                const $rows: usize = $constant;
                $call
            })*
            _ => unreachable!("no tile is taller than the tallest"),
        }
    };
}

/// Computes the outputs of a panel for the first rows, as many as `out` has.
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

/// Prefetches the memory at the prefetch distance from a block.
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
    let per_unit = codes.unit() / COLUMNS_PER_BLOCK;
    let units = headers
        .chunks_exact(codes.header_bytes())
        .zip(blocks.chunks_exact(per_unit * codes.code_bytes()));
    for (unit, (header, blocks)) in units.enumerate() {
        scales.read(lanes, codes, header);
        for (index, block) in blocks.chunks_exact(codes.code_bytes()).enumerate() {
            let groups = index * GROUPS..(index + 1) * GROUPS;
            let (scales, minima) = (&scales.scales[groups.clone()], &scales.minima[groups]);
            prefetch(lanes, block);
            let number = unit * per_unit + index;
            if let [row] = &mut out[..] {
                // With a single row, unpacked codes are used once, so they can stay in
                // registers.
                let tile = rows.tile(number, 0, 1);
                let mut sums = Sums::<L, GROUPS>::new(lanes, codes.zero, tile);
                unpack(lanes, codes, block, &mut sums);
                let out = std::array::from_mut(row);
                let scaled = Scaled::<1, GROUPS, MINIMUM> {
                    scales,
                    minima,
                    tile,
                };
                for (group, sums) in sums.whole.into_iter().enumerate() {
                    scaled.add(lanes, group, [sums], out);
                }
                continue;
            }
            let mut centred = Centred {
                to: &mut weights,
                zero: in_halves(lanes, codes.zero.cast_unsigned().into()),
            };
            unpack(lanes, codes, block, &mut centred);
            // Prevents the compiler from keeping parts of it in registers, which the sums need.
            let weights = std::hint::black_box(&weights);
            for &(first, height) in rows.tiles() {
                let tile = rows.tile(number, first, height);
                let out = &mut out[first..first + height];
                by_height!(height, L, R => {
                    let out: &mut [_; R] = out.try_into().expect("as many rows as the tile");
                    let scaled = Scaled::<R, GROUPS, MINIMUM> { scales, minima, tile };
                    // One group after the other: there are not enough registers for both.
                    for group in 0..GROUPS {
                        let sums = group_sums::<L, R, GROUPS>(lanes, group, weights, tile);
                        scaled.add(lanes, group, sums, out);
                    }
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
    let mut weights = UnpackedDense([[0.0; LANES]; COLUMNS_PER_BLOCK]);
    let blocks = panel.chunks_exact(dense.width() * LANES * COLUMNS_PER_BLOCK);
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

/// Receives the codes of a block, by pairs of columns.
pub(super) trait Sink<L: Words> {
    fn take(&mut self, lanes: L, pair: usize, codes: L::Words);
}

impl<L: Words> Sink<L> for Unpacked {
    #[inline(always)]
    fn take(&mut self, lanes: L, pair: usize, codes: L::Words) {
        lanes.store_words(codes, &mut self.0[pair]);
    }
}

/// Stores codes after subtracting the code that stands for 0.
struct Centred<'a, L: Words> {
    to: &'a mut Unpacked,
    zero: L::Words,
}

impl<L: Words> Sink<L> for Centred<'_, L> {
    #[inline(always)]
    fn take(&mut self, lanes: L, pair: usize, codes: L::Words) {
        self.to.take(lanes, pair, lanes.subtract(codes, self.zero));
    }
}

/// Unpacks a block of codes.
///
/// There are no loops: the index of a pair must be a constant, or a sink could not keep its
/// sums in registers.
#[inline(always)]
pub(super) fn unpack<L: Words>(lanes: L, codes: Codes, block: &[u8], out: &mut impl Sink<L>) {
    let quarters = match codes.bits {
        Bits::Four => [
            nibbles(lanes, block, 0),
            nibbles(lanes, block, 1),
            nibbles(lanes, block, 2),
            nibbles(lanes, block, 3),
        ],
        Bits::Five => {
            // The bits of pair s are at position s of each half. Move them to position 4.
            let plane = words(lanes, block, 4);
            let (first, bit) = (lanes.shift_left(plane, 4), in_halves(lanes, 0x10));
            let (third, fourth) = (lanes.shift_right(plane, 4), lanes.shift_right(plane, 8));
            [
                joined(lanes, nibbles(lanes, block, 0), first, 1, bit),
                joined(lanes, nibbles(lanes, block, 1), plane, 1, bit),
                joined(lanes, nibbles(lanes, block, 2), third, 1, bit),
                joined(lanes, nibbles(lanes, block, 3), fourth, 1, bit),
            ]
        }
        Bits::Six => {
            // As above with two bits per code, and one plane for each half of the block.
            let (left, right) = (words(lanes, block, 4), words(lanes, block, 5));
            let (first, third) = (lanes.shift_left(left, 4), lanes.shift_left(right, 4));
            let (second, fourth) = (lanes.shift_right(left, 4), lanes.shift_right(right, 4));
            let bits = in_halves(lanes, 0x30);
            [
                joined(lanes, nibbles(lanes, block, 0), first, 2, bits),
                joined(lanes, nibbles(lanes, block, 1), second, 2, bits),
                joined(lanes, nibbles(lanes, block, 2), third, 2, bits),
                joined(lanes, nibbles(lanes, block, 3), fourth, 2, bits),
            ]
        }
        Bits::Eight => [
            bytes(lanes, block, 0),
            bytes(lanes, block, 1),
            bytes(lanes, block, 2),
            bytes(lanes, block, 3),
        ],
    };
    let [first, second, third, fourth] = quarters;
    take(lanes, 0, first, out);
    take(lanes, 4, second, out);
    take(lanes, 8, third, out);
    take(lanes, 12, fourth, out);
}

/// Passes four pairs to the sink, from pair `first` on.
#[inline(always)]
fn take<L: Words>(lanes: L, first: usize, codes: [L::Words; 4], out: &mut impl Sink<L>) {
    out.take(lanes, first, codes[0]);
    out.take(lanes, first + 1, codes[1]);
    out.take(lanes, first + 2, codes[2]);
    out.take(lanes, first + 3, codes[3]);
}

/// Returns words with the same bits in both halves.
#[inline(always)]
fn in_halves<L: Words>(lanes: L, bits: u32) -> L::Words {
    lanes.splat_words(bits | bits << 16)
}

/// Reads words number `index` of a block, one per row.
#[inline(always)]
fn words<L: Words>(lanes: L, block: &[u8], index: usize) -> L::Words {
    let bytes = &block[4 * LANES * index..][..4 * LANES];
    let words = bytes.as_chunks::<4>().0;
    lanes.load_words(&std::array::from_fn(|row| u32::from_le_bytes(words[row])))
}

/// Unpacks the lower four bits of a quarter of a block: four pairs.
#[inline(always)]
fn nibbles<L: Words>(lanes: L, block: &[u8], quarter: usize) -> [L::Words; 4] {
    let (words, low) = (words(lanes, block, quarter), in_halves(lanes, 0xF));
    [
        lanes.and(words, low),
        lanes.and(lanes.shift_right(words, 4), low),
        lanes.and(lanes.shift_right(words, 8), low),
        lanes.shift_right(words, 12),
    ]
}

/// Joins four pairs with their upper bits, which are at positions in `plane` that increase by
/// `step` from pair to pair.
#[inline(always)]
fn joined<L: Words>(
    lanes: L,
    low: [L::Words; 4],
    plane: L::Words,
    step: i32,
    bits: L::Words,
) -> [L::Words; 4] {
    [
        lanes.or(low[0], lanes.and(plane, bits)),
        lanes.or(low[1], lanes.and(lanes.shift_right(plane, step), bits)),
        lanes.or(low[2], lanes.and(lanes.shift_right(plane, 2 * step), bits)),
        lanes.or(low[3], lanes.and(lanes.shift_right(plane, 3 * step), bits)),
    ]
}

/// Unpacks a quarter of a block of bytes: four pairs.
#[inline(always)]
fn bytes<L: Words>(lanes: L, block: &[u8], quarter: usize) -> [L::Words; 4] {
    let low = in_halves(lanes, 0xFF);
    let first = words(lanes, block, 2 * quarter);
    let second = words(lanes, block, 2 * quarter + 1);
    [
        lanes.and(first, low),
        lanes.shift_right(first, 8),
        lanes.and(second, low),
        lanes.shift_right(second, 8),
    ]
}

#[inline(always)]
pub(super) fn unpack_dense<L: Words>(
    lanes: L,
    dense: Dense,
    block: &[u8],
    out: &mut UnpackedDense,
) {
    match dense {
        Dense::F16 => {
            for (out, bytes) in out.0.iter_mut().zip(block.as_chunks::<32>().0) {
                lanes.store(lanes.load_f16(&read_u16s(bytes)), out);
            }
        }
        Dense::BF16 => {
            for (out, bytes) in out.0.iter_mut().zip(block.as_chunks::<32>().0) {
                for (out, half) in out.iter_mut().zip(read_u16s(bytes)) {
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

/// The integer product of a block with one row. The block has one group of 32 columns or two
/// groups of 16.
struct Sums<'a, L: Words, const GROUPS: usize> {
    whole: [L::Words; GROUPS],
    codes: &'a [u32],
}

impl<'a, L: Words, const GROUPS: usize> Sums<'a, L, GROUPS> {
    /// Initializes the sums with the correction for `zero`, the code that stands for 0: this is
    /// equivalent to subtracting it from each code.
    #[inline(always)]
    fn new(lanes: L, zero: i16, tile: Tile<'a>) -> Sums<'a, L, GROUPS> {
        assert_eq!(tile.codes.len(), PAIRS);
        let sums = tile.sums[0].codes;
        let whole = std::array::from_fn(|group| {
            let sum = match GROUPS {
                1 => sums[0] + sums[1],
                _ => sums[group],
            };
            lanes.splat_words((-i32::from(zero) * sum).cast_unsigned())
        });
        let codes = tile.codes;
        Sums { whole, codes }
    }
}

/// Computes the integer sums of one group of an unpacked block for the rows of a tile.
#[inline(always)]
fn group_sums<L: Words, const R: usize, const GROUPS: usize>(
    lanes: L,
    group: usize,
    weights: &Unpacked,
    tile: Tile<'_>,
) -> [L::Words; R] {
    let codes: &[[u32; R]; PAIRS] = tile.codes.as_chunks::<R>().0.try_into().expect("a tile");
    let mut sums = [lanes.splat_words(0); R];
    for pair in group * PAIRS / GROUPS..(group + 1) * PAIRS / GROUPS {
        let weights = lanes.load_words(&weights.0[pair]);
        for (sum, &codes) in sums.iter_mut().zip(&codes[pair]) {
            *sum = lanes.add_products(*sum, weights, lanes.splat_words(codes));
        }
    }
    sums
}

/// Converts the integer sums of a block to f32 with the scales and minima.
struct Scaled<'a, const R: usize, const GROUPS: usize, const MINIMUM: bool> {
    scales: &'a [[f32; LANES]],
    minima: &'a [[f32; LANES]],
    tile: Tile<'a>,
}

impl<const R: usize, const GROUPS: usize, const MINIMUM: bool> Scaled<'_, R, GROUPS, MINIMUM> {
    /// Adds the scaled sums of a group to `out`.
    #[inline(always)]
    fn add<L: Words>(
        &self,
        lanes: L,
        group: usize,
        sums: [L::Words; R],
        out: &mut [[f32; LANES]; R],
    ) {
        let (scales, minima) = (
            lanes.load(&self.scales[group]),
            lanes.load(&self.minima[group]),
        );
        let row_scales: &[f32; R] = self.tile.scales.try_into().expect("a scale for each row");
        let row_sums: &[_; R] = self.tile.sums.try_into().expect("sums of each row");
        for (row, (&sum, out)) in sums.iter().zip(out).enumerate() {
            let product = lanes.multiply(lanes.to_f32(sum), lanes.splat(row_scales[row]));
            let mut total = lanes.mul_add(product, scales, lanes.load(out));
            if MINIMUM {
                let values = row_sums[row].values;
                let sum = match GROUPS {
                    1 => values[0] + values[1],
                    _ => values[group],
                };
                total = lanes.mul_add(lanes.splat(sum), minima, total);
            }
            lanes.store(total, out);
        }
    }
}

impl<L: Words, const GROUPS: usize> Sink<L> for Sums<'_, L, GROUPS> {
    #[inline(always)]
    fn take(&mut self, lanes: L, pair: usize, weights: L::Words) {
        let whole = &mut self.whole[pair * GROUPS / PAIRS];
        *whole = lanes.add_products(*whole, weights, lanes.splat_words(self.codes[pair]));
    }
}

/// Adds the product of a dense block with `R` rows, `[column][row]`, to `out`.
#[inline(always)]
fn multiply_dense<L: Words, const R: usize>(
    lanes: L,
    weights: &UnpackedDense,
    tile: &[f32],
    out: &mut [[f32; LANES]],
) {
    let values = tile.as_chunks::<R>().0;
    assert!(values.len() == COLUMNS_PER_BLOCK && out.len() == R);
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
