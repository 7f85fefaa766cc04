//! C (+)= A B, blocked in registers, with B in panels: packed ones, or columns of a matrix as it lies.
//!
//! The loop order is that of Goto and van de Geijn (2008): a panel of B (depth x [`Simd::PANEL_VECTORS`] vectors) stays in
//! the first-level cache while the rows of A pass by in blocks of [`Simd::PANEL_ROWS`], whose C block stays in registers:
//! 6 x 4 vectors of 32 registers with AVX-512, 6 x 2 of 16 with AVX2: six rows, whose addresses are then registers, and as
//! few loads an FMA as the registers allow. Callers block the depth.

use super::isa::{Isa, Task};
use super::vector::Simd;

/// A (m, k) of a product: a row-major matrix, or the transpose of one.
#[derive(Clone, Copy)]
pub struct Strided<'a> {
    data: &'a [f32],
    /// Elements from one row of the stored matrix to the next.
    stride: usize,
    is_transposed: bool,
}

impl<'a> Strided<'a> {
    /// A row-major matrix whose rows are `stride` elements apart.
    pub fn rows(data: &'a [f32], stride: usize) -> Self {
        Strided { data, stride, is_transposed: false }
    }

    /// The transpose of a row-major matrix whose rows are `stride` elements apart.
    pub fn transposed(data: &'a [f32], stride: usize) -> Self {
        Strided { data, stride, is_transposed: true }
    }

    /// The columns from `column` on.
    pub fn columns_from(self, column: usize) -> Self {
        Strided { data: &self.data[self.place(0, column).min(self.data.len())..], ..self }
    }

    /// Where the element of a row and a column is.
    #[inline(always)]
    fn place(&self, row: usize, column: usize) -> usize {
        if self.is_transposed { column * self.stride + row } else { row * self.stride + column }
    }
}

/// B (k, n) of a product, in panels of [`Isa::panel`] columns and a last one of what remains, a multiple of
/// [`Isa::lanes`].
#[derive(Clone, Copy)]
pub struct Panels<'a> {
    data: &'a [f32],
    /// Columns of a panel.
    panel: usize,
    /// Elements from one panel to the next.
    panel_stride: usize,
    rows: RowStride,
    first_row: usize,
}

/// Elements from one row of a panel to the next.
#[derive(Clone, Copy)]
enum RowStride {
    /// The panel's width, where so many columns are packed.
    Packed {
        columns: usize,
    },
    Of(usize),
}

impl<'a> Panels<'a> {
    /// Panels one after another, each a contiguous array (depth, columns of the panel).
    pub fn packed(isa: Isa, data: &'a [f32], (depth, columns): (usize, usize)) -> Self {
        let panel = isa.panel();
        Panels { data, panel, panel_stride: depth * panel, rows: RowStride::Packed { columns }, first_row: 0 }
    }

    /// A row-major matrix, read as it lies: worth it where few rows of A use it.
    pub fn rows(isa: Isa, data: &'a [f32], row_stride: usize) -> Self {
        Panels { data, panel: isa.panel(), panel_stride: isa.panel(), rows: RowStride::Of(row_stride), first_row: 0 }
    }

    /// The rows from `row` on.
    pub fn rows_from(self, row: usize) -> Self {
        Panels { first_row: self.first_row + row, ..self }
    }

    /// The columns from a whole panel on.
    pub fn panels_from(self, panel: usize) -> Self {
        let rows = match self.rows {
            RowStride::Packed { columns } => RowStride::Packed { columns: columns.saturating_sub(panel * self.panel) },
            of => of,
        };
        Panels { data: &self.data[(panel * self.panel_stride).min(self.data.len())..], rows, ..self }
    }

    /// Elements from one row to the next of the panel that begins at a column.
    #[inline(always)]
    fn row_stride(&self, column: usize) -> usize {
        match self.rows {
            RowStride::Packed { columns } => self.panel.min(columns - column),
            RowStride::Of(stride) => stride,
        }
    }
}

