//! Models with more rows than tokens: an id without a token is part of no distribution.

use candle_core::quantized::GgmlDType;
use incant::exec::{Chunk, Precision, Wanted};
use incant::gguf::Gguf;
use incant::model::arch;

use super::tiny::{self, Tiny, VOCAB, Weight};
use crate::support::subjects::{self, Subject};

/// Adds rows after those of the tokens, whose logits would be far larger.
fn padded(weight: &Weight, rows: usize) -> Weight {
    let columns = weight.shape[1];
    let first = &weight.values[..rows * columns];
    let large = first.iter().map(|value| 40.0 * value);
    let extra = Weight::new(&[rows, columns], weight.kind, large.collect());
    Weight {
        shape: vec![weight.shape[0] + rows, columns],
        kind: weight.kind,
        bytes: [&weight.bytes[..], &extra.bytes].concat(),
        values: [&weight.values[..], &extra.values].concat(),
    }
}

/// Computes all logits of some tokens.
fn logits(gguf: &Gguf, subject: &Subject) -> Vec<f32> {
    let mut executor = subject.load(gguf);
    let sequence = executor.begin();
    let tokens = tiny::tokens(7, 9);
    let chunk = Chunk {
        sequence,
        tokens: &tokens,
        wanted: Wanted::All,
        precision: Precision::Exact,
    };
    let logits = executor.forward(&[chunk]).expect("computes");
    let rows: Vec<f32> = (0..logits.rows())
        .flat_map(|row| logits.row(row).to_vec())
        .collect();
    assert_eq!(rows.len(), tokens.len() * VOCAB);
    // A token that does not exist cannot be computed either.
    let beyond = Chunk {
        sequence,
        tokens: &[VOCAB as u32],
        wanted: Wanted::None,
        precision: Precision::Exact,
    };
    assert!(executor.forward(&[beyond]).is_err());
    rows
}

#[test]
fn an_id_without_a_token_has_no_logit() {
    for model in [
        Tiny::llama(),
        Tiny::gemma3(),
        Tiny {
            weights: GgmlDType::Q4K,
            ..Tiny::qwen2().wide()
        },
    ] {
        let tensors = model.tensors();
        let mut more = tensors.clone();
        for (name, rows) in [("token_embd.weight", 20), ("output.weight", 20)] {
            if let Some(weight) = more.get_mut(name) {
                *weight = padded(weight, rows);
            }
        }
        let [plain, padded] = [&tensors, &more].map(|tensors| model.written(tensors));
        let [plain, padded] = [&plain, &padded].map(|file| Gguf::open(file.path()).expect("good"));
        assert_eq!(
            padded
                .find("token_embd.weight")
                .expect("is there")
                .info
                .shape[0],
            VOCAB + 20
        );
        let [spec, same] = [&padded, &plain].map(|gguf| arch::read(gguf).expect("is supported"));
        assert_eq!(spec.vocab, VOCAB);
        assert_eq!(spec, same);
        for subject in subjects::both() {
            let (of_padded, of_plain) = (logits(&padded, subject), logits(&plain, subject));
            let model = model.architecture;
            assert!(of_padded == of_plain, "{subject}, {model}: the same bits");
        }
    }
}
