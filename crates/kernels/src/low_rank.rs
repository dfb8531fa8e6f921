//! Low-rank (LoRA) additions to linear layers: `y += scale · (x·Aᵀ)·Bᵀ`.
//!
//! Both matrices are stored as f16, each multiplied by a power of two that brings its largest
//! element near the top of the f16 range, so that small elements keep their precision. The
//! result of a row depends only on that row.

use half::f16;

use super::isa::{Isa, Tier};
use super::math::{LANES, Lanes, dispatch};

/// Sums that run side by side, so that additions do not wait for each other.
const INDEPENDENT_SUMS: usize = 4;

/// The largest elements are scaled to at most this value: far from overflow; sums of products
/// are in f32 anyway.
const MAX_SCALED: f32 = 16_384.0;

/// A packed pair of low-rank matrices.
#[derive(Debug)]
pub struct LowRank {
    rank: usize,
    inputs: usize,
    outputs: usize,
    /// 16 rows of A at a time, column by column.
    a: Vec<[u16; LANES]>,
    /// 16 rows of B at a time, column by column.
    b: Vec<[u16; LANES]>,
    scale: f32,
}

impl LowRank {
    /// Packs `a`, `[rank, inputs]`, and `b`, `[outputs, rank]`, both row-major.
    ///
    /// # Panics
    /// The lengths do not match the rank.
    pub fn pack(rank: usize, [a, b]: [&[f32]; 2], scale: f32) -> LowRank {
        assert!(rank > 0 && a.len().is_multiple_of(rank) && b.len().is_multiple_of(rank));
        let (inputs, outputs) = (a.len() / rank, b.len() / rank);
        let (a, a_factor) = pack(a, inputs);
        let (b, b_factor) = pack(b, rank);
        LowRank {
            rank,
            inputs,
            outputs,
            a,
            b,
            scale: scale / a_factor / b_factor,
        }
    }

    /// Elements of a row between the two products: the rank, rounded up to whole vectors.
    pub fn width(&self) -> usize {
        self.rank.next_multiple_of(LANES)
    }

    /// The packed size of both matrices of this shape, in bytes.
    pub fn packed(rank: usize, inputs: usize, outputs: usize) -> usize {
        let vectors = rank.div_ceil(LANES) * inputs + outputs.div_ceil(LANES) * rank;
        vectors * size_of::<[u16; LANES]>()
    }

    /// The width of the output rows.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Computes the first product of one row: `low = scale · x·Aᵀ`.
    ///
    /// # Panics
    /// `x` is not one row wide, or `low` is not [`width`](LowRank::width) elements long.
    pub fn shrink(&self, isa: Isa, x: &[f32], low: &mut [f32]) {
        assert!(x.len() == self.inputs && low.len() == self.width());
        let (a, scale) = (&self.a[..], self.scale);
        dispatch!(isa, |lanes,
                        a: &[[u16; LANES]],
                        x: &[f32],
                        scale: f32,
                        low: &mut [f32]| {
            let low = low.as_chunks_mut::<LANES>().0;
            for (a, low) in a.chunks_exact(x.len()).zip(low) {
                let zero = [0.0; LANES];
                weighted_sum(lanes, a, x, &zero, low);
                for low in low {
                    *low *= scale;
                }
            }
        });
    }

    /// Computes the second product of some rows for the 16 outputs of one panel:
    /// `out += low·Bᵀ`. `low` holds [`width`](LowRank::width) elements of each row, at a stride
    /// of `stride`.
    ///
    /// # Panics
    /// There is no such panel, or `low` does not hold all rows.
    pub fn expand(
        &self,
        isa: Isa,
        panel: usize,
        low: &[f32],
        stride: usize,
        out: &mut [[f32; LANES]],
    ) {
        let b = &self.b[panel * self.rank..][..self.rank];
        dispatch!(isa, |lanes,
                        b: &[[u16; LANES]],
                        low: &[f32],
                        stride: usize,
                        out: &mut [[f32; LANES]]| {
            for (row, out) in out.iter_mut().enumerate() {
                let low = &low[row * stride..][..b.len()];
                let before = *out;
                weighted_sum(lanes, b, low, &before, out);
            }
        });
    }
}

