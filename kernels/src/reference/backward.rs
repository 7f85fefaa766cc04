//! Rows of dQ, dK and dV, whole or sampled.
//!
//! With s = cap(scale * q.k) + bias, P = exp(s - LSE) (the sink is part of the denominator), o = P V:
//! dV = P^T dO, dP = dO V^T, Delta = dO . o, dS = P (dP - Delta) cap', dQ = scale dS K, dK = scale dS^T Q. A row of dQ
//! needs its own query alone. A row of dK or dV needs every query that sees the key and whose dO is not zero: that is
//! why large problems are checked with dO of a few rows ([`crate::input::InputSpec::sparse_grads`]).

use std::collections::{BTreeMap, BTreeSet};

use rayon::prelude::*;

use super::forward::{BLOCK, QueryRow, Scratch, for_each_block};
use super::{Oracle, Row, RowReference, dense, parts, round_to, sum_of_squares};
use crate::tensor::TensorName;

/// Rows of dQ that are computed together.
const ROWS: usize = 1024;

/// Rows of the gradients, in the order asked for. [`RowReference::o`] holds the gradient.
#[derive(Clone, Debug, Default)]
pub struct BackwardReference {
    /// Rows of dQ.
    pub dq: Vec<RowReference>,
    /// Rows of dK.
    pub dk: Vec<RowReference>,
    /// Rows of dV.
    pub dv: Vec<RowReference>,
}

/// A query row with what the gradients need of its forward pass.
struct GradRow {
    row: QueryRow,
    q: Vec<f64>,
    d_o: Vec<f64>,
    max: f64,
    sum: f64,
    delta: f64,
    /// Delta from the O that the dtype holds.
    delta_lp: f64,
    /// |Delta| and the root of the sum of squares of its terms: how large an error of dP - Delta may be next to |dP|.
    delta_scale: f64,
}

/// A gradient row under construction.
#[derive(Clone)]
struct GradSums {
    exact: Vec<f64>,
    rounded: Vec<f64>,
    squares: f64,
}

impl GradSums {
    fn new(dim: usize) -> Self {
        GradSums { exact: vec![0.0; dim], rounded: vec![0.0; dim], squares: 0.0 }
    }

    fn add(&mut self, other: &GradSums) {
        self.exact.iter_mut().zip(&other.exact).for_each(|(sum, x)| *sum += x);
        self.rounded.iter_mut().zip(&other.rounded).for_each(|(sum, x)| *sum += x);
        self.squares += other.squares;
    }
}

/// The weight and score gradient of one pair.
struct Pair {
    p: f64,
    ds: f64,
    ds_lp: f64,
    /// The size of the terms that `ds` is the difference of.
    ds_scale: f64,
}

