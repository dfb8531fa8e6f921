//! Allocations for packed weights: zeroed, in transparent huge pages where the system provides
//! them.

use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;

use memmap2::MmapMut;

/// The size of a huge page on x86-64 and on ARM with 4 KiB pages.
const HUGE_PAGE: usize = 2 << 20;
/// The minimum size of a mapping.
const MIN_MAPPING: usize = 64 << 20;
/// The size of a cache line, to which allocations are aligned.
const CACHE_LINE: usize = 64;

/// A bump allocator outside the heap, which places allocations side by side in huge pages.
///
/// All weights are read for every token. With pages of 4 KiB, address translation (TLB misses)
/// alone costs a considerable part of the memory bandwidth; a single matrix may be too small
/// for a huge page, but a model is not.
#[derive(Debug, Default)]
pub struct Arena {
    mapping: Option<Arc<Mapping>>,
    used: usize,
}

/// One mapping, shared by its allocations.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    len: usize,
    _map: MmapMut,
}

// SAFETY: the pointer refers to the mapping that is stored beside it.
unsafe impl Send for Mapping {}
// SAFETY: nothing reads or writes through a shared `Mapping`; allocations do, each within its own
// bounds.
unsafe impl Sync for Mapping {}

impl Arena {
    /// Allocates `len` zeroed bytes.
    ///
    /// # Errors
    /// The system is out of memory.
    pub fn zeroed(&mut self, len: usize) -> io::Result<Allocation> {
        let mapping = match &self.mapping {
            Some(mapping) if len <= mapping.len - self.used => Arc::clone(mapping),
            _ => {
                let mapping = Arc::new(Mapping::new(len.max(MIN_MAPPING))?);
                self.used = 0;
                self.mapping = Some(Arc::clone(&mapping));
                mapping
            }
        };
        let at = self.used;
        self.used = (at + len).next_multiple_of(CACHE_LINE).min(mapping.len);
        Ok(Allocation { mapping, at, len })
    }
}

impl Mapping {
    fn new(len: usize) -> io::Result<Mapping> {
        // Map more than requested, so that the start can be aligned to a huge page. Memory that
        // is never touched is never backed.
        let with_more = |len: usize| Some((len, len.checked_add(HUGE_PAGE)?));
        let (len, mapped) = len
            .checked_next_multiple_of(HUGE_PAGE)
            .and_then(with_more)
            .ok_or(io::ErrorKind::OutOfMemory)?;
        let mut map = MmapMut::map_anon(mapped)?;
        // A hint only: without huge pages everything works, but slower.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        let before = map.as_ptr().align_offset(HUGE_PAGE);
        let start = NonNull::from(&mut map[before..before + len]).cast();
        Ok(Mapping {
            start,
            len,
            _map: map,
        })
    }
}

/// An allocation from an [`Arena`].
#[derive(Debug)]
pub struct Allocation {
    mapping: Arc<Mapping>,
    at: usize,
    len: usize,
}

impl Deref for Allocation {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the allocation is within the mapping, which is kept alive, and is handed out
        // once.
        unsafe { slice::from_raw_parts(self.mapping.start.as_ptr().add(self.at), self.len) }
    }
}

impl DerefMut for Allocation {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed mutably.
        unsafe { slice::from_raw_parts_mut(self.mapping.start.as_ptr().add(self.at), self.len) }
    }
}

impl Allocation {
    /// The memory as 16-bit integers.
    pub fn as_u16(&self) -> &[u16] {
        // SAFETY: any bits are a valid `u16`.
        let (before, elements, _) = unsafe { self.align_to::<u16>() };
        assert!(before.is_empty(), "allocations begin on a cache line");
        elements
    }

    /// The memory as mutable 16-bit integers.
    pub fn as_u16_mut(&mut self) -> &mut [u16] {
        // SAFETY: any bits are a valid `u16`, and any `u16` is valid bytes.
        let (before, elements, _) = unsafe { self.align_to_mut::<u16>() };
        assert!(before.is_empty(), "allocations begin on a cache line");
        elements
    }
}

#[cfg(test)]
mod tests {
    use super::{Arena, HUGE_PAGE, MIN_MAPPING};

    #[test]
    fn more_than_there_can_be_is_refused() {
        for len in [usize::MAX, usize::MAX - HUGE_PAGE, usize::MAX / 2] {
            assert!(Arena::default().zeroed(len).is_err(), "{len}");
        }
    }

    #[test]
    fn pieces_are_zeros_and_do_not_meet() {
        let mut arena = Arena::default();
        let sizes = [
            1,
            63,
            64,
            65,
            0,
            MIN_MAPPING / 2,
            MIN_MAPPING / 2,
            MIN_MAPPING + 1,
            5,
        ];
        let mut pieces: Vec<_> = sizes
            .iter()
            .map(|&size| arena.zeroed(size).expect("there is room"))
            .collect();
        for (index, piece) in pieces.iter_mut().enumerate() {
            assert_eq!(piece.as_ptr() as usize % 64, 0);
            assert!(piece.iter().all(|&byte| byte == 0), "piece {index}");
            piece.fill(index as u8 + 1);
        }
        drop(arena);
        for (index, (piece, size)) in pieces.iter().zip(sizes).enumerate() {
            assert_eq!(piece.len(), size);
            assert!(piece.iter().all(|&byte| byte == index as u8 + 1));
        }
    }
}
