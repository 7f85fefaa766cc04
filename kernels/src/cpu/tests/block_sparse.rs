use super::check;
use crate::cpu::block_sparse::{BlockSparse, schedule};
use crate::pattern::Visibility;
use crate::problem::{AttentionProblem, CausalAlignment, Dtype, KvLayout, Layout, Lengths, Pattern, Phase};

fn patterns() -> Vec<Pattern> {
    let mut patterns = vec![Pattern::Full];
    patterns.extend([(0, 0), (5, 0), (63, 64), (10, 200)].map(|(left, right)| Pattern::Window { left, right }));
    patterns
        .extend([(0, 1), (3, 2), (5, 7), (70, 3), (2, 400)].map(|(window, step)| Pattern::Dilated { window, step }));
    patterns.extend(
        [(0, 0, 1), (8, 0, 1), (8, 3, 1), (70, 65, 1), (4, 3, 5), (9, 70, 2), (4, 0, 3), (3, 1000, 2)]
            .map(|(window, global, dilation)| Pattern::Longformer { window, global, dilation }),
    );
    patterns.extend(
        [(16, 3, 2, 2), (64, 3, 2, 3), (7, 1, 1, 1), (100, 3, 0, 1), (32, 0, 0, 0), (16, 5, 1, 100)]
            .map(|(block, window, global, random)| Pattern::Bigbird { block, window, global, random, seed: 5 }),
    );
    patterns.extend([1, 2, 7, 32, 64, 100, 500].map(|stride| Pattern::Strided { stride }));
    patterns.extend(
        [(1, 1), (8, 2), (32, 1), (64, 8), (100, 7), (100, 100), (500, 3), (16, 0), (16, 50)]
            .map(|(block, summary)| Pattern::Fixed { block, summary }),
    );
    patterns
}

fn is_always_causal(pattern: Pattern) -> bool {
    matches!(pattern, Pattern::Strided { .. } | Pattern::Fixed { .. })
}

fn problem(pattern: Pattern, causal: bool, lengths: (usize, usize)) -> AttentionProblem {
    AttentionProblem {
        pattern,
        causal: causal || is_always_causal(pattern),
        head_dim_v: 12,
        ..AttentionProblem::softmax(Phase::Prefill, Dtype::F32, 1, (2, 1), lengths, 17)
    }
}

#[test]
fn schedules_hold_each_visible_pair_once() {
    for pattern in patterns() {
        for causal in [false, true] {
            for alignment in [CausalAlignment::BottomRight, CausalAlignment::TopLeft] {
                for lengths in
                    [(1, 1), (17, 17), (65, 65), (200, 200), (333, 333), (50, 210), (210, 50), (3, 0), (1, 129)]
                {
                    let problem = AttentionProblem { causal_alignment: alignment, ..problem(pattern, causal, lengths) };
                    let visibility = Visibility::new(&problem, lengths.0, lengths.1);
                    for head in 0..2 {
                        let mut got: Vec<_> =
                            schedule(&visibility, head).iter().flat_map(|schedule| schedule.pairs()).collect();
                        got.sort_unstable();
                        let expected: Vec<_> = (0..lengths.0)
                            .flat_map(|i| (0..lengths.1).map(move |j| (i, j)))
                            .filter(|&(i, j)| visibility.sees(head, i, j))
                            .collect();
                        assert!(got == expected, "{} instead of {} pairs of {problem:?}", got.len(), expected.len());
                    }
                }
            }
        }
    }
}

/// What is computed, masked elements included, is near what is visible: nothing is computed only to be masked but at the
/// ends of runs.
#[test]
fn visited_pairs_fall_with_visible_pairs() {
    for (pattern, most) in [
        (Pattern::Window { left: 255, right: 0 }, 1.3),
        (Pattern::Dilated { window: 64, step: 8 }, 1.6),
        (Pattern::Longformer { window: 128, global: 16, dilation: 1 }, 1.3),
        (Pattern::Longformer { window: 64, global: 16, dilation: 4 }, 1.6),
        (Pattern::Bigbird { block: 64, window: 3, global: 2, random: 3, seed: 0 }, 1.3),
        (Pattern::Strided { stride: 64 }, 2.0),
        (Pattern::Fixed { block: 64, summary: 8 }, 1.5),
        (Pattern::Fixed { block: 128, summary: 8 }, 1.5),
    ] {
        for length in [4096, 16384] {
            let problem = problem(pattern, false, (length, length));
            let visibility = Visibility::new(&problem, length, length);
            let visited: usize = schedule(&visibility, 0).iter().map(|schedule| schedule.visited()).sum();
            let ratio = visited as f64 / visibility.pairs(0) as f64;
            assert!((1.0..=most).contains(&ratio), "{ratio} of {pattern:?} at {length}");
        }
    }
}

#[test]
fn agrees_with_dense_attention_under_the_mask() {
    for (index, pattern) in patterns().into_iter().enumerate() {
        for (case, lengths) in
            [(1, 1), (17, 17), (64, 64), (127, 127), (200, 200), (150, 333), (100, 40)].into_iter().enumerate()
        {
            let variant = index + case;
            let mut problem = problem(pattern, variant % 2 == 0, lengths);
            problem.dtype = Dtype::ALL[variant % 3];
            problem.dtype_kv = if variant % 4 == 0 { Dtype::F16 } else { problem.dtype };
            problem.layout = [Layout::Bshd, Layout::Bhsd, Layout::Thd][variant % 3];
            (problem.heads_q, problem.heads_kv) = [(2, 2), (4, 2), (3, 1)][variant % 3];
            check(|isa| BlockSparse { isa }, &problem, true);
        }
    }
}

#[test]
fn softcap_scale_ragged_paged_and_decode() {
    for pattern in patterns() {
        let mut problem = problem(pattern, true, (0, 0));
        problem.batch = 3;
        problem.seqlen_q = Lengths::List(vec![70, 1, 30]);
        problem.seqlen_kv = Lengths::List(vec![70, 90, 0]);
        problem.softcap = Some(2.0);
        problem.scale = Some(0.3);
        (problem.heads_q, problem.heads_kv) = (12, 2);
        check(|isa| BlockSparse { isa }, &problem, true);
        problem.kv_layout = KvLayout::Paged { page_size: 16 };
        problem.seqlen_q = Lengths::Same(1);
        problem.phase = Phase::Decode;
        check(|isa| BlockSparse { isa }, &problem, true);
    }
}
