//! Linear attention (Katharopoulos et al. 2020, section 3): O = phi(Q) (phi(K)^T V), time linear in the length.
//!
//! **Prefill** is chunked (the form of Yang et al. 2024, Gated Linear Attention, section 4): positions are cut into
//! chunks of 64, and with S the sum of k v^T over the keys before a chunk, O = Q S + tril(Q K^T) V and then S += K^T V.
//! S is f32 and one a KV head: its query heads share it. Where the heads are too few to occupy the threads, positions
//! are also cut into segments of whole chunks: a first pass sums each segment's state, a scan turns the sums into
//! states before each segment, a second pass writes outputs. Without causality the scan adds all the segments, and
//! the second pass is O = Q S.
//!
//! **Decode** is recurrent: S += k v^T, o = q S for one token after the other, from and to a state of constant size;
//! parallel over heads and, where those are few, over columns of the state.
//!
//! Tiles: 64 positions; K and Q as (64, d_qk), K also transposed, scores (64, 64): about 100 KiB at d = 128, plus S of
//! 64 KiB. Prefill aims at the FMA rate, 2 d_qk d_v (n_q + n_kv) FLOPs a head; decode at the bandwidth of reading and
//! writing the state once.

use super::access::{Sink, Source};
use super::schedule::for_each_task;
use super::tile::{matmul, transpose};
use crate::input::{SharedMut, key_lengths};
use crate::kernel::{Kernel, KernelError, Plan, PlanContext};
use crate::problem::{AttentionProblem, Bias, FeatureMap, KvLayout, Mechanism, Pattern, Phase};
use crate::tensor::{Rows, TensorName, TensorSet};

/// Positions a chunk.
const CHUNK: usize = 64;
/// Added to the denominator of normalised attention.
const EPSILON: f32 = 1e-6;
/// Columns of the state below which decode does not cut further: a cache line.
const MIN_COLUMNS: usize = 16;

/// Linear attention: chunked prefill and recurrent decode.
pub struct Linear;

impl Kernel for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn summary(&self) -> &'static str {
        "linear attention: chunked prefill, recurrent decode with a constant state (Katharopoulos et al. 2020)"
    }

    fn supports(&self, problem: &AttentionProblem) -> Result<(), KernelError> {
        let unsupported = |text: String| Err(KernelError::Unsupported(text));
        if !matches!(problem.mechanism, Mechanism::Linear { .. }) {
            return unsupported(format!(
                "mechanism {}: linear computes linear attention only",
                problem.mechanism.name()
            ));
        }
        if !matches!(problem.phase, Phase::Prefill | Phase::Append | Phase::Decode) {
            return unsupported(format!("phase {}: linear has prefill, append and decode", problem.phase.name()));
        }
        if problem.pattern != Pattern::Full {
            return unsupported(format!("pattern {}: linear has full, causal or not", problem.pattern.name()));
        }
        if problem.kv_layout != KvLayout::Contiguous {
            return unsupported("a paged KV layout: linear reads contiguous keys and values".into());
        }
        if problem.bias != Bias::None || problem.softcap.is_some() || problem.sinks {
            return unsupported(
                "a bias, softcap or sinks: linear attention has no scores that they could change".into(),
            );
        }
        Ok(())
    }

    fn plan(&self, context: &PlanContext<'_>) -> Result<Box<dyn Plan>, KernelError> {
        self.supports(context.problem)?;
        if context.problem.is_recurrent() {
            Ok(Box::new(Recurrent::new(context)))
        } else {
            Ok(Box::new(Chunked::new(context)?))
        }
    }
}

/// phi of each element, in place.
fn apply(map: FeatureMap, row: &mut [f32]) {
    match map {
        FeatureMap::Elu1 => super::tile::elu1(row),
        FeatureMap::Relu => row.iter_mut().for_each(|x| *x = x.max(0.0)),
        FeatureMap::Identity => {}
    }
}

/// What both forms know of the problem.
struct Common {
    feature_map: FeatureMap,
    normalised: bool,
    scale: f32,
    queries: Rows,
    keys: Rows,
    values: Rows,
    outputs: Rows,
    group: usize,
}

