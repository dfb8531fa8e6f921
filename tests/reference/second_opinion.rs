//! Compares with the models of candle-transformers, from the same files, where they are
//! correct.

use std::fs::File;

use candle_core::quantized::gguf_file::Content;
use candle_core::{Device, Tensor};
use candle_transformers::models::{quantized_llama, quantized_qwen2};

use super::tiny::{self, Tiny};
use super::{at_once, executor, row_distance};
use crate::support::subjects;

/// A function that takes tokens and the position of the first one, and returns the logits of
/// the last one.
type Forward = Box<dyn FnMut(&Tensor, usize) -> candle_core::Result<Tensor>>;

#[test]
fn candles_own_models_agree() {
    let llama = Tiny {
        // candle-transformers requires the key.
        rope_dims: Some(16),
        ..Tiny::llama()
    };
    for model in [llama, Tiny::qwen2()] {
        let tensors = model.tensors();
        let file = model.written(&tensors);
        let mut reader = File::open(file.path()).expect("was just written");
        let content = Content::read(&mut reader).expect("candle reads it");
        let mut forward: Forward = match model.architecture {
            "llama" => {
                let mut model =
                    quantized_llama::ModelWeights::from_gguf(content, &mut reader, &Device::Cpu)
                        .expect("candle loads it");
                Box::new(move |tokens, position| model.forward(tokens, position))
            }
            _ => {
                let mut model =
                    quantized_qwen2::ModelWeights::from_gguf(content, &mut reader, &Device::Cpu)
                        .expect("candle loads it");
                Box::new(move |tokens, position| model.forward(tokens, position))
            }
        };
        let tokens = tiny::tokens(4, 40);
        let run = |subject| at_once(executor(&model, &tensors, subject).as_mut(), &tokens);
        let found: Vec<_> = subjects::both()
            .map(|subject| (subject, run(subject)))
            .collect();
        // One token at a time, because it returns only the logits of the last one.
        for (position, &token) in tokens.iter().enumerate() {
            let token = Tensor::new(&[[token]], &Device::Cpu).expect("a tensor");
            let logits = forward(&token, position)
                .and_then(|logits| logits.flatten_all()?.to_vec1::<f32>())
                .expect("candle runs it");
            let logits: Vec<f64> = logits.into_iter().map(f64::from).collect();
            for (subject, found) in &found {
                let error = row_distance(&found[position], &logits);
                let what = format!("{subject}, {}, token {position}", model.architecture);
                assert!(error <= subject.tolerance, "{what}: {error:.2e}");
            }
        }
    }
}
