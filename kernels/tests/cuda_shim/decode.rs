//! `split_kv` and `paged`: few queries over long caches, shared heads, pages.

use attn_kernels::cuda::paged::Paged;
use attn_kernels::cuda::split_kv::SplitKv;
use attn_kernels::problem::{
    AttentionProblem, Bias, CausalAlignment, Dtype, KvLayout, Layout, Lengths, Pattern, Phase,
};

use super::check;

fn problem(dtype: Dtype, heads: (usize, usize), lengths: (usize, usize), dim: usize) -> AttentionProblem {
    let mut problem = AttentionProblem::softmax(Phase::Decode, dtype, 1, heads, lengths, dim);
    problem.causal = true;
    problem
}

/// Both kernels, the paged one with two page sizes.
fn check_all(problem: &AttentionProblem) {
    check(&SplitKv, problem);
    for page_size in [16, 5] {
        let kv_layout = KvLayout::Paged { page_size };
        // A page pool has no packed form.
        let layout = if problem.layout == Layout::Thd { Layout::Bshd } else { problem.layout };
        check(&Paged, &AttentionProblem { kv_layout, layout, ..problem.clone() });
    }
}

#[test]
fn contexts_of_all_lengths() {
    for (index, length) in [1, 2, 15, 16, 17, 63, 64, 65, 200, 333, 1000, 2049].into_iter().enumerate() {
        let heads = [(1, 1), (4, 1), (6, 2), (20, 1)][index % 4];
        let mut problem = problem([Dtype::Bf16, Dtype::F16][index % 2], heads, (1 + index % 3, length), 64);
        problem.layout = [Layout::Bshd, Layout::Bhsd][index % 2];
        check_all(&problem);
    }
}

#[test]
fn more_rows_than_a_tile_and_masks() {
    for (index, (len_q, len_kv)) in [(5, 700), (33, 100), (40, 20), (17, 1)].into_iter().enumerate() {
        let mut problem = problem(Dtype::F16, (6, 2), (len_q, len_kv), 64);
        problem.causal_alignment = [CausalAlignment::BottomRight, CausalAlignment::TopLeft][index % 2];
        check_all(&problem);
        problem.pattern = Pattern::Window { left: 30, right: 0 };
        check_all(&problem);
        problem.pattern = Pattern::Window { left: 100, right: 7 };
        problem.causal = false;
        problem.softcap = Some(5.0);
        check_all(&problem);
    }
}

#[test]
fn head_dimensions() {
    for (index, (dim_qk, dim_v)) in [(128, 128), (256, 256), (192, 128), (96, 96), (40, 72)].into_iter().enumerate() {
        let mut problem = problem([Dtype::Bf16, Dtype::F16][index % 2], (4, 2), (1, 700), dim_qk);
        problem.head_dim_v = dim_v;
        check_all(&problem);
    }
}

#[test]
fn ragged_batches() {
    let mut problem = problem(Dtype::Bf16, (4, 2), (1, 0), 64);
    problem.batch = 4;
    problem.seqlen_kv = Lengths::List(vec![700, 1, 0, 300]);
    check_all(&problem);
    problem.seqlen_q = Lengths::List(vec![9, 3, 2, 1]);
    check_all(&problem);
    problem.layout = Layout::Thd;
    check(&SplitKv, &problem);
}

/// Heads of a group have slopes and sinks of their own, in one tile; sinks count once, however many shares the keys have.
#[test]
fn biases_and_sinks() {
    for (index, bias) in Bias::ALL.into_iter().enumerate() {
        for length in [40, 900] {
            let mut problem = problem([Dtype::Bf16, Dtype::F16][index % 2], (6, 2), (1 + index, length), 64);
            problem.bias = bias;
            problem.sinks = true;
            problem.causal = index != 1;
            problem.softcap = (index == 2).then_some(5.0);
            check_all(&problem);
        }
    }
    // Rows that are no whole chunks, in shares and alone.
    for (dim, dim_v, length) in [(33, 63, 1000), (5, 1, 90)] {
        let odd = AttentionProblem { head_dim_v: dim_v, ..problem(Dtype::Bf16, (4, 2), (2, length), dim) };
        check_all(&odd);
    }
    let mut turned = problem(Dtype::F16, (4, 1), (2, 300), 128);
    turned.scale = Some(-0.1);
    check_all(&turned);
}
