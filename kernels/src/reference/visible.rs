//! Who sees whom, written once more from the definitions.
//!
//! Kernels and work counts follow [`crate::pattern::Visibility`]. The oracle must not: a mistake there would then be
//! found nowhere. Here each pattern's definition is stated literally, pair by pair; only the random draw of BigBird is
//! shared, for it is a definition itself.

use crate::pattern::bigbird::{Bigbird, Draw};
use crate::problem::{AttentionProblem, Pattern};

/// The definitions of one sequence.
pub(super) struct Definition {
    pattern: Pattern,
    causal: bool,
    /// p = i + this.
    query_offset: i64,
    len_q: usize,
    len_kv: usize,
}

impl Definition {
    pub(super) fn new(problem: &AttentionProblem, len_q: usize, len_kv: usize) -> Self {
        Definition {
            pattern: problem.pattern,
            causal: problem.causal,
            query_offset: problem.query_offset(len_q, len_kv),
            len_q,
            len_kv,
        }
    }

    /// The position of a query among the keys.
    pub(super) fn position(&self, query: usize) -> i64 {
        query as i64 + self.query_offset
    }

    /// The keys that a query of a query head sees, in order.
    pub(super) fn keys(&self, head: usize, query: usize) -> Vec<u32> {
        let p = self.position(query);
        let random = self.random_blocks(head, p);
        self.candidates(query).filter(|&key| self.sees(p, key as i64, &random)).map(|key| key as u32).collect()
    }

    /// Whether position p sees key j. `random` are the blocks that BigBird drew for p's block.
    fn sees(&self, p: i64, j: i64, random: &[i64]) -> bool {
        if self.causal && j > p {
            return false;
        }
        match self.pattern {
            Pattern::Full => true,
            Pattern::Window { left, right } => p - distance(left) <= j && j <= p + distance(right),
            Pattern::Dilated { window, step } => {
                (p - j).unsigned_abs() <= window.saturating_mul(step) as u64 && (p - j) % step as i64 == 0
            }
            Pattern::Longformer { window, global, dilation } => {
                let is_near = (p - j).unsigned_abs() <= window.saturating_mul(dilation) as u64;
                (is_near && (p - j) % dilation as i64 == 0) || j < global as i64 || p < global as i64
            }
            Pattern::Bigbird { block, window, global, .. } => {
                let (bp, bj) = (p.div_euclid(block as i64), j.div_euclid(block as i64));
                let blocks = self.len_kv.div_ceil(block) as i64;
                let (leading, trailing) = (global.div_ceil(2) as i64, (global / 2) as i64);
                let is_global = |b: i64| 0 <= b && b < blocks && (b < leading || b >= blocks - trailing);
                (bp - bj).abs() <= (window / 2) as i64 || is_global(bp) || is_global(bj) || random.contains(&bj)
            }
            Pattern::Strided { stride } => j <= p && (p - j <= stride as i64 || (p - j) % stride as i64 == 0),
            Pattern::Fixed { block, summary } => {
                let block = block as i64;
                j <= p && (p.div_euclid(block) == j.div_euclid(block) || j % block >= block - summary as i64)
            }
        }
    }

    fn random_blocks(&self, head: usize, p: i64) -> Vec<i64> {
        match self.pattern {
            Pattern::Bigbird { block, window, global, random, seed } => {
                Bigbird::new(block, window, global, random, Draw { seed, head }, self.len_kv, self.causal)
                    .random_blocks(p.div_euclid(block as i64))
            }
            _ => Vec::new(),
        }
    }

    /// Keys out of which the visible ones are picked: all, or the hull of a pattern that has one.
    fn candidates(&self, query: usize) -> std::ops::Range<usize> {
        let p = self.position(query);
        let (before, after) = match self.pattern {
            Pattern::Window { left, right } => (left, right),
            Pattern::Dilated { window, step } => (window.saturating_mul(step), window.saturating_mul(step)),
            _ => return 0..self.len_kv,
        };
        let clamp = |key: i64| key.clamp(0, self.len_kv as i64) as usize;
        let start = clamp(p - distance(before));
        start..clamp(p + distance(after) + 1).max(start)
    }

    /// An upper bound of the keys that a query sees, without looking at each.
    pub(super) fn keys_bound(&self, query: usize) -> usize {
        let candidates = self.candidates(query).len();
        let causal =
            if self.causal { (self.position(query) + 1).clamp(0, self.len_kv as i64) as usize } else { candidates };
        match self.pattern {
            Pattern::Dilated { step, .. } => candidates.div_ceil(step).min(causal),
            _ => candidates.min(causal),
        }
    }

    /// An upper bound of the visible pairs of a head.
    pub(super) fn pairs_bound(&self) -> u64 {
        (0..self.len_q).map(|query| self.keys_bound(query) as u64).sum()
    }
}

/// A distance as a signed number that can be added to a position; `usize::MAX` is as far as any sequence goes.
fn distance(tokens: usize) -> i64 {
    tokens.min(1 << 60) as i64
}