impl Oracle<'_> {
    /// Rows of dQ at `queries` (query heads) and of dK and dV at `keys` (KV heads). `grad_rows` lists the rows of dO that
    /// are not zero, None for all. A query whose dO is zero, or that sees no key, has gradient 0 and gives none.
    pub fn backward(&self, grad_rows: Option<&[Row]>, queries: &[Row], keys: &[Row]) -> BackwardReference {
        // A group is asked for at once, so that the forward pass of its rows serves dQ and dK and dV.
        let group_size = self.problem.group_size();
        let mut groups: BTreeMap<(usize, usize), (Vec<usize>, Vec<usize>)> = BTreeMap::new();
        for (index, row) in queries.iter().enumerate() {
            groups.entry((row.0, row.1 / group_size)).or_default().0.push(index);
        }
        for (index, row) in keys.iter().enumerate() {
            groups.entry((row.0, row.1)).or_default().1.push(index);
        }
        let groups: Vec<_> = groups.into_iter().collect();
        let answers: Vec<_> = groups
            .into_par_iter()
            .map(|((sequence, head_kv), (query_indices, key_indices))| {
                let asked: Vec<(usize, usize)> =
                    query_indices.iter().map(|&index| (queries[index].1, queries[index].2)).collect();
                let mut rows: BTreeSet<(usize, usize)> = asked.iter().copied().collect();
                if !key_indices.is_empty() {
                    rows.extend(self.rows_of_group(grad_rows, sequence, head_kv));
                }
                let rows: Vec<(usize, usize)> = rows.into_iter().collect();
                let grad_rows = self.grad_rows(sequence, &rows, head_kv);
                let wanted: Vec<&GradRow> =
                    asked.iter().map(|row| &grad_rows[rows.binary_search(row).expect("it was put in")]).collect();
                let dq: Vec<RowReference> =
                    wanted.chunks(ROWS).flat_map(|rows| self.dq_group(sequence, head_kv, rows)).collect();
                let keys: Vec<usize> = key_indices.iter().map(|&index| keys[index].2).collect();
                let dkv: Vec<_> = keys
                    .par_chunks(BLOCK)
                    .flat_map_iter(|keys| self.dkv_keys(sequence, head_kv, &grad_rows, keys))
                    .collect();
                let dq: Vec<_> = query_indices.into_iter().zip(dq).collect();
                let dkv: Vec<_> = key_indices.into_iter().zip(dkv).collect();
                (dq, dkv)
            })
            .collect();
        let (dq, dkv): (Vec<_>, Vec<_>) = answers.into_iter().unzip();
        let (dk, dv) = in_order(dkv).into_iter().unzip();
        BackwardReference { dq: in_order(dq), dk, dv }
    }

    /// The rows of a group whose dO may be other than zero.
    fn rows_of_group(&self, grad_rows: Option<&[Row]>, sequence: usize, head_kv: usize) -> Vec<(usize, usize)> {
        let heads = head_kv * self.problem.group_size()..(head_kv + 1) * self.problem.group_size();
        match grad_rows {
            Some(rows) => rows
                .iter()
                .filter(|row| row.0 == sequence && heads.contains(&row.1))
                .map(|row| (row.1, row.2))
                .collect(),
            None => heads.flat_map(|head| (0..self.lengths_q[sequence]).map(move |query| (head, query))).collect(),
        }
    }

    /// The forward pass of the rows that have gradients; the others come without keys.
    fn grad_rows(&self, sequence: usize, rows: &[(usize, usize)], head_kv: usize) -> Vec<GradRow> {
        let d_o: Vec<Vec<f64>> = rows
            .par_iter()
            .map(|&(head, query)| self.read_row(TensorName::DO, (sequence, head, query), self.problem.head_dim_v))
            .collect();
        let has_gradient: Vec<bool> = d_o.iter().map(|row| row.iter().any(|&x| x != 0.0)).collect();
        let live: Vec<(usize, usize)> =
            rows.iter().zip(&has_gradient).filter(|(_, live)| **live).map(|(row, _)| *row).collect();
        let mut attended = self.attend_group(sequence, head_kv, &live).into_iter();
        let mut query_rows = self.query_rows(sequence, &live).into_iter();
        rows.iter()
            .zip(d_o)
            .zip(has_gradient)
            .map(|((&(head, query), d_o), live)| {
                let q = self.read_row(TensorName::Q, (sequence, head, query), self.problem.head_dim_qk);
                if !live {
                    let row = QueryRow { head, query, keys: Vec::new() };
                    return GradRow { row, q, d_o, max: 0.0, sum: 0.0, delta: 0.0, delta_lp: 0.0, delta_scale: 0.0 };
                }
                let attended = attended.next().expect("one answer a live row");
                let row = query_rows.next().expect("one answer a live row");
                let dot = |o: &[f64]| d_o.iter().zip(o).map(|(a, b)| a * b).sum::<f64>();
                let delta = dot(&attended.reference.o);
                let terms: f64 = d_o.iter().zip(&attended.reference.o).map(|(a, b)| (a * b).powi(2)).sum();
                GradRow {
                    row,
                    q,
                    max: attended.max,
                    sum: attended.sum,
                    delta,
                    delta_lp: dot(&attended.reference.o_lp),
                    delta_scale: delta.abs() + terms.sqrt(),
                    d_o,
                }
            })
            .collect()
    }

    fn pair(&self, row: &GradRow, score: f64, slope: f64, dp: f64) -> Pair {
        let p = (score - row.max).exp() / row.sum;
        Pair {
            p,
            ds: p * (dp - row.delta) * slope,
            ds_lp: round_to(self.problem.dtype, p * (dp - row.delta_lp) * slope),
            ds_scale: p * (dp.abs() + row.delta_scale) * slope,
        }
    }

    fn dq_group(&self, sequence: usize, head_kv: usize, rows: &[&GradRow]) -> Vec<RowReference> {
        let (dim, dim_v) = (self.problem.head_dim_qk, self.problem.head_dim_v);
        let (definition, scale) = (self.definition(sequence), self.problem.effective_scale());
        let query_rows: Vec<QueryRow> = rows
            .iter()
            .map(|row| QueryRow { head: row.row.head, query: row.row.query, keys: row.row.keys.clone() })
            .collect();
        let partial: Vec<Vec<GradSums>> = parts(self.key_blocks(sequence))
            .into_par_iter()
            .map(|blocks| {
                let (mut scratch, mut keys_block, mut values_block) = (Scratch::default(), Vec::new(), Vec::new());
                let mut sums = vec![GradSums::new(dim); rows.len()];
                for_each_block(&query_rows, blocks, |block| {
                    let group = (sequence, head_kv);
                    block.load(self, TensorName::K, group, dim, &mut scratch, &mut keys_block);
                    block.load(self, TensorName::V, group, dim_v, &mut scratch, &mut values_block);
                    for &(index, keys) in &block.cells {
                        let (row, sums) = (rows[index], &mut sums[index]);
                        let (mut scores, mut dp) = ([0.0; BLOCK], [0.0; BLOCK]);
                        let (scores, dp) = (&mut scores[..keys.len()], &mut dp[..keys.len()]);
                        let picks = block.picks(keys, &mut scratch);
                        dense::dots(&row.q, &keys_block, picks, scores);
                        dense::dots(&row.d_o, &values_block, picks, dp);
                        let mut rounded = [0.0; BLOCK];
                        for (n, &key) in keys.iter().enumerate() {
                            let (capped, slope) = self.cap(scale * scores[n]);
                            let (head, query) = (row.row.head, row.row.query);
                            let bias = self.bias(&definition, sequence, head, query, key as usize);
                            let pair = self.pair(row, capped + bias, slope, dp[n]);
                            let key_row = &keys_block[picks[n] as usize * dim..][..dim];
                            sums.squares += pair.ds_scale * pair.ds_scale * sum_of_squares(key_row);
                            scores[n] = pair.ds;
                            rounded[n] = pair.ds_lp;
                        }
                        let weights = [&*scores, &rounded[..keys.len()]];
                        dense::accumulate(weights, &keys_block, picks, [&mut sums.exact, &mut sums.rounded]);
                    }
                });
                sums
            })
            .collect();
        (0..rows.len())
            .map(|index| {
                let mut sums = GradSums::new(dim);
                partial.iter().for_each(|part| sums.add(&part[index]));
                self.finish_gradient(sums, scale)
            })
            .collect()
    }

    /// Rows of dK and dV at a few keys.
    fn dkv_keys(
        &self,
        sequence: usize,
        head_kv: usize,
        rows: &[GradRow],
        keys: &[usize],
    ) -> Vec<(RowReference, RowReference)> {
        let (dim, dim_v, dtype) = (self.problem.head_dim_qk, self.problem.head_dim_v, self.problem.dtype);
        let (definition, scale) = (self.definition(sequence), self.problem.effective_scale());
        let load = |name, dim| -> Vec<f64> {
            keys.iter().flat_map(|&key| self.read_row(name, (sequence, head_kv, key), dim)).collect()
        };
        let (keys_block, values_block) = (load(TensorName::K, dim), load(TensorName::V, dim_v));
        let mut sums = vec![(GradSums::new(dim), GradSums::new(dim_v)); keys.len()];
        for row in rows.iter().filter(|row| !row.row.keys.is_empty()) {
            let (head, query) = (row.row.head, row.row.query);
            let picks: Vec<u32> = (0..keys.len() as u32)
                .filter(|&pick| row.row.keys.binary_search(&(keys[pick as usize] as u32)).is_ok())
                .collect();
            let (mut dots, mut dp) = ([0.0; BLOCK], [0.0; BLOCK]);
            dense::dots(&row.q, &keys_block, &picks, &mut dots);
            dense::dots(&row.d_o, &values_block, &picks, &mut dp);
            let (q_squares, do_squares) = (sum_of_squares(&row.q), sum_of_squares(&row.d_o));
            for (n, &pick) in picks.iter().enumerate() {
                let (capped, slope) = self.cap(scale * dots[n]);
                let bias = self.bias(&definition, sequence, head, query, keys[pick as usize]);
                let pair = self.pair(row, capped + bias, slope, dp[n]);
                let p_lp = round_to(dtype, pair.p);
                let (dk, dv) = &mut sums[pick as usize];
                dk.squares += pair.ds_scale * pair.ds_scale * q_squares;
                dv.squares += pair.p * pair.p * do_squares;
                dense::accumulate([&[pair.ds], &[pair.ds_lp]], &row.q, &[0], [&mut dk.exact, &mut dk.rounded]);
                dense::accumulate([&[pair.p], &[p_lp]], &row.d_o, &[0], [&mut dv.exact, &mut dv.rounded]);
            }
        }
        sums.into_iter().map(|(dk, dv)| (self.finish_gradient(dk, scale), self.finish_gradient(dv, 1.0))).collect()
    }

    fn finish_gradient(&self, sums: GradSums, scale: f64) -> RowReference {
        RowReference {
            o: sums.exact.iter().map(|x| scale * x).collect(),
            o_lp: sums.rounded.iter().map(|x| round_to(self.problem.dtype, scale * x)).collect(),
            scale: scale.abs() * sums.squares.sqrt(),
            lse: f64::NAN,
        }
    }
}

/// Answers of all groups in the order of the questions.
fn in_order<T>(answers: Vec<Vec<(usize, T)>>) -> Vec<T> {
    let mut answers: Vec<(usize, T)> = answers.into_iter().flatten().collect();
    answers.sort_by_key(|(index, _)| *index);
    answers.into_iter().map(|(_, answer)| answer).collect()
}
