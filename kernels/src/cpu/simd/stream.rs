//! A few queries over keys and values that are read once from memory, at their stored width: what decode is made of.
//!
//! Tokens are taken in order and, inside a few tokens, the heads: where the heads of a token lie side by side, memory is
//! read as one stream. What is asked for ahead of it crosses from one block of rows to the one that is read `next`, so that
//! the stream never stops between the passes over keys and values.

use super::isa::{Isa, Task};
use super::pack::with_elements;
use super::vector::{Simd, Stored};
use crate::tensor::Tensor;

/// Bytes between what is worked on and what is asked for: several times latency times bandwidth of one core.
const AHEAD_BYTES: usize = 16 << 10;

/// Rows of `dim` elements of some neighbouring heads and some tokens.
#[derive(Clone, Copy)]
pub struct StoredRows<'a> {
    /// K or V.
    pub tensor: &'a Tensor,
    /// Where the first head's row of each token starts.
    pub offsets: &'a [usize],
    /// Heads.
    pub heads: usize,
    /// Elements from a token's row of one head to that of the next.
    pub head_stride: usize,
    /// Elements a row.
    pub dim: usize,
}

impl StoredRows<'_> {
    fn check(&self) {
        let reach = self.heads.saturating_sub(1) * self.head_stride + self.dim;
        let is_inside = |&offset: &usize| offset + reach <= self.tensor.len();
        assert!(self.heads == 0 || self.offsets.iter().all(is_inside), "every row is inside the tensor");
    }

    /// Tokens between a row that is worked on and the row that is asked for.
    fn tokens_ahead(&self) -> usize {
        (AHEAD_BYTES / (self.heads * self.dim * self.tensor.element().bytes()).max(1)).max(TOKENS)
    }

    /// Where these rows begin and what is asked for after them.
    fn then<'b>(&self, next: Option<&StoredRows<'b>>) -> Ahead<'b>
    where
        Self: 'b,
    {
        let next = next.map(Target::new);
        Ahead { distance: self.tokens_ahead(), next }
    }
}

/// Rows to be asked for, in bytes.
#[derive(Clone, Copy)]
struct Target<'a> {
    start: *const u8,
    element_bytes: usize,
    offsets: &'a [usize],
    head_stride: usize,
}

impl<'a> Target<'a> {
    fn new(rows: &StoredRows<'a>) -> Self {
        Target {
            start: rows.tensor.bytes().as_ptr(),
            element_bytes: rows.tensor.element().bytes(),
            offsets: rows.offsets,
            head_stride: rows.head_stride,
        }
    }

    /// The row of a head of a token; the first of all where there is none.
    #[inline(always)]
    fn row(&self, token: usize, head: usize) -> *const u8 {
        let Some(offset) = self.offsets.get(token) else { return self.start };
        self.start.wrapping_add((offset + head * self.head_stride) * self.element_bytes)
    }
}

/// What is asked for while a block is worked on.
struct Ahead<'a> {
    distance: usize,
    next: Option<Target<'a>>,
}

impl Ahead<'_> {
    /// The row that is as far ahead of a token's as the distance. Whoever works on the token asks for it line by line:
    /// all of them at once would fill the queue of open misses, and the work would wait.
    #[inline(always)]
    fn row(&self, own: &Target<'_>, token: usize, head: usize) -> *const u8 {
        let token = token + self.distance;
        match &self.next {
            Some(next) if token >= own.offsets.len() => next.row(token - own.offsets.len(), head),
            _ => own.row(token, head),
        }
    }
}

/// Bytes of a cache line.
const LINE_BYTES: usize = 64;
/// Tokens that are taken together.
const TOKENS: usize = 4;

/// scores[(h * rows + r) * stride + j] = queries[h * rows + r] . (row of token j and head h), for every r of a head's
/// `rows`; rows of `next` are asked for at the end.
///
/// `queries` is (heads, rows, `dim` rounded up to whole vectors), zero-padded.
pub fn scores(
    isa: Isa,
    queries: &[f32],
    keys: StoredRows<'_>,
    next: Option<&StoredRows<'_>>,
    out: &mut [f32],
    stride: usize,
) {
    keys.check();
    let total = queries.len() / isa.pad(keys.dim).max(1);
    let rows = total / keys.heads.max(1);
    assert!(total == rows * keys.heads && queries.len() == total * isa.pad(keys.dim), "every head has as many queries");
    assert!(total == 0 || (stride >= keys.offsets.len() && out.len() >= (total - 1) * stride + keys.offsets.len()));
    let (own, ahead) = (Target::new(&keys), keys.then(next));
    with_elements!(keys.tensor, data => isa.run(Scores { queries, rows, keys, data, own, ahead, out, stride }));
}

