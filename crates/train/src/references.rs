//! Reference values of an objective, such as DPO's reference log-probabilities. They are
//! computed once, before the first step, and saved, because the student they were computed with
//! changes after it.

use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering;

use candle_core::Tensor;
use serde_json::json;

use super::metrics::{Event, Observer};
use super::samples::Example;
use super::settings::Identity;
use super::trainer::Training;
use super::{TrainError, batches, checkpoint, files};

const FILE: &str = "references.safetensors";

/// The references of all examples; empty lists if the objective has none.
#[derive(Debug, Default)]
pub(super) struct References {
    examples: Vec<Tensor>,
    held_out: Vec<Tensor>,
}

impl References {
    /// Computes the references with the student as it is. Returns `None` if told to stop.
    pub(super) fn compute(
        training: &Training<'_>,
        observer: &mut dyn Observer,
    ) -> Result<Option<References>, TrainError> {
        let total = training.examples.len() + training.held_out.len();
        let student = training.student.without_gradients();
        let mut done = 0;
        let mut compute = |examples: &[Example]| {
            let lengths: Vec<usize> = examples.iter().map(Example::length).collect();
            let mut found = vec![None; examples.len()];
            for batch in batches::by_length(&lengths, training.settings.batch_size) {
                if training.stop.load(Ordering::Relaxed) {
                    return Ok(None);
                }
                let some: Vec<&Example> = batch.iter().map(|&place| &examples[place]).collect();
                let references = training.objective.references(&*student, &some)?;
                let Some(references) = references else {
                    return Ok(Some(Vec::new()));
                };
                done += batch.len();
                observer.on(&Event::Referencing { done, total });
                for (place, reference) in batch.into_iter().zip(references) {
                    found[place] = Some(reference);
                }
            }
            Ok::<_, TrainError>(found.into_iter().collect())
        };
        let Some(examples) = compute(training.examples)? else {
            return Ok(None);
        };
        let held_out = compute(training.held_out)?;
        Ok(held_out.map(|held_out| References { examples, held_out }))
    }

    /// Saves the references, for when the run is resumed.
    pub(super) fn save(&self, folder: &Path, identity: &Identity) -> Result<(), TrainError> {
        if self.examples.is_empty() {
            return Ok(());
        }
        let all = [("example", &self.examples), ("held-out", &self.held_out)];
        let named = all.into_iter().flat_map(|(kind, tensors)| {
            let tensors = (0..).zip(tensors);
            tensors.map(move |(number, tensor)| (name(kind, number), tensor.clone()))
        });
        let named: Vec<(String, Tensor)> = named.collect();
        let rest = json!({ "identity": identity.to_json() });
        // Files are renamed one by one, which is atomic here because there is only this one.
        files::move_into(folder, |folder| {
            checkpoint::write_tensors(&folder.join(FILE), &named, &rest)
        })
    }

    /// Loads the references of the run in `folder`, whose objective has some.
    pub(super) fn load(
        training: &Training<'_>,
        identity: &Identity,
    ) -> Result<References, TrainError> {
        let path = training.folder.path().join(FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(References::default());
            }
            Err(error) => return Err(TrainError::io(&path)(error)),
        };
        let mut rest = checkpoint::metadata(&path, &bytes)?;
        let then = Identity::from_json(rest["identity"].take());
        let then = then.map_err(|error| TrainError::state(&path, error))?;
        then.check(identity, training.folder.path())?;
        let mut tensors = checkpoint::read_tensors(&path)?;
        let mut take = |kind, count| {
            let found = (0..count).map(|number| {
                let name = name(kind, number);
                let lacks = || TrainError::state(&path, format!("'{name}' is missing"));
                tensors.remove(&name).ok_or_else(lacks)
            });
            found.collect::<Result<Vec<_>, _>>()
        };
        Ok(References {
            examples: take("example", training.examples.len())?,
            held_out: take("held-out", training.held_out.len())?,
        })
    }

    /// References of the training examples: empty, or one for each.
    pub(super) fn of_examples(&self) -> &[Tensor] {
        &self.examples
    }

    /// References of the held-out examples: empty, or one for each.
    pub(super) fn of_held_out(&self) -> &[Tensor] {
        &self.held_out
    }
}

fn name(kind: &str, number: usize) -> String {
    format!("{kind}.{number}")
}

/// The references of a batch.
pub(super) fn of_batch<'a>(references: &'a [Tensor], batch: &[usize]) -> Vec<&'a Tensor> {
    match references {
        [] => Vec::new(),
        references => batch.iter().map(|&place| &references[place]).collect(),
    }
}
