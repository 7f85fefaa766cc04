//! How tasks reach threads.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Runs tasks `0..count` on the current rayon pool, each thread taking the next one as it becomes free, so that tasks sorted
/// longest first end together (Graham 1969). Each thread works in its own scratch; with fewer scratches than threads the
/// rest stay idle. Allocates nothing.
pub(crate) fn for_each_task<S: Send>(count: usize, scratches: &mut [S], task: impl Fn(&mut S, usize) + Sync) {
    assert!(!scratches.is_empty(), "at least one thread works");
    let workers = scratches.len().min(rayon::current_num_threads()).min(count);
    share(&mut scratches[..workers], &AtomicUsize::new(0), count, &task);
}

/// One worker a scratch.
fn share<S: Send>(scratches: &mut [S], next: &AtomicUsize, count: usize, task: &(impl Fn(&mut S, usize) + Sync)) {
    match scratches {
        [] => {}
        [scratch] => loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                return;
            }
            task(scratch, index);
        },
        _ => {
            let (left, right) = scratches.split_at_mut(scratches.len() / 2);
            rayon::join(|| share(left, next, count, task), || share(right, next, count, task));
        }
    }
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
