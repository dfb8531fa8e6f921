//! Errors of GGUF files that cannot be run.

use incant_gguf::{GgufError, TensorType};

/// The error of a file that parses but cannot be run; it displays as one line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A key or tensor is missing, or has the wrong type.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The architecture is not supported.
    #[error("architecture '{}' is not supported (supported: {supported})", name.escape_debug())]
    Architecture {
        /// `general.architecture`.
        name: String,
        /// The supported names.
        supported: String,
    },
    /// The model uses an unsupported feature of a supported architecture.
    #[error("this {architecture} model needs {feature}, which is not supported")]
    Feature {
        /// `general.architecture`.
        architecture: String,
        /// The unsupported feature.
        feature: String,
    },
    /// A tensor is stored in an unsupported type.
    #[error("tensor '{}' has weights of type {kind}, which is not supported (supported: {supported})", name.escape_debug())]
    WeightType {
        /// The name of the tensor.
        name: String,
        /// The type of the tensor.
        kind: TensorType,
        /// The supported types.
        supported: String,
    },
    /// The memory for a packed tensor cannot be allocated.
    #[error("no memory for '{}': {source}", name.escape_debug())]
    Memory {
        /// The name of the tensor.
        name: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// A metadata value is invalid.
    #[error("{key} = {value} makes no sense: {why}")]
    Value {
        /// The metadata key.
        key: String,
        /// The value found.
        value: String,
        /// The violated rule.
        why: &'static str,
    },
    /// The shape of a tensor contradicts the metadata.
    #[error("tensor '{name}' has shape {found:?}, expected {expected:?}")]
    Shape {
        /// The name of the tensor.
        name: String,
        /// The shape found, outermost dimension first.
        found: Vec<usize>,
        /// The shape required by the metadata.
        expected: Vec<usize>,
    },
}
