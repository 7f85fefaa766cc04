//! `flash`: lengths, masks, head dimensions, layouts.

use attn_kernels::cuda::flash::Flash;
use attn_kernels::problem::{AttentionProblem, CausalAlignment, Dtype, Layout, Lengths, Pattern, Phase};

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

#[test]
fn irregular_lengths_full_and_causal() {
    for (index, lengths) in LENGTHS.into_iter().enumerate() {
        for causal in [false, true] {
            let dtype = [Dtype::Bf16, Dtype::F16][index % 2];
            let mut problem = problem(dtype, [(1, 1), (2, 1)][index / 2 % 2], lengths, 64);
            problem.causal = causal;
            problem.causal_alignment = [CausalAlignment::BottomRight, CausalAlignment::TopLeft][index / 3 % 2];
            problem.layout = [Layout::Bshd, Layout::Bhsd, Layout::Thd][index % 3];
            check(&Flash, &problem);
        }
    }
}
