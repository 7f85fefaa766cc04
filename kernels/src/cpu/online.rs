//! Online softmax over tiles of query rows and blocks of keys (Milakov and Gimelshein 2018; FlashAttention-2, Dao 2023,
//! algorithm 1): the engine of every kernel that never materialises the scores.
//!
//! A row keeps its largest score m so far, the sum l of exp(score - m), and the weighted values O, both relative to m. A
//! key block raises m, scales l and O down by exp(m_old - m), and adds its own part.

use std::ops::Range;

use super::rows::Row;
use super::score::ScoreRules;
use super::simd::exp::softmax_weight;
use super::simd::gemm::{Panels, Strided, gemm};
use super::simd::{Isa, MAX_LANES, Simd, Task};

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
    absorb_scores(isa, rules, sequence, rows, block.first_key, block.len, dim_v, state);
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

/// Turns scores (rows, `len` rounded up to whole vectors) of keys `first_key..` into weights exp(score - m), zero where not
/// seen, with m, l and O, rows of `dim_v` elements, updated but for the weighted values.
pub(crate) fn absorb_scores(
    isa: Isa,
    rules: &ScoreRules<'_>,
    sequence: usize,
    rows: &[Row],
    first_key: usize,
    len: usize,
    dim_v: usize,
    state: &mut TileState<'_>,
) {
    let width = isa.pad(len);
    if rules.change_scores() && width > 0 {
        for (row, scores) in rows.iter().zip(state.scores.chunks_exact_mut(width)) {
            let seen = local(&rules.cut(&row.keys), first_key, len);
            rules.apply(isa, sequence, row, first_key + seen.start, &mut scores[seen]);
        }
    }
    isa.run(Weights { rules, rows, first_key, len, width, dim_v, state });
}

/// All rows in one loop: their reductions, which are chains of dependent steps, then overlap.
struct Weights<'a, 'b, 'c> {
    rules: &'a ScoreRules<'b>,
    rows: &'a [Row],
    first_key: usize,
    len: usize,
    width: usize,
    dim_v: usize,
    state: &'a mut TileState<'c>,
}

impl Task for Weights<'_, '_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        for (index, row) in self.rows.iter().enumerate() {
            let scores = &mut self.state.scores[index * self.width..(index + 1) * self.width];
            let seen = local(&self.rules.cut(&row.keys), self.first_key, self.len);
            if seen.is_empty() {
                scores.fill(0.0);
                continue;
            }
            // Vectors that hold something seen.
            let vectors = seen.start / S::LANES * S::LANES..seen.end.next_multiple_of(S::LANES);
            scores[..vectors.start].fill(0.0);
            scores[vectors.end..].fill(0.0);
            scores[vectors.start..seen.start].fill(f32::NEG_INFINITY);
            scores[seen.end..vectors.end].fill(f32::NEG_INFINITY);
            let (max, sum) = (&mut self.state.max[index], &mut self.state.sum[index]);
            if let Some(factor) = weigh::<S>(&mut scores[vectors], max, sum) {
                let out = &mut self.state.out[index * self.dim_v..(index + 1) * self.dim_v];
                Scale { values: out, factor }.run::<S>();
            }
        }
    }
}

/// Turns one row's scores, whole vectors, into weights. Returns the factor by which what was summed so far must shrink,
/// unless that is 1.
#[inline(always)]
fn weigh<S: Simd>(scores: &mut [f32], max: &mut f32, sum: &mut f32) -> Option<f32> {
    let count = scores.len() / S::LANES;
    debug_assert_eq!(count * S::LANES, scores.len());
    let data = scores.as_mut_ptr();
    let none = S::splat(f32::NEG_INFINITY);
    let mut largest = [none; 4];
    let mut i = 0;
    while i + 4 <= count {
        for chain in 0..4 {
            // SAFETY: i + chain counts whole vectors of the slice.
            largest[chain] = unsafe { S::max(largest[chain], S::load(data.add((i + chain) * S::LANES))) };
        }
        i += 4;
    }
    while i < count {
        // SAFETY: as above.
        largest[0] = unsafe { S::max(largest[0], S::load(data.add(i * S::LANES))) };
        i += 1;
    }
    let largest = S::max(S::max(largest[0], largest[1]), S::max(largest[2], largest[3]));
    let new = S::largest(largest).max(*max);
    if new == f32::NEG_INFINITY {
        // Nothing is visible, unless all that is visible is NaN: that must show in the output.
        if scores.iter().any(|score| score.is_nan()) {
            scores.fill(f32::NAN);
            *sum = f32::NAN;
        } else {
            scores.fill(0.0);
        }
        return None;
    }
    let shift = S::splat(new);
    let mut totals = [S::splat(0.0); 4];
    // No closure: it would be compiled without the instruction set. Sums are written out: `totals[i % 4]` is memory.
    macro_rules! weigh_vector {
        ($i:expr, $chain:expr) => {
            // SAFETY: as above.
            unsafe {
                let at = data.add($i * S::LANES);
                let weight = softmax_weight::<S>(S::sub(S::load(at), shift));
                S::store(at, weight);
                totals[$chain] = S::add(totals[$chain], weight);
            }
        };
    }
    let mut i = 0;
    while i + 4 <= count {
        for chain in 0..4 {
            weigh_vector!(i + chain, chain);
        }
        i += 4;
    }
    while i < count {
        weigh_vector!(i, 0);
        i += 1;
    }
    let total = S::add(S::add(totals[0], totals[1]), S::add(totals[2], totals[3]));
    let scale = if new > *max {
        let mut scale = [0f32; MAX_LANES];
        // SAFETY: no vector has more lanes.
        unsafe { S::store(scale.as_mut_ptr(), softmax_weight::<S>(S::splat(*max - new))) };
        Some(scale[0])
    } else {
        None
    };
    *sum = *sum * scale.unwrap_or(1.0) + S::sum(total);
    *max = new;
    scale
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
