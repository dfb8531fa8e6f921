//! Slices of which several threads write disjoint parts.

use std::marker::PhantomData;
use std::ops::Range;
use std::slice;

/// A mutable slice that threads may share, for the phases of a program that write disjoint
/// parts of one buffer.
#[derive(Debug)]
pub struct SharedSlice<'a, T> {
    start: *mut T,
    len: usize,
    borrow: PhantomData<&'a mut [T]>,
}

impl<T> Clone for SharedSlice<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for SharedSlice<'_, T> {}

// SAFETY: it stands for both `&mut [T]` and `&[T]`, which may be sent if `T` is `Send` and
// `Sync`. The callers of its methods guarantee that no two threads write and use the same
// elements.
unsafe impl<T: Send + Sync> Send for SharedSlice<'_, T> {}
// SAFETY: a shared reference allows no more than a copy does; see above.
unsafe impl<T: Send + Sync> Sync for SharedSlice<'_, T> {}

impl<'a, T> From<&'a mut [T]> for SharedSlice<'a, T> {
    fn from(slice: &'a mut [T]) -> Self {
        SharedSlice {
            start: slice.as_mut_ptr(),
            len: slice.len(),
            borrow: PhantomData,
        }
    }
}

impl<'a, T> SharedSlice<'a, T> {
    /// Returns a part of the slice for reading.
    ///
    /// # Safety
    /// While the result is in use, no overlapping result of [`SharedSlice::slice_mut`] may be
    /// in use on any thread.
    ///
    /// # Panics
    /// The range is not within the slice.
    pub unsafe fn slice(&self, range: Range<usize>) -> &'a [T] {
        let start = self.part(&range);
        // SAFETY: the range is within the slice that this was created from, which is borrowed
        // for `'a`; the caller guarantees that no thread writes to it.
        unsafe { slice::from_raw_parts(start, range.len()) }
    }

    /// Returns a part of the slice for writing.
    ///
    /// # Safety
    /// While the result is in use, no other overlapping result of this method or of
    /// [`SharedSlice::slice`] may be in use on any thread.
    ///
    /// # Panics
    /// The range is not within the slice.
    pub unsafe fn slice_mut(&self, range: Range<usize>) -> &'a mut [T] {
        let start = self.part(&range);
        // SAFETY: the range is within the slice that this was created from, which is mutably
        // borrowed for `'a`; the caller guarantees that nothing else uses this part.
        unsafe { slice::from_raw_parts_mut(start, range.len()) }
    }

    /// Returns the start of a range after checking that it is within the slice.
    fn part(&self, range: &Range<usize>) -> *mut T {
        assert!(
            range.start <= range.end && range.end <= self.len,
            "{range:?} is not within a slice of {}",
            self.len
        );
        // SAFETY: the offset is at most one past the end of the slice.
        unsafe { self.start.add(range.start) }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use super::SharedSlice;

    #[test]
    fn threads_write_different_parts_of_one_slice() {
        let mut numbers = vec![0; 100];
        let shared = SharedSlice::from(numbers.as_mut_slice());
        std::thread::scope(|scope| {
            for part in 0..4 {
                scope.spawn(move || {
                    // SAFETY: the parts do not overlap.
                    let part = unsafe { shared.slice_mut(part * 25..(part + 1) * 25) };
                    part.fill(part.len());
                });
            }
        });
        // SAFETY: the threads have ended.
        assert_eq!(unsafe { shared.slice(0..100) }, [25; 100]);
    }

    #[test]
    fn a_range_beyond_the_slice_is_refused() {
        let reach = |start, end| {
            catch_unwind(|| {
                let mut numbers = [1u8, 2, 3];
                let shared = SharedSlice::from(numbers.as_mut_slice());
                // SAFETY: nothing else uses the elements.
                unsafe { shared.slice_mut(start..end) }.len()
            })
            .ok()
        };
        assert_eq!(reach(0, 3), Some(3));
        assert_eq!(reach(3, 3), Some(0));
        assert_eq!(reach(0, 4), None);
        assert_eq!(reach(4, 4), None);
        assert_eq!(reach(2, 1), None);
        assert_eq!(reach(usize::MAX, 1), None);
    }
}
