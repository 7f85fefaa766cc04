//! The CPU as a device: emptying its caches, counting memory, measuring its ceilings.

pub mod activity;
pub mod allocator;
pub mod cache;
pub mod ceiling;
mod cgroup;
pub mod flush;
pub mod info;
pub mod memory;
mod small_file;

/// A rayon pool of exactly `threads` threads.
pub fn thread_pool(threads: usize) -> Result<rayon::ThreadPool, String> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|index| format!("attn-{index}"))
        .build()
        .map_err(|error| format!("starting {threads} threads: {error}"))
}

/// CPUs that this process may run on.
pub fn usable_cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
