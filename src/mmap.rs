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

impl Map {
    /// Lets the system forget the part of the file that `bytes` is: to read it
    /// again is possible, but slow.
    ///
    /// # Panics
    /// `bytes` is not a part of this mapping.
    pub fn release(&self, bytes: &[u8]) {
        let start = (bytes.as_ptr() as usize).wrapping_sub(self.0.as_ptr() as usize);
        assert!(start <= self.0.len() && bytes.len() <= self.0.len() - start);
        #[cfg(target_os = "linux")]
        {
            // Whole pages only: the neighbours' stay.
            const PAGE: usize = 4096;
            let (first, last) = (
                start.next_multiple_of(PAGE),
                (start + bytes.len()) / PAGE * PAGE,
            );
            if first < last {
                // SAFETY: pages of a read-only mapping of a file come back
                // from the file, the same as they were.
                let advice = memmap2::UncheckedAdvice::DontNeed;
                let _ = unsafe { self.0.unchecked_advise_range(advice, first, last - first) };
            }
        }
    }
}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}
