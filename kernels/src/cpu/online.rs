//! Online softmax over tiles of query rows and blocks of keys (Milakov and Gimelshein 2018; FlashAttention-2, Dao 2023,
//! algorithm 1): the engine of every kernel that never materialises the scores.
//!
//! A row keeps its largest score m so far, the sum l of exp(score - m), and the weighted values O, both relative to m. A
//! key block raises m, scales l and O down by exp(m_old - m), and adds its own part.

use std::ops::Range;

use super::rows::Row;
use super::score::ScoreRules;
use super::simd::exp::exp_nonpositive;
use super::simd::gemm::{Panels, Strided, gemm};
use super::simd::{Isa, Simd, Task};

/// A block of packed keys and values.
#[derive(Clone, Copy)]
pub(crate) struct KeyValueBlock<'a> {
    /// K^T: (d_qk, keys).
    pub(crate) keys: Panels<'a>,
    /// V: (keys, d_v).
    pub(crate) values: Panels<'a>,
    /// The first key.
    pub(crate) first_key: usize,
    /// Keys.
    pub(crate) len: usize,
}

/// The state of a tile of rows, and where its scores go.
pub(crate) struct TileState<'a> {
    /// Largest score a row.
    pub(crate) max: &'a mut [f32],
    /// Sum of weights a row.
    pub(crate) sum: &'a mut [f32],
    /// (rows, d_v rounded up to whole vectors): sums of weighted values.
    pub(crate) out: &'a mut [f32],
    /// (rows, keys a block rounded up to whole vectors).
    pub(crate) scores: &'a mut [f32],
}

/// Fixed properties of a tile's computation.
#[derive(Clone, Copy)]
pub(crate) struct TileShape {
    /// Instruction set.
    pub(crate) isa: Isa,
    /// Elements of a query row in `queries`.
    pub(crate) dim_qk: usize,
    /// d_v rounded up to whole vectors.
    pub(crate) dim_v: usize,
}

impl TileState<'_> {
    /// Forgets every key.
    pub(crate) fn reset(&mut self) {
        self.max.fill(f32::NEG_INFINITY);
        self.sum.fill(0.0);
        self.out.fill(0.0);
    }
}

/// Takes a block of keys into a tile's state. `queries` is (rows, d_qk), scaled. The ranges of the rows' keys never fall
/// from row to row, so that the rows that see a panel of keys are a range too: nothing else is computed.
pub(crate) fn absorb(
    shape: TileShape,
    rules: &ScoreRules<'_>,
    sequence: usize,
    rows: &[Row],
    queries: &[f32],
    block: KeyValueBlock<'_>,
    state: &mut TileState<'_>,
) {
    let TileShape { isa, dim_qk, dim_v } = shape;
    let width = isa.pad(block.len);
    let panel = isa.panel();
    for start in (0..width).step_by(panel) {
        let panel_width = panel.min(width - start);
        let first = block.first_key + start;
        let from = rows.partition_point(|row| row.keys.end <= first);
        let to = rows.partition_point(|row| row.keys.start < first + panel_width);
        if from < to {
            let scores = &mut state.scores[from * width + start..];
            let product = (to - from, panel_width, dim_qk);
            let queries = Strided::rows(&queries[from * dim_qk..], dim_qk);
            gemm(isa, product, queries, block.keys.panels_from(start / panel), scores, width, false);
        }
    }
    for (index, row) in rows.iter().enumerate() {
        let scores = &mut state.scores[index * width..(index + 1) * width];
        let out = &mut state.out[index * dim_v..(index + 1) * dim_v];
        let seen = local(&rules.cut(&row.keys), block.first_key, block.len);
        if let Some(scale) = absorb_scores(
            isa,
            rules,
            sequence,
            row,
            seen,
            block.first_key,
            scores,
            &mut state.max[index],
            &mut state.sum[index],
        ) {
            scale_in_place(isa, out, scale);
        }
    }
    weigh_values(shape, rows, block, width, state);
}

/// The part of a range of keys that is in a block, counted from the block's first key.
pub(crate) fn local(keys: &Range<usize>, first: usize, len: usize) -> Range<usize> {
    let start = keys.start.clamp(first, first + len) - first;
    let end = keys.end.clamp(first, first + len) - first;
    start..end.max(start)
}

