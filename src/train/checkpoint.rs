//! Checkpoints: folders `checkpoint-N`, each a PEFT directory that can be served, with
//! the trainer's own state in one more file.
//!
//! The state holds the variables and the optimizer's moments as they are in memory, so
//! that a run that goes on from it goes on exactly. A checkpoint is there as a whole or
//! not at all.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor, Var};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use serde_json::{Value, json};

use super::optimizer::{AdamW, Moments};
use super::settings::Identity;
use super::student::Student;
use super::{TrainError, files};

/// What the names of checkpoints begin with; the step follows.
const NAME: &str = "checkpoint-";

/// The trainer's own file in a checkpoint.
const STATE: &str = "trainer.safetensors";

/// Where in its metadata the rest of the state is.
const KEY: &str = "incant.training";

/// Where a run stands, beside its numbers.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct State {
    /// Steps that were made. How long they took is in the log: a checkpoint holds nothing
    /// that differs from one run to the next of the same kind.
    pub(super) step: usize,
    /// What the run is.
    pub(super) identity: Identity,
}

#[derive(Deserialize)]
struct Written {
    step: usize,
    identity: Value,
}

/// Saves a checkpoint in a run's folder. One of the same step is the same, and stays if it
/// is whole.
pub(super) fn save(
    folder: &Path,
    student: &dyn Student,
    optimizer: &AdamW,
    state: &State,
) -> Result<PathBuf, TrainError> {
    let path = folder.join(format!("{NAME}{}", state.step));
    if path.exists() {
        if self::state(&path).is_ok() {
            return Ok(path);
        }
        fs::remove_dir_all(&path).map_err(TrainError::io(&path))?;
    }
    files::make_folder(&path, |folder| {
        student.save(folder)?;
        let mut tensors = Vec::new();
        for ((name, variable), moments) in student.variables().iter().zip(optimizer.moments()) {
            tensors.push((name.clone(), variable.as_tensor().clone()));
            tensors.push((format!("{name}.first"), moments.first.clone()));
            tensors.push((format!("{name}.second"), moments.second.clone()));
        }
        let written = json!({
            "step": state.step,
            "identity": state.identity.to_json(),
        });
        write_tensors(&folder.join(STATE), &tensors, &written)
    })?;
    Ok(path)
}

/// Writes the adapter as it is into a run's folder itself, which is then one that can be
/// served.
pub(super) fn publish(folder: &Path, student: &dyn Student) -> Result<(), TrainError> {
    files::put_into(folder, |folder| student.save(folder))
}

/// Whether a folder holds any checkpoint, whole or not.
pub(super) fn any(folder: &Path) -> Result<bool, TrainError> {
    list(folder).map(|found| !found.is_empty())
}

/// What was found when a run's last checkpoint was looked for.
#[derive(Debug, Default)]
pub(super) struct Latest {
    /// The one that has come farthest of those that are whole, with what it says.
    pub(super) found: Option<(PathBuf, State)>,
    /// Why those that have come farther cannot be used.
    pub(super) broken: Vec<TrainError>,
}

/// Looks for a run's last checkpoint.
pub(super) fn latest(folder: &Path) -> Result<Latest, TrainError> {
    let mut latest = Latest::default();
    for path in list(folder)? {
        match state(&path) {
            Ok(state) => {
                latest.found = Some((path, state));
                break;
            }
            Err(error) => latest.broken.push(error),
        }
    }
    Ok(latest)
}

/// All checkpoints, the one that has come farthest first.
fn list(folder: &Path) -> Result<Vec<PathBuf>, TrainError> {
    let mut found: Vec<(usize, PathBuf)> = Vec::new();
    for entry in fs::read_dir(folder).map_err(TrainError::io(folder))? {
        let path = entry.map_err(TrainError::io(folder))?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let step = name.and_then(|name| name.strip_prefix(NAME));
        if let Some(step) = step.and_then(|step| step.parse().ok()) {
            found.push((step, path));
        }
    }
    found.sort();
    Ok(found.into_iter().rev().map(|(_, path)| path).collect())
}

