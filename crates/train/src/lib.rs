//! LoRA fine-tuning: training adapters on a frozen model.
//!
//! [`data`] reads files of examples, [`samples`] tokenizes them through an implementation of
//! [`Render`](samples::Render), and [`batches`] puts them in order. A [`loss`] is computed from
//! the log-probabilities that a [`Student`] assigns to tokens. The loop in [`trainer`]
//! minimises it with the [`optimizer`], records progress ([`metrics`], [`report`]) and saves
//! [`checkpoint`]s, from which a run resumes bit for bit.
//!
//! The trainer knows a model only as a [`Student`]; [`model`] is the one that runs quantized
//! weights. This crate knows kernels and models. It knows no engine, no server and no command
//! line.
#![forbid(unsafe_code)]

pub mod batches;
pub mod checkpoint;
pub mod data;
mod error;
mod evaluate;
mod files;
mod folder;
pub mod loss;
pub mod metrics;
pub mod model;
mod notes;
pub mod optimizer;
mod references;
pub mod report;
pub mod samples;
pub mod settings;
pub mod student;
#[cfg(test)]
mod toy;
pub mod trainer;

pub use error::TrainError;
pub use folder::RunFolder;
pub use student::{Batch, Sample, Student, Target};
