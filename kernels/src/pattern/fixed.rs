//! Sparse Transformer, fixed (Child et al. 2019, section 4.2): causal, the row's own block and the last `summary` keys of
//! every block. Both heads of the paper are merged into one, and no pair is counted twice.

use std::ops::Range;

use super::{Rule, ranges, signed};

/// Blocks with their summaries.
pub(super) struct Fixed {
    block: i64,
    /// Where the summary begins in a block.
    summary_start: i64,
}

impl Fixed {
    pub(super) fn new(block: usize, summary: usize) -> Self {
        let (block, summary) = (signed(block), signed(summary));
        Fixed { block, summary_start: block - summary.min(block) }
    }

    /// Summary keys below `j`.
    fn summaries_below(&self, j: i64) -> i64 {
        j / self.block * (self.block - self.summary_start) + (j % self.block - self.summary_start).max(0)
    }
}

impl Rule for Fixed {
    #[inline]
    fn sees(&self, p: i64, j: i64) -> bool {
        j <= p && (p / self.block == j / self.block || j % self.block >= self.summary_start)
    }

    fn count(&self, rows: Range<i64>, keys: Range<i64>) -> i64 {
        let (mut p, mut pairs) = (rows.start.max(0), 0);
        while p < rows.end {
            let block_start = p / self.block * self.block;
            let block_rows = p..rows.end.min(block_start + self.block);
            let own = keys.start.max(block_start)..keys.end.min(block_start + self.block);
            let earlier = keys.start.min(block_start)..keys.end.min(block_start);
            let summaries = self.summaries_below(earlier.end) - self.summaries_below(earlier.start);
            pairs += ranges::count_causal(&block_rows, &own) + ranges::len(&block_rows) * summaries;
            p = block_rows.end;
        }
        pairs
    }

    fn seen(&self, rows: Range<i64>, len_kv: i64, out: &mut Vec<Range<i64>>) {
        let first = rows.start.max(0);
        if first >= rows.end {
            return;
        }
        // From the first row's block on every key is in the block of some row at or after it.
        let block_start = first / self.block * self.block;
        out.push(block_start..rows.end);
        let starts = (0..block_start.min(len_kv)).step_by(self.block as usize);
        out.extend(starts.map(|start| start + self.summary_start..start + self.block));
    }

    fn live(&self, rows: Range<i64>, len_kv: i64) -> i64 {
        let end = if self.summaries_below(len_kv) > 0 {
            i64::MAX
        } else {
            // No summary has a key, so only rows in a block with keys see any.
            (len_kv + self.block - 1) / self.block * self.block
        };
        ranges::len(&ranges::intersect(&rows, &(0..end)))
    }
}