/// Memory that a product asks for while it computes, a few cache lines a step, so that what comes next is in the
/// second-level cache by then. Addresses need not be mapped.
#[derive(Clone, Copy, Debug)]
pub struct Ahead {
    next: *const u8,
    /// End of the row that `next` is in.
    row_end: *const u8,
    row_bytes: usize,
    stride_bytes: usize,
    rows_left: usize,
    lines_a_step: usize,
}

impl Ahead {
    /// Nothing.
    pub const NONE: Ahead = Ahead {
        next: std::ptr::null(),
        row_end: std::ptr::null(),
        row_bytes: 0,
        stride_bytes: 0,
        rows_left: 0,
        lines_a_step: 0,
    };

    /// `rows` rows of `dim` elements, `stride` elements apart, from `first` on.
    pub fn rows(first: *const f32, rows: usize, dim: usize, stride: usize) -> Ahead {
        let (next, row_bytes) = (first.cast::<u8>(), 4 * dim);
        let row_end = next.wrapping_add(row_bytes);
        Ahead { next, row_end, row_bytes, stride_bytes: 4 * stride, rows_left: rows, lines_a_step: 0 }
    }

    /// Spreads the lines over a product's steps.
    fn spread(&mut self, steps: usize) {
        self.lines_a_step = (self.rows_left * self.row_bytes.div_ceil(64)).div_ceil(steps.max(1));
    }

    #[inline(always)]
    fn step<S: Simd>(&mut self) {
        for _ in 0..self.lines_a_step {
            if self.rows_left == 0 {
                self.lines_a_step = 0;
                return;
            }
            S::prefetch_far(self.next);
            self.next = self.next.wrapping_add(64);
            if self.next >= self.row_end {
                self.rows_left -= 1;
                self.next = self.row_end.wrapping_add(self.stride_bytes - self.row_bytes);
                self.row_end = self.next.wrapping_add(self.row_bytes);
            }
        }
    }
}

/// C = A B, or C += A B: A is (m, k), C is (m, n) with row stride `c_stride`.
///
/// `n` is a multiple of [`Isa::lanes`]. Panics where a slice is too short.
pub fn gemm(
    isa: Isa,
    (m, n, k): (usize, usize, usize),
    a: Strided<'_>,
    b: Panels<'_>,
    c: &mut [f32],
    c_stride: usize,
    accumulate: bool,
) {
    gemm_ahead(isa, (m, n, k), a, b, c, c_stride, accumulate, Ahead::NONE);
}

/// [`gemm`], asking for other memory meanwhile.
pub fn gemm_ahead(
    isa: Isa,
    (m, n, k): (usize, usize, usize),
    a: Strided<'_>,
    b: Panels<'_>,
    c: &mut [f32],
    c_stride: usize,
    accumulate: bool,
    ahead: Ahead,
) {
    if m == 0 || n == 0 || (k == 0 && accumulate) {
        return;
    }
    let (lanes, panel) = (isa.lanes(), isa.panel());
    assert!(n.is_multiple_of(lanes), "columns are whole vectors");
    assert!(c.len() >= (m - 1) * c_stride + n, "C holds m x n");
    if k > 0 {
        assert!(a.data.len() > a.place(m - 1, k - 1), "A holds m x k");
        if let RowStride::Packed { columns } = b.rows {
            assert!(n <= columns, "B holds k x n");
        }
        for column in (0..n).step_by(panel) {
            let row = (b.first_row + k - 1) * b.row_stride(column);
            let end = column / panel * b.panel_stride + row + panel.min(n - column);
            assert!(b.data.len() >= end, "B holds k x n");
        }
    }
    isa.run(Gemm { m, n, k, a, b, c, c_stride, accumulate, ahead });
}

struct Gemm<'a> {
    m: usize,
    n: usize,
    k: usize,
    a: Strided<'a>,
    b: Panels<'a>,
    c: &'a mut [f32],
    c_stride: usize,
    accumulate: bool,
    ahead: Ahead,
}

