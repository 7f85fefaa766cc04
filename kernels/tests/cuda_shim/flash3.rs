//! `flash3`: lengths, masks, head dimensions, layouts, packed heads.

use attn_kernels::cuda::CudaKernel;
use attn_kernels::cuda::flash3::Flash3;
use attn_kernels::input::{self, Generator, InputSpec};
use attn_kernels::problem::{AttentionProblem, Dtype, Layout, Lengths, Phase};
use attn_kernels::tensor::TensorName;

use super::flash::{irregular_lengths, problem};
use super::{DEVICE, check, problems, shim};

#[test]
fn irregular() {
    irregular_lengths(&Flash3);
}

/// Each window over one of the lengths.
#[test]
fn windows() {
    windows_of(&Flash3);
}

pub(crate) fn windows_of(kernel: &dyn CudaKernel) {
    let all = problems::windows(Phase::Prefill, Dtype::F16, &[(400, 400), (70, 300), (200, 65)]);
    for (index, three) in all.chunks(3).enumerate() {
        check(kernel, &three[index % 3]);
    }
}

/// Every compiled width, and widths that fill one in part.
#[test]
fn head_dimensions() {
    head_dimensions_of(&Flash3);
}

pub(crate) fn head_dimensions_of(kernel: &dyn CudaKernel) {
    let dims =
        [(64, 64), (96, 96), (128, 128), (192, 128), (256, 256), (40, 72), (8, 8), (104, 128), (200, 24), (192, 192)];
    for (index, (dim_qk, dim_v)) in dims.into_iter().enumerate() {
        let mut problem = problem([Dtype::Bf16, Dtype::F16][index % 2], (1, 1), (140, 290), dim_qk);
        problem.head_dim_v = dim_v;
        problem.causal = true;
        problem.softcap = (index % 3 == 2).then_some(20.0);
        check(kernel, &problem);
    }
}

#[test]
fn shared_heads_ragged_batches_and_sinks() {
    ragged_batches_of(&Flash3, 0.25);
}

/// One of the batches has this scale.
pub(crate) fn ragged_batches_of(kernel: &dyn CudaKernel, scale: f64) {
    for mut problem in problems::ragged(Phase::Prefill, &[Layout::Bshd, Layout::Bhsd, Layout::Thd], [64; 3]) {
        problem.sinks = problem.heads_q != 4;
        problem.softcap = (problem.heads_q == 2).then_some(3.0);
        problem.scale = problem.scale.map(|_| scale);
        check(kernel, &problem);
    }
}

/// What is not finite in one sequence of a packed batch stays there.
#[test]
fn sequences_do_not_touch_each_other() {
    isolated_sequences_of(&Flash3);
}

pub(crate) fn isolated_sequences_of(kernel: &dyn CudaKernel) {
    let mut problem = problem(Dtype::Bf16, (2, 1), (0, 0), 64);
    problem.batch = 3;
    problem.layout = Layout::Thd;
    problem.causal = true;
    problem.seqlen_q = Lengths::List(vec![150, 140, 90]);
    problem.seqlen_kv = Lengths::List(vec![150, 140, 90]);
    let spec = InputSpec::new(&problem, 7);
    let plan = kernel.plan(&problem, &DEVICE).expect("a plan");
    let outputs = |is_poisoned: bool| {
        let mut inputs = Generator::new(&problem, &spec, 0).inputs();
        for (_, tensor) in inputs.iter_mut().filter(|(name, _)| [TensorName::K, TensorName::V].contains(name)) {
            let nan = [0xc0, 0x7f].repeat(150 * 64);
            if is_poisoned {
                tensor.bytes_mut()[..nan.len()].copy_from_slice(&nan);
            }
        }
        let mut outputs = input::outputs(&problem);
        shim::run(&shim::cuda_folder(), &plan, &inputs, &mut outputs).expect("sound");
        let (_, o) = outputs.iter().next().expect("an output");
        o.bytes()[150 * 2 * 64 * 2..].to_vec()
    };
    assert_eq!(outputs(true), outputs(false));
}

/// Few queries a head, so that tiles pack heads: also groups of which a power of two is only a part.
#[test]
fn packed_heads() {
    packed_heads_of(&Flash3);
}

pub(crate) fn packed_heads_of(kernel: &dyn CudaKernel) {
    for (index, heads) in [(8, 1), (12, 2), (6, 2), (32, 4)].into_iter().enumerate() {
        for phase in [Phase::Decode, Phase::Append] {
            let len_q = if phase == Phase::Decode { 1 } else { 19 };
            let mut problem =
                AttentionProblem::softmax(phase, [Dtype::Bf16, Dtype::F16][index % 2], 2, heads, (len_q, 300), 64);
            problem.causal = true;
            problem.sinks = index == 1;
            problem.layout = [Layout::Bshd, Layout::Bhsd][index % 2];
            check(kernel, &problem);
        }
    }
}

/// More tiles than blocks, so that blocks compute several.
#[test]
fn blocks_stay_for_many_tiles() {
    let mut problem = problem(Dtype::Bf16, (6, 2), (450, 450), 128);
    problem.batch = 2;
    problem.causal = true;
    let plan = Flash3.plan(&problem, &DEVICE).expect("a plan");
    assert_eq!(plan.launches[0].grid, [DEVICE.multiprocessors, 1, 1]);
    check(&Flash3, &problem);
}

/// Scores so large that one key decides, and so small that none does: with the slack in rescaling, and without need of it.
#[test]
fn scores_of_any_magnitude() {
    for (index, scale) in [1e-4, 0.9, 6.0, 40.0].into_iter().enumerate() {
        let mut problem = problem([Dtype::F16, Dtype::Bf16][index % 2], (1, 1), (130, 700), 64);
        problem.scale = Some(scale);
        problem.causal = index % 2 == 1;
        check(&Flash3, &problem);
    }
}
