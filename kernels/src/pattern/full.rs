//! Every key.

use std::ops::Range;

use super::{Rule, ranges};

/// Every key, or every key up to the row's own position.
pub(super) struct Full {
    pub(super) causal: bool,
}

impl Rule for Full {
    #[inline]
    fn sees(&self, p: i64, j: i64) -> bool {
        !self.causal || j <= p
    }

    fn count(&self, rows: Range<i64>, keys: Range<i64>) -> i64 {
        if self.causal { ranges::count_causal(&rows, &keys) } else { ranges::len(&rows) * ranges::len(&keys) }
    }

    fn seen(&self, rows: Range<i64>, len_kv: i64, out: &mut Vec<Range<i64>>) {
        if !rows.is_empty() {
            out.push(0..if self.causal { rows.end } else { len_kv });
        }
    }

    fn live(&self, rows: Range<i64>, _: i64) -> i64 {
        if self.causal { ranges::len(&(rows.start.max(0)..rows.end)) } else { ranges::len(&rows) }
    }
}
