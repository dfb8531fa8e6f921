//! Why an adapter cannot be used.

use std::path::{Path, PathBuf};

use super::Linear;
use crate::gguf::GgufError;

/// An adapter cannot be used; one line that names the file and the cause.
#[derive(Debug, thiserror::Error)]
#[error("{}: {cause}", path.display())]
pub struct LoraError {
    path: PathBuf,
    // Part of the message already, so not a `source`: a report would repeat it.
    cause: Cause,
}

impl LoraError {
    pub(super) fn new(path: &Path, cause: Cause) -> LoraError {
        LoraError {
            path: path.to_owned(),
            cause,
        }
    }
}

/// What is wrong with it. Names out of the files are shown escaped, so that a
/// hostile one cannot break the line or reach the terminal.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Cause {
    #[error("{file}: {error}")]
    Io {
        file: &'static str,
        error: std::io::Error,
    },
    #[error("adapter_config.json: {0}")]
    Config(serde_json::Error),
    #[error("adapter_model.safetensors: {0}")]
    Safetensors(#[from] safetensors::SafeTensorError),
    #[error(
        "adapter_model.bin holds Python objects, which are not read; save the adapter as \
         safetensors"
    )]
    Pickle,
    // The file is named already.
    #[error("{}", .0.cause())]
    Gguf(#[from] GgufError),
    #[error("it is no LoRA adapter ({key} is '{}')", value.escape_debug())]
    Kind { key: &'static str, value: String },
    #[error("it was made for the architecture '{}', the model is {model}", adapter.escape_debug())]
    Architecture {
        adapter: String,
        model: &'static str,
    },
    #[error("{0}, which is not supported")]
    Unsupported(String),
    #[error("the tensor '{}' is {what}, which is not supported", name.escape_debug())]
    Tensor { name: String, what: &'static str },
    #[error("the tensor '{}' belongs to no linear layer of the model", name.escape_debug())]
    Unknown { name: String },
    #[error("the tensor '{}' is for layer {layer}, the model has {layers}", name.escape_debug())]
    Layer {
        name: String,
        layer: usize,
        layers: usize,
    },
    #[error("the tensor '{}' is missing", name.escape_debug())]
    Missing { name: String },
    #[error("two tensors are '{}'", name.escape_debug())]
    Twice { name: String },
    #[error("the tensor '{}' has shape {found:?}, expected {expected}", name.escape_debug())]
    Shape {
        name: String,
        found: Vec<usize>,
        expected: String,
    },
    #[error("the tensor '{}' has type {kind}, which is not supported", name.escape_debug())]
    Type { name: String, kind: String },
    #[error("the tensor '{}' holds a number that is not finite", name.escape_debug())]
    NotFinite { name: String },
    #[error("its scale ({alpha} for rank {rank}) makes no sense")]
    Scale { alpha: f64, rank: usize },
    #[error("it adds to a linear layer twice ({linear:?} of layer {layer})")]
    Repeated { layer: usize, linear: Linear },
    #[error("it holds no tensors")]
    Empty,
}
