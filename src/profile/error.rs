//! What can go wrong between a profile's file and a rendered prompt.

use std::fmt;
use std::path::PathBuf;

use crate::printable::printable;

/// Why a profile or chat template could not be loaded or rendered.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// A file or folder of profiles cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file was read but is no valid profile or chat template, or fails on
    /// ordinary messages.
    #[error("{place}: {}", printable(problem))]
    Broken {
        /// The file, with the line where one is known.
        place: Place,
        /// What is wrong with it.
        problem: String,
    },
    /// A chat template turned the client's messages down with
    /// `raise_exception`; the client's fault, in the template's words.
    #[error("{0}")]
    Refused(String),
}

/// A position in a template, shown as `FILE:LINE` or `FILE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file's name as it was given.
    pub file: String,
    /// The line, counted from 1 and from the file's first line.
    pub line: Option<usize>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        match self.line {
            Some(line) => write!(f, ":{line}"),
            None => Ok(()),
        }
    }
}

impl ProfileError {
    /// A problem with a file as a whole, or with one line of it.
    pub(super) fn broken(
        file: &str,
        line: Option<usize>,
        problem: impl Into<String>,
    ) -> ProfileError {
        ProfileError::Broken {
            place: Place {
                file: file.to_owned(),
                line,
            },
            problem: problem.into(),
        }
    }

    /// The line of the file that it is about, if there is one.
    pub(super) fn line(&self) -> Option<usize> {
        match self {
            ProfileError::Broken { place, .. } => place.line,
            ProfileError::Read { .. } | ProfileError::Refused(_) => None,
        }
    }

    /// The innermost template error is the one that names the line and the
    /// cause: those around it only say which block or macro it happened in.
    pub(super) fn from_template(file: &str, error: &minijinja::Error) -> ProfileError {
        let mut innermost = error;
        let mut next: &dyn std::error::Error = error;
        while let Some(source) = next.source() {
            if let Some(refusal) = source.downcast_ref::<Refusal>() {
                return ProfileError::Refused(refusal.0.clone());
            }
            if let Some(source) = source.downcast_ref::<minijinja::Error>() {
                innermost = source;
            }
            next = source;
        }
        let problem = match innermost.detail() {
            Some(detail) => format!("{}: {detail}", innermost.kind()),
            None => innermost.kind().to_string(),
        };
        let line = innermost.line().or(error.line());
        ProfileError::broken(file, line, problem)
    }
}

/// The message of a template's `raise_exception`, carried through minijinja's
/// errors as their source.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Refusal(pub(super) String);
