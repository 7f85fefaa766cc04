use super::check;
use crate::cpu::linear::Linear;
use crate::problem::{AttentionProblem, CausalAlignment, Dtype, FeatureMap, Layout, Lengths, Mechanism, Phase};

fn problem(phase: Phase, heads: (usize, usize), lengths: (usize, usize), dims: (usize, usize)) -> AttentionProblem {
    AttentionProblem {
        mechanism: Mechanism::LINEAR,
        head_dim_v: dims.1,
        ..AttentionProblem::softmax(phase, Dtype::F32, 2, heads, lengths, dims.0)
    }
}

const LENGTHS: [usize; 8] = [1, 17, 63, 64, 65, 127, 200, 333];

#[test]
fn prefill_agrees_with_the_quadratic_form() {
    for (index, length) in LENGTHS.into_iter().enumerate() {
        for causal in [false, true] {
            for dtype in Dtype::ALL {
                let mut problem =
                    problem(Phase::Prefill, [(4, 2), (3, 3), (4, 1)][index % 3], (length, length), (24, 17));
                problem.causal = causal;
                problem.dtype = dtype;
                problem.dtype_kv = if index % 2 == 0 { dtype } else { Dtype::Bf16 };
                problem.layout = [Layout::Bshd, Layout::Bhsd, Layout::Thd][index % 3];
                check(|isa| Linear { isa }, &problem, false);
            }
        }
    }
}

#[test]
fn every_feature_map_and_scaling() {
    for feature_map in FeatureMap::ALL {
        for normalised in [true, false] {
            // Identity features give denominators of any sign and size, for which no bound holds.
            if normalised && feature_map == FeatureMap::Identity {
                continue;
            }
            let mut problem = problem(Phase::Prefill, (2, 1), (150, 150), (33, 16));
            problem.mechanism = Mechanism::Linear { feature_map, normalised };
            problem.causal = true;
            check(|isa| Linear { isa }, &problem, false);
        }
    }
}

#[test]
fn queries_and_keys_of_different_lengths() {
    for (len_q, len_kv) in [(1, 200), (70, 333), (200, 65), (65, 1), (5, 0), (130, 131)] {
        for alignment in [CausalAlignment::BottomRight, CausalAlignment::TopLeft] {
            for causal in [false, true] {
                for batch in [1, 3] {
                    let mut problem = problem(Phase::Prefill, (2, 1), (len_q, len_kv), (16, 32));
                    problem.batch = batch;
                    problem.causal = causal;
                    problem.causal_alignment = alignment;
                    check(|isa| Linear { isa }, &problem, false);
                }
            }
        }
    }
}

#[test]
fn ragged_batches() {
    for layout in [Layout::Bshd, Layout::Thd] {
        for causal in [false, true] {
            let mut problem = problem(Phase::Prefill, (4, 2), (0, 0), (8, 12));
            problem.batch = 3;
            problem.causal = causal;
            problem.layout = layout;
            problem.seqlen_q = Lengths::List(vec![130, 1, 64]);
            problem.seqlen_kv = Lengths::List(vec![130, 5, 200]);
            check(|isa| Linear { isa }, &problem, false);
        }
    }
}

/// The state of a long causal sequence does not drift: its last rows are as exact as its first.
#[test]
fn long_sequences_do_not_drift() {
    for causal in [true, false] {
        let mut problem = problem(Phase::Prefill, (1, 1), (20_000, 20_000), (16, 16));
        problem.batch = 1;
        problem.causal = causal;
        check(|isa| Linear { isa }, &problem, false);
    }
}

#[test]
fn decode_agrees_with_the_recurrence() {
    for (index, (len_q, heads, dims)) in
        [(1, (4, 2), (24, 17)), (1, (1, 1), (16, 100)), (5, (4, 1), (33, 64)), (1, (6, 6), (1, 1))]
            .into_iter()
            .enumerate()
    {
        for feature_map in [FeatureMap::Elu1, FeatureMap::Relu] {
            for normalised in [true, false] {
                for dtype in Dtype::ALL {
                    let mut problem = problem(Phase::Decode, heads, (len_q, 1000), dims);
                    problem.batch = 1 + index % 3;
                    problem.mechanism = Mechanism::Linear { feature_map, normalised };
                    (problem.dtype, problem.dtype_kv) = (dtype, dtype);
                    if index == 2 {
                        problem.seqlen_q = Lengths::List((0..problem.batch).map(|sequence| 5 - 2 * sequence).collect());
                    }
                    check(|isa| Linear { isa }, &problem, false);
                }
            }
        }
    }
}