/// out[h * rows + r] += sum over j of weights[(h * rows + r) * stride + j] * (row of token j and head h), for every r of a
/// head's `rows` of `out`, (heads, rows, `dim` rounded up to whole vectors); rows of `next` are asked for at the end.
pub fn accumulate(
    isa: Isa,
    weights: &[f32],
    stride: usize,
    values: StoredRows<'_>,
    next: Option<&StoredRows<'_>>,
    out: &mut [f32],
) {
    values.check();
    let total = out.len() / isa.pad(values.dim).max(1);
    let rows = total / values.heads.max(1);
    assert!(total == rows * values.heads && out.len() == total * isa.pad(values.dim), "every head has as many rows");
    assert!(total == 0 || weights.len() >= (total - 1) * stride + values.offsets.len());
    let (own, ahead) = (Target::new(&values), values.then(next));
    with_elements!(values.tensor, data => isa.run(Accumulate { weights, stride, values, data, own, ahead, rows, out }));
}

struct Scores<'a, T> {
    queries: &'a [f32],
    rows: usize,
    keys: StoredRows<'a>,
    data: &'a [T],
    own: Target<'a>,
    ahead: Ahead<'a>,
    out: &'a mut [f32],
    stride: usize,
}

impl<T: Stored> Task for Scores<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self) {
        let tokens = self.keys.offsets.len();
        let mut j = 0;
        while j + TOKENS <= tokens {
            for head in 0..self.keys.heads {
                self.keys::<S, TOKENS>(j, head);
            }
            j += TOKENS;
        }
        while j < tokens {
            for head in 0..self.keys.heads {
                self.keys::<S, 1>(j, head);
            }
            j += 1;
        }
    }
}

impl<T: Stored> Scores<'_, T> {
    #[inline(always)]
    fn keys<S: Simd, const KEYS: usize>(&mut self, j: usize, head: usize) {
        let mut row = 0;
        if S::BLOCK_ROWS >= 12 {
            while row + 4 <= self.rows {
                self.rows_from::<S, KEYS, 4>(j, head, row);
                row += 4;
            }
        }
        while row + 2 <= self.rows {
            self.rows_from::<S, KEYS, 2>(j, head, row);
            row += 2;
        }
        if row < self.rows {
            self.rows_from::<S, KEYS, 1>(j, head, row);
        }
    }

    #[inline(always)]
    fn rows_from<S: Simd, const KEYS: usize, const ROWS: usize>(&mut self, j: usize, head: usize, row: usize) {
        // The first rows ask for what comes.
        if row == 0 {
            self.block::<S, KEYS, ROWS, true>(j, head, row);
        } else {
            self.block::<S, KEYS, ROWS, false>(j, head, row);
        }
    }

    #[inline(always)]
    fn block<S: Simd, const KEYS: usize, const ROWS: usize, const ASKS: bool>(
        &mut self,
        j: usize,
        head: usize,
        row: usize,
    ) {
        let dim = self.keys.dim;
        let padded = dim.next_multiple_of(S::LANES);
        let whole = dim / S::LANES * S::LANES;
        let mut coming = [std::ptr::null(); KEYS];
        if ASKS {
            for key in 0..KEYS {
                coming[key] = self.ahead.row(&self.own, j + key, head);
            }
        }
        let row = head * self.rows + row;
        let mut acc = [[S::splat(0.0); KEYS]; ROWS];
        // SAFETY: `scores` has checked that every key has `dim` elements, queries have `padded`, and scores have room.
        unsafe {
            let head = head * self.keys.head_stride;
            let mut keys = [self.data.as_ptr(); KEYS];
            for key in 0..KEYS {
                keys[key] = keys[key].add(*self.keys.offsets.get_unchecked(j + key) + head);
            }
            let queries = self.queries.as_ptr().add(row * padded);
            for x in (0..whole).step_by(S::LANES) {
                let mut k = [S::splat(0.0); KEYS];
                for key in 0..KEYS {
                    k[key] = T::load::<S>(keys[key].add(x));
                }
                if ASKS && (x * size_of::<T>()).is_multiple_of(LINE_BYTES) {
                    for key in 0..KEYS {
                        S::prefetch(coming[key].wrapping_add(x * size_of::<T>()));
                    }
                }
                for r in 0..ROWS {
                    let q = S::load(queries.add(r * padded + x));
                    for key in 0..KEYS {
                        acc[r][key] = S::fma(q, k[key], acc[r][key]);
                    }
                }
            }
            if whole < dim {
                let mut k = [S::splat(0.0); KEYS];
                for key in 0..KEYS {
                    k[key] = T::load_head::<S>(keys[key].add(whole), dim - whole);
                }
                for r in 0..ROWS {
                    let q = S::load(queries.add(r * padded + whole));
                    for key in 0..KEYS {
                        acc[r][key] = S::fma(q, k[key], acc[r][key]);
                    }
                }
            }
            for r in 0..ROWS {
                let out = self.out.as_mut_ptr().add((row + r) * self.stride + j);
                if KEYS == 4 {
                    let sums = S::sum4([acc[r][0], acc[r][1 % KEYS], acc[r][2 % KEYS], acc[r][3 % KEYS]]);
                    out.cast::<[f32; 4]>().write_unaligned(sums);
                } else {
                    for key in 0..KEYS {
                        *out.add(key) = S::sum(acc[r][key]);
                    }
                }
            }
        }
    }
}