impl Common {
    fn new(problem: &AttentionProblem) -> Self {
        let Mechanism::Linear { feature_map, normalised } = problem.mechanism else {
            unreachable!("supports() refuses other mechanisms")
        };
        let lengths = key_lengths(problem);
        Common {
            feature_map,
            normalised,
            scale: problem.effective_scale() as f32,
            queries: Rows::of_queries(problem, problem.head_dim_qk),
            keys: Rows::contiguous(problem.layout, &lengths, problem.heads_kv, problem.head_dim_qk),
            values: Rows::contiguous(problem.layout, &lengths, problem.heads_kv, problem.head_dim_v),
            outputs: Rows::of_queries(problem, problem.head_dim_v),
            group: problem.group_size(),
        }
    }

    /// What a row's numerator is multiplied by.
    fn factor(&self, denominator: f32) -> f32 {
        if self.normalised { 1.0 / (denominator + EPSILON) } else { self.scale }
    }
}

/// Consecutive chunks of one KV head of one sequence.
struct Segment {
    sequence: usize,
    head: usize,
    /// Positions, from a multiple of [`CHUNK`].
    first: usize,
    last: usize,
}

struct Chunked {
    common: Common,
    causal: bool,
    /// p - i of each sequence.
    query_offsets: Vec<i64>,
    segments: Vec<Segment>,
    /// Ranges of `segments` that belong to one head of one sequence.
    heads: Vec<std::ops::Range<usize>>,
    /// Per segment S (d_qk, d_v) and its normaliser (d_qk): sums of the segment, then of what is before it.
    states: Vec<f32>,
    scratches: Vec<ChunkScratch>,
}

struct ChunkScratch {
    /// phi(K): (CHUNK, d_qk).
    keys: Vec<f32>,
    /// (d_qk, CHUNK).
    keys_transposed: Vec<f32>,
    /// (CHUNK, d_v).
    values: Vec<f32>,
    /// phi(Q): (CHUNK, d_qk).
    queries: Vec<f32>,
    /// (CHUNK, CHUNK).
    scores: Vec<f32>,
    /// (CHUNK, d_v).
    output: Vec<f32>,
}

impl Chunked {
    fn new(context: &PlanContext<'_>) -> Result<Self, KernelError> {
        let problem = context.problem;
        let common = Common::new(problem);
        let (dk, dv) = (problem.head_dim_qk, problem.head_dim_v);
        let query_offsets: Vec<i64> = (0..problem.batch)
            .map(|sequence| problem.query_offset(common.queries.lengths[sequence], common.keys.lengths[sequence]))
            .collect();
        let heads = problem.batch * problem.heads_kv;
        let wanted_segments = if heads.is_multiple_of(context.threads) || heads >= 4 * context.threads {
            1
        } else {
            (4 * context.threads).div_ceil(heads)
        };
        let mut segments = Vec::new();
        let mut ranges = Vec::with_capacity(heads);
        for sequence in 0..problem.batch {
            let (len_q, len_kv) = (common.queries.lengths[sequence], common.keys.lengths[sequence]);
            // Without causality queries have no position: they are cut as if they began at 0.
            let positions = if problem.causal {
                (query_offsets[sequence] + len_q as i64).max(0) as usize
            } else {
                len_q.max(len_kv)
            };
            let chunks = positions.div_ceil(CHUNK).max(1);
            // Without causality the states are summed before any output is written, so chunks are free to move.
            let cuts = wanted_segments.min(chunks);
            for head in 0..problem.heads_kv {
                let start = segments.len();
                segments.extend((0..cuts).map(|cut| Segment {
                    sequence,
                    head,
                    first: chunks * cut / cuts * CHUNK,
                    last: chunks * (cut + 1) / cuts * CHUNK,
                }));
                ranges.push(start..segments.len());
            }
        }
        let state = dk * dv + dk;
        let scratch = CHUNK * (3 * dk + 2 * dv + CHUNK);
        context.check_workspace(4 * (segments.len() as u64 * state as u64 + (context.threads * scratch) as u64))?;
        Ok(Chunked {
            common,
            causal: problem.causal,
            query_offsets,
            states: vec![0.0; segments.len() * state],
            segments,
            heads: ranges,
            scratches: (0..context.threads)
                .map(|_| ChunkScratch {
                    keys: vec![0.0; CHUNK * dk],
                    keys_transposed: vec![0.0; dk * CHUNK],
                    values: vec![0.0; CHUNK * dv],
                    queries: vec![0.0; CHUNK * dk],
                    scores: vec![0.0; CHUNK * CHUNK],
                    output: vec![0.0; CHUNK * dv],
                })
                .collect(),
        })
    }
}

