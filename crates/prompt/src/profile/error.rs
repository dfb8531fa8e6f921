//! Errors of loading and rendering profiles and chat templates.

use std::fmt;
use std::path::{Path, PathBuf};

use incant_gguf::printable::printable;

/// Why a profile or chat template could not be loaded or rendered.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// A file or folder of profiles cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The I/O error.
        source: std::io::Error,
    },
    /// A file is not a valid profile or chat template, or fails on ordinary messages.
    #[error("{place}: {}", printable(problem))]
    Broken {
        /// The file, with the line if it is known.
        place: Place,
        /// The problem.
        problem: String,
    },
    /// There is no memory for the stack of a template's thread: a temporary server error.
    #[error("a template cannot be run: {0}")]
    NoStack(std::io::Error),
    /// A chat template rejected the client's messages with `raise_exception`: a client error,
    /// in the template's words.
    #[error("{0}")]
    Refused(String),
}

/// A position in a template, displayed as `FILE:LINE` or `FILE`.
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
    /// The error message for clients: it names files without their folders.
    pub fn for_clients(&self) -> String {
        let name = |path: &Path| match path.file_name() {
            Some(name) => name.to_string_lossy().into_owned(),
            None => path.display().to_string(),
        };
        match self {
            ProfileError::Read { path, source } => {
                format!("cannot read {}: {source}", name(path))
            }
            ProfileError::Broken { place, problem } => {
                let place = Place {
                    file: name(Path::new(&place.file)),
                    line: place.line,
                };
                format!("{place}: {}", printable(problem))
            }
            ProfileError::NoStack(_) | ProfileError::Refused(_) => self.to_string(),
        }
    }

    /// An error of a file as a whole, or of one line of it.
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

    /// The line of the error, if there is one.
    pub(super) fn line(&self) -> Option<usize> {
        match self {
            ProfileError::Broken { place, .. } => place.line,
            ProfileError::Read { .. } | ProfileError::NoStack(_) | ProfileError::Refused(_) => None,
        }
    }

    /// Converts minijinja's error. The innermost one names the line and the cause; those around
    /// it only name the block or macro in which it happened.
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

/// The message of a template's `raise_exception`, carried through minijinja's errors as their
/// source.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Refusal(pub(super) String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_see_files_without_their_folders() {
        let broken = ProfileError::broken("/home/me/prompts/short.jinja", Some(3), "a tag");
        assert_eq!(broken.for_clients(), "short.jinja:3: a tag");
        let unreadable = ProfileError::Read {
            path: "/home/me/prompts/short.jinja".into(),
            source: std::io::ErrorKind::NotFound.into(),
        };
        assert_eq!(
            unreadable.for_clients(),
            "cannot read short.jinja: entity not found"
        );
    }
}
