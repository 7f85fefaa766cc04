//! The backward of `flash` (Dao 2023, FlashAttention-2, Algorithm 2): (Q, K, V, O, LSE, dO) -> (dQ, dK, dV).
//!
//! With D = rowsum(dO * O), for each tile of keys and each tile of queries that sees it: P = exp(scale Q K^T - LSE) is
//! computed again, dV += P^T dO, dP = dO V^T, dS = P (dP - D), dK += scale dS^T Q and dQ += scale dS K. The soft-cap
//! multiplies dS by 1 - (s / cap)^2. dK and dV of a tile of keys are summed over the query heads that share them.
//!
//! A work item is one KV head of one sequence, with an f32 dQ of its own; where the heads are too few for the threads,
//! its key tiles are dealt out to several items in turn, whose dQ are added in order. Nothing is added by two threads at
//! a time, so two runs with the same number of threads agree bit for bit, whether the problem asks for it or not. Rows
//! with LSE = -inf have no gradient.
//!
//! Tiles: 64 keys by 64 queries; at d = 128 K, K^T, V^T, Q, dO, dK and dV take 32 KiB each. It aims at the FMA rate of five
//! products a pair: 2 pairs (3 d_qk + 2 d_v) FLOPs a head.

use super::access::{Sink, Source};
use super::key_list::{KeyList, Part, Reach, Tokens};
use super::online_tile::KEY_TILE;
use super::schedule::for_each_task;
use super::tile::{self, exp_rows, matmul, transpose};
use super::tiled::QUERY_TILE;
use crate::kernel::{KernelError, Plan, PlanContext};
use crate::problem::{AttentionProblem, Bias, KvLayout, Mechanism, Pattern, Phase};
use crate::shared_mut::SharedMut;
use crate::tensor::{Rows, TensorName, TensorSet};

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
pub(crate) fn plan(context: &PlanContext<'_>) -> Result<Box<dyn Plan>, KernelError> {
    supports(context.problem)?;
    Ok(Box::new(BackwardPlan::new(context)?))
}

/// Every `cuts`-th key tile, from `cut` on, of one KV head of one sequence.
struct Item {
    sequence: usize,
    head: usize,
    cut: usize,
}

struct BackwardPlan {
    scale: f32,
    softcap: Option<f32>,
    group: usize,
    heads_kv: usize,
    rows_q: Rows,
    rows_o: Rows,
    rows_k: Rows,
    rows_v: Rows,
    /// p - i of each sequence.
    query_offsets: Vec<i64>,
    /// Which keys a query sees, of each sequence.
    parts: Vec<Part>,
    longest_q: usize,
    cuts: usize,
    items: Vec<Item>,
    /// D, (batch, heads_q, longest_q).
    deltas: Vec<f32>,
    /// dQ / scale: (group, longest_q, d_qk) a thread where no head is cut, else an item.
    dq: Vec<f32>,
    scratches: Vec<Scratch>,
}

struct Scratch {
    thread: usize,
    /// (KEY_TILE, d_qk).
    keys: Vec<f32>,
    /// (d_qk, KEY_TILE).
    keys_transposed: Vec<f32>,
    /// (KEY_TILE, d_v).
    values: Vec<f32>,
    /// (d_v, KEY_TILE).
    values_transposed: Vec<f32>,
    /// (QUERY_TILE, d_qk), scaled.
    queries: Vec<f32>,
    /// dO: (QUERY_TILE, d_v).
    output_gradients: Vec<f32>,
    /// (QUERY_TILE, KEY_TILE), soft-capped.
    scores: Vec<f32>,
    /// P: (QUERY_TILE, KEY_TILE).
    weights: Vec<f32>,
    /// dP, then dS: (QUERY_TILE, KEY_TILE).
    gradients: Vec<f32>,
    /// (KEY_TILE, d_qk).
    dk: Vec<f32>,
    /// (KEY_TILE, d_v).
    dv: Vec<f32>,
}

