//! The backward of `flash` (Dao 2023, FlashAttention-2, Algorithm 2): (Q, K, V, O, LSE, dO) -> (dQ, dK, dV).
//!
//! With D = rowsum(dO * O), for each block of keys and each tile of queries that sees it: P = exp(scale Q K^T - LSE) is
//! computed again, dP = dO V^T, dS = P (dP - D), dV += P^T dO, dK += scale dS^T Q and dQ += scale dS K. The soft-cap
//! multiplies dS by 1 - (s / cap)^2. dK and dV of a block of keys are summed over the query heads that share them.
//!
//! On a CPU: keys are outside. K, K^T and V^T of a block of [`BLOCK_KEYS`] are widened and packed once for all queries of
//! the group, and its dK and dV stay in the second-level cache; Q and dO of a tile of [`TILE_ROWS`] are widened once a
//! block, and each is the left side of one product and, as it lies, the right side of another. Scores, P, dP and dS exist
//! for [`SLICE_KEYS`] of the block at a time: P takes the place of the scores and dS of dP in one pass between the
//! products. Only dQ goes through memory, once a block. At d = 128 a block and a tile take 0.95 MiB. Where a mask cuts a
//! block, tiles end where a query sees a further [`CUT_KEYS`] of its keys, and the products of a tile leave out what none
//! of its queries sees.
//!
//! A work item is one KV head of one sequence, with an f32 dQ of its own; where that would leave threads idle, its key
//! blocks are dealt out to several items, whose dQ are added in order. Nothing is added by two threads at a time, so two
//! runs with the same number of threads agree bit for bit, whether the problem asks for it or not. Rows with LSE = -inf
//! have no gradient.
//!
//! Limit: the FMA rate of the cores in five products a pair, 2 pairs (3 d_qk + 2 d_v) FLOPs a head. The pass between the
//! products takes about twenty vector instructions for every vector of pairs: 6 % of the time at d = 64, 4 % at d = 128.

use std::ops::Range;

use super::rows::{SharedRows, key_ranges};
use super::schedule::for_each_task;
use super::simd::exp::{softmax_weight, tanh};
use super::simd::gemm::{Panels, Strided, gemm};
use super::simd::pack::{PackedShape, pack_columns, widen_row, widen_rows};
use super::simd::{Isa, Simd, Task};
use crate::kernel::{KernelError, Plan, PlanContext};
use crate::pattern::Visibility;
use crate::problem::{AttentionProblem, Bias, KvLayout, Mechanism, Pattern, Phase};
use crate::shared_mut::SharedMut;
use crate::tensor::{Rows, Tensor, TensorName, TensorSet};

/// Queries a tile.
const TILE_ROWS: usize = 96;
/// Keys a block.
const BLOCK_KEYS: usize = 256;
/// Keys whose scores are in memory at a time.
const SLICE_KEYS: usize = 128;
/// Where masks cut a block: whole panels of every instruction set, and a part of a slice.
const CUT_KEYS: usize = 64;
/// Depth of a product: a panel of the right side stays in the first-level cache.
const DEPTH: usize = 128;
/// Elements a cache line.
const LINE: usize = 16;

/// Whether `flash` computes this backward problem.
pub(crate) fn supports(problem: &AttentionProblem) -> Result<(), KernelError> {
    let unsupported = |text: String| Err(KernelError::Unsupported(text));
    if problem.phase != Phase::Backward {
        return unsupported(format!("phase {}: flash's backward computes gradients only", problem.phase.name()));
    }
    if problem.mechanism != Mechanism::Softmax {
        return unsupported(format!("mechanism {}: flash's backward is softmax's", problem.mechanism.name()));
    }
    if !matches!(problem.pattern, Pattern::Full | Pattern::Window { .. }) {
        return unsupported(format!(
            "pattern {}: flash's backward has full and window, causal or not",
            problem.pattern.name()
        ));
    }
    if problem.kv_layout != KvLayout::Contiguous {
        return unsupported("a paged KV layout: flash's backward reads contiguous keys and values".into());
    }
    if problem.bias != Bias::None || problem.sinks {
        return unsupported("a bias or sinks: flash's backward has scale, softcap and masks only".into());
    }
    Ok(())
}

