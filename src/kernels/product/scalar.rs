//! The inner loops in plain Rust: what the others are held against.

use half::{bf16, f16};

use super::super::matrix::{BLOCK, Codes, Dense, LANES, code};
use super::{Ops, PAIRS, Tile, Unpacked, UnpackedDense};

pub(super) struct Scalar;

impl Ops for Scalar {
    const TALLEST: usize = 4;

    unsafe fn halves(bytes: &[u8; 2 * LANES]) -> [f32; LANES] {
        let mut out = [0.0; LANES];
        for (out, bytes) in out.iter_mut().zip(bytes.chunks_exact(2)) {
            *out = f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
        }
        out
    }

    unsafe fn prefetch(_block: &[u8]) {}

    unsafe fn unpack(codes: Codes, block: &[u8], out: &mut Unpacked) {
        for (pair, lanes) in out.0.iter_mut().enumerate() {
            for (lane, two) in lanes.iter_mut().enumerate() {
                *two = [2 * pair, 2 * pair + 1]
                    .map(|column| code(codes.bits, block, column, lane) - codes.zero);
            }
        }
    }

    unsafe fn unpack_dense(dense: Dense, block: &[u8], out: &mut UnpackedDense) {
        let out = out.0.as_flattened_mut();
        for (out, bytes) in out.iter_mut().zip(block.chunks_exact(dense.width())) {
            *out = match dense {
                Dense::F16 => f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
                Dense::BF16 => bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
                Dense::F32 => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            };
        }
    }

    unsafe fn tile<const R: usize, const GROUPS: usize, const MINIMUM: bool>(
        weights: &Unpacked,
        scales: &[[f32; LANES]],
        minima: &[[f32; LANES]],
        tile: Tile<'_>,
        out: &mut [[f32; LANES]],
    ) {
        for row in 0..R {
            for group in 0..GROUPS {
                let pairs = group * PAIRS / GROUPS..(group + 1) * PAIRS / GROUPS;
                let sum = match GROUPS {
                    1 => tile.sums[row][0] + tile.sums[row][1],
                    _ => tile.sums[row][group],
                };
                for lane in 0..LANES {
                    let mut whole = 0;
                    for pair in pairs.clone() {
                        let codes = &tile.codes[2 * (pair * R + row)..][..2];
                        let weights = weights.0[pair][lane];
                        whole += i32::from(weights[0]) * i32::from(codes[0]);
                        whole += i32::from(weights[1]) * i32::from(codes[1]);
                    }
                    let product = whole as f32 * tile.scales[row];
                    let out = &mut out[row][lane];
                    *out = product.mul_add(scales[group][lane], *out);
                    if MINIMUM {
                        *out = sum.mul_add(minima[group][lane], *out);
                    }
                }
            }
        }
    }

    unsafe fn tile_dense<const R: usize>(
        weights: &UnpackedDense,
        tile: &[f32],
        out: &mut [[f32; LANES]],
    ) {
        for row in 0..R {
            for (lane, out) in out[row].iter_mut().enumerate() {
                let mut sum = 0.0f32;
                for column in 0..BLOCK {
                    sum = tile[column * R + row].mul_add(weights.0[column][lane], sum);
                }
                *out += sum;
            }
        }
    }
}
