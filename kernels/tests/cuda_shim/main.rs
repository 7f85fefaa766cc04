//! The CUDA kernels on a CPU: every plan executed in the host shim and compared with the f64 oracle.

mod decode;
mod faults;
mod flash;
mod naive;
mod others;
mod shim;

use attn_kernels::cuda::{CudaKernel, DeviceFacts};
use attn_kernels::input::{self, Generator, InputSpec};
use attn_kernels::problem::AttentionProblem;
use attn_kernels::reference::{GeneratedRows, Oracle, SamplePlan};
use attn_kernels::tensor::{Tensor, TensorName};

/// FLOPs that the oracle may spend on one case.
const ORACLE_FLOPS: f64 = 2e7;

/// A small device, so that decode splits its keys.
const DEVICE: DeviceFacts = DeviceFacts { multiprocessors: 12, ..DeviceFacts::H200 };

/// Computes a problem in the shim on poisoned outputs and compares every output with the oracle.
fn check(kernel: &dyn CudaKernel, problem: &AttentionProblem) {
    problem.validate().unwrap_or_else(|error| panic!("{problem:?}: {error}"));
    kernel.supports(problem).unwrap_or_else(|error| panic!("{}: {error}: {problem:?}", kernel.name()));
    let plan = kernel.plan(problem, &DEVICE).unwrap_or_else(|error| panic!("{}: {error}: {problem:?}", kernel.name()));
    let known = kernel.modules();
    for module in &plan.modules {
        assert!(known.contains(module), "{} is no listed module of {}", module.label(), kernel.name());
    }
    let spec = InputSpec::new(problem, 7);
    let source = GeneratedRows::new(problem, &spec, 0);
    let oracle = Oracle::new(problem, &source);
    let mut samples = SamplePlan::for_problem(problem, &spec, 0, ORACLE_FLOPS);
    let inputs = Generator::new(problem, &spec, 0).inputs();
    let mut outputs = input::outputs(problem);
    let has_lse = problem.mechanism.name() == "softmax" || problem.mechanism.name() == "mla";
    if has_lse {
        samples = samples.with_lse();
        let (element, dims) = input::tensor_shape(problem, TensorName::Lse);
        let mut lse = Tensor::zeros(element, &dims);
        lse.poison();
        outputs.insert(TensorName::Lse, lse);
    }
    shim::run(&plan, &inputs, &mut outputs).unwrap_or_else(|error| panic!("{error}\nin {problem:?}"));
    assert!(samples.rows.iter().any(|sampled| !sampled.rows.is_empty()));
    for expected in oracle.expected(&samples) {
        let bytes = expected.rows.gather(problem, &outputs).expect("the rows exist");
        let report = expected.judge_bytes(&bytes).expect("as many elements as were asked for");
        assert!(report.pass, "{} {:?}: {report:?} of {problem:?}", kernel.name(), expected.rows.tensor);
    }
}
