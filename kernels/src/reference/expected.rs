//! What goes over the wire to be checked: which rows, their bytes, and what the oracle says about them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::source::Rounded;
use super::{Oracle, Row, RowReference, SamplePlan};
use crate::e4m3::e4m3;
use crate::input::{output_names, tensor_shape};
use crate::problem::{AttentionProblem, Dtype};
use crate::tensor::{ElementType, Rows, Tensor, TensorName, TensorSet};
use crate::tolerance::{ErrorReport, Precision, Reference, judge, judge_lse};

/// Rows of one output: (sequence, head, token) of O, dQ, dK, dV and LSE; of the state (sequence, KV head, element of
/// d_qk); of the normaliser (sequence, KV head, 0).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SampledRows {
    /// Which tensor.
    pub tensor: TensorName,
    /// Which of its rows.
    pub rows: Vec<Row>,
}

/// Why sampled rows cannot be read or compared.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SampleError {
    /// The problem does not write that tensor.
    #[error("sampling rows of {0:?}: the problem has no such output")]
    NoSuchTensor(TensorName),
    /// The tensor has no such row.
    #[error("sampling rows of {tensor:?}: no row (sequence, head, token) = {row:?}; the problem has {limit}")]
    NoSuchRow {
        /// Which tensor.
        tensor: TensorName,
        /// The row that was asked for.
        row: Row,
        /// What there is.
        limit: String,
    },
    /// The answer has the wrong length.
    #[error("comparing rows of {tensor:?}: {actual_bytes} bytes came, {expected_bytes} were expected")]
    WrongLength {
        /// Which tensor.
        tensor: TensorName,
        /// Bytes that came.
        actual_bytes: usize,
        /// Bytes that the rows have.
        expected_bytes: usize,
    },
}

/// Rows of an output: how many there are, how long they are and where they begin.
struct Places {
    heads: usize,
    tokens: Vec<usize>,
    dim: usize,
    rows: Option<Rows>,
    longest: usize,
}

impl Places {
    fn new(problem: &AttentionProblem, tensor: TensorName) -> Option<Places> {
        let known = tensor == TensorName::Lse || tensor == TensorName::O || output_names(problem).contains(&tensor);
        if !known {
            return None;
        }
        let (dk, dv) = (problem.head_dim_qk, problem.head_dim_v);
        let rows = |rows: Rows| Places {
            heads: rows.heads,
            tokens: rows.lengths.clone(),
            dim: rows.dim,
            longest: 0,
            rows: Some(rows),
        };
        let plain = |heads, tokens: Vec<usize>, dim| {
            let longest = tokens.iter().copied().max().unwrap_or(0);
            Places { heads, tokens, dim, longest, rows: None }
        };
        Some(match tensor {
            TensorName::O => rows(Rows::of_queries(problem, dv)),
            TensorName::DQ => rows(Rows::of_queries(problem, dk)),
            TensorName::DK | TensorName::DV => {
                let dim = if tensor == TensorName::DK { dk } else { dv };
                rows(Rows::contiguous(problem.layout, &problem.lengths_kv(), problem.heads_kv, dim))
            }
            TensorName::Lse => plain(problem.heads_q, problem.lengths_q(), 1),
            TensorName::StateOut => plain(problem.heads_kv, vec![dk; problem.batch], dv),
            TensorName::NormaliserOut => plain(problem.heads_kv, vec![1; problem.batch], dk),
            _ => return None,
        })
    }

    fn check(&self, tensor: TensorName, row: Row) -> Result<(), SampleError> {
        let (sequence, head, token) = row;
        let limit = match self.tokens.get(sequence) {
            None => format!("{} sequences", self.tokens.len()),
            Some(_) if head >= self.heads => format!("{} heads", self.heads),
            Some(&tokens) if token >= tokens => format!("{tokens} tokens in sequence {sequence}"),
            Some(_) => return Ok(()),
        };
        Err(SampleError::NoSuchRow { tensor, row, limit })
    }

    fn offset(&self, (sequence, head, token): Row) -> usize {
        match &self.rows {
            Some(rows) => rows.offset(sequence, head, token),
            None => ((sequence * self.heads + head) * self.longest + token) * self.dim,
        }
    }
}

