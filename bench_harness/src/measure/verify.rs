//! Outputs of poisoned calls against the f64 oracle, whose work is done once for each (problem, set) of a run.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use attn_kernels::input::InputSpec;
use attn_kernels::problem::Dtype;
use attn_kernels::reference::{Expected, GeneratedRows, Oracle, SamplePlan};
use attn_kernels::tensor::TensorName;
use attn_kernels::tolerance::ErrorReport;

use crate::suite::PlannedCase;
use crate::worker::client::{Failure, Worker};
use crate::worker::protocol::{ErrorKind, Request, WorkerError, Written};

/// What the comparison of a call came to.
pub struct Verified {
    /// Tensor, rows that were compared, and the figures.
    pub reports: Vec<(TensorName, usize, ErrorReport)>,
    /// The worker's findings.
    pub flags: Vec<String>,
}

/// The oracle's answers of a run.
pub struct Verifier {
    seed: u64,
    outputs_path: PathBuf,
    expected: HashMap<(String, u64, Dtype), Arc<Vec<Expected>>>,
}

impl Verifier {
    /// A verifier of inputs under `seed`, which has workers write outputs into the private folder `scratch`. Verifiers that
    /// work at the same time have different numbers.
    pub fn new(seed: u64, scratch: &Path, number: usize) -> Self {
        Verifier { seed, outputs_path: scratch.join(format!("outputs-{number}.bin")), expected: HashMap::new() }
    }

    /// Seed of all inputs.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// How the inputs of a case are generated: what a worker must be told. `verified_sets` are those whose outputs will be
    /// compared: a large gradient is compared on a set whose dO is zero but in sampled rows.
    pub fn input_spec(&self, planned: &PlannedCase, verified_sets: &[u64]) -> InputSpec {
        let problem = &planned.case.problem;
        let mut spec = InputSpec::new(problem, self.seed);
        for &set in verified_sets {
            let plan = SamplePlan::for_problem(problem, &spec, set, planned.settings.oracle_flops as f64);
            spec.sparse_grads.extend(plan.sparse_grad(set));
        }
        spec
    }

    /// Compares the outputs of the worker's last poisoned call, which used input set `set`, with the oracle.
    pub fn verify(
        &mut self,
        worker: &mut Worker,
        planned: &PlannedCase,
        set: u64,
        timeout: Duration,
    ) -> Result<Verified, Failure> {
        let expected = self.expected(planned, set);
        let rows = expected.iter().map(|expected| expected.rows.clone()).collect();
        let path = self.outputs_path.to_string_lossy().into_owned();
        let written: Written = worker.ask(Request::Outputs { rows, path }, timeout)?;
        let internal = |message: String| Failure::from(WorkerError::new(ErrorKind::Internal, message));
        let bytes = std::fs::read(&self.outputs_path)
            .map_err(|error| internal(format!("reading outputs from `{}`: {error}", self.outputs_path.display())))?;
        let _ = std::fs::remove_file(&self.outputs_path);
        let mut left = &bytes[..];
        let mut reports = Vec::new();
        for (index, tensor) in expected.iter().enumerate() {
            // The last tensor gets whatever is left, so that a file of the wrong length is an error and not ignored.
            let is_last = index + 1 == expected.len();
            let length = tensor.reference.len() * tensor.dtype.bytes();
            let (own, rest) = left.split_at(if is_last { left.len() } else { length.min(left.len()) });
            left = rest;
            let report = tensor.judge_bytes(own).map_err(|error| internal(error.to_string()))?;
            reports.push((tensor.rows.tensor, tensor.rows.rows.len(), report));
        }
        Ok(Verified { reports, flags: written.flags })
    }

    fn expected(&mut self, planned: &PlannedCase, set: u64) -> Arc<Vec<Expected>> {
        let key = (planned.case.problem.id(), set, planned.case.multiplied_in());
        if let Some(known) = self.expected.get(&key) {
            return Arc::clone(known);
        }
        let spec = self.input_spec(planned, &[set]);
        let expected = Arc::new(expected_outputs(planned, &spec, set));
        self.expected.insert(key, Arc::clone(&expected));
        expected
    }
}

/// What a call of the case on input set `set` must write, in sampled rows.
fn expected_outputs(planned: &PlannedCase, spec: &InputSpec, set: u64) -> Vec<Expected> {
    let problem = &planned.case.problem;
    let plan = SamplePlan::for_problem(problem, spec, set, planned.settings.oracle_flops as f64);
    let source = GeneratedRows::new(problem, spec, set);
    Oracle::new(problem, &source).multiplied_in(planned.case.multiplied_in()).expected(&plan)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::Case;

    #[test]
    fn only_this_binary_s_own_tables_widen_a_tolerance() {
        let multiplied_in = |kernel: &str| {
            let id = format!("{kernel}/softmax/prefill/full/bf16/b1/h2:1/q64/k64/d64");
            id.parse::<Case>().expect("a case id").multiplied_in()
        };
        assert_eq!(multiplied_in("cuda/flash3_e4m3"), Dtype::E4m3);
        // A provider of another name may call its kernel what it likes.
        for kernel in ["cuda/flash3", "cuda/unknown_e4m3", "cpu/flash", "mine/flash3_e4m3", "torch/flash3_e4m3"] {
            assert_eq!(multiplied_in(kernel), Dtype::Bf16, "{kernel}");
        }
    }
}
