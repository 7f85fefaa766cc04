//! The f64 oracle: what every kernel's output is compared with.
//!
//! It computes single rows of an attention problem from the definition, in f64, from the inputs as the dtype holds them.
//! It shares no code with the kernels, and none with [`crate::pattern::Visibility`]: who sees whom is written once more,
//! literally (`visible`). Rows come from a [`RowSource`], so a problem of any length needs no tensor: the keys of a
//! (sequence, KV head) are made block by block and serve all sampled rows of that group.
//!
//! Every row comes three times: exact; with what is multiplied rounded to the dtype that a kernel multiplies in (the problem's, but for
//! [`Oracle::multiplied_in`]) and the result to the problem's (`o_lp`), which is the error that no such kernel can avoid; and as a [`RowReference::scale`], the size against which a rounding
//! error of that row is small. [`crate::tolerance`] judges with all three.

mod backward;
mod dense;
mod expected;
mod forward;
mod linformer;
mod recurrent;
mod sample;
mod source;
mod visible;

#[cfg(test)]
mod sabotage_tests;
#[cfg(test)]
mod tests;

pub use backward::BackwardReference;
pub use expected::{Expected, SampleError, SampledRows};
pub use sample::{DEFAULT_BUDGET_FLOPS, SamplePlan};
pub use source::{GeneratedRows, RowSource, TensorRows};

use half::{bf16, f16};
use rayon::prelude::*;

use crate::e4m3::e4m3;
use crate::problem::{AttentionProblem, Dtype, FeatureMap, Mechanism};
use crate::tensor::TensorName;
use source::CachedSinks;
use visible::Definition;

/// (sequence, head, token): head counts query heads for Q, O, dO and dQ, and KV heads for K, V, dK and dV.
pub type Row = (usize, usize, usize);

/// One row of an output.
#[derive(Clone, Debug, PartialEq)]
pub struct RowReference {
    /// The row of O (or of a gradient), exact.
    pub o: Vec<f64>,
    /// The same with P (and dS) and the result rounded, and Q, K and V too where [`Oracle::expected`] is asked about a kernel that
    /// multiplies in a narrower dtype than theirs.
    pub o_lp: Vec<f64>,
    /// The root of the sum of squares of the terms that the row is the sum of. Independent rounding errors of relative
    /// size u in the terms make an error of size u * scale in the row, even where the terms cancel.
    pub scale: f64,
    /// Natural log of the sum of exponentials of the scaled, soft-capped, biased scores that are visible; negative
    /// infinity for none. A sink is not part of it. NaN for linear attention and for gradients, which have none.
    pub lse: f64,
}

/// The oracle of one problem and one set of inputs.
pub struct Oracle<'a> {
    problem: &'a AttentionProblem,
    source: &'a dyn RowSource,
    multiplied_in: Dtype,
    lengths_q: Vec<usize>,
    lengths_kv: Vec<usize>,
    sinks: CachedSinks,
}

impl<'a> Oracle<'a> {
    /// The oracle of a valid problem on these inputs.
    pub fn new(problem: &'a AttentionProblem, source: &'a dyn RowSource) -> Self {
        Oracle {
            problem,
            source,
            multiplied_in: problem.dtype,
            lengths_q: problem.lengths_q(),
            lengths_kv: problem.lengths_kv(),
            sinks: CachedSinks::new(),
        }
    }

    /// The same for softmax attention by a kernel that multiplies in this dtype: its weights are rounded to it, its inputs too, and
    /// its outputs are judged by its tolerance.
    #[must_use]
    pub fn multiplied_in(self, dtype: Dtype) -> Self {
        Oracle { multiplied_in: dtype, ..self }
    }

    /// Row `query` of query head `head` of a sequence's output.
    pub fn forward_row(&self, sequence: usize, head: usize, query: usize) -> RowReference {
        self.forward_rows(&[(sequence, head, query)]).pop().expect("one row was asked for")
    }

    /// Rows of O, in the order asked for. Rows of one (sequence, KV head) share the work of making its keys.
    pub fn forward_rows(&self, rows: &[Row]) -> Vec<RowReference> {
        self.by_group(rows, self.problem.group_size(), |sequence, head_kv, rows| match self.problem.mechanism {
            Mechanism::Linformer { rank } => self.linformer_group(sequence, head_kv, rows, rank),
            Mechanism::Linear { .. } if self.problem.is_recurrent() => self.recurrent_group(sequence, head_kv, rows),
            _ => self.attend_group(sequence, head_kv, rows).into_iter().map(|row| row.reference).collect(),
        })
    }

