//! The definitions of DESIGN section 4, pair by pair in f64.

use crate::input::{Generator, key_lengths};
use crate::pattern::Visibility;
use crate::problem::{AttentionProblem, FeatureMap, Mechanism};
use crate::tensor::{TensorName, TensorSet};

/// O and LSE in (sequence, head, token) order.
pub(super) struct Forward {
    pub(super) o: Vec<f64>,
    pub(super) lse: Vec<f64>,
}

fn row(generator: &Generator<'_>, name: TensorName, at: (usize, usize, usize), dim: usize) -> Vec<f64> {
    let mut out = vec![0f32; dim];
    generator.row(name, at.0, at.1, at.2, &mut out);
    out.into_iter().map(f64::from).collect()
}

/// All rows of a tensor for one head of one sequence.
pub(super) fn head_rows(
    generator: &Generator<'_>,
    name: TensorName,
    (sequence, head): (usize, usize),
    length: usize,
    dim: usize,
) -> Vec<Vec<f64>> {
    (0..length).map(|token| row(generator, name, (sequence, head, token), dim)).collect()
}

pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

pub(super) fn phi(map: FeatureMap, x: f64) -> f64 {
    match map {
        FeatureMap::Elu1 if x > 0.0 => x + 1.0,
        FeatureMap::Elu1 => x.exp(),
        FeatureMap::Relu => x.max(0.0),
        FeatureMap::Identity => x,
    }
}

/// (rank, dim) = E^T rows.
fn project(rows: &[Vec<f64>], projection: &[f32], rank: usize, dim: usize) -> Vec<Vec<f64>> {
    let mut out = vec![vec![0.0; dim]; rank];
    for (token, row) in rows.iter().enumerate() {
        for (r, out) in out.iter_mut().enumerate() {
            let weight = f64::from(projection[token * rank + r]);
            out.iter_mut().zip(row).for_each(|(out, x)| *out += weight * x);
        }
    }
    out
}

pub(super) fn forward(problem: &AttentionProblem, generator: &Generator<'_>, inputs: &TensorSet) -> Forward {
    let (dk, dv) = (problem.head_dim_qk, problem.head_dim_v);
    let (lengths_q, lengths_kv) = (problem.lengths_q(), key_lengths(problem));
    let mut forward = Forward { o: Vec::new(), lse: Vec::new() };
    for sequence in 0..problem.batch {
        let (len_q, len_kv) = (lengths_q[sequence], lengths_kv[sequence]);
        let visibility = Visibility::new(problem, len_q, len_kv);
        for head in 0..problem.heads_q {
            let kv = (sequence, head / problem.group_size());
            let mut k = head_rows(generator, TensorName::K, kv, len_kv, dk);
            let mut v = if problem.is_absorbed_mla() {
                k.iter().map(|row| row[..dv].to_vec()).collect()
            } else {
                head_rows(generator, TensorName::V, kv, len_kv, dv)
            };
            if let Mechanism::Linformer { rank } = problem.mechanism {
                k = project(&k, inputs.get(TensorName::ProjectionK).as_slice(), rank, dk);
                v = project(&v, inputs.get(TensorName::ProjectionV).as_slice(), rank, dv);
            }
            for query in 0..len_q {
                let q = row(generator, TensorName::Q, (sequence, head, query), dk);
                let sees = |key: usize| match problem.mechanism {
                    Mechanism::Linformer { .. } => true,
                    _ => visibility.sees(head, query, key),
                };
                let visible: Vec<usize> = (0..k.len()).filter(|&key| sees(key)).collect();
                let (weights, lse) = weights(problem, &q, &k, &visible);
                let mut o = vec![0.0; dv];
                for (&key, weight) in visible.iter().zip(&weights) {
                    o.iter_mut().zip(&v[key]).for_each(|(o, v)| *o += weight * v);
                }
                forward.o.extend(o);
                forward.lse.push(lse);
            }
        }
    }
    forward
}

/// What each visible key's value is multiplied by, and the log-sum-exp.
fn weights(problem: &AttentionProblem, q: &[f64], k: &[Vec<f64>], visible: &[usize]) -> (Vec<f64>, f64) {
    let scale = problem.effective_scale();
    if let Mechanism::Linear { feature_map, normalised } = problem.mechanism {
        let map = |row: &[f64]| row.iter().map(|&x| phi(feature_map, x)).collect::<Vec<_>>();
        let q = map(q);
        let weights: Vec<f64> = visible.iter().map(|&key| dot(&q, &map(&k[key]))).collect();
        let factor = if normalised { 1.0 / (weights.iter().sum::<f64>() + 1e-6) } else { scale };
        return (weights.into_iter().map(|weight| weight * factor).collect(), 0.0);
    }
    let scores: Vec<f64> = visible
        .iter()
        .map(|&key| {
            let score = scale * dot(q, &k[key]);
            problem.softcap.map_or(score, |cap| cap * (score / cap).tanh())
        })
        .collect();
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if max == f64::NEG_INFINITY {
        return (vec![0.0; scores.len()], max);
    }
    let exps: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
    let sum: f64 = exps.iter().sum();
    (exps.into_iter().map(|exp| exp / sum).collect(), max + sum.ln())
}
