//! Kernels that are broken on purpose: the shim or the oracle has to notice each of them.

use std::path::{Path, PathBuf};

use attn_kernels::cuda::block_sparse::BlockSparse;
use attn_kernels::cuda::flash::Flash;
use attn_kernels::cuda::flash1::Flash1;
use attn_kernels::cuda::flash3::Flash3;
use attn_kernels::cuda::flash3_e4m3::Flash3E4m3;
use attn_kernels::cuda::linear::Linear;
use attn_kernels::cuda::linformer::Linformer;
use attn_kernels::cuda::mla::Mla;
use attn_kernels::cuda::naive::Naive;
use attn_kernels::cuda::split_kv::SplitKv;
use attn_kernels::cuda::{CudaKernel, DeviceFacts, HEADERS};
use attn_kernels::problem::{AttentionProblem, Bias, CausalAlignment, Dtype, Lengths, Mechanism, Pattern, Phase};

use super::mla::OLDER;
use super::shim::{cuda_folder, without_barrier};
use super::{DEVICE, judge, judge_on};

/// A copy of the sources in which one file has another text.
pub(crate) fn with_file(label: &str, file: &str, text: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("sabotage").join(label);
    std::fs::create_dir_all(&folder).expect("a folder for copies");
    let sources = std::fs::read_dir(cuda_folder())
        .expect("the sources")
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    for name in sources.filter(|name| name.ends_with(".cu") || HEADERS.iter().any(|header| header.name == name)) {
        let text = if name == file {
            text.to_string()
        } else {
            std::fs::read_to_string(cuda_folder().join(&name)).expect("the source exists")
        };
        std::fs::write(folder.join(&name), text).expect("a copy is written");
    }
    folder
}

pub(crate) fn text_of(file: &str) -> String {
    std::fs::read_to_string(cuda_folder().join(file)).expect("the source exists")
}

/// Several tiles of keys, causal, rows that are no whole tile.
fn prefill(lengths: (usize, usize)) -> AttentionProblem {
    let mut problem = AttentionProblem::softmax(Phase::Prefill, Dtype::Bf16, 1, (2, 1), lengths, 64);
    problem.causal = true;
    problem
}

fn decode() -> AttentionProblem {
    let mut problem = AttentionProblem::softmax(Phase::Decode, Dtype::Bf16, 1, (8, 1), (2, 900), 64);
    problem.causal = true;
    problem
}

/// What the shim can leave out.
const BARRIERS: [&str; 7] = [
    "sync_threads()",
    "sync_warp()",
    "copy_async_wait<",
    "mbarrier_wait(",
    "wait_products<",
    "fence_products()",
    "fence_mbarrier_init()",
];

/// Without any one of its barriers and waits, a kernel fails in at least one of these problems.
fn every_barrier_is_needed(kernel: &dyn CudaKernel, problems: &[AttentionProblem], files: &[&str]) {
    every_barrier_is_needed_on(&DEVICE, kernel, problems, files);
}

fn every_barrier_is_needed_on(
    device: &DeviceFacts,
    kernel: &dyn CudaKernel,
    problems: &[AttentionProblem],
    files: &[&str],
) {
    let mut removed = 0;
    for file in files {
        let text = text_of(file);
        for (number, line) in text.lines().enumerate() {
            let code = line.trim();
            let is_barrier = BARRIERS.iter().any(|barrier| code.starts_with(barrier)) && code.ends_with(");");
            if !is_barrier {
                continue;
            }
            removed += 1;
            let is_missed = problems.iter().any(|problem| {
                without_barrier(file, number as i32 + 1, || judge_on(device, kernel, problem, &cuda_folder())).is_err()
            });
            assert!(is_missed, "{file}:{}: `{code}` is not missed", number + 1);
        }
    }
    assert!(removed >= 2, "{} has barriers", kernel.name());
}

#[test]
fn no_barrier_of_flash_can_go() {
    every_barrier_is_needed(&Flash, &[prefill((200, 300))], &["flash.cu"]);
}

#[test]
fn no_barrier_of_flash_s_backward_can_go() {
    // Warps that own keys, and warps that share them; dQ by sums, and by a pass of its own.
    let [mut narrow, mut wide] =
        [64, 128].map(|dim| AttentionProblem::softmax(Phase::Backward, Dtype::Bf16, 1, (2, 1), (130, 150), dim));
    narrow.causal = true;
    wide.deterministic = true;
    every_barrier_is_needed(&Flash, &[narrow, wide], &["flash_bwd_keys.cuh", "flash_bwd_queries.cuh"]);
}

