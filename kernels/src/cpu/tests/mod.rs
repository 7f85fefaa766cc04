//! Kernels against a dense f64 evaluation of the definitions.

mod block_sparse;
mod dense;
mod flash_bwd;
mod linear;
mod linformer;
mod mla;

use crate::input::{self, Generator, InputSpec};
use crate::kernel::{Kernel, PlanContext};
use crate::problem::{AttentionProblem, Dtype};
use crate::tensor::{Rows, Tensor, TensorName, TensorSet};

/// Runs a kernel twice on poisoned outputs and returns the second call's.
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

/// The inputs that seed 7 generates.
fn inputs(problem: &AttentionProblem) -> (InputSpec, TensorSet) {
    let spec = InputSpec::new(problem, 7);
    let inputs = Generator::new(problem, &spec, 0).inputs();
    (spec, inputs)
}

/// Relative L2 bound of a dtype.
fn bound(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F32 => 1e-5,
        Dtype::F16 => 1e-3,
        Dtype::Bf16 => 8e-3,
    }
}

/// Asserts that got and expected agree: relative L2, and the largest error against the largest value.
fn assert_close(what: &str, problem: &AttentionProblem, got: &[f64], expected: &[f64], bound: f64) {
    assert_eq!(got.len(), expected.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let error = norm(&mut got.iter().zip(expected).map(|(a, b)| a - b));
    let size = norm(&mut expected.iter().copied());
    assert!(error <= bound * size + 1e-30, "{what}: relative L2 {:e} of {problem:?}", error / size);
    let largest = expected.iter().fold(0f64, |m, x| m.max(x.abs()));
    let worst = got.iter().zip(expected).fold(0f64, |m, (a, b)| m.max((a - b).abs()));
    assert!(worst <= 4.0 * bound * largest + 1e-30, "{what}: {worst:e} against {largest:e} of {problem:?}");
}

/// The elements of a tensor's rows in (sequence, head, token, dim) order.
fn rows_of(tensor: &Tensor, rows: &Rows) -> Vec<f64> {
    let mut values = Vec::new();
    for (sequence, &length) in rows.lengths.iter().enumerate() {
        for head in 0..rows.heads {
            for token in 0..length {
                let offset = rows.offset(sequence, head, token);
                values.extend((offset..offset + rows.dim).map(|index| tensor.get_f64(index)));
            }
        }
    }
    values
}

/// O, and LSE where `with_lse`, against the dense evaluation, on 1 and 2 threads.
fn check(kernel: &dyn Kernel, problem: &AttentionProblem, with_lse: bool) {
    let (spec, inputs) = inputs(problem);
    let expected = dense::forward(problem, &Generator::new(problem, &spec, 0), &inputs);
    for threads in [1, 2] {
        let mut outputs = input::outputs(problem);
        if with_lse {
            let (element, dims) = input::tensor_shape(problem, TensorName::Lse);
            outputs.insert(TensorName::Lse, Tensor::zeros(element, &dims));
        }
        run(kernel, problem, &inputs, &mut outputs, threads);
        let rows = Rows::of_queries(problem, problem.head_dim_v);
        let got = rows_of(outputs.get(TensorName::O), &rows);
        assert_close("O", problem, &got, &expected.o, bound(problem.dtype));
        if with_lse {
            let lse = outputs.get(TensorName::Lse);
            let longest = rows.lengths.iter().copied().max().unwrap_or(0);
            let mut expected = expected.lse.iter();
            for (sequence, &length) in rows.lengths.iter().enumerate() {
                for head in 0..rows.heads {
                    for token in 0..length {
                        let got = lse.get_f64((sequence * rows.heads + head) * longest + token);
                        let expected = *expected.next().expect("an LSE a row");
                        assert!(
                            got == expected || (got - expected).abs() < 1e-4,
                            "LSE {got} instead of {expected} of {problem:?}"
                        );
                    }
                }
            }
        }
    }
}
