//! How tasks reach threads.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Runs tasks `0..count` on the current rayon pool, each thread taking the next one as it becomes free, so that tasks sorted
/// longest first end together (Graham 1969). Each thread works in its own scratch; with fewer scratches than threads the
/// rest stay idle.
pub(crate) fn for_each_task<S: Send>(count: usize, scratches: &mut [S], task: impl Fn(&mut S, usize) + Sync) {
    assert!(!scratches.is_empty(), "at least one thread works");
    if count == 0 {
        return;
    }
    if count == 1 || scratches.len() == 1 || rayon::current_num_threads() == 1 {
        (0..count).for_each(|index| task(&mut scratches[0], index));
        return;
    }
    let next = AtomicUsize::new(0);
    // A lock that is never contended: thread t alone locks scratch t.
    let scratches: Vec<Mutex<&mut S>> = scratches.iter_mut().map(Mutex::new).collect();
    rayon::broadcast(|context| {
        let Some(scratch) = scratches.get(context.index()) else { return };
        let mut scratch = scratch.lock().expect("no task panicked in this scratch");
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                return;
            }
            task(&mut scratch, index);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        for (threads, scratches) in [(1, 1), (2, 2), (3, 2), (2, 5)] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            for count in [0, 1, 2, 100] {
                let mut seen = vec![vec![0u32; count]; scratches];
                pool.install(|| for_each_task(count, &mut seen, |mine, index| mine[index] += 1));
                for index in 0..count {
                    assert_eq!(seen.iter().map(|mine| mine[index]).sum::<u32>(), 1);
                }
            }
        }
    }
}
