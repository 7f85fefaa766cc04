use super::check;
use crate::cpu::linformer::Linformer;
use crate::problem::{AttentionProblem, Dtype, Layout, Lengths, Mechanism, Phase};

fn problem(rank: usize, heads: (usize, usize), lengths: (usize, usize), dims: (usize, usize)) -> AttentionProblem {
    AttentionProblem {
        mechanism: Mechanism::Linformer { rank },
        head_dim_v: dims.1,
        ..AttentionProblem::softmax(Phase::Prefill, Dtype::F32, 1, heads, lengths, dims.0)
    }
}

#[test]
fn agrees_with_the_definition() {
    for (index, length) in [1, 17, 63, 64, 65, 127, 200, 333].into_iter().enumerate() {
        for dtype in Dtype::ALL {
            let rank = [1, 8, 33, 64][index % 4];
            let mut problem = problem(rank, [(4, 2), (3, 1), (1, 1)][index % 3], (length, length), (20, 17));
            (problem.dtype, problem.dtype_kv) = (dtype, dtype);
            problem.batch = 1 + index % 2;
            problem.layout = [Layout::Bshd, Layout::Bhsd, Layout::Thd][index % 3];
            check(|isa| Linformer { isa }, &problem, true);
        }
    }
}

#[test]
fn lengths_that_differ_and_ragged_batches() {
    for (len_q, len_kv) in [(1, 100), (100, 1), (65, 130), (3, 0)] {
        check(|isa| Linformer { isa }, &problem(16, (2, 1), (len_q, len_kv), (16, 16)), true);
    }
    for layout in [Layout::Bshd, Layout::Thd] {
        let mut problem = problem(300, (2, 1), (0, 0), (16, 16));
        problem.batch = 3;
        problem.layout = layout;
        problem.seqlen_q = Lengths::List(vec![130, 1, 64]);
        problem.seqlen_kv = Lengths::List(vec![130, 5, 300]);
        check(|isa| Linformer { isa }, &problem, true);
    }
}
