//! What can go wrong while training.

use std::io;
use std::path::{Path, PathBuf};

use super::data::Place;

/// Training cannot begin or go on; one line.
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
        /// Why.
        error: io::Error,
    },
    /// A file of an earlier run is not what it should be.
    #[error("{}: {why}", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The run to go on with had another setting.
    #[error(
        "the run in {} cannot go on: '{name}' was {then} and is {now}", folder.display()
    )]
    Differs {
        /// The run's folder.
        folder: PathBuf,
        /// The setting.
        name: String,
        /// What it was.
        then: String,
        /// What it is now.
        now: String,
    },
    /// The folder holds a run already.
    #[error(
        "{} holds a run already; go on with it (--resume) or choose another folder",
        .0.display()
    )]
    Exists(PathBuf),
    /// The folder holds an adapter that a run would write over.
    #[error(
        "{} holds an adapter and no checkpoint to go on from; choose another folder",
        .0.display()
    )]
    Finished(PathBuf),
    /// Another run writes to the folder.
    #[error(
        "another training is writing to {}; wait for its end or choose another folder",
        .0.display()
    )]
    Busy(PathBuf),
    /// A run came to its end and could not be saved.
    #[error("{error}; {}", left(*has_adapter, last.as_deref()))]
    Unsaved {
        /// What could not be written, and why.
        error: Box<TrainError>,
        /// Whether the adapter was written all the same.
        has_adapter: bool,
        /// The last checkpoint that is whole.
        last: Option<PathBuf>,
    },
    /// There is nothing to learn from.
    #[error("there are no examples")]
    NoExamples,
    /// The student has learnt something that is no number.
    #[error("the {what} of step {step} is {value}; its examples: {}", list(places))]
    NotFinite {
        /// The loss or the gradient.
        what: &'static str,
        /// The step.
        step: usize,
        /// What it is instead of a number.
        value: f64,
        /// Where the step's examples come from.
        places: Vec<Place>,
    },
    /// A part of the adapter is not connected to the loss.
    #[error("'{name}' gets no gradient")]
    NoGradient {
        /// The variable.
        name: String,
    },
    /// An example has no token whose log-probability counts, or the like.
    #[error("{place}: {what}")]
    Example {
        /// Where it comes from.
        place: Place,
        /// What is wrong with it.
        what: &'static str,
    },
}

impl TrainError {
    /// What makes an error of reading or writing `path`.
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

/// What there is of a run that could not be saved.
fn left(has_adapter: bool, last: Option<&Path>) -> String {
    let adapter = match has_adapter {
        true => "the adapter itself was written, and ",
        false => "",
    };
    match last {
        Some(last) => format!(
            "{adapter}the last whole checkpoint is {}: make room and go on from it with the same \
             command and --resume",
            last.display()
        ),
        None => format!("{adapter}there is no checkpoint"),
    }
}

fn list(places: &[Place]) -> String {
    let places: Vec<String> = places.iter().map(Place::to_string).collect();
    places.join(", ")
}
