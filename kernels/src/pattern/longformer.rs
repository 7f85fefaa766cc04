//! Longformer (Beltagy et al. 2020, section 3.1): a window, possibly dilated, and leading tokens that see and are seen by
//! all.
//!
//! A row is global where p < global, so a row at a negative position is global too.

use std::ops::Range;

use super::{Rule, dilated, full::Full, ranges, ranges::Band, signed};

/// The window and the global tokens.
pub(super) struct Longformer {
    band: Band,
    global: i64,
    causal: bool,
}

impl Longformer {
    pub(super) fn new(window: usize, global: usize, dilation: usize, causal: bool) -> Self {
        Longformer { band: dilated::dilated(window, dilation, causal), global: signed(global), causal }
    }

    /// The rows that are global, and the others.
    fn split(&self, rows: Range<i64>) -> (Range<i64>, Range<i64>) {
        (rows.start..rows.end.min(self.global), rows.start.max(self.global)..rows.end)
    }

    /// What global rows see.
    fn dense(&self) -> Full {
        Full { causal: self.causal }
    }
}

impl Rule for Longformer {
    #[inline]
    fn sees(&self, p: i64, j: i64) -> bool {
        let is_seen = p < self.global || j < self.global || self.band.sees(p, j);
        is_seen && (!self.causal || j <= p)
    }

    fn count(&self, rows: Range<i64>, keys: Range<i64>) -> i64 {
        let (dense, others) = self.split(rows);
        let global_keys = ranges::len(&(keys.start..keys.end.min(self.global)));
        self.dense().count(dense, keys.clone())
            + ranges::len(&others) * global_keys
            + self.band.count(others, keys.start.max(self.global)..keys.end)
    }

    fn seen(&self, rows: Range<i64>, len_kv: i64, out: &mut Vec<Range<i64>>) {
        let (dense, others) = self.split(rows);
        self.dense().seen(dense, len_kv, out);
        if !others.is_empty() {
            out.push(0..self.global);
            self.band.seen(others, len_kv, out);
        }
    }

    fn live(&self, rows: Range<i64>, len_kv: i64) -> i64 {
        let (dense, others) = self.split(rows);
        let live_others = if self.global > 0 { ranges::len(&others) } else { self.band.live(others, len_kv) };
        self.dense().live(dense, len_kv) + live_others
    }
}
