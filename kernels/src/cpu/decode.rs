//! Flash-decoding: what `split_kv`, `paged` and the absorbed decode of `mla` share (Dao, Haziza, Massa and Sizov 2023, "Flash-Decoding for long-context
//! inference"; the combination is that of partial softmaxes in Rabe and Staats 2021).
//!
//! The keys of a sequence are split; each split attends on its own, for the whole query group of a KV head at once, so
//! that every key and value is read once; then the splits are combined by their log-sum-exp. How the keys are split follows
//! from the problem alone, so the result is the same on any number of threads.
//!
//! Two regimes:
//! * few rows a KV head (at most [`STREAM_ELEMENTS`]): a task is one split of a sequence with *all* its KV heads
//!   where the heads of a token lie side by side, else with one of them. It takes the tokens in blocks of
//!   [`STREAM_KEYS`], keys then values: memory is read in order whatever the layout, at the stored width, and nothing is
//!   copied. Limit: the read bandwidth.
//! * more rows (MQA, append, absorbed MLA): a task is a tile of up to [`TILE_ROWS`] rows of one KV head and one split, whose
//!   scores [`super::columns`] keeps in columns, so that keys and values are not packed. Limit: the FMA rate.

use std::ops::Range;

use super::call::Call;
use super::columns::{ColumnState, QueryColumns, RowMatrix, absorb_columns};
use super::online::{TileState, absorb_scores, finish, local};
use super::rows::{Row, key_ranges};
use super::schedule::for_each_task;
use super::score::alibi_slopes;
use super::simd::Isa;
use super::simd::pack::widen_row;
use super::simd::stream::{self, StoredRows};
use crate::kernel::{KernelError, Plan, PlanContext};
use crate::pattern::Visibility;
use crate::problem::{AttentionProblem, Bias, Mechanism, Pattern, Phase};
use crate::shared_mut::SharedMut;
use crate::tensor::{Rows, Tensor, TensorName, TensorSet};

/// Elements of the queries and outputs of a KV head up to which K and V are streamed: both stay in the first-level cache
/// beside the keys. At d = 128 these are 16 rows.
const STREAM_ELEMENTS: usize = 16 * (128 + 128);
/// Keys a block when streaming: the scores of all heads stay in the first-level cache, and a row has whole vectors of them.
const STREAM_KEYS: usize = 64;
/// Rows a tile otherwise.
const TILE_ROWS: usize = 256;
/// Keys a block otherwise.
const BLOCK_KEYS: usize = 96;
/// Tasks wanted at least: several a thread on any usual machine, so that none waits long for the last.
const WANTED_TASKS: usize = 128;
/// Keys of a split at least: the combination then costs little beside reading them.
const MIN_SPLIT_KEYS: usize = 256;

/// What `split_kv` and `paged` take, whatever the layout of K and V.
pub(crate) fn supports(kernel: &str, problem: &AttentionProblem) -> Result<(), KernelError> {
    let refuse = |text: String| Err(KernelError::Unsupported(format!("{kernel} {text}")));
    if problem.mechanism != Mechanism::Softmax {
        return refuse(format!("computes softmax attention, not {}", problem.mechanism.name()));
    }
    if !matches!(problem.phase, Phase::Decode | Phase::Append) {
        return refuse(format!("computes decode and append, not {}", problem.phase.name()));
    }
    if !matches!(problem.pattern, Pattern::Full | Pattern::Window { .. }) {
        return refuse(format!("computes the patterns full and window, not {}", problem.pattern.name()));
    }
    if !matches!(problem.bias, Bias::None | Bias::Alibi) {
        return refuse("takes no mask and no bias but alibi (naive and flash take every one)".into());
    }
    Ok(())
}

/// Part of the work: rows `rows` of KV heads `heads` of a sequence, over `keys`.
struct SplitTask {
    sequence: usize,
    heads: Range<usize>,
    /// Rows within a KV head: row = query * group + head in the group, so that later rows see later keys.
    rows: Range<usize>,
    keys: Range<usize>,
    /// Where its partial results go: row r of KV head h is at `partial + h * rows_a_head + r`.
    partial: usize,
}

/// One sequence.
struct Sequence {
    key_ranges: Vec<Range<usize>>,
    offset: i64,
    /// First partial row of the first split, and the number of splits.
    partial: usize,
    splits: usize,
}

