//! Every candidate of tiles that a kernel does not take, on a small awkward problem of its class: what is taken, the other tests
//! compute with.

use attn_kernels::cuda::block_sparse::BlockSparse;
use attn_kernels::cuda::flash::Flash;
use attn_kernels::cuda::flash3::Flash3;
use attn_kernels::cuda::linear::Linear;
use attn_kernels::cuda::linformer::Linformer;
use attn_kernels::cuda::mla::Mla;
use attn_kernels::cuda::paged::Paged;
use attn_kernels::cuda::split_kv::SplitKv;
use attn_kernels::cuda::tiles::TILES_SEPARATOR;
use attn_kernels::cuda::{self, CUDA_KERNELS, CudaKernel, DeviceFacts};
use attn_kernels::problem::{
    AttentionProblem, CausalAlignment, Dtype, KvLayout, Layout, Lengths, Mechanism, Pattern, Phase,
};

use super::mla::OLDER;
use super::problems::dense;
use super::{DEVICE, judge_on, shim};

/// Computes with each candidate one of the problems of its class, another one with the next candidate.
fn check_candidates(device: &DeviceFacts, kernel: &dyn CudaKernel, problems: &[AttentionProblem]) {
    let mut number = 0;
    for class in kernel.tile_classes() {
        let is_of_class = |problem: &&AttentionProblem| {
            kernel.supports(problem).is_ok() && kernel.tile_class(problem).is_some_and(|own| own.name == class.name)
        };
        let own: Vec<&AttentionProblem> = problems.iter().filter(is_of_class).collect();
        for tiles in class.others() {
            let name = format!("{}{TILES_SEPARATOR}{tiles}", kernel.name());
            assert!(!own.is_empty(), "{name}: no problem here is of class `{}`", class.name);
            let (candidate, problem) = (cuda::find(&name).expect("a candidate"), own[number % own.len()]);
            number += 1;
            // Boxes of rows are the copy engine's.
            if device.compute_capability < 90 && candidate.plan(problem, device).is_err() {
                continue;
            }
            if let Err(error) = judge_on(device, candidate, problem, &shim::cuda_folder()) {
                panic!("{name} for `{}`: {error}\nin {problem:?}", class.name);
            }
        }
    }
    assert!(number > 0, "{} has candidates", kernel.name());
}

/// Shared heads under a causal mask, a window, a ragged batch with sequences that see nothing, and the other alignment: of these
/// head dimensions.
fn of_dims(phase: Phase, (dim_qk, dim_v): (usize, usize)) -> Vec<AttentionProblem> {
    let mut causal = dense(phase, Dtype::Bf16, (2, 1), (70, 150), dim_qk);
    causal.causal = true;
    let mut window = dense(phase, Dtype::F16, (1, 1), (113, 211), dim_qk);
    window.pattern = Pattern::Window { left: 60, right: 9 };
    window.layout = Layout::Bhsd;
    let mut ragged = dense(phase, Dtype::Bf16, (3, 1), (0, 0), dim_qk);
    (ragged.batch, ragged.layout, ragged.causal) = (4, Layout::Thd, true);
    ragged.seqlen_q = Lengths::List(vec![70, 1, 129, 5]);
    ragged.seqlen_kv = Lengths::List(vec![70, 200, 65, 0]);
    let mut top_left = dense(phase, Dtype::F16, (2, 2), (200, 65), dim_qk);
    (top_left.causal, top_left.causal_alignment) = (true, CausalAlignment::TopLeft);
    let mut all = vec![causal, window, ragged, top_left];
    all.iter_mut().for_each(|problem| problem.head_dim_v = dim_v);
    all
}

const DIMS: [(usize, usize); 6] = [(64, 64), (96, 96), (128, 128), (192, 128), (192, 192), (256, 256)];

/// Those of every width, plain and with a softcap.
fn prefill() -> Vec<AttentionProblem> {
    let plain: Vec<_> = DIMS.into_iter().flat_map(|dims| of_dims(Phase::Prefill, dims)).collect();
    let capped: Vec<_> = plain.iter().map(|plain| AttentionProblem { softcap: Some(5.0), ..plain.clone() }).collect();
    [plain, capped].concat()
}

/// Those of every width, with sums of dQ in any order and in one.
fn backward() -> Vec<AttentionProblem> {
    let any: Vec<_> = DIMS.into_iter().flat_map(|dims| of_dims(Phase::Backward, dims)).collect();
    let one: Vec<_> = any.iter().map(|any| AttentionProblem { deterministic: true, ..any.clone() }).collect();
    [any, one].concat()
}

#[test]
fn of_flash() {
    check_candidates(&DEVICE, &Flash, &[prefill(), backward()].concat());
}

#[test]
fn of_flash3() {
    check_candidates(&DEVICE, &Flash3, &[prefill(), backward()].concat());
}