struct Accumulate<'a, T> {
    weights: &'a [f32],
    stride: usize,
    values: StoredRows<'a>,
    data: &'a [T],
    own: Target<'a>,
    ahead: Ahead<'a>,
    rows: usize,
    out: &'a mut [f32],
}

impl<T: Stored> Task for Accumulate<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self) {
        let tokens = self.values.offsets.len();
        for j in (0..tokens).step_by(2 * TOKENS) {
            let count = (tokens - j).min(2 * TOKENS);
            for head in 0..self.values.heads {
                self.values::<S>(j, count, head);
            }
        }
    }
}

impl<T: Stored> Accumulate<'_, T> {
    #[inline(always)]
    fn values<S: Simd>(&mut self, j: usize, count: usize, head: usize) {
        let dim = self.values.dim;
        let whole = dim / S::LANES;
        let mut vector = 0;
        while vector + 4 <= whole {
            self.columns::<S, 4>(j, count, head, vector * S::LANES);
            vector += 4;
        }
        while vector < whole {
            self.columns::<S, 1>(j, count, head, vector * S::LANES);
            vector += 1;
        }
        if whole * S::LANES < dim {
            self.tail::<S>(j, count, head, whole * S::LANES);
        }
    }

    /// `NV` whole vectors of every row from column `x` on.
    #[inline(always)]
    fn columns<S: Simd, const NV: usize>(&mut self, j: usize, count: usize, head: usize, x: usize) {
        let mut row = 0;
        if S::BLOCK_ROWS >= 12 {
            while row + 4 <= self.rows {
                self.rows_from::<S, NV, 4>(j, count, head, x, row);
                row += 4;
            }
        }
        while row + 2 <= self.rows {
            self.rows_from::<S, NV, 2>(j, count, head, x, row);
            row += 2;
        }
        if row < self.rows {
            self.rows_from::<S, NV, 1>(j, count, head, x, row);
        }
    }

    #[inline(always)]
    fn rows_from<S: Simd, const NV: usize, const ROWS: usize>(
        &mut self,
        j: usize,
        count: usize,
        head: usize,
        x: usize,
        row: usize,
    ) {
        // The first rows ask for what comes.
        if row == 0 {
            self.block::<S, NV, ROWS, true>(j, count, head, x, row);
        } else {
            self.block::<S, NV, ROWS, false>(j, count, head, x, row);
        }
    }

    #[inline(always)]
    fn block<S: Simd, const NV: usize, const ROWS: usize, const ASKS: bool>(
        &mut self,
        j: usize,
        count: usize,
        head: usize,
        x: usize,
        row: usize,
    ) {
        let padded = self.values.dim.next_multiple_of(S::LANES);
        let row = head * self.rows + row;
        // SAFETY: `accumulate` has checked that every value has `dim` elements, every output row `padded` and every weight
        // row `offsets.len()`.
        unsafe {
            let weights = self.weights.as_ptr().add(row * self.stride + j);
            let out = self.out.as_mut_ptr().add(row * padded + x);
            let first = self.data.as_ptr().add(head * self.values.head_stride + x);
            let mut acc = [[S::splat(0.0); NV]; ROWS];
            for r in 0..ROWS {
                for v in 0..NV {
                    acc[r][v] = S::load(out.add(r * padded + v * S::LANES));
                }
            }
            for key in 0..count {
                let from = first.add(*self.values.offsets.get_unchecked(j + key));
                let mut value = [S::splat(0.0); NV];
                for v in 0..NV {
                    value[v] = T::load::<S>(from.add(v * S::LANES));
                }
                if ASKS {
                    let coming = self.ahead.row(&self.own, j + key, head).wrapping_add(x * size_of::<T>());
                    for byte in (0..NV * S::LANES * size_of::<T>()).step_by(LINE_BYTES) {
                        S::prefetch(coming.wrapping_add(byte));
                    }
                }
                for r in 0..ROWS {
                    let weight = S::splat(*weights.add(r * self.stride + key));
                    for v in 0..NV {
                        acc[r][v] = S::fma(weight, value[v], acc[r][v]);
                    }
                }
            }
            for r in 0..ROWS {
                for v in 0..NV {
                    S::store(out.add(r * padded + v * S::LANES), acc[r][v]);
                }
            }
        }
    }

    /// The columns from `x` on, which are no whole vector.
    #[inline(always)]
    fn tail<S: Simd>(&mut self, j: usize, count: usize, head: usize, x: usize) {
        let padded = self.values.dim.next_multiple_of(S::LANES);
        for row in head * self.rows..(head + 1) * self.rows {
            // SAFETY: as in `block`; only `dim - x` elements of a value are read.
            unsafe {
                let out = self.out.as_mut_ptr().add(row * padded + x);
                let mut acc = S::load(out);
                for key in 0..count {
                    let offset = self.values.offsets[j + key] + head * self.values.head_stride + x;
                    let value = T::load_head::<S>(self.data.as_ptr().add(offset), self.values.dim - x);
                    acc = S::fma(S::splat(*self.weights.as_ptr().add(row * self.stride + j + key)), value, acc);
                }
                S::store(out, acc);
            }
        }
    }
}