impl Task for Gemm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self) {
        let panel = S::PANEL_VECTORS * S::LANES;
        let block_rows = if self.n <= 2 * S::LANES { S::BLOCK_ROWS } else { S::PANEL_ROWS };
        self.ahead.spread(self.m.div_ceil(block_rows) * self.n.div_ceil(panel) * (self.k / UNROLL));
        for column in (0..self.n).step_by(panel) {
            let width = panel.min(self.n - column);
            let row_stride = self.b.row_stride(column);
            let b =
                self.b.data.as_ptr().wrapping_add(column / panel * self.b.panel_stride + self.b.first_row * row_stride);
            // SAFETY: `gemm` has checked the bounds of the whole product.
            unsafe {
                match (width / S::LANES, self.a.is_transposed) {
                    (4, false) => self.column::<S, 4, false>(column, b, row_stride),
                    (4, true) => self.column::<S, 4, true>(column, b, row_stride),
                    (3, false) => self.column::<S, 3, false>(column, b, row_stride),
                    (3, true) => self.column::<S, 3, true>(column, b, row_stride),
                    (2, false) => self.column::<S, 2, false>(column, b, row_stride),
                    (2, true) => self.column::<S, 2, true>(column, b, row_stride),
                    (_, false) => self.column::<S, 1, false>(column, b, row_stride),
                    (_, true) => self.column::<S, 1, true>(column, b, row_stride),
                }
            }
        }
    }
}

/// Steps of the depth that are written out: each would else take as many additions to addresses as rows, on ports that the
/// FMAs use.
const UNROLL: usize = 4;

