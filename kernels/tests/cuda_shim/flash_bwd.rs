//! The backward of `flash` and of `flash3`: lengths, masks, head dimensions, layouts, magnitudes, and equal bits where they are asked for.

use attn_kernels::cuda::CudaKernel;
use attn_kernels::cuda::flash::Flash;
use attn_kernels::cuda::flash3::Flash3;
use attn_kernels::input;
use attn_kernels::problem::{AttentionProblem, CausalAlignment, Dtype, Layout, Lengths, Phase};
use attn_kernels::tensor::{TensorName, TensorSet};

use super::flash::LENGTHS;
use super::{check, prepared, problems, shim};

fn problem(dtype: Dtype, heads: (usize, usize), lengths: (usize, usize), dim: usize) -> AttentionProblem {
    AttentionProblem::softmax(Phase::Backward, dtype, 1, heads, lengths, dim)
}

const BOTH: [&dyn CudaKernel; 2] = [&Flash, &Flash3];

#[test]
fn irregular_lengths_of_flash() {
    irregular_lengths(&Flash);
}

#[test]
fn irregular_lengths_of_flash3() {
    irregular_lengths(&Flash3);
}

fn irregular_lengths(kernel: &dyn CudaKernel) {
    for (index, lengths) in LENGTHS.into_iter().enumerate() {
        for causal in [false, true] {
            let dtype = [Dtype::Bf16, Dtype::F16][index % 2];
            let mut problem = problem(dtype, [(1, 1), (2, 1)][index / 2 % 2], lengths, 64);
            problem.causal = causal;
            problem.causal_alignment = [CausalAlignment::BottomRight, CausalAlignment::TopLeft][index / 3 % 2];
            problem.layout = [Layout::Bshd, Layout::Bhsd, Layout::Thd][index % 3];
            problem.deterministic = causal == (index % 2 == 0);
            check(kernel, &problem);
        }
    }
}

/// Both ways to sum dQ, in every kernel that has the problem.
fn check_both(problem: &AttentionProblem) {
    for kernel in BOTH.into_iter().filter(|kernel| kernel.supports(problem).is_ok()) {
        check(kernel, problem);
        check(kernel, &AttentionProblem { deterministic: true, ..problem.clone() });
    }
}

#[test]
fn windows() {
    for problem in problems::windows(Phase::Backward, Dtype::Bf16, &[(150, 150), (70, 300), (200, 65)]) {
        check_both(&problem);
    }
}

/// Every compiled width that is not used elsewhere, and widths that fill one in part; odd ones take the general variant.
#[test]
fn head_dimensions() {
    let dims = [
        (96, 96),
        (40, 72),
        (128, 128),
        (104, 128),
        (192, 128),
        (192, 192),
        (256, 256),
        (200, 24),
        (1, 1),
        (7, 20),
        (65, 33),
    ];
    for (dim_qk, dim_v) in dims {
        let dtype = if dim_v == 128 { Dtype::F16 } else { Dtype::Bf16 };
        let mut problem = problem(dtype, (2, 1), (70, 150), dim_qk);
        problem.head_dim_v = dim_v;
        problem.causal = true;
        problem.softcap = (dim_qk == 7).then_some(5.0);
        check_both(&problem);
    }
}

#[test]
fn shared_heads_ragged_batches_and_softcap() {
    for mut problem in problems::ragged(Phase::Backward, &[Layout::Bshd, Layout::Thd], [64, 128, 96]) {
        if problem.heads_q == 3 {
            (problem.softcap, problem.scale) = (Some(3.0), Some(-0.25));
        }
        check_both(&problem);
    }
}

/// A sequence without keys, and queries of which most see nothing.
#[test]
fn nothing_is_seen() {
    let mut problem = problem(Dtype::F16, (2, 1), (200, 1), 128);
    problem.causal = true;
    check_both(&problem);
    problem.batch = 2;
    problem.seqlen_q = Lengths::List(vec![3, 65]);
    problem.seqlen_kv = Lengths::List(vec![0, 7]);
    check_both(&problem);
}

/// Rows whose weight is nearly all on one key, and log-sum-exps of which 2^x would overflow.
#[test]
fn large_scores() {
    for (scale, softcap) in [(1.0, None), (-1.0, None), (1.0, Some(50.0)), (100.0, None)] {
        let mut problem = problem(Dtype::Bf16, (1, 1), (100, 140), 64);
        (problem.scale, problem.softcap) = (Some(scale), softcap);
        check_both(&problem);
    }
}

#[test]
fn flash3_says_what_it_leaves_to_flash() {
    let narrow = problem(Dtype::Bf16, (1, 1), (64, 64), 64);
    for (problem, reason) in [
        (AttentionProblem { head_dim_qk: 192, ..narrow.clone() }, "192:64"),
        (AttentionProblem { softcap: Some(3.0), ..narrow.clone() }, "a softcap"),
        (AttentionProblem { head_dim_v: 33, ..narrow.clone() }, "no multiples of 8"),
        (AttentionProblem { sinks: true, ..narrow }, "sinks"),
    ] {
        let error = Flash3.supports(&problem).expect_err(reason).to_string();
        assert!(error.contains(reason), "{error}");
    }
}

/// The gradients of a problem, with blocks in one order or the other.
fn gradients(kernel: &dyn CudaKernel, problem: &AttentionProblem, is_reversed: bool) -> TensorSet {
    let plan = kernel.plan(problem, &super::DEVICE).expect("it is supported");
    let inputs = prepared(problem);
    let mut outputs = input::outputs(problem);
    let mut run = || shim::run(&shim::cuda_folder(), &plan, &inputs, &mut outputs);
    let done = if is_reversed { shim::with_blocks_reversed(run) } else { run() };
    done.expect("sound");
    outputs
}

/// Whatever order blocks run in, deterministic gradients have the same bits. Without it dQ has not: the test would notice.
#[test]
fn deterministic_gradients_do_not_depend_on_the_order_of_blocks() {
    for (number, (deterministic, dim)) in
        [(false, 64), (true, 64), (true, 128), (true, 64), (false, 64)].into_iter().enumerate()
    {
        let kernel = BOTH[number / 3];
        let mut problem = problem(Dtype::F16, (4, 2), (150, 700), dim);
        problem.deterministic = deterministic;
        let [forward, backward] = [false, true].map(|is_reversed| gradients(kernel, &problem, is_reversed));
        for name in [TensorName::DQ, TensorName::DK, TensorName::DV] {
            let is_equal = forward.get(name).bytes() == backward.get(name).bytes();
            assert_eq!(is_equal, deterministic || name != TensorName::DQ, "{name:?} of {problem:?}");
        }
    }
}
