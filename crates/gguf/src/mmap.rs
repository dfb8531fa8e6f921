//! Memory-mapped files: the only place that maps a file.
#![expect(unsafe_code)]

use std::fs::File;
use std::ops::Deref;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

/// A read-only mapping of a whole file.
///
/// incant maps only files that it never writes in place: downloads and saved
/// prefixes are written beside their final name and renamed, so a mapping
/// keeps the bytes it was opened with.
#[derive(Debug)]
pub struct Map {
    bytes: memmap2::Mmap,
    file: File,
}

/// The identity of a file by its metadata: as long as it stays the same, so do the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileIdentity {
    /// The device that the file is on.
    pub device: u64,
    /// The file's number on the device.
    pub inode: u64,
    /// Its size in bytes.
    pub size: u64,
    /// The time of the last write (mtime): seconds and nanoseconds of Unix time. Programs can set
    /// it.
    pub modified: (i64, i64),
    /// The time of the last change of its bytes, times, name or owner (ctime), likewise. Programs
    /// cannot set it.
    pub changed: (i64, i64),
}

impl FileIdentity {
    /// Returns the current identity of `file`; `None` on systems without inodes.
    pub fn of(file: &File) -> Option<FileIdentity> {
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            let metadata = file.metadata().ok()?;
            Some(FileIdentity {
                device: metadata.dev(),
                inode: metadata.ino(),
                size: metadata.size(),
                modified: (metadata.mtime(), metadata.mtime_nsec()),
                changed: (metadata.ctime(), metadata.ctime_nsec()),
            })
        }
        #[cfg(not(unix))]
        {
            let _ = file;
            None
        }
    }

    /// Returns whether the file has not changed for `duration` before `now`.
    pub fn unchanged_for(&self, duration: Duration, now: SystemTime) -> bool {
        let Ok(now) = now.duration_since(SystemTime::UNIX_EPOCH) else {
            return false;
        };
        let since = i128::try_from(now.as_nanos()).unwrap_or(i128::MAX)
            - (i128::from(self.changed.0) * 1_000_000_000 + i128::from(self.changed.1));
        u128::try_from(since).is_ok_and(|since| since >= duration.as_nanos())
    }
}

impl Map {
    /// Maps an open file.
    ///
    /// # Errors
    /// The system cannot map it.
    pub fn of(file: File) -> std::io::Result<Map> {
        // SAFETY: the mapping is read-only. Another process that truncates the
        // file could still fault a later read; that is the same contract every
        // memory-mapped model loader has, and nothing in incant does it.
        let bytes = unsafe { memmap2::Mmap::map(&file)? };
        Ok(Map { bytes, file })
    }

    /// Returns the current identity of the mapped file; `None` on systems without inodes.
    pub fn identity(&self) -> Option<FileIdentity> {
        FileIdentity::of(&self.file)
    }
}

impl Map {
    /// Lets the system drop the pages of `bytes`, a part of the file: reading them again is
    /// possible, but slow (`MADV_DONTNEED`).
    ///
    /// # Panics
    /// `bytes` is not a part of this mapping.
    pub fn release(&self, bytes: &[u8]) {
        let start = (bytes.as_ptr() as usize).wrapping_sub(self.bytes.as_ptr() as usize);
        assert!(start <= self.bytes.len() && bytes.len() <= self.bytes.len() - start);
        #[cfg(target_os = "linux")]
        {
            // Whole pages only: pages that are shared with other parts stay.
            const PAGE: usize = 4096;
            let (first, last) = (
                start.next_multiple_of(PAGE),
                (start + bytes.len()) / PAGE * PAGE,
            );
            if first < last {
                // SAFETY: dropped pages of a read-only file mapping are read from the file again,
                // unchanged.
                let advice = memmap2::UncheckedAdvice::DontNeed;
                let _ = unsafe {
                    self.bytes
                        .unchecked_advise_range(advice, first, last - first)
                };
            }
        }
    }
}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}
