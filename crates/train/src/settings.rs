//! Settings of a run, and the settings that must not change when it is resumed.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::TrainError;
use super::loss::Objective;
use super::samples::Example;

/// Settings of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The peak learning rate.
    pub learning_rate: f64,
    /// The share of the steps spent on warmup.
    pub warmup: f64,
    /// AdamW's decoupled weight decay, as a share of each weight per step and unit of learning
    /// rate.
    pub weight_decay: f64,
    /// The gradient norm to clip to.
    pub clip: f64,
    /// The length of the run.
    pub length: Length,
    /// Examples per batch.
    pub batch_size: usize,
    /// Gradient accumulation: batches per step.
    pub accumulate: usize,
    /// The seed of the order of the examples.
    pub seed: u64,
    /// Steps between checkpoints; there is always one at the end.
    pub save_every: Option<usize>,
    /// Steps between evaluations of the held-out examples, which also happen before the first
    /// and after the last step.
    pub eval_every: Option<usize>,
    /// Everything else that identifies the run, by user-facing names: model, rank, and so on.
    pub origin: BTreeMap<String, Value>,
}

/// The length of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// Passes over all examples.
    Epochs(usize),
    /// Optimizer steps.
    Steps(usize),
}

impl Settings {
    /// The total number of batches, if an epoch has `per_epoch` of them.
    pub fn batches(&self, per_epoch: usize) -> usize {
        match self.length {
            Length::Epochs(epochs) => epochs * per_epoch,
            Length::Steps(steps) => steps * self.accumulate,
        }
    }
}

/// Formats a setting's value for people.
pub(super) fn format_value(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "not set".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
    }
}

/// Everything that the final weights of a run depend on, by name.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Identity(BTreeMap<String, Value>);

impl Identity {
    pub(super) fn new(
        settings: &Settings,
        objective: &dyn Objective,
        examples: &[Example],
        held_out: &[Example],
    ) -> Identity {
        let (length, count) = match settings.length {
            Length::Epochs(epochs) => ("epochs", epochs),
            Length::Steps(steps) => ("steps", steps),
        };
        let own = [
            ("learning-rate", json!(settings.learning_rate)),
            ("warmup", json!(settings.warmup)),
            ("weight-decay", json!(settings.weight_decay)),
            ("clip", json!(settings.clip)),
            (length, json!(count)),
            ("batch-size", json!(settings.batch_size)),
            ("accumulate", json!(settings.accumulate)),
            ("seed", json!(settings.seed)),
            ("method", json!(objective.name())),
            ("data", json!(digest(examples))),
            ("held-out data", json!(digest(held_out))),
        ];
        let own = own.into_iter().chain(objective.settings());
        let own = own.map(|(name, value)| (name.to_owned(), value));
        Identity(own.chain(settings.origin.clone()).collect())
    }

    /// Returns an error that names the first setting that differs from the run in `folder`.
    pub(super) fn check(&self, now: &Identity, folder: &Path) -> Result<(), TrainError> {
        let names = self.0.keys().chain(now.0.keys());
        for name in names {
            let [then, now] = [self, now].map(|identity| identity.0.get(name));
            // Runs of older versions do not record their weights.
            if then != now && !(name == "weights" && then.is_none()) {
                return Err(TrainError::Differs {
                    folder: folder.to_owned(),
                    name: name.clone(),
                    then: format_value(then),
                    now: format_value(now),
                });
            }
        }
        Ok(())
    }

    pub(super) fn settings(&self) -> &BTreeMap<String, Value> {
        &self.0
    }

    pub(super) fn to_json(&self) -> Value {
        json!(self.0)
    }

    pub(super) fn from_json(value: Value) -> Result<Identity, serde_json::Error> {
        serde_json::from_value(value).map(Identity)
    }
}

/// A digest of all tokens of some examples, of which of them count, and of their targets.
fn digest(examples: &[Example]) -> String {
    let mut hash = Sha256::new();
    let mut number = |number: usize| hash.update((number as u64).to_le_bytes());
    number(examples.len());
    for example in examples {
        number(example.sides.len());
        for side in &example.sides {
            number(side.len());
            for sample in side {
                number(sample.tokens.len());
                for (&token, &counts) in sample.tokens.iter().zip(&sample.counts) {
                    number(token as usize * 2 + usize::from(counts));
                }
            }
        }
        // Examples without targets keep the digest that they had before targets existed.
        for target in example.targets.iter().flatten() {
            number(target.len());
            for &(token, probability) in target {
                number(token as usize);
                number(probability.to_bits() as usize);
            }
        }
    }
    let hash = hash.finalize();
    let start = hash.iter().take(8).map(|byte| format!("{byte:02x}"));
    format!(
        "{} examples ({})",
        examples.len(),
        start.collect::<String>()
    )
}
