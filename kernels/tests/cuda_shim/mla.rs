//! `mla`: latent rows, contiguous and in pages, on devices with products of warpgroups and without.

use attn_kernels::cuda::DeviceFacts;
use attn_kernels::cuda::mla::Mla;
use attn_kernels::problem::{AttentionProblem, Dtype, KvLayout, Layout, Lengths, Mechanism, Phase};

use super::{DEVICE, check, judge_on, shim};

/// A small device without wgmma.
pub(crate) const OLDER: DeviceFacts = DeviceFacts { multiprocessors: 12, ..DeviceFacts::A100 };

fn check_both(problem: &AttentionProblem) {
    for device in [DEVICE, OLDER] {
        if let Err(error) = judge_on(&device, &Mla, problem, &shim::cuda_folder()) {
            panic!("mla on {}: {error}\nin {problem:?}", device.compute_capability);
        }
    }
}

fn mla(dtype: Dtype, heads: usize, lengths: (usize, usize)) -> AttentionProblem {
    let mut problem = AttentionProblem::softmax(Phase::Decode, dtype, 1, (heads, 1), lengths, 48);
    problem.mechanism = Mechanism::Mla { latent: 32, rope: 16, nope: 24 };
    problem.head_dim_v = 32;
    problem.causal = true;
    problem
}

#[test]
fn lengths_and_pages() {
    for (index, length) in [1, 65, 200, 700].into_iter().enumerate() {
        for kv_layout in [KvLayout::Contiguous, KvLayout::Paged { page_size: [24, 1, 64, 128][index] }] {
            let mut problem =
                mla([Dtype::Bf16, Dtype::F16][index % 2], [16, 3, 40][index % 3], (1 + index % 3, length));
            problem.kv_layout = kv_layout;
            problem.layout = [Layout::Bshd, Layout::Bhsd][index / 2];
            problem.batch = 1 + index % 2;
            check_both(&problem);
        }
    }
}

#[test]
fn real_rows_and_narrower_ones() {
    for (latent, rope, heads) in [(512, 64, 70), (200, 40, 5), (256, 0, 9)] {
        let mut problem = mla(Dtype::Bf16, heads, (1, 150));
        problem.mechanism = Mechanism::Mla { latent, rope, nope: 128 };
        (problem.head_dim_qk, problem.head_dim_v) = (latent + rope, latent);
        check_both(&problem);
    }
}

/// More tiles of keys than there are slots for them, shares of one sequence, a sequence without keys.
#[test]
fn ragged_batches() {
    let mut ragged = mla(Dtype::F16, 4, (1, 0));
    ragged.batch = 14;
    let mut lengths = vec![390; 14];
    (lengths[1], lengths[2], lengths[13]) = (0, 7, 1500);
    ragged.seqlen_kv = Lengths::List(lengths);
    check_both(&ragged);
    ragged.seqlen_q = Lengths::List((0..14).map(|sequence| 1 + sequence % 3).collect());
    check_both(&AttentionProblem { layout: Layout::Thd, ..ragged.clone() });
    check_both(&AttentionProblem { kv_layout: KvLayout::Paged { page_size: 16 }, causal: false, ..ragged });
}

#[test]
fn prefill() {
    let mut problem = AttentionProblem::softmax(Phase::Prefill, Dtype::Bf16, 1, (2, 2), (70, 100), 192);
    problem.mechanism = Mechanism::MLA;
    problem.head_dim_v = 128;
    problem.causal = true;
    check(&Mla, &problem);
}
