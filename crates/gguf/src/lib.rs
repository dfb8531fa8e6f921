//! GGUF files: header, metadata and tensors, memory-mapped without copies.
//!
//! [`Gguf::open`] maps a file and validates everything that later reads rely on, so that
//! reading a tensor is a slice of the mapping and cannot fail because of the file's contents.
//! No tensor is copied, and long arrays of the metadata (a vocabulary of 262,144 strings) are
//! decoded only when they are iterated. A truncated, corrupt or hostile file is refused with a
//! one-line error.
//!
//! The format is specified in <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>;
//! versions 2 and 3, little-endian, are supported.
//!
//! Beside them stands what every crate needs for files and messages: [`open`] for files that a
//! person or a client names, [`atomic`] for files that are written, [`mmap`], [`digests`],
//! [`printable`] for text of unknown origin, and [`nearest`] for names. This crate knows no model,
//! no tensor library and no text encoding.

pub mod atomic;
pub mod digests;
mod error;
mod fingerprint;
mod metadata;
pub mod mmap;
pub mod nearest;
pub mod open;
mod parse;
pub mod printable;
mod types;
mod value;
mod write;

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::mmap::Map;
use crate::open::{Kind, Location};

pub use error::{GgufCause, GgufError};
pub use metadata::Metadata;
pub use types::TensorType;
pub use value::{Array, Strs, Value, ValueType};
pub use write::Writer;

/// The metadata key of a model's chat template.
pub const CHAT_TEMPLATE_KEY: &str = "tokenizer.chat_template";

/// The metadata key of the markers that turns of the chat template begin with, in files that
/// incant wrote, where these are texts and not control tokens.
pub const MARKERS_KEY: &str = "incant.chat_template.markers";

/// An open GGUF file.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    map: Arc<Map>,
    version: u32,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
}

/// The description of one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// The name, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// The shape, outermost dimension first (ggml's `ne` reversed): the weights of a linear
    /// layer are `[out, in]`.
    pub shape: Vec<usize>,
    /// The type in which the elements are stored.
    pub kind: TensorType,
    /// The offset of the data, in bytes from the start of the file.
    pub offset: usize,
    /// The size of the data in bytes.
    pub len: usize,
}

impl TensorInfo {
    /// The number of elements.
    pub fn elements(&self) -> usize {
        // Opening the file has checked that this does not overflow.
        self.shape.iter().product()
    }
}

/// A tensor and its bytes in the mapping.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// The name, shape and type.
    pub info: &'a TensorInfo,
    /// The data: rows of blocks, `info.len` bytes.
    pub data: &'a [u8],
}

impl Gguf {
    /// Maps the file at `path` and validates its header.
    ///
    /// # Errors
    /// The file cannot be read, is not a GGUF file of a supported version, or is inconsistent;
    /// see [`GgufCause`].
    pub fn open(path: &Path) -> Result<Gguf, GgufError> {
        let file = Location::of(path).file(Kind::MODEL);
        let file = file.map_err(|cause| GgufError::new(path, GgufCause::Io(cause)))?;
        Gguf::of_file(file, path)
    }

    /// Like [`open`](Self::open), for an open file; errors name it `path`.
    ///
    /// # Errors
    /// See [`open`](Self::open).
    pub fn of_file(file: File, path: &Path) -> Result<Gguf, GgufError> {
        let error = |cause| GgufError::new(path, cause);
        let map = Map::of(file).map_err(|cause| error(GgufCause::Io(cause)))?;
        let header = parse::parse(&map).map_err(error)?;
        let map = Arc::new(map);
        Ok(Gguf {
            path: path.to_owned(),
            map: Arc::clone(&map),
            version: header.version,
            metadata: Metadata::new(path.to_owned(), map, header.entries, header.by_key),
            tensors: header.tensors,
            by_name: header.by_name,
        })
    }

    /// The path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The format version, 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The size of the file in bytes.
    pub fn file_len(&self) -> usize {
        self.map.len()
    }

    /// The metadata.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Iterates over all tensors in file order.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &TensorInfo> {
        self.tensors.iter()
    }

    /// Returns the tensor called `name`, if it exists.
    pub fn find(&self, name: &str) -> Option<TensorView<'_>> {
        let info = &self.tensors[*self.by_name.get(name)?];
        Some(TensorView {
            info,
            data: &self.map[info.offset..info.offset + info.len],
        })
    }

    /// Returns the tensor called `name`.
    ///
    /// # Errors
    /// There is no such tensor; the error names it.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>, GgufError> {
        self.find(name)
            .ok_or_else(|| GgufError::new(&self.path, GgufCause::MissingTensor(name.to_owned())))
    }

    /// Checks that the file is a whole model and not one part of a split model.
    ///
    /// # Errors
    /// The file is a part, or `split.count` or `split.no` is not an unsigned integer.
    pub fn check_whole(&self) -> Result<(), GgufError> {
        let count = self.metadata.get_u64("split.count")?;
        let part = self.metadata.get_u64("split.no")?;
        match count {
            Some(count) if count > 1 => {
                let part = part.unwrap_or(0).saturating_add(1);
                Err(GgufError::new(&self.path, GgufCause::Split { part, count }))
            }
            _ => Ok(()),
        }
    }

    /// Releases the memory pages of tensor data, a part of [`TensorView::data`], that has been
    /// copied. The data can still be read.
    pub fn release(&self, data: &[u8]) {
        self.map.release(data);
    }
}