struct Scratch {
    rows: Vec<Row>,
    key_offsets: Vec<usize>,
    value_offsets: Vec<usize>,
    next_offsets: Vec<usize>,
    queries: Tensor,
    scores: Tensor,
    total: Tensor,
    tile: TileScratch,
}

/// What a tile needs beside its queries and scores.
struct TileScratch {
    packed_queries: Tensor,
    keys: Tensor,
    values: Tensor,
    max: Tensor,
    sum: Tensor,
    factors: Tensor,
    row_scores: Tensor,
}

impl TileScratch {
    /// For tiles of up to `rows` rows; nothing for none.
    fn new(isa: Isa, rows: usize, dim_qk: usize, dim_v: usize) -> TileScratch {
        let keys = if rows == 0 { 0 } else { BLOCK_KEYS };
        TileScratch {
            packed_queries: Tensor::f32s(QueryColumns::len(isa, dim_qk, rows)),
            keys: Tensor::f32s(keys * isa.pad(dim_qk)),
            values: Tensor::f32s(keys * isa.pad(dim_v)),
            max: Tensor::f32s(isa.pad(rows)),
            sum: Tensor::f32s(isa.pad(rows)),
            factors: Tensor::f32s(isa.pad(rows)),
            row_scores: Tensor::f32s(keys),
        }
    }

    /// Elements of all of it.
    fn elements(isa: Isa, rows: usize, dim_qk: usize, dim_v: usize) -> usize {
        QueryColumns::len(isa, dim_qk, rows) + BLOCK_KEYS * (isa.pad(dim_qk) + isa.pad(dim_v) + 1) + 3 * isa.pad(rows)
    }
}

struct Layout {
    problem: AttentionProblem,
    isa: Isa,
    dim_v: usize,
    sequences: Vec<Sequence>,
    tasks: Vec<SplitTask>,
    streams: bool,
    slopes: Vec<f32>,
    rows_q: Rows,
    rows_k: Rows,
    rows_v: Rows,
    rows_o: Rows,
}

/// A plan of `split_kv`, `paged` or `mla`'s decode.
pub(crate) struct DecodePlan {
    layout: Layout,
    /// Largest score, sum and weighted values of every row of every split.
    max: Tensor,
    sum: Tensor,
    out: Tensor,
    scratches: Vec<Scratch>,
}

impl DecodePlan {
    /// Splits the keys and allocates the partial results.
    pub(crate) fn new(isa: Isa, context: &PlanContext<'_>) -> Result<DecodePlan, KernelError> {
        let problem = context.problem;
        let (dim_qk, dim_v) = (problem.head_dim_qk, problem.head_dim_v);
        let (lengths_q, lengths_kv) = (problem.lengths_q(), problem.lengths_kv());
        let group = problem.group_size();
        let page_table = context.static_tensors.find(TensorName::PageTable);
        // Absorbed MLA's values are the heads of its keys.
        let row_v = if problem.is_absorbed_mla() { dim_qk } else { dim_v };
        let longest = lengths_q.iter().copied().max().unwrap_or(0);
        let streams = longest * group * (dim_qk + dim_v) <= STREAM_ELEMENTS;
        let mut layout = Layout {
            problem: problem.clone(),
            isa,
            dim_v: isa.pad(dim_v),
            sequences: Vec::new(),
            tasks: Vec::new(),
            streams,
            slopes: alibi_slopes(problem),
            rows_q: Rows::of_queries(problem, dim_qk),
            rows_k: Rows::of_keys(problem, dim_qk, page_table),
            rows_v: Rows::of_keys(problem, row_v, page_table),
            rows_o: Rows::of_queries(problem, dim_v),
        };
        // Tasks that exist without splitting.
        let tiles = (longest * group).div_ceil(TILE_ROWS).max(1) * problem.heads_kv;
        let unsplit =
            if streams { problem.batch * problem.heads_kv / layout.stream_heads() } else { problem.batch * tiles };
        let mut partial = 0;
        for (&len_q, &len_kv) in lengths_q.iter().zip(&lengths_kv) {
            partial += layout.add_sequence(len_q, len_kv, WANTED_TASKS.div_ceil(unsplit.max(1)), partial);
        }
        layout.tasks.sort_by_cached_key(|task| std::cmp::Reverse(task.keys.len() * task.rows.len()));
        let tile_rows = if streams { 0 } else { TILE_ROWS.min(longest * group) };
        let rows = if streams { longest * group * problem.heads_kv } else { tile_rows };
        let block = if streams { STREAM_KEYS } else { BLOCK_KEYS };
        let (queries, scores) = (rows * isa.pad(dim_qk), isa.pad(rows) * block);
        let tile = if streams { 0 } else { TileScratch::elements(isa, tile_rows, dim_qk, dim_v) };
        let threads = context.threads.max(1);
        context.check_workspace(
            4 * (partial as u64 * (2 + layout.dim_v) as u64 + (threads * (queries + scores + tile)) as u64),
        )?;
        let scratch = || Scratch {
            rows: Vec::with_capacity(rows),
            key_offsets: Vec::with_capacity(block.max(tile_rows)),
            value_offsets: Vec::with_capacity(block),
            next_offsets: Vec::with_capacity(block),
            queries: Tensor::f32s(queries),
            scores: Tensor::f32s(scores),
            total: Tensor::f32s(dim_v),
            tile: TileScratch::new(isa, tile_rows, dim_qk, dim_v),
        };
        Ok(DecodePlan {
            max: Tensor::f32s(partial),
            sum: Tensor::f32s(partial),
            out: Tensor::f32s(partial * layout.dim_v),
            scratches: (0..threads).map(|_| scratch()).collect(),
            layout,
        })
    }
}