    /// Splits rows into groups of one sequence and `heads_a_group` heads, computes the groups in parallel and puts the
    /// answers back into the order of the questions.
    fn by_group<T: Send>(
        &self,
        rows: &[Row],
        heads_a_group: usize,
        compute: impl Fn(usize, usize, &[(usize, usize)]) -> Vec<T> + Sync,
    ) -> Vec<T> {
        let mut order: Vec<usize> = (0..rows.len()).collect();
        let group = |index: usize| (rows[index].0, rows[index].1 / heads_a_group);
        order.sort_by_key(|&index| (group(index), index));
        let answers: Vec<(usize, T)> = order
            .chunk_by(|&a, &b| group(a) == group(b))
            .collect::<Vec<_>>()
            .into_par_iter()
            .flat_map_iter(|indices| {
                let (sequence, head) = group(indices[0]);
                let inside: Vec<_> = indices.iter().map(|&index| (rows[index].1, rows[index].2)).collect();
                indices.iter().copied().zip(compute(sequence, head, &inside)).collect::<Vec<_>>()
            })
            .collect();
        let mut answers = answers;
        answers.sort_by_key(|(index, _)| *index);
        answers.into_iter().map(|(_, answer)| answer).collect()
    }

    fn definition(&self, sequence: usize) -> Definition {
        Definition::new(self.problem, self.lengths_q[sequence], self.lengths_kv[sequence])
    }

    /// Reads a row of Q, K, V or dO, widened.
    fn load_row(&self, name: TensorName, row: Row, scratch: &mut Vec<f32>, out: &mut [f64]) {
        // Absorbed MLA has no V: the value is the head of the key row.
        let aliases_key = name == TensorName::V && self.problem.is_absorbed_mla();
        let (name, whole) = if aliases_key { (TensorName::K, self.problem.head_dim_qk) } else { (name, out.len()) };
        scratch.resize(whole, 0.0);
        self.source.row(name, row.0, row.1, row.2, scratch);
        out.iter_mut().zip(scratch.iter()).for_each(|(out, &x)| *out = f64::from(x));
    }

    fn read_row(&self, name: TensorName, row: Row, dim: usize) -> Vec<f64> {
        let mut out = vec![0.0; dim];
        self.load_row(name, row, &mut Vec::new(), &mut out);
        out
    }

    /// Elements of a tensor without tokens, widened.
    fn read_values(&self, name: TensorName, first: usize, count: usize) -> Vec<f64> {
        let mut values = vec![0.0; count];
        self.source.values(name, first, &mut values);
        values.into_iter().map(f64::from).collect()
    }
}

/// The nearest number of the dtype, ties to even.
fn round_to(dtype: Dtype, value: f64) -> f64 {
    match dtype {
        Dtype::F32 => f64::from(value as f32),
        Dtype::F16 => f16::from_f64(value).to_f64(),
        Dtype::Bf16 => bf16::from_f64(value).to_f64(),
        Dtype::E4m3 => e4m3::from_f32(value as f32).to_f64(),
    }
}

/// A weight of a softmax, at most 1, as a kernel multiplies it: of e4m3 the nearest number is that of 2^8 weights, since no kernel leaves
/// three quarters of that dtype's binades unused.
fn round_weight(dtype: Dtype, weight: f64) -> f64 {
    let scale = if dtype == Dtype::E4m3 { 256.0 } else { 1.0 };
    round_to(dtype, weight * scale) / scale
}

/// phi.
fn feature(map: FeatureMap, x: f64) -> f64 {
    match map {
        FeatureMap::Elu1 if x > 0.0 => x + 1.0,
        FeatureMap::Elu1 => x.exp(),
        FeatureMap::Relu => x.max(0.0),
        FeatureMap::Identity => x,
    }
}

/// What normalised linear attention adds to its denominator.
const NORMALISER_EPSILON: f64 = 1e-6;

fn sum_of_squares(row: &[f64]) -> f64 {
    row.iter().map(|x| x * x).sum()
}

/// Splits `0..count` into a fixed number of parts, whatever the number of threads: partial sums are then added in one
/// order and the oracle gives the same bits everywhere.
fn parts(count: usize) -> Vec<std::ops::Range<usize>> {
    const PARTS: usize = 16;
    let length = count.div_ceil(PARTS).max(1);
    (0..count.div_ceil(length)).map(|part| part * length..((part + 1) * length).min(count)).collect()
}