impl Plan for Chunked {
    fn run(&mut self, inputs: &TensorSet, outputs: &mut TensorSet) {
        let (dk, dv) = (self.common.keys.dim, self.common.values.dim);
        let state_size = dk * dv + dk;
        let call = Call {
            common: &self.common,
            query_offsets: &self.query_offsets,
            q: Source::new(inputs.get(TensorName::Q)),
            k: Source::new(inputs.get(TensorName::K)),
            v: Source::new(inputs.get(TensorName::V)),
            o: Sink::new(outputs, TensorName::O),
        };
        let (segments, heads) = (&self.segments, &self.heads);
        let states = SharedMut::new(&mut self.states);
        let state = |segment: usize| {
            // SAFETY: in each pass a segment's state belongs to one item, and the scan's are different ones.
            unsafe { states.slice(segment * state_size, state_size) }
        };

        // Pass 1: the sum of each segment. A causal head's last segment is in no other segment's past.
        let causal = self.causal;
        for_each_task(segments.len(), &mut self.scratches, |scratch, index| {
            let state = state(index);
            state.fill(0.0);
            let segment = &segments[index];
            let is_last = segments.get(index + 1).is_none_or(|next| next.first == 0);
            if !causal || !is_last {
                for chunk in (segment.first..segment.last).step_by(CHUNK) {
                    let keys = call.load_keys(scratch, segment, chunk);
                    call.add_keys(scratch, keys, state);
                }
            }
        });

        // Scan: what each segment starts from.
        for_each_task(heads.len(), &mut self.scratches, |_, head| {
            let range = heads[head].clone();
            if causal {
                // The state of segment s becomes the sum of the segments before it: shift by one, then add up.
                for segment in range.clone().skip(1).rev() {
                    state(segment).copy_from_slice(state(segment - 1));
                }
                state(range.start).fill(0.0);
                for segment in range.skip(2) {
                    add(state(segment), state(segment - 1));
                }
            } else {
                for segment in range.clone().skip(1) {
                    add(state(range.start), state(segment));
                }
                for segment in range.clone().skip(1) {
                    state(segment).copy_from_slice(state(range.start));
                }
            }
        });

        // Pass 2: outputs.
        for_each_task(segments.len(), &mut self.scratches, |scratch, index| {
            let (segment, state) = (&segments[index], state(index));
            if causal {
                call.causal_segment(scratch, segment, state);
            } else {
                for chunk in (segment.first..segment.last).step_by(CHUNK) {
                    let len_q = call.common.queries.lengths[segment.sequence];
                    let count = len_q.saturating_sub(chunk).min(CHUNK);
                    for head in 0..call.common.group {
                        call.write_outputs(scratch, segment, head, chunk, count, None, state);
                    }
                }
            }
        });
    }
}

fn add(to: &mut [f32], from: &[f32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
}

/// Keys of a chunk that queries of the same chunk see in part.
#[derive(Clone, Copy)]
struct LocalKeys {
    count: usize,
    /// Position of the first query minus that of the first key.
    lead: usize,
}

/// What is the same for every chunk of a call.
struct Call<'a> {
    common: &'a Common,
    query_offsets: &'a [i64],
    q: Source<'a>,
    k: Source<'a>,
    v: Source<'a>,
    o: Sink,
}

