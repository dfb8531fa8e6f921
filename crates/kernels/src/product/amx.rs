//! AMX kernels for rows of prompts (prefill) and of training: tiles of 16 × 32 bf16.
//!
//! Weights are dequantized to bf16 once, including scales and minima, and then all rows are
//! multiplied with them. No work remains per group of weights, so one loop serves every format
//! of codes.

mod backward;

use std::arch::asm;
use std::arch::x86_64::*;
use std::cell::RefCell;
use std::ops::Range;

pub(super) use backward::backward;

use super::super::math::Avx512;
use super::super::matrix::{COLUMNS_PER_BLOCK, Codes, Format, LANES, Matrix, UnitScales};
use super::activations::TILE_ROWS;
use super::tile::{self, Unpacked};
use super::{Activations, PAIRS, width};

/// bf16 weights in the layout of a tile: neighbouring pairs along the summed dimension.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Block([[[u16; 2]; LANES]; PAIRS]);

const ZERO: Block = Block([[[0; 2]; LANES]; PAIRS]);

/// Elements per tile of rows.
const TILE: usize = TILE_ROWS * COLUMNS_PER_BLOCK;

/// The number of row tiles that are multiplied with a block together: one result register each.
const TILES_PER_STEP: usize = 4;

/// The tile configuration: eight registers of 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static CONFIGURATION: Configuration = Configuration {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// Ownership of this thread's tile registers, which are released on drop.
struct Registers;

impl Registers {
    fn take() -> Registers {
        // SAFETY: the configuration is valid and static. An `Isa` with AMX is created only
        // after the system has permitted its use.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const CONFIGURATION, options(nostack)) };
        Registers
    }
}

impl Drop for Registers {
    fn drop(&mut self) {
        // SAFETY: nothing uses the registers any more.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

thread_local! {
    /// The dequantized weights of the current panel.
    static EXPANDED: RefCell<Vec<Block>> = const { RefCell::new(Vec::new()) };
}

/// Computes [`super::panel`] with AMX.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
pub(super) fn panel(matrix: &Matrix, panel: usize, rows: &Activations, out: &mut [[f32; LANES]]) {
    let lanes = Avx512::new();
    let Format::Codes(codes) = matrix.format() else {
        return tile::panel(lanes, matrix, panel, rows, out);
    };
    let (plain, prompts) = out.split_at_mut(rows.plain_rows());
    if !plain.is_empty() {
        tile::panel(lanes, matrix, panel, rows, plain);
    }
    if !prompts.is_empty() {
        EXPANDED.with_borrow_mut(|blocks| {
            blocks.clear();
            let panel = Panel::new(matrix, codes, panel);
            expand(panel, 0..matrix.padded() / COLUMNS_PER_BLOCK, blocks);
            let (tiles, tile_len) = rows.bf16_tiles();
            assert_eq!(tile_len, blocks.len() * COLUMNS_PER_BLOCK * TILE_ROWS);
            multiply_panel(blocks, tiles, tile_len, prompts);
        });
    }
}

/// The bytes of a panel.
#[derive(Clone, Copy)]
struct Panel<'a> {
    codes: Codes,
    headers: &'a [u8],
    blocks: &'a [u8],
}

/// The weights of a block, by pairs of columns: one lane for each output.
type Numbers = [[__m512; 2]; PAIRS];

impl<'a> Panel<'a> {
    fn new(matrix: &'a Matrix, codes: Codes, panel: usize) -> Panel<'a> {
        let (headers, blocks) = matrix
            .panel(panel)
            .split_at(codes.codes_at(matrix.padded()));
        Panel {
            codes,
            headers,
            blocks,
        }
    }

    /// Reads the scales of the unit that holds this block, if the block is the first of its
    /// unit or `first` is set.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn read_scales(&self, block: usize, first: bool, scales: &mut UnitScales) {
        let per_unit = self.codes.unit() / COLUMNS_PER_BLOCK;
        if first || block.is_multiple_of(per_unit) {
            let header = &self.headers[block / per_unit * self.codes.header_bytes()..];
            scales.read(Avx512::new(), self.codes, header);
        }
    }

