//! BigBird (Zaheer et al. 2020, appendix D): block-sparse window, global and random attention.
//!
//! The keys are cut into B = ceil(len_kv / block) blocks, the last one possibly short. The row at position p is in block
//! row bp = floor(p / block), signed: below 0 or at least B for a row outside the keys. Row p sees key j of block bj where
//!
//! - |bp - bj| <= floor(window / 2), or
//! - bj is global: one of the first ceil(global / 2) blocks or of the last floor(global / 2), or
//! - bp is global: then the row sees every key, or
//! - bj is one of the `random` blocks drawn for bp,
//!
//! and, where the problem is causal, j <= p. Nothing else: a row outside the keys is never global, and what causality
//! hides of a random block is not replaced.
//!
//! **The draw.** The candidates of a block row that is not global are the blocks 0..B that are neither global nor in its
//! window, numbered 0..c in ascending order. `min(random, c)` distinct ones are drawn by Floyd's sampling (Bentley and
//! Floyd 1987), every subset being as likely as any other:
//!
//! ```text
//! key = hash64(hash64(seed, head), bp as a 64-bit two's complement)      (crate::input::hash64)
//! chosen = {}
//! for t in c - min(random, c) .. c:
//!     u = hash64(key, t) mod (t + 1)
//!     chosen += t if u in chosen else u
//! ```
//!
//! `head` is the query head, so the heads of a group read different blocks of one KV head. All sequences of a batch with
//! the same number of keys share the draw.

use std::ops::Range;

use super::{Rule, full::Full, ranges, signed};
use crate::input::hash64;

/// What the random blocks of a head depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draw {
    /// Seed of the pattern.
    pub seed: u64,
    /// Query head.
    pub head: usize,
}

/// The pattern for one head and one number of keys.
#[derive(Clone, Debug)]
pub struct Bigbird {
    block: i64,
    half_window: i64,
    /// Global blocks at the beginning.
    leading: i64,
    /// The first global block at the end.
    trailing_start: i64,
    random: i64,
    draw: Draw,
    /// Number of key blocks.
    blocks: i64,
    causal: bool,
}

impl Bigbird {
    /// The pattern of query head `draw.head` over `len_kv` keys; `block` > 0.
    pub fn new(
        block: usize,
        window: usize,
        global: usize,
        random: usize,
        draw: Draw,
        len_kv: usize,
        causal: bool,
    ) -> Self {
        let blocks = signed(len_kv.div_ceil(block));
        Bigbird {
            block: signed(block),
            half_window: signed(window / 2),
            leading: signed(global.div_ceil(2)).min(blocks),
            trailing_start: (blocks - signed(global / 2)).max(0),
            random: signed(random),
            draw,
            blocks,
            causal,
        }
    }

    /// Whether a block is one of the global ones.
    pub fn is_global(&self, block: i64) -> bool {
        (0..self.leading).contains(&block) || (self.trailing_start..self.blocks).contains(&block)
    }

    /// The blocks in the window of a block row.
    fn window(&self, row: i64) -> Range<i64> {
        (row - self.half_window).max(0)..(row + self.half_window + 1).min(self.blocks)
    }

    /// The random blocks of a block row, ascending; none for a global one.
    pub fn random_blocks(&self, row: i64) -> Vec<i64> {
        if self.random == 0 || self.is_global(row) {
            return Vec::new();
        }
        let mut taken = vec![0..self.leading, self.window(row), self.trailing_start..self.blocks];
        ranges::merge(&mut taken);
        let candidates = self.blocks - taken.iter().map(ranges::len).sum::<i64>();
        let key = hash64(hash64(self.draw.seed, self.draw.head as u64), row as u64);
        let mut chosen: Vec<i64> = Vec::new();
        for t in (candidates - self.random).max(0)..candidates {
            let u = (hash64(key, t as u64) % (t as u64 + 1)) as i64;
            match chosen.binary_search(&u) {
                // t is larger than every number chosen so far.
                Ok(_) => chosen.push(t),
                Err(place) => chosen.insert(place, u),
            }
        }
        // A candidate's number becomes its block by stepping over what is taken before it.
        let (mut next, mut skipped) = (0, 0);
        for number in &mut chosen {
            while next < taken.len() && taken[next].start <= *number + skipped {
                skipped += ranges::len(&taken[next]);
                next += 1;
            }
            *number += skipped;
        }
        chosen
    }

    /// The blocks that a block row sees before causality, as ascending ranges with gaps between them.
    pub fn visible_blocks(&self, row: i64) -> Vec<Range<i64>> {
        if self.is_global(row) {
            return std::iter::once(0..self.blocks).collect();
        }
        let mut visible = vec![0..self.leading, self.window(row), self.trailing_start..self.blocks];
        visible.extend(self.random_blocks(row).into_iter().map(|block| block..block + 1));
        ranges::merge(&mut visible);
        visible
    }

    /// The runs of rows that share a block row, last first.
    fn block_rows(&self, rows: Range<i64>) -> impl Iterator<Item = (i64, Range<i64>)> {
        let block = self.block;
        (rows.start.div_euclid(block)..(rows.end + block - 1).div_euclid(block))
            .rev()
            .map(move |row| (row, rows.start.max(row * block)..rows.end.min((row + 1) * block)))
    }

    /// The keys that a block row sees before causality; the last range may reach past the last key.
    fn visible_keys(&self, row: i64) -> impl Iterator<Item = Range<i64>> {
        let block = self.block;
        self.visible_blocks(row).into_iter().map(move |blocks| blocks.start * block..blocks.end * block)
    }
}

impl Rule for Bigbird {
    fn sees(&self, p: i64, j: i64) -> bool {
        let (row, key_block) = (p.div_euclid(self.block), j / self.block);
        (!self.causal || j <= p)
            && ((row - key_block).abs() <= self.half_window
                || self.is_global(key_block)
                || self.is_global(row)
                || self.random_blocks(row).binary_search(&key_block).is_ok())
    }

    fn count(&self, rows: Range<i64>, keys: Range<i64>) -> i64 {
        let dense = Full { causal: self.causal };
        self.block_rows(rows)
            .flat_map(|(row, rows)| self.visible_keys(row).map(move |visible| (rows.clone(), visible)))
            .map(|(rows, visible)| dense.count(rows, ranges::intersect(&visible, &keys)))
            .sum()
    }

    fn seen(&self, rows: Range<i64>, _: i64, out: &mut Vec<Range<i64>>) {
        let mut merged_len = 4096;
        for (row, rows) in self.block_rows(rows) {
            let end = if self.causal { rows.end } else { i64::MAX };
            out.extend(self.visible_keys(row).map(|keys| keys.start..keys.end.min(end)));
            // Rows come last first, so the rows left see nothing that a global row does not.
            if self.is_global(row) {
                break;
            }
            if out.len() > merged_len {
                ranges::merge(out);
                merged_len = merged_len.max(2 * out.len());
            }
        }
    }

    fn live(&self, rows: Range<i64>, _: i64) -> i64 {
        self.block_rows(rows)
            .map(|(row, rows)| {
                if (0..self.blocks).contains(&row) {
                    // The row's own block is in its window, and its first key is not in the future.
                    return ranges::len(&rows);
                }
                match self.visible_keys(row).next() {
                    Some(first) if self.causal => ranges::len(&(rows.start.max(first.start)..rows.end)),
                    Some(_) => ranges::len(&rows),
                    None => 0,
                }
            })
            .sum()
    }
}
