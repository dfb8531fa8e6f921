//! Errors of reading a GGUF file.

use std::path::{Path, PathBuf};

/// The error of a GGUF file that cannot be used; it displays as one line with the file and the
/// cause.
#[derive(Debug, thiserror::Error)]
#[error("{}: {cause}", path.display())]
pub struct GgufError {
    path: PathBuf,
    // Part of the message already, so not a `source`: a report would repeat it.
    cause: GgufCause,
}

impl GgufError {
    /// An error with `cause` for the file at `path`.
    pub fn new(path: &Path, cause: GgufCause) -> GgufError {
        GgufError {
            path: path.to_owned(),
            cause,
        }
    }

    /// The path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The cause, without the path.
    pub fn cause(&self) -> &GgufCause {
        &self.cause
    }
}

/// The reasons why a GGUF file cannot be used.
///
/// Names from the file are displayed escaped, so that a hostile name can neither break the line
/// nor send control sequences to the terminal.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GgufCause {
    /// The file could not be opened or mapped.
    #[error("{0}")]
    Io(std::io::Error),
    /// The file does not begin with the magic bytes `GGUF`.
    #[error("not a GGUF file (it begins with {})", start(.0))]
    NotGguf(Vec<u8>),
    /// The file is big-endian.
    #[error("a big-endian GGUF file; only little-endian files are supported")]
    BigEndian,
    /// The format version is neither 2 nor 3.
    #[error("GGUF version {0} is not supported (only 2 and 3 are)")]
    Version(u32),
    /// The file is shorter than its header requires.
    #[error(
        "the file is cut off: {what} needs {needed} bytes at offset {offset}, the file has {len}"
    )]
    Truncated {
        /// The item being read.
        what: String,
        /// The offset where the item begins, in bytes.
        offset: u64,
        /// The size of the item in bytes.
        needed: u64,
        /// The size of the file in bytes.
        len: u64,
    },
    /// A count is larger than the file could hold.
    #[error("the file claims {count} {what}, more than its {len} bytes can hold")]
    Count {
        /// The counted items.
        what: String,
        /// The claimed count.
        count: u64,
        /// The size of the file in bytes.
        len: u64,
    },
    /// A string is not valid UTF-8.
    #[error("{what} is not valid UTF-8")]
    Utf8 {
        /// The string, such as `the name of tensor 3`.
        what: String,
    },
    /// A metadata value has a type that GGUF does not define.
    #[error("metadata key `{}` has the unknown value type {id}", .key.escape_debug())]
    ValueType {
        /// The key.
        key: String,
        /// The id of the type in the file.
        id: u32,
    },
    /// An array holds arrays.
    #[error("metadata key `{}` is an array of arrays, which is not supported", .0.escape_debug())]
    NestedArray(String),
    /// A boolean is neither 0 nor 1.
    #[error("metadata key `{}` holds a boolean that is neither 0 nor 1", .0.escape_debug())]
    Bool(String),
    /// Two metadata entries have the same key.
    #[error("metadata key `{}` appears twice", .0.escape_debug())]
    DuplicateKey(String),
    /// Two tensors have the same name.
    #[error("tensor `{}` appears twice", .0.escape_debug())]
    DuplicateTensor(String),
    /// `general.alignment` is not a power of two, or is below the format's minimum of 8.
    #[error("general.alignment is {0}, not a power of two from 8 on")]
    Alignment(u64),
    /// The description of a tensor is invalid.
    #[error("tensor `{}` {problem}", .name.escape_debug())]
    Tensor {
        /// The name of the tensor.
        name: String,
        /// The problem, as the rest of a sentence that begins with the tensor's name.
        problem: String,
    },
    /// A required tensor is missing.
    #[error("tensor `{0}` is missing")]
    MissingTensor(String),
    /// A required metadata key is missing.
    #[error("metadata key `{0}` is missing")]
    MissingKey(String),
    /// The file is one part of a model that is split into several files.
    #[error(
        "part {part} of {count} of a split model; merge the parts into one file first \
         (llama-gguf-split --merge)"
    )]
    Split {
        /// The number of this part, counted from 1.
        part: u64,
        /// The number of parts.
        count: u64,
    },
    /// A metadata key holds a value of another type than required.
    #[error("metadata key `{key}` should be {expected} but is {found}")]
    WrongType {
        /// The key.
        key: String,
        /// The required type.
        expected: &'static str,
        /// The value found.
        found: String,
    },
}

/// Displays the first bytes of a file that is not GGUF.
fn start(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        "nothing: it is empty".to_owned()
    } else {
        format!("\"{}\"", bytes.escape_ascii())
    }
}