#[test]
fn no_barrier_of_flash3_can_go() {
    // Twelve blocks compute two tiles each, with more keys than the rings hold.
    let mut problem = AttentionProblem { batch: 12, ..prefill((200, 700)) };
    problem.causal_alignment = CausalAlignment::TopLeft;
    let long = AttentionProblem { batch: 1, ..prefill((300, 900)) };
    every_barrier_is_needed(&Flash3, &[long, problem], &["flash3.cu", "hopper.cuh"]);
}

#[test]
fn no_barrier_of_flash3_e4m3_can_go() {
    // The loop's are those of flash3.
    let mut problem = AttentionProblem { batch: 12, ..prefill((200, 700)) };
    problem.causal_alignment = CausalAlignment::TopLeft;
    let long = AttentionProblem { batch: 1, ..prefill((300, 900)) };
    every_barrier_is_needed(&Flash3E4m3, &[long, problem], &["flash3_e4m3.cu", "e4m3.cuh"]);
}

#[test]
fn no_barrier_of_flash3_s_backward_can_go() {
    // Queries and keys that fill no tile, with what lies behind them in memory; more tiles than the rings hold.
    let mut long = AttentionProblem::softmax(Phase::Backward, Dtype::Bf16, 1, (2, 1), (200, 150), 128);
    long.causal = true;
    let mut ragged = AttentionProblem { batch: 2, ..long.clone() };
    ragged.seqlen_q = Lengths::List(vec![200, 100]);
    ragged.seqlen_kv = Lengths::List(vec![100, 150]);
    let text = text_of("flash3_bwd.cu");
    let more = [
        ("meeting", "                sync_named(EXCHANGED, MATH * 128);\n"),
        ("clearing", "    sync_named(CLEARED, MATH * 128);\n"),
        ("shown_gradients", "                fence_async_shared();\n"),
        ("shown_rows", "{\n    fence_async_shared();\n"),
    ];
    for (label, code) in more {
        assert_eq!(text.matches(code).count(), 1, "{label}");
        let folder =
            with_file(label, "flash3_bwd.cu", &text.replace(code, if label == "shown_rows" { "{\n" } else { "" }));
        assert!([&ragged, &long].iter().any(|problem| judge(&Flash3, problem, &folder).is_err()), "{label}");
    }
    every_barrier_is_needed(&Flash3, &[long, ragged], &["flash3_bwd.cu"]);
}

#[test]
fn no_barrier_of_split_kv_can_go() {
    // Rows of one warp, and rows that two warps share.
    let rows = AttentionProblem { heads_q: 24, ..decode() };
    every_barrier_is_needed(&SplitKv, &[decode(), rows], &["decode.cuh"]);
}

#[test]
fn no_barrier_of_flash1_can_go() {
    // No query sees the last tiles of keys.
    let mut unseen = prefill((100, 300));
    unseen.causal_alignment = CausalAlignment::TopLeft;
    every_barrier_is_needed(&Flash1, &[unseen], &["flash1.cu"]);
}

#[test]
fn no_barrier_of_block_sparse_can_go() {
    every_barrier_is_needed(&BlockSparse, &[prefill((200, 300))], &["block_sparse.cu"]);
}

#[test]
fn no_barrier_of_naive_can_go() {
    every_barrier_is_needed(&Naive, &[prefill((70, 130))], &["naive.cu", "product.cuh"]);
}

#[test]
fn no_barrier_of_linear_can_go() {
    let linear = |phase, causal, dtype| AttentionProblem {
        mechanism: Mechanism::LINEAR,
        phase,
        causal,
        dtype,
        dtype_kv: dtype,
        ..prefill(if phase == Phase::Decode { (3, 50) } else { (100, 100) })
    };
    let plain = [
        linear(Phase::Prefill, true, Dtype::F32),
        linear(Phase::Prefill, false, Dtype::F32),
        AttentionProblem { head_dim_v: 33, ..linear(Phase::Decode, true, Dtype::F32) },
    ];
    every_barrier_is_needed(&Linear, &plain, &["linear.cu"]);
    every_barrier_is_needed(&Linear, &[linear(Phase::Decode, true, Dtype::Bf16)], &["linear_decode.cu"]);
    let mut segments = linear(Phase::Prefill, true, Dtype::F16);
    (segments.seqlen_q, segments.seqlen_kv) = (Lengths::Same(450), Lengths::Same(450));
    let chunks = [segments, linear(Phase::Prefill, false, Dtype::Bf16)];
    every_barrier_is_needed(&Linear, &chunks, &["linear_chunks.cu"]);
}