impl SampledRows {
    /// The rows' elements, one row after another, as the tensor holds them in little-endian order: what a worker answers.
    /// Errors where the problem has no such tensor or row; panics where `outputs` lacks one that the problem has.
    pub fn gather(&self, problem: &AttentionProblem, outputs: &TensorSet) -> Result<Vec<u8>, SampleError> {
        let places = Places::new(problem, self.tensor).ok_or(SampleError::NoSuchTensor(self.tensor))?;
        let tensor: &Tensor = outputs.find(self.tensor).ok_or(SampleError::NoSuchTensor(self.tensor))?;
        let element_bytes = tensor.element().bytes();
        let mut bytes = Vec::with_capacity(self.rows.len().saturating_mul(places.dim * element_bytes));
        for &row in &self.rows {
            places.check(self.tensor, row)?;
            let first = places.offset(row) * element_bytes;
            bytes.extend_from_slice(&tensor.bytes()[first..first + places.dim * element_bytes]);
        }
        // Tensors are in the machine's order; the wire is little-endian.
        if cfg!(target_endian = "big") {
            bytes.chunks_exact_mut(element_bytes).for_each(<[u8]>::reverse);
        }
        Ok(bytes)
    }
}

/// Sampled rows and what they should be.
#[derive(Clone, Debug, PartialEq)]
pub struct Expected {
    /// Which rows.
    pub rows: SampledRows,
    /// The tensor's elements.
    pub dtype: Dtype,
    /// The dtype by whose tolerance they are judged.
    pub multiplied_in: Dtype,
    /// Elements a row.
    pub row_elements: usize,
    /// The exact rows, one after another.
    pub reference: Vec<f64>,
    /// The rows with everything rounded that such a kernel cannot but round: see [`RowReference::o_lp`].
    pub reference_lp: Vec<f64>,
    /// [`RowReference::scale`] of each row.
    pub row_scales: Vec<f64>,
}

impl Expected {
    fn new(
        problem: &AttentionProblem,
        multiplied_in: Dtype,
        rows: SampledRows,
        references: Vec<RowReference>,
    ) -> Expected {
        let dtype = match tensor_shape(problem, rows.tensor).0 {
            ElementType::F16 => Dtype::F16,
            ElementType::Bf16 => Dtype::Bf16,
            ElementType::E4m3 => Dtype::E4m3,
            _ => Dtype::F32,
        };
        let row_elements = Places::new(problem, rows.tensor).map_or(0, |places| places.dim);
        let is_lse = rows.tensor == TensorName::Lse;
        let mut expected = Expected {
            rows,
            dtype,
            // A tensor of f32 that a kernel of narrower products writes (a state) is still judged as f32.
            multiplied_in: if dtype == problem.dtype || is_lse { multiplied_in } else { dtype },
            row_elements,
            reference: Vec::with_capacity(references.len() * row_elements),
            reference_lp: Vec::with_capacity(references.len() * row_elements),
            row_scales: Vec::with_capacity(references.len()),
        };
        for row in references {
            if is_lse {
                expected.reference.push(row.lse);
                expected.reference_lp.push(row.lse);
                expected.row_scales.push(0.0);
            } else {
                expected.reference.extend(row.o);
                expected.reference_lp.extend(row.o_lp);
                expected.row_scales.push(row.scale);
            }
        }
        expected
    }

    /// Judges the elements that a worker answered ([`SampledRows::gather`]).
    pub fn judge_bytes(&self, bytes: &[u8]) -> Result<ErrorReport, SampleError> {
        let element_bytes = self.dtype.bytes();
        let expected_bytes = self.reference.len() * element_bytes;
        if bytes.len() != expected_bytes {
            let tensor = self.rows.tensor;
            return Err(SampleError::WrongLength { tensor, actual_bytes: bytes.len(), expected_bytes });
        }
        let actual: Vec<f64> = bytes
            .chunks_exact(element_bytes)
            .map(|element| match self.dtype {
                Dtype::F32 => f64::from(f32::from_le_bytes(element.try_into().expect("four bytes"))),
                Dtype::F16 => half::f16::from_le_bytes(element.try_into().expect("two bytes")).to_f64(),
                Dtype::Bf16 => half::bf16::from_le_bytes(element.try_into().expect("two bytes")).to_f64(),
                Dtype::E4m3 => e4m3::from_bits(element[0]).to_f64(),
            })
            .collect();
        Ok(self.judge(&actual))
    }

