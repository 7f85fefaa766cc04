//! `flash3`: lengths, masks, head dimensions, layouts, packed heads.

use attn_kernels::cuda::CudaKernel;
use attn_kernels::cuda::flash3::Flash3;
use attn_kernels::input::{self, Generator, InputSpec};
use attn_kernels::problem::{AttentionProblem, CausalAlignment, Dtype, Layout, Lengths, Pattern, Phase};
use attn_kernels::tensor::TensorName;

use super::flash::{irregular_lengths, problem};
use super::{DEVICE, check, shim};

#[test]
fn irregular() {
    irregular_lengths(&Flash3);
}

#[test]
fn windows() {
    windows_of(&Flash3);
}

pub(crate) fn windows_of(kernel: &dyn CudaKernel) {
    for (index, (left, right)) in
        [(0, 0), (15, 0), (64, 64), (200, 3), (usize::MAX, 5), (7, usize::MAX)].into_iter().enumerate()
    {
        let (len_q, len_kv) = [(400, 400), (70, 300), (200, 65)][index % 3];
        let mut problem = problem(Dtype::F16, (1, 1), (len_q, len_kv), 64);
        problem.pattern = Pattern::Window { left, right };
        problem.causal = index % 3 == 1;
        problem.causal_alignment = [CausalAlignment::BottomRight, CausalAlignment::TopLeft][index % 2];
        check(kernel, &problem);
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
    for (index, heads) in [(4, 2), (3, 1), (2, 2)].into_iter().enumerate() {
        for layout in [Layout::Bshd, Layout::Bhsd, Layout::Thd] {
            let mut problem = problem(Dtype::Bf16, heads, (0, 0), 64);
            problem.batch = 4;
            problem.layout = layout;
            problem.causal = index != 1;
            problem.sinks = index != 0;
            problem.softcap = (index == 2).then_some(3.0);
            problem.scale = (index == 1).then_some(scale);
            problem.seqlen_q = Lengths::List(vec![70, 1, 129, 5]);
            problem.seqlen_kv = Lengths::List(vec![70, 200, 65, 0]);
            check(kernel, &problem);
        }
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