/// A plan of a backward problem.
pub(crate) fn plan(isa: Isa, context: &PlanContext<'_>) -> Result<Box<dyn Plan>, KernelError> {
    supports(context.problem)?;
    Ok(Box::new(BackwardPlan::new(isa, context)?))
}

struct BackwardPlan {
    layout: BackwardLayout,
    /// D, (batch, heads_q, longest_q).
    deltas: Tensor,
    /// dQ / scale, (group, longest_q, dq_stride) a buffer: one a thread where heads are whole, else one an item.
    dq: Tensor,
    scratches: Vec<Scratch>,
}

/// What stays the same from call to call.
struct BackwardLayout {
    isa: Isa,
    scale: f32,
    softcap: Option<f32>,
    heads_kv: usize,
    /// Query heads a KV head.
    group: usize,
    rows_q: Rows,
    rows_o: Rows,
    rows_k: Rows,
    rows_v: Rows,
    longest_q: usize,
    /// The keys that each query sees, of each sequence.
    key_ranges: Vec<Vec<Range<usize>>>,
    /// Items a KV head.
    parts: usize,
    items: Vec<Item>,
}

/// One KV head of one sequence, or a part of its key blocks.
struct Item {
    sequence: usize,
    head: usize,
    part: usize,
}

/// What a thread works in. Row strides are [`odd_lines`].
struct Scratch {
    thread: usize,
    offsets: Vec<usize>,
    /// (BLOCK_KEYS, d_qk).
    keys: Tensor,
    /// K^T, packed slice by slice.
    keys_transposed: Tensor,
    /// V^T, packed slice by slice.
    values_transposed: Tensor,
    /// (TILE_ROWS, d_qk).
    queries: Tensor,
    /// dO: (TILE_ROWS, d_v).
    output_gradients: Tensor,
    /// Scores, then P: (TILE_ROWS, SLICE_KEYS).
    weights: Tensor,
    /// dP, then dS: (TILE_ROWS, SLICE_KEYS).
    gradients: Tensor,
    /// dK / scale: (BLOCK_KEYS, d_qk).
    dk: Tensor,
    /// (BLOCK_KEYS, d_v).
    dv: Tensor,
}

/// The tensors of a call.
struct Call<'a> {
    q: &'a Tensor,
    k: &'a Tensor,
    v: &'a Tensor,
    o: &'a Tensor,
    d_o: &'a Tensor,
    lse: &'a [f32],
    dq: SharedRows,
    dk: SharedRows,
    dv: SharedRows,
}

impl<'a> Call<'a> {
    fn new(inputs: &'a TensorSet, outputs: &mut TensorSet) -> Self {
        Call {
            q: inputs.get(TensorName::Q),
            k: inputs.get(TensorName::K),
            v: inputs.get(TensorName::V),
            o: inputs.get(TensorName::O),
            d_o: inputs.get(TensorName::DO),
            lse: inputs.get(TensorName::Lse).as_slice(),
            dq: SharedRows::new(outputs.get_mut(TensorName::DQ)),
            dk: SharedRows::new(outputs.get_mut(TensorName::DK)),
            dv: SharedRows::new(outputs.get_mut(TensorName::DV)),
        }
    }
}

/// A row stride for `columns` elements: an odd number of cache lines, so that a column of a tile does not fall into few
/// sets of a cache.
fn odd_lines(columns: usize) -> usize {
    (columns.div_ceil(LINE) | 1) * LINE
}

/// The fewest items a KV head that keep threads busy for at least ten elevenths of the time.
fn parts_per_head(heads: usize, threads: usize) -> usize {
    let is_balanced = |&parts: &usize| 10 * (heads * parts).next_multiple_of(threads) <= 11 * heads * parts;
    (1..threads).find(is_balanced).unwrap_or(threads)
}

