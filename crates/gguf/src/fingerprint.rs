//! The hash that tells weights apart, and where it is remembered.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::SystemTime;

use super::Gguf;
use crate::digests::Digests;
use crate::mmap::Map;

/// The bytes that are hashed before their pages are let go.
const PART: usize = 8 << 20;

impl Gguf {
    /// A hash that tells weights apart: BLAKE3 over every byte of the file. Reads all of
    /// it, at some gigabytes per second where it is in memory.
    pub fn fingerprint(&self) -> [u8; 32] {
        hash(&self.map)
    }

    /// [`fingerprint`](Self::fingerprint), which `folder` remembers from one start to the
    /// next by what the file system says of the file: device, inode, size, and the times
    /// of the last changes of its bytes and of its entry. A file that was changed less
    /// than three seconds ago is not remembered, nor is anything where the system gives
    /// no inodes. If the folder cannot be written, the log says so.
    pub fn known_fingerprint(&self, folder: &Path) -> [u8; 32] {
        known(&self.map, &self.path, folder)
    }

    /// [`known_fingerprint`](Self::known_fingerprint) on a thread of its own, beside the
    /// packing of the weights.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn begin_fingerprint(&self, folder: &Path) -> io::Result<JoinHandle<[u8; 32]>> {
        let (map, path) = (Arc::clone(&self.map), self.path.clone());
        let folder = folder.to_owned();
        thread::Builder::new()
            .name("fingerprint".to_owned())
            .spawn(move || known(&map, &path, &folder))
    }
}

fn hash(map: &Map) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for part in map.chunks(PART) {
        hasher.update(part);
        // Packing lets go of what it has read, too: the file stays out of the process's
        // memory.
        map.release(part);
    }
    hasher.finalize().into()
}

fn known(map: &Map, path: &Path, folder: &Path) -> [u8; 32] {
    let Some(file) = map.identity() else {
        return hash(map);
    };
    let digests = Digests {
        folder,
        algorithm: "blake3",
    };
    let recalled = digests.recall(&file);
    if let Some(known) = recalled.and_then(|digest| blake3::Hash::from_hex(digest).ok()) {
        return known.into();
    }
    let began = SystemTime::now();
    let found = hash(map);
    let digest = blake3::Hash::from_bytes(found).to_hex().to_string();
    if let Err(error) = digests.remember(file, began, map.identity(), digest) {
        tracing::warn!(
            "the hash of {} is computed anew at each start: cannot write {}: {error}",
            path.display(),
            digests.path(&file).display()
        );
    }
    found
}
