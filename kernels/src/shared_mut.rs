//! One slice for several writers.

/// A slice that several threads write at places that do not overlap.
pub(crate) struct SharedMut<T>(*mut T, usize);

impl<T> SharedMut<T> {
    /// Shares a slice.
    pub(crate) fn new(slice: &mut [T]) -> Self {
        SharedMut(slice.as_mut_ptr(), slice.len())
    }

    /// # Safety
    /// No two live results may overlap.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn slice(&self, start: usize, length: usize) -> &mut [T] {
        debug_assert!(start + length <= self.1);
        // SAFETY: in bounds, and disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), length) }
    }
}

// SAFETY: access goes through `slice`, whose caller promises disjointness.
unsafe impl<T: Send> Send for SharedMut<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedMut<T> {}