impl Layout {
    /// Plans a sequence whose partial rows begin at `partial`; returns their number.
    fn add_sequence(&mut self, len_q: usize, len_kv: usize, wanted_splits: usize, partial: usize) -> usize {
        let visibility = Visibility::new(&self.problem, len_q, len_kv);
        let key_ranges = key_ranges(&visibility);
        let seen = key_ranges.iter().filter(|range| !range.is_empty());
        let start = seen.clone().map(|range| range.start).min().unwrap_or(0);
        let end = seen.map(|range| range.end).max().unwrap_or(0);
        let block = if self.streams { STREAM_KEYS } else { BLOCK_KEYS };
        let split = (end - start).div_ceil(wanted_splits).max(MIN_SPLIT_KEYS).next_multiple_of(block);
        let splits = (end - start).div_ceil(split);
        let (heads_kv, rows) = (self.problem.heads_kv, len_q * self.problem.group_size());
        for index in 0..splits {
            let from = start + index * split;
            let keys = from..(from + split).min(end);
            let sequence = self.sequences.len();
            let partial = partial + index * heads_kv * rows;
            if self.streams {
                for first in (0..heads_kv).step_by(self.stream_heads()) {
                    let heads = first..(first + self.stream_heads()).min(heads_kv);
                    self.tasks.push(SplitTask { sequence, heads, rows: 0..rows, keys: keys.clone(), partial });
                }
                continue;
            }
            for head in 0..heads_kv {
                for first in (0..rows).step_by(TILE_ROWS) {
                    let rows = first..(first + TILE_ROWS).min(rows);
                    let heads = head..head + 1;
                    self.tasks.push(SplitTask { sequence, heads, rows, keys: keys.clone(), partial });
                }
            }
        }
        self.sequences.push(Sequence { key_ranges, offset: visibility.query_offset, partial, splits });
        splits * heads_kv * rows
    }

    /// KV heads that a streaming task takes together: all of them where the heads of a token lie side by side, else one.
    fn stream_heads(&self) -> usize {
        if self.rows_k.head_stride() <= self.rows_k.token_stride() { self.problem.heads_kv } else { 1 }
    }

    /// Row `row` of KV head `head`.
    fn row(&self, sequence: &Sequence, head: usize, row: usize) -> Row {
        let group = self.problem.group_size();
        let query = row / group;
        Row {
            head: head * group + row % group,
            query,
            position: query as i64 + sequence.offset,
            keys: sequence.key_ranges[query].clone(),
        }
    }

    /// The rows of a task and their queries, scaled and padded to `padded` elements.
    fn load(&self, task: &SplitTask, call: &Call<'_>, padded: usize, rows: &mut Vec<Row>, queries: &mut [f32]) {
        let sequence = &self.sequences[task.sequence];
        rows.clear();
        for head in task.heads.clone() {
            rows.extend(task.rows.clone().map(|row| self.row(sequence, head, row)));
        }
        for (row, out) in rows.iter().zip(queries.chunks_mut(padded)) {
            let offset = self.rows_q.offset(task.sequence, row.head, row.query);
            widen_row(self.isa, call.q, offset, self.problem.head_dim_qk, call.scale, out);
        }
    }