    /// Dequantizes the weights of a block.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn numbers(&self, block: usize, scales: &UnitScales) -> Numbers {
        let (lanes, codes) = (Avx512::new(), self.codes);
        let bytes = &self.blocks[block * codes.code_bytes()..][..codes.code_bytes()];
        tile::prefetch(lanes, bytes);
        let mut words = Unpacked::EMPTY;
        tile::unpack(lanes, codes, bytes, &mut words);
        let first = block % (codes.unit() / COLUMNS_PER_BLOCK) * COLUMNS_PER_BLOCK;
        let zero = _mm512_set1_epi32(codes.zero.into());
        std::array::from_fn(|pair| {
            let group = (first + 2 * pair) / codes.group;
            // SAFETY: all arrays have 16 lanes of 32 bits.
            let (scale, minimum, two) = unsafe {
                (
                    _mm512_loadu_ps(scales.scales[group].as_ptr()),
                    _mm512_loadu_ps(scales.minima[group].as_ptr()),
                    _mm512_load_si512(words.0[pair].as_ptr().cast()),
                )
            };
            let even = _mm512_and_si512(two, _mm512_set1_epi32(0xFFFF));
            let odd = _mm512_srli_epi32::<16>(two);
            [even, odd].map(|codes| {
                let codes = _mm512_cvtepi32_ps(_mm512_sub_epi32(codes, zero));
                _mm512_fmadd_ps(codes, scale, minimum)
            })
        })
    }
}

/// Dequantizes consecutive blocks of a panel to bf16.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
fn expand(panel: Panel<'_>, blocks: Range<usize>, out: &mut Vec<Block>) {
    // Interleaves the outputs of even columns with those of odd columns.
    let places: [u16; 2 * LANES] = std::array::from_fn(|at| (at / 2 + at % 2 * LANES) as u16);
    // SAFETY: the array has 32 elements of 16 bits.
    let places = unsafe { _mm512_loadu_si512(places.as_ptr().cast()) };
    let mut scales = UnitScales::new();
    for block in blocks.clone() {
        panel.read_scales(block, block == blocks.start, &mut scales);
        let mut expanded = ZERO;
        let numbers = panel.numbers(block, &scales);
        for (pairs, [even, odd]) in expanded.0.iter_mut().zip(numbers) {
            let both = _mm512_permutexvar_epi16(places, to_bf16(even, odd));
            // SAFETY: the array has 16 pairs of 16 bits.
            unsafe { _mm512_store_si512(pairs.as_mut_ptr().cast(), both) };
        }
        out.push(expanded);
    }
}

/// Converts to bf16: the elements of `first`, then those of `second`.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn to_bf16(first: __m512, second: __m512) -> __m512i {
    // SAFETY: both types are 32 elements of 16 bits.
    unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(second, first)) }
}

/// Multiplies all row tiles with a dequantized panel.
fn multiply_panel(blocks: &[Block], tiles: &[u16], tile_len: usize, out: &mut [[f32; LANES]]) {
    let mut results = [Results([[0.0; LANES]; TILE_ROWS]); TILES_PER_STEP];
    let _registers = Registers::take();
    let groups = tiles.chunks(TILES_PER_STEP * tile_len);
    for (tiles, out) in groups.zip(out.chunks_mut(TILES_PER_STEP * TILE_ROWS)) {
        let count = tiles.len() / tile_len;
        // If there are fewer tiles than registers, the first tiles are repeated and the surplus
        // results are discarded.
        let tile = |index: usize| tiles[index % count * tile_len..].as_ptr();
        // SAFETY: every tile has as many blocks as the panel, of 16 rows of 64 bytes each.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                options(nostack, nomem)
            );
            for (index, block) in blocks.iter().enumerate() {
                let at = index * TILE_ROWS * COLUMNS_PER_BLOCK;
                asm!(
                    "tileloadd tmm6, [{weights} + {stride}]",
                    "tileloadd tmm4, [{rows0} + {stride}]",
                    "tileloadd tmm5, [{rows1} + {stride}]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{rows2} + {stride}]",
                    "tdpbf16ps tmm1, tmm5, tmm6",
                    "tileloadd tmm4, [{rows3} + {stride}]",
                    "tdpbf16ps tmm2, tmm7, tmm6",
                    "tdpbf16ps tmm3, tmm4, tmm6",
                    weights = in(reg) &raw const *block,
                    rows0 = in(reg) tile(0).add(at),
                    rows1 = in(reg) tile(1).add(at),
                    rows2 = in(reg) tile(2).add(at),
                    rows3 = in(reg) tile(3).add(at),
                    stride = in(reg) 64usize,
                    options(nostack, readonly),
                );
            }
            asm!(
                "tilestored [{results0} + {stride}], tmm0",
                "tilestored [{results1} + {stride}], tmm1",
                "tilestored [{results2} + {stride}], tmm2",
                "tilestored [{results3} + {stride}], tmm3",
                results0 = in(reg) &raw mut results[0],
                results1 = in(reg) &raw mut results[1],
                results2 = in(reg) &raw mut results[2],
                results3 = in(reg) &raw mut results[3],
                stride = in(reg) 64usize,
                options(nostack),
            );
        }
        let rows = results.iter().flat_map(|results| &results.0);
        for (out, row) in out.iter_mut().zip(rows) {
            *out = *row;
        }
    }
}

