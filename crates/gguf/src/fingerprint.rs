//! The fingerprint of a weights file: a BLAKE3 hash, cached on disk between starts.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::SystemTime;

use super::Gguf;
use crate::digests::Digests;
use crate::mmap::Map;

/// The number of bytes that are hashed before their memory pages are released.
const BYTES_PER_PART: usize = 8 << 20;

impl Gguf {
    /// Returns the BLAKE3 hash of all bytes of the file, which identifies the weights. Reads
    /// the whole file, at a few gigabytes per second if it is in the page cache.
    pub fn fingerprint(&self) -> [u8; 32] {
        hash(&self.map)
    }

    /// Returns [`fingerprint`](Self::fingerprint), cached in `folder` across starts. The cache
    /// key is the file's device, inode, size, modification time and change time. The hash is
    /// not cached for a file that was changed less than three seconds ago, nor on systems
    /// without inodes. A folder that cannot be written is logged as a warning.
    pub fn known_fingerprint(&self, folder: &Path) -> [u8; 32] {
        known(&self.map, &self.path, folder)
    }

    /// Computes [`known_fingerprint`](Self::known_fingerprint) on its own thread, while the
    /// weights are being packed.
    ///
    /// # Errors
    /// The thread cannot be spawned.
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
    for part in map.chunks(BYTES_PER_PART) {
        hasher.update(part);
        // Packing releases the pages it has read, too, so the file does not stay in the
        // process's resident memory.
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