    /// One split of a sequence, all KV heads, K and V streamed.
    fn stream(&self, task: &SplitTask, call: &Call<'_>, partials: &Partials, scratch: &mut Scratch) {
        let (dim_qk, isa) = (self.problem.head_dim_qk, self.isa);
        let padded = isa.pad(dim_qk);
        let queries = scratch.queries.as_mut_slice::<f32>();
        self.load(task, call, padded, &mut scratch.rows, queries);
        let count = task.rows.len();
        let (keys, head, heads) = (task.keys.clone(), task.heads.start, task.heads.len());
        // SAFETY: each split has its own partial rows.
        let (max, sum, out) = unsafe { partials.rows(task.partial + head * count, heads * count, self.dim_v) };
        max.fill(f32::NEG_INFINITY);
        sum.fill(0.0);
        out.fill(0.0);
        let starts = |rows: &Rows, first: usize, offsets: &mut Vec<usize>| {
            offsets.clear();
            let end = keys.end.min(first + STREAM_KEYS);
            offsets.extend((first..end).map(|token| rows.offset(task.sequence, head, token)));
        };
        starts(&self.rows_k, keys.start, &mut scratch.next_offsets);
        for first in keys.clone().step_by(STREAM_KEYS) {
            std::mem::swap(&mut scratch.key_offsets, &mut scratch.next_offsets);
            let next = first + STREAM_KEYS;
            starts(&self.rows_v, first, &mut scratch.value_offsets);
            starts(&self.rows_k, next.min(keys.end), &mut scratch.next_offsets);
            let len = scratch.key_offsets.len();
            let width = isa.pad(len);
            let key_rows = stored_rows(call.k, &self.rows_k, heads, dim_qk, &scratch.key_offsets);
            let value_rows = stored_rows(call.v, &self.rows_v, heads, self.problem.head_dim_v, &scratch.value_offsets);
            let next_rows = stored_rows(call.k, &self.rows_k, heads, dim_qk, &scratch.next_offsets);
            let scores = &mut scratch.scores.as_mut_slice::<f32>()[..heads * count * width];
            stream::scores(isa, &queries[..heads * count * padded], key_rows, Some(&value_rows), scores, width);
            let mut state = TileState { max: &mut *max, sum: &mut *sum, out: &mut *out, scores: &mut *scores };
            absorb_scores(isa, &call.rules, task.sequence, &scratch.rows, first, len, self.dim_v, &mut state);
            stream::accumulate(isa, scores, width, value_rows, Some(&next_rows), out);
        }
    }

    /// One tile of rows of one KV head over one split, scores in columns.
    fn tile(&self, task: &SplitTask, call: &Call<'_>, partials: &Partials, scratch: &mut Scratch) {
        let (isa, dim_qk, dim_v) = (self.isa, self.problem.head_dim_qk, self.problem.head_dim_v);
        let (count, head) = (task.rows.len(), task.heads.start);
        self.load(task, call, dim_qk, &mut scratch.rows, scratch.queries.as_mut_slice());
        let tile = &mut scratch.tile;
        let queries = QueryColumns::pack(
            isa,
            (&scratch.queries, count, dim_qk),
            &mut scratch.key_offsets,
            tile.packed_queries.as_mut_slice(),
        );
        let rows_a_head = self.sequences[task.sequence].key_ranges.len() * self.problem.group_size();
        // SAFETY: each (split, KV head, row) belongs to one task.
        let (max, sum, out) =
            unsafe { partials.rows(task.partial + head * rows_a_head + task.rows.start, count, self.dim_v) };
        let mut state = ColumnState {
            max: &mut tile.max.as_mut_slice()[..isa.pad(count)],
            sum: &mut tile.sum.as_mut_slice()[..isa.pad(count)],
            factors: &mut tile.factors.as_mut_slice()[..isa.pad(count)],
            out,
            scores: scratch.scores.as_mut_slice(),
            row_scores: tile.row_scores.as_mut_slice(),
        };
        state.reset();
        let seen = scratch.rows[0].keys.start..scratch.rows[count - 1].keys.end;
        for first in task.keys.clone().step_by(BLOCK_KEYS) {
            let len = BLOCK_KEYS.min(task.keys.end - first);
            if local(&seen, first, len).is_empty() {
                continue;
            }
            let find = |rows: &Rows, offsets: &mut Vec<usize>| {
                offsets.clear();
                offsets.extend((first..first + len).map(|token| rows.offset(task.sequence, head, token)));
            };
            find(&self.rows_k, &mut scratch.key_offsets);
            let keys = RowMatrix::new(isa, call.k, &scratch.key_offsets, dim_qk, tile.keys.as_mut_slice());
            let values = if self.problem.is_absorbed_mla() && dim_v == self.dim_v {
                // The values are the heads of the keys.
                keys
            } else {
                find(&self.rows_v, &mut scratch.value_offsets);
                RowMatrix::new(isa, call.v, &scratch.value_offsets, dim_v, tile.values.as_mut_slice())
            };
            let block = (keys, values, self.dim_v);
            absorb_columns(&call.rules, task.sequence, &scratch.rows, &queries, block, (first, len), &mut state);
        }
        max.copy_from_slice(&state.max[..count]);
        sum.copy_from_slice(&state.sum[..count]);
    }

