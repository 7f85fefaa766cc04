//! The CUDA kernels on a CPU: every plan executed in the host shim and compared with the f64 oracle.

mod bytes;
mod candidates;
mod decode;
mod faults;
mod flash;
mod flash3;
mod flash3_e4m3;
mod flash_bwd;
mod groups;
mod mla;
mod naive;
mod others;
mod problems;
mod sabotage;
mod shim;
mod tiles;

use std::path::Path;

use attn_kernels::cuda::tiles::TILES_SEPARATOR;
use attn_kernels::cuda::{CudaKernel, DeviceFacts};
use attn_kernels::input::{self, Generator, InputSpec};
use attn_kernels::problem::{AttentionProblem, Dtype, Mechanism, Phase};
use attn_kernels::reference::{GeneratedRows, Oracle, SamplePlan};
use attn_kernels::tensor::{Rows, Tensor, TensorName, TensorSet};

/// FLOPs that the oracle may spend on one case.
const ORACLE_FLOPS: f64 = 2e7;
/// The same of a backward one, whose gradients are checked whole: else only few rows of dO would not be zero.
const GRADIENT_FLOPS: f64 = 2e9;

/// A small device, so that decode splits its keys.
const DEVICE: DeviceFacts = DeviceFacts { multiprocessors: 12, ..DeviceFacts::H200 };

/// Computes a problem in the shim on poisoned outputs and compares every output with the oracle.
fn check(kernel: &dyn CudaKernel, problem: &AttentionProblem) {
    if let Err(error) = judge(kernel, problem, &shim::cuda_folder()) {
        panic!("{}: {error}\nin {problem:?}", kernel.name());
    }
}

/// The same with the sources of a folder; the error is the shim's or the oracle's.
fn judge(kernel: &dyn CudaKernel, problem: &AttentionProblem, folder: &Path) -> Result<(), String> {
    judge_on(&DEVICE, kernel, problem, folder)
}

/// The same on another device.
fn judge_on(
    device: &DeviceFacts,
    kernel: &dyn CudaKernel,
    problem: &AttentionProblem,
    folder: &Path,
) -> Result<(), String> {
    problem.validate().map_err(|error| error.to_string())?;
    let plan = kernel.plan(problem, device).map_err(|error| error.to_string())?;
    let known = kernel.modules();
    // Candidates of tiles are compiled where they are measured, not ahead.
    for module in plan.modules.iter().filter(|_| !kernel.name().contains(TILES_SEPARATOR)) {
        assert!(known.contains(module), "{} is no listed module of {}", module.label(), kernel.name());
    }
    let spec = InputSpec::new(problem, 7);
    let source = GeneratedRows::new(problem, &spec, 0);
    let oracle = Oracle::new(problem, &source).multiplied_in(kernel.multiplies_in(problem));
    let is_backward = problem.phase == Phase::Backward;
    let budget_flops = if is_backward { GRADIENT_FLOPS } else { ORACLE_FLOPS };
    let mut samples = SamplePlan::for_problem(problem, &spec, 0, budget_flops);
    assert!(samples.is_whole || !is_backward);
    let mut inputs = Generator::new(problem, &spec, 0).inputs();
    let mut outputs = input::outputs(problem);
    if is_backward {
        add_forward(problem, &oracle, &mut inputs);
    } else if matches!(problem.mechanism, Mechanism::Softmax | Mechanism::Mla { .. }) {
        samples = samples.with_lse();
        let (element, dims) = input::tensor_shape(problem, TensorName::Lse);
        let mut lse = Tensor::zeros(element, &dims);
        lse.poison();
        outputs.insert(TensorName::Lse, lse);
    }
    shim::run(folder, &plan, &inputs, &mut outputs)?;
    assert!(samples.rows.iter().any(|sampled| !sampled.rows.is_empty()));
    for expected in oracle.expected(&samples) {
        let bytes = expected.rows.gather(problem, &outputs).expect("the rows exist");
        let report = expected.judge_bytes(&bytes).expect("as many elements as were asked for");
        if !report.pass {
            return Err(format!("{:?}: {report:?}", expected.rows.tensor));
        }
    }
    Ok(())
}

/// Inputs of a backward problem.
fn prepared(problem: &AttentionProblem) -> TensorSet {
    let spec = InputSpec::new(problem, 7);
    let source = GeneratedRows::new(problem, &spec, 0);
    let mut inputs = Generator::new(problem, &spec, 0).inputs();
    add_forward(problem, &Oracle::new(problem, &source), &mut inputs);
    inputs
}

/// Adds what the backward reads of the forward: the oracle's O, rounded, and LSE.
fn add_forward(problem: &AttentionProblem, oracle: &Oracle<'_>, inputs: &mut TensorSet) {
    let rows = Rows::of_queries(problem, problem.head_dim_v);
    let sequences = 0..problem.batch;
    let asked: Vec<_> = sequences
        .flat_map(|sequence| (0..problem.heads_q).map(move |head| (sequence, head)))
        .flat_map(|(sequence, head)| (0..rows.lengths[sequence]).map(move |query| (sequence, head, query)))
        .collect();
    let [mut o, mut lse] = [TensorName::O, TensorName::Lse].map(|name| {
        let (element, dims) = input::tensor_shape(problem, name);
        let mut tensor = Tensor::zeros(element, &dims);
        tensor.poison();
        tensor
    });
    let (heads, longest) = (problem.heads_q, lse.dims()[2]);
    for (&(sequence, head, query), row) in asked.iter().zip(oracle.forward_rows(&asked)) {
        let first = rows.offset(sequence, head, query);
        for (index, &x) in row.o.iter().enumerate() {
            match problem.dtype {
                Dtype::F16 => o.as_mut_slice()[first + index] = half::f16::from_f64(x),
                _ => o.as_mut_slice()[first + index] = half::bf16::from_f64(x),
            }
        }
        lse.as_mut_slice::<f32>()[(sequence * heads + head) * longest + query] = row.lse as f32;
    }
    inputs.insert(TensorName::O, o);
    inputs.insert(TensorName::Lse, lse);
}