impl Scratch {
    /// Elements of the tensors, in their order.
    fn elements(dim_k: usize, dim_v: usize) -> [usize; 9] {
        let (stride_k, stride_v) = (odd_lines(dim_k), odd_lines(dim_v));
        let scores = TILE_ROWS * odd_lines(SLICE_KEYS);
        [
            BLOCK_KEYS * stride_k,
            BLOCK_KEYS * dim_k,
            BLOCK_KEYS * dim_v,
            TILE_ROWS * stride_k,
            TILE_ROWS * stride_v,
            scores,
            scores,
            BLOCK_KEYS * stride_k,
            BLOCK_KEYS * stride_v,
        ]
    }

    fn new(thread: usize, elements: [usize; 9]) -> Scratch {
        let [keys, keys_transposed, values_transposed, queries, output_gradients, weights, gradients, dk, dv] =
            elements.map(Tensor::f32s);
        Scratch {
            thread,
            offsets: vec![0; BLOCK_KEYS.max(TILE_ROWS)],
            keys,
            keys_transposed,
            values_transposed,
            queries,
            output_gradients,
            weights,
            gradients,
            dk,
            dv,
        }
    }
}

impl BackwardPlan {
    fn new(isa: Isa, context: &PlanContext<'_>) -> Result<Self, KernelError> {
        let (problem, threads) = (context.problem, context.threads.max(1));
        let (dim_k, dim_v, group) = (problem.head_dim_qk, problem.head_dim_v, problem.group_size());
        let rows_q = Rows::of_queries(problem, dim_k);
        let rows_k = Rows::of_keys(problem, dim_k, None);
        let longest_q = rows_q.lengths.iter().copied().max().unwrap_or(0);
        let heads = problem.batch * problem.heads_kv;
        let parts = parts_per_head(heads, threads);
        let key_ranges: Vec<_> = rows_q
            .lengths
            .iter()
            .zip(&rows_k.lengths)
            .map(|(&len_q, &len_kv)| key_ranges(&Visibility::new(problem, len_q, len_kv)))
            .collect();
        let mut items: Vec<Item> = (0..heads * parts)
            .map(|index| {
                let head = index / parts;
                Item { sequence: head / problem.heads_kv, head: head % problem.heads_kv, part: index % parts }
            })
            .collect();
        // Longest first.
        let pairs: Vec<usize> =
            key_ranges.iter().map(|ranges| ranges.iter().map(|range| range.len()).sum::<usize>()).collect();
        items.sort_by_key(|item| std::cmp::Reverse(pairs[item.sequence]));

        let buffers = if parts == 1 { threads } else { items.len() };
        let dq_elements = buffers as u64 * (group * longest_q) as u64 * isa.pad(dim_k) as u64;
        let delta_elements = (problem.batch * problem.heads_q) as u64 * longest_q as u64;
        let scratch_elements = Scratch::elements(dim_k, dim_v);
        let scratch_total = threads * scratch_elements.iter().sum::<usize>();
        context.check_workspace(4 * (dq_elements + delta_elements + scratch_total as u64))?;
        let layout = BackwardLayout {
            isa,
            scale: problem.effective_scale() as f32,
            softcap: problem.softcap.map(|cap| cap as f32),
            heads_kv: problem.heads_kv,
            group,
            rows_o: Rows::of_queries(problem, dim_v),
            rows_v: Rows::of_keys(problem, dim_v, None),
            rows_q,
            rows_k,
            longest_q,
            key_ranges,
            parts,
            items,
        };
        Ok(BackwardPlan {
            layout,
            deltas: Tensor::f32s(delta_elements as usize),
            dq: Tensor::f32s(dq_elements as usize),
            scratches: (0..threads).map(|thread| Scratch::new(thread, scratch_elements)).collect(),
        })
    }
}

