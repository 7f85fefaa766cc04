//! Online softmax with the scores of a row in a column: the engine of decoding with tens of rows a KV head.
//!
//! S^T = K Q^T and O += (S^T)^T V read K and V as they lie: of both products K and V are never packed or transposed, which
//! for so few rows would cost as much as the products, and where rows of f32 lie at a regular distance they are not even
//! copied. Maxima, exponentials and sums run over whole vectors of rows, without a reduction inside a vector. The algorithm is
//! that of [`super::online`].

use super::online::{local, scale_in_place};
use super::rows::Row;
use super::score::ScoreRules;
use super::simd::exp::softmax_weight;
use super::simd::gemm::{Ahead, Panels, Strided, gemm_ahead};
use super::simd::pack::{PackedShape, pack_columns, widen_rows};
use super::simd::{Isa, Simd, Task};
use crate::tensor::{ElementType, Tensor};

/// Rows of K or V of one block as an f32 matrix.
#[derive(Clone, Copy)]
pub(crate) struct RowMatrix<'a> {
    data: &'a [f32],
    stride: usize,
    dim: usize,
    is_in_place: bool,
}

impl<'a> RowMatrix<'a> {
    /// The rows of `dim` elements that start at `offsets`: in place where they are f32 at one distance, else widened into
    /// `scratch`, which holds `offsets.len()` rows of whole vectors.
    pub(crate) fn new(isa: Isa, tensor: &'a Tensor, offsets: &[usize], dim: usize, scratch: &'a mut [f32]) -> Self {
        if let Some(stride) = distance(offsets, dim)
            && tensor.element() == ElementType::F32
            && dim.is_multiple_of(isa.lanes())
        {
            let first = offsets.first().copied().unwrap_or(0);
            return RowMatrix { data: &tensor.as_slice()[first..], stride, dim, is_in_place: true };
        }
        let stride = isa.pad(dim);
        widen_rows(isa, tensor, offsets, dim, stride, scratch);
        RowMatrix { data: scratch, stride, dim, is_in_place: false }
    }
}

impl RowMatrix<'_> {
    /// The `rows` rows that follow the first `rows`, to ask for during a product.
    fn next(&self, rows: usize) -> Ahead {
        if !self.is_in_place {
            return Ahead::NONE;
        }
        let first = self.data.as_ptr().wrapping_add(rows * self.stride);
        Ahead::rows(first, rows, self.dim, self.stride)
    }
}

/// The distance between neighbouring offsets, if it is one.
fn distance(offsets: &[usize], dim: usize) -> Option<usize> {
    let stride = match offsets {
        [first, second, ..] => second.checked_sub(*first)?,
        _ => dim,
    };
    offsets.windows(2).all(|pair| pair[1].checked_sub(pair[0]) == Some(stride)).then_some(stride)
}

/// The queries of a tile as the columns of a packed operand (d_qk, rows).
pub(crate) struct QueryColumns<'a> {
    /// Instruction set.
    pub(crate) isa: Isa,
    /// Elements of a query.
    pub(crate) dim: usize,
    /// Rows.
    pub(crate) rows: usize,
    /// Of [`QueryColumns::len`] elements.
    pub(crate) packed: &'a [f32],
}

impl<'a> QueryColumns<'a> {
    /// Elements of `rows` packed queries.
    pub(crate) fn len(isa: Isa, dim: usize, rows: usize) -> usize {
        PackedShape::new(isa, dim, rows).len()
    }

    /// Packs `rows` scaled queries, rows of `dim` elements of `queries`. `offsets` is scratch.
    pub(crate) fn pack(
        isa: Isa,
        (queries, rows, dim): (&Tensor, usize, usize),
        offsets: &mut Vec<usize>,
        packed: &'a mut [f32],
    ) -> Self {
        offsets.clear();
        offsets.extend((0..rows).map(|row| row * dim));
        let packed = &mut packed[..Self::len(isa, dim, rows)];
        pack_columns(isa, queries, offsets, dim, packed);
        QueryColumns { isa, dim, rows, packed }
    }
}

/// The state of a tile, and where its scores go.
pub(crate) struct ColumnState<'a> {
    /// Largest score a row, for rows rounded up to whole vectors.
    pub(crate) max: &'a mut [f32],
    /// Sum of weights a row, as long.
    pub(crate) sum: &'a mut [f32],
    /// Factors a row, as long: scratch.
    pub(crate) factors: &'a mut [f32],
    /// (rows, d_v rounded up to whole vectors): sums of weighted values.
    pub(crate) out: &'a mut [f32],
    /// (keys a block, rows rounded up to whole vectors).
    pub(crate) scores: &'a mut [f32],
    /// Scores of one row, for keys a block: scratch.
    pub(crate) row_scores: &'a mut [f32],
}

impl ColumnState<'_> {
    /// Forgets every key.
    pub(crate) fn reset(&mut self) {
        self.max.fill(f32::NEG_INFINITY);
        self.sum.fill(0.0);
        self.out.fill(0.0);
    }
}

