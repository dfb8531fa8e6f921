//! Why a GGUF file cannot be run.

use incant_gguf::{GgufError, TensorType};

/// A file that parses but cannot be run; one line each.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The file lacks something, or it is of the wrong type.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// No file in `arch` reads this architecture.
    #[error("architecture '{}' is not supported (supported: {supported})", name.escape_debug())]
    Architecture {
        /// `general.architecture`.
        name: String,
        /// The names that are supported.
        supported: String,
    },
    /// A feature of a known architecture that is not supported.
    #[error("this {architecture} model needs {feature}, which is not supported")]
    Feature {
        /// `general.architecture`.
        architecture: String,
        /// What it needs.
        feature: String,
    },
    /// A tensor whose numbers are stored in a way that cannot be computed with.
    #[error("tensor '{}' has weights of type {kind}, which is not supported (supported: {supported})", name.escape_debug())]
    WeightType {
        /// The tensor's name.
        name: String,
        /// Its type.
        kind: TensorType,
        /// The types that are supported.
        supported: String,
    },
    /// The system has no memory for a packed tensor.
    #[error("no memory for '{}': {source}", name.escape_debug())]
    Memory {
        /// The tensor's name.
        name: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// Metadata that contradicts itself.
    #[error("{key} = {value} makes no sense: {why}")]
    Value {
        /// The metadata key.
        key: String,
        /// What it holds.
        value: String,
        /// The rule it breaks.
        why: &'static str,
    },
    /// A tensor whose shape the metadata does not allow.
    #[error("tensor '{name}' has shape {found:?}, expected {expected:?}")]
    Shape {
        /// The tensor's name.
        name: String,
        /// Its shape, outermost dimension first.
        found: Vec<usize>,
        /// The shape the metadata asks for.
        expected: Vec<usize>,
    },
}
