//! Kernels against the f64 oracle.

mod block_sparse;
mod flash_bwd;
mod linear;
mod linformer;
mod mla;

use crate::input::{self, Generator, InputSpec};
use crate::kernel::{Kernel, PlanContext};
use crate::problem::{AttentionProblem, Phase};
use crate::reference::{DEFAULT_BUDGET_FLOPS, GeneratedRows, Oracle, SamplePlan};
use crate::tensor::{Tensor, TensorName, TensorSet};

/// Runs a kernel twice on poisoned outputs; the second call's stay.
fn run(kernel: &dyn Kernel, problem: &AttentionProblem, inputs: &TensorSet, outputs: &mut TensorSet, threads: usize) {
    kernel.supports(problem).unwrap_or_else(|error| panic!("{problem:?}: {error}"));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool of threads");
    let context = PlanContext { problem, static_tensors: inputs, threads, available_bytes: 1 << 32 };
    let mut plan = kernel.plan(&context).expect("a plan");
    for _ in 0..2 {
        outputs.iter_mut().for_each(|(_, tensor)| tensor.poison());
        pool.install(|| plan.run(inputs, outputs));
    }
}

/// Asks for the log-sum-exps too.
fn add_lse(problem: &AttentionProblem, tensors: &mut TensorSet) {
    let (element, dims) = input::tensor_shape(problem, TensorName::Lse);
    tensors.insert(TensorName::Lse, Tensor::zeros(element, &dims));
}

/// The inputs of a problem; for backward with O and LSE as the oracle has them.
fn inputs(problem: &AttentionProblem, spec: &InputSpec, oracle: &Oracle<'_>) -> TensorSet {
    let mut inputs = Generator::new(problem, spec, 0).inputs();
    if problem.phase == Phase::Backward {
        let (element, dims) = input::tensor_shape(problem, TensorName::O);
        inputs.insert(TensorName::O, Tensor::zeros(element, &dims));
        add_lse(problem, &mut inputs);
        let rows_o = crate::tensor::Rows::of_queries(problem, problem.head_dim_v);
        let longest = rows_o.lengths.iter().copied().max().unwrap_or(0);
        let rows: Vec<_> = (0..problem.batch)
            .flat_map(|sequence| (0..problem.heads_q).map(move |head| (sequence, head)))
            .flat_map(|(sequence, head)| (0..rows_o.lengths[sequence]).map(move |query| (sequence, head, query)))
            .collect();
        for (&(sequence, head, query), row) in rows.iter().zip(oracle.forward_rows(&rows)) {
            let o: Vec<f32> = row.o.iter().map(|&x| x as f32).collect();
            let out = super::rows::SharedRows::new(inputs.get_mut(TensorName::O));
            // SAFETY: nothing else reads or writes the tensor.
            unsafe { out.write(rows_o.offset(sequence, head, query), &o, 1.0) };
            let lse = inputs.get_mut(TensorName::Lse).as_mut_slice::<f32>();
            lse[(sequence * problem.heads_q + head) * longest + query] = row.lse as f32;
        }
    }
    inputs
}

/// Every output against the oracle on 1, 2 and 3 threads: whole where that is cheap, else sampled.
fn check(kernel: &dyn Kernel, problem: &AttentionProblem, with_lse: bool) {
    let spec = InputSpec::new(problem, 7);
    let source = GeneratedRows::new(problem, &spec, 0);
    let oracle = Oracle::new(problem, &source);
    let mut plan = SamplePlan::for_problem(problem, &spec, 0, DEFAULT_BUDGET_FLOPS);
    if with_lse {
        plan = plan.with_lse();
    }
    assert!(plan.rows.iter().any(|sampled| !sampled.rows.is_empty()) || problem.lengths_q().iter().sum::<usize>() == 0);
    let expected = oracle.expected(&plan);
    let inputs = inputs(problem, &spec, &oracle);
    for threads in [1, 2, 3] {
        let mut outputs = input::outputs(problem);
        if with_lse {
            add_lse(problem, &mut outputs);
        }
        run(kernel, problem, &inputs, &mut outputs, threads);
        for expected in &expected {
            let bytes = expected.rows.gather(problem, &outputs).expect("the rows exist");
            let report = expected.judge_bytes(&bytes).expect("as many elements as were asked for");
            assert!(report.pass, "{:?} on {threads} threads: {report:?} of {problem:?}", expected.rows.tensor);
        }
    }
}
