//! A few queries over keys and values that are read once from memory, at their stored width: what decode is made of.

use super::isa::{Isa, Task};
use super::pack::with_elements;
use super::vector::{Simd, Stored};
use crate::tensor::Tensor;

/// Tokens between a row that is worked on and the row that is asked for.
const PREFETCH_ROWS: usize = 8;

/// scores[r * stride + j] = queries[r] . keys[j], for every query row r and key j.
///
/// `queries` is (rows, `dim` rounded up to whole vectors), zero-padded; key j starts at `offsets[j]` of `keys`.
pub fn scores(isa: Isa, queries: &[f32], dim: usize, keys: &Tensor, offsets: &[usize], out: &mut [f32], stride: usize) {
    let rows = queries.len() / isa.pad(dim).max(1);
    assert!(offsets.iter().all(|&offset| offset + dim <= keys.len()), "every key is inside the tensor");
    assert!(rows == 0 || (stride >= offsets.len() && out.len() >= (rows - 1) * stride + offsets.len()));
    with_elements!(keys, data => isa.run(Scores { queries, rows, dim, data, offsets, out, stride }));
}

/// out[r] += sum over j of weights[r * stride + j] * values[j], for every row r of `out`, (rows, `dim` rounded up to whole
/// vectors); value j starts at `offsets[j]` of `values`.
pub fn accumulate(
    isa: Isa,
    weights: &[f32],
    stride: usize,
    values: &Tensor,
    offsets: &[usize],
    dim: usize,
    out: &mut [f32],
) {
    let rows = out.len() / isa.pad(dim).max(1);
    assert!(offsets.iter().all(|&offset| offset + dim <= values.len()), "every value is inside the tensor");
    assert!(rows == 0 || weights.len() >= (rows - 1) * stride + offsets.len());
    with_elements!(values, data => isa.run(Accumulate { weights, stride, data, offsets, dim, rows, out }));
}

struct Scores<'a, T> {
    queries: &'a [f32],
    rows: usize,
    dim: usize,
    data: &'a [T],
    offsets: &'a [usize],
    out: &'a mut [f32],
    stride: usize,
}

impl<T: Stored> Task for Scores<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self) {
        let mut j = 0;
        while j + 4 <= self.offsets.len() {
            for &offset in self.offsets[j..].iter().skip(PREFETCH_ROWS).take(4) {
                prefetch_row::<S, T>(self.data, offset, self.dim);
            }
            self.keys::<S, 4>(j);
            j += 4;
        }
        while j < self.offsets.len() {
            self.keys::<S, 1>(j);
            j += 1;
        }
    }
}

impl<T: Stored> Scores<'_, T> {
    #[inline(always)]
    fn keys<S: Simd, const KEYS: usize>(&mut self, j: usize) {
        let mut row = 0;
        if S::BLOCK_ROWS >= 12 {
            while row + 4 <= self.rows {
                self.block::<S, KEYS, 4>(j, row);
                row += 4;
            }
        }
        while row + 2 <= self.rows {
            self.block::<S, KEYS, 2>(j, row);
            row += 2;
        }
        if row < self.rows {
            self.block::<S, KEYS, 1>(j, row);
        }
    }

    #[inline(always)]
    fn block<S: Simd, const KEYS: usize, const ROWS: usize>(&mut self, j: usize, row: usize) {
        let padded = self.dim.next_multiple_of(S::LANES);
        let whole = self.dim / S::LANES * S::LANES;
        let mut acc = [[S::splat(0.0); KEYS]; ROWS];
        // SAFETY: `scores` has checked that every key has `dim` elements, and queries have `padded`.
        unsafe {
            let keys: [*const T; KEYS] = std::array::from_fn(|key| self.data.as_ptr().add(self.offsets[j + key]));
            let queries = self.queries.as_ptr().add(row * padded);
            for x in (0..whole).step_by(S::LANES) {
                let k: [S::V; KEYS] = std::array::from_fn(|key| T::load::<S>(keys[key].add(x)));
                for r in 0..ROWS {
                    let q = S::load(queries.add(r * padded + x));
                    for key in 0..KEYS {
                        acc[r][key] = S::fma(q, k[key], acc[r][key]);
                    }
                }
            }
            if whole < self.dim {
                let k: [S::V; KEYS] =
                    std::array::from_fn(|key| T::load_head::<S>(keys[key].add(whole), self.dim - whole));
                for r in 0..ROWS {
                    let q = S::load(queries.add(r * padded + whole));
                    for key in 0..KEYS {
                        acc[r][key] = S::fma(q, k[key], acc[r][key]);
                    }
                }
            }
        }
        for r in 0..ROWS {
            let out = &mut self.out[(row + r) * self.stride + j..][..KEYS];
            if KEYS == 4 {
                out.copy_from_slice(
                    &S::sum4([acc[r][0], acc[r][1 % KEYS], acc[r][2 % KEYS], acc[r][3 % KEYS]])[..KEYS],
                );
            } else {
                for key in 0..KEYS {
                    out[key] = S::sum(acc[r][key]);
                }
            }
        }
    }
}

#[inline(always)]
fn prefetch_row<S: Simd, T>(data: &[T], offset: usize, dim: usize) {
    let first = data.as_ptr().wrapping_add(offset).cast::<u8>();
    for byte in (0..dim * size_of::<T>()).step_by(64) {
        S::prefetch(first.wrapping_add(byte));
    }
}

struct Accumulate<'a, T> {
    weights: &'a [f32],
    stride: usize,
    data: &'a [T],
    offsets: &'a [usize],
    dim: usize,
    rows: usize,
    out: &'a mut [f32],
}

impl<T: Stored> Task for Accumulate<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self) {
        let mut j = 0;
        while j + 4 <= self.offsets.len() {
            for &offset in self.offsets[j..].iter().skip(PREFETCH_ROWS).take(4) {
                prefetch_row::<S, T>(self.data, offset, self.dim);
            }
            self.values::<S, 4>(j);
            j += 4;
        }
        while j < self.offsets.len() {
            self.values::<S, 1>(j);
            j += 1;
        }
    }
}

impl<T: Stored> Accumulate<'_, T> {
    #[inline(always)]
    fn values<S: Simd, const KEYS: usize>(&mut self, j: usize) {
        let padded = self.dim.next_multiple_of(S::LANES);
        let whole = self.dim / S::LANES * S::LANES;
        for x in (0..padded).step_by(S::LANES) {
            // SAFETY: `accumulate` has checked that every value has `dim` elements, every output row `padded` and every
            // weight row `offsets.len()`.
            unsafe {
                let v: [S::V; KEYS] = std::array::from_fn(|key| {
                    let from = self.data.as_ptr().add(self.offsets[j + key] + x);
                    if x < whole { T::load::<S>(from) } else { T::load_head::<S>(from, self.dim - whole) }
                });
                for row in 0..self.rows {
                    let weights = self.weights.as_ptr().add(row * self.stride + j);
                    let out = self.out.as_mut_ptr().add(row * padded + x);
                    let mut acc = S::load(out);
                    for key in 0..KEYS {
                        acc = S::fma(S::splat(*weights.add(key)), v[key], acc);
                    }
                    S::store(out, acc);
                }
            }
        }
    }
}
