//! The CUDA kernels on a CPU: every plan executed in the host shim and compared with the f64 oracle.

mod decode;
mod faults;
mod flash;
mod naive;
mod others;
mod sabotage;
mod shim;
mod tiles;

use std::path::Path;

use attn_kernels::cuda::tiles::TILES_SEPARATOR;
use attn_kernels::cuda::{CudaKernel, DeviceFacts};
use attn_kernels::input::{self, Generator, InputSpec};
use attn_kernels::problem::{AttentionProblem, Mechanism};
use attn_kernels::reference::{GeneratedRows, Oracle, SamplePlan};
use attn_kernels::tensor::{Tensor, TensorName};

/// FLOPs that the oracle may spend on one case.
const ORACLE_FLOPS: f64 = 2e7;

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
    problem.validate().map_err(|error| error.to_string())?;
    let plan = kernel.plan(problem, &DEVICE).map_err(|error| error.to_string())?;
    let known = kernel.modules();
    // Candidates of tiles are compiled where they are measured, not ahead.
    for module in plan.modules.iter().filter(|_| !kernel.name().contains(TILES_SEPARATOR)) {
        assert!(known.contains(module), "{} is no listed module of {}", module.label(), kernel.name());
    }
    let spec = InputSpec::new(problem, 7);
    let source = GeneratedRows::new(problem, &spec, 0);
    let oracle = Oracle::new(problem, &source);
    let mut samples = SamplePlan::for_problem(problem, &spec, 0, ORACLE_FLOPS);
    let inputs = Generator::new(problem, &spec, 0).inputs();
    let mut outputs = input::outputs(problem);
    if matches!(problem.mechanism, Mechanism::Softmax | Mechanism::Mla { .. }) {
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
