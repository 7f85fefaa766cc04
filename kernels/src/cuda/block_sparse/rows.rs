//! How a pattern is taken apart: sets of queries that share keys, and which keys they see.

use std::ops::Range;

use crate::pattern::Visibility;
use crate::problem::Pattern;

/// Queries `first`, `first + step`, ..., `count` of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RowSet {
    pub(super) first: usize,
    pub(super) step: usize,
    pub(super) count: usize,
    pub(super) keys: Keys,
}

/// The keys of a row set, numbered so that what a query sees is a few ranges of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keys {
    /// Keys under their own numbers, as the pattern says.
    Rule,
    /// Keys 0 .. lead, then `first`, `first + step`, ...: the query t steps after `first` sees all of the former and of the
    /// latter t - left .. t + right.
    Class { lead: usize, first: usize, step: usize, left: i64, right: i64 },
}

impl RowSet {
    /// Query number `row` of the set.
    pub(super) fn query(&self, row: usize) -> usize {
        self.first + row * self.step
    }

    /// Which numbers are keys `lead` apart from the others, and the distance of keys from there on.
    pub(super) fn lead_and_step(&self) -> (usize, usize) {
        match self.keys {
            Keys::Rule => (0, 1),
            Keys::Class { lead, step, .. } => (lead, step),
        }
    }

    /// The key of a number.
    pub(super) fn key(&self, number: usize) -> usize {
        match self.keys {
            Keys::Class { lead, first, step, .. } if number >= lead => first + (number - lead) * step,
            _ => number,
        }
    }

    /// The numbers of the keys that query `row` of the set sees, as ascending ranges with gaps between them.
    pub(super) fn ranges(&self, visibility: &Visibility, head: usize, row: usize) -> Vec<Range<usize>> {
        let query = self.query(row);
        let Keys::Class { lead, first, step, left, right } = self.keys else {
            return visibility.row_key_ranges(head, query);
        };
        let at = (query as i64 + visibility.query_offset - first as i64).div_euclid(step as i64);
        let keys = visibility.len_kv.saturating_sub(first).div_ceil(step) as i64;
        let band = (at - left).clamp(0, keys)..(at + right + 1).clamp(0, keys);
        let band = lead + band.start as usize..lead + band.end as usize;
        if band.start == lead && !band.is_empty() {
            return std::iter::once(0..band.end).collect();
        }
        [0..lead, band].into_iter().filter(|range| !range.is_empty()).collect()
    }
}

/// Row sets that are computed side by side, and one such pass or two: the second one begins from the sums of the first.
pub(super) type Passes = Vec<Vec<RowSet>>;

/// Every way to take a sequence's pattern apart that may be the cheapest.
pub(super) fn ways(visibility: &Visibility) -> Vec<Passes> {
    let mut ways = vec![vec![neighbours(visibility)]];
    // Neighbours share no key of a dilated window, unless there are too few rows to fill tiles without them.
    let fills_tiles = |step: usize| visibility.len_q >= step.saturating_mul(64);
    let right = |window: usize| if visibility.causal { 0 } else { window as i64 };
    match visibility.pattern {
        Pattern::Dilated { window, step } if step > 1 => {
            ways.push(vec![classes(visibility, 0, step, 0, window as i64, right(window))]);
            ways.drain(..usize::from(fills_tiles(step)));
        }
        Pattern::Longformer { window, global, dilation } if dilation > 1 => {
            let dense = query_at(visibility, global as i64);
            let mut sets = dense_rows(dense);
            sets.extend(classes(
                visibility,
                dense,
                dilation,
                global.min(visibility.len_kv),
                window as i64,
                right(window),
            ));
            ways.push(vec![sets]);
            ways.drain(..usize::from(fills_tiles(dilation)));
        }
        Pattern::Strided { stride } if stride > 1 => {
            let far = classes(visibility, 0, stride, 0, i64::from(i32::MAX), -2);
            let keys = Keys::Class { lead: 0, first: 0, step: 1, left: stride as i64, right: 0 };
            ways.push(vec![far, vec![RowSet { first: 0, step: 1, count: visibility.len_q, keys }]]);
        }
        _ => {}
    }
    ways
}

/// The number of the first query at or after a position.
fn query_at(visibility: &Visibility, position: i64) -> usize {
    (position - visibility.query_offset).clamp(0, visibility.len_q as i64) as usize
}

fn dense_rows(count: usize) -> Vec<RowSet> {
    let set = RowSet { first: 0, step: 1, count, keys: Keys::Rule };
    std::iter::once(set).filter(|set| set.count > 0).collect()
}

/// Neighbouring queries, cut where those begin that see everything, and where blocks of the pattern do.
fn neighbours(visibility: &Visibility) -> Vec<RowSet> {
    let offset = visibility.query_offset;
    let next_multiple = |block: usize| offset + (-offset).rem_euclid(block as i64);
    let positions = match visibility.pattern {
        Pattern::Longformer { global, .. } => vec![global as i64],
        Pattern::Bigbird { block, global, .. } => {
            let blocks = visibility.len_kv.div_ceil(block);
            let trailing = blocks.saturating_sub(global / 2);
            vec![next_multiple(block), (global.div_ceil(2) * block) as i64, (trailing * block) as i64]
        }
        Pattern::Fixed { block, .. } => vec![next_multiple(block)],
        _ => Vec::new(),
    };
    let mut cuts: Vec<usize> = positions.into_iter().map(|position| query_at(visibility, position)).collect();
    cuts.push(visibility.len_q);
    cuts.sort_unstable();
    let mut first = 0;
    let mut sets = Vec::new();
    for cut in cuts {
        if cut > first {
            sets.push(RowSet { first, step: 1, count: cut - first, keys: Keys::Rule });
        }
        first = first.max(cut);
    }
    sets
}

/// The queries from `begin` on, `step` apart, with keys 0 .. lead and those of their own remainder from there on.
fn classes(visibility: &Visibility, begin: usize, step: usize, lead: usize, left: i64, right: i64) -> Vec<RowSet> {
    let end = visibility.len_q;
    (begin..end.min(begin.saturating_add(step)))
        .map(|first| {
            let remainder = (first as i64 + visibility.query_offset).rem_euclid(step as i64) as usize;
            let key = remainder + lead.saturating_sub(remainder).div_ceil(step) * step;
            let keys = Keys::Class { lead, first: key, step, left, right };
            RowSet { first, step, count: (end - first).div_ceil(step), keys }
        })
        .collect()
}
