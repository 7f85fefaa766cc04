//! Attention of query tiles over lists of keys: the engine of `block_sparse` and of MLA's prefill.
//!
//! A [`Schedule`] is made from shapes alone. It cuts the queries into tiles and says for each which runs of keys it
//! visits; the engine computes a tile with the online softmax of [`super::online_tile`], looking at nothing else. Both
//! queries and keys may be every s-th token, or a list of tokens in which each query still sees one interval, so that
//! dilated and strided patterns lose no work to masks: only the tiles at the ends of a run are masked.
//!
//! Tiles: up to 64 queries of up to 4 heads that share K and V, by 64 keys: at d = 128 the keys, their transpose and the
//! values take 96 KiB, the queries and outputs 256 KiB. Tiles with the most pairs are started first.

use std::ops::Range;

use super::access::{Sink, Source, Tokens};
use super::online_tile::{KEY_TILE, OnlineTile};
use super::schedule::for_each_task;
use super::tile::transpose;
use crate::input::SharedMut;
use crate::kernel::{KernelError, Plan, PlanContext};
use crate::tensor::{Rows, TensorName, TensorSet};

/// Queries a tile.
pub(crate) const QUERY_TILE: usize = 64;
/// Rows of a tile: queries times heads.
const MAX_ROWS: usize = 4 * QUERY_TILE;

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

/// Neighbouring indices of a part's list that a query tile visits.
#[derive(Clone, Debug)]
struct Run {
    part: Part,
    keys: Range<usize>,
    /// The indices that every query of the tile sees.
    seen_by_all: Range<usize>,
}

#[derive(Clone, Debug)]
struct Tile {
    queries: Tokens,
    count: usize,
    runs: Range<usize>,
    /// Keys visited, masked ones included.
    cost: usize,
}

/// Which keys each query of a sequence visits, in one sweep.
#[derive(Clone, Debug, Default)]
pub(crate) struct Schedule {
    query_offset: i64,
    tiles: Vec<Tile>,
    runs: Vec<Run>,
}

impl Schedule {
    /// An empty schedule; `query_offset` is p - i.
    pub(crate) fn new(query_offset: i64) -> Self {
        Schedule { query_offset, ..Schedule::default() }
    }

    /// Adds the queries `queries[0..count]` as tiles that visit the parts, each tile of at most [`QUERY_TILE`].
    pub(crate) fn add(&mut self, queries: Tokens, count: usize, parts: &[Part]) {
        for first in (0..count).step_by(QUERY_TILE) {
            let tile = Tokens { first: queries.get(first), step: queries.step };
            self.add_tile(tile, QUERY_TILE.min(count - first), parts);
        }
    }

    fn add_tile(&mut self, queries: Tokens, count: usize, parts: &[Part]) {
        let start = self.runs.len();
        let position = |row: usize| queries.get(row) as i64 + self.query_offset;
        for part in parts {
            // Both ends of what a query sees never go back from one query to the next.
            let (first, last) = (part.indices(position(0)), part.indices(position(count - 1)));
            let keys = first.start..last.end;
            if !keys.is_empty() {
                self.runs.push(Run { part: *part, keys, seen_by_all: last.start..first.end });
            }
        }
        let cost = self.runs[start..].iter().map(|run| run.keys.len()).sum::<usize>() * count;
        self.tiles.push(Tile { queries, count, runs: start..self.runs.len(), cost });
    }

    /// p - i.
    pub(crate) fn query_offset(&self) -> i64 {
        self.query_offset
    }

    /// Whether no query visits any key.
    pub(crate) fn is_idle(&self) -> bool {
        self.runs.is_empty()
    }

    /// Every (query, key) pair that the schedule visits and does not mask.
    #[cfg(test)]
    pub(crate) fn pairs(&self) -> Vec<(usize, usize)> {
        let mut pairs = Vec::new();
        for tile in &self.tiles {
            for row in 0..tile.count {
                let query = tile.queries.get(row);
                for run in &self.runs[tile.runs.clone()] {
                    let seen = run.part.indices(query as i64 + self.query_offset);
                    let keys = seen.start.max(run.keys.start)..seen.end.min(run.keys.end);
                    pairs.extend(keys.map(|index| (query, run.part.list.token(index))));
                }
            }
        }
        pairs
    }

    /// Pairs visited, masked ones included.
    #[cfg(test)]
    pub(crate) fn visited(&self) -> usize {
        self.tiles.iter().map(|tile| tile.cost).sum()
    }

