use half::bf16;
use proptest::prelude::*;

use super::super::isa::{Isa, Tier};
use super::super::matrix::tests::random_bytes;
use super::super::matrix::{Format, LANES, Matrix};
use super::backward::DENSE_PANELS;
use super::{ActivationForms, Activations, Inputs, MAX_AMX_ROWS, backward, backward_sparse, panel};
use incant_gguf::TensorType;

const TYPES: [TensorType; 13] = [
    TensorType::F32,
    TensorType::F16,
    TensorType::BF16,
    TensorType::Q4_0,
    TensorType::Q4_1,
    TensorType::Q5_0,
    TensorType::Q5_1,
    TensorType::Q8_0,
    TensorType::Q2_K,
    TensorType::Q3_K,
    TensorType::Q4_K,
    TensorType::Q5_K,
    TensorType::Q6_K,
];

/// Realistic activations: most are near 0, a few are outliers, in rows of their own.
fn random_rows(rows: usize, columns: usize, seed: u64) -> Vec<Vec<f32>> {
    let mut state = seed | 1;
    let mut next = move || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..rows)
        .map(|_| {
            (0..columns)
                .map(|_| next() / (1.001 - next().abs()))
                .collect()
        })
        .collect()
}

/// Computes all outputs, `[row][output]`, of decode rows.
fn product(isa: Isa, matrix: &Matrix, rows: &[Vec<f32>]) -> Vec<Vec<f32>> {
    mixed_product(isa, matrix, rows, rows.len())
}

/// Computes all outputs of rows of which those from `prompts` on are prompt rows.
fn mixed_product(isa: Isa, matrix: &Matrix, rows: &[Vec<f32>], prompts: usize) -> Vec<Vec<f32>> {
    let mut activations = Activations::new(isa);
    activations.reset(
        rows.len(),
        prompts,
        matrix.columns(),
        ActivationForms::of([matrix]),
    );
    let writer = activations.writer();
    for (index, row) in rows.iter().enumerate() {
        // SAFETY: there is only one thread.
        unsafe { writer.write(index, row) };
    }
    let mut outputs = vec![Vec::new(); rows.len()];
    for index in 0..matrix.panels() {
        let mut out = vec![[f32::NAN; LANES]; rows.len()];
        panel(isa, matrix, index, &activations, &mut out);
        for (outputs, lanes) in outputs.iter_mut().zip(out) {
            outputs.extend(lanes);
        }
    }
    for outputs in &mut outputs {
        outputs.truncate(matrix.rows());
    }
    outputs
}

