//! Emptying caches before a cold sample.
//!
//! Two things are done, because either alone leaves something warm. The lines of the case's own tensors are evicted one
//! by one from every level, which is exact whatever the size of the last-level cache (a virtual machine may show its
//! host's 480 MB, and a buffer of twice that would cost a tenth of a second a sample). Then each thread sweeps a private
//! buffer, which pushes out what has no known address (workspaces, stacks): of twice the last-level cache where that is
//! small, else of twice the second level. Where the processor cannot evict a line on request, the sweep of twice the
//! last-level cache is all there is.

use attn_kernels::tensor::TensorSet;
use rayon::prelude::*;

use super::cache::CacheSizes;

/// A last-level cache up to this size is swept whole.
const SWEPT_CACHE_BYTES: u64 = 64 << 20;
/// Swept per thread where the second level's size is unknown.
const DEFAULT_L2_BYTES: u64 = 2 << 20;

/// A way to empty caches.
pub struct CacheFlusher {
    sweep: Vec<u64>,
    evicts_lines: bool,
}

impl CacheFlusher {
    /// Sized to these caches for `threads` threads.
    pub fn new(caches: CacheSizes, threads: usize) -> Self {
        let evicts_lines = cfg!(target_arch = "x86_64");
        let last_level = caches.l3.or(caches.l2).unwrap_or(SWEPT_CACHE_BYTES);
        let swept_bytes = if evicts_lines && last_level > SWEPT_CACHE_BYTES {
            2 * caches.l2.unwrap_or(DEFAULT_L2_BYTES) * threads as u64
        } else {
            2 * last_level
        };
        CacheFlusher { sweep: vec![1; (swept_bytes / 8) as usize], evicts_lines }
    }

    /// Memory that the sweep takes.
    pub fn bytes(&self) -> usize {
        std::mem::size_of_val(&self.sweep[..])
    }

    /// Empties the caches of these tensors and of whatever the sweep displaces. Runs in the current rayon pool.
    pub fn flush(&mut self, tensors: &[&TensorSet]) {
        let threads = rayon::current_num_threads();
        let share = self.sweep.len().div_ceil(threads).max(1);
        self.sweep.par_chunks_mut(share).for_each(|part| {
            for line in part.chunks_mut(8) {
                line[0] = line[0].wrapping_add(1);
            }
            std::hint::black_box(part);
        });
        if self.evicts_lines {
            for set in tensors {
                for (_, tensor) in set.iter() {
                    tensor.bytes().par_chunks(1 << 20).for_each(evict);
                }
            }
        }
    }
}

/// Evicts the lines of a slice from every cache level.
#[cfg(target_arch = "x86_64")]
pub fn evict(bytes: &[u8]) {
    use std::arch::asm;
    use std::arch::x86_64::{__cpuid_count, _mm_clflush, _mm_mfence};

    // CPUID leaf 7, EBX bit 23: the weakly ordered form, which pipelines.
    let has_clflushopt = __cpuid_count(7, 0).ebx & (1 << 23) != 0;
    let start = bytes.as_ptr();
    for offset in (0..bytes.len()).step_by(64) {
        // SAFETY: the address lies within the slice, and evicting a line changes no value.
        unsafe {
            let line = start.add(offset);
            if has_clflushopt {
                asm!("clflushopt [{}]", in(reg) line, options(nostack, preserves_flags));
            } else {
                _mm_clflush(line);
            }
        }
    }
    // SAFETY: a fence has no precondition.
    unsafe { _mm_mfence() };
}

/// This processor has no instruction that evicts a line from user space.
#[cfg(not(target_arch = "x86_64"))]
pub fn evict(_bytes: &[u8]) {}
