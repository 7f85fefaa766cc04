//! Lists of tokens that queries look through, and which part of a list each query sees.

use std::ops::Range;

/// Tokens `first, first + step, ...` of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tokens {
    pub(crate) first: usize,
    pub(crate) step: usize,
}

impl Tokens {
    /// Neighbouring tokens from `first` on.
    pub(crate) fn from(first: usize) -> Self {
        Tokens { first, step: 1 }
    }

    #[inline(always)]
    pub(crate) fn get(self, index: usize) -> usize {
        self.first + index * self.step
    }
}

/// Tokens that queries look through, in ascending order, by index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyList {
    /// A progression.
    Every(Tokens),
    /// The last `summary` tokens of each block.
    Summaries { block: usize, summary: usize },
}

impl KeyList {
    /// The token at an index.
    #[inline(always)]
    pub(crate) fn token(self, index: usize) -> usize {
        match self {
            KeyList::Every(tokens) => tokens.get(index),
            KeyList::Summaries { block, summary } => index / summary * block + block - summary + index % summary,
        }
    }

    /// The first index whose token is at least `token`.
    pub(crate) fn index_at_least(self, token: usize) -> usize {
        match self {
            KeyList::Every(Tokens { first, step }) => token.saturating_sub(first).div_ceil(step),
            KeyList::Summaries { block, summary } => {
                token / block * summary + (token % block).saturating_sub(block - summary)
            }
        }
    }
}

/// Keys that the query at position p sees, as an interval of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// All of them.
    All,
    /// p - left <= j <= p + right.
    Between { left: i64, right: i64 },
    /// j <= p - distance.
    AtLeastBehind { distance: i64 },
    /// Those of p's own block.
    SameBlock { block: i64 },
    /// Those of the blocks before p's own.
    EarlierBlocks { block: i64 },
}

/// A list of keys and who sees what of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    pub(crate) list: KeyList,
    pub(crate) reach: Reach,
    /// Whether j <= p is required too.
    pub(crate) causal: bool,
    /// Tokens outside this range are left out.
    pub(crate) tokens: (usize, usize),
}

impl Part {
    /// The interval of list indices that the query at position p sees.
    pub(crate) fn indices(&self, p: i64) -> Range<usize> {
        let (mut first, mut last) = match self.reach {
            Reach::All => (i64::MIN, i64::MAX),
            Reach::Between { left, right } => (p.saturating_sub(left), p.saturating_add(right).saturating_add(1)),
            Reach::AtLeastBehind { distance } => (i64::MIN, p.saturating_sub(distance).saturating_add(1)),
            Reach::SameBlock { block } => (p.div_euclid(block) * block, (p.div_euclid(block) + 1) * block),
            Reach::EarlierBlocks { block } => (i64::MIN, p.div_euclid(block) * block),
        };
        if self.causal {
            last = last.min(p + 1);
        }
        first = first.clamp(self.tokens.0 as i64, self.tokens.1.max(self.tokens.0) as i64);
        last = last.clamp(first, self.tokens.1.max(self.tokens.0) as i64);
        self.list.index_at_least(first as usize)..self.list.index_at_least(last as usize)
    }
}