impl BackwardPlan {
    fn new(context: &PlanContext<'_>) -> Result<Self, KernelError> {
        let problem = context.problem;
        let (dim_k, dim_v, group) = (problem.head_dim_qk, problem.head_dim_v, problem.group_size());
        let rows_q = Rows::of_queries(problem, dim_k);
        let rows_k = Rows::of_keys(problem, dim_k, None);
        let longest_q = rows_q.lengths.iter().copied().max().unwrap_or(0);
        let heads = problem.batch * problem.heads_kv;
        let cuts = if heads.is_multiple_of(context.threads) || heads >= 4 * context.threads {
            1
        } else {
            (2 * context.threads).div_ceil(heads)
        };
        let mut items: Vec<Item> = (0..heads * cuts)
            .map(|index| {
                let head = index / cuts;
                Item { sequence: head / problem.heads_kv, head: head % problem.heads_kv, cut: index % cuts }
            })
            .collect();
        if cuts == 1 {
            // The longest sequences first; items of cut heads have a fixed place in `dq`.
            items.sort_by_key(|item| std::cmp::Reverse(rows_q.lengths[item.sequence] * rows_k.lengths[item.sequence]));
        }
        let dq_buffers = if cuts == 1 { context.threads } else { items.len() };
        let dq = dq_buffers as u64 * (group * longest_q) as u64 * dim_k as u64;
        let deltas = (problem.batch * problem.heads_q) as u64 * longest_q as u64;
        let scratch = KEY_TILE * (3 * dim_k + 3 * dim_v) + QUERY_TILE * (dim_k + dim_v + 3 * KEY_TILE);
        context.check_workspace(4 * (dq + deltas + (context.threads * scratch) as u64))?;
        let reach = match problem.pattern {
            Pattern::Window { left, right } => {
                Reach::Between { left: left.min(1 << 30) as i64, right: right.min(1 << 30) as i64 }
            }
            _ => Reach::All,
        };
        let list = KeyList::Every(Tokens::from(0));
        Ok(BackwardPlan {
            scale: problem.effective_scale() as f32,
            softcap: problem.softcap.map(|cap| cap as f32),
            group,
            heads_kv: problem.heads_kv,
            rows_o: Rows::of_queries(problem, dim_v),
            rows_v: Rows::of_keys(problem, dim_v, None),
            query_offsets: (0..problem.batch)
                .map(|sequence| problem.query_offset(rows_q.lengths[sequence], rows_k.lengths[sequence]))
                .collect(),
            parts: rows_k
                .lengths
                .iter()
                .map(|&length| Part { list, reach, causal: problem.causal, tokens: (0, length) })
                .collect(),
            rows_q,
            rows_k,
            longest_q,
            cuts,
            items,
            deltas: vec![0.0; deltas as usize],
            dq: vec![0.0; dq as usize],
            scratches: (0..context.threads)
                .map(|thread| Scratch {
                    thread,
                    keys: vec![0.0; KEY_TILE * dim_k],
                    keys_transposed: vec![0.0; dim_k * KEY_TILE],
                    values: vec![0.0; KEY_TILE * dim_v],
                    values_transposed: vec![0.0; dim_v * KEY_TILE],
                    queries: vec![0.0; QUERY_TILE * dim_k],
                    output_gradients: vec![0.0; QUERY_TILE * dim_v],
                    scores: vec![0.0; QUERY_TILE * KEY_TILE],
                    weights: vec![0.0; QUERY_TILE * KEY_TILE],
                    gradients: vec![0.0; QUERY_TILE * KEY_TILE],
                    dk: vec![0.0; KEY_TILE * dim_k],
                    dv: vec![0.0; KEY_TILE * dim_v],
                })
                .collect(),
        })
    }
}