impl Call<'_> {
    /// Loads phi(K) and V of the chunk at position `chunk`; returns how many keys there are.
    fn load_keys(&self, scratch: &mut ChunkScratch, segment: &Segment, chunk: usize) -> usize {
        let Common { keys, values, feature_map, .. } = self.common;
        let count = keys.lengths[segment.sequence].saturating_sub(chunk).min(CHUNK);
        let row = (segment.sequence, segment.head);
        self.k.read_tile(keys, row, count, |index| chunk + index, &mut scratch.keys);
        apply(*feature_map, &mut scratch.keys[..count * keys.dim]);
        self.v.read_tile(values, row, count, |index| chunk + index, &mut scratch.values);
        count
    }

    /// S += K^T V, z += the sum of K's rows.
    fn add_keys(&self, scratch: &ChunkScratch, count: usize, state: &mut [f32]) {
        let (dk, dv) = (self.common.keys.dim, self.common.values.dim);
        let (sum, normaliser) = state.split_at_mut(dk * dv);
        matmul((dk, dv, count), &scratch.keys, (1, dk), &scratch.values, dv, sum, dv, true);
        if self.common.normalised {
            for key in scratch.keys.chunks_exact(dk).take(count) {
                add(normaliser, key);
            }
        }
    }

    fn causal_segment(&self, scratch: &mut ChunkScratch, segment: &Segment, state: &mut [f32]) {
        let (dk, dv) = (self.common.keys.dim, self.common.values.dim);
        let len_q = self.common.queries.lengths[segment.sequence];
        let offset = self.query_offsets[segment.sequence];
        if segment.first == 0 {
            // Queries before the first key see nothing.
            let empty = (-offset).clamp(0, len_q as i64) as usize;
            for head in 0..self.common.group {
                let row = &mut scratch.output[..dv];
                row.fill(0.0);
                for token in 0..empty {
                    let head = segment.head * self.common.group + head;
                    let offset = self.common.outputs.offset(segment.sequence, head, token);
                    // SAFETY: this (sequence, head, token) belongs to this segment alone.
                    unsafe { self.o.write(offset, row) };
                }
            }
        }
        let query_at = |position: usize| (position as i64 - offset).clamp(0, len_q as i64) as usize;
        if query_at(segment.last) == query_at(segment.first) {
            // Its keys are in the states of the segments that follow; it writes nothing.
            return;
        }
        for chunk in (segment.first..segment.last).step_by(CHUNK) {
            let keys = self.load_keys(scratch, segment, chunk);
            let (first, last) = (query_at(chunk), query_at(chunk + CHUNK));
            if first < last {
                transpose((keys, dk), &scratch.keys, &mut scratch.keys_transposed, CHUNK);
                let lead = (first as i64 + offset) as usize - chunk;
                let local = Some(LocalKeys { count: keys, lead });
                for head in 0..self.common.group {
                    self.write_outputs(scratch, segment, head, first, last - first, local, state);
                }
            }
            self.add_keys(scratch, keys, state);
        }
    }

    /// O of `count` queries of one head of the group: Q S, and tril(Q K^T) V with the chunk's own keys.
    fn write_outputs(
        &self,
        scratch: &mut ChunkScratch,
        segment: &Segment,
        head_in_group: usize,
        first: usize,
        count: usize,
        local: Option<LocalKeys>,
        state: &[f32],
    ) {
        let Common { queries, outputs, feature_map, group, .. } = self.common;
        let (dk, dv) = (queries.dim, outputs.dim);
        let head = segment.head * group + head_in_group;
        let (sum, normaliser) = state.split_at(dk * dv);
        let ChunkScratch { queries: q, keys_transposed, values, scores, output, .. } = scratch;
        self.q.read_tile(queries, (segment.sequence, head), count, |index| first + index, q);
        apply(*feature_map, &mut q[..count * dk]);
        matmul((count, dv, dk), q, (dk, 1), sum, dv, output, dv, false);
        if let Some(LocalKeys { count: keys, lead }) = local {
            matmul((count, keys, dk), q, (dk, 1), keys_transposed, CHUNK, scores, CHUNK, false);
            for (row, scores) in scores.chunks_exact_mut(CHUNK).take(count).enumerate() {
                scores[(lead + row + 1).min(keys)..keys].fill(0.0);
            }
            matmul((count, dv, keys), scores, (CHUNK, 1), values, dv, output, dv, true);
        }
        for (row, output) in output.chunks_exact_mut(dv).take(count).enumerate() {
            let mut denominator = 0.0;
            if self.common.normalised {
                denominator = q[row * dk..][..dk].iter().zip(normaliser).map(|(q, z)| q * z).sum();
                if let Some(LocalKeys { count: keys, .. }) = local {
                    denominator += scores[row * CHUNK..][..keys].iter().sum::<f32>();
                }
            }
            let factor = self.common.factor(denominator);
            output.iter_mut().for_each(|x| *x *= factor);
            // SAFETY: this (sequence, head, token) belongs to this segment alone.
            unsafe { self.o.write(outputs.offset(segment.sequence, head, first + row), output) };
        }
    }
}

struct Recurrent {
    common: Common,
    heads_kv: usize,
    /// (sequence, KV head, first column, last column).
    items: Vec<(usize, usize, usize, usize)>,
    scratches: Vec<RecurrentScratch>,
}

struct RecurrentScratch {
    key: Vec<f32>,
    value: Vec<f32>,
    /// (group, d_qk).
    queries: Vec<f32>,
    normaliser: Vec<f32>,
    /// (group, d_v).
    output: Vec<f32>,
}

