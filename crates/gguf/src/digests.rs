//! A cache of file digests, from one run to the next, keyed by the files' identity (device, inode,
//! times).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::atomic::{self, Access};
use crate::mmap::FileIdentity;
use crate::open::{Kind, Location};

/// The minimum time since a file's last change before its digest is cached: longer than the
/// resolution of any file system's clock. A file that was changed twice within one tick, before and
/// after it was hashed, would have the same times.
const MIN_UNCHANGED: Duration = Duration::from_secs(3);

/// A cached digest with the identity of its file.
#[derive(Serialize, Deserialize)]
struct CachedDigest {
    file: FileIdentity,
    algorithm: String,
    /// In hexadecimal digits.
    digest: String,
}

/// A folder of cached digests of one kind. It contains a small file for each hashed file, named by
/// its device and inode.
pub struct Digests<'a> {
    /// Created when it is first needed.
    pub folder: &'a Path,
    /// The hash algorithm, such as `sha256`.
    pub algorithm: &'static str,
}

impl Digests<'_> {
    /// Returns the cached digest of exactly this file, in hexadecimal digits.
    pub fn recall(&self, file: &FileIdentity) -> Option<String> {
        let path = self.path(file);
        let text = Location::of(&path).read_text(Kind::NOTE).ok()?;
        let cached: CachedDigest = serde_json::from_str(&text).ok()?;
        (cached.file == *file && cached.algorithm == self.algorithm).then_some(cached.digest)
    }

    /// Caches the digest that was just computed for a file. `before` and `after` are the file's
    /// identity before and after it was read: the digest of a file that was changed meanwhile, or
    /// less than three seconds before, is not cached.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn remember(
        &self,
        before: FileIdentity,
        began: SystemTime,
        after: Option<FileIdentity>,
        digest: String,
    ) -> io::Result<()> {
        if after != Some(before) || !before.unchanged_for(MIN_UNCHANGED, began) {
            return Ok(());
        }
        let cached = CachedDigest {
            file: before,
            algorithm: self.algorithm.to_owned(),
            digest,
        };
        // An entry for the same inode is replaced, so that a rewritten file leaves no old entry
        // behind.
        fs::create_dir_all(self.folder)?;
        let bytes = serde_json::to_vec(&cached)?;
        atomic::replace(&self.path(&before), &bytes, Access::Owner)
    }

    /// Returns the path of a file's cached digest.
    pub(crate) fn path(&self, file: &FileIdentity) -> PathBuf {
        let name = format!("{:x}-{:x}.json", file.device, file.inode);
        self.folder.join(name)
    }
}
