//! What experiments are made of: constructed tensors for the oracle, seeded noise, a little linear algebra.

use attn_kernels::input::hash64;
use attn_kernels::problem::{AttentionProblem, Dtype, Mechanism, Phase};
use attn_kernels::reference::{Oracle, Row, RowReference, RowSource};
use attn_kernels::tensor::TensorName;

use crate::suite::presets::LayerGroup;

/// Seed of every experiment.
pub const SEED: u64 = 20_260_101;

/// Rows that a function makes: (tensor, head, token, row).
pub struct Constructed<F>(pub F);

impl<F: Fn(TensorName, usize, usize, &mut [f32]) + Sync> RowSource for Constructed<F> {
    fn row(&self, name: TensorName, _sequence: usize, head: usize, token: usize, out: &mut [f32]) {
        (self.0)(name, head, token, out);
    }

    fn bias(&self, _: usize, _: usize, _: usize, _: usize) -> f64 {
        0.0
    }

    fn values(&self, _: TensorName, _: usize, out: &mut [f32]) {
        out.fill(0.0);
    }
}

/// Rows of the output of a problem on constructed inputs.
pub fn rows(
    problem: &AttentionProblem,
    inputs: impl Fn(TensorName, usize, usize, &mut [f32]) + Sync,
    rows: &[Row],
) -> Vec<RowReference> {
    debug_assert_eq!(problem.validate(), Ok(()));
    Oracle::new(problem, &Constructed(inputs)).forward_rows(rows)
}

/// A problem with one layer's mechanism and pattern, `heads` query heads on one KV head: the last `queries` of `keys`
/// tokens look back. Linear attention sums its keys in the form without a state, which is the same sum.
pub fn problem(group: &LayerGroup, heads: usize, queries: usize, keys: usize, dim: usize) -> AttentionProblem {
    let mut problem = AttentionProblem::softmax(Phase::Prefill, Dtype::F32, 1, (heads, 1), (queries, keys), dim);
    problem.pattern = group.pattern;
    problem.causal = true;
    match group.mechanism {
        Mechanism::Linear { .. } => {
            problem.mechanism = group.mechanism;
            // The queries are the last tokens; a form without causality is defined for any number of them.
            problem.causal = queries > 1;
        }
        Mechanism::Mla { latent, rope, .. } => {
            problem.phase = Phase::Decode;
            problem.mechanism = group.mechanism;
            (problem.head_dim_qk, problem.head_dim_v) = (latent + rope, latent);
        }
        _ => {}
    }
    problem
}

/// Noise with mean 0 and variance 1, the same bits everywhere: the sum of four 16-bit fields of a hash.
pub fn noise(seed: u64, stream: u64, out: &mut [f32]) {
    let key = hash64(seed, stream);
    for (index, out) in out.iter_mut().enumerate() {
        let h = hash64(key, index as u64);
        let sum = (0..4).map(|field| ((h >> (16 * field)) & 0xffff) as i64).sum::<i64>() - 131_070;
        *out = (sum as f64 / 37_837.0) as f32;
    }
}

/// Noise as a vector of f64.
pub fn noise_f64(seed: u64, stream: u64, count: usize) -> Vec<f64> {
    let mut row = vec![0.0; count];
    noise(seed, stream, &mut row);
    row.into_iter().map(f64::from).collect()
}

/// An orthonormal basis of the span of these columns, by modified Gram-Schmidt applied twice (Golub and Van Loan, 5.2.8).
/// Columns that depend on earlier ones are left out.
pub fn orthonormal(columns: &[Vec<f64>]) -> Vec<Vec<f64>> {
    const DEPENDENT: f64 = 1e-9;
    let mut basis: Vec<Vec<f64>> = Vec::new();
    for column in columns {
        let mut rest = column.clone();
        let length = norm(column);
        for _ in 0..2 {
            for direction in &basis {
                let along = dot(&rest, direction);
                rest.iter_mut().zip(direction).for_each(|(x, d)| *x -= along * d);
            }
        }
        let left = norm(&rest);
        if left > DEPENDENT * length {
            basis.push(rest.into_iter().map(|x| x / left).collect());
        }
    }
    basis
}

/// How much two subspaces overlap: the mean squared cosine of their principal angles, 1 for the same subspace
/// (Bjorck and Golub, 1973).
pub fn overlap(a: &[Vec<f64>], b: &[Vec<f64>]) -> f64 {
    let sum: f64 = a.iter().flat_map(|x| b.iter().map(move |y| dot(x, y).powi(2))).sum();
    sum / a.len().min(b.len()).max(1) as f64
}

/// The dot product.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The Euclidean length.
pub fn norm(a: &[f64]) -> f64 {
    dot(a, a).sqrt()
}

/// ||a - b|| / ||b|| over all rows.
pub fn relative_l2(found: &[RowReference], exact: &[RowReference]) -> f64 {
    let (mut error, mut size) = (0.0, 0.0);
    for (found, exact) in found.iter().zip(exact) {
        for (a, b) in found.o.iter().zip(&exact.o) {
            error += (a - b).powi(2);
            size += b.powi(2);
        }
    }
    (error / size).sqrt()
}
