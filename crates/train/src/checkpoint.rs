//! Checkpoints: folders `checkpoint-N`, each a PEFT directory that can be served, plus one file
//! with the trainer's state.
//!
//! The state holds the variables and the optimizer's moments exactly as they are in memory, so
//! that a resumed run continues bit for bit. Checkpoints are written atomically.

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

/// The prefix of a checkpoint's name; the step follows.
const NAME: &str = "checkpoint-";

/// The trainer's own file in a checkpoint.
const STATE: &str = "trainer.safetensors";

/// The metadata key of the trainer's state.
const KEY: &str = "incant.training";

/// A run's state besides its tensors.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct State {
    /// Steps made. The time they took is in the log only: checkpoints of two identical runs are
    /// identical.
    pub(super) step: usize,
    pub(super) identity: Identity,
}

#[derive(Deserialize)]
struct StoredState {
    step: usize,
    identity: Value,
}

/// Saves a checkpoint in a run's folder. An existing checkpoint of the same step is identical,
/// and stays if it is complete.
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

/// Writes the adapter into the run's folder itself, so that the folder can be served.
pub(super) fn publish(folder: &Path, student: &dyn Student) -> Result<(), TrainError> {
    files::move_into(folder, |folder| student.save(folder))
}

/// Whether a folder holds any checkpoint, complete or not.
pub(super) fn any(folder: &Path) -> Result<bool, TrainError> {
    list(folder).map(|found| !found.is_empty())
}

/// The result of a search for a run's last checkpoint.
#[derive(Debug, Default)]
pub(super) struct Latest {
    /// The last complete checkpoint, with its state.
    pub(super) found: Option<(PathBuf, State)>,
    /// Errors of later checkpoints that cannot be used.
    pub(super) broken: Vec<TrainError>,
}

/// Finds a run's last checkpoint.
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

/// All checkpoints, the last one first.
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

/// Reads the state from a checkpoint, which must be complete.
fn state(checkpoint: &Path) -> Result<State, TrainError> {
    let path = checkpoint.join(STATE);
    let bytes = fs::read(&path).map_err(TrainError::io(&path))?;
    SafeTensors::deserialize(&bytes).map_err(|error| TrainError::state(&path, error))?;
    let written = metadata(&path, &bytes)?;
    let written: StoredState =
        serde_json::from_value(written).map_err(|error| TrainError::state(&path, error))?;
    Ok(State {
        step: written.step,
        identity: Identity::from_json(written.identity)
            .map_err(|error| TrainError::state(&path, error))?,
    })
}

/// Restores the student's variables and returns the optimizer.
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
            let why = format!("'{name}' does not have the shape of the student's variable");
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

/// Writes f32 tensors and JSON metadata as safetensors.
pub(super) fn write_tensors(
    path: &Path,
    tensors: &[(String, Tensor)],
    rest: &Value,
) -> Result<(), TrainError> {
    let tensors = tensors.iter().map(|(name, tensor)| {
        let elements = tensor.flatten_all()?.to_vec1::<f32>()?;
        let bytes: Vec<u8> = elements.into_iter().flat_map(f32::to_le_bytes).collect();
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

/// The JSON metadata of a safetensors file.
pub(super) fn metadata(path: &Path, bytes: &[u8]) -> Result<Value, TrainError> {
    let (_, header) =
        SafeTensors::read_metadata(bytes).map_err(|error| TrainError::state(path, error))?;
    let text = header.metadata().as_ref().and_then(|rest| rest.get(KEY));
    let text =
        text.ok_or_else(|| TrainError::state(path, "it was not written by a training run"))?;
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
        let elements = view.data().as_chunks::<4>().0.iter();
        let elements: Vec<f32> = elements.map(|bytes| f32::from_le_bytes(*bytes)).collect();
        let tensor = Tensor::from_vec(elements, view.shape(), &Device::Cpu)?;
        Ok((name.to_owned(), tensor))
    });
    tensors.collect()
}
