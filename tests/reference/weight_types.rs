//! Every weight type, on one architecture.

use candle_core::quantized::GgmlDType;

use incant::exec::Executor;

use super::plain::{self, Plain};
use super::tiny::{self, Tiny};
use super::{TOLERANCE, Twice, at_once, distance, forward, row_distance};

/// The types whose weights candle's CPU code multiplies as f32 once they are
/// expanded: nothing is lost but what the file has lost already.
const EXPANDED: [GgmlDType; 8] = [
    GgmlDType::F32,
    GgmlDType::F16,
    GgmlDType::BF16,
    GgmlDType::Q4_0,
    GgmlDType::Q4_1,
    GgmlDType::Q5_0,
    GgmlDType::Q5_1,
    GgmlDType::Q8_0,
];

/// The types whose products candle's CPU code takes with activations rounded
/// to eight bits.
const ROUNDED: [GgmlDType; 5] = [
    GgmlDType::Q2K,
    GgmlDType::Q3K,
    GgmlDType::Q4K,
    GgmlDType::Q5K,
    GgmlDType::Q6K,
];

/// For models with and without an embedding of its own: the head is a product,
/// the embedding a look-up.
fn both(weights: GgmlDType) -> [Tiny; 2] {
    [false, true].map(|tied| Tiny {
        tied,
        layers: 1,
        weights,
        ..Tiny::llama().wide()
    })
}

#[test]
fn expanded_types_lose_nothing() {
    let tokens = tiny::tokens(9, 24);
    for model in EXPANDED.into_iter().flat_map(both) {
        let Twice {
            plain,
            mut executor,
        } = Twice::new(&model);
        let error = distance(&at_once(&mut executor, &tokens), &plain.logits(&tokens));
        eprintln!("{:?}: {error:.1e}", model.weights);
        assert!(error <= TOLERANCE, "{:?}: {error:.2e}", model.weights);
    }
}

/// The oracle does the rounding too. It does it in f64, so a number that lies
/// in the middle between two steps may go to the other one; that moves the rows
/// it reaches by about as much as rounding does at all. All others agree.
#[test]
fn k_quants_lose_what_rounded_activations_do() {
    let tokens = tiny::tokens(9, 24);
    for model in ROUNDED.into_iter().flat_map(both) {
        let kind = model.weights;
        let Twice {
            plain: exact,
            mut executor,
        } = Twice::new(&model);
        let rounded = Plain {
            inputs: plain::eight_bits,
            ..exact.clone()
        };
        let (exact, rounded) = (exact.logits(&tokens), rounded.logits(&tokens));
        let lost = row_distances(&single(&rounded), &exact);
        let lost = lost.into_iter().fold(0.0, f64::max);

        // Many rows take other code than one.
        for found in [
            at_once(&mut executor, &tokens),
            one_by_one(&mut executor, &tokens),
        ] {
            let mut errors = row_distances(&found, &rounded);
            errors.sort_by(f64::total_cmp);
            let (usual, most) = (errors[errors.len() * 3 / 4], errors[errors.len() - 1]);
            eprintln!("{kind:?}: {usual:.1e}, {most:.1e}; rounding loses {lost:.1e}");
            assert!(usual <= TOLERANCE, "{kind:?}: {usual:.2e}");
            assert!(
                most <= lost,
                "{kind:?}: {most:.2e}, rounding loses {lost:.2e}"
            );
        }
    }
}

fn one_by_one(executor: &mut dyn Executor, tokens: &[u32]) -> Vec<Vec<f32>> {
    let sequence = executor.begin(&[]).expect("begins");
    let rows = tokens.chunks(1);
    rows.flat_map(|token| forward(executor, sequence, token))
        .collect()
}

fn single(rows: &[Vec<f64>]) -> Vec<Vec<f32>> {
    let row = |row: &Vec<f64>| row.iter().map(|&logit| logit as f32).collect();
    rows.iter().map(row).collect()
}

fn row_distances(found: &[Vec<f32>], expected: &[Vec<f64>]) -> Vec<f64> {
    let rows = found.iter().zip(expected);
    rows.map(|(found, expected)| row_distance(found, expected))
        .collect()
}