impl Plan for BackwardPlan {
    fn run(&mut self, inputs: &TensorSet, outputs: &mut TensorSet) {
        let (batch, heads_q) = (self.rows_q.lengths.len(), self.rows_q.heads);
        let (dim_k, longest_q, cuts, scale) = (self.rows_q.dim, self.longest_q, self.cuts, self.scale);
        let (group, heads_kv) = (self.group, self.heads_kv);
        let sources = Sources {
            q: Source::new(inputs.get(TensorName::Q)),
            k: Source::new(inputs.get(TensorName::K)),
            v: Source::new(inputs.get(TensorName::V)),
            d_o: Source::new(inputs.get(TensorName::DO)),
            lse: inputs.get(TensorName::Lse).as_slice(),
        };
        let o = Source::new(inputs.get(TensorName::O));
        let [dq_out, dk_out, dv_out] =
            [TensorName::DQ, TensorName::DK, TensorName::DV].map(|name| Sink::new(outputs, name));

        // D of every query row.
        let (rows_o, rows_q) = (&self.rows_o, &self.rows_q);
        let deltas = SharedMut::new(&mut self.deltas);
        for_each_task(batch * heads_q, &mut self.scratches, |scratch, row| {
            let (sequence, head) = (row / heads_q, row % heads_q);
            // SAFETY: a head's rows belong to one item.
            let deltas = unsafe { deltas.slice(row * longest_q, longest_q) };
            let (o_row, d_o_row) = (&mut scratch.values[..rows_o.dim], &mut scratch.output_gradients[..rows_o.dim]);
            for (token, delta) in deltas.iter_mut().enumerate().take(rows_o.lengths[sequence]) {
                let offset = rows_o.offset(sequence, head, token);
                o.read(offset, o_row);
                sources.d_o.read(offset, d_o_row);
                *delta = o_row.iter().zip(d_o_row.iter()).map(|(o, d_o)| o * d_o).sum();
            }
        });

        let dq_size = group * longest_q * dim_k;
        let dq_buffers = SharedMut::new(&mut self.dq);
        let (items, deltas) = (&self.items, self.deltas.as_slice());
        let call = Call {
            sources,
            deltas,
            softcap: self.softcap,
            group,
            scale,
            rows_q,
            rows_o,
            rows_k: &self.rows_k,
            rows_v: &self.rows_v,
            longest_q,
            dk_out,
            dv_out,
        };
        let (query_offsets, parts) = (&self.query_offsets, &self.parts);
        let write_dq = |sequence: usize, head: usize, token: usize, row: &mut [f32]| {
            row.iter_mut().for_each(|x| *x *= scale);
            // SAFETY: a query row is written by the one item of its head, or by the one that adds its parts.
            unsafe { dq_out.write(rows_q.offset(sequence, head, token), row) };
        };
        for_each_task(items.len(), &mut self.scratches, |scratch, index| {
            let &Item { sequence, head, cut } = &items[index];
            let buffer = if cuts == 1 { scratch.thread } else { index };
            // SAFETY: a buffer belongs to one thread, or to one item.
            let dq = unsafe { dq_buffers.slice(buffer * dq_size, dq_size) };
            dq.fill(0.0);
            let key_tiles = call.rows_k.lengths[sequence].div_ceil(KEY_TILE);
            for tile in (cut..key_tiles).step_by(cuts) {
                let view = View { sequence, head, part: parts[sequence], query_offset: query_offsets[sequence] };
                call.key_tile(scratch, &view, tile * KEY_TILE, dq);
            }
            if cuts == 1 {
                for in_group in 0..group {
                    for token in 0..rows_q.lengths[sequence] {
                        let row = &mut dq[(in_group * longest_q + token) * dim_k..][..dim_k];
                        write_dq(sequence, head * group + in_group, token, row);
                    }
                }
            }
        });

        if cuts > 1 {
            let query_tiles = longest_q.div_ceil(QUERY_TILE);
            for_each_task(batch * heads_q * query_tiles, &mut self.scratches, |_, index| {
                let (row, tile) = (index / query_tiles, index % query_tiles);
                let (sequence, head) = (row / heads_q, row % heads_q);
                let first_buffer = (sequence * heads_kv + head / group) * cuts;
                let last = rows_q.lengths[sequence].min((tile + 1) * QUERY_TILE);
                for token in tile * QUERY_TILE..last {
                    let place = (head % group * longest_q + token) * dim_k;
                    // SAFETY: a query row belongs to one item, and a row's parts are in different buffers.
                    let part = |buffer: usize| unsafe { dq_buffers.slice(buffer * dq_size + place, dim_k) };
                    let sum = part(first_buffer);
                    for buffer in first_buffer + 1..first_buffer + cuts {
                        sum.iter_mut().zip(part(buffer)).for_each(|(sum, x)| *sum += *x);
                    }
                    write_dq(sequence, head, token, sum);
                }
            });
        }
    }
}

struct Sources<'a> {
    q: Source<'a>,
    k: Source<'a>,
    v: Source<'a>,
    d_o: Source<'a>,
    lse: &'a [f32],
}

/// What is the same for every tile of a call.
struct Call<'a> {
    sources: Sources<'a>,
    deltas: &'a [f32],
    softcap: Option<f32>,
    scale: f32,
    group: usize,
    rows_q: &'a Rows,
    rows_o: &'a Rows,
    rows_k: &'a Rows,
    rows_v: &'a Rows,
    longest_q: usize,
    dk_out: Sink,
    dv_out: Sink,
}

/// One KV head of one sequence, and what its queries see.
struct View {
    sequence: usize,
    head: usize,
    part: Part,
    query_offset: i64,
}

impl View {
    /// The keys that a query sees.
    fn seen(&self, query: usize) -> std::ops::Range<usize> {
        self.part.indices(query as i64 + self.query_offset)
    }
}

/// The first of `count` numbers for which a condition, once true, stays true; `count` where it never is.
fn first_where(count: usize, is_true: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low + (high - low) / 2;
        if is_true(middle) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    low
}