/// 4, 20 and 40 rows of queries over caches of one length and of several, with keys of two bytes and of one.
fn decode() -> Vec<AttentionProblem> {
    let mut problems = Vec::new();
    for (dims, dtype_kv) in DIMS.into_iter().flat_map(|dims| [(dims, None), (dims, Some(Dtype::E4m3))]) {
        for (heads, len_q) in [((8, 2), 1), ((20, 1), 1), ((10, 1), 4)] {
            let dtype = [Dtype::Bf16, Dtype::F16][problems.len() / 3 % 2];
            let mut problem = dense(Phase::Decode, dtype, heads, (len_q, 333), dims.0);
            (problem.head_dim_v, problem.causal, problem.dtype_kv) = (dims.1, true, dtype_kv.unwrap_or(dtype));
            problems.push(problem.clone());
            problem.batch = 3;
            problem.seqlen_kv = Lengths::List(vec![1100, 3, 129]);
            problem.sinks = dtype == Dtype::F16;
            problems.push(problem.clone());
            problem.pattern = Pattern::Window { left: 300, right: 0 };
            problems.push(problem);
        }
    }
    problems
}

#[test]
fn of_split_kv() {
    check_candidates(&DEVICE, &SplitKv, &decode());
}

#[test]
fn of_paged() {
    let paged = |(index, problem)| AttentionProblem {
        kv_layout: KvLayout::Paged { page_size: [16, 5, 64][index % 3] },
        ..problem
    };
    check_candidates(&DEVICE, &Paged, &decode().into_iter().enumerate().map(paged).collect::<Vec<_>>());
}

#[test]
fn of_mla() {
    let mla = |dtype, heads, lengths, kv_layout| {
        let mut problem = dense(Phase::Decode, dtype, (heads, 1), lengths, 48);
        problem.mechanism = Mechanism::Mla { latent: 32, rope: 16, nope: 24 };
        (problem.head_dim_v, problem.causal, problem.kv_layout) = (32, true, kv_layout);
        problem
    };
    let mut ragged = mla(Dtype::F16, 4, (1, 0), KvLayout::Paged { page_size: 16 });
    ragged.batch = 3;
    ragged.seqlen_kv = Lengths::List(vec![390, 0, 1500]);
    let problems = [
        mla(Dtype::Bf16, 40, (2, 700), KvLayout::Contiguous),
        ragged,
        mla(Dtype::Bf16, 3, (1, 200), KvLayout::Paged { page_size: 64 }),
    ];
    for device in [DEVICE, OLDER] {
        check_candidates(&device, &Mla, &problems);
    }
}

#[test]
fn of_block_sparse() {
    let patterns = [
        Pattern::Window { left: 70, right: 20 },
        Pattern::Longformer { window: 20, global: 5, dilation: 1 },
        Pattern::Bigbird { block: 16, window: 3, global: 2, random: 2, seed: 5 },
        Pattern::Longformer { window: 6, global: 3, dilation: 8 },
        Pattern::Dilated { window: 9, step: 11 },
        Pattern::Fixed { block: 50, summary: 3 },
    ];
    let mut problems = Vec::new();
    for dims in DIMS {
        for (index, pattern) in patterns.into_iter().enumerate() {
            let lengths = [(200, 200), (100, 230), (150, 100)][index % 3];
            let heads = [(2, 1), (4, 1)][index % 2];
            let mut problem = dense(Phase::Prefill, [Dtype::Bf16, Dtype::F16][index % 2], heads, lengths, dims.0);
            (problem.head_dim_v, problem.pattern, problem.causal) = (dims.1, pattern, index == 5);
            problems.push(problem.normalise());
        }
    }
    check_candidates(&DEVICE, &BlockSparse, &problems);
}

#[test]
fn of_linear() {
    let mut problems = Vec::new();
    for dims in [(64, 64), (128, 136), (200, 72)] {
        for (index, lengths) in [(450, 450), (100, 230), (230, 100), (700, 700)].into_iter().enumerate() {
            let dtype = [Dtype::Bf16, Dtype::F16][index % 2];
            let mut problem = dense(Phase::Prefill, dtype, ([2, 1][index % 2], 1), lengths, dims.0);
            (problem.mechanism, problem.head_dim_v) = (Mechanism::LINEAR, dims.1);
            problem.causal = index != 1;
            problem.layout = [Layout::Bshd, Layout::Bhsd, Layout::Thd][index % 3];
            problems.push(problem);
        }
    }
    check_candidates(&DEVICE, &Linear, &problems);
}

#[test]
fn of_linformer() {
    let mut problems = Vec::new();
    for (dims, rank) in [((64, 40), 100), ((64, 64), 250), ((96, 128), 65), ((128, 128), 200), ((192, 128), 300)] {
        for (index, length) in [130, 1100].into_iter().enumerate() {
            let dtype = [Dtype::Bf16, Dtype::F16][index];
            let mut problem = dense(Phase::Prefill, dtype, (2, 1), (length, length), dims.0);
            (problem.mechanism, problem.head_dim_v) = (Mechanism::Linformer { rank }, dims.1);
            problem.batch = 2 - index;
            problems.push(problem);
        }
    }
    check_candidates(&DEVICE, &Linformer, &problems);
}

/// A kernel with a choice has its test above.
#[test]
fn no_kernel_is_left_out() {
    let with_choice =
        |kernel: &&&dyn CudaKernel| kernel.tile_classes().iter().any(|class| class.others().next().is_some());
    let names: Vec<&str> = CUDA_KERNELS.iter().filter(with_choice).map(|kernel| kernel.name()).collect();
    let tested = ["flash", "flash3", "split_kv", "paged", "block_sparse", "linear", "linformer", "mla"];
    assert_eq!(names, tested);
}
