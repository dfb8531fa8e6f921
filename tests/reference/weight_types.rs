//! Every weight type, on one architecture: the supported types, and that all others are refused
//! by name.

use candle_core::quantized::GgmlDType;
use incant::exec::Executor;
use incant::gguf::{Gguf, TensorType};
use incant::model::arch;

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

/// Models with and without an embedding of its own: the LM head is a product, the embedding a
/// look-up.
fn both(weights: GgmlDType) -> [Tiny; 2] {
    [false, true].map(|tied| Tiny {
        tied,
        layers: 1,
        weights,
        ..Tiny::llama().wide()
    })
}

/// On the CPU there is no loss beyond that of the file, for rows computed together or one by
/// one.
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

/// The names of [`TYPES`], as an error lists them.
const SUPPORTED: &str =
    "F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, BF16";

#[test]
fn every_other_type_is_refused_with_the_tensor_and_what_is_supported() {
    let name = "blk.0.ffn_up.weight";
    let model = Tiny {
        layers: 1,
        ..Tiny::llama().wide()
    };
    let mut tensors = model.tensors();
    tensors.remove(name);
    let others = TensorType::all().filter(|kind| !SUPPORTED.split(", ").any(|s| s == kind.name()));
    let mut count = 0;
    for kind in others {
        let bytes = 256 * 256 / kind.block_size() * kind.type_size();
        let file = model.file(&tensors);
        let file = file.tensor(name, &[256, 256], kind.id(), vec![0; bytes]);
        let file = tiny::written(&file);
        let gguf = Gguf::open(file.path()).expect("a good file");
        let spec = arch::read(&gguf).expect("a supported architecture");
        for subject in subjects::both() {
            let refusal = subject.backend.load(&gguf, &spec, None).map(|_| ());
            assert_eq!(
                refusal.expect_err("is refused").to_string(),
                format!(
                    "tensor '{name}' has weights of type {kind}, which is not supported \
                     (supported: {SUPPORTED})"
                ),
                "{subject}"
            );
        }
        count += 1;
    }
    // The others include i-quants, ternary types, MXFP4 and NVFP4.
    assert_eq!(count + TYPES.len(), TensorType::all().count());
}
