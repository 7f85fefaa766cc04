//! C (+)= A B with B packed in panels, blocked in registers.
//!
//! The loop order is that of Goto and van de Geijn (2008): a panel of B (depth x [`Simd::PANEL_VECTORS`] vectors) stays in
//! the first-level cache while the rows of A pass by in blocks of [`Simd::PANEL_ROWS`], whose C block stays in registers:
//! 6 x 4 vectors of 32 registers with AVX-512, 6 x 2 of 16 with AVX2: six rows, whose addresses are then registers, and as
//! few loads an FMA as the registers allow. Callers block the depth.

use super::isa::{Isa, Task};
use super::vector::Simd;

/// A packed B of `depth` rows: panels of [`Isa::panel`] columns, each a contiguous (depth, panel) array. The columns are a
/// multiple of [`Isa::lanes`]; where fewer vectors remain for the last panel, that one is (depth, what remains).
#[derive(Clone, Copy)]
pub struct Packed<'a> {
    /// Panels one after another.
    pub data: &'a [f32],
    /// Elements from one panel to the next: packed depth times [`Isa::panel`].
    pub panel_stride: usize,
}

/// C = A B, or C += A B: A is (m, k) with row stride `lda`, C is (m, n) with row stride `ldc`.
///
/// `n` is a multiple of [`Isa::lanes`]. Panics where a slice is too short.
pub fn gemm(
    isa: Isa,
    (m, n, k): (usize, usize, usize),
    a: &[f32],
    lda: usize,
    b: Packed<'_>,
    c: &mut [f32],
    ldc: usize,
    accumulate: bool,
) {
    gemm_at(isa, (m, n, k), a, lda, b, 0, c, ldc, accumulate);
}

/// [`gemm`] with B's rows from `first_row` on.
pub fn gemm_at(
    isa: Isa,
    (m, n, k): (usize, usize, usize),
    a: &[f32],
    lda: usize,
    b: Packed<'_>,
    first_row: usize,
    c: &mut [f32],
    ldc: usize,
    accumulate: bool,
) {
    if m == 0 || n == 0 || (k == 0 && accumulate) {
        return;
    }
    let (lanes, panel) = (isa.lanes(), isa.panel());
    assert!(n.is_multiple_of(lanes), "packed columns are whole vectors");
    assert!(c.len() >= (m - 1) * ldc + n, "C holds m x n");
    assert!(k == 0 || a.len() >= (m - 1) * lda + k, "A holds m x k");
    let full_panels = n / panel;
    let tail = n % panel;
    assert!(
        full_panels == 0 || b.data.len() >= (full_panels - 1) * b.panel_stride + (first_row + k) * panel,
        "B holds k x n"
    );
    assert!(tail == 0 || b.data.len() >= full_panels * b.panel_stride + (first_row + k) * tail, "B holds k x n");
    isa.run(Gemm { m, n, k, a, lda, b, first_row, c, ldc, accumulate });
}

struct Gemm<'a> {
    m: usize,
    n: usize,
    k: usize,
    a: &'a [f32],
    lda: usize,
    b: Packed<'a>,
    first_row: usize,
    c: &'a mut [f32],
    ldc: usize,
    accumulate: bool,
}

impl Task for Gemm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self) {
        let panel = S::PANEL_VECTORS * S::LANES;
        for column in (0..self.n).step_by(panel) {
            let width = panel.min(self.n - column);
            // SAFETY: `gemm_at` has checked the bounds of the whole product.
            unsafe {
                let b = self.b.data.as_ptr().add(column / panel * self.b.panel_stride + self.first_row * width);
                match width / S::LANES {
                    4 => self.column::<S, 4>(column, b),
                    3 => self.column::<S, 3>(column, b),
                    2 => self.column::<S, 2>(column, b),
                    _ => self.column::<S, 1>(column, b),
                }
            }
        }
    }
}

impl Gemm<'_> {
    #[inline(always)]
    unsafe fn column<S: Simd, const NV: usize>(&mut self, column: usize, b: *const f32) {
        if NV > S::PANEL_VECTORS {
            return;
        }
        let mut row = 0;
        macro_rules! blocks {
            ($($rows:literal)+) => {$(
                while S::PANEL_ROWS >= $rows && self.m - row >= $rows {
                    // SAFETY: the rows exist, and `gemm_at` has checked the bounds.
                    unsafe { self.block::<S, $rows, NV>(row, column, b) };
                    row += $rows;
                }
            )+};
        }
        blocks!(6 4 3 2 1);
    }

    #[inline(always)]
    unsafe fn block<S: Simd, const ROWS: usize, const NV: usize>(&mut self, row: usize, column: usize, b: *const f32) {
        // SAFETY: `gemm_at` has checked that A, B and C hold these rows and columns.
        unsafe {
            let a = self.a.as_ptr().add(row * self.lda);
            let c = self.c.as_mut_ptr().add(row * self.ldc + column);
            let mut acc = [[S::splat(0.0); NV]; ROWS];
            if self.accumulate {
                for r in 0..ROWS {
                    for v in 0..NV {
                        acc[r][v] = S::load(c.add(r * self.ldc + v * S::LANES));
                    }
                }
            }
            for k in 0..self.k {
                // No closure: it would be compiled without the instruction set.
                let mut b_row = [S::splat(0.0); NV];
                for v in 0..NV {
                    b_row[v] = S::load(b.add((k * NV + v) * S::LANES));
                }
                for r in 0..ROWS {
                    let x = S::splat(*a.add(r * self.lda + k));
                    for v in 0..NV {
                        acc[r][v] = S::fma(x, b_row[v], acc[r][v]);
                    }
                }
            }
            for r in 0..ROWS {
                for v in 0..NV {
                    S::store(c.add(r * self.ldc + v * S::LANES), acc[r][v]);
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
                gemm(isa, (m, padded, k), &a, k, shape.view(&rows), &mut c, padded, true);
                let split = k / 3;
                let mut parts = vec![f32::NAN; m * padded];
                gemm_at(isa, (m, padded, split), &a, k, shape.view(&rows), 0, &mut parts, padded, false);
                gemm_at(
                    isa,
                    (m, padded, k - split),
                    &a[split.min(a.len())..],
                    k,
                    shape.view(&rows),
                    split,
                    &mut parts,
                    padded,
                    true,
                );
                for i in 0..m {
                    for j in 0..n {
                        let exact: f64 = (0..k).map(|x| f64::from(a[i * k + x]) * f64::from(b[j * k + x])).sum();
                        assert!(
                            (f64::from(c[i * padded + j]) - 0.5 - exact).abs() < 1e-4,
                            "{} {m} {n} {k}",
                            isa.name()
                        );
                        assert!((f64::from(parts[i * padded + j]) - exact).abs() < 1e-4, "{} {m} {n} {k}", isa.name());
                    }
                }
            }
        }
    }
}
