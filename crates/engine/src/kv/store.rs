//! Prefixes on disk: the KV of constant prompts, kept across starts (prompt cache files).
//!
//! Each prefix is a safetensors file, named by a hash of everything its contents depend on: the
//! weights, the tokens, and the KV layout of the executor. It is written under a temporary name
//! and renamed, and is used only if its name, its metadata and the checksum of its data match
//! the request.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::thread;

use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use sha2::{Digest, Sha256};

use crate::exec::{AdapterId, Executor, SavedTensor, SequenceId};
use incant_gguf::atomic::{self, Access, UnfinishedFile};
use incant_gguf::mmap::Map;
use incant_gguf::open::{Kind, Location};

/// Incremented whenever the meaning of the files changes.
const FORMAT: &str = "2";

/// The prefix of the names of files that are still being written.
const UNFINISHED: &str = ".saving-";

const KEY: &str = "incant.prefix";
const CHECKSUM: &str = "incant.sha256";

/// A folder of saved prefixes of one model.
#[derive(Clone, Debug)]
pub struct PrefixStore {
    folder: PathBuf,
    /// The [`Gguf::fingerprint`](incant_gguf::Gguf::fingerprint) of the weights.
    weights: [u8; 32],
    /// The [`Executor::kv_format`].
    kv_format: String,
}

impl PrefixStore {
    /// Opens the saved prefixes in `folder` for these weights and this KV layout.
    pub fn new(folder: &Path, weights: [u8; 32], kv_format: String) -> PrefixStore {
        atomic::sweep(folder, UNFINISHED);
        PrefixStore {
            folder: folder.to_owned(),
            weights,
            kv_format,
        }
    }

    /// Returns the store of KV computed with the adapter of this fingerprint.
    pub fn under(&self, adapter: [u8; 32]) -> PrefixStore {
        let mut hash = Sha256::new();
        hash.update(self.weights);
        hash.update(adapter);
        PrefixStore {
            weights: hash.finalize().into(),
            ..self.clone()
        }
    }

    /// Returns the path of the file for the KV of `tokens`, whether it exists or not.
    pub fn path(&self, tokens: &[u32]) -> PathBuf {
        self.folder
            .join(format!("{}.safetensors", self.key(tokens)))
    }

    /// Whether a file for `tokens` exists.
    pub fn has(&self, tokens: &[u32]) -> bool {
        self.path(tokens).exists()
    }

    /// Restores a sequence of `tokens` if it was saved. An invalid file is ignored with a
    /// warning in the log.
    ///
    /// The sequence runs under `adapter`, which must be the adapter of this store.
    pub fn load(
        &self,
        tokens: &[u32],
        adapter: Option<AdapterId>,
        executor: &mut dyn Executor,
    ) -> Option<SequenceId> {
        let path = self.path(tokens);
        match self.read(&path, tokens, adapter, executor) {
            Ok(sequence) => sequence,
            Err(why) => {
                tracing::warn!("ignoring the saved prefix {}: {why}", path.display());
                None
            }
        }
    }

    fn read(
        &self,
        path: &Path,
        tokens: &[u32],
        adapter: Option<AdapterId>,
        executor: &mut dyn Executor,
    ) -> Result<Option<SequenceId>, String> {
        let map = match Location::of(path).file(Kind::PREFIX).and_then(Map::of) {
            Ok(map) => map,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.to_string()),
        };
        let invalid = |error: safetensors::SafeTensorError| error.to_string();
        let (_, metadata) = SafeTensors::read_metadata(&map).map_err(invalid)?;
        let metadata = metadata.metadata().clone().unwrap_or_default();
        if metadata.get(KEY) != Some(&self.key(tokens)) {
            return Err("it was saved for something else".to_owned());
        }
        let saved = SafeTensors::deserialize(&map).map_err(invalid)?;
        let data = saved.iter().map(|(name, view)| (name, view.data()));
        if metadata.get(CHECKSUM) != Some(&checksum(data)) {
            return Err("its checksum is wrong".to_owned());
        }
        executor
            .restore(adapter, tokens.len(), &saved)
            .map(Some)
            .map_err(|error| error.to_string())
    }

    /// Saves the KV of `tokens` on its own thread. A failure only makes the next start slower,
    /// and is logged.
    pub fn save_later(&self, tokens: &[u32], tensors: Vec<SavedTensor>) {
        let (path, key) = (self.path(tokens), self.key(tokens));
        let save = move || {
            if let Err(error) = write(&path, key, &tensors) {
                tracing::warn!("cannot keep the prefix {}: {error}", path.display());
            }
        };
        let spawned = thread::Builder::new()
            .name("save-prefix".to_owned())
            .spawn(save);
        if let Err(error) = spawned {
            tracing::warn!("cannot keep a prefix: {error}");
        }
    }

    fn key(&self, tokens: &[u32]) -> String {
        let mut hash = Sha256::new();
        for part in [FORMAT, env!("CARGO_PKG_VERSION"), &self.kv_format] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        hash.update(self.weights);
        for token in tokens {
            hash.update(token.to_le_bytes());
        }
        hex(&hash.finalize())
    }
}

/// Writes a file atomically.
fn write(path: &Path, key: String, tensors: &[SavedTensor]) -> io::Result<()> {
    let views: Vec<(&str, TensorView<'_>)> = tensors
        .iter()
        .map(|tensor| {
            TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes)
                .map(|view| (tensor.name.as_str(), view))
                .map_err(io::Error::other)
        })
        .collect::<io::Result<_>>()?;
    let data = tensors
        .iter()
        .map(|t| (t.name.as_str(), t.bytes.as_slice()));
    let metadata = HashMap::from([(KEY.to_owned(), key), (CHECKSUM.to_owned(), checksum(data))]);
    let bytes = safetensors::serialize(views, Some(metadata)).map_err(io::Error::other)?;

    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let file = UnfinishedFile::create(path, UNFINISHED, Access::Owner)?;
    file.file().write_all(&bytes)?;
    file.commit()
}

/// Computes SHA-256 over the names and data of tensors, independent of their order.
fn checksum<'a>(tensors: impl Iterator<Item = (&'a str, &'a [u8])>) -> String {
    let mut tensors: Vec<_> = tensors.collect();
    tensors.sort_unstable_by_key(|(name, _)| *name);
    let mut hash = Sha256::new();
    for (name, data) in tensors {
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name);
        hash.update((data.len() as u64).to_le_bytes());
        hash.update(data);
    }
    hex(&hash.finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::{PrefixStore, UNFINISHED};

    #[test]
    fn what_a_killed_process_left_is_removed_and_what_is_being_written_stays() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        let [left, written] = ["aaaaaa", "bbbbbb"].map(|name| path(&format!("{UNFINISHED}{name}")));
        let other = path("0123.safetensors");
        for path in [&left, &written, &other] {
            fs::write(path, "half of a prefix").expect("it can be written");
        }
        let writer = File::open(&written).expect("it is there");
        writer.lock().expect("nobody else has a lock");
        PrefixStore::new(folder.path(), [0; 32], "any".to_owned());
        assert!(!left.exists());
        assert!(written.exists() && other.exists());
        drop(writer);
        PrefixStore::new(folder.path(), [0; 32], "any".to_owned());
        assert!(!written.exists() && other.exists());
    }

    #[test]
    fn a_folder_that_is_not_there_yet_holds_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        PrefixStore::new(&folder.path().join("none"), [0; 32], "any".to_owned());
    }
}