/// Computes `out = before + Σ vectors[i] · factors[i]`.
#[inline(always)]
fn weighted_sum<L: Lanes>(
    lanes: L,
    vectors: &[[u16; LANES]],
    factors: &[f32],
    before: &[f32; LANES],
    out: &mut [f32; LANES],
) {
    let mut sums = [lanes.zero(); INDEPENDENT_SUMS];
    let (groups, rest) = vectors.as_chunks::<INDEPENDENT_SUMS>();
    let (factor_groups, factor_rest) = factors.as_chunks::<INDEPENDENT_SUMS>();
    for (vectors, factors) in groups.iter().zip(factor_groups) {
        for at in 0..INDEPENDENT_SUMS {
            let vector = lanes.load_f16(&vectors[at]);
            sums[at] = lanes.mul_add(vector, lanes.splat(factors[at]), sums[at]);
        }
    }
    for ((sum, vector), factor) in sums.iter_mut().zip(rest).zip(factor_rest) {
        *sum = lanes.mul_add(lanes.load_f16(vector), lanes.splat(*factor), *sum);
    }
    let one = lanes.splat(1.0);
    let add = |a, b| lanes.mul_add(a, one, b);
    let sum = add(add(sums[0], sums[1]), add(sums[2], sums[3]));
    lanes.store(add(sum, lanes.load(before)), out);
}

/// Packs a matrix with `columns` columns, and returns the factor it was multiplied by.
fn pack(matrix: &[f32], columns: usize) -> (Vec<[u16; LANES]>, f32) {
    let largest = matrix.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    let factor = if largest > 0.0 {
        (MAX_SCALED / largest)
            .log2()
            .floor()
            .clamp(-100.0, 100.0)
            .exp2()
    } else {
        1.0
    };
    let rows = matrix.len() / columns;
    let mut packed = vec![[0; LANES]; rows.div_ceil(LANES) * columns];
    for (row, numbers) in matrix.chunks_exact(columns).enumerate() {
        let panel = &mut packed[row / LANES * columns..][..columns];
        for (vector, number) in panel.iter_mut().zip(numbers) {
            vector[row % LANES] = f16::from_f32(number * factor).to_bits();
        }
    }
    (packed, factor)
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    fn random(seed: u64, len: usize, size: f32) -> Vec<f32> {
        let mut random = StdRng::seed_from_u64(seed);
        let numbers = (0..len).map(|_| size * random.random_range(-1.0..1.0));
        numbers.collect()
    }

    /// Computes both products in f64.
    fn plain(rank: usize, a: &[f32], b: &[f32], scale: f32, x: &[f32]) -> Vec<f64> {
        let dot = |row: &[f32], x: &[f64]| -> f64 {
            row.iter().zip(x).map(|(&a, x)| f64::from(a) * x).sum()
        };
        let x: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
        let low: Vec<f64> = a.chunks_exact(x.len()).map(|row| dot(row, &x)).collect();
        let rows = b.chunks_exact(rank);
        rows.map(|row| dot(row, &low) * f64::from(scale)).collect()
    }

    #[test]
    fn both_products_are_those_of_a_plain_computation() {
        // Includes ranks and widths that are no multiple of the vector length, and values so
        // small that f16 alone would flush them to 0.
        for (rank, inputs, outputs, size) in [
            (16, 64, 48, 1.0),
            (1, 5, 3, 1e-9),
            (8, 33, 17, 1e4),
            (40, 96, 64, 1e-3),
        ] {
            let (a, b) = (
                random(1, rank * inputs, size),
                random(2, outputs * rank, size),
            );
            let packed = LowRank::pack(rank, [&a, &b], 2.0);
            let rows: Vec<Vec<f32>> = (0..3).map(|row| random(3 + row, inputs, 1.0)).collect();
            for isa in Isa::all() {
                let stride = packed.width() + 16;
                let mut low = vec![f32::NAN; rows.len() * stride];
                for (row, x) in rows.iter().enumerate() {
                    packed.shrink(isa, x, &mut low[row * stride..][..packed.width()]);
                }
                for panel in 0..outputs.div_ceil(LANES) {
                    let before = if size == 1.0 { 1.0 } else { 0.0 };
                    let mut out = vec![[before; LANES]; rows.len()];
                    packed.expand(isa, panel, &low, stride, &mut out);
                    for (x, out) in rows.iter().zip(&out) {
                        let expected = plain(rank, &a, &b, 2.0, x);
                        let most = expected.iter().fold(0.0f64, |most, y| most.max(y.abs()));
                        let own = expected.iter().skip(panel * LANES).zip(out);
                        for (expected, y) in own {
                            let error = (f64::from(y - before) - expected).abs() / most;
                            assert!(error < 2e-3, "{isa:?}, rank {rank}: {error}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let (a, b) = (random(1, 16 * 70, 1.0), random(2, 40 * 16, 1.0));
        let packed = LowRank::pack(16, [&a, &b], 0.5);
        let x = random(3, 70, 1.0);
        let results = Isa::all().into_iter().map(|isa| {
            let mut low = [0.0; 16];
            packed.shrink(isa, &x, &mut low);
            let mut out = [[0.0; LANES]];
            packed.expand(isa, 1, &low, 16, &mut out);
            (low.map(f32::to_bits), out[0].map(f32::to_bits))
        });
        let results: Vec<_> = results.collect();
        assert!(results.iter().all(|result| *result == results[0]));
    }
}