impl Call<'_> {
    /// dK and dV of the keys from `first_key` on, and their part of dQ.
    fn key_tile(&self, scratch: &mut Scratch, view: &View, first_key: usize, dq: &mut [f32]) {
        let (dim_k, dim_v) = (self.rows_k.dim, self.rows_v.dim);
        let (sequence, len_q) = (view.sequence, self.rows_q.lengths[view.sequence]);
        let keys = KEY_TILE.min(self.rows_k.lengths[sequence] - first_key);
        let row = (sequence, view.head);
        self.sources.k.read_tile(self.rows_k, row, keys, |index| first_key + index, &mut scratch.keys);
        transpose((keys, dim_k), &scratch.keys, &mut scratch.keys_transposed, KEY_TILE);
        self.sources.v.read_tile(self.rows_v, row, keys, |index| first_key + index, &mut scratch.values);
        transpose((keys, dim_v), &scratch.values, &mut scratch.values_transposed, KEY_TILE);
        scratch.dk[..keys * dim_k].fill(0.0);
        scratch.dv[..keys * dim_v].fill(0.0);
        // Both ends of what a query sees never go back from one query to the next.
        let first_query = first_where(len_q, |query| view.seen(query).end > first_key);
        let last_query = first_where(len_q, |query| view.seen(query).start >= first_key + keys);
        for in_group in 0..self.group {
            let dq = &mut dq[in_group * self.longest_q * dim_k..][..self.longest_q * dim_k];
            for first in (first_query..last_query).step_by(QUERY_TILE) {
                let queries = first..last_query.min(first + QUERY_TILE);
                self.pair_of_tiles(scratch, view, view.head * self.group + in_group, queries, first_key, keys, dq);
            }
        }
        for key in 0..keys {
            let token = first_key + key;
            // SAFETY: a key tile of a KV head belongs to one item.
            unsafe {
                let row = &scratch.dk[key * dim_k..][..dim_k];
                self.dk_out.write(self.rows_k.offset(sequence, view.head, token), row);
                let row = &scratch.dv[key * dim_v..][..dim_v];
                self.dv_out.write(self.rows_v.offset(sequence, view.head, token), row);
            }
        }
    }

    /// What one tile of queries of one head adds to dK and dV of the key tile, and gets from it for dQ.
    fn pair_of_tiles(
        &self,
        scratch: &mut Scratch,
        view: &View,
        head: usize,
        queries: std::ops::Range<usize>,
        first_key: usize,
        keys: usize,
        dq: &mut [f32],
    ) {
        let (dim_k, dim_v, sequence) = (self.rows_k.dim, self.rows_v.dim, view.sequence);
        let (first, count) = (queries.start, queries.len());
        let Scratch { queries: q, output_gradients: d_o, scores, weights, gradients, .. } = scratch;
        self.sources.q.read_tile(self.rows_q, (sequence, head), count, |index| first + index, q);
        q[..count * dim_k].iter_mut().for_each(|x| *x *= self.scale);
        self.sources.d_o.read_tile(self.rows_o, (sequence, head), count, |index| first + index, d_o);
        let rows = (sequence * self.rows_q.heads + head) * self.longest_q + first;
        let (lse, deltas) = (&self.sources.lse[rows..][..count], &self.deltas[rows..][..count]);
        let is_masked = view.seen(queries.end - 1).start > first_key || view.seen(first).end < first_key + keys;

        matmul((count, keys, dim_k), q, (dim_k, 1), &scratch.keys_transposed, KEY_TILE, scores, KEY_TILE, false);
        let shape = (count, keys, dim_v);
        matmul(shape, d_o, (dim_v, 1), &scratch.values_transposed, KEY_TILE, gradients, KEY_TILE, false);
        for row in 0..count {
            let place = row * KEY_TILE..row * KEY_TILE + keys;
            let (scores, weights) = (&mut scores[place.clone()], &mut weights[place.clone()]);
            if let Some(cap) = self.softcap {
                tile::softcap(scores, cap);
            }
            if lse[row] == f32::NEG_INFINITY {
                weights.fill(0.0);
            } else {
                weights.copy_from_slice(scores);
                if is_masked {
                    let seen = view.seen(first + row);
                    let hidden = |key: usize| key.saturating_sub(first_key).min(keys);
                    weights[..hidden(seen.start)].fill(f32::NEG_INFINITY);
                    weights[hidden(seen.end)..].fill(f32::NEG_INFINITY);
                }
                exp_rows(weights, lse[row]);
            }
            let capped = self.softcap.map(|cap| (&*scores, cap));
            tile::score_gradients(&mut gradients[place], weights, deltas[row], capped);
        }
        matmul((keys, dim_v, count), weights, (1, KEY_TILE), d_o, dim_v, &mut scratch.dv, dim_v, true);
        matmul((keys, dim_k, count), gradients, (1, KEY_TILE), q, dim_k, &mut scratch.dk, dim_k, true);
        let dq = &mut dq[first * dim_k..][..count * dim_k];
        matmul((count, dim_k, keys), gradients, (KEY_TILE, 1), &scratch.keys, dim_k, dq, dim_k, true);
    }
}
