//! Linear attention's recurrent form: a state in, a few tokens, rows of O and of the state out.
//!
//! It is unrolled: o_t = phi(q_t) S_in + sum over j <= t of (phi(q_t).phi(k_j)) v_j, so no state is carried along.

use super::{NORMALISER_EPSILON, Oracle, Row, RowReference, feature, round_to, sum_of_squares};
use crate::problem::Mechanism;
use crate::tensor::TensorName;

impl Oracle<'_> {
    /// Rows (head, token) of O, all of one sequence and one KV head.
    pub(super) fn recurrent_group(
        &self,
        sequence: usize,
        head_kv: usize,
        rows: &[(usize, usize)],
    ) -> Vec<RowReference> {
        let (dim, dim_v, dtype) = (self.problem.head_dim_qk, self.problem.head_dim_v, self.problem.dtype);
        let Mechanism::Linear { normalised, .. } = self.problem.mechanism else { unreachable!("linear is recurrent") };
        let group = sequence * self.problem.heads_kv + head_kv;
        let state = self.read_values(TensorName::StateIn, group * dim * dim_v, dim * dim_v);
        let normaliser = normalised.then(|| self.read_values(TensorName::NormaliserIn, group * dim, dim));
        rows.iter()
            .map(|&(head, token)| {
                let query = self.features(TensorName::Q, (sequence, head, token));
                let mut numerator = vec![0.0; dim_v];
                let mut numerator_lp = vec![0.0; dim_v];
                let (mut denominator, mut weight_squares, mut terms) = (0.0, 0.0, 0.0);
                let mut add = |weight: f64, row: &[f64]| {
                    let weight_lp = round_to(dtype, weight);
                    for d in 0..dim_v {
                        numerator[d] += weight * row[d];
                        numerator_lp[d] += weight_lp * row[d];
                    }
                    terms += weight * weight * sum_of_squares(row);
                };
                for (d, &weight) in query.iter().enumerate() {
                    add(weight, &state[d * dim_v..][..dim_v]);
                    if let Some(normaliser) = &normaliser {
                        denominator += weight * normaliser[d];
                        weight_squares += (weight * normaliser[d]).powi(2);
                    }
                }
                for earlier in 0..=token {
                    let key = self.features(TensorName::K, (sequence, head_kv, earlier));
                    let weight: f64 = query.iter().zip(&key).map(|(q, k)| q * k).sum();
                    add(weight, &self.read_row(TensorName::V, (sequence, head_kv, earlier), dim_v));
                    denominator += weight;
                    weight_squares += weight * weight;
                }
                let divisor =
                    if normalised { denominator + NORMALISER_EPSILON } else { 1.0 / self.problem.effective_scale() };
                let o: Vec<f64> = numerator.iter().map(|x| x / divisor).collect();
                let moved = if normalised { sum_of_squares(&o).sqrt() * f64::sqrt(weight_squares) } else { 0.0 };
                RowReference {
                    o_lp: numerator_lp.iter().map(|x| round_to(dtype, x / divisor)).collect(),
                    scale: (f64::sqrt(terms) + moved) / divisor.abs(),
                    o,
                    lse: f64::NAN,
                }
            })
            .collect()
    }

    /// Row (sequence, KV head, d) of the state after the call: S_in[d] + sum over tokens of phi(k)[d] v. It is f32.
    pub(super) fn state_row(&self, (sequence, head_kv, d): Row) -> RowReference {
        let (dim, dim_v) = (self.problem.head_dim_qk, self.problem.head_dim_v);
        let first = ((sequence * self.problem.heads_kv + head_kv) * dim + d) * dim_v;
        let mut row = self.read_values(TensorName::StateIn, first, dim_v);
        let mut terms = sum_of_squares(&row);
        for token in 0..self.lengths_q[sequence] {
            let weight = self.features(TensorName::K, (sequence, head_kv, token))[d];
            let value = self.read_row(TensorName::V, (sequence, head_kv, token), dim_v);
            terms += weight * weight * sum_of_squares(&value);
            row.iter_mut().zip(&value).for_each(|(sum, v)| *sum += weight * v);
        }
        f32_row(row, terms)
    }

    /// The normaliser of (sequence, KV head, 0) after the call: z_in + sum over tokens of phi(k). It is f32.
    pub(super) fn normaliser_row(&self, (sequence, head_kv, _): Row) -> RowReference {
        let dim = self.problem.head_dim_qk;
        let first = (sequence * self.problem.heads_kv + head_kv) * dim;
        let mut row = self.read_values(TensorName::NormaliserIn, first, dim);
        let mut terms = sum_of_squares(&row);
        for token in 0..self.lengths_q[sequence] {
            let key = self.features(TensorName::K, (sequence, head_kv, token));
            terms += sum_of_squares(&key);
            row.iter_mut().zip(&key).for_each(|(sum, k)| *sum += k);
        }
        f32_row(row, terms)
    }

    fn features(&self, name: TensorName, row: Row) -> Vec<f64> {
        let Mechanism::Linear { feature_map, .. } = self.problem.mechanism else { unreachable!("linear is recurrent") };
        let mut values = self.read_row(name, row, self.problem.head_dim_qk);
        values.iter_mut().for_each(|x| *x = feature(feature_map, *x));
        values
    }
}

fn f32_row(row: Vec<f64>, terms: f64) -> RowReference {
    let o_lp = row.iter().map(|&x| f64::from(x as f32)).collect();
    RowReference { o: row, o_lp, scale: terms.sqrt(), lse: f64::NAN }
}