    fn bytes(&self) -> u64 {
        (self.tiles.len() * size_of::<Tile>() + self.runs.len() * size_of::<Run>()) as u64
    }
}

/// One tile of one sequence for the heads `head..head + heads`.
struct Item {
    schedule: usize,
    tile: usize,
    sequence: usize,
    head: usize,
    heads: usize,
}

/// The schedules of a problem: `sweeps[n]` is swept after `sweeps[n - 1]`, and together they visit every pair once.
pub(crate) struct Sweeps {
    /// All schedules.
    pub(crate) schedules: Vec<Schedule>,
    /// A sweep maps (sequence, query head) to a schedule, at `sequence * heads_q + head`.
    pub(crate) sweeps: Vec<Vec<usize>>,
}

/// A plan of scheduled attention.
pub(crate) struct TiledPlan {
    scale: f32,
    softcap: Option<f32>,
    group: usize,
    queries: Rows,
    keys: Rows,
    values: Rows,
    outputs: Rows,
    schedules: Vec<Schedule>,
    sweeps: Vec<Vec<Item>>,
    /// Between sweeps: (maximum, sum, output) of each (sequence, head, token), padded to the longest sequence.
    states: Vec<f32>,
    scratches: Vec<Scratch>,
}

struct Scratch {
    /// (rows, d_qk), scaled.
    queries: Vec<f32>,
    /// (KEY_TILE, d_qk).
    keys: Vec<f32>,
    /// (d_qk, KEY_TILE).
    keys_transposed: Vec<f32>,
    /// (KEY_TILE, d_v).
    values: Vec<f32>,
    online: OnlineTile,
}

impl TiledPlan {
    pub(crate) fn new(context: &PlanContext<'_>, sweeps: Sweeps) -> Result<Self, KernelError> {
        let problem = context.problem;
        let (dk, dv, group) = (problem.head_dim_qk, problem.head_dim_v, problem.group_size());
        let page_table = context.static_tensors.find(TensorName::PageTable);
        let queries = Rows::of_queries(problem, dk);
        let longest = queries.lengths.iter().copied().max().unwrap_or(0);
        let rows = (QUERY_TILE.min(longest.max(1)) * group).min(MAX_ROWS);
        let heads_a_tile = (rows / QUERY_TILE.min(longest.max(1))).max(1);

        let states = match sweeps.sweeps.len() {
            0 | 1 => 0,
            _ => problem.batch as u64 * problem.heads_q as u64 * longest as u64 * (dv as u64 + 2),
        };
        let scratch = 4 * (rows * dk + KEY_TILE * (2 * dk + dv)) as u64 + OnlineTile::bytes(rows, dv);
        let schedules_bytes: u64 = sweeps.schedules.iter().map(Schedule::bytes).sum();
        context.check_workspace(schedules_bytes + 4 * states + context.threads as u64 * scratch)?;

        let items = |schedule_of: &Vec<usize>| {
            let mut items = Vec::new();
            for sequence in 0..problem.batch {
                let mut head = 0;
                while head < problem.heads_q {
                    let schedule = schedule_of[sequence * problem.heads_q + head];
                    // Neighbours with the same keys and the same schedule.
                    let heads = (head..(head / group + 1) * group)
                        .take(heads_a_tile)
                        .take_while(|head| schedule_of[sequence * problem.heads_q + head] == schedule)
                        .count();
                    let tiles = 0..sweeps.schedules[schedule].tiles.len();
                    items.extend(tiles.map(|tile| Item { schedule, tile, sequence, head, heads }));
                    head += heads;
                }
            }
            items.sort_by_key(|item| {
                std::cmp::Reverse(sweeps.schedules[item.schedule].tiles[item.tile].cost * item.heads)
            });
            items
        };
        Ok(TiledPlan {
            scale: problem.effective_scale() as f32,
            softcap: problem.softcap.map(|cap| cap as f32),
            group,
            queries,
            keys: Rows::of_keys(problem, dk, page_table),
            values: Rows::of_keys(problem, dv, page_table),
            outputs: Rows::of_queries(problem, dv),
            sweeps: sweeps.sweeps.iter().map(items).collect(),
            schedules: sweeps.schedules,
            states: vec![0.0; states as usize],
            scratches: (0..context.threads)
                .map(|_| Scratch {
                    queries: vec![0.0; rows * dk],
                    keys: vec![0.0; KEY_TILE * dk],
                    keys_transposed: vec![0.0; dk * KEY_TILE],
                    values: vec![0.0; KEY_TILE * dv],
                    online: OnlineTile::new(rows, dv),
                })
                .collect(),
        })
    }
}