fn matrix(kind: TensorType, rows: usize, columns: usize, seed: u64) -> Matrix {
    let bytes = random_bytes(kind, rows * columns, seed);
    Matrix::pack(kind, rows, columns, &bytes)
        .expect("there is memory")
        .expect("the type has a format")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn every_instruction_set_gives_the_scalar_bits(
        kind in prop::sample::select(&TYPES[..]),
        outputs in 1..40usize,
        blocks in 1..12usize,
        rows in 1..29usize,
        seed: u64,
    ) {
        let columns = (blocks * 32).next_multiple_of(kind.block_size());
        let matrix = matrix(kind, outputs, columns, seed);
        let rows = random_rows(rows, columns, seed);
        let (reference, others) = Isa::all().split_first().map(|(&a, b)| (a, b.to_vec())).unwrap();
        let expected = product(reference, &matrix, &rows);
        for isa in others {
            prop_assert_eq!(&product(isa, &matrix, &rows), &expected, "{}", isa);
        }
    }

    #[test]
    fn a_row_does_not_depend_on_its_company(
        kind in prop::sample::select(&TYPES[..]),
        rows in 2..40usize,
        seed: u64,
    ) {
        let matrix = matrix(kind, 16, 256, seed);
        let rows = random_rows(rows, 256, seed);
        for isa in Isa::all() {
            let together = product(isa, &matrix, &rows);
            for (row, expected) in rows.iter().zip(&together) {
                let alone = product(isa, &matrix, std::slice::from_ref(row));
                prop_assert_eq!(&alone[0], expected);
            }
        }
    }

    #[test]
    fn products_are_what_a_plain_sum_gives(
        kind in prop::sample::select(&TYPES[..]),
        outputs in 1..40usize,
        blocks in 1..20usize,
        rows in 1..8usize,
        seed: u64,
    ) {
        // Unquantized weights may have any width.
        let columns = match kind.block_size() {
            1 => blocks * 32 - seed as usize % 32,
            block => (blocks * 32).next_multiple_of(block),
        };
        let matrix = matrix(kind, outputs, columns, seed);
        let rows = random_rows(rows, columns, seed);
        let found = product(Isa::best(), &matrix, &rows);
        let mut weights = vec![0.0; columns];
        for output in 0..outputs {
            matrix.row(output, &mut weights);
            for (row, found) in rows.iter().zip(&found) {
                let terms = || weights.iter().zip(row).map(|(&w, &x)| f64::from(w) * f64::from(x));
                let (expected, size) = (terms().sum::<f64>(), terms().map(f64::abs).sum::<f64>());
                let error = (f64::from(found[output]) - expected).abs();
                // A code is off by up to half a step, and a step is 1/32,767 of the largest of
                // 32 activations.
                let greatest = row.iter().fold(0.0f32, |a, b| a.max(b.abs()));
                let heaviest = weights.iter().map(|w| f64::from(w.abs())).sum::<f64>();
                let allowed = 2e-6 * size + f64::from(greatest) / 32767.0 * heaviest * 0.51;
                prop_assert!(error <= allowed, "{} {} {}", found[output], expected, allowed);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Only AMX treats rows differently: it rounds prompt rows, and the weights for them, to
    /// bf16, and sums their products in f32.
    #[test]
    fn rows_of_prompts_are_rounded_and_leave_the_others_alone(
        kind in prop::sample::select(&TYPES[..]),
        outputs in 1..40usize,
        blocks in 1..12usize,
        before in 0..20usize,
        prompts in 0..150usize,
        seed: u64,
    ) {
        let columns = (blocks * 32).next_multiple_of(kind.block_size());
        let matrix = matrix(kind, outputs, columns, seed);
        let rows = random_rows(before + prompts, columns, seed);
        for isa in Isa::all() {
            let found = mixed_product(isa, &matrix, &rows, before);
            let plain = product(isa, &matrix, &rows);
            prop_assert_eq!(&found[..before], &plain[..before]);
            if !rounds_prompts(isa, &matrix) {
                prop_assert_eq!(found, plain);
                continue;
            }
            let mut weights = vec![0.0; columns];
            for output in 0..outputs {
                matrix.row(output, &mut weights);
                for (row, found) in rows.iter().zip(&found).skip(before) {
                    let pairs = || weights.iter().zip(row);
                    let terms = || pairs().map(|(&w, &x)| in_bf16(w) * in_bf16(x));
                    let (expected, size) = (terms().sum::<f64>(), terms().map(f64::abs).sum::<f64>());
                    let error = (f64::from(found[output]) - expected).abs();
                    prop_assert!(error <= size * 1e-5, "{isa} {kind}: {error} of {size}");
                }
            }
        }
    }
}

#[test]
fn rows_of_zeros_give_zeros() {
    for kind in TYPES {
        let matrix = matrix(kind, 20, 256, 7);
        for isa in Isa::all() {
            let found = product(isa, &matrix, &[vec![0.0; 256]]);
            assert_eq!(found[0], vec![0.0; 20], "{kind} {isa}");
        }
    }
}

/// Computes dX, `[row][column]`, from rows of dY, in two parts, the second of which adds to the
/// first.
fn backward_product(isa: Isa, matrix: &Matrix, dy: &[Vec<f32>], sparse: bool) -> Vec<Vec<f32>> {
    let half = matrix.panels() / 2;
    let mut dx = vec![0.0; dy.len() * matrix.columns()];
    for panels in [0..half, half..matrix.panels()] {
        let outputs = panels.start * LANES..matrix.rows().min(panels.end * LANES);
        let dy: Vec<f32> = dy
            .iter()
            .flat_map(|dy| dy[outputs.clone()].to_vec())
            .collect();
        if sparse {
            let least = vec![0.0; dx.len() / matrix.columns()];
            backward_sparse(isa, matrix, panels, (&dy, &least), &mut dx);
        } else {
            backward(isa, matrix, panels, &dy, &mut dx);
        }
    }
    dx.chunks_exact(matrix.columns())
        .map(<[f32]>::to_vec)
        .collect()
}

/// Whether prompt rows give other results than decode rows.
fn rounds_prompts(isa: Isa, matrix: &Matrix) -> bool {
    isa.tier() == Tier::Amx && matches!(matrix.format(), Format::Codes(_))
}

fn in_bf16(number: f32) -> f64 {
    f64::from(bf16::from_f32(number).to_f32())
}

/// Asserts that `found` is `dy · weights`, both rounded to bf16, summed in f32.
#[track_caller]
fn assert_backward_in_bf16(weights: &[Vec<f32>], dy: &[Vec<f32>], found: &[Vec<f32>]) {
    for (dy, found) in dy.iter().zip(found) {
        for (column, &found) in found.iter().enumerate() {
            let pairs = dy.iter().zip(weights);
            let terms = || pairs.clone().map(|(&y, w)| in_bf16(y) * in_bf16(w[column]));
            let (sum, size) = (terms().sum::<f64>(), terms().map(f64::abs).sum::<f64>());
            let apart = (f64::from(found) - sum).abs();
            assert!(apart <= 1e-5 * size, "{found} and {sum} of {size}");
        }
    }
}

#[test]
fn backward_is_the_product_with_the_transposed_matrix() {
    for kind in TYPES {
        // Includes partial panels and blocks, and numbers of rows that are not a multiple of
        // six.
        let unit = kind.block_size();
        let shapes = [(200, unit), (16, 2 * unit.max(64)), (5, 5 * unit.max(32))];
        for (rows, (outputs, columns)) in [7, 1, 4].into_iter().zip(shapes) {
            let matrix = matrix(kind, outputs, columns, 5);
            let mut dy = random_rows(rows, outputs, 9);
            if outputs == 200 {
                // Some outputs have no gradient in some rows, or in any row.
                for (row, dy) in dy.iter_mut().enumerate() {
                    if row % 2 == 0 {
                        dy[..DENSE_PANELS * LANES].fill(0.0);
                    }
                    dy[6 * LANES..6 * LANES + DENSE_PANELS * LANES].fill(0.0);
                }
            }
            let mut weights = vec![vec![0.0; columns]; outputs];
            for (row, weights) in weights.iter_mut().enumerate() {
                matrix.row(row, weights);
            }
            let both = [false, true].map(|few| {
                let plain = backward_product(Isa::all()[0], &matrix, &dy, few);
                for isa in Isa::all() {
                    let found = backward_product(isa, &matrix, &dy, few);
                    if rounds_prompts(isa, &matrix) {
                        assert_backward_in_bf16(&weights, &dy, &found);
                    } else {
                        assert_eq!(found, plain, "{kind} on {isa}");
                    }
                }
                plain
            });
            let largest = |numbers: &mut dyn Iterator<Item = &f32>| {
                numbers.fold(0.0, |most: f64, number| most.max(number.abs().into()))
            };
            let largest_weight = largest(&mut weights.iter().flatten());
            for (dy, found) in dy.iter().cycle().zip(both.iter().flatten()) {
                // Half a step of each rounded operand.
                let steps = [
                    largest_weight / (2.0 * 4095.0),
                    largest(&mut dy.iter()) / (2.0 * 8191.0),
                ];
                for (column, &found) in found.iter().enumerate() {
                    let (mut sum, mut limit) = (0.0, 0.0);
                    for (&dy, row) in dy.iter().zip(&weights) {
                        let (dy, weight) = (f64::from(dy), f64::from(row[column]));
                        sum += dy * weight;
                        limit += dy.abs() * steps[0] + weight.abs() * steps[1];
                        limit += 1e-6 * (dy * weight).abs();
                    }
                    let apart = (f64::from(found) - sum).abs();
                    assert!(apart <= limit, "{kind}: {found} and {sum}");
                }
            }
        }
    }
}

#[test]
fn panels_below_the_minimum_are_skipped_except_by_amx() {
    const PANELS: usize = 11;
    let matrix = matrix(TensorType::Q8_0, PANELS * LANES, 64, 5);
    let least = [1e3, 1e-3];
    // The gradients of the first row are small except in the sixth panel; all of the second row
    // are small.
    let mut dy = random_rows(2, PANELS * LANES, 9);
    dy[0][5 * LANES + 7] = -2e3;
    let mut counted = dy.clone();
    counted[0][..5 * LANES].fill(0.0);
    counted[0][6 * LANES..].fill(0.0);
    for isa in Isa::all() {
        let gradients = |dy: &[Vec<f32>], least: &[f32]| {
            let mut dx = vec![0.0; 2 * 64];
            let all = 0..matrix.panels();
            backward_sparse(isa, &matrix, all, (&dy.concat(), least), &mut dx);
            dx
        };
        if rounds_prompts(isa, &matrix) {
            assert_eq!(gradients(&dy, &least), gradients(&dy, &[0.0; 2]), "{isa}");
        } else {
            assert_eq!(
                gradients(&dy, &least),
                gradients(&counted, &[0.0; 2]),
                "{isa}"
            );
        }
    }
}

/// Like prompt rows, training rows do not depend on the other rows.
#[test]
fn gradients_of_a_row_do_not_depend_on_other_rows() {
    let matrix = matrix(TensorType::Q5_0, 200, 96, 5);
    let dy = random_rows(70, 200, 9);
    for isa in Isa::all() {
        let together = backward_product(isa, &matrix, &dy, false);
        for (dy, together) in dy.iter().zip(&together) {
            let alone = backward_product(isa, &matrix, std::slice::from_ref(dy), false);
            assert_eq!(&alone[0], together, "{isa}");
        }
    }
}

/// More rows and outputs than are multiplied together, with partial parts of both.
#[test]
fn parts_of_many_rows_and_outputs_are_the_whole() {
    let (rows, outputs, columns) = (MAX_AMX_ROWS + 37, 2300, 96);
    let matrix = matrix(TensorType::Q5_0, outputs, columns, 5);
    let mut weights = vec![vec![0.0; columns]; outputs];
    for (row, weights) in weights.iter_mut().enumerate() {
        matrix.row(row, weights);
    }
    let dy = random_rows(rows, outputs, 9);
    let plain = backward_product(Isa::all()[0], &matrix, &dy, false);
    for isa in Isa::all() {
        let found = backward_product(isa, &matrix, &dy, false);
        if rounds_prompts(isa, &matrix) {
            assert_backward_in_bf16(&weights, &dy, &found);
        } else {
            assert_eq!(found, plain, "{isa}");
        }
    }
}

#[test]
fn backward_propagates_nan_and_infinity() {
    let matrix = matrix(TensorType::Q8_0, 80, 64, 5);
    for isa in Isa::all() {
        for broken in [f32::NAN, f32::INFINITY] {
            let (mut dy, mut dx) = (vec![0.5; 2 * 80], vec![0.0; 2 * 64]);
            dy[80 + 70] = broken;
            backward(isa, &matrix, 0..matrix.panels(), &dy, &mut dx);
            let (fine, lost) = dx.split_at(64);
            assert!(fine.iter().all(|number| number.is_finite()), "{isa}");
            assert!(lost.iter().all(|number| !number.is_finite()), "{isa}");
        }
        // A weight that is NaN, in the first of several panels.
        let mut numbers = vec![0.5f32; 80 * 64];
        numbers[3] = f32::NAN;
        let bytes: Vec<u8> = numbers.iter().flat_map(|w| w.to_le_bytes()).collect();
        let broken = Matrix::pack(TensorType::F32, 80, 64, &bytes);
        let broken = broken.expect("memory").expect("a format");
        let mut dx = vec![0.0; 64];
        backward(isa, &broken, 0..broken.panels(), &[1.0; 80], &mut dx);
        assert!(dx[3].is_nan() && dx[40] == 40.0, "{isa}: {dx:?}");
    }
}

#[test]
fn inputs_that_are_prepared_at_once_are_those_that_are_written_one_by_one() {
    // More rows and columns than are multiplied together, and a width that is not a multiple of
    // the block.
    use TensorType::{F16, F32, Q4_0, Q6_K};
    for (kinds, columns, rows) in [
        ([Q4_0, Q4_0], 4096, 71),
        ([Q6_K, Q4_0], 2048, MAX_AMX_ROWS + 300),
        ([F16, Q6_K], 4096, 71),
        ([Q6_K, F16], 256, 3),
        ([F32, F32], 40, 5),
    ] {
        let [one, other] = [(kinds[0], 40), (kinds[1], 16)]
            .map(|(kind, outputs)| matrix(kind, outputs, columns, 3));
        let x = random_rows(rows, columns, 4);
        for isa in Isa::all() {
            let inputs = Inputs::new(isa, [&one, &other], &x.concat());
            for matrix in [&one, &other] {
                let expected = mixed_product(isa, matrix, &x, 0);
                let middle = matrix.panels() / 2;
                for panels in [0..matrix.panels(), 0..middle, middle..matrix.panels()] {
                    let outputs = panels.start * LANES..matrix.rows().min(panels.end * LANES);
                    let mut y = vec![f32::NAN; rows * outputs.len()];
                    inputs.multiply(matrix, panels, &mut y);
                    let expected = expected.iter().map(|y| &y[outputs.clone()]);
                    let expected: Vec<&[f32]> = expected.collect();
                    assert_eq!(y, expected.concat(), "{isa} {kinds:?} {outputs:?}");
                }
            }
        }
    }
}

#[test]
fn a_row_with_nan_or_infinity_has_no_finite_products() {
    for kind in [TensorType::Q8_0, TensorType::Q4_K, TensorType::F16] {
        let matrix = matrix(kind, 16, 256, 3);
        for broken in [f32::NAN, -f32::NAN, f32::INFINITY] {
            let mut rows = random_rows(3, 256, 4);
            let fine = rows.clone();
            rows[1][77] = broken;
            for isa in Isa::all() {
                let (found, fine) = (product(isa, &matrix, &rows), product(isa, &matrix, &fine));
                assert!(found[1].iter().all(|y| !y.is_finite()), "{kind} on {isa}");
                assert_eq!([&found[0], &found[2]], [&fine[0], &fine[2]]);
            }
        }
    }
}
