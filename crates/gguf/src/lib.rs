//! GGUF files: header, metadata and tensors, straight from the map.
//!
//! [`Gguf::open`] maps a file and checks everything it will later rely on, so
//! that reading a tensor is a slice of the map and cannot fail for a reason
//! inside the file. No tensor is copied, and long arrays of the metadata (a
//! vocabulary of 262,144 strings) stay in the file until somebody reads them.
//! A file that is cut off, corrupt or hostile is refused with one line.
//!
//! The format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>,
//! versions 2 and 3, little-endian.

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

/// What the file says of one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// Its shape, outermost dimension first (ggml's `ne` reversed): a linear
    /// layer's weights are `[out, in]`.
    pub shape: Vec<usize>,
    /// How its elements are stored.
    pub kind: TensorType,
    /// Where its data begins, in bytes from the start of the file.
    pub offset: usize,
    /// Its data's size in bytes.
    pub len: usize,
}

impl TensorInfo {
    /// How many elements it has.
    pub fn elements(&self) -> usize {
        // Checked not to overflow when the file was opened.
        self.shape.iter().product()
    }
}

/// A tensor and its bytes in the map.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// Name, shape, type.
    pub info: &'a TensorInfo,
    /// The data: rows of blocks, `info.len` bytes.
    pub data: &'a [u8],
}

impl Gguf {
    /// Maps the file at `path` and checks its header.
    ///
    /// # Errors
    /// The file cannot be read, is no GGUF of a supported version, or
    /// contradicts itself; see [`GgufCause`].
    pub fn open(path: &Path) -> Result<Gguf, GgufError> {
        let file = Location::of(path).file(Kind::MODEL);
        let file = file.map_err(|cause| GgufError::new(path, GgufCause::Io(cause)))?;
        Gguf::of_file(file, path)
    }

    /// [`open`](Self::open) for an open file, which errors call `path`.
    ///
    /// # Errors
    /// The same.
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

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The format's version, 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The file's size in bytes.
    pub fn file_len(&self) -> usize {
        self.map.len()
    }

    /// The key-value part.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Every tensor, in file order.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &TensorInfo> {
        self.tensors.iter()
    }

    /// The tensor called `name`, if there is one.
    pub fn find(&self, name: &str) -> Option<TensorView<'_>> {
        let info = &self.tensors[*self.by_name.get(name)?];
        Some(TensorView {
            info,
            data: &self.map[info.offset..info.offset + info.len],
        })
    }

    /// The tensor called `name`.
    ///
    /// # Errors
    /// There is none; the error names it.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>, GgufError> {
        self.find(name)
            .ok_or_else(|| GgufError::new(&self.path, GgufCause::MissingTensor(name.to_owned())))
    }

    /// Makes sure that the file is a whole model and not one part of several.
    ///
    /// # Errors
    /// It is a part, or `split.count` or `split.no` is no number.
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

    /// Says that tensor data, a part of [`TensorView::data`], has been copied
    /// and need not stay in memory. It can still be read.
    pub fn release(&self, data: &[u8]) {
        self.map.release(data);
    }
}