/// The memory that a result register is stored to.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Results([[f32; LANES]; TILE_ROWS]);

/// The size in bytes of the rows that are multiplied with all weights of some columns before
/// the next rows: chosen to fit in the L2 cache.
const MAX_L2_BYTES: usize = 1 << 20;

/// Returns how many blocks along the summed dimension are multiplied before the next ones.
fn depth(rows: usize) -> usize {
    (MAX_L2_BYTES / (size_of::<u16>() * rows.max(1) * COLUMNS_PER_BLOCK)).max(1)
}

/// Computes `y = x·Wᵀ` for the outputs of some panels.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
pub(super) fn multiply(
    matrix: &Matrix,
    codes: Codes,
    panels: Range<usize>,
    rows: &Activations,
    y: &mut [f32],
) {
    let mut grid = Grid::new(y, rows.rows(), width(matrix, &panels));
    let tiles = Tiles::of(rows);
    let all = matrix.padded() / COLUMNS_PER_BLOCK;
    let deep = depth(rows.rows());
    let registers = Registers::take();
    EXPANDED.with_borrow_mut(|weights| {
        for start in (0..all).step_by(deep) {
            let blocks = start..all.min(start + deep);
            for panel in panels.clone().step_by(2) {
                weights.clear();
                for panel in panel..panel + 2 {
                    if panels.contains(&panel) {
                        expand(Panel::new(matrix, codes, panel), blocks.clone(), weights);
                    } else {
                        weights.resize(2 * blocks.len(), ZERO);
                    }
                }
                let column = (panel - panels.start) * LANES;
                let weights = weights.split_at(blocks.len());
                grid.sum(&registers, column, &tiles, &blocks, weights, start == 0);
            }
        }
    });
}

/// Rows in bf16: `[tile][block][row of the tile][column of the block]`.
struct Tiles<'a> {
    tiles: &'a [u16],
    /// Blocks per tile.
    blocks: usize,
}

impl<'a> Tiles<'a> {
    fn of(rows: &'a Activations) -> Tiles<'a> {
        let (tiles, len) = rows.bf16_tiles();
        Tiles {
            tiles,
            blocks: len / TILE,
        }
    }

    fn count(&self) -> usize {
        self.tiles.len() / (self.blocks * TILE)
    }

    /// Returns some blocks of a tile.
    fn get(&self, tile: usize, blocks: &Range<usize>) -> &'a [u16] {
        &self.tiles[(tile * self.blocks + blocks.start) * TILE..][..blocks.len() * TILE]
    }
}

/// The results: some rows of `width` elements.
struct Grid<'a> {
    numbers: &'a mut [f32],
    rows: usize,
    width: usize,
}

/// Rows and columns of results that are kept in registers together: two tiles in each
/// direction.
const HIGH: usize = 2 * TILE_ROWS;
const WIDE: usize = 2 * LANES;

/// A buffer for the results of such a square of 2 × 2 tiles.
#[repr(C, align(64))]
struct Square([[f32; WIDE]; HIGH]);

