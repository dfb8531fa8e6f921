//! Every weight type, on one architecture.

use candle_core::quantized::GgmlDType;
use incant::exec::Executor;

use super::plain::Plain;
use super::tiny::{self, Tiny};
use super::{at_once, distance, executor, forward};
use crate::support::subjects;

const TYPES: [GgmlDType; 13] = [
    GgmlDType::F32,
    GgmlDType::F16,
    GgmlDType::BF16,
    GgmlDType::Q4_0,
    GgmlDType::Q4_1,
    GgmlDType::Q5_0,
    GgmlDType::Q5_1,
    GgmlDType::Q8_0,
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

/// On the CPU nothing is lost but what the file has lost already, whether rows
/// come together or one by one.
#[test]
fn no_type_loses_more_than_its_file_has() {
    let tokens = tiny::tokens(9, 24);
    for model in TYPES.into_iter().flat_map(both) {
        let kind = model.weights;
        let tensors = model.tensors();
        let expected = Plain::new(&model, &tensors).logits(&tokens);
        for subject in subjects::all() {
            let mut executor = executor(&model, &tensors, subject);
            let executor = executor.as_mut();
            for found in [at_once(executor, &tokens), one_by_one(executor, &tokens)] {
                let error = distance(&found, &expected);
                eprintln!("{subject}, {kind:?}: {error:.1e}");
                assert!(
                    error <= subject.tolerance,
                    "{subject}, {kind:?}: {error:.2e}"
                );
            }
        }
    }
}

fn one_by_one(executor: &mut dyn Executor, tokens: &[u32]) -> Vec<Vec<f32>> {
    let sequence = executor.begin();
    let rows = tokens.chunks(1);
    rows.flat_map(|token| forward(executor, sequence, token))
        .collect()
}