/// O += P V, each run of rows over the keys that it sees.
fn weigh_values(shape: TileShape, rows: &[Row], block: KeyValueBlock<'_>, width: usize, state: &mut TileState<'_>) {
    const RUN: usize = 24;
    let seen = |from: usize, to: usize| {
        let (first, last) = (&rows[from].keys, &rows[to - 1].keys);
        local(&(first.start..last.end), block.first_key, block.len)
    };
    let mut from = 0;
    while from < rows.len() {
        let mut to = (from + RUN).min(rows.len());
        let keys = seen(from, to);
        while to < rows.len() && seen(to, (to + RUN).min(rows.len())) == keys {
            to = (to + RUN).min(rows.len());
        }
        if !keys.is_empty() {
            let product = (to - from, shape.dim_v, keys.len());
            let weights = Strided::rows(&state.scores[from * width + keys.start..], width);
            let out = &mut state.out[from * shape.dim_v..];
            gemm(shape.isa, product, weights, block.values.rows_from(keys.start), out, shape.dim_v, true);
        }
        from = to;
    }
}

/// Turns one row's scores of a block into weights exp(score - m), zero where not `seen`, with m and l updated. Returns the
/// factor by which what was summed so far must shrink, unless that is 1.
pub(crate) fn absorb_scores(
    isa: Isa,
    rules: &ScoreRules<'_>,
    sequence: usize,
    row: &Row,
    seen: Range<usize>,
    first_key: usize,
    scores: &mut [f32],
    max: &mut f32,
    sum: &mut f32,
) -> Option<f32> {
    if seen.is_empty() {
        scores.fill(0.0);
        return None;
    }
    rules.apply(isa, sequence, row, first_key + seen.start, &mut scores[seen.clone()]);
    scores[..seen.start].fill(f32::NEG_INFINITY);
    scores[seen.end..].fill(f32::NEG_INFINITY);
    isa.run(Weights { scores, max, sum })
}

/// scores -> weights; the length is whole vectors.
struct Weights<'a> {
    scores: &'a mut [f32],
    max: &'a mut f32,
    sum: &'a mut f32,
}

impl Task for Weights<'_> {
    type Output = Option<f32>;

    #[inline(always)]
    fn run<S: Simd>(self) -> Option<f32> {
        let count = self.scores.len() / S::LANES;
        debug_assert_eq!(count * S::LANES, self.scores.len());
        let scores = self.scores.as_mut_ptr();
        let mut largest = S::splat(f32::NEG_INFINITY);
        for i in 0..count {
            // SAFETY: i counts whole vectors of the slice.
            largest = unsafe { S::max(largest, S::load(scores.add(i * S::LANES))) };
        }
        let new = S::largest(largest).max(*self.max);
        if new == f32::NEG_INFINITY {
            // Nothing is visible, unless all that is visible is NaN: that must show in the output.
            if self.scores.iter().any(|score| score.is_nan()) {
                self.scores.fill(f32::NAN);
                *self.sum = f32::NAN;
            } else {
                self.scores.fill(0.0);
            }
            return None;
        }
        let shift = S::splat(new);
        let mut total = S::splat(0.0);
        for i in 0..count {
            // SAFETY: as above.
            unsafe {
                let weight = exp_nonpositive::<S>(S::sub(S::load(scores.add(i * S::LANES)), shift));
                S::store(scores.add(i * S::LANES), weight);
                total = S::add(total, weight);
            }
        }
        let scale = if new > *self.max {
            let mut scale = [0f32; 16];
            // SAFETY: no vector has more than 16 lanes.
            unsafe { S::store(scale.as_mut_ptr(), exp_nonpositive::<S>(S::splat(*self.max - new))) };
            Some(scale[0])
        } else {
            None
        };
        *self.sum = *self.sum * scale.unwrap_or(1.0) + S::sum(total);
        *self.max = new;
        scale
    }
}

/// values *= factor; the length is whole vectors.
pub(crate) fn scale_in_place(isa: Isa, values: &mut [f32], factor: f32) {
    isa.run(Scale { values, factor });
}

struct Scale<'a> {
    values: &'a mut [f32],
    factor: f32,
}

impl Task for Scale<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let factor = S::splat(self.factor);
        for chunk in self.values.chunks_exact_mut(S::LANES) {
            // SAFETY: a chunk has LANES elements.
            unsafe { S::store(chunk.as_mut_ptr(), S::mul(S::load(chunk.as_ptr()), factor)) };
        }
    }
}

/// What a finished row becomes: the factor of its weighted values, and its LSE. A row that saw no key gives zeros and -inf.
/// A sink takes part in the denominator only, not in the LSE.
pub(crate) fn finish(max: f32, sum: f32, sink: Option<f32>) -> (f32, f32) {
    if sum == 0.0 {
        return (0.0, f32::NEG_INFINITY);
    }
    let lse = max + sum.ln();
    match sink {
        None => (1.0 / sum, lse),
        Some(sink) => {
            let top = max.max(sink);
            let weight = (max - top).exp();
            (weight / (sum * weight + (sink - top).exp()), lse)
        }
    }
}
