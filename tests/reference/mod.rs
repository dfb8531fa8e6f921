//! The executors against an oracle: tiny random models of every architecture, computed a second
//! time in the plainest way.
//!
//! The oracle and the executors share nothing but the meaning of a file: [`tiny`] generates a
//! model, [`plain`] computes it from the generated weights, and the program from the GGUF file.

mod architectures;
mod files;
mod padding;
mod plain;
mod random_schedules;
mod refusals;
mod same_bits;
mod schedules;
mod second_opinion;
pub(crate) mod tiny;
mod watched;
mod weight_types;

use std::collections::BTreeMap;

use incant::exec::{Chunk, Executor, Precision, SequenceId, Wanted};
use incant::gguf::Gguf;

use crate::support::subjects::Subject;

use plain::Plain;
use tiny::{Tiny, Weight};

/// A tiny model, in the oracle and in an executor.
struct Twice {
    plain: Plain,
    executor: Box<dyn Executor>,
}

impl Twice {
    fn new(model: &Tiny, subject: &Subject) -> Twice {
        let tensors = model.tensors();
        Twice {
            plain: Plain::new(model, &tensors),
            executor: executor(model, &tensors, subject),
        }
    }
}

fn executor(
    model: &Tiny,
    tensors: &BTreeMap<String, Weight>,
    subject: &Subject,
) -> Box<dyn Executor> {
    let file = model.written(tensors);
    let gguf = Gguf::open(file.path()).expect("a good file");
    subject.load(&gguf)
}

/// Computes all logits of `tokens` in one chunk.
fn at_once(executor: &mut dyn Executor, tokens: &[u32]) -> Vec<Vec<f32>> {
    let sequence = executor.begin();
    let rows = forward(executor, sequence, tokens);
    executor.end(sequence);
    rows
}

/// Returns the precision that an engine would choose: prompts come several tokens at a time.
fn precision(tokens: &[u32]) -> Precision {
    match tokens {
        [_] => Precision::Exact,
        _ => Precision::Fast,
    }
}

/// Computes all logits of `tokens` as the next chunk of `sequence`.
fn forward(executor: &mut dyn Executor, sequence: SequenceId, tokens: &[u32]) -> Vec<Vec<f32>> {
    let chunk = Chunk {
        sequence,
        tokens,
        wanted: Wanted::All,
        precision: precision(tokens),
    };
    let logits = executor.forward(&[chunk]).expect("runs");
    (0..logits.rows())
        .map(|row| logits.row(row).to_vec())
        .collect()
}

/// Returns the largest difference between the logits of two computations.
fn distance(found: &[Vec<f32>], expected: &[Vec<f64>]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let rows = found.iter().zip(expected);
    rows.map(|(found, expected)| row_distance(found, expected))
        .fold(0.0, f64::max)
}

fn row_distance(found: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    // A maximum would ignore NaN.
    assert!(found.iter().all(|logit| logit.is_finite()));
    let pairs = found.iter().zip(expected);
    pairs
        .map(|(&found, expected)| (f64::from(found) - expected).abs())
        .fold(0.0, f64::max)
}