impl Plan for BackwardPlan {
    fn run(&mut self, inputs: &TensorSet, outputs: &mut TensorSet) {
        let BackwardPlan { layout, deltas, dq, scratches } = self;
        let call = Call::new(inputs, outputs);
        let tiles = layout.longest_q.div_ceil(TILE_ROWS);
        let tile_tasks = layout.rows_q.lengths.len() * layout.rows_q.heads * tiles;
        // (sequence, head, first query and the one after the last).
        let tile_of = |task: usize| {
            let (row, first) = (task / tiles, task % tiles * TILE_ROWS);
            let (sequence, head) = (row / layout.rows_q.heads, row % layout.rows_q.heads);
            (sequence, head, first..layout.rows_q.lengths[sequence].min(first + TILE_ROWS))
        };

        let shared_deltas = SharedMut::new(deltas.as_mut_slice::<f32>());
        for_each_task(tile_tasks, scratches, |scratch, task| {
            let (sequence, head, queries) = tile_of(task);
            // SAFETY: a query row belongs to one tile.
            let deltas = unsafe { shared_deltas.slice(layout.row(sequence, head, queries.start), queries.len()) };
            layout.deltas(&call, (sequence, head), queries, scratch, deltas);
        });

        let deltas = deltas.as_slice::<f32>();
        let dq = SharedMut::new(dq.as_mut_slice::<f32>());
        for_each_task(layout.items.len(), scratches, |scratch, task| {
            let item = &layout.items[task];
            let buffer = if layout.parts == 1 { scratch.thread } else { layout.first_buffer(item) + item.part };
            let size = layout.buffer_elements();
            // SAFETY: a buffer belongs to one thread, or to one item.
            let dq = unsafe { dq.slice(buffer * size, size) };
            layout.item(&call, item, deltas, scratch, dq);
        });

        if layout.parts > 1 {
            for_each_task(tile_tasks, scratches, |_, task| {
                let (sequence, head, queries) = tile_of(task);
                layout.add_parts(&call, (sequence, head), queries, &dq);
            });
        }
    }
}

impl BackwardLayout {
    /// Where a query is in LSE and D.
    fn row(&self, sequence: usize, head: usize, query: usize) -> usize {
        (sequence * self.rows_q.heads + head) * self.longest_q + query
    }

    /// Elements from one query to the next in the buffers of dQ.
    fn dq_stride(&self) -> usize {
        self.isa.pad(self.rows_q.dim)
    }

    /// Elements of a buffer of dQ.
    fn buffer_elements(&self) -> usize {
        self.group * self.longest_q * self.dq_stride()
    }

    /// The buffer of the first part of an item's KV head, where heads are in parts.
    fn first_buffer(&self, item: &Item) -> usize {
        (item.sequence * self.heads_kv + item.head) * self.parts
    }

    /// The key blocks of an item, dealt to and fro: with a causal mask, earlier ones have more work.
    fn blocks(&self, item: &Item) -> impl Iterator<Item = usize> {
        let (parts, part) = (self.parts, item.part);
        let blocks = self.rows_k.lengths[item.sequence].div_ceil(BLOCK_KEYS);
        (0..blocks.div_ceil(parts))
            .map(move |deal| deal * parts + if deal % 2 == 0 { part } else { parts - 1 - part })
            .filter(move |&block| block < blocks)
    }

    /// D of some queries.
    fn deltas(
        &self,
        call: &Call<'_>,
        (sequence, head): (usize, usize),
        queries: Range<usize>,
        scratch: &mut Scratch,
        deltas: &mut [f32],
    ) {
        let (dim, padded) = (self.rows_o.dim, self.isa.pad(self.rows_o.dim));
        let o = &mut scratch.dv.as_mut_slice::<f32>()[..padded];
        let d_o = &mut scratch.output_gradients.as_mut_slice::<f32>()[..padded];
        for (query, delta) in queries.zip(deltas) {
            let offset = self.rows_o.offset(sequence, head, query);
            widen_row(self.isa, call.o, offset, dim, 1.0, o);
            widen_row(self.isa, call.d_o, offset, dim, 1.0, d_o);
            *delta = self.isa.run(Dot { a: o, b: d_o });
        }
    }

