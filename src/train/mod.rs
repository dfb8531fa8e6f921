//! Training adapters on a frozen model.
//!
//! [`data`] reads files of examples, [`samples`] makes tokens of them through whoever can
//! render a conversation ([`Render`](samples::Render)), [`batches`] puts them in an order.
//! A [`loss`] is made of the log-probabilities that a [`Student`] gives to tokens. The
//! loop in [`trainer`] brings it down with the [`optimizer`], writes down how it goes
//! ([`metrics`], [`report`]) and saves [`checkpoint`]s from which it can go on as if
//! nothing had happened.
//!
//! A [`Student`] is all that is known here of a model: nothing in this module runs an
//! engine or reads a model's file.

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
