//! What can be wrong with a GGUF file.

use std::path::{Path, PathBuf};

/// A GGUF file cannot be used; one line that names the file and the cause.
#[derive(Debug, thiserror::Error)]
#[error("{}: {cause}", path.display())]
pub struct GgufError {
    path: PathBuf,
    // Part of the message already, so not a `source`: a report would repeat it.
    cause: GgufCause,
}

impl GgufError {
    /// Says of the file at `path` what is wrong.
    pub fn new(path: &Path, cause: GgufCause) -> GgufError {
        GgufError {
            path: path.to_owned(),
            cause,
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is wrong with it.
    pub fn cause(&self) -> &GgufCause {
        &self.cause
    }
}

/// Why a GGUF file cannot be used.
///
/// Names out of the file are shown escaped, so that a hostile one cannot break
/// the line or reach the terminal.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GgufCause {
    /// The file could not be opened or mapped.
    #[error("{0}")]
    Io(std::io::Error),
    /// It does not begin with `GGUF`.
    #[error("not a GGUF file (it begins with {})", start(.0))]
    NotGguf(Vec<u8>),
    /// It was written for a big-endian machine.
    #[error("a big-endian GGUF file; only little-endian files are supported")]
    BigEndian,
    /// Neither version 2 nor 3.
    #[error("GGUF version {0} is not supported (only 2 and 3 are)")]
    Version(u32),
    /// The file ends too early.
    #[error(
        "the file is cut off: {what} needs {needed} bytes at offset {offset}, the file has {len}"
    )]
    Truncated {
        /// What was being read.
        what: String,
        /// Where it begins, in bytes.
        offset: u64,
        /// Its size in bytes.
        needed: u64,
        /// The file's size in bytes.
        len: u64,
    },
    /// A count that the file is too small to hold.
    #[error("the file claims {count} {what}, more than its {len} bytes can hold")]
    Count {
        /// What is counted.
        what: String,
        /// How many the file claims.
        count: u64,
        /// The file's size in bytes.
        len: u64,
    },
    /// A string that is not UTF-8.
    #[error("{what} is not valid UTF-8")]
    Utf8 {
        /// Which string.
        what: String,
    },
    /// A metadata value of a type that GGUF does not have.
    #[error("metadata key `{}` has the unknown value type {id}", .key.escape_debug())]
    ValueType {
        /// The key.
        key: String,
        /// The type's id in the file.
        id: u32,
    },
    /// An array of arrays.
    #[error("metadata key `{}` is an array of arrays, which is not supported", .0.escape_debug())]
    NestedArray(String),
    /// A boolean that is neither 0 nor 1.
    #[error("metadata key `{}` holds a boolean that is neither 0 nor 1", .0.escape_debug())]
    Bool(String),
    /// Two metadata entries with one key.
    #[error("metadata key `{}` appears twice", .0.escape_debug())]
    DuplicateKey(String),
    /// Two tensors with one name.
    #[error("tensor `{}` appears twice", .0.escape_debug())]
    DuplicateTensor(String),
    /// `general.alignment` is not a power of two, or below the format's least.
    #[error("general.alignment is {0}, not a power of two from 8 on")]
    Alignment(u64),
    /// Something about one tensor does not hold.
    #[error("tensor `{}` {problem}", .name.escape_debug())]
    Tensor {
        /// The tensor.
        name: String,
        /// What is wrong, as the rest of a sentence.
        problem: String,
    },
    /// A tensor that is needed is not there.
    #[error("tensor `{0}` is missing")]
    MissingTensor(String),
    /// A metadata key that is needed is not there.
    #[error("metadata key `{0}` is missing")]
    MissingKey(String),
    /// One file of a model that is split into several.
    #[error(
        "part {part} of {count} of a split model; merge the parts into one file first \
         (llama-gguf-split --merge)"
    )]
    Split {
        /// Which part, from 1.
        part: u64,
        /// How many there are.
        count: u64,
    },
    /// A metadata key holds something else than is needed.
    #[error("metadata key `{key}` should be {expected} but is {found}")]
    WrongType {
        /// The key.
        key: String,
        /// What was asked for.
        expected: &'static str,
        /// What is there.
        found: String,
    },
}

/// The first bytes of a file that is not GGUF, for the eye.
fn start(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        "nothing: it is empty".to_owned()
    } else {
        format!("\"{}\"", bytes.escape_ascii())
    }
}