#[test]
fn no_barrier_of_linformer_can_go() {
    let linformer = AttentionProblem {
        mechanism: Mechanism::Linformer { rank: 100 },
        causal: false,
        heads_q: 8,
        head_dim_qk: 128,
        head_dim_v: 128,
        ..prefill((700, 700))
    };
    every_barrier_is_needed(&Linformer, &[linformer], &["linformer.cu", "linformer_attend.cu"]);
}

#[test]
fn no_barrier_of_mla_can_go() {
    let mut mla = decode();
    mla.mechanism = Mechanism::Mla { latent: 32, rope: 16, nope: 24 };
    (mla.head_dim_qk, mla.head_dim_v) = (48, 32);
    every_barrier_is_needed_on(&OLDER, &Mla, &[mla.clone()], &["mla.cu"]);
    // Each block has more tiles than there are slots.
    let long = AttentionProblem { batch: 12, seqlen_kv: Lengths::Same(300), ..mla };
    every_barrier_is_needed(&Mla, &[long], &["mla3.cu"]);
}

/// Mistakes that are no fault of memory: only the oracle can see them.
#[test]
fn the_oracle_sees_wrong_mathematics() {
    let mistakes = [
        ("mask", "geometry.cuh", "min_i32(p + geometry.right + 1, ", "min_i32(p + geometry.right + 2, "),
        ("rescale", "attend.cuh", "o[m][d][i] *= rescale[m][i / 2]", "(void)o, (void)rescale"),
        ("tile", "flash.cu", "tile >= first_tile; tile--", "tile > first_tile; tile--"),
        (
            "column",
            "attend.cuh",
            "(lane % 4) * 2 + i;\n                    if (j < seen",
            "(lane % 4) * 2;\n                    if (j < seen",
        ),
        ("lse", "attend.cuh", "log2_fast(sum[m][half])) * LN_2", "log2_fast(sum[m][half]))"),
        ("heads", "flash.cu", "work.head / (geometry.heads_q / geometry.heads_kv)", "0 * work.head"),
    ];
    let general = AttentionProblem { bias: Bias::Alibi, sinks: true, ..decode() };
    let odd = AttentionProblem { head_dim_qk: 37, head_dim_v: 21, ..prefill((70, 150)) };
    let bigbird = Pattern::Bigbird { block: 8, window: 3, global: 2, random: 2, seed: 5 };
    let bigbird = AttentionProblem { pattern: bigbird, ..prefill((90, 300)) };
    let backward = AttentionProblem { phase: Phase::Backward, heads_q: 4, heads_kv: 2, ..prefill((90, 130)) };
    let capped = AttentionProblem { softcap: Some(2.0), ..backward.clone() };
    let narrow = AttentionProblem { dtype_kv: Dtype::E4m3, ..decode() };
    let mut ragged = AttentionProblem { batch: 3, ..decode() };
    ragged.seqlen_kv = Lengths::List(vec![900, 0, 70]);
    let strided = Pattern::Strided { stride: 12 };
    let strided = AttentionProblem { pattern: strided, heads_q: 8, heads_kv: 2, ..prefill((300, 300)) };
    let parts = AttentionProblem {
        pattern: Pattern::Longformer { window: 9, global: 30, dilation: 1 },
        causal: false,
        causal_alignment: CausalAlignment::TopLeft,
        ..prefill((40, 2600))
    };
    let long = prefill((200, 900));
    let more: [(&str, &dyn CudaKernel, &AttentionProblem, &str, &str, &str); 25] = [
        ("e4m3_rescale", &Flash3E4m3, &long, "e4m3.cuh", "o[d][i] *= rescale[i / 2]", "(void)o, (void)rescale"),
        (
            "e4m3_order",
            &Flash3E4m3,
            &long,
            "e4m3.cuh",
            "start(key + i / 2 * 8 + i % 2)",
            "start(key + i / 2 * 2 + i % 2 * 8)",
        ),
        ("e4m3_row", &Flash3E4m3, &long, "flash3_e4m3.cu", "half * 8 + thread % 32 / 4)", "half * 8)"),
        ("e4m3_values", &Flash3E4m3, &long, "e4m3.cuh", "unit[half] - base[half] - ROOM);", "-ROOM);"),
        (
            "e4m3_tile",
            &Flash3E4m3,
            &long,
            "flash3_e4m3.cu",
            "last - range.first / KEYS + 1",
            "last - range.first / KEYS",
        ),
        ("delta", &Flash, &backward, "flash_bwd.cu", "is_empty ? 0.0f : delta", "is_empty ? delta : 0.0f"),
        ("capped_slope", &Flash, &capped, "flash_bwd.cuh", "(gradient - delta) * capped.slope", "(gradient - delta)"),
        ("group", &Flash, &backward, "flash_bwd_keys.cuh", "turns = tiles * group;", "turns = tiles;"),
        (
            "skipped",
            &Flash,
            &backward,
            "flash_bwd_keys.cuh",
            "ceil_div(end_query - first_query, ROWS)",
            "(end_query - first_query) / ROWS",
        ),
        (
            "diagonal",
            &Flash,
            &backward,
            "geometry.cuh",
            "max_i32(row - geometry.right, 0)",
            "max_i32(row - geometry.right + 1, 0)",
        ),
        ("pairs", &SplitKv, &narrow, "decode.cuh", "half], 0x3120)", "half], 0x3210)"),
        ("order", &SplitKv, &narrow, "decode.cuh", "word[odd], word[2 + odd]", "word[2 + odd], word[odd]"),
        (
            "share",
            &SplitKv,
            &general,
            "partials.cuh",
            "rounds * (split + 1) / splits * round",
            "rounds * (split + 1) / splits * round - 1",
        ),
        (
            "merged",
            &SplitKv,
            &ragged,
            "partials.cuh",
            "split < item.splits; split += SHARES",
            "split + 1 < item.splits; split += SHARES",
        ),
        ("kept", &BlockSparse, &parts, "block_sparse.cu", "take, x * keep)", "take, x)"),
        ("taken", &BlockSparse, &parts, "block_sparse.cu", "load(sums.sum, slot) * take", "load(sums.sum, slot)"),
        ("packed_heads", &BlockSparse, &strided, "block_sparse.cu", "= packed * geometry", "= (packed & 0) * geometry"),
        (
            "bits",
            &BlockSparse,
            &strided,
            "block_sparse.cu",
            "if (!(own >> (n * 8 + i) & 1))",
            "if (!(own >> (n * 8) & 1))",
        ),
        ("slope", &SplitKv, &general, "geometry.cuh", "-8.0f * (head + 1)", "-8.0f * head"),
        ("sinks", &SplitKv, &general, "decode.cuh", "item.splits == 1 ? sinks : Global<const f32>{}", "sinks"),
        (
            "packed",
            &SplitKv,
            &general,
            "decode.cuh",
            "alibi_slope(geometry, packed.head)",
            "alibi_slope(geometry, head_kv)",
        ),
        (
            "odd_copy",
            &Flash,
            &odd,
            "attend.cuh",
            "exists && int(index * CHUNK + e) < dim)",
            "exists && int(index * CHUNK + e) + 1 < dim)",
        ),
        ("odd_store", &Flash, &odd, "geometry.cuh", "if (column + e < dim) store", "if (column + 8 <= dim) store"),
        ("drawn", &Naive, &bigbird, "naive.cu", "(i64(head) * drawn.rows + row)", "(0 * i64(head) + row)"),
        ("block", &Naive, &bigbird, "naive.cu", ">> block % 32 & 1", ">> (block + 1) % 32 & 1"),
    ];
    for (label, kernel, problem, file, right, wrong) in more {
        let text = text_of(file);
        assert_eq!(text.matches(right).count(), 1, "{label}: {file} has `{right}` once");
        let error = judge(kernel, problem, &with_file(label, file, &text.replace(right, wrong))).expect_err(label);
        assert!(error.contains("ErrorReport"), "{label}: {error}");
    }
    for (label, file, right, wrong) in mistakes {
        let text = text_of(file);
        assert_eq!(text.matches(right).count(), 1, "{label}: {file} has `{right}` once");
        let folder = with_file(label, file, &text.replace(right, wrong));
        let mut problem = prefill((200, 300));
        (problem.heads_q, problem.heads_kv) = (4, 2);
        let error = judge(&Flash, &problem, &folder).expect_err(label);
        assert!(error.contains("ErrorReport"), "{label}: {error}");
    }
}