impl Recurrent {
    fn new(context: &PlanContext<'_>) -> Self {
        let problem = context.problem;
        let (dk, dv, group) = (problem.head_dim_qk, problem.head_dim_v, problem.group_size());
        let heads = problem.batch * problem.heads_kv;
        let cuts = context.threads.div_ceil(heads.max(1)).min(dv / MIN_COLUMNS).max(1);
        let columns = dv.div_ceil(cuts).next_multiple_of(MIN_COLUMNS);
        let items = (0..heads)
            .flat_map(|head| {
                (0..dv).step_by(columns).map(move |first| {
                    (head / problem.heads_kv, head % problem.heads_kv, first, (first + columns).min(dv))
                })
            })
            .collect();
        let scratch = || RecurrentScratch {
            key: vec![0.0; dk],
            value: vec![0.0; columns],
            queries: vec![0.0; group * dk],
            normaliser: vec![0.0; dk],
            output: vec![0.0; group * columns],
        };
        let scratches = (0..context.threads).map(|_| scratch()).collect();
        Recurrent { common: Common::new(problem), heads_kv: problem.heads_kv, items, scratches }
    }
}

impl Plan for Recurrent {
    fn run(&mut self, inputs: &TensorSet, outputs: &mut TensorSet) {
        let Common { feature_map, normalised, group, .. } = self.common;
        let common = &self.common;
        let (dk, dv, heads_kv) = (common.keys.dim, common.values.dim, self.heads_kv);
        let [q, k, v] = [TensorName::Q, TensorName::K, TensorName::V].map(|name| Source::new(inputs.get(name)));
        let state_in = inputs.get(TensorName::StateIn).as_slice::<f32>();
        let normaliser_in = normalised.then(|| inputs.get(TensorName::NormaliserIn).as_slice::<f32>());
        let o = Sink::new(outputs, TensorName::O);
        let state_out = SharedMut::new(outputs.get_mut(TensorName::StateOut).as_mut_slice::<f32>());
        let normaliser_out =
            normalised.then(|| SharedMut::new(outputs.get_mut(TensorName::NormaliserOut).as_mut_slice::<f32>()));
        let items = &self.items;
        for_each_task(items.len(), &mut self.scratches, |scratch, item| {
            let (sequence, head, first, last) = items[item];
            let columns = last - first;
            let RecurrentScratch { key, value, queries, normaliser, output } = scratch;
            let index = sequence * heads_kv + head;
            if let Some(before) = normaliser_in {
                normaliser.copy_from_slice(&before[index * dk..][..dk]);
            }
            // SAFETY: these rows' columns of this head's state belong to this item alone.
            let state_row = |row: usize| unsafe { state_out.slice((index * dk + row) * dv + first, columns) };
            let state_in_row = |row: usize| &state_in[(index * dk + row) * dv + first..][..columns];
            let tokens = common.keys.lengths[sequence];
            if tokens == 0 {
                (0..dk).for_each(|row| state_row(row).copy_from_slice(state_in_row(row)));
            }
            for token in 0..tokens {
                k.read(common.keys.offset(sequence, head, token), key);
                apply(feature_map, key);
                v.read(common.values.offset(sequence, head, token) + first, &mut value[..columns]);
                for in_group in 0..group {
                    let query = &mut queries[in_group * dk..][..dk];
                    q.read(common.queries.offset(sequence, head * group + in_group, token), query);
                    apply(feature_map, query);
                }
                add(normaliser, key);
                output.fill(0.0);
                for row in 0..dk {
                    let state = state_row(row);
                    if token == 0 {
                        state.copy_from_slice(state_in_row(row));
                    }
                    state.iter_mut().zip(value.iter()).for_each(|(state, value)| *state += key[row] * value);
                    for (in_group, output) in output.chunks_exact_mut(columns).take(group).enumerate() {
                        let factor = queries[in_group * dk + row];
                        output.iter_mut().zip(state.iter()).for_each(|(output, state)| *output += factor * state);
                    }
                }
                for (in_group, output) in output.chunks_exact_mut(columns).take(group).enumerate() {
                    let query = &queries[in_group * dk..][..dk];
                    let denominator = query.iter().zip(normaliser.iter()).map(|(q, z)| q * z).sum();
                    let factor = common.factor(denominator);
                    output.iter_mut().for_each(|x| *x *= factor);
                    let offset = common.outputs.offset(sequence, head * group + in_group, token) + first;
                    // SAFETY: these columns of this row belong to this item alone.
                    unsafe { o.write(offset, output) };
                }
            }
            if let Some(after) = &normaliser_out
                && first == 0
            {
                // SAFETY: one item of each head has the first column.
                unsafe { after.slice(index * dk, dk) }.copy_from_slice(normaliser);
            }
        });
    }
}
