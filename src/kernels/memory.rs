//! Memory for packed weights: page-aligned, zeroed, in huge pages where the
//! system gives them.

use std::ops::{Deref, DerefMut};

use memmap2::MmapMut;

/// A block of zeroed memory outside the allocator's heap.
///
/// Weights are read from end to end for every token. In pages of 4 KiB the
/// address translation alone costs a good part of the memory's bandwidth.
#[derive(Debug)]
pub struct Pages(Option<MmapMut>);

impl Pages {
    /// `len` bytes of zeros.
    ///
    /// # Errors
    /// The system has no room.
    pub fn zeroed(len: usize) -> std::io::Result<Pages> {
        if len == 0 {
            return Ok(Pages(None));
        }
        let map = MmapMut::map_anon(len)?;
        // Only a wish: without huge pages everything works, a little slower.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Pages(Some(map)))
    }
}

impl Deref for Pages {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}

impl DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.0.as_deref_mut().unwrap_or_default()
    }
}