/// What a checkpoint that is whole says of where its run stood.
fn state(checkpoint: &Path) -> Result<State, TrainError> {
    let path = checkpoint.join(STATE);
    let bytes = fs::read(&path).map_err(TrainError::io(&path))?;
    SafeTensors::deserialize(&bytes).map_err(|error| TrainError::state(&path, error))?;
    let written = metadata(&path, &bytes)?;
    let written: Written =
        serde_json::from_value(written).map_err(|error| TrainError::state(&path, error))?;
    Ok(State {
        step: written.step,
        identity: Identity::from_json(written.identity)
            .map_err(|error| TrainError::state(&path, error))?,
    })
}

/// Sets the student's variables to what they were, and gives the optimizer back.
pub(super) fn restore(
    checkpoint: &Path,
    student: &dyn Student,
    weight_decay: f64,
    steps: usize,
) -> Result<AdamW, TrainError> {
    let path = checkpoint.join(STATE);
    let mut tensors = read_tensors(&path)?;
    let mut take = |name: &str, variable: &Var| {
        let tensor = tensors
            .remove(name)
            .ok_or_else(|| TrainError::state(&path, format!("'{name}' is missing")))?;
        if tensor.shape() != variable.shape() {
            let why = format!("'{name}' has another shape than the student's");
            return Err(TrainError::state(&path, why));
        }
        Ok(tensor.to_device(variable.device())?)
    };
    let mut moments = Vec::new();
    for (name, variable) in student.variables() {
        variable.set(&take(name, variable)?)?;
        moments.push(Moments {
            first: take(&format!("{name}.first"), variable)?,
            second: take(&format!("{name}.second"), variable)?,
        });
    }
    Ok(AdamW::resumed(weight_decay, steps, moments))
}

/// Writes f32 tensors, and JSON that goes with them.
pub(super) fn write_tensors(
    path: &Path,
    tensors: &[(String, Tensor)],
    rest: &Value,
) -> Result<(), TrainError> {
    let tensors = tensors.iter().map(|(name, tensor)| {
        let numbers = tensor.flatten_all()?.to_vec1::<f32>()?;
        let bytes: Vec<u8> = numbers.into_iter().flat_map(f32::to_le_bytes).collect();
        Ok((name, tensor.dims().to_vec(), bytes))
    });
    let tensors = tensors.collect::<Result<Vec<_>, TrainError>>()?;
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes);
        view.map(|view| (name.as_str(), view))
    });
    let views = views.collect::<Result<Vec<_>, _>>();
    let metadata = HashMap::from([(KEY.to_owned(), rest.to_string())]);
    let bytes = views.and_then(|views| safetensors::serialize(views, Some(metadata)));
    files::write(
        path,
        &bytes.map_err(|error| TrainError::state(path, error))?,
    )
}

/// The JSON that goes with the tensors of a file.
pub(super) fn metadata(path: &Path, bytes: &[u8]) -> Result<Value, TrainError> {
    let (_, header) =
        SafeTensors::read_metadata(bytes).map_err(|error| TrainError::state(path, error))?;
    let text = header.metadata().as_ref().and_then(|rest| rest.get(KEY));
    let text = text.ok_or_else(|| TrainError::state(path, "it was not written by a training"))?;
    serde_json::from_str(text).map_err(|error| TrainError::state(path, error))
}

/// The f32 tensors of a file, by name.
pub(super) fn read_tensors(path: &Path) -> Result<HashMap<String, Tensor>, TrainError> {
    let bytes = fs::read(path).map_err(TrainError::io(path))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| TrainError::state(path, error))?;
    let tensors = file.iter().map(|(name, view)| {
        if view.dtype() != Dtype::F32 {
            return Err(TrainError::state(path, format!("'{name}' is not f32")));
        }
        let numbers = view.data().as_chunks::<4>().0.iter();
        let numbers: Vec<f32> = numbers.map(|bytes| f32::from_le_bytes(*bytes)).collect();
        let tensor = Tensor::from_vec(numbers, view.shape(), &Device::Cpu)?;
        Ok((name.to_owned(), tensor))
    });
    tensors.collect()
}
