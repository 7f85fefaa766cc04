//! Small dense products and row operations on f32 tiles that fit the caches, on the machine's vectors.
//!
//! [`matmul`] takes B as it lies and A with any strides, so that a tile serves as K and as K^T without being packed
//! twice: what [`super::simd::gemm`] gains by packing B pays off only where B is used by many rows.

use std::sync::OnceLock;

use super::simd::exp::{exp, tanh};
use super::simd::{Isa, Simd, Stored, Task};

/// The machine's widest instruction set, detected once.
pub(crate) fn isa() -> Isa {
    static ISA: OnceLock<Isa> = OnceLock::new();
    *ISA.get_or_init(Isa::best)
}

/// C (m, n) = A (m, k) B (k, n), or C += A B. A has the given (row, column) strides, so that it may be transposed; B and
/// C are row-major with the given row strides. Panics where a slice is too short.
pub(crate) fn matmul(
    (m, n, k): (usize, usize, usize),
    a: &[f32],
    a_strides: (usize, usize),
    b: &[f32],
    b_stride: usize,
    c: &mut [f32],
    c_stride: usize,
    accumulate: bool,
) {
    if m == 0 || n == 0 || (k == 0 && accumulate) {
        return;
    }
    assert!(c.len() >= (m - 1) * c_stride + n, "C holds m x n");
    assert!(k == 0 || a.len() > (m - 1) * a_strides.0 + (k - 1) * a_strides.1, "A holds m x k");
    assert!(k == 0 || b.len() >= (k - 1) * b_stride + n, "B holds k x n");
    isa().run(Product { m, n, k, a, a_strides, b, b_stride, c, c_stride, accumulate });
}

struct Product<'a> {
    m: usize,
    n: usize,
    k: usize,
    a: &'a [f32],
    a_strides: (usize, usize),
    b: &'a [f32],
    b_stride: usize,
    c: &'a mut [f32],
    c_stride: usize,
    accumulate: bool,
}

impl Task for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self) {
        let mut column = 0;
        while self.n - column >= 2 * S::LANES {
            self.columns::<S, 2, false>(column);
            column += 2 * S::LANES;
        }
        if self.n - column >= S::LANES {
            self.columns::<S, 1, false>(column);
            column += S::LANES;
        }
        if column < self.n {
            self.columns::<S, 1, true>(column);
        }
    }
}

impl Product<'_> {
    /// `NV` vectors of columns from `column` on; the last `n - column` columns where `TAIL`.
    #[inline(always)]
    fn columns<S: Simd, const NV: usize, const TAIL: bool>(&mut self, column: usize) {
        let mut row = 0;
        macro_rules! blocks {
            ($($rows:literal)+) => {$(
                while S::BLOCK_ROWS >= $rows && self.m - row >= $rows {
                    // SAFETY: the rows and columns exist, and `matmul` has checked the bounds of all three.
                    unsafe { self.block::<S, $rows, NV, TAIL>(row, column) };
                    row += $rows;
                }
            )+};
        }
        blocks!(12 8 6 4 2 1);
    }

    #[inline(always)]
    unsafe fn block<S: Simd, const ROWS: usize, const NV: usize, const TAIL: bool>(
        &mut self,
        row: usize,
        column: usize,
    ) {
        let tail = self.n - column;
        let mut acc = [[S::splat(0.0); NV]; ROWS];
        // SAFETY: the caller's promise; where TAIL, only the `tail` columns that exist are touched.
        unsafe {
            let a = self.a.as_ptr().add(row * self.a_strides.0);
            let b = self.b.as_ptr().add(column);
            let c = self.c.as_mut_ptr().add(row * self.c_stride + column);
            let load = |from: *const f32| match TAIL {
                true => <f32 as Stored>::load_head::<S>(from, tail),
                false => S::load(from),
            };
            if self.accumulate {
                for r in 0..ROWS {
                    for v in 0..NV {
                        acc[r][v] = load(c.add(r * self.c_stride + v * S::LANES));
                    }
                }
            }
            for k in 0..self.k {
                let b_row: [S::V; NV] = std::array::from_fn(|v| load(b.add(k * self.b_stride + v * S::LANES)));
                for r in 0..ROWS {
                    let x = S::splat(*a.add(r * self.a_strides.0 + k * self.a_strides.1));
                    for v in 0..NV {
                        acc[r][v] = S::fma(x, b_row[v], acc[r][v]);
                    }
                }
            }
            for r in 0..ROWS {
                for v in 0..NV {
                    let to = c.add(r * self.c_stride + v * S::LANES);
                    if TAIL {
                        let mut lanes = [0f32; MAX_LANES];
                        S::store(lanes.as_mut_ptr(), acc[r][v]);
                        std::ptr::copy_nonoverlapping(lanes.as_ptr(), to, tail);
                    } else {
                        S::store(to, acc[r][v]);
                    }
                }
            }
        }
    }
}

