//! The functions of a decoder, over rows of tokens, each with its way back.
//!
//! Work is cut by rows, one part for each thread: a part goes through all weights by
//! itself, and nobody waits for anybody in between.

use std::sync::Arc;

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::node::{of_one, of_three, of_two, with};
use crate::kernels::gemm::{Place, multiply};
use crate::kernels::{Isa, Matrix, gradients, math, product};
use crate::model::{Activation, RopeStyle};

/// A matrix of the frozen weights.
pub(super) type Frozen = Arc<dyn AsRef<Matrix> + Send + Sync>;

/// Rows of each part, so that all threads have one and none is so tall that it leaves
/// the caches.
pub(super) fn part(rows: usize) -> usize {
    const TALLEST: usize = 512;
    let threads = rayon::current_num_threads();
    let parts = rows.div_ceil(TALLEST).next_multiple_of(threads);
    rows.div_ceil(parts).max(1)
}

/// A frozen linear layer, `x·Wᵀ`.
pub(super) fn linear(isa: Isa, weight: Frozen, x: &Tensor) -> Result<Tensor> {
    let matrix = (*weight).as_ref();
    let (inputs, outputs) = (matrix.columns(), matrix.rows());
    let rows = x.dim(0)?;
    let mut y = vec![0.0; rows * outputs];
    let part = part(rows);
    with(x, |x| {
        y.par_chunks_mut(part * outputs)
            .zip(x.par_chunks(part * inputs))
            .for_each(|(y, x)| product::rows(isa, matrix, x, y));
    })?;
    let back = move |[x]: [&[f32]; 1], dy: &[f32]| {
        let matrix = (*weight).as_ref();
        let mut dx = vec![0.0; x.len()];
        dx.par_chunks_mut(part * inputs)
            .zip(dy.par_chunks(part * outputs))
            .for_each(|(dx, dy)| product::back(isa, matrix, 0..matrix.panels(), dy, dx));
        [dx]
    };
    of_one("linear", x, (rows, outputs), y, Box::new(back))
}

/// A frozen linear layer and what an adapter adds, `x·Wᵀ + scale · (x·Aᵀ)·Bᵀ`, in one:
/// neither of the two terms is kept by itself.
pub(super) fn adapted_linear(
    isa: Isa,
    weight: Frozen,
    x: &Tensor,
    (a, b): (&Tensor, &Tensor),
    scale: f32,
) -> Result<Tensor> {
    let matrix = (*weight).as_ref();
    let (inputs, outputs) = (matrix.columns(), matrix.rows());
    let (rows, rank) = (x.dim(0)?, a.dim(0)?);
    let part = part(rows);
    let low = LowRank {
        inputs,
        outputs,
        rank,
        scale,
    };
    let mut y = vec![0.0; rows * outputs];
    with(x, |x| {
        with(a, |a| {
            with(b, |b| {
                y.par_chunks_mut(part * outputs)
                    .zip(x.par_chunks(part * inputs))
                    .for_each(|(y, x)| {
                        product::rows(isa, matrix, x, y);
                        low.add(x, a, b, y);
                    });
            })
        })
    })???;
    let back = move |[x, a, b]: [&[f32]; 3], dy: &[f32]| {
        let matrix = (*weight).as_ref();
        let mut dx = vec![0.0; x.len()];
        let parts = dx.par_chunks_mut(part * inputs);
        let parts = parts.zip(x.par_chunks(part * inputs));
        let parts = parts.zip(dy.par_chunks(part * outputs));
        let parts: Vec<[Vec<f32>; 2]> = parts
            .map(|((dx, x), dy)| {
                product::back(isa, matrix, 0..matrix.panels(), dy, dx);
                low.back(x, a, b, dy, dx)
            })
            .collect();
        // In the same order every time.
        let mut parts = parts.into_iter();
        let first = parts.next().unwrap_or_default();
        let [da, db] = parts.fold(first, |mut sums, part| {
            for (sum, part) in sums.iter_mut().zip(&part) {
                math::add_assign(isa, sum, part);
            }
            sums
        });
        [dx, da, db]
    };
    of_three(
        "adapted linear",
        [x, a, b],
        (rows, outputs),
        y,
        Box::new(back),
    )
}

/// The low-rank term of some rows.
#[derive(Clone, Copy)]
struct LowRank {
    inputs: usize,
    outputs: usize,
    rank: usize,
    scale: f32,
}

impl LowRank {
    /// `scale · x·Aᵀ`.
    fn low(self, x: &[f32], a: &[f32]) -> Vec<f32> {
        let rows = x.len() / self.inputs;
        let place = Place::rows(0, self.inputs);
        let mut low = vec![0.0; rows * self.rank];
        let shape = [rows, self.inputs, self.rank];
        let out = (&mut low[..], Place::rows(0, self.rank));
        let a = (a, place.transposed());
        multiply(shape, (x, place), a, self.scale, 0.0, out);
        low
    }

