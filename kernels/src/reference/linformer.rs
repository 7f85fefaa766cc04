//! Rows of Linformer's output without projecting K or V: by associativity E^T K q = E^T (K q), so a row costs
//! O(n (d + rank)) and no projected tensor exists that a kernel's could be mistaken like.

use rayon::prelude::*;

use super::forward::BLOCK;
use super::{Oracle, RowReference, dense, parts, round_to, sum_of_squares};
use crate::tensor::TensorName;

impl Oracle<'_> {
    /// Rows (head, query) of softmax(scale * q (E^T K)^T) (F^T V), all of one sequence and one KV head.
    pub(super) fn linformer_group(
        &self,
        sequence: usize,
        head_kv: usize,
        rows: &[(usize, usize)],
        rank: usize,
    ) -> Vec<RowReference> {
        let (dim, dim_v) = (self.problem.head_dim_qk, self.problem.head_dim_v);
        let (keys, dtype) = (self.lengths_kv[sequence], self.problem.dtype);
        let queries: Vec<Vec<f64>> =
            rows.iter().map(|&(head, query)| self.read_row(TensorName::Q, (sequence, head, query), dim)).collect();

        // s[r] = sum over j of E[j][r] (k_j . q).
        let partial_scores = self.over_blocks(keys, |first, count, sums: &mut Vec<Vec<f64>>| {
            sums.resize(rows.len(), vec![0.0; rank]);
            let keys = self.block_rows(TensorName::K, sequence, head_kv, first, count, dim);
            let projection = self.read_values(TensorName::ProjectionK, first * rank, count * rank);
            let picks: Vec<u32> = (0..count as u32).collect();
            let (mut dots, mut unused) = (vec![0.0; count], vec![0.0; rank]);
            for (query, sum) in queries.iter().zip(sums) {
                dense::dots(query, &keys, &picks, &mut dots);
                dense::accumulate([&dots, &dots], &projection, &picks, [sum, &mut unused]);
            }
        });
        let scale = self.problem.effective_scale();
        let weights: Vec<(Vec<f64>, f64, f64)> = (0..rows.len())
            .map(|row| {
                let mut scores = vec![0.0; rank];
                for part in &partial_scores {
                    scores.iter_mut().zip(&part[row]).for_each(|(score, x)| *score += scale * x);
                }
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                scores.iter_mut().for_each(|score| *score = (*score - max).exp());
                let sum: f64 = scores.iter().sum();
                (scores, sum, max + sum.ln())
            })
            .collect();

        // o = sum over j of (sum over r of F[j][r] p[r]) v_j.
        let partial_sums = self.over_blocks(keys, |first, count, sums: &mut Vec<(Vec<f64>, Vec<f64>, f64)>| {
            sums.resize(rows.len(), (vec![0.0; dim_v], vec![0.0; dim_v], 0.0));
            let values = self.block_rows(TensorName::V, sequence, head_kv, first, count, dim_v);
            let squares: Vec<f64> = values.chunks(dim_v.max(1)).map(sum_of_squares).collect();
            let projection = self.read_values(TensorName::ProjectionV, first * rank, count * rank);
            let picks: Vec<u32> = (0..count as u32).collect();
            let (mut exact, mut rounded) = (vec![0.0; count], vec![0.0; count]);
            for ((weights, ..), (o, o_lp, terms)) in weights.iter().zip(sums) {
                let weights_lp: Vec<f64> = weights.iter().map(|&weight| round_to(dtype, weight)).collect();
                dense::dots(weights, &projection, &picks, &mut exact);
                dense::dots(&weights_lp, &projection, &picks, &mut rounded);
                *terms += exact.iter().zip(&squares).map(|(w, square)| w * w * square).sum::<f64>();
                dense::accumulate([&exact, &rounded], &values, &picks, [o, o_lp]);
            }
        });
        (0..rows.len())
            .map(|row| {
                let (_, sum, lse) = weights[row];
                let (mut o, mut o_lp, mut terms) = (vec![0.0; dim_v], vec![0.0; dim_v], 0.0);
                for part in &partial_sums {
                    o.iter_mut().zip(&part[row].0).for_each(|(o, x)| *o += x / sum);
                    o_lp.iter_mut().zip(&part[row].1).for_each(|(o, x)| *o += x / sum);
                    terms += part[row].2;
                }
                o_lp.iter_mut().for_each(|x| *x = round_to(dtype, *x));
                RowReference { o, o_lp, scale: terms.sqrt() / sum, lse }
            })
            .collect()
    }

    /// Sums over blocks of keys: one answer a part, in order.
    fn over_blocks<T: Default + Send>(&self, keys: usize, add: impl Fn(usize, usize, &mut T) + Sync) -> Vec<T> {
        parts(keys.div_ceil(BLOCK))
            .into_par_iter()
            .map(|blocks| {
                let mut sums = T::default();
                for block in blocks {
                    add(block * BLOCK, BLOCK.min(keys - block * BLOCK), &mut sums);
                }
                sums
            })
            .collect()
    }

    fn block_rows(
        &self,
        name: TensorName,
        sequence: usize,
        head_kv: usize,
        first: usize,
        count: usize,
        dim: usize,
    ) -> Vec<f64> {
        let (mut rows, mut scratch) = (vec![0.0; count * dim], Vec::new());
        for (key, row) in rows.chunks_mut(dim.max(1)).enumerate() {
            self.load_row(name, (sequence, head_kv, first + key), &mut scratch, row);
        }
        rows
    }
}
