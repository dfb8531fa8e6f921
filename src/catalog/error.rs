//! Errors of finding and downloading models.

use std::io;
use std::path::{Path, PathBuf};

use super::ManifestError;
use incant_gguf::nearest::listed;

/// The reason why a model could not be found or downloaded.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The model is in the catalogue, but not on this machine.
    #[error("the model {name} is not on this machine: run `incant pull {name}`")]
    NotPulled {
        /// Its name.
        name: String,
    },
    /// A file is not the one that its manifest describes.
    #[error(
        "{path} has {found} bytes where the model {name} has {expected}: run `incant pull {name}` to replace it",
        path = path.display()
    )]
    WrongSize {
        /// The model.
        name: String,
        /// Its file.
        path: PathBuf,
        /// The file's size, in bytes.
        found: u64,
        /// The size in the manifest.
        expected: u64,
    },
    /// The name is neither in the catalogue nor a file's path.
    #[error(
        "there is no model {name:?}; there are {known}, or give the path of a .gguf file",
        known = listed(known)
    )]
    Unknown {
        /// The requested name.
        name: String,
        /// The names in the catalogue, the nearest first.
        known: Vec<String>,
    },
    /// The path does not lead to a file.
    #[error("{} is not a file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// A manifest in the cache cannot be read.
    #[error("{}: {error}", path.display())]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// The cause.
        error: ManifestError,
    },
    /// A manifest in the cache describes a model of another name than its own.
    #[error("{} describes the model {name}: call it {name}.toml", path.display())]
    Misnamed {
        /// The manifest.
        path: PathBuf,
        /// The model.
        name: String,
    },
    /// A manifest in the cache has the name of a shipped model.
    #[error("{}: the name {name} belongs to a model of incant's own", path.display())]
    Shadowed {
        /// The manifest.
        path: PathBuf,
        /// The model.
        name: String,
    },
    /// A file operation failed.
    #[error("cannot {action} {}: {error}", path.display())]
    Io {
        /// The operation.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        error: io::Error,
    },
    /// The disk has no space for the model.
    #[error(
        "no space left for the model {name} in {dir}: {missing} more bytes are needed (what was downloaded is kept; INCANT_MODELS names another folder)",
        dir = dir.display()
    )]
    DiskFull {
        /// The model.
        name: String,
        /// The cache.
        dir: PathBuf,
        /// The number of missing bytes.
        missing: u64,
    },
    /// Every source failed.
    #[error(
        "no source delivered the model {name}:\n{causes}{kept}",
        causes = lines(causes),
        kept = kept_line(*kept)
    )]
    NoSource {
        /// The model.
        name: String,
        /// One line for each source, in the order they were tried.
        causes: Vec<String>,
        /// The number of bytes kept for another try.
        kept: u64,
    },
    /// There is neither a home directory nor `INCANT_MODELS`.
    #[error("there is no home directory to keep models in: set INCANT_MODELS to a folder")]
    NoCacheDirectory,
}

impl CatalogError {
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CatalogError {
        let path = path.to_owned();
        move |error| CatalogError::Io {
            action,
            path,
            error,
        }
    }
}

fn lines(causes: &[String]) -> String {
    let lines: Vec<String> = causes.iter().map(|cause| format!("  {cause}")).collect();
    lines.join("\n")
}

fn kept_line(kept: u64) -> String {
    match kept {
        0 => String::new(),
        bytes => format!("\n  {bytes} bytes are kept; the next download resumes there"),
    }
}
