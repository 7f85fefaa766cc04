//! Work items handed out one by one, so that uneven items balance, with one scratch a thread.

use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

/// Calls `work(scratch, item)` for every item below `items`, lower items first, on as many threads as there are
/// scratches. A scratch is never used by two threads at a time.
pub(crate) fn for_each_item<S: Send>(scratches: &mut [S], items: usize, work: impl Fn(&mut S, usize) + Sync) {
    if let [scratch] = scratches {
        (0..items).for_each(|item| work(scratch, item));
        return;
    }
    let next = AtomicUsize::new(0);
    scratches.par_iter_mut().with_max_len(1).for_each(|scratch| {
        loop {
            let item = next.fetch_add(1, Ordering::Relaxed);
            if item >= items {
                break;
            }
            work(scratch, item);
        }
    });
}