    /// dK and dV of an item's keys and their part of dQ, which is written unless the head is in parts.
    fn item(&self, call: &Call<'_>, item: &Item, deltas: &[f32], scratch: &mut Scratch, dq: &mut [f32]) {
        dq.fill(0.0);
        for block in self.blocks(item) {
            self.block(call, item, block * BLOCK_KEYS, deltas, scratch, dq);
        }
        if self.parts > 1 {
            return;
        }
        for (in_group, dq) in dq.chunks_exact((self.longest_q * self.dq_stride()).max(1)).enumerate() {
            let head = item.head * self.group + in_group;
            for query in 0..self.rows_q.lengths[item.sequence] {
                let row = &dq[query * self.dq_stride()..][..self.rows_q.dim];
                // SAFETY: a query head belongs to one item.
                unsafe { call.dq.write(self.rows_q.offset(item.sequence, head, query), row, self.scale) };
            }
        }
    }

    /// dQ of some queries as the sum of its parts.
    fn add_parts(
        &self,
        call: &Call<'_>,
        (sequence, head): (usize, usize),
        queries: Range<usize>,
        buffers: &SharedMut<f32>,
    ) {
        let first = self.first_buffer(&Item { sequence, head: head / self.group, part: 0 });
        for query in queries {
            let place = (head % self.group * self.longest_q + query) * self.dq_stride();
            // SAFETY: a query row belongs to one task, and its parts are in different buffers.
            let part = |part: usize| unsafe {
                buffers.slice((first + part) * self.buffer_elements() + place, self.rows_q.dim)
            };
            let sum = part(0);
            for index in 1..self.parts {
                sum.iter_mut().zip(part(index)).for_each(|(sum, x)| *sum += *x);
            }
            // SAFETY: as above.
            unsafe { call.dq.write(self.rows_q.offset(sequence, head, query), sum, self.scale) };
        }
    }

    /// dK and dV of the keys from `first_key` on, and their part of dQ.
    fn block(
        &self,
        call: &Call<'_>,
        item: &Item,
        first_key: usize,
        deltas: &[f32],
        scratch: &mut Scratch,
        dq: &mut [f32],
    ) {
        let (isa, sequence, head) = (self.isa, item.sequence, item.head);
        let (dim_k, dim_v) = (self.rows_k.dim, self.rows_v.dim);
        let (stride_k, stride_v) = (odd_lines(dim_k), odd_lines(dim_v));
        let count = BLOCK_KEYS.min(self.rows_k.lengths[sequence] - first_key);
        let ranges = &self.key_ranges[sequence];
        // Both ends of what a query sees never fall from one query to the next.
        let queries = ranges.partition_point(|range| range.end <= first_key)
            ..ranges.partition_point(|range| range.start < first_key + count);

        scratch.dk.as_mut_slice::<f32>()[..count * stride_k].fill(0.0);
        scratch.dv.as_mut_slice::<f32>()[..count * stride_v].fill(0.0);
        if !queries.is_empty() {
            let offsets = &mut scratch.offsets[..count];
            for (key, offset) in offsets.iter_mut().enumerate() {
                *offset = self.rows_k.offset(sequence, head, first_key + key);
            }
            pack_slices(isa, call.k, offsets, dim_k, scratch.keys_transposed.as_mut_slice());
            widen_rows(isa, call.k, offsets, dim_k, stride_k, scratch.keys.as_mut_slice());
            for (key, offset) in offsets.iter_mut().enumerate() {
                *offset = self.rows_v.offset(sequence, head, first_key + key);
            }
            pack_slices(isa, call.v, offsets, dim_v, scratch.values_transposed.as_mut_slice());
        }
        for (in_group, dq) in dq.chunks_exact_mut((self.longest_q * self.dq_stride()).max(1)).enumerate() {
            let mut tile = Tile {
                sequence,
                head: head * self.group + in_group,
                first_key,
                count,
                queries: queries.start..queries.start,
                keys: 0..0,
            };
            while tile.queries.end < queries.end {
                tile.advance(&ranges[..queries.end]);
                self.tile(call, &tile, deltas, scratch, dq);
            }
        }
        let (dk, dv) = (scratch.dk.as_slice::<f32>(), scratch.dv.as_slice::<f32>());
        for key in 0..count {
            // SAFETY: a key block of a KV head belongs to one item.
            unsafe {
                let offset = self.rows_k.offset(sequence, head, first_key + key);
                call.dk.write(offset, &dk[key * stride_k..][..dim_k], self.scale);
                let offset = self.rows_v.offset(sequence, head, first_key + key);
                call.dv.write(offset, &dv[key * stride_v..][..dim_v], 1.0);
            }
        }
    }

