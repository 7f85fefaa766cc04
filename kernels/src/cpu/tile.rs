//! Small dense products and row operations on f32 tiles that fit the caches.

/// C (m, n) = A (m, k) B (k, n), or C += A B. A has the given (row, column) strides, so that it may be transposed; B and
/// C are row-major with the given row strides.
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
    for row in 0..m {
        let c = &mut c[row * c_stride..][..n];
        if !accumulate {
            c.fill(0.0);
        }
        for inner in 0..k {
            let factor = a[row * a_strides.0 + inner * a_strides.1];
            c.iter_mut().zip(&b[inner * b_stride..][..n]).for_each(|(c, &b)| *c += factor * b);
        }
    }
}

/// Turns a row-major (rows, columns) tile into its transpose with the given row stride.
pub(crate) fn transpose((rows, columns): (usize, usize), from: &[f32], to: &mut [f32], to_stride: usize) {
    for column in 0..columns {
        for row in 0..rows {
            to[column * to_stride + row] = from[row * columns + column];
        }
    }
}

/// row = exp(row - max); returns the sum.
pub(crate) fn exp_rows(row: &mut [f32], max: f32) -> f32 {
    row.iter_mut()
        .map(|x| {
            *x = (*x - max).exp();
            *x
        })
        .sum()
}

/// The largest element, -inf of none.
pub(crate) fn max(row: &[f32]) -> f32 {
    row.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

/// row = cap * tanh(row / cap).
pub(crate) fn softcap(row: &mut [f32], cap: f32) {
    row.iter_mut().for_each(|x| *x = cap * (*x / cap).tanh());
}

/// row = elu(row) + 1.
pub(crate) fn elu1(row: &mut [f32]) {
    row.iter_mut().for_each(|x| *x = if *x > 0.0 { *x + 1.0 } else { x.exp() });
}