/// Lanes of the widest vector.
const MAX_LANES: usize = 16;

/// Turns a row-major (rows, columns) tile into its transpose with the given row stride.
pub(crate) fn transpose((rows, columns): (usize, usize), from: &[f32], to: &mut [f32], to_stride: usize) {
    // Lines of sixteen rows stay in the first-level cache while their columns are taken.
    for first in (0..rows).step_by(16) {
        let last = (first + 16).min(rows);
        for column in 0..columns {
            let to = &mut to[column * to_stride + first..column * to_stride + last];
            for (to, row) in to.iter_mut().zip(first..last) {
                *to = from[row * columns + column];
            }
        }
    }
}

/// Calls `body` with each vector of the row and stores what it returns; the last vector is filled up with `padding`.
macro_rules! map_row {
    ($S:ident, $row:expr, $padding:expr, $body:expr) => {{
        #[allow(unused_mut)]
        let mut body = $body;
        let mut chunks = $row.chunks_exact_mut($S::LANES);
        for chunk in &mut chunks {
            // SAFETY: a chunk has LANES elements.
            unsafe { $S::store(chunk.as_mut_ptr(), body($S::load(chunk.as_ptr()))) };
        }
        let tail = chunks.into_remainder();
        if !tail.is_empty() {
            let mut lanes = [$padding; MAX_LANES];
            lanes[..tail.len()].copy_from_slice(tail);
            // SAFETY: the buffer has at least LANES elements.
            unsafe { $S::store(lanes.as_mut_ptr(), body($S::load(lanes.as_ptr()))) };
            tail.copy_from_slice(&lanes[..tail.len()]);
        }
    }};
}

/// row = exp(row - max); returns the sum.
pub(crate) fn exp_rows(row: &mut [f32], max: f32) -> f32 {
    struct ExpRow<'a>(&'a mut [f32], f32);
    impl Task for ExpRow<'_> {
        type Output = f32;
        #[inline(always)]
        fn run<S: Simd>(self) -> f32 {
            let (max, mut sum) = (S::splat(self.1), S::splat(0.0));
            map_row!(S, self.0, f32::NEG_INFINITY, |x| {
                let weight = exp::<S>(S::sub(x, max));
                sum = S::add(sum, weight);
                weight
            });
            S::sum(sum)
        }
    }
    isa().run(ExpRow(row, max))
}

/// The largest element, -inf of none.
pub(crate) fn max(row: &[f32]) -> f32 {
    struct Max<'a>(&'a [f32]);
    impl Task for Max<'_> {
        type Output = f32;
        #[inline(always)]
        fn run<S: Simd>(self) -> f32 {
            let mut largest = S::splat(f32::NEG_INFINITY);
            let chunks = self.0.chunks_exact(S::LANES);
            let tail = chunks.remainder();
            for chunk in chunks {
                // SAFETY: a chunk has LANES elements.
                largest = S::max(largest, unsafe { S::load(chunk.as_ptr()) });
            }
            tail.iter().copied().fold(S::largest(largest), f32::max)
        }
    }
    isa().run(Max(row))
}

/// row = cap * tanh(row / cap).
pub(crate) fn softcap(row: &mut [f32], cap: f32) {
    struct Softcap<'a>(&'a mut [f32], f32);
    impl Task for Softcap<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self) {
            let cap = S::splat(self.1);
            map_row!(S, self.0, 0.0, |x| S::mul(cap, tanh::<S>(S::div(x, cap))));
        }
    }
    isa().run(Softcap(row, cap));
}

/// row = elu(row) + 1.
pub(crate) fn elu1(row: &mut [f32]) {
    struct Elu1<'a>(&'a mut [f32]);
    impl Task for Elu1<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self) {
            let zero = S::splat(0.0);
            // exp(min(x, 0)) + max(x, 0): one of them is 1 or 0.
            map_row!(S, self.0, 0.0, |x| S::add(exp::<S>(S::min(x, zero)), S::max(x, zero)));
        }
    }
    isa().run(Elu1(row));
}

/// gradients = weights * (gradients - delta), times 1 - (scores / cap)^2 where soft-capped: from dP to dS.
pub(crate) fn score_gradients(gradients: &mut [f32], weights: &[f32], delta: f32, capped: Option<(&[f32], f32)>) {
    for (gradient, weight) in gradients.iter_mut().zip(weights) {
        *gradient = weight * (*gradient - delta);
    }
    if let Some((scores, cap)) = capped {
        for ((gradient, &score), &weight) in gradients.iter_mut().zip(scores).zip(weights) {
            let tanh = score / cap;
            // A hidden key's score is -inf.
            *gradient *= if weight == 0.0 { 0.0 } else { 1.0 - tanh * tanh };
        }
    }
}