    /// What one tile of queries adds to dK and dV of the key block, and gets from it for dQ.
    fn tile(&self, call: &Call<'_>, tile: &Tile, deltas: &[f32], scratch: &mut Scratch, dq: &mut [f32]) {
        if tile.keys.is_empty() {
            return;
        }
        let (dim_k, dim_v) = (self.rows_q.dim, self.rows_o.dim);
        let offsets = &mut scratch.offsets[..tile.queries.len()];
        for (query, offset) in tile.queries.clone().zip(offsets.iter_mut()) {
            *offset = self.rows_q.offset(tile.sequence, tile.head, query);
        }
        widen_rows(self.isa, call.q, offsets, dim_k, odd_lines(dim_k), scratch.queries.as_mut_slice());
        for (query, offset) in tile.queries.clone().zip(offsets.iter_mut()) {
            *offset = self.rows_o.offset(tile.sequence, tile.head, query);
        }
        widen_rows(self.isa, call.d_o, offsets, dim_v, odd_lines(dim_v), scratch.output_gradients.as_mut_slice());
        let dq = &mut dq[tile.queries.start * self.dq_stride()..tile.queries.end * self.dq_stride()];
        for slice in tile.keys.start / SLICE_KEYS..tile.keys.end.div_ceil(SLICE_KEYS) {
            self.slice(call, tile, slice * SLICE_KEYS, deltas, scratch, dq);
        }
    }

    /// The part of [`BackwardLayout::tile`] that is of the slice from a key of the block on.
    fn slice(&self, call: &Call<'_>, tile: &Tile, first: usize, deltas: &[f32], scratch: &mut Scratch, dq: &mut [f32]) {
        let (isa, rows) = (self.isa, tile.queries.len());
        let (dim_k, dim_v) = (self.rows_k.dim, self.rows_v.dim);
        let (stride_k, stride_v, stride) = (odd_lines(dim_k), odd_lines(dim_v), odd_lines(SLICE_KEYS));
        let (q, d_o) = (scratch.queries.as_slice::<f32>(), scratch.output_gradients.as_slice::<f32>());
        let weights = scratch.weights.as_mut_slice::<f32>();
        let gradients = scratch.gradients.as_mut_slice::<f32>();

        // The keys of the slice that some query sees, padded to whole panels as far as the packed slice goes.
        let packed_keys = SLICE_KEYS.min(tile.count - first);
        let seen = tile.keys.start.saturating_sub(first)..(tile.keys.end - first).min(packed_keys);
        let columns = seen.end.next_multiple_of(isa.panel()).min(isa.pad(packed_keys)) - seen.start;
        let keys_transposed = &scratch.keys_transposed.as_slice::<f32>()[first * dim_k..];
        let values_transposed = &scratch.values_transposed.as_slice::<f32>()[first * dim_v..];
        let panel = seen.start / isa.panel();
        let right = PackedShape::new(isa, dim_k, packed_keys).view(keys_transposed).panels_from(panel);
        product(isa, (rows, columns, dim_k), Strided::rows(q, stride_k), right, weights, stride, false);
        let right = PackedShape::new(isa, dim_v, packed_keys).view(values_transposed).panels_from(panel);
        product(isa, (rows, columns, dim_v), Strided::rows(d_o, stride_v), right, gradients, stride, false);
        let row = self.row(tile.sequence, tile.head, tile.queries.start);
        isa.run(ScoreGradients {
            weights,
            gradients,
            stride,
            columns,
            first_key: tile.first_key + first + seen.start,
            ranges: &self.key_ranges[tile.sequence][tile.queries.clone()],
            lse: &call.lse[row..row + rows],
            deltas: &deltas[row..row + rows],
            scale: self.scale,
            softcap: self.softcap,
            dq,
        });

        let (first, count) = (first + seen.start, seen.len());
        let (padded_k, padded_v) = (isa.pad(dim_k), isa.pad(dim_v));
        let dv = &mut scratch.dv.as_mut_slice::<f32>()[first * stride_v..];
        let (left, right) = (Strided::transposed(weights, stride), Panels::rows(isa, d_o, stride_v));
        product(isa, (count, padded_v, rows), left, right, dv, stride_v, true);
        let dk = &mut scratch.dk.as_mut_slice::<f32>()[first * stride_k..];
        let (left, right) = (Strided::transposed(gradients, stride), Panels::rows(isa, q, stride_k));
        product(isa, (count, padded_k, rows), left, right, dk, stride_k, true);
        let right = Panels::rows(isa, &scratch.keys.as_slice::<f32>()[first * stride_k..], stride_k);
        let left = Strided::rows(gradients, stride);
        product(isa, (rows, padded_k, count), left, right, dq, self.dq_stride(), true);
    }
}