impl Gemm<'_> {
    #[inline(always)]
    unsafe fn column<S: Simd, const NV: usize, const TRANSPOSED: bool>(
        &mut self,
        column: usize,
        b: *const f32,
        b_stride: usize,
    ) {
        if NV > S::PANEL_VECTORS {
            return;
        }
        let mut row = 0;
        macro_rules! blocks {
            ($($rows:literal)+) => {$(
                while S::PANEL_ROWS >= $rows && self.m - row >= $rows {
                    // SAFETY: the rows exist, and `gemm` has checked the bounds.
                    unsafe { self.block::<S, $rows, NV, TRANSPOSED>(row, column, b, b_stride) };
                    row += $rows;
                }
            )+};
        }
        while NV <= 2 && S::BLOCK_ROWS >= 12 && self.m - row >= 12 {
            // SAFETY: as above.
            unsafe { self.block::<S, 12, NV, TRANSPOSED>(row, column, b, b_stride) };
            row += 12;
        }
        blocks!(6 4 3 2 1);
    }

    #[inline(always)]
    unsafe fn block<S: Simd, const ROWS: usize, const NV: usize, const TRANSPOSED: bool>(
        &mut self,
        row: usize,
        column: usize,
        mut b: *const f32,
        b_stride: usize,
    ) {
        // SAFETY: `gemm` has checked that A, B and C hold these rows and columns; pointers past them are not read.
        unsafe {
            let stride = self.a.stride;
            let first = self.a.data.as_ptr().wrapping_add(self.a.place(row, 0));
            let mut a = [first; ROWS];
            for r in 0..ROWS {
                a[r] = first.wrapping_add(if TRANSPOSED { r } else { r * stride });
            }
            let c = self.c.as_mut_ptr().add(row * self.c_stride + column);
            let mut acc = [[S::splat(0.0); NV]; ROWS];
            if self.accumulate {
                for r in 0..ROWS {
                    for v in 0..NV {
                        acc[r][v] = S::load(c.add(r * self.c_stride + v * S::LANES));
                    }
                }
            }
            // No closure: it would be compiled without the instruction set.
            macro_rules! step {
                ($k:expr) => {
                    let mut b_row = [S::splat(0.0); NV];
                    for v in 0..NV {
                        b_row[v] = S::load(b.add(v * S::LANES));
                    }
                    for r in 0..ROWS {
                        let x = S::splat(*a[r].add(if TRANSPOSED { $k * stride } else { $k }));
                        for v in 0..NV {
                            acc[r][v] = S::fma(x, b_row[v], acc[r][v]);
                        }
                    }
                    b = b.wrapping_add(b_stride);
                };
            }
            for _ in 0..self.k / UNROLL {
                for k in 0..UNROLL {
                    step!(k);
                }
                self.ahead.step::<S>();
                for r in 0..ROWS {
                    a[r] = a[r].wrapping_add(if TRANSPOSED { UNROLL * stride } else { UNROLL });
                }
            }
            for k in 0..self.k % UNROLL {
                step!(k);
            }
            for r in 0..ROWS {
                for v in 0..NV {
                    S::store(c.add(r * self.c_stride + v * S::LANES), acc[r][v]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::pack::{PackedShape, pack_columns, pack_rows};
    use super::*;
    use crate::input::hash64;
    use crate::tensor::Tensor;

    fn values(seed: u64, n: usize) -> Vec<f32> {
        (0..n).map(|i| (hash64(seed, i as u64) % 2001) as f32 / 1000.0 - 1.0).collect()
    }

    #[test]
    fn products_agree_with_the_triple_loop() {
        for isa in Isa::available() {
            for (m, n, k) in [(1, 1, 1), (13, 5, 7), (12, 32, 64), (25, 70, 33), (6, 16, 128), (3, 48, 0), (31, 17, 1)]
            {
                let a = values(1, m * k);
                let b = values(2, n * k);
                let tensor = Tensor::from_slice(&[n, k], &b);
                let shape = PackedShape::new(isa, k, n);
                let mut columns = vec![f32::NAN; shape.len()];
                let offsets: Vec<usize> = (0..n).map(|row| row * k).collect();
                pack_columns(isa, &tensor, &offsets, k, &mut columns);
                // The same matrix from its transpose.
                let transposed: Vec<f32> = (0..k * n).map(|i| b[i % n * k + i / n]).collect();
                let tensor = Tensor::from_slice(&[k, n], &transposed);
                let mut rows = vec![f32::NAN; shape.len()];
                let offsets: Vec<usize> = (0..k).map(|row| row * n).collect();
                pack_rows(isa, &tensor, &offsets, n, k, &mut rows);
                assert_eq!(columns, rows);
                let padded = isa.pad(n);
                let mut c = vec![0.5f32; m * padded];
                gemm(isa, (m, padded, k), Strided::rows(&a, k), shape.view(&rows), &mut c, padded, true);
                let split = k / 3;
                let mut parts = vec![f32::NAN; m * padded];
                let head = Strided::rows(&a, k);
                gemm(isa, (m, padded, split), head, shape.view(&rows), &mut parts, padded, false);
                let rest = Strided::rows(&a[split.min(a.len())..], k);
                let b_rest = shape.view(&rows).rows_from(split);
                gemm(isa, (m, padded, k - split), rest, b_rest, &mut parts, padded, true);
                // The same from A's transpose and B as it lies, in rows longer than they need be.
                let a_transposed: Vec<f32> = (0..k * m).map(|i| a[i % m * k + i / m]).collect();
                let stride = padded + 3;
                let b_rows: Vec<f32> = (0..k * stride)
                    .map(|i| if i % stride < n { b[i % stride * k + i / stride] } else { 7.0 })
                    .collect();
                let mut in_place = vec![f32::NAN; m * padded];
                let (a_view, b_view) = (Strided::transposed(&a_transposed, m), Panels::rows(isa, &b_rows, stride));
                gemm(isa, (m, padded, k), a_view, b_view, &mut in_place, padded, false);
                // Fewer columns than are packed.
                let mut first = vec![f32::NAN; m * isa.lanes()];
                gemm(isa, (m, isa.lanes(), k), Strided::rows(&a, k), shape.view(&rows), &mut first, isa.lanes(), false);
                for i in 0..m {
                    assert_eq!(first[i * isa.lanes()], in_place[i * padded], "{} {m} {n} {k}", isa.name());
                    for j in 0..n {
                        let exact: f64 = (0..k).map(|x| f64::from(a[i * k + x]) * f64::from(b[j * k + x])).sum();
                        assert!(
                            (f64::from(c[i * padded + j]) - 0.5 - exact).abs() < 1e-4,
                            "{} {m} {n} {k}",
                            isa.name()
                        );
                        for got in [parts[i * padded + j], in_place[i * padded + j]] {
                            assert!((f64::from(got) - exact).abs() < 1e-4, "{} {m} {n} {k}", isa.name());
                        }
                    }
                }
            }
        }
    }
}
