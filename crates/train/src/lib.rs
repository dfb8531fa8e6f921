//! LoRA fine-tuning: training adapters on a frozen model.
//!
//! [`data`] reads files of examples, [`samples`] tokenizes them through an implementation of
//! [`Render`](samples::Render), and [`batches`] puts them in order. A [`loss`] is computed from
//! the log-probabilities that a [`Student`] assigns to tokens. The loop in [`trainer`]
//! minimises it with the [`optimizer`], records progress ([`metrics`], [`report`]) and saves
//! [`checkpoint`]s, from which a run resumes bit for bit.
//!
//! This module knows a model only as a [`Student`]: it neither runs an engine nor reads a
//! model's file.

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