    fn add(self, x: &[f32], a: &[f32], b: &[f32], y: &mut [f32]) {
        let low = self.low(x, a);
        let shape = [x.len() / self.inputs, self.rank, self.outputs];
        let narrow = Place::rows(0, self.rank);
        let (b, out) = ((b, narrow.transposed()), (y, Place::rows(0, self.outputs)));
        multiply(shape, (&low, narrow), b, 1.0, 1.0, out);
    }

    /// Adds to `dx`; returns what the rows have of the gradients of A and B.
    fn back(self, x: &[f32], a: &[f32], b: &[f32], dy: &[f32], dx: &mut [f32]) -> [Vec<f32>; 2] {
        let rows = x.len() / self.inputs;
        let (narrow, wide) = (Place::rows(0, self.rank), Place::rows(0, self.outputs));
        let inner = Place::rows(0, self.inputs);
        let low = self.low(x, a);
        let mut db = vec![0.0; self.outputs * self.rank];
        let shape = [self.outputs, rows, self.rank];
        let transposed = (dy, wide.transposed());
        multiply(
            shape,
            transposed,
            (&low, narrow),
            1.0,
            0.0,
            (&mut db, narrow),
        );
        let mut d_low = vec![0.0; rows * self.rank];
        let shape = [rows, self.outputs, self.rank];
        let out = (&mut d_low[..], narrow);
        multiply(shape, (dy, wide), (b, narrow), self.scale, 0.0, out);
        let mut da = vec![0.0; self.rank * self.inputs];
        let shape = [self.rank, rows, self.inputs];
        let transposed = (&d_low[..], narrow.transposed());
        multiply(shape, transposed, (x, inner), 1.0, 0.0, (&mut da, inner));
        let shape = [rows, self.rank, self.inputs];
        multiply(shape, (&d_low, narrow), (a, inner), 1.0, 1.0, (dx, inner));
        [da, db]
    }
}

/// The RMS norm of each stretch as long as `weight`.
pub(super) fn norm(isa: Isa, weight: Arc<Vec<f32>>, eps: f32, x: &Tensor) -> Result<Tensor> {
    let width = weight.len();
    let mut y = vec![0.0; x.elem_count()];
    with(x, |x| {
        y.par_chunks_mut(width)
            .zip(x.par_chunks(width))
            .with_min_len(64)
            .for_each(|(y, x)| math::rms_norm(isa, x, &weight, eps, y));
    })?;
    let back = move |[x]: [&[f32]; 1], dy: &[f32]| {
        let mut dx = dy.to_vec();
        dx.par_chunks_mut(width)
            .zip(x.par_chunks(width))
            .with_min_len(64)
            .for_each(|(dx, x)| gradients::rms_norm(isa, x, &weight, eps, dx));
        [dx]
    };
    of_one("norm", x, x.dims(), y, Box::new(back))
}

/// `activation(gate) · up`.
pub(super) fn gated(
    isa: Isa,
    activation: Activation,
    gate: &Tensor,
    up: &Tensor,
) -> Result<Tensor> {
    const AT_ONCE: usize = 1 << 14;
    let mut y = with(gate, <[f32]>::to_vec)?;
    with(up, |up| {
        y.par_chunks_mut(AT_ONCE)
            .zip(up.par_chunks(AT_ONCE))
            .for_each(|(y, up)| math::gated(isa, activation, y, up));
    })?;
    let back = move |[gate, up]: [&[f32]; 2], dy: &[f32]| {
        let (mut d_up, mut d_gate) = (dy.to_vec(), vec![0.0; dy.len()]);
        let gradients = d_up
            .par_chunks_mut(AT_ONCE)
            .zip(d_gate.par_chunks_mut(AT_ONCE));
        let inputs = gate.par_chunks(AT_ONCE).zip(up.par_chunks(AT_ONCE));
        gradients
            .zip(inputs)
            .for_each(|((d_up, d_gate), (gate, up))| {
                gradients::gated(isa, activation, gate, up, d_up, d_gate);
            });
        [d_gate, d_up]
    };
    of_two("gate", [gate, up], gate.dims(), y, Box::new(back))
}

/// The angles of rows of tokens.
pub(super) struct Angles {
    pub(super) style: RopeStyle,
    /// `[row][pair]`, of each of both.
    pub(super) cos: Vec<f32>,
    pub(super) sin: Vec<f32>,
    /// The same the other way round.
    pub(super) minus_sin: Vec<f32>,
    /// Pairs that rotate.
    pub(super) pairs: usize,
}

