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
//! Tiles: 64 positions; K and Q as (64, d_qk), K and V also packed, scores (64, 64): about 150 KiB at d = 128, plus S of
//! 64 KiB, which is read as it lies. Of the scores only what lies below the diagonal is computed, in steps of 16
//! queries. Prefill aims at the FMA rate, 2 d_qk d_v (n_q + n_kv) FLOPs a head; decode at the bandwidth of reading and
//! writing the state once.

use super::rows::SharedRows;
use super::schedule::for_each_task;
use super::simd::exp::{exp, load_padded, store_padded};
use super::simd::gemm::{Panels, Strided, gemm};
use super::simd::pack::{PackedShape, pack_columns, pack_rows, widen_row};
use super::simd::{Isa, Simd, Task};
use crate::input::key_lengths;
use crate::kernel::{Kernel, KernelError, Plan, PlanContext};
use crate::problem::{AttentionProblem, Bias, FeatureMap, KvLayout, Mechanism, Pattern, Phase};
use crate::shared_mut::SharedMut;
use crate::tensor::{Rows, Tensor, TensorName, TensorSet};

/// Positions a chunk.
const CHUNK: usize = 64;
/// Queries of a chunk that share a width of scores.
const STEP: usize = 16;
/// Added to the denominator of normalised attention.
const EPSILON: f32 = 1e-6;
/// Columns of the state below which decode does not cut further: a cache line.
const MIN_COLUMNS: usize = 16;

/// Linear attention: chunked prefill and recurrent decode; `isa` is the widest of the machine unless given.
pub struct Linear {
    /// Instruction set to use.
    pub isa: Option<Isa>,
}

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
        let isa = self.isa.unwrap_or_else(Isa::best);
        if context.problem.is_recurrent() {
            Ok(Box::new(Recurrent::new(isa, context)))
        } else {
            Ok(Box::new(Chunked::new(isa, context)?))
        }
    }
}

/// phi of each element, in place.
fn apply(isa: Isa, map: FeatureMap, values: &mut [f32]) {
    match map {
        FeatureMap::Elu1 => isa.run(Elu1(values)),
        FeatureMap::Relu => values.iter_mut().for_each(|x| *x = x.max(0.0)),
        FeatureMap::Identity => {}
    }
}

/// elu(x) + 1.
struct Elu1<'a>(&'a mut [f32]);

impl Task for Elu1<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let zero = S::splat(0.0);
        for chunk in self.0.chunks_mut(S::LANES) {
            let x = load_padded::<S>(chunk);
            // One of them is 1 or 0.
            store_padded::<S>(S::add(exp::<S>(S::min(x, zero)), S::max(x, zero)), chunk);
        }
    }
}

/// to += from, element by element.
struct Add<'a> {
    to: &'a mut [f32],
    from: &'a [f32],
}

impl Task for Add<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        for (to, from) in self.to.chunks_mut(S::LANES).zip(self.from.chunks(S::LANES)) {
            store_padded::<S>(S::add(load_padded::<S>(to), load_padded::<S>(from)), to);
        }
    }
}

/// The sum of x y, and of z.
struct DotPlusSum<'a> {
    x: &'a [f32],
    y: &'a [f32],
    z: &'a [f32],
}

impl Task for DotPlusSum<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self) -> f32 {
        let mut total = S::splat(0.0);
        for (x, y) in self.x.chunks(S::LANES).zip(self.y.chunks(S::LANES)) {
            total = S::fma(load_padded::<S>(x), load_padded::<S>(y), total);
        }
        for z in self.z.chunks(S::LANES) {
            total = S::add(total, load_padded::<S>(z));
        }
        S::sum(total)
    }
}

