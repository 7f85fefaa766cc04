//! `naive`: all dtypes, patterns, biases and sinks.

use attn_kernels::cuda::naive::Naive;
use attn_kernels::problem::{AttentionProblem, Bias, CausalAlignment, Dtype, Layout, Lengths, Pattern, Phase};

use super::check;

fn problem(dtype: Dtype, heads: (usize, usize), lengths: (usize, usize), dim: usize) -> AttentionProblem {
    AttentionProblem::softmax(Phase::Prefill, dtype, 1, heads, lengths, dim)
}

#[test]
fn lengths_dtypes_and_masks() {
    for (index, lengths) in [(1, 1), (1, 70), (65, 3), (67, 130), (100, 40)].into_iter().enumerate() {
        for dtype in Dtype::ALL {
            for causal in [false, true] {
                let mut problem = problem(dtype, (2, 1), lengths, [20, 64, 7, 65, 1][index]);
                problem.causal = causal;
                problem.causal_alignment = [CausalAlignment::BottomRight, CausalAlignment::TopLeft][index % 2];
                problem.layout = [Layout::Bshd, Layout::Bhsd, Layout::Thd][index % 3];
                check(&Naive, &problem);
            }
        }
    }
}

#[test]
fn patterns() {
    let patterns = [
        Pattern::Window { left: 10, right: 3 },
        Pattern::Dilated { window: 5, step: 7 },
        Pattern::Longformer { window: 4, global: 3, dilation: 2 },
        Pattern::Strided { stride: 9 },
        Pattern::Fixed { block: 16, summary: 3 },
    ];
    for pattern in patterns {
        for lengths in [(90, 90), (40, 100), (100, 40)] {
            let mut problem = problem(Dtype::F32, (1, 1), lengths, 16);
            problem.pattern = pattern;
            check(&Naive, &problem.clone().normalise());
            problem.causal = true;
            check(&Naive, &problem);
        }
    }
}

/// Blocks are drawn a head, and a sequence's are its own unless another has the same lengths.
#[test]
fn bigbird() {
    let bigbird = |random| Pattern::Bigbird { block: 8, window: 3, global: 2, random, seed: 5 };
    for (index, lengths) in [(90, 90), (40, 300), (100, 40), (3, 1), (1, 77)].into_iter().enumerate() {
        for causal in [false, true] {
            let mut problem = problem(Dtype::ALL[index % 3], (4, 2), lengths, 16);
            problem.pattern = bigbird(3 * (index % 2));
            problem.causal = causal;
            problem.causal_alignment = [CausalAlignment::BottomRight, CausalAlignment::TopLeft][index % 2];
            check(&Naive, &problem);
        }
    }
    let mut ragged = problem(Dtype::F16, (2, 2), (0, 0), 16);
    ragged.batch = 4;
    ragged.pattern = bigbird(2);
    ragged.seqlen_q = Lengths::List(vec![70, 1, 70, 33]);
    ragged.seqlen_kv = Lengths::List(vec![70, 0, 70, 190]);
    check(&Naive, &ragged);
}

#[test]
fn biases_sinks_softcap_and_ragged_batches() {
    for bias in Bias::ALL {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let mut problem = problem(dtype, (4, 2), (0, 0), 24);
            problem.batch = 3;
            problem.causal = bias == Bias::Alibi;
            problem.bias = bias;
            problem.sinks = bias != Bias::Bool;
            problem.softcap = (bias == Bias::None).then_some(4.0);
            problem.seqlen_q = Lengths::List(vec![70, 1, 33]);
            problem.seqlen_kv = Lengths::List(vec![70, 0, 90]);
            check(&Naive, &problem);
        }
    }
    // A scale may turn the order of scores around.
    let mut turned = problem(Dtype::F32, (1, 1), (30, 30), 16);
    turned.scale = Some(-0.5);
    check(&Naive, &turned);
}
