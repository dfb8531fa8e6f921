//! How a run goes, and what a run that goes on must have in common with its beginning.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::TrainError;
use super::loss::Objective;
use super::samples::Example;

/// How a run goes.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The highest learning rate.
    pub learning_rate: f64,
    /// The share of the steps in which the learning rate rises.
    pub warmup: f64,
    /// How much of each weight is lost per step, times the learning rate.
    pub weight_decay: f64,
    /// The longest that the gradient may be.
    pub clip: f64,
    /// When it ends.
    pub length: Length,
    /// Examples that are computed together.
    pub batch_size: usize,
    /// Batches whose gradients are added up for one step.
    pub accumulate: usize,
    /// What the order of the examples follows from.
    pub seed: u64,
    /// A checkpoint is saved after every so many steps, and at the end.
    pub save_every: Option<usize>,
    /// The held-out examples are looked at after every so many steps, before the first
    /// and after the last.
    pub eval_every: Option<usize>,
    /// What else makes the run what it is, by the names that people know: model, rank…
    pub origin: BTreeMap<String, Value>,
}

/// When a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// All examples were seen so often.
    Epochs(usize),
    /// So many steps were made.
    Steps(usize),
}

impl Settings {
    /// How many batches a run of epochs of so many batches has.
    pub fn batches(&self, per_epoch: usize) -> usize {
        match self.length {
            Length::Epochs(epochs) => epochs * per_epoch,
            Length::Steps(steps) => steps * self.accumulate,
        }
    }
}

/// What a person reads for a value.
pub(super) fn shown(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "not set".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
    }
}

/// Everything that the weights at the end of a run depend on, by name.
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

    /// Refuses what differs from the run in `folder`, by its name.
    pub(super) fn check(&self, now: &Identity, folder: &Path) -> Result<(), TrainError> {
        let names = self.0.keys().chain(now.0.keys());
        for name in names {
            let [then, now] = [self, now].map(|identity| identity.0.get(name));
            // Runs of older versions do not say which weights they are of.
            if then != now && !(name == "weights" && then.is_none()) {
                return Err(TrainError::Differs {
                    folder: folder.to_owned(),
                    name: name.clone(),
                    then: shown(then),
                    now: shown(now),
                });
            }
        }
        Ok(())
    }

    /// All of it by name.
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

/// What stands for all tokens of some examples, for which of them count, and for what they
/// should be.
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
        // Examples without targets have the digest that they had before there were any.
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
