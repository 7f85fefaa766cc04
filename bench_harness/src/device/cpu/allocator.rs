//! An allocator that counts: its high-water mark is the memory metric that gates, because it repeats exactly.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

static CURRENT_BYTES: AtomicUsize = AtomicUsize::new(0);
static PEAK_BYTES: AtomicUsize = AtomicUsize::new(0);
static INSTALLED: AtomicBool = AtomicBool::new(false);

/// The system's allocator with a count of live bytes. A worker's binary installs it with `#[global_allocator]`.
pub struct CountingAllocator;

fn grew(bytes: usize) {
    let now = CURRENT_BYTES.fetch_add(bytes, Relaxed) + bytes;
    PEAK_BYTES.fetch_max(now, Relaxed);
    INSTALLED.store(true, Relaxed);
}

fn shrank(bytes: usize) {
    CURRENT_BYTES.fetch_sub(bytes, Relaxed);
}

// SAFETY: every call is passed on to `System` unchanged; only counters are touched besides.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        let pointer = unsafe { System.alloc(layout) };
        if !pointer.is_null() {
            grew(layout.size());
        }
        pointer
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        let pointer = unsafe { System.alloc_zeroed(layout) };
        if !pointer.is_null() {
            grew(layout.size());
        }
        pointer
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) };
        shrank(layout.size());
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller's promise.
        let moved = unsafe { System.realloc(pointer, layout, new_size) };
        if !moved.is_null() {
            // Both blocks may live while the bytes are copied: counting the new one first keeps the mark honest.
            grew(new_size);
            shrank(layout.size());
        }
        moved
    }
}

/// Live bytes; None where the counting allocator is not installed.
pub fn current_bytes() -> Option<usize> {
    INSTALLED.load(Relaxed).then(|| CURRENT_BYTES.load(Relaxed))
}

/// Runs `work` and returns with its result the high-water mark of live bytes while it ran.
pub fn peak_during<T>(work: impl FnOnce() -> T) -> (T, Option<usize>) {
    PEAK_BYTES.store(CURRENT_BYTES.load(Relaxed), Relaxed);
    let result = work();
    let peak = INSTALLED.load(Relaxed).then(|| PEAK_BYTES.load(Relaxed));
    (result, peak)
}
