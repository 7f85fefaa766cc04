use super::check;
use crate::cpu::mla::Mla;
use crate::problem::{AttentionProblem, CausalAlignment, Dtype, KvLayout, Layout, Lengths, Mechanism, Phase};

fn prefill(heads: usize, lengths: (usize, usize)) -> AttentionProblem {
    AttentionProblem {
        mechanism: Mechanism::Mla { latent: 32, rope: 8, nope: 16 },
        causal: true,
        head_dim_v: 16,
        ..AttentionProblem::softmax(Phase::Prefill, Dtype::F32, 1, (heads, heads), lengths, 24)
    }
}

fn decode(heads: usize, lengths: (usize, usize)) -> AttentionProblem {
    AttentionProblem {
        mechanism: Mechanism::Mla { latent: 32, rope: 9, nope: 16 },
        causal: true,
        head_dim_v: 32,
        ..AttentionProblem::softmax(Phase::Decode, Dtype::F32, 2, (heads, 1), lengths, 41)
    }
}

#[test]
fn prefill_agrees_with_the_definition() {
    for (index, length) in [1, 17, 63, 64, 65, 127, 200, 333].into_iter().enumerate() {
        for dtype in Dtype::ALL {
            let mut problem = prefill(1 + index % 3, (length, length));
            (problem.dtype, problem.dtype_kv) = (dtype, dtype);
            problem.causal = index % 4 != 3;
            problem.layout = [Layout::Bshd, Layout::Bhsd, Layout::Thd][index % 3];
            check(|isa| Mla { isa }, &problem, true);
        }
    }
    for alignment in [CausalAlignment::BottomRight, CausalAlignment::TopLeft] {
        for lengths in [(65, 200), (200, 65), (3, 0)] {
            let problem = AttentionProblem { causal_alignment: alignment, ..prefill(2, lengths) };
            check(|isa| Mla { isa }, &problem, true);
        }
    }
    let mut ragged = prefill(2, (0, 0));
    ragged.batch = 3;
    ragged.seqlen_q = Lengths::List(vec![70, 1, 129]);
    ragged.seqlen_kv = Lengths::List(vec![70, 64, 200]);
    check(|isa| Mla { isa }, &ragged, true);
}

#[test]
fn real_dimensions() {
    let mut problem = prefill(2, (70, 70));
    (problem.mechanism, problem.head_dim_qk, problem.head_dim_v) = (Mechanism::MLA, 192, 128);
    check(|isa| Mla { isa }, &problem, true);
    let mut problem = decode(16, (1, 300));
    (problem.mechanism, problem.head_dim_qk, problem.head_dim_v) = (Mechanism::MLA, 576, 512);
    check(|isa| Mla { isa }, &problem, true);
}

#[test]
fn decode_agrees_with_the_definition() {
    for (index, length) in [1, 17, 63, 64, 65, 127, 200, 333, 1500].into_iter().enumerate() {
        for dtype in Dtype::ALL {
            for kv_layout in [KvLayout::Contiguous, KvLayout::Paged { page_size: 16 }, KvLayout::Paged { page_size: 5 }]
            {
                let mut problem = decode([1, 3, 16][index % 3], (1 + index % 4, length));
                (problem.dtype, problem.dtype_kv) = (dtype, dtype);
                problem.batch = 1 + index % 2;
                problem.kv_layout = kv_layout;
                problem.causal = index % 5 != 4;
                problem.layout = [Layout::Bshd, Layout::Bhsd][index % 2];
                check(|isa| Mla { isa }, &problem, true);
            }
        }
    }
}

#[test]
fn decode_of_ragged_batches_and_many_rows() {
    let mut problem = decode(4, (1, 0));
    problem.batch = 4;
    problem.seqlen_kv = Lengths::List(vec![700, 1, 0, 300]);
    for kv_layout in [KvLayout::Contiguous, KvLayout::Paged { page_size: 64 }] {
        check(|isa| Mla { isa }, &AttentionProblem { kv_layout, ..problem.clone() }, true);
    }
    problem.seqlen_q = Lengths::List(vec![100, 3, 2, 1]);
    problem.softcap = Some(3.0);
    for dtype_kv in [Dtype::F16, Dtype::E4m3] {
        problem.dtype_kv = dtype_kv;
        check(|isa| Mla { isa }, &problem, true);
    }
}
