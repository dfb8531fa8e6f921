//! Prompts with AMX: tiles of 16 × 32 bf16.
//!
//! A panel is expanded to bf16 once, scales and minima included, and then all
//! rows go over it, 64 at a time. There is nothing to do per group of weights,
//! so one loop serves every format of codes.

use std::arch::asm;
use std::arch::x86_64::*;
use std::cell::RefCell;

use super::super::math::Avx512;
use super::super::matrix::{BLOCK, Codes, Format, LANES, Matrix, UnitScales};
use super::activations::TILE_ROWS;
use super::tile::{self, Unpacked};
use super::{Activations, PAIRS};

/// A block of a panel in bf16, as a tile takes it: pairs of columns side by side.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Block([[[u16; 2]; LANES]; PAIRS]);

const ZERO: Block = Block([[[0; 2]; LANES]; PAIRS]);

/// Tiles of rows that go over a block together: a register of results each.
const TOGETHER: usize = 4;

/// How the eight tile registers are cut: 16 rows of 64 bytes all of them.
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

thread_local! {
    /// The panel at hand.
    static EXPANDED: RefCell<Vec<Block>> = const { RefCell::new(Vec::new()) };
}

/// [`super::panel`] with AMX.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
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
            expand(codes, matrix.padded(), matrix.panel(panel), blocks);
            let (tiles, tile_len) = rows.half_tiles();
            assert_eq!(tile_len, blocks.len() * BLOCK * TILE_ROWS);
            multiply(blocks, tiles, tile_len, prompts);
        });
    }
}

/// All of a panel's weights, block after block.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn expand(codes: Codes, columns: usize, panel: &[u8], blocks: &mut Vec<Block>) {
    let (headers, code_bytes) = panel.split_at(codes.codes_at(columns));
    let lanes = Avx512::new();
    let mut weights = Unpacked::EMPTY;
    let mut scales = UnitScales::new();
    let per_unit = codes.unit() / BLOCK;
    let units = headers
        .chunks_exact(codes.header_bytes())
        .zip(code_bytes.chunks_exact(per_unit * codes.code_bytes()));
    for (header, bytes) in units {
        scales.read(lanes, codes, header);
        for (index, bytes) in bytes.chunks_exact(codes.code_bytes()).enumerate() {
            let mut block = ZERO;
            tile::prefetch(lanes, bytes);
            tile::unpack(lanes, codes, bytes, &mut weights);
            // SAFETY: all arrays have 16 lanes of 32 bits.
            unsafe {
                for pair in 0..PAIRS {
                    let group = (index * BLOCK + 2 * pair) / codes.group;
                    let scale = _mm512_loadu_ps(scales.scales[group].as_ptr());
                    let minimum = _mm512_loadu_ps(scales.minima[group].as_ptr());
                    let two = _mm512_load_si512(weights.0[pair].as_ptr().cast());
                    let even = _mm512_and_si512(two, _mm512_set1_epi32(0xFFFF));
                    let odd = _mm512_srli_epi32::<16>(two);
                    let zero = _mm512_set1_epi32(codes.zero.into());
                    let [even, odd] = [even, odd].map(|codes| {
                        let codes = _mm512_cvtepi32_ps(_mm512_sub_epi32(codes, zero));
                        rounded(_mm512_fmadd_ps(codes, scale, minimum))
                    });
                    let upper = _mm512_set1_epi32(0xFFFF_0000u32.cast_signed());
                    let two = _mm512_or_si512(
                        _mm512_srli_epi32::<16>(even),
                        _mm512_and_si512(odd, upper),
                    );
                    _mm512_store_si512(block.0[pair].as_mut_ptr().cast(), two);
                }
            }
            blocks.push(block);
        }
    }
}

/// Numbers rounded to bf16, in the upper halves of the lanes. Weights are finite.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn rounded(numbers: __m512) -> __m512i {
    let bits = _mm512_castps_si512(numbers);
    let last = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
    let half = _mm512_add_epi32(last, _mm512_set1_epi32(0x7FFF));
    _mm512_add_epi32(bits, half)
}

/// Multiplies all tiles of rows with an expanded panel.
fn multiply(blocks: &[Block], tiles: &[u16], tile_len: usize, out: &mut [[f32; LANES]]) {
    let mut results = [Results([[0.0; LANES]; TILE_ROWS]); TOGETHER];
    // SAFETY: the configuration is valid, and lives as long as the program. An
    // `Isa` with AMX was made only after the system allowed its use.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const CONFIGURATION, options(nostack)) };
    let groups = tiles.chunks(TOGETHER * tile_len);
    for (tiles, out) in groups.zip(out.chunks_mut(TOGETHER * TILE_ROWS)) {
        let count = tiles.len() / tile_len;
        // Where there are fewer tiles than registers, the first ones stand in
        // for the others, whose results nobody takes.
        let tile = |index: usize| tiles[index % count * tile_len..].as_ptr();
        // SAFETY: every tile has as many blocks as the panel, of 16 rows of 64
        // bytes each.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                options(nostack, nomem)
            );
            for (index, block) in blocks.iter().enumerate() {
                let at = index * TILE_ROWS * BLOCK;
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
    // SAFETY: gives the tile registers back; nothing below uses them.
    unsafe { asm!("tilerelease", options(nostack, nomem)) };
}

/// What a register of results is stored to.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Results([[f32; LANES]; TILE_ROWS]);
