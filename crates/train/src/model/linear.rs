//! A linear layer, frozen weights plus LoRA: forward and backward pass.

use super::adapter::LoraTerm;
use incant_kernels::gemm::{StridedLayout, multiply};
use incant_kernels::product::{self, Inputs};
use incant_kernels::{Isa, Matrix};

/// `x·Wᵀ + scale · (x·Aᵀ)·Bᵀ` for some rows, on one thread.
#[derive(Clone, Copy)]
pub(super) struct Linear<'a> {
    pub(super) isa: Isa,
    pub(super) matrix: &'a Matrix,
    pub(super) lora: Option<LoraTerm<'a>>,
}

impl Linear<'_> {
    /// Returns the outputs of the rows `x`, and `scale · x·Aᵀ`, which the backward pass needs.
    /// `inputs` are the same rows, prepared for products.
    pub(super) fn forward(self, inputs: &Inputs, x: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let (columns, outputs) = (self.matrix.columns(), self.matrix.rows());
        let rows = inputs.rows();
        let mut y = vec![0.0; rows * outputs];
        inputs.multiply(self.matrix, 0..self.matrix.panels(), &mut y);
        let Some(LoraTerm { a, b, rank, scale }) = self.lora else {
            return (y, Vec::new());
        };
        let (wide, narrow) = (
            StridedLayout::rows(0, columns),
            StridedLayout::rows(0, rank),
        );
        let mut low = vec![0.0; rows * rank];
        let shape = [rows, columns, rank];
        let a = (a, wide.transposed());
        multiply(shape, (x, wide), a, scale, 0.0, (&mut low, narrow));
        let shape = [rows, rank, outputs];
        let (b, out) = ((b, narrow.transposed()), StridedLayout::rows(0, outputs));
        multiply(shape, (&low, narrow), b, 1.0, 1.0, (&mut y, out));
        (y, low)
    }

    /// Backward pass: adds the gradient of the rows `x` to `dx`, given the gradient `dy` of
    /// their outputs. Returns these rows' share of the gradients of A and B, A's first.
    pub(super) fn backward(self, x: &[f32], low: &[f32], dy: &[f32], dx: &mut [f32]) -> Vec<f32> {
        let (columns, outputs) = (self.matrix.columns(), self.matrix.rows());
        product::backward(self.isa, self.matrix, 0..self.matrix.panels(), dy, dx);
        let Some(LoraTerm { a, b, rank, scale }) = self.lora else {
            return Vec::new();
        };
        let rows = x.len() / columns;
        let (wide, narrow) = (
            StridedLayout::rows(0, columns),
            StridedLayout::rows(0, rank),
        );
        let out = StridedLayout::rows(0, outputs);
        let mut gradient = vec![0.0; rank * columns + outputs * rank];
        let (da, db) = gradient.split_at_mut(rank * columns);
        let shape = [outputs, rows, rank];
        let transposed = (dy, out.transposed());
        multiply(shape, transposed, (low, narrow), 1.0, 0.0, (db, narrow));
        let mut d_low = vec![0.0; rows * rank];
        let shape = [rows, outputs, rank];
        multiply(
            shape,
            (dy, out),
            (b, narrow),
            scale,
            0.0,
            (&mut d_low, narrow),
        );
        let shape = [rank, rows, columns];
        let transposed = (&d_low[..], narrow.transposed());
        multiply(shape, transposed, (x, wide), 1.0, 0.0, (da, wide));
        let shape = [rows, rank, columns];
        multiply(shape, (&d_low, narrow), (a, wide), 1.0, 1.0, (dx, wide));
        gradient
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor, Var};

    use super::*;
    use incant_gguf::TensorType;
    use incant_kernels::Tier;

    fn elements(count: usize, seed: u32) -> Vec<f32> {
        let element = |i: u32| (i.wrapping_add(seed).wrapping_mul(2_654_435_761) >> 8) as f32;
        (0..count as u32).map(|i| element(i) / 8e6 - 1.0).collect()
    }

    fn variable(rows: usize, columns: usize, elements: &[f32]) -> Var {
        Var::from_slice(elements, (rows, columns), &Device::Cpu).unwrap()
    }

    #[track_caller]
    fn assert_near(limit: f32, found: &[f32], expected: &Tensor) {
        let expected: Vec<f32> = expected.flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(found.len(), expected.len());
        let largest = expected.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        for (found, expected) in found.iter().zip(&expected) {
            assert!(
                (found - expected).abs() <= limit * largest,
                "{found} and {expected}"
            );
        }
    }

    #[test]
    fn a_frozen_layer_has_the_gradients_that_candle_has_for_its_numbers() {
        let (rows, inputs, outputs, rank) = (70, 64, 80, 3);
        for kind in [TensorType::Q8_0, TensorType::Q4_0, TensorType::F16] {
            let bytes = outputs * inputs / kind.block_size() * kind.type_size();
            // Any bits will do as long as the scales are finite: 0x2c2c is about 0.07.
            let bytes: Vec<u8> = (0..bytes).map(|at| 0x2c ^ (at % 7) as u8).collect();
            let matrix = Matrix::pack(kind, outputs, inputs, &bytes)
                .unwrap()
                .unwrap();
            let mut weights = vec![0.0; outputs * inputs];
            for (row, weights) in weights.chunks_exact_mut(inputs).enumerate() {
                matrix.row(row, weights);
            }
            let weights = Tensor::from_vec(weights, (outputs, inputs), &Device::Cpu).unwrap();

            let x = elements(rows * inputs, 1);
            let (a, b) = (elements(rank * inputs, 2), elements(outputs * rank, 3));
            // Every output has a different gradient.
            let dy = elements(rows * outputs, 4);
            let variables = [
                variable(rows, inputs, &x),
                variable(rank, inputs, &a),
                variable(outputs, rank, &b),
            ];
            let [x_var, a_var, b_var] = &variables;
            let plain = x_var.matmul(&weights.t().unwrap()).unwrap();
            let low = x_var.matmul(&a_var.t().unwrap()).unwrap();
            let added = low.matmul(&b_var.t().unwrap()).unwrap();
            let both = (&plain + (added * 2.0).unwrap()).unwrap();
            let counts = Tensor::from_slice(&dy, (rows, outputs), &Device::Cpu).unwrap();
            let gradients = |y: &Tensor| {
                let sum = (y * &counts).unwrap().sum_all().unwrap();
                sum.backward().unwrap()
            };

            let lora = LoraTerm {
                a: &a,
                b: &b,
                rank,
                scale: 2.0,
            };
            let cases = [(None, &plain), (Some(lora), &both)];
            let all = Isa::all().into_iter();
            for (isa, (lora, expected)) in all.flat_map(|isa| cases.map(|case| (isa, case))) {
                let linear = Linear {
                    isa,
                    matrix: &matrix,
                    lora,
                };
                // bf16, which only products of codes use, has 8 significant bits.
                let limit = match (isa.tier(), kind) {
                    (Tier::Amx, TensorType::Q8_0 | TensorType::Q4_0) => 5e-3,
                    _ => 1e-3,
                };
                let (y, low) = linear.forward(&Inputs::new(isa, [&matrix], &x), &x);
                assert_near(limit, &y, expected);
                // The gradient is added to the values that `dx` already holds.
                let mut dx = vec![1.0; rows * inputs];
                let gradient = linear.backward(&x, &low, &dy, &mut dx);
                for dx in &mut dx {
                    *dx -= 1.0;
                }
                let expected = gradients(expected);
                assert_near(limit, &dx, expected.get(x_var).unwrap());
                if lora.is_some() {
                    let (da, db) = gradient.split_at(rank * inputs);
                    assert_near(1e-3, da, expected.get(a_var).unwrap());
                    assert_near(1e-3, db, expected.get(b_var).unwrap());
                }
            }
        }
    }
}
