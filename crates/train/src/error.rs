//! Errors of training.

use std::io;
use std::path::{Path, PathBuf};

use super::data::Place;

/// An error before or during training; its message is one line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The model cannot be trained, or the adapter does not fit it.
    #[error("{0}")]
    Model(String),
    /// A computation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// A file cannot be read or written.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        error: io::Error,
    },
    /// A file of an earlier run is invalid.
    #[error("{}: {why}", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// The problem.
        why: String,
    },
    /// The run to resume had a different setting.
    #[error(
        "the run in {} cannot be resumed: '{name}' was {then} and is {now}", folder.display()
    )]
    Differs {
        /// The run's folder.
        folder: PathBuf,
        /// The setting.
        name: String,
        /// Its value then.
        then: String,
        /// Its value now.
        now: String,
    },
    /// The folder already holds a run.
    #[error(
        "{} already holds a run; resume it with --resume or choose another folder",
        .0.display()
    )]
    Exists(PathBuf),
    /// The folder holds an adapter that a run would overwrite.
    #[error(
        "{} holds an adapter but no checkpoint to resume from; choose another folder",
        .0.display()
    )]
    Finished(PathBuf),
    /// Another run writes to the folder.
    #[error(
        "another training run is writing to {}; wait for its end or choose another folder",
        .0.display()
    )]
    Busy(PathBuf),
    /// A run finished but could not be saved.
    #[error("{error}; {}", left(*has_adapter, last.as_deref()))]
    Unsaved {
        /// The error that kept it from being saved.
        error: Box<TrainError>,
        /// Whether the adapter itself was written.
        has_adapter: bool,
        /// The last complete checkpoint.
        last: Option<PathBuf>,
    },
    /// A checkpoint was saved, and at the end of a run the adapter, but not the report about it.
    #[error(
        "the checkpoint {} is complete, but the report could not be written: {error}",
        checkpoint.display()
    )]
    Unreported {
        /// The error that kept the report from being written.
        error: Box<TrainError>,
        /// The checkpoint.
        checkpoint: PathBuf,
    },
    /// There are no training examples.
    #[error("there are no examples")]
    NoExamples,
    /// The loss or the gradient is NaN or infinite.
    #[error("the {what} of step {step} is {value}; its examples: {}", list(places))]
    NotFinite {
        /// The loss or the gradient.
        what: &'static str,
        /// The step.
        step: usize,
        /// Its value.
        value: f64,
        /// The sources of the step's examples.
        places: Vec<Place>,
    },
    /// A part of the adapter is not connected to the loss.
    #[error("'{name}' has no gradient")]
    NoGradient {
        /// The variable.
        name: String,
    },
    /// An example is unusable, for instance because none of its tokens counts.
    #[error("{place}: {what}")]
    Example {
        /// Its source.
        place: Place,
        /// The problem.
        what: &'static str,
    },
}

impl TrainError {
    /// Returns a function that wraps an I/O error about `path`.
    pub fn io(path: &Path) -> impl FnOnce(io::Error) -> TrainError {
        let path = path.to_owned();
        move |error| TrainError::Io { path, error }
    }

    pub(super) fn state(path: &Path, why: impl ToString) -> TrainError {
        TrainError::State {
            path: path.to_owned(),
            why: why.to_string(),
        }
    }
}

/// Describes what is left of a run that could not be saved.
fn left(has_adapter: bool, last: Option<&Path>) -> String {
    let adapter = if has_adapter {
        "the adapter itself was written, and "
    } else {
        ""
    };
    match last {
        Some(last) => format!(
            "{adapter}the last complete checkpoint is {}: free disk space and resume from it with \
             the same command and --resume",
            last.display()
        ),
        None => format!("{adapter}there is no checkpoint"),
    }
}

fn list(places: &[Place]) -> String {
    let places: Vec<String> = places.iter().map(Place::to_string).collect();
    places.join(", ")
}