/// Queries of one head beside the keys of a block that they see.
struct Tile {
    sequence: usize,
    head: usize,
    /// First key of the block.
    first_key: usize,
    /// Keys of the block.
    count: usize,
    queries: Range<usize>,
    /// The keys of the block that some query sees, from a multiple of [`CUT_KEYS`] on.
    keys: Range<usize>,
}

impl Tile {
    /// The next tile; `ranges` are what the queries of the block see, whose last is the last query.
    fn advance(&mut self, ranges: &[Range<usize>]) {
        let first = self.queries.end;
        let cuts = |query: usize| {
            let seen = self.seen(&ranges[query]);
            (seen.start / CUT_KEYS, seen.end.div_ceil(CUT_KEYS))
        };
        let (cut, limit) = (cuts(first), ranges.len().min(first + TILE_ROWS));
        let last = (first + 1..limit).find(|&query| cuts(query) != cut).unwrap_or(limit);
        self.queries = first..last;
        self.keys = cut.0 * CUT_KEYS..self.seen(&ranges[last - 1]).end;
    }

    /// The part of the block in a range of keys.
    fn seen(&self, range: &Range<usize>) -> Range<usize> {
        let inside = |key: usize| key.saturating_sub(self.first_key).min(self.count);
        inside(range.start)..inside(range.end)
    }
}

/// C (+)= A B for any depth.
fn product(
    isa: Isa,
    (m, n, k): (usize, usize, usize),
    a: Strided<'_>,
    b: Panels<'_>,
    c: &mut [f32],
    c_stride: usize,
    accumulate: bool,
) {
    for first in (0..k).step_by(DEPTH) {
        let depth = DEPTH.min(k - first);
        let (a, b) = (a.columns_from(first), b.rows_from(first));
        gemm(isa, (m, n, depth), a, b, c, c_stride, accumulate || first > 0);
    }
}

/// Packs the rows at `offsets` as columns, slice by slice.
fn pack_slices(isa: Isa, tensor: &Tensor, offsets: &[usize], dim: usize, out: &mut [f32]) {
    for (offsets, out) in offsets.chunks(SLICE_KEYS).zip(out.chunks_mut(SLICE_KEYS * dim)) {
        pack_columns(isa, tensor, offsets, dim, &mut out[..dim * isa.pad(offsets.len())]);
    }
}

/// The dot product of two rows of whole vectors.
struct Dot<'a> {
    a: &'a [f32],
    b: &'a [f32],
}

impl Task for Dot<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self) -> f32 {
        let mut sum = S::splat(0.0);
        for (a, b) in self.a.chunks_exact(S::LANES).zip(self.b.chunks_exact(S::LANES)) {
            // SAFETY: chunks have LANES elements.
            sum = unsafe { S::fma(S::load(a.as_ptr()), S::load(b.as_ptr()), sum) };
        }
        S::sum(sum)
    }
}

/// Scores -> P and dP -> dS, in place.
struct ScoreGradients<'a> {
    /// (queries, columns): Q K^T, then P.
    weights: &'a mut [f32],
    /// (queries, columns): dP, then dS.
    gradients: &'a mut [f32],
    /// Elements from one row to the next.
    stride: usize,
    /// Whole vectors.
    columns: usize,
    /// Key of the first column.
    first_key: usize,
    /// The keys that each query sees.
    ranges: &'a [Range<usize>],
    lse: &'a [f32],
    deltas: &'a [f32],
    scale: f32,
    softcap: Option<f32>,
    /// What the product after this will add to: asked for row by row, so that it is there by then.
    dq: &'a [f32],
}

