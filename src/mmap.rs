//! The one place that maps a file into memory.
#![allow(unsafe_code)]

use std::fs::File;
use std::ops::Deref;
use std::path::Path;

/// A read-only mapping of a whole file.
///
/// incant maps only files that it never writes in place: downloads and saved
/// prefixes are written beside their final name and renamed, so a mapping
/// keeps the bytes it was opened with.
#[derive(Debug)]
pub struct Map(memmap2::Mmap);

impl Map {
    /// Maps `path` for reading.
    pub fn open(path: &Path) -> std::io::Result<Map> {
        let file = File::open(path)?;
        // SAFETY: the mapping is read-only. Another process that truncates the
        // file could still fault a later read; that is the same contract every
        // memory-mapped model loader has, and nothing in incant does it.
        Ok(Map(unsafe { memmap2::Mmap::map(&file)? }))
    }
}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}
