//! Attention of query tiles over lists of keys: the engine of `block_sparse`.
//!
//! A [`Schedule`] is made from shapes alone. It cuts the queries into tiles and says for each which runs of keys it
//! visits; a tile is computed with the online softmax of [`super::online`], looking at nothing else. Both queries and keys
//! may be every s-th token, or a list of tokens in which each query still sees one interval, so that dilated and strided
//! patterns lose no work to masks: only the panels at the ends of a run are masked.
//!
//! Tiles: up to [`QUERY_TILE`] queries of up to [`MAX_ROWS`] / [`QUERY_TILE`] heads that share K and V, by blocks of
//! [`BLOCK_KEYS`] keys that are packed as they come, so that packing costs about 1 / rows of the products. Tiles with the
//! most pairs are started first.

use std::ops::Range;

use super::call::Call;
use super::key_list::{Part, Tokens};
use super::online::{TileShape, TileState, absorb, finish};
use super::packed_kv::BlockPacker;
use super::rows::Row;
use super::schedule::for_each_task;
use super::simd::Isa;
use super::simd::pack::widen_row;
use crate::kernel::{KernelError, Plan, PlanContext};
use crate::problem::AttentionProblem;
use crate::shared_mut::SharedMut;
use crate::tensor::{Rows, Tensor, TensorName, TensorSet};

/// Queries a tile.
pub(crate) const QUERY_TILE: usize = 64;
/// Rows of a tile, queries times heads.
const MAX_ROWS: usize = 4 * QUERY_TILE;
/// Keys a block.
const BLOCK_KEYS: usize = 128;

/// Neighbouring indices of a part's list that a query tile visits.
#[derive(Clone, Debug)]
struct Run {
    part: Part,
    keys: Range<usize>,
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
                self.runs.push(Run { part: *part, keys });
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
    layout: Layout,
    sweeps: Vec<Vec<Item>>,
    /// Between sweeps: (maximum, sum, output) of each (sequence, head, token), padded to the longest sequence.
    states: Tensor,
    scratches: Vec<Scratch>,
}

/// What stays the same from call to call.
struct Layout {
    problem: AttentionProblem,
    shape: TileShape,
    packer: BlockPacker,
    schedules: Vec<Schedule>,
    rows_q: Rows,
    rows_k: Rows,
    rows_v: Rows,
    rows_o: Rows,
    longest_q: usize,
}

struct Scratch {
    rows: Vec<Row>,
    offsets: Vec<usize>,
    max: Tensor,
    sum: Tensor,
    queries: Tensor,
    out: Tensor,
    scores: Tensor,
    packed: Tensor,
}

impl TiledPlan {
    pub(crate) fn new(isa: Isa, context: &PlanContext<'_>, sweeps: Sweeps) -> Result<Self, KernelError> {
        let problem = context.problem;
        let (dim_qk, dim_v) = (problem.head_dim_qk, problem.head_dim_v);
        let page_table = context.static_tensors.find(TensorName::PageTable);
        let rows_q = Rows::of_queries(problem, dim_qk);
        let longest_q = rows_q.lengths.iter().copied().max().unwrap_or(0);
        let tile_queries = QUERY_TILE.min(longest_q.max(1));
        let tile_heads = (MAX_ROWS / tile_queries).min(problem.group_size());
        let rows = tile_queries * tile_heads;
        let shape = TileShape { isa, dim_qk, dim_v: isa.pad(dim_v) };
        let packer = BlockPacker { isa, block: BLOCK_KEYS, dim_qk, dim_v };

        let states = match sweeps.sweeps.len() {
            0 | 1 => 0,
            _ => problem.batch * problem.heads_q * longest_q * (2 + shape.dim_v),
        };
        let scratch = rows * (2 + dim_qk + shape.dim_v + BLOCK_KEYS) + packer.block_elements();
        let schedules_bytes: u64 = sweeps.schedules.iter().map(Schedule::bytes).sum();
        context.check_workspace(schedules_bytes + 4 * (states as u64 + (context.threads * scratch) as u64))?;

        let layout = Layout {
            problem: problem.clone(),
            shape,
            packer,
            schedules: sweeps.schedules,
            rows_k: Rows::of_keys(problem, dim_qk, page_table),
            rows_v: Rows::of_keys(problem, dim_v, page_table),
            rows_o: Rows::of_queries(problem, dim_v),
            rows_q,
            longest_q,
        };
        let scratch = || Scratch {
            rows: Vec::with_capacity(rows),
            offsets: vec![0; BLOCK_KEYS],
            max: Tensor::f32s(rows),
            sum: Tensor::f32s(rows),
            queries: Tensor::f32s(rows * dim_qk),
            out: Tensor::f32s(rows * shape.dim_v),
            scores: Tensor::f32s(rows * BLOCK_KEYS),
            packed: Tensor::f32s(packer.block_elements()),
        };
        Ok(TiledPlan {
            sweeps: sweeps.sweeps.iter().map(|schedule_of| layout.items(schedule_of, tile_heads)).collect(),
            states: Tensor::f32s(states),
            scratches: (0..context.threads.max(1)).map(|_| scratch()).collect(),
            layout,
        })
    }
}