impl<'a> Grid<'a> {
    fn new(numbers: &'a mut [f32], rows: usize, width: usize) -> Grid<'a> {
        assert_eq!(numbers.len(), rows * width, "the lengths fit");
        Grid {
            numbers,
            rows,
            width,
        }
    }

    /// Sums the products of some blocks of all rows with `weights`, two tiles of columns from
    /// `column` on. The sums replace the results if `anew` is set, and are added to them
    /// otherwise.
    fn sum(
        &mut self,
        registers: &Registers,
        column: usize,
        tiles: &Tiles<'_>,
        blocks: &Range<usize>,
        weights: (&[Block], &[Block]),
        anew: bool,
    ) {
        let wide = WIDE.min(self.width - column);
        for tile in (0..tiles.count()).step_by(2) {
            // Without a second tile, its results are discarded.
            let other = (tile + 1).min(tiles.count() - 1);
            let rows = (tiles.get(tile, blocks), tiles.get(other, blocks));
            let first = tile * TILE_ROWS;
            let high = HIGH.min(self.rows - first);
            let start = first * self.width + column;
            if high == HIGH && wide == WIDE {
                let end = start + (HIGH - 1) * self.width + WIDE;
                let out = &mut self.numbers[start..end];
                square(registers, rows, weights, (out, self.width), anew);
                continue;
            }
            let mut whole = Square([[0.0; WIDE]; HIGH]);
            let lines = self.numbers[start..].chunks_mut(self.width).take(high);
            if !anew {
                for (whole, line) in whole.0.iter_mut().zip(lines) {
                    whole[..wide].copy_from_slice(&line[..wide]);
                }
            }
            let out = whole.0.as_flattened_mut();
            square(registers, rows, weights, (out, WIDE), anew);
            let lines = self.numbers[start..].chunks_mut(self.width).take(high);
            for (whole, line) in whole.0.iter().zip(lines) {
                line[..wide].copy_from_slice(&whole[..wide]);
            }
        }
    }
}

/// Sums the products of two tiles of rows with two tiles of weights, block by block. The sums
/// replace `out` if `anew` is set, and are added to it otherwise; the rows of `out` are
/// `apart` elements apart.
fn square(
    _: &Registers,
    (rows, other_rows): (&[u16], &[u16]),
    (weights, other_weights): (&[Block], &[Block]),
    (out, apart): (&mut [f32], usize),
    anew: bool,
) {
    let count = weights.len();
    assert!(count > 0 && other_weights.len() == count);
    assert!(rows.len() == count * TILE && other_rows.len() == count * TILE);
    assert!(apart >= WIDE && out.len() >= (HIGH - 1) * apart + WIDE);
    let out = out.as_mut_ptr();
    // SAFETY: all reads and writes are within the slices, by the assertions, and this thread
    // owns the registers.
    unsafe {
        asm!(
            "test {anew:e}, {anew:e}",
            "jnz 2f",
            "tileloadd tmm0, [{out} + {apart}]",
            "tileloadd tmm1, [{out} + {apart} + 64]",
            "tileloadd tmm2, [{lower} + {apart}]",
            "tileloadd tmm3, [{lower} + {apart} + 64]",
            "jmp 3f",
            "2:",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "3:",
            "tileloadd tmm4, [{rows} + {line}]",
            "tileloadd tmm6, [{weights} + {line}]",
            "tileloadd tmm5, [{other_rows} + {line}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{other_weights} + {line}]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {rows}, 1024",
            "add {other_rows}, 1024",
            "add {weights}, 1024",
            "add {other_weights}, 1024",
            "dec {count}",
            "jnz 3b",
            "tilestored [{out} + {apart}], tmm0",
            "tilestored [{out} + {apart} + 64], tmm1",
            "tilestored [{lower} + {apart}], tmm2",
            "tilestored [{lower} + {apart} + 64], tmm3",
            anew = in(reg) u32::from(anew),
            rows = inout(reg) rows.as_ptr() => _,
            other_rows = inout(reg) other_rows.as_ptr() => _,
            weights = inout(reg) weights.as_ptr() => _,
            other_weights = inout(reg) other_weights.as_ptr() => _,
            count = inout(reg) count => _,
            out = in(reg) out,
            lower = in(reg) out.wrapping_add(TILE_ROWS * apart),
            apart = in(reg) apart * size_of::<f32>(),
            line = in(reg) COLUMNS_PER_BLOCK * size_of::<u16>(),
            options(nostack),
        );
    }
}
