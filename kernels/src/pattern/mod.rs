//! Which keys a query sees.
//!
//! [`Visibility`] is the one place that decides it: the oracle, the exact pair counts and every kernel's masks follow from
//! it. A pattern is one file with its pair predicate, its closed-form pair count and the keys that a run of rows sees.
//!
//! Rows are named by their position p among the keys, which may be negative or past the last key where the lengths
//! differ. Lengths, windows and strides up to 2^24 are exact; a larger window reaches as far as any sequence goes.

pub mod bigbird;
mod dilated;
mod fixed;
mod full;
mod longformer;
mod ranges;
mod strided;
#[cfg(test)]
mod tests;
mod window;

use std::ops::Range;

use crate::problem::{AttentionProblem, Pattern};

/// Who sees whom in one sequence of a problem: the pattern and `causal` together. Bias masks are not part of it.
#[derive(Clone, Debug)]
pub struct Visibility {
    /// The pattern.
    pub pattern: Pattern,
    /// Whether j <= p is required too.
    pub causal: bool,
    /// p - i.
    pub query_offset: i64,
    /// Queries.
    pub len_q: usize,
    /// Keys.
    pub len_kv: usize,
}

/// A key block of a [`BlockMap`] row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KeyBlock {
    /// Its number: it holds keys `index * block_k ..`, up to the last key.
    pub index: usize,
    /// Whether every pair of the tile (without what lies past the last query or key) is visible, so that no mask is needed.
    pub is_full: bool,
}

/// Key blocks that hold at least one visible pair, for each query block, in compressed sparse rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockMap {
    /// Queries a block.
    pub block_q: usize,
    /// Keys a block.
    pub block_k: usize,
    /// Where each row begins in `blocks`, and at last their number.
    pub row_starts: Vec<usize>,
    /// The rows one after another, each in ascending order.
    pub blocks: Vec<KeyBlock>,
}

impl BlockMap {
    /// Number of query blocks.
    pub fn rows(&self) -> usize {
        self.row_starts.len() - 1
    }

    /// The key blocks of query block `row`, ascending.
    pub fn row(&self, row: usize) -> &[KeyBlock] {
        &self.blocks[self.row_starts[row]..self.row_starts[row + 1]]
    }
}

/// What a pattern's file says about it, `causal` included. Rows and keys are positions; keys passed in exist.
trait Rule {
    /// Whether the row at `p` sees key `j`.
    fn sees(&self, p: i64, j: i64) -> bool;
    /// Visible pairs between these rows and these keys.
    fn count(&self, rows: Range<i64>, keys: Range<i64>) -> i64;
    /// Adds ranges whose union, cut to the keys that exist (`0..len_kv`), is the keys that at least one row sees.
    fn seen(&self, rows: Range<i64>, len_kv: i64, out: &mut Vec<Range<i64>>);
    /// Rows that see at least one key of `0..len_kv`, `len_kv` > 0.
    fn live(&self, rows: Range<i64>, len_kv: i64) -> i64;
}

/// A length or distance as a signed number, small enough that products of two of them do not overflow.
fn signed(length: usize) -> i64 {
    length.min(1 << 30) as i64
}

impl Visibility {
    /// The visibility of a sequence with these lengths.
    pub fn new(problem: &AttentionProblem, len_q: usize, len_kv: usize) -> Self {
        Visibility {
            pattern: problem.pattern,
            causal: problem.causal,
            query_offset: problem.query_offset(len_q, len_kv),
            len_q,
            len_kv,
        }
    }

    /// Calls `then` with the rule of the pattern. `head` is a query head.
    #[inline(always)]
    fn with_rule<T>(&self, head: usize, then: impl FnOnce(&dyn Rule) -> T) -> T {
        let causal = self.causal;
        match self.pattern {
            Pattern::Full => then(&full::Full { causal }),
            Pattern::Window { left, right } => then(&window::window(left, right, causal)),
            Pattern::Dilated { window, step } => then(&dilated::dilated(window, step, causal)),
            Pattern::Longformer { window, global, dilation } => {
                then(&longformer::Longformer::new(window, global, dilation, causal))
            }
            Pattern::Bigbird { block, window, global, random, seed } => {
                let draw = bigbird::Draw { seed, head };
                then(&bigbird::Bigbird::new(block, window, global, random, draw, self.len_kv, causal))
            }
            Pattern::Strided { stride } => then(&strided::Strided::new(stride)),
            Pattern::Fixed { block, summary } => then(&fixed::Fixed::new(block, summary)),
        }
    }

    /// The positions of all rows.
    fn positions(&self) -> Range<i64> {
        self.query_offset..self.query_offset + self.len_q as i64
    }