impl Layout {
    /// The tiles of a sweep, the longest first.
    fn items(&self, schedule_of: &[usize], tile_heads: usize) -> Vec<Item> {
        let (heads_q, group) = (self.problem.heads_q, self.problem.group_size());
        let mut items = Vec::new();
        for sequence in 0..self.problem.batch {
            let mut head = 0;
            while head < heads_q {
                let schedule = schedule_of[sequence * heads_q + head];
                // Neighbours with the same keys and the same schedule.
                let heads = (head..(head / group + 1) * group)
                    .take(tile_heads)
                    .take_while(|head| schedule_of[sequence * heads_q + head] == schedule)
                    .count();
                let tiles = 0..self.schedules[schedule].tiles.len();
                items.extend(tiles.map(|tile| Item { schedule, tile, sequence, head, heads }));
                head += heads;
            }
        }
        items.sort_by_key(|item| std::cmp::Reverse(self.schedules[item.schedule].tiles[item.tile].cost * item.heads));
        items
    }

    /// Attends from one tile: on from the states of the sweep before, to the states or, after the last sweep, the output.
    fn attend(
        &self,
        item: &Item,
        (is_first, is_last): (bool, bool),
        call: &Call<'_>,
        states: &SharedMut<f32>,
        scratch: &mut Scratch,
    ) {
        let &Item { sequence, head, heads, .. } = item;
        let (schedule, shape) = (&self.schedules[item.schedule], self.shape);
        let tile = &schedule.tiles[item.tile];
        // The heads of a query are neighbours: what a row sees never goes back from one row to the next.
        scratch.rows.clear();
        for query in (0..tile.count).map(|index| tile.queries.get(index)) {
            let position = query as i64 + schedule.query_offset;
            scratch.rows.extend((head..head + heads).map(|head| Row { head, query, position, keys: 0..0 }));
        }
        let rows = &mut scratch.rows;
        let queries = scratch.queries.as_mut_slice::<f32>();
        for (row, out) in rows.iter().zip(queries.chunks_mut(shape.dim_qk)) {
            let offset = self.rows_q.offset(sequence, row.head, row.query);
            widen_row(shape.isa, call.q, offset, shape.dim_qk, call.scale, out);
        }
        let mut state = TileState {
            max: &mut scratch.max.as_mut_slice()[..rows.len()],
            sum: &mut scratch.sum.as_mut_slice()[..rows.len()],
            out: &mut scratch.out.as_mut_slice()[..rows.len() * shape.dim_v],
            scores: scratch.scores.as_mut_slice(),
        };
        // SAFETY: a row of a sweep belongs to one item of it.
        let saved = |row: &Row| unsafe {
            let row = (sequence * self.problem.heads_q + row.head) * self.longest_q + row.query;
            states.slice(row * (2 + shape.dim_v), 2 + shape.dim_v)
        };
        if is_first {
            state.reset();
        } else {
            for (index, row) in rows.iter().enumerate() {
                let saved = saved(row);
                (state.max[index], state.sum[index]) = (saved[0], saved[1]);
                state.out[index * shape.dim_v..][..shape.dim_v].copy_from_slice(&saved[2..]);
            }
        }
        for run in &schedule.runs[tile.runs.clone()] {
            // From here on keys are counted by their place in the run's list.
            for row in rows.iter_mut() {
                row.keys = run.part.indices(row.position);
            }
            for first in run.keys.clone().step_by(BLOCK_KEYS) {
                let len = BLOCK_KEYS.min(run.keys.end - first);
                let packed = scratch.packed.as_mut_slice::<f32>();
                self.packer.pack(
                    (call.k, &self.rows_k),
                    (call.v, &self.rows_v),
                    (sequence, head / self.problem.group_size()),
                    len,
                    |index| run.part.list.token(first + index),
                    &mut scratch.offsets,
                    packed,
                );
                let block = self.packer.view(packed, first, len);
                absorb(shape, &call.rules, sequence, rows, queries, block, &mut state);
            }
        }
        for (index, row) in rows.iter().enumerate() {
            let out = &state.out[index * shape.dim_v..][..shape.dim_v];
            if !is_last {
                let saved = saved(row);
                (saved[0], saved[1]) = (state.max[index], state.sum[index]);
                saved[2..].copy_from_slice(out);
                continue;
            }
            let (factor, lse) = finish(state.max[index], state.sum[index], None);
            // SAFETY: as above.
            unsafe {
                let offset = self.rows_o.offset(sequence, row.head, row.query);
                call.o.write(offset, &out[..self.problem.head_dim_v], factor);
                if let Some(out) = &call.lse {
                    out.write(sequence, row.head, row.query, lse);
                }
            }
        }
    }
}

impl Plan for TiledPlan {
    fn run(&mut self, inputs: &TensorSet, outputs: &mut TensorSet) {
        let layout = &self.layout;
        let call = Call::new(&layout.problem, &[], inputs, outputs);
        let states = SharedMut::new(self.states.as_mut_slice::<f32>());
        let last = self.sweeps.len().saturating_sub(1);
        for (sweep, items) in self.sweeps.iter().enumerate() {
            let place = (sweep == 0, sweep == last);
            for_each_task(items.len(), &mut self.scratches, |scratch, item| {
                layout.attend(&items[item], place, &call, &states, scratch);
            });
        }
    }
}
