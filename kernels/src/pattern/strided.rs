//! Sparse Transformer, strided (Child et al. 2019, section 4.2): causal, the last `stride` keys and every stride-th key
//! before them. Both heads of the paper are merged into one, and no pair is counted twice.

use std::ops::Range;

use super::{Rule, ranges, ranges::Band, signed};

/// The keys nearby and the column of keys further back.
pub(super) struct Strided {
    near: Band,
    column: Band,
}

impl Strided {
    pub(super) fn new(stride: usize) -> Self {
        let stride = signed(stride);
        let far = signed(usize::MAX);
        Strided {
            near: Band { left: stride, right: 0, step: 1 },
            // Distances 0 and `stride` are near already.
            column: Band { left: far, right: -2, step: stride },
        }
    }
}

impl Rule for Strided {
    #[inline]
    fn sees(&self, p: i64, j: i64) -> bool {
        self.near.sees(p, j) || self.column.sees(p, j)
    }

    fn count(&self, rows: Range<i64>, keys: Range<i64>) -> i64 {
        self.near.count(rows.clone(), keys.clone()) + self.column.count(rows, keys)
    }

    fn seen(&self, rows: Range<i64>, len_kv: i64, out: &mut Vec<Range<i64>>) {
        self.near.seen(rows.clone(), len_kv, out);
        self.column.seen(rows, len_kv, out);
    }

    fn live(&self, rows: Range<i64>, len_kv: i64) -> i64 {
        let stride = self.column.step;
        // A row at most `stride` past the last key has near keys; one further on only its column, if that has a key.
        let near = ranges::intersect(&rows, &(0..len_kv + stride));
        let beyond = rows.start.max(len_kv + stride)..rows.end;
        let columns_with_keys = len_kv.min(stride);
        let below = |p: i64| p / stride * columns_with_keys + (p % stride).min(columns_with_keys);
        ranges::len(&near) + if beyond.is_empty() { 0 } else { below(beyond.end) - below(beyond.start) }
    }
}