impl Task for ScoreGradients<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let rows = self.ranges.len();
        let dq_stride = self.dq.len() / rows;
        for row in 0..rows {
            for line in (0..dq_stride).step_by(LINE) {
                S::prefetch(self.dq[row * dq_stride + line..].as_ptr().cast());
            }
            let start = self.ranges[row].start.saturating_sub(self.first_key).min(self.columns);
            let mut end = self.ranges[row].end.saturating_sub(self.first_key).min(self.columns);
            let lse = self.lse[row];
            if lse == f32::NEG_INFINITY {
                end = start;
            }
            let weights = &mut self.weights[row * self.stride..][..self.columns];
            let gradients = &mut self.gradients[row * self.stride..][..self.columns];
            if start < end {
                let touched = start / S::LANES * S::LANES..end.next_multiple_of(S::LANES);
                let (weights, gradients) = (&mut weights[touched.clone()], &mut gradients[touched]);
                let (lse, delta) = (S::splat(-lse), S::splat(self.deltas[row]));
                match self.softcap {
                    None => plain_row::<S>(weights, gradients, self.scale, lse, delta),
                    Some(cap) => capped_row::<S>(weights, gradients, self.scale, cap, lse, delta),
                }
            }
            // What the query does not see weighs nothing.
            if start > 0 {
                weights[..start].fill(0.0);
                gradients[..start].fill(0.0);
            }
            if end < self.columns {
                weights[end..].fill(0.0);
                gradients[end..].fill(0.0);
            }
        }
    }
}

/// P = exp(scale s - LSE), dS = P (dP - D) of whole vectors; `lse` is -LSE.
#[inline(always)]
fn plain_row<S: Simd>(weights: &mut [f32], gradients: &mut [f32], scale: f32, lse: S::V, delta: S::V) {
    let scale = S::splat(scale);
    for (weights, gradients) in weights.chunks_exact_mut(S::LANES).zip(gradients.chunks_exact_mut(S::LANES)) {
        // SAFETY: both have LANES elements.
        unsafe {
            let p = softmax_weight::<S>(S::fma(S::load(weights.as_ptr()), scale, lse));
            S::store(weights.as_mut_ptr(), p);
            let ds = S::mul(p, S::sub(S::load(gradients.as_ptr()), delta));
            S::store(gradients.as_mut_ptr(), ds);
        }
    }
}

/// [`plain_row`] with c = cap tanh(scale s / cap) for the scaled score, whose slope is 1 - (c / cap)^2.
#[inline(always)]
fn capped_row<S: Simd>(weights: &mut [f32], gradients: &mut [f32], scale: f32, cap: f32, lse: S::V, delta: S::V) {
    let (inverse, cap) = (S::splat(scale / cap), S::splat(cap));
    for (weights, gradients) in weights.chunks_exact_mut(S::LANES).zip(gradients.chunks_exact_mut(S::LANES)) {
        // SAFETY: both have LANES elements.
        unsafe {
            let tanh = tanh::<S>(S::mul(S::load(weights.as_ptr()), inverse));
            let slope = S::sub(S::splat(1.0), S::mul(tanh, tanh));
            let p = softmax_weight::<S>(S::fma(cap, tanh, lse));
            S::store(weights.as_mut_ptr(), p);
            let ds = S::mul(S::mul(p, S::sub(S::load(gradients.as_ptr()), delta)), slope);
            S::store(gradients.as_mut_ptr(), ds);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_cut_where_threads_would_idle() {
        let cases = [((8, 2), 1), ((1, 2), 2), ((3, 2), 2), ((1, 1), 1), ((9, 8), 5), ((96, 16), 1), ((0, 4), 1)];
        for ((heads, threads), parts) in cases {
            assert_eq!(parts_per_head(heads, threads), parts, "{heads} heads on {threads} threads");
        }
    }
}