impl Plan for TiledPlan {
    fn run(&mut self, inputs: &TensorSet, outputs: &mut TensorSet) {
        let (queries, keys, values, rows_o) = (&self.queries, &self.keys, &self.values, &self.outputs);
        let (dk, dv) = (keys.dim, values.dim);
        let (scale, softcap, group) = (self.scale, self.softcap, self.group);
        let [q, k, v] = [TensorName::Q, TensorName::K, TensorName::V].map(|name| Source::new(inputs.get(name)));
        let o = Sink::new(outputs, TensorName::O);
        let lse = Sink::find(outputs, TensorName::Lse);
        let longest = queries.lengths.iter().copied().max().unwrap_or(0);
        let row_index = |sequence, head, token| (sequence * queries.heads + head) * longest + token;
        let states = SharedMut::new(&mut self.states);
        let last_sweep = self.sweeps.len().saturating_sub(1);
        for (sweep, items) in self.sweeps.iter().enumerate() {
            for_each_task(items.len(), &mut self.scratches, |scratch, index| {
                let Item { sequence, head, heads, .. } = items[index];
                let schedule = &self.schedules[items[index].schedule];
                let tile = &schedule.tiles[items[index].tile];
                let Scratch { queries: q_tile, keys: k_tile, keys_transposed, values: v_tile, online } = scratch;
                let (count, rows) = (tile.count, tile.count * heads);
                // SAFETY: a row of a sweep belongs to one item of it.
                let state_of = |row: usize| unsafe {
                    let token = tile.queries.get(row % count);
                    states.slice(row_index(sequence, head + row / count, token) * (dv + 2), dv + 2)
                };
                if sweep == 0 {
                    online.reset(rows);
                } else {
                    for row in 0..rows {
                        let state = state_of(row);
                        (online.max[row], online.sum[row]) = (state[0], state[1]);
                        online.output[row * dv..][..dv].copy_from_slice(&state[2..]);
                    }
                }
                for in_item in 0..heads {
                    let q_tile = &mut q_tile[in_item * count * dk..][..count * dk];
                    q.read_tile(queries, (sequence, head + in_item), count, |row| tile.queries.get(row), q_tile);
                    q_tile.iter_mut().for_each(|x| *x *= scale);
                }
                let kv_row = (sequence, head / group);
                for run in &schedule.runs[tile.runs.clone()] {
                    for first in run.keys.clone().step_by(KEY_TILE) {
                        let keys_here = KEY_TILE.min(run.keys.end - first);
                        let token = |index| run.part.list.token(first + index);
                        k.read_tile(keys, kv_row, keys_here, token, k_tile);
                        transpose((keys_here, dk), k_tile, keys_transposed, KEY_TILE);
                        v.read_tile(values, kv_row, keys_here, token, v_tile);
                        online.score((rows, keys_here, dk), q_tile, keys_transposed, softcap);
                        if first < run.seen_by_all.start || first + keys_here > run.seen_by_all.end {
                            for row in 0..count {
                                let p = tile.queries.get(row) as i64 + schedule.query_offset;
                                let seen = run.part.indices(p);
                                let (begin, end) = (seen.start.saturating_sub(first), seen.end.saturating_sub(first));
                                for in_item in 0..heads {
                                    online.mask(in_item * count + row, keys_here, begin, end);
                                }
                            }
                        }
                        online.absorb(rows, keys_here, v_tile, dv);
                    }
                }
                for row in 0..rows {
                    if sweep < last_sweep {
                        let state = state_of(row);
                        (state[0], state[1]) = (online.max[row], online.sum[row]);
                        state[2..].copy_from_slice(&online.output[row * dv..][..dv]);
                        continue;
                    }
                    let (head, token) = (head + row / count, tile.queries.get(row % count));
                    let (output, log_sum) = online.finish(row);
                    // SAFETY: as above.
                    unsafe {
                        o.write(rows_o.offset(sequence, head, token), output);
                        if let Some(lse) = &lse {
                            lse.write(row_index(sequence, head, token), &[log_sum]);
                        }
                    }
                }
            });
        }
    }
}
