//! Awkward problems that several kernels are checked on.

use attn_kernels::problem::{AttentionProblem, CausalAlignment, Dtype, Layout, Lengths, Pattern, Phase};

/// One sequence with one head dimension.
pub(crate) fn dense(
    phase: Phase,
    dtype: Dtype,
    heads: (usize, usize),
    lengths: (usize, usize),
    dim: usize,
) -> AttentionProblem {
    AttentionProblem::softmax(phase, dtype, 1, heads, lengths, dim)
}

/// Windows of one key to all of them, each over these lengths: some causal, in both alignments.
pub(crate) fn windows(phase: Phase, dtype: Dtype, lengths: &[(usize, usize)]) -> Vec<AttentionProblem> {
    let mut problems = Vec::new();
    for (index, (left, right)) in
        [(0, 0), (15, 0), (64, 64), (100, 3), (usize::MAX, 5), (7, usize::MAX)].into_iter().enumerate()
    {
        for &lengths in lengths {
            let mut problem = dense(phase, dtype, (1, 1), lengths, 64);
            problem.pattern = Pattern::Window { left, right };
            problem.causal = index % 3 == 1;
            problem.causal_alignment = [CausalAlignment::BottomRight, CausalAlignment::TopLeft][index % 2];
            problems.push(problem);
        }
    }
    problems
}

/// Ragged batches, of which one sequence has no key and one no more than a query, in each layout: with shared heads, causal; with
/// one KV head, scaled; and with a head each, causal again.
pub(crate) fn ragged(phase: Phase, layouts: &[Layout], dims: [usize; 3]) -> Vec<AttentionProblem> {
    let mut problems = Vec::new();
    for (index, heads) in [(4, 2), (3, 1), (2, 2)].into_iter().enumerate() {
        for &layout in layouts {
            let mut problem = dense(phase, Dtype::Bf16, heads, (0, 0), dims[index]);
            problem.batch = 4;
            problem.layout = layout;
            problem.causal = index != 1;
            problem.scale = (index == 1).then_some(0.25);
            problem.seqlen_q = Lengths::List(vec![70, 1, 129, 5]);
            problem.seqlen_kv = Lengths::List(vec![70, 200, 65, 0]);
            problems.push(problem);
        }
    }
    problems
}
