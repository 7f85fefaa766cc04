//! `flash` and `flash1`: lengths, masks, head dimensions, layouts.

use attn_kernels::cuda::{self, CudaKernel};
use attn_kernels::cuda::flash::Flash;
use attn_kernels::cuda::flash1::Flash1;
use attn_kernels::problem::{AttentionProblem, Bias, CausalAlignment, Dtype, Layout, Lengths, Pattern, Phase};

use super::check;

fn problem(dtype: Dtype, heads: (usize, usize), lengths: (usize, usize), dim: usize) -> AttentionProblem {
    AttentionProblem::softmax(Phase::Prefill, dtype, 1, heads, lengths, dim)
}

/// FlashAttention's own list as far as it is quick, and the smallest lengths.
const LENGTHS: [(usize, usize); 14] = [
    (1, 1),
    (1, 33),
    (64, 128),
    (128, 192),
    (239, 1),
    (300, 3),
    (113, 203),
    (113, 128),
    (128, 217),
    (113, 211),
    (108, 256),
    (256, 100),
    (129, 127),
    (257, 258),
];

fn irregular_lengths(kernel: &dyn CudaKernel) {
    for (index, lengths) in LENGTHS.into_iter().enumerate() {
        for causal in [false, true] {
            let dtype = [Dtype::Bf16, Dtype::F16][index % 2];
            let mut problem = problem(dtype, [(1, 1), (2, 1)][index / 2 % 2], lengths, 64);
            problem.causal = causal;
            problem.causal_alignment = [CausalAlignment::BottomRight, CausalAlignment::TopLeft][index / 3 % 2];
            problem.layout = [Layout::Bshd, Layout::Bhsd, Layout::Thd][index % 3];
            check(kernel, &problem);
        }
    }
}

#[test]
fn flash_of_irregular_lengths() {
    irregular_lengths(&Flash);
}

/// Those that some class of problems takes are compiled by the other tests.
#[test]
fn tiles_that_are_not_taken() {
    for tiles in ["rows64-keys32-warps4", "rows64-keys64-warps4", "rows64-keys128-warps4", "rows128-keys128-warps8"] {
        let kernel = cuda::find(&format!("flash+{tiles}")).expect("a candidate");
        let mut problem = problem(Dtype::Bf16, (2, 1), (150, 203), 64);
        problem.causal = true;
        check(kernel, &problem);
    }
}

#[test]
fn flash1_of_irregular_lengths() {
    irregular_lengths(&Flash1);
}

#[test]
fn windows() {
    for (index, (left, right)) in
        [(0, 0), (15, 0), (64, 64), (100, 3), (usize::MAX, 5), (7, usize::MAX)].into_iter().enumerate()
    {
        for (len_q, len_kv) in [(150, 150), (70, 300), (200, 65)] {
            let mut problem = problem(Dtype::F16, (1, 1), (len_q, len_kv), 64);
            problem.pattern = Pattern::Window { left, right };
            problem.causal = index % 3 == 1;
            problem.causal_alignment = [CausalAlignment::BottomRight, CausalAlignment::TopLeft][index % 2];
            check(&Flash, &problem);
            if len_q == 70 {
                check(&Flash1, &problem);
            }
        }
    }
}

/// Every compiled width, and widths that fill one in part.
#[test]
fn head_dimensions() {
    let dims = [
        (64, 64),
        (96, 96),
        (128, 128),
        (192, 128),
        (192, 192),
        (256, 256),
        (40, 72),
        (8, 8),
        (104, 128),
        (200, 24),
        (1, 1),
        (7, 20),
        (65, 33),
        (80, 3),
        (255, 249),
    ];
    for (index, (dim_qk, dim_v)) in dims.into_iter().enumerate() {
        let mut problem = problem([Dtype::Bf16, Dtype::F16][index % 2], (1, 1), (70, 150), dim_qk);
        problem.head_dim_v = dim_v;
        problem.causal = true;
        check(&Flash, &problem);
        if matches!(dim_qk, 96 | 128) {
            // A softcap changes the tiles of these.
            check(&Flash, &AttentionProblem { softcap: Some(20.0), ..problem.clone() });
        }
        if matches!(dim_v, 72 | 256) {
            check(&Flash1, &problem);
        }
    }
}

#[test]
fn shared_heads_ragged_batches_and_softcap() {
    for (index, heads) in [(4, 2), (3, 1), (2, 2)].into_iter().enumerate() {
        for layout in [Layout::Bshd, Layout::Bhsd, Layout::Thd] {
            let mut problem = problem(Dtype::Bf16, heads, (0, 0), 64);
            problem.batch = 4;
            problem.layout = layout;
            problem.causal = index != 1;
            problem.softcap = (index == 2).then_some(3.0);
            problem.scale = (index == 1).then_some(0.25);
            problem.seqlen_q = Lengths::List(vec![70, 1, 129, 5]);
            problem.seqlen_kv = Lengths::List(vec![70, 200, 65, 0]);
            check(&Flash, &problem);
            if layout == Layout::Thd {
                check(&Flash1, &problem);
            }
        }
    }
}

/// Every bias with and without what else changes scores, over lengths that no tile divides.
#[test]
fn biases_sinks_and_scales_of_either_sign() {
    for (index, bias) in Bias::ALL.into_iter().enumerate() {
        for sinks in [false, true] {
            let mut problem = problem([Dtype::Bf16, Dtype::F16][index % 2], (4, 2), (0, 0), 64);
            problem.batch = 3;
            problem.causal = bias == Bias::Alibi;
            problem.bias = bias;
            problem.sinks = sinks;
            problem.softcap = sinks.then_some(4.0);
            problem.scale = [None, Some(-0.2)][index % 2];
            problem.seqlen_q = Lengths::List(vec![70, 1, 133]);
            problem.seqlen_kv = Lengths::List(vec![70, 0, 90]);
            check(&Flash, &problem);
        }
    }
    // The tiles of every width, and a window whose first keys the bias favours.
    for (dim, dim_v) in [(96, 96), (128, 128), (192, 128), (256, 256)] {
        let mut problem = problem(Dtype::Bf16, (3, 1), (70, 150), dim);
        problem.head_dim_v = dim_v;
        problem.bias = Bias::Alibi;
        problem.causal_alignment = CausalAlignment::TopLeft;
        problem.pattern = Pattern::Window { left: 40, right: 9 };
        check(&Flash, &problem);
    }
}
