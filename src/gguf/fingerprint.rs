//! The hash that tells weights apart, and where it is remembered.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::Gguf;
use crate::mmap::{FileIdentity, Map};
use crate::open::{Kind, Location};

/// The bytes that are hashed before their pages are let go.
const PART: usize = 8 << 20;

/// How long a file must have been left alone before its hash is remembered: longer than
/// the steps of any file system's clock. A file that was changed within one step before
/// and after it was hashed would have the same times both times.
const SETTLED: Duration = Duration::from_secs(3);

/// A remembered hash with all that it was found for.
#[derive(Serialize, Deserialize)]
struct Kept {
    file: FileIdentity,
    /// BLAKE3 of all its bytes, in hexadecimal digits.
    blake3: String,
}

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
    let kept = folder.join(format!("{:x}-{:x}.json", file.device, file.inode));
    if let Some(known) = recall(&kept, &file) {
        return known;
    }
    let settled = file.settled(SystemTime::now(), SETTLED);
    let found = hash(map);
    // A write to the file in the meantime changes its timestamps.
    if settled
        && map.identity() == Some(file)
        && let Err(error) = remember(&kept, file, &found)
    {
        tracing::warn!(
            "the hash of {} is computed anew at each start: cannot write {}: {error}",
            path.display(),
            kept.display()
        );
    }
    found
}

/// What was remembered for exactly this file.
fn recall(path: &Path, file: &FileIdentity) -> Option<[u8; 32]> {
    let text = Location::of(path).read_text(Kind::NOTE).ok()?;
    let kept: Kept = serde_json::from_str(&text).ok()?;
    let found = blake3::Hash::from_hex(kept.blake3).ok()?;
    (kept.file == *file).then(|| found.into())
}

/// Writes the file whole or not at all. One for the same inode is replaced, so that a
/// model that is written anew leaves nothing behind.
fn remember(path: &PathBuf, file: FileIdentity, found: &[u8; 32]) -> io::Result<()> {
    let kept = Kept {
        file,
        blake3: blake3::Hash::from_bytes(*found).to_hex().to_string(),
    };
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut file = tempfile::Builder::new()
        .prefix(".writing-")
        .tempfile_in(folder)?;
    file.write_all(&serde_json::to_vec(&kept)?)?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}
