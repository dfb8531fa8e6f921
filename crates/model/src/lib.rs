//! Models as data read from a GGUF file, without forward-pass code.
//!
//! [`DecoderSpec`] describes a decoder-only transformer completely enough for an executor to
//! run it; each architecture is one file in [`arch`] that fills it in from metadata.
//!
//! [`packed`] holds weights for the CPU kernels, [`lora`] reads and writes adapters, and
//! [`quantize`] rewrites files. This crate knows no sequence, no batch and no prompt.
#![forbid(unsafe_code)]

pub mod arch;
mod dtype;
mod error;
pub mod lora;
pub mod packed;
pub mod quantize;
mod spec;
mod weights;

pub use dtype::candle_dtype;
pub use error::ModelError;
pub use incant_kernels::{Activation, RopeStyle};
pub use packed::{Footprint, PackedWeights};
pub use spec::{DecoderSpec, LayerSpec, LongRope, QkNorm, RopeSpec, Rotation, Temperature};
pub use weights::{Part, Weight, Weights};
