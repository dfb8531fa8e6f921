//! Errors of adapters that cannot be used.

use super::Linear;
use incant_gguf::GgufError;
use incant_gguf::open::{self, Location};

/// The error of an adapter that cannot be used; it displays as one line with the file and the
/// cause.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {cause}")]
pub struct LoraError {
    place: String,
    // Part of the message already, so not a `source`: a report would repeat it.
    cause: Cause,
}

impl LoraError {
    /// Whether the path leads out of the folder that it must be in.
    pub fn is_outside(&self) -> bool {
        match &self.cause {
            Cause::Open(error) | Cause::Io { error, .. } => open::is_outside(error),
            _ => false,
        }
    }

    /// Whether the adapter exceeds the size limit.
    pub fn is_too_large(&self) -> bool {
        matches!(self.cause, Cause::OverBudget)
    }

    pub(super) fn new(location: &Location, cause: Cause) -> LoraError {
        LoraError {
            place: location.to_string(),
            cause,
        }
    }
}

/// The error of additions that make no adapter: there are none, or two for one linear layer.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct AdditionsError(pub(super) Cause);

/// The causes. Names from the files are displayed escaped, so that a hostile name can neither
/// break the line nor send control sequences to the terminal.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Cause {
    // The message names the file already.
    #[error("{0}")]
    Open(std::io::Error),
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
    // The message names the file already.
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
    #[error("the numbers that it adds to {} are too large for any computation", module_path(*layer, *linear))]
    Overflow { layer: usize, linear: Linear },
    #[error("it has more numbers than the memory for adapters can hold (--adapter-memory)")]
    OverBudget,
    #[error("its scale ({alpha} for rank {rank}) makes no sense")]
    Scale { alpha: f64, rank: usize },
    #[error("it adds to a linear layer twice ({linear:?} of layer {layer})")]
    Repeated { layer: usize, linear: Linear },
    #[error("it holds no tensors")]
    Empty,
}

/// The name of a linear layer's module in PEFT.
pub fn module_path(layer: usize, linear: Linear) -> String {
    format!("layers.{layer}.{}", linear.module())
}
