//! Online softmax of a tile of rows (Milakov and Gimelshein 2018; Dao 2023, Algorithm 1): a running maximum, a running
//! sum and an unnormalised output a row, to which tiles of keys are added in any order.

use super::tile::{self, exp_rows, matmul};

/// Keys a tile.
pub(crate) const KEY_TILE: usize = 64;

/// The rows of a query tile and what they have seen so far.
pub(crate) struct OnlineTile {
    dim_v: usize,
    /// (rows, KEY_TILE): scores of the tile at hand, scaled and masked with -inf; `absorb` turns them into weights.
    pub(crate) scores: Vec<f32>,
    /// Largest score a row.
    pub(crate) max: Vec<f32>,
    /// Sum of exp(score - max) a row.
    pub(crate) sum: Vec<f32>,
    /// (rows, dim_v): sum of exp(score - max) * value.
    pub(crate) output: Vec<f32>,
}

impl OnlineTile {
    /// Bytes of a tile of so many rows.
    pub(crate) fn bytes(rows: usize, dim_v: usize) -> u64 {
        4 * rows as u64 * (KEY_TILE + 2 + dim_v) as u64
    }

    /// Memory for up to `rows` rows.
    pub(crate) fn new(rows: usize, dim_v: usize) -> Self {
        OnlineTile {
            dim_v,
            scores: vec![0.0; rows * KEY_TILE],
            max: vec![0.0; rows],
            sum: vec![0.0; rows],
            output: vec![0.0; rows * dim_v],
        }
    }

    /// Rows that have seen nothing.
    pub(crate) fn reset(&mut self, rows: usize) {
        self.max[..rows].fill(f32::NEG_INFINITY);
        self.sum[..rows].fill(0.0);
        self.output[..rows * self.dim_v].fill(0.0);
    }

    /// scores = queries (rows, dim) times keys (dim, KEY_TILE), of which the first `keys` columns count, soft-capped.
    pub(crate) fn score(
        &mut self,
        (rows, keys, dim): (usize, usize, usize),
        queries: &[f32],
        keys_transposed: &[f32],
        softcap: Option<f32>,
    ) {
        matmul((rows, keys, dim), queries, (dim, 1), keys_transposed, KEY_TILE, &mut self.scores, KEY_TILE, false);
        if let Some(cap) = softcap {
            for row in self.scores.chunks_exact_mut(KEY_TILE).take(rows) {
                tile::softcap(&mut row[..keys], cap);
            }
        }
    }

    /// Hides the keys outside `first..last` from a row.
    #[inline]
    pub(crate) fn mask(&mut self, row: usize, keys: usize, first: usize, last: usize) {
        let scores = &mut self.scores[row * KEY_TILE..][..keys];
        scores[..first.min(keys)].fill(f32::NEG_INFINITY);
        scores[last.clamp(first.min(keys), keys)..].fill(f32::NEG_INFINITY);
    }

    /// Adds the keys whose scores are in `scores` and whose values are the rows of `values`.
    pub(crate) fn absorb(&mut self, rows: usize, keys: usize, values: &[f32], values_stride: usize) {
        for row in 0..rows {
            let scores = &mut self.scores[row * KEY_TILE..][..keys];
            let max = tile::max(scores).max(self.max[row]);
            if max == f32::NEG_INFINITY {
                scores.fill(0.0);
                continue;
            }
            let sum = exp_rows(scores, max);
            if max > self.max[row] {
                let rescale = (self.max[row] - max).exp();
                self.max[row] = max;
                self.sum[row] *= rescale;
                self.output[row * self.dim_v..][..self.dim_v].iter_mut().for_each(|x| *x *= rescale);
            }
            self.sum[row] += sum;
        }
        let shape = (rows, self.dim_v, keys);
        matmul(shape, &self.scores, (KEY_TILE, 1), values, values_stride, &mut self.output, self.dim_v, true);
    }

    /// The finished output of a row, zeros where it has seen nothing, and its log-sum-exp.
    pub(crate) fn finish(&mut self, row: usize) -> (&[f32], f32) {
        let output = &mut self.output[row * self.dim_v..][..self.dim_v];
        let sum = self.sum[row];
        if sum == 0.0 {
            output.fill(0.0);
            return (output, f32::NEG_INFINITY);
        }
        let factor = 1.0 / sum;
        output.iter_mut().for_each(|x| *x *= factor);
        (output, self.max[row] + sum.ln())
    }
}