/// Rotates each head of each row.
pub(super) fn rope(isa: Isa, angles: Arc<Angles>, head_dim: usize, x: &Tensor) -> Result<Tensor> {
    let width = x.dim(1)?;
    let rotate = move |x: &[f32], sin: &[f32], angles: &Angles| {
        let mut y = x.to_vec();
        let rows = y.par_chunks_mut(width).enumerate().with_min_len(64);
        rows.for_each(|(row, y)| {
            let pairs = row * angles.pairs..(row + 1) * angles.pairs;
            let (cos, sin) = (&angles.cos[pairs.clone()], &sin[pairs]);
            for head in y.chunks_exact_mut(head_dim) {
                math::rope(isa, angles.style, head, cos, sin);
            }
        });
        y
    };
    let y = with(x, |x| rotate(x, &angles.sin, &angles))?;
    // A rotation's transpose turns back.
    let back = move |_: [&[f32]; 1], dy: &[f32]| [rotate(dy, &angles.minus_sin, &angles)];
    of_one("rope", x, x.dims(), y, Box::new(back))
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::gguf::TensorType;

    /// Weights of a type, and the numbers that they stand for.
    struct Layer(Matrix);

    impl AsRef<Matrix> for Layer {
        fn as_ref(&self) -> &Matrix {
            &self.0
        }
    }

    fn numbers(count: usize, seed: u32) -> Vec<f32> {
        let number = |i: u32| (i.wrapping_add(seed).wrapping_mul(2_654_435_761) >> 8) as f32;
        (0..count as u32).map(|i| number(i) / 8e6 - 1.0).collect()
    }

    fn variable(rows: usize, columns: usize, seed: u32) -> Var {
        let numbers = numbers(rows * columns, seed);
        Var::from_vec(numbers, (rows, columns), &Device::Cpu).unwrap()
    }

    #[track_caller]
    fn assert_near(found: &Tensor, expected: &Tensor) {
        let flat = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(found.dims(), expected.dims());
        let (found, expected) = (flat(found), flat(expected));
        let largest = expected.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        for (found, expected) in found.iter().zip(&expected) {
            assert!(
                (found - expected).abs() <= 1e-3 * largest,
                "{found} and {expected}"
            );
        }
    }

    #[test]
    fn a_frozen_layer_has_the_gradients_that_candle_has_for_its_numbers() {
        let (rows, inputs, outputs, rank) = (70, 64, 80, 3);
        for kind in [TensorType::Q8_0, TensorType::Q4_0, TensorType::F16] {
            let bytes = outputs * inputs / kind.block_size() * kind.type_size();
            // Any bits will do where scales are finite: 0x2c2c is about 0.07.
            let bytes: Vec<u8> = (0..bytes).map(|at| 0x2c ^ (at % 7) as u8).collect();
            let matrix = Matrix::pack(kind, outputs, inputs, &bytes)
                .unwrap()
                .unwrap();
            let mut weights = vec![0.0; outputs * inputs];
            for (row, weights) in weights.chunks_exact_mut(inputs).enumerate() {
                matrix.row(row, weights);
            }
            let weights = Tensor::from_vec(weights, (outputs, inputs), &Device::Cpu).unwrap();
            let packed: Frozen = Arc::new(Layer(matrix));

            let x = variable(rows, inputs, 1);
            let (a, b) = (variable(rank, inputs, 2), variable(outputs, rank, 3));
            // Every output counts otherwise.
            let dy = variable(rows, outputs, 4);
            let gradients = |y: &Tensor| {
                (y * dy.as_tensor())
                    .unwrap()
                    .sum_all()
                    .unwrap()
                    .backward()
                    .unwrap()
            };
            let plain = x.matmul(&weights.t().unwrap()).unwrap();
            let low = x.matmul(&a.t().unwrap()).unwrap();
            let added = low.matmul(&b.t().unwrap()).unwrap();
            let both = (&plain + (added * 2.0).unwrap()).unwrap();

            let own = linear(Isa::best(), Arc::clone(&packed), &x).unwrap();
            assert_near(&own, &plain);
            let (found, expected) = (gradients(&own), gradients(&plain));
            assert_near(found.get(&x).unwrap(), expected.get(&x).unwrap());

            let own = adapted_linear(Isa::best(), packed, &x, (&a, &b), 2.0).unwrap();
            assert_near(&own, &both);
            let (found, expected) = (gradients(&own), gradients(&both));
            for variable in [&x, &a, &b] {
                assert_near(
                    found.get(variable).unwrap(),
                    expected.get(variable).unwrap(),
                );
            }
        }
    }
}
