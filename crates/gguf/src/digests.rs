//! Digests of files, remembered from one run to the next by what the file system says of
//! the files.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::mmap::FileIdentity;
use crate::open::{Kind, Location};

/// How long a file must have been left alone before its digest is remembered: longer than
/// the steps of any file system's clock. A file that was changed within one step before
/// and after it was hashed would have the same times both times.
const SETTLED: Duration = Duration::from_secs(3);

/// A remembered digest with all that it was found for.
#[derive(Serialize, Deserialize)]
struct Kept {
    file: FileIdentity,
    algorithm: String,
    /// Hexadecimal digits.
    digest: String,
}

/// A folder that remembers digests of one kind. It has a small file for each hashed file,
/// named by its device and inode.
pub struct Digests<'a> {
    /// Made when it is first needed.
    pub folder: &'a Path,
    /// How they are computed, such as `sha256`.
    pub algorithm: &'static str,
}

impl Digests<'_> {
    /// The digest that was found for exactly this file, in hexadecimal digits.
    pub fn recall(&self, file: &FileIdentity) -> Option<String> {
        let path = self.path(file);
        let text = Location::of(&path).read_text(Kind::NOTE).ok()?;
        let kept: Kept = serde_json::from_str(&text).ok()?;
        (kept.file == *file && kept.algorithm == self.algorithm).then_some(kept.digest)
    }

    /// Remembers the digest that was just found for a file. `before` and `after` are the
    /// file's identity before and after it was read: a file that was changed meanwhile, or
    /// less than three seconds before, is not remembered.
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
        if after != Some(before) || !before.settled(began, SETTLED) {
            return Ok(());
        }
        let kept = Kept {
            file: before,
            algorithm: self.algorithm.to_owned(),
            digest,
        };
        // Whole or not at all. One for the same inode is replaced, so that a file that is
        // written anew leaves nothing behind.
        fs::create_dir_all(self.folder)?;
        let mut file = tempfile::Builder::new()
            .prefix(".writing-")
            .tempfile_in(self.folder)?;
        file.write_all(&serde_json::to_vec(&kept)?)?;
        let persisted = file.persist(self.path(&before));
        persisted.map(drop).map_err(|error| error.error)
    }

    /// Where the digest of a file is kept.
    pub(crate) fn path(&self, file: &FileIdentity) -> PathBuf {
        let name = format!("{:x}-{:x}.json", file.device, file.inode);
        self.folder.join(name)
    }
}