    /// Judges elements that are widened already. Panics where their number is wrong.
    pub fn judge(&self, actual: &[f64]) -> ErrorReport {
        if self.rows.tensor == TensorName::Lse {
            return judge_lse(self.multiplied_in, actual, &self.reference, &self.reference_lp);
        }
        let is_gradient = matches!(self.rows.tensor, TensorName::DQ | TensorName::DK | TensorName::DV);
        let reference = Reference { exact: &self.reference, lp: &self.reference_lp, row_scales: &self.row_scales };
        let precision = Precision { multiplied_in: self.multiplied_in, stored_in: self.dtype };
        judge(precision, is_gradient, actual, reference)
    }
}

impl Oracle<'_> {
    /// What rounding inputs and weights alone makes of rows of O, for a kernel that multiplies in a narrower dtype than the problem's.
    fn rounded_rows(&self, rows: &[Row]) -> Option<Vec<RowReference>> {
        let source = Rounded { source: self.source, dtype: self.multiplied_in };
        let is_narrower = self.multiplied_in != self.problem.dtype;
        is_narrower.then(|| Oracle::new(self.problem, &source).multiplied_in(self.multiplied_in).forward_rows(rows))
    }

    /// What every row of a plan should be, in the plan's order. For a plan with
    /// [`SamplePlan::sparse_grad_rows`], the oracle's source must have dO zero but in those rows.
    pub fn expected(&self, plan: &SamplePlan) -> Vec<Expected> {
        let rows_of = |name| -> &[Row] {
            plan.rows.iter().find(|sampled| sampled.tensor == name).map_or(&[], |sampled| &sampled.rows)
        };
        let (dk, dv) = (rows_of(TensorName::DK), rows_of(TensorName::DV));
        // One pass gives both: keys are asked for in the order dK's, then dV's that dK does not have.
        let (mut keys, queries) = (dk.to_vec(), rows_of(TensorName::DQ));
        let dv_is_dk = dk == dv;
        if !dv_is_dk {
            keys.extend(dv);
        }
        let backward = if keys.is_empty() && queries.is_empty() {
            Default::default()
        } else {
            self.backward(plan.sparse_grad_rows.as_deref(), queries, &keys)
        };
        let (o, lse) = (rows_of(TensorName::O), rows_of(TensorName::Lse));
        let (mut forward, rounded) = (self.forward_rows(o), self.rounded_rows(o));
        for (row, rounded) in forward.iter_mut().zip(rounded.iter().flatten()) {
            row.o_lp.clone_from(&rounded.o_lp);
        }
        plan.rows
            .iter()
            .map(|sampled| {
                let references = match sampled.tensor {
                    TensorName::O => forward.clone(),
                    TensorName::Lse if lse == o => forward.clone(),
                    TensorName::Lse => self.forward_rows(lse),
                    TensorName::DQ => backward.dq.clone(),
                    TensorName::DK => backward.dk[..dk.len()].to_vec(),
                    TensorName::DV => backward.dv[backward.dv.len() - dv.len()..].to_vec(),
                    TensorName::StateOut => sampled.rows.iter().map(|&row| self.state_row(row)).collect(),
                    TensorName::NormaliserOut => sampled.rows.iter().map(|&row| self.normaliser_row(row)).collect(),
                    other => unreachable!("{other:?} is no output"),
                };
                let mut expected = Expected::new(self.problem, self.multiplied_in, sampled.clone(), references);
                if sampled.tensor == TensorName::Lse {
                    let rounded = if lse == o { rounded.clone() } else { self.rounded_rows(lse) };
                    rounded.iter().for_each(|rows| expected.reference_lp = rows.iter().map(|row| row.lse).collect());
                }
                expected
            })
            .collect()
    }
}