    /// Whether query `i` (< len_q) of query head `head` sees key `j` (< len_kv).
    #[inline]
    pub fn sees(&self, head: usize, i: usize, j: usize) -> bool {
        self.with_rule(head, |rule| rule.sees(i as i64 + self.query_offset, j as i64))
    }

    /// The keys that query `i` of query head `head` sees, as ascending ranges with gaps between them: the fast way to
    /// walk a row.
    pub fn row_key_ranges(&self, head: usize, i: usize) -> Vec<Range<usize>> {
        let p = i as i64 + self.query_offset;
        let mut seen = Vec::new();
        self.with_rule(head, |rule| rule.seen(p..p + 1, self.len_kv as i64, &mut seen));
        ranges::merge(&mut seen);
        seen.into_iter().filter_map(|range| self.existing(range)).collect()
    }

    /// The smallest range that holds every key visible to query `i` of query head `head`; empty where it sees none.
    pub fn key_span(&self, head: usize, i: usize) -> Range<usize> {
        let ranges = self.row_key_ranges(head, i);
        match (ranges.first(), ranges.last()) {
            (Some(first), Some(last)) => first.start..last.end,
            _ => 0..0,
        }
    }

    /// The part of a range that are keys, unless there is none.
    fn existing(&self, range: Range<i64>) -> Option<Range<usize>> {
        let range = range.start.max(0)..range.end.min(self.len_kv as i64);
        (!range.is_empty()).then_some(range.start as usize..range.end as usize)
    }

    /// Exact number of visible pairs of query head `head`. Constant time; for `fixed` and BigBird, time in the number of
    /// blocks.
    pub fn pairs(&self, head: usize) -> u64 {
        self.with_rule(head, |rule| rule.count(self.positions(), 0..self.len_kv as i64)) as u64
    }

    /// Queries of head `head` that see at least one key.
    pub fn visible_queries(&self, head: usize) -> u64 {
        if self.len_kv == 0 {
            return 0;
        }
        self.with_rule(head, |rule| rule.live(self.positions(), self.len_kv as i64)) as u64
    }

    /// The keys that at least one query of at least one of these query heads sees, as ascending ranges with gaps between
    /// them. Pass the query heads of one KV head to learn which of its keys are read. Only BigBird's heads differ.
    pub fn visible_key_ranges(&self, heads: Range<usize>) -> Vec<Range<usize>> {
        let heads = if self.heads_differ() { heads } else { heads.start..heads.end.min(heads.start + 1) };
        let mut seen = Vec::new();
        for head in heads {
            self.with_rule(head, |rule| rule.seen(self.positions(), self.len_kv as i64, &mut seen));
            ranges::merge(&mut seen);
        }
        seen.into_iter().filter_map(|range| self.existing(range)).collect()
    }

    /// Number of keys that at least one query of at least one of these query heads sees.
    pub fn visible_keys(&self, heads: Range<usize>) -> u64 {
        self.visible_key_ranges(heads).iter().map(|range| range.len() as u64).sum()
    }

    /// Whether query heads may see different keys, so that counts of one do not hold for all.
    pub fn heads_differ(&self) -> bool {
        matches!(self.pattern, Pattern::Bigbird { random, .. } if random > 0)
    }

    /// Which tiles of `block_q` queries and `block_k` keys hold a visible pair of query head `head`: a tile is listed
    /// exactly where it does. Time and memory are near the number of tiles listed.
    pub fn block_map(&self, head: usize, block_q: usize, block_k: usize) -> BlockMap {
        assert!(block_q > 0 && block_k > 0, "a block of a block map holds at least one token");
        let mut map = BlockMap { block_q, block_k, row_starts: vec![0], blocks: Vec::new() };
        let mut seen = Vec::new();
        self.with_rule(head, |rule| {
            for first in (0..self.len_q).step_by(block_q) {
                let last = (first + block_q).min(self.len_q);
                let rows = self.query_offset + first as i64..self.query_offset + last as i64;
                seen.clear();
                rule.seen(rows.clone(), self.len_kv as i64, &mut seen);
                ranges::merge(&mut seen);
                let mut next = 0;
                for keys in seen.iter().filter_map(|range| self.existing(range.clone())) {
                    for index in next.max(keys.start / block_k)..keys.end.div_ceil(block_k) {
                        let tile = (index * block_k) as i64..((index + 1) * block_k).min(self.len_kv) as i64;
                        let area = (last - first) as i64 * (tile.end - tile.start);
                        map.blocks.push(KeyBlock { index, is_full: rule.count(rows.clone(), tile) == area });
                        next = index + 1;
                    }
                }
                map.row_starts.push(map.blocks.len());
            }
        });
        map
    }
}