/// What both forms know of the problem.
struct Common {
    isa: Isa,
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
    fn new(isa: Isa, problem: &AttentionProblem) -> Self {
        let Mechanism::Linear { feature_map, normalised } = problem.mechanism else {
            unreachable!("supports() refuses other mechanisms")
        };
        let lengths = key_lengths(problem);
        Common {
            isa,
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

    /// Elements of a row of S: whole vectors.
    fn state_width(&self) -> usize {
        self.isa.pad(self.values.dim)
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
    /// Per segment S (d_qk, d_v), rows padded to whole vectors, and its normaliser (d_qk): sums of the segment, then of
    /// what is before it.
    states: Tensor,
    scratches: Vec<ChunkScratch>,
}

struct ChunkScratch {
    offsets: Vec<usize>,
    /// phi(K): (CHUNK, d_qk).
    keys: Tensor,
    /// phi(K)^T, packed.
    keys_packed: Tensor,
    /// V, packed.
    values_packed: Tensor,
    /// phi(Q): (CHUNK, d_qk).
    queries: Tensor,
    /// (CHUNK, CHUNK).
    scores: Tensor,
    /// (CHUNK, d_v padded).
    output: Tensor,
}

impl Chunked {
    fn new(isa: Isa, context: &PlanContext<'_>) -> Result<Self, KernelError> {
        let problem = context.problem;
        let common = Common::new(isa, problem);
        let (dk, width) = (problem.head_dim_qk, common.state_width());
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
        let state = dk * width + dk;
        let packed_keys = dk * isa.pad(CHUNK);
        let scratch = CHUNK * (2 * dk + 2 * width + CHUNK) + packed_keys;
        context.check_workspace(4 * (segments.len() * state + context.threads * scratch) as u64)?;
        let scratch = || ChunkScratch {
            offsets: vec![0; CHUNK],
            keys: Tensor::f32s(CHUNK * dk),
            keys_packed: Tensor::f32s(packed_keys),
            values_packed: Tensor::f32s(CHUNK * width),
            queries: Tensor::f32s(CHUNK * dk),
            scores: Tensor::f32s(CHUNK * CHUNK),
            output: Tensor::f32s(CHUNK * width),
        };
        Ok(Chunked {
            causal: problem.causal,
            query_offsets,
            states: Tensor::f32s(segments.len() * state),
            segments,
            heads: ranges,
            scratches: (0..context.threads.max(1)).map(|_| scratch()).collect(),
            common,
        })
    }
}

impl Plan for Chunked {
    fn run(&mut self, inputs: &TensorSet, outputs: &mut TensorSet) {
        let (dk, isa) = (self.common.keys.dim, self.common.isa);
        let state_size = dk * self.common.state_width() + dk;
        let call = Call {
            common: &self.common,
            query_offsets: &self.query_offsets,
            q: inputs.get(TensorName::Q),
            k: inputs.get(TensorName::K),
            v: inputs.get(TensorName::V),
            o: SharedRows::new(outputs.get_mut(TensorName::O)),
        };
        let (segments, heads) = (&self.segments, &self.heads);
        let states = SharedMut::new(self.states.as_mut_slice::<f32>());
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
                    isa.run(Add { to: state(segment), from: state(segment - 1) });
                }
            } else {
                for segment in range.clone().skip(1) {
                    isa.run(Add { to: state(range.start), from: state(segment) });
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
    q: &'a Tensor,
    k: &'a Tensor,
    v: &'a Tensor,
    o: SharedRows,
}

impl Call<'_> {
    /// Loads phi(K) and V of the chunk at position `chunk`; returns how many keys there are.
    fn load_keys(&self, scratch: &mut ChunkScratch, segment: &Segment, chunk: usize) -> usize {
        let &Common { isa, ref keys, ref values, feature_map, .. } = self.common;
        let &Segment { sequence, head, .. } = segment;
        let count = keys.lengths[sequence].saturating_sub(chunk).min(CHUNK);
        let rows = &mut scratch.keys.as_mut_slice::<f32>()[..count * keys.dim];
        for (index, row) in rows.chunks_exact_mut(keys.dim).enumerate() {
            widen_row(isa, self.k, keys.offset(sequence, head, chunk + index), keys.dim, 1.0, row);
        }
        apply(isa, feature_map, rows);
        let offsets = &mut scratch.offsets[..count];
        offsets.iter_mut().enumerate().for_each(|(index, at)| *at = values.offset(sequence, head, chunk + index));
        let shape = PackedShape::new(isa, count, values.dim);
        pack_rows(isa, self.v, offsets, values.dim, count, &mut scratch.values_packed.as_mut_slice()[..shape.len()]);
        count
    }

    /// Packs the chunk's phi(K)^T.
    fn pack_keys(&self, scratch: &mut ChunkScratch, count: usize) {
        let &Common { isa, ref keys, .. } = self.common;
        let offsets = &mut scratch.offsets[..count];
        offsets.iter_mut().enumerate().for_each(|(index, at)| *at = index * keys.dim);
        let shape = PackedShape::new(isa, keys.dim, count);
        pack_columns(isa, &scratch.keys, offsets, keys.dim, &mut scratch.keys_packed.as_mut_slice()[..shape.len()]);
    }

    /// S += K^T V, z += the sum of K's rows.
    fn add_keys(&self, scratch: &ChunkScratch, count: usize, state: &mut [f32]) {
        let &Common { isa, ref keys, ref values, .. } = self.common;
        let (dk, width) = (keys.dim, self.common.state_width());
        let (sum, normaliser) = state.split_at_mut(dk * width);
        let keys = scratch.keys.as_slice::<f32>();
        let packed = PackedShape::new(isa, count, values.dim).view(scratch.values_packed.as_slice());
        gemm(isa, (dk, width, count), Strided::transposed(keys, dk), packed, sum, width, true);
        if self.common.normalised {
            for key in keys.chunks_exact(dk).take(count) {
                isa.run(Add { to: normaliser, from: key });
            }
        }
    }

    fn causal_segment(&self, scratch: &mut ChunkScratch, segment: &Segment, state: &mut [f32]) {
        let len_q = self.common.queries.lengths[segment.sequence];
        let offset = self.query_offsets[segment.sequence];
        if segment.first == 0 {
            // Queries before the first key see nothing.
            let empty = (-offset).clamp(0, len_q as i64) as usize;
            for head in 0..self.common.group {
                let row = &mut scratch.output.as_mut_slice::<f32>()[..self.common.outputs.dim];
                row.fill(0.0);
                for token in 0..empty {
                    let head = segment.head * self.common.group + head;
                    let offset = self.common.outputs.offset(segment.sequence, head, token);
                    // SAFETY: this (sequence, head, token) belongs to this segment alone.
                    unsafe { self.o.write(offset, row, 1.0) };
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
                self.pack_keys(scratch, keys);
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
        let &Common { isa, ref queries, ref values, ref outputs, feature_map, group, .. } = self.common;
        let (dk, width) = (queries.dim, self.common.state_width());
        let head = segment.head * group + head_in_group;
        let (sum, normaliser) = state.split_at(dk * width);
        let q = &mut scratch.queries.as_mut_slice::<f32>()[..count * dk];
        for (index, row) in q.chunks_exact_mut(dk).enumerate() {
            widen_row(isa, self.q, queries.offset(segment.sequence, head, first + index), dk, 1.0, row);
        }
        apply(isa, feature_map, q);
        let output = scratch.output.as_mut_slice::<f32>();
        gemm(isa, (count, width, dk), Strided::rows(q, dk), Panels::rows(isa, sum, width), output, width, false);
        let scores = scratch.scores.as_mut_slice::<f32>();
        if let Some(LocalKeys { count: keys, lead }) = local {
            let keys_packed = PackedShape::new(isa, dk, keys).view(scratch.keys_packed.as_slice());
            let values_packed = PackedShape::new(isa, keys, values.dim).view(scratch.values_packed.as_slice());
            for from in (0..count).step_by(STEP) {
                let to = count.min(from + STEP);
                // What the last of these queries sees.
                let seen = (lead + to).min(keys);
                let scores = &mut scores[from * CHUNK..];
                let queries = Strided::rows(&q[from * dk..], dk);
                gemm(isa, (to - from, isa.pad(seen), dk), queries, keys_packed, scores, CHUNK, false);
                for (index, scores) in scores.chunks_exact_mut(CHUNK).take(to - from).enumerate() {
                    scores[(lead + from + index + 1).min(keys)..].fill(0.0);
                }
                let output = &mut output[from * width..];
                gemm(isa, (to - from, width, seen), Strided::rows(scores, CHUNK), values_packed, output, width, true);
            }
        }
        for (index, output) in output.chunks_exact(width).take(count).enumerate() {
            let mut denominator = 0.0;
            if self.common.normalised {
                let scores = if local.is_some() { &scores[index * CHUNK..][..CHUNK] } else { &[] };
                denominator = isa.run(DotPlusSum { x: &q[index * dk..][..dk], y: normaliser, z: scores });
            }
            let offset = outputs.offset(segment.sequence, head, first + index);
            // SAFETY: this (sequence, head, token) belongs to this segment alone.
            unsafe { self.o.write(offset, &output[..outputs.dim], self.common.factor(denominator)) };
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
    fn new(isa: Isa, context: &PlanContext<'_>) -> Self {
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
        Recurrent { common: Common::new(isa, problem), heads_kv: problem.heads_kv, items, scratches }
    }
}

impl Plan for Recurrent {
    fn run(&mut self, inputs: &TensorSet, outputs: &mut TensorSet) {
        let Common { isa, feature_map, normalised, group, .. } = self.common;
        let common = &self.common;
        let (dk, dv, heads_kv) = (common.keys.dim, common.values.dim, self.heads_kv);
        let [q, k, v] = [TensorName::Q, TensorName::K, TensorName::V].map(|name| inputs.get(name));
        let state_in = inputs.get(TensorName::StateIn).as_slice::<f32>();
        let normaliser_in = normalised.then(|| inputs.get(TensorName::NormaliserIn).as_slice::<f32>());
        let o = SharedRows::new(outputs.get_mut(TensorName::O));
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
                widen_row(isa, k, common.keys.offset(sequence, head, token), dk, 1.0, key);
                apply(isa, feature_map, key);
                let offset = common.values.offset(sequence, head, token) + first;
                widen_row(isa, v, offset, columns, 1.0, &mut value[..columns]);
                for in_group in 0..group {
                    let query = &mut queries[in_group * dk..][..dk];
                    let offset = common.queries.offset(sequence, head * group + in_group, token);
                    widen_row(isa, q, offset, dk, 1.0, query);
                    apply(isa, feature_map, query);
                }
                isa.run(Add { to: normaliser, from: key });
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
                    let factor = common.factor(isa.run(DotPlusSum { x: query, y: normaliser, z: &[] }));
                    let offset = common.outputs.offset(sequence, head * group + in_group, token) + first;
                    // SAFETY: these columns of this row belong to this item alone.
                    unsafe { o.write(offset, output, factor) };
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
