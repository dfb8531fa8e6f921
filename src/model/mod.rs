//! Models as data read from a GGUF file, without forward-pass code.
//!
//! [`DecoderSpec`] describes a decoder-only transformer completely enough for an executor to
//! run it; each architecture is one file in [`arch`] that fills it in from metadata.

pub mod arch;
mod error;
mod spec;
mod weights;

pub use error::ModelError;
pub use spec::{
    Activation, DecoderSpec, LayerSpec, LongRope, QkNorm, RopeSpec, RopeStyle, Rotation,
    Temperature,
};
pub use weights::{Part, Weight, Weights};