    /// Combines the splits of every row of a KV head and writes the row. `total` is scratch of d_v elements.
    fn combine(&self, sequence: usize, head: usize, call: &Call<'_>, partials: &Partials, total: &mut [f32]) {
        let index = sequence;
        let sequence = &self.sequences[index];
        let count = sequence.key_ranges.len() * self.problem.group_size();
        let dim_v = self.problem.head_dim_v;
        for row_index in 0..count {
            let row = self.row(sequence, head, row_index);
            let part = |split: usize| {
                let partial = sequence.partial + (split * self.problem.heads_kv + head) * count + row_index;
                // SAFETY: every split has been written, and from now on they are only read.
                let (max, sum, out) = unsafe { partials.rows(partial, 1, self.dim_v) };
                (max[0], sum[0], &out[..dim_v])
            };
            let top = (0..sequence.splits).map(|split| part(split).0).fold(f32::NEG_INFINITY, f32::max);
            total.fill(0.0);
            let mut sum = 0.0;
            for split in 0..sequence.splits {
                let (max, part_sum, out) = part(split);
                if part_sum == 0.0 {
                    continue;
                }
                let weight = (max - top).exp();
                sum += weight * part_sum;
                total.iter_mut().zip(out).for_each(|(total, &x)| *total += weight * x);
            }
            let (factor, lse) = finish(top, sum, call.sinks.map(|sinks| sinks[row.head]));
            // SAFETY: each (sequence, head, query) is combined once.
            unsafe {
                call.o.write(self.rows_o.offset(index, row.head, row.query), total, factor);
                if let Some(out) = &call.lse {
                    out.write(index, row.head, row.query, lse);
                }
            }
        }
    }
}

/// The first `dim` elements of rows of `heads` heads; `offsets` are those of the first.
fn stored_rows<'a>(tensor: &'a Tensor, rows: &Rows, heads: usize, dim: usize, offsets: &'a [usize]) -> StoredRows<'a> {
    StoredRows { tensor, offsets, heads, head_stride: rows.head_stride(), dim }
}

/// The partial results, which threads write at rows of their own.
struct Partials {
    max: SharedMut<f32>,
    sum: SharedMut<f32>,
    out: SharedMut<f32>,
}

impl Partials {
    /// # Safety
    /// No two live results may overlap, unless they are only read.
    #[allow(clippy::mut_from_ref)]
    unsafe fn rows(&self, first: usize, count: usize, dim: usize) -> (&mut [f32], &mut [f32], &mut [f32]) {
        // SAFETY: as the caller promises.
        unsafe {
            (self.max.slice(first, count), self.sum.slice(first, count), self.out.slice(first * dim, count * dim))
        }
    }
}

impl Plan for DecodePlan {
    fn run(&mut self, inputs: &TensorSet, outputs: &mut TensorSet) {
        let layout = &self.layout;
        let call = Call::new(&layout.problem, &layout.slopes, inputs, outputs);
        let partials = Partials {
            max: SharedMut::new(self.max.as_mut_slice()),
            sum: SharedMut::new(self.sum.as_mut_slice()),
            out: SharedMut::new(self.out.as_mut_slice()),
        };
        for_each_task(layout.tasks.len(), &mut self.scratches, |scratch, task| {
            let task = &layout.tasks[task];
            if layout.streams {
                layout.stream(task, &call, &partials, scratch);
            } else {
                layout.tile(task, &call, &partials, scratch);
            }
        });
        let heads = layout.problem.heads_kv;
        for_each_task(layout.sequences.len() * heads, &mut self.scratches, |scratch, task| {
            let total = &mut scratch.total.as_mut_slice::<f32>()[..layout.problem.head_dim_v];
            layout.combine(task / heads, task % heads, &call, &partials, total);
        });
    }
}