/// Takes `len` keys from `first_key` on, and their values of `dim_v` whole vectors' elements, into a tile's state.
pub(crate) fn absorb_columns(
    rules: &ScoreRules<'_>,
    sequence: usize,
    rows: &[Row],
    queries: &QueryColumns<'_>,
    (keys, values, dim_v): (RowMatrix<'_>, RowMatrix<'_>, usize),
    (first_key, len): (usize, usize),
    state: &mut ColumnState<'_>,
) {
    let isa = queries.isa;
    let width = isa.pad(queries.rows);
    let shape = PackedShape::new(isa, queries.dim, queries.rows);
    let product = (len, width, queries.dim);
    let next = keys.next(len);
    let keys = Strided::rows(keys.data, keys.stride);
    gemm_ahead(isa, product, keys, shape.view(queries.packed), state.scores, width, false, next);
    for (column, row) in rows.iter().enumerate() {
        apply_rules(isa, rules, sequence, (column, row), width, (first_key, len), state);
    }
    let scores = &mut state.scores[..len * width];
    let (max, sum, factors) = (&mut *state.max, &mut *state.sum, &mut *state.factors);
    if isa.run(WeighColumns { scores, width, max, sum, factors }) {
        for (out, &factor) in state.out.chunks_exact_mut(dim_v).zip(&*state.factors) {
            if factor != 1.0 {
                scale_in_place(isa, out, factor);
            }
        }
    }
    let weights = Strided::transposed(&state.scores[..len * width], width);
    let product = (queries.rows, dim_v, len);
    let next = values.next(len);
    let values = Panels::rows(isa, values.data, values.stride);
    gemm_ahead(isa, product, weights, values, state.out, dim_v, true, next);
}

/// Changes the scores of a row as the problem says, and hides what the row does not see.
fn apply_rules(
    isa: Isa,
    rules: &ScoreRules<'_>,
    sequence: usize,
    (column, row): (usize, &Row),
    width: usize,
    (first_key, len): (usize, usize),
    state: &mut ColumnState<'_>,
) {
    let seen = local(&rules.cut(&row.keys), first_key, len);
    if rules.change_scores() && !seen.is_empty() {
        let row_scores = &mut state.row_scores[..seen.len()];
        for (score, key) in row_scores.iter_mut().zip(seen.clone()) {
            *score = state.scores[key * width + column];
        }
        rules.apply(isa, sequence, row, first_key + seen.start, row_scores);
        for (score, key) in row_scores.iter().zip(seen.clone()) {
            state.scores[key * width + column] = *score;
        }
    }
    for key in (0..seen.start).chain(seen.end..len) {
        state.scores[key * width + column] = f32::NEG_INFINITY;
    }
}

/// Turns scores (keys, `width`) into weights and updates m and l. Returns whether some factor, by which what was summed so
/// far must shrink, is not 1.
struct WeighColumns<'a> {
    scores: &'a mut [f32],
    width: usize,
    max: &'a mut [f32],
    sum: &'a mut [f32],
    factors: &'a mut [f32],
}

impl Task for WeighColumns<'_> {
    type Output = bool;

    #[inline(always)]
    fn run<S: Simd>(self) -> bool {
        let keys = self.scores.len() / self.width;
        let mut has_changed = false;
        for column in (0..self.width).step_by(S::LANES) {
            let (max, sum) = (&mut self.max[column..][..S::LANES], &mut self.sum[column..][..S::LANES]);
            let factors = &mut self.factors[column..][..S::LANES];
            assert!(self.scores.len() >= (keys.max(1) - 1) * self.width + column + S::LANES, "every vector is inside");
            let data = self.scores.as_mut_ptr().wrapping_add(column);
            // SAFETY: one vector of each key, all inside the scores, and slices of LANES elements.
            unsafe {
                let mut largest = [S::splat(f32::NEG_INFINITY); 4];
                let mut key = 0;
                while key + 4 <= keys {
                    for chain in 0..4 {
                        largest[chain] = S::max(largest[chain], S::load(data.add((key + chain) * self.width)));
                    }
                    key += 4;
                }
                while key < keys {
                    largest[0] = S::max(largest[0], S::load(data.add(key * self.width)));
                    key += 1;
                }
                let largest = S::max(S::max(largest[0], largest[1]), S::max(largest[2], largest[3]));
                let old = S::load(max.as_ptr());
                let new = S::max(largest, old);
                // A row that has seen nothing yet: exp(-inf - 0) is 0, and NaN stays NaN.
                let shift = S::select_less(new, S::splat(f32::MIN), S::splat(0.0), new);
                let mut totals = [S::splat(0.0); 2];
                key = 0;
                while key + 2 <= keys {
                    for chain in 0..2 {
                        let at = data.add((key + chain) * self.width);
                        let weight = softmax_weight::<S>(S::sub(S::load(at), shift));
                        S::store(at, weight);
                        totals[chain] = S::add(totals[chain], weight);
                    }
                    key += 2;
                }
                while key < keys {
                    let at = data.add(key * self.width);
                    let weight = softmax_weight::<S>(S::sub(S::load(at), shift));
                    S::store(at, weight);
                    totals[0] = S::add(totals[0], weight);
                    key += 1;
                }
                let factor = softmax_weight::<S>(S::sub(old, shift));
                S::store(factors.as_mut_ptr(), factor);
                S::store(max.as_mut_ptr(), new);
                let total = S::add(totals[0], totals[1]);
                S::store(sum.as_mut_ptr(), S::fma(S::load(sum.as_ptr()), factor, total));
            }
            has_changed |= factors.iter().any(|&factor| factor != 1.0);
        }
        has_changed
    }
}
