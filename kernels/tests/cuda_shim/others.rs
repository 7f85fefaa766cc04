//! `block_sparse`, `linear` and `linformer`.

use attn_kernels::cuda::CudaKernel;
use attn_kernels::cuda::block_sparse::BlockSparse;
use attn_kernels::cuda::linear::Linear;
use attn_kernels::cuda::linformer::Linformer;
use attn_kernels::input::{self, Generator, InputSpec};
use attn_kernels::problem::{
    AttentionProblem, CausalAlignment, Dtype, FeatureMap, Layout, Lengths, Mechanism, Pattern, Phase,
};
use attn_kernels::tensor::TensorName;

use super::{DEVICE, check, shim};

fn softmax(dtype: Dtype, heads: (usize, usize), lengths: (usize, usize), dim: usize) -> AttentionProblem {
    AttentionProblem::softmax(Phase::Prefill, dtype, 1, heads, lengths, dim)
}

#[test]
fn every_pattern_by_lists() {
    let patterns = [
        Pattern::Full,
        Pattern::Window { left: 70, right: 20 },
        Pattern::Dilated { window: 9, step: 11 },
        Pattern::Longformer { window: 20, global: 5, dilation: 1 },
        Pattern::Longformer { window: 6, global: 3, dilation: 8 },
        Pattern::Bigbird { block: 16, window: 3, global: 2, random: 2, seed: 5 },
        Pattern::Bigbird { block: 64, window: 1, global: 2, random: 1, seed: 6 },
        Pattern::Strided { stride: 24 },
        Pattern::Fixed { block: 50, summary: 3 },
    ];
    for (index, pattern) in patterns.into_iter().enumerate() {
        for lengths in [(200, 200), (100, 230), (230, 100)] {
            for causal in [false, true] {
                let mut problem = softmax([Dtype::Bf16, Dtype::F16][index % 2], (2, 1), lengths, 64);
                problem.pattern = pattern;
                problem.causal = causal;
                problem = problem.normalise();
                if problem.causal == causal {
                    check(&BlockSparse, &problem);
                }
            }
        }
    }
}

#[test]
fn lists_of_ragged_batches_and_wide_heads() {
    let mut problem = softmax(Dtype::Bf16, (4, 2), (0, 0), 128);
    problem.batch = 3;
    problem.causal = true;
    problem.softcap = Some(6.0);
    problem.pattern = Pattern::Bigbird { block: 16, window: 3, global: 2, random: 1, seed: 2 };
    problem.seqlen_q = Lengths::List(vec![130, 1, 70]);
    problem.seqlen_kv = Lengths::List(vec![130, 90, 0]);
    for layout in [Layout::Bshd, Layout::Thd] {
        check(&BlockSparse, &AttentionProblem { layout, ..problem.clone() });
    }
    (problem.head_dim_qk, problem.head_dim_v) = (192, 128);
    check(&BlockSparse, &problem);
}

/// Lists that are divided and merged, heads packed into rows, and passes that begin from an earlier one's sums.
#[test]
fn lists_in_parts_packed_and_in_two_passes() {
    // A dense list of 2600 keys is three parts; rows outside of the keys see nothing in any of them.
    let mut dense = softmax(Dtype::Bf16, (2, 1), (40, 2600), 128);
    dense.pattern = Pattern::Longformer { window: 20, global: 3, dilation: 1 };
    dense.causal_alignment = CausalAlignment::TopLeft;
    let mut ragged = AttentionProblem { batch: 2, ..dense.clone() };
    ragged.seqlen_q = Lengths::List(vec![30, 9]);
    ragged.seqlen_kv = Lengths::List(vec![2100, 0]);
    ragged.softcap = Some(3.0);
    let full = AttentionProblem { pattern: Pattern::Full, head_dim_v: 128, head_dim_qk: 192, ..dense.clone() };
    let mut launches = Vec::new();
    for problem in [dense, ragged, full] {
        launches.push(BlockSparse.plan(&problem, &DEVICE).expect("it is supported").launches.len());
        check(&BlockSparse, &problem);
    }
    assert!(launches.iter().all(|&launches| launches == 2), "{launches:?}");

    // Enough heads to fill the device; groups of one, two and four heads whose rows share tiles.
    let strided = Pattern::Strided { stride: 12 };
    let longformer = Pattern::Longformer { window: 9, global: 5, dilation: 3 };
    let dilated = Pattern::Dilated { window: 30, step: 2 };
    for (index, pattern) in
        [strided, longformer, dilated, Pattern::Fixed { block: 45, summary: 2 }].into_iter().enumerate()
    {
        for heads in [(12, 3), (8, 4), (6, 6)] {
            let mut problem = softmax([Dtype::F16, Dtype::Bf16][index % 2], heads, (300, 310), [64, 128][index % 2]);
            problem.pattern = pattern;
            problem.causal = pattern == strided || index == 1 || index == 3;
            // Scores of hundreds, so that sums relative to another largest score have to be right.
            problem.scale = (heads.0 == 8).then_some(20.0);
            problem.layout = [Layout::Bhsd, Layout::Bshd][index % 2];
            check(&BlockSparse, &problem);
        }
    }
}

fn linear(
    dtype: Dtype,
    phase: Phase,
    heads: (usize, usize),
    lengths: (usize, usize),
    dims: (usize, usize),
) -> AttentionProblem {
    AttentionProblem {
        mechanism: Mechanism::LINEAR,
        head_dim_v: dims.1,
        ..AttentionProblem::softmax(phase, dtype, 1, heads, lengths, dims.0)
    }
}

#[test]
fn linear_prefill() {
    for (index, lengths) in [(1, 1), (33, 33), (70, 70), (40, 100), (100, 40), (5, 0)].into_iter().enumerate() {
        for causal in [false, true] {
            for dtype in Dtype::ALL {
                let mut problem = linear(
                    dtype,
                    Phase::Prefill,
                    [(2, 1), (1, 1)][index % 2],
                    lengths,
                    [(24, 17), (64, 33)][index % 2],
                );
                if lengths.1 == 0 {
                    problem.batch = 2;
                    problem.seqlen_q = Lengths::List(vec![lengths.0, 3]);
                    problem.seqlen_kv = Lengths::List(vec![0, 40]);
                }
                problem.causal = causal;
                problem.causal_alignment = [CausalAlignment::BottomRight, CausalAlignment::TopLeft][index / 2 % 2];
                problem.layout = [Layout::Bshd, Layout::Bhsd, Layout::Thd][index % 3];
                check(&Linear, &problem);
            }
        }
    }
}

#[test]
fn linear_decode_and_feature_maps() {
    for feature_map in FeatureMap::ALL {
        for normalised in [true, false] {
            if normalised && feature_map == FeatureMap::Identity {
                continue;
            }
            for phase in [Phase::Prefill, Phase::Decode] {
                let mut problem = linear(Dtype::Bf16, phase, (4, 2), (3, 50), (33, 40));
                problem.mechanism = Mechanism::Linear { feature_map, normalised };
                problem.batch = 2;
                problem.causal = true;
                check(&Linear, &problem);
            }
        }
    }
}

#[test]
fn linformer_projects_and_attends() {
    // Lengths around tiles, tokens that are split and added, K' and V' resident and not, wide and uneven heads.
    let cases = [
        (1, 1, (64, 64)),
        (100, 40, (64, 64)),
        (130, 65, (128, 128)),
        (1100, 128, (64, 40)),
        (300, 256, (96, 128)),
        (70, 300, (192, 128)),
    ];
    let mut launches = Vec::new();
    for (index, (length, rank, dims)) in cases.into_iter().enumerate() {
        for dtype in [Dtype::Bf16, Dtype::F16] {
            let mut problem = softmax(dtype, (2, 1), (length, length), dims.0);
            problem.head_dim_v = dims.1;
            problem.mechanism = Mechanism::Linformer { rank };
            problem.batch = 1 + index % 2;
            problem.layout = [Layout::Bshd, Layout::Bhsd][index % 2];
            check(&Linformer, &problem);
            let plan = Linformer.plan(&problem, &DEVICE).expect("it is supported");
            launches.push(plan.launches.iter().map(|launch| launch.entry).collect::<Vec<_>>());
        }
    }
    assert_eq!(launches[0], ["linformer_round", "linformer_project", "linformer_attend"]);
    assert_eq!(launches[6], ["linformer_round", "linformer_project", "linformer_reduce", "linformer_attend"]);
    assert_eq!(launches[10], ["linformer_round", "linformer_project", "flash"]);
}

/// The state in registers, of every compiled width, and where it is not: uneven columns.
#[test]
fn linear_decode_of_every_width() {
    for (index, dims) in [(64, 64), (128, 132), (200, 36), (24, 17), (1, 4)].into_iter().enumerate() {
        for heads in [(1, 1), (6, 2)] {
            let mut problem = linear(Dtype::ALL[index % 3], Phase::Decode, heads, (1 + index % 3, 50), dims);
            problem.causal = true;
            problem.batch = 2;
            problem.layout = [Layout::Bshd, Layout::Bhsd, Layout::Thd][index % 3];
            check(&Linear, &problem);
        }
    }
}

/// The kernel on tensor cores: lengths around chunks and segments, both alignments, shared heads, every width, tiles of columns.
#[test]
fn linear_prefill_in_chunks() {
    let dims = [(64, 64), (128, 128), (256, 264), (40, 72)];
    let lengths = [(1, 1), (64, 64), (65, 65), (450, 450), (100, 230), (230, 100), (7, 130), (129, 640)];
    for (index, lengths) in lengths.into_iter().enumerate() {
        for causal in [false, true] {
            let dtype = [Dtype::Bf16, Dtype::F16][(index + usize::from(causal)) % 2];
            let heads = [(2, 1), (1, 1), (3, 3)][index % 3];
            let mut problem = linear(dtype, Phase::Prefill, heads, lengths, dims[index % 4]);
            problem.causal = causal;
            problem.causal_alignment = [CausalAlignment::BottomRight, CausalAlignment::TopLeft][index / 2 % 2];
            problem.layout = [Layout::Bshd, Layout::Bhsd, Layout::Thd][index % 3];
            check(&Linear, &problem);
        }
    }
    for feature_map in FeatureMap::ALL {
        for dtype in [Dtype::Bf16, Dtype::F16] {
            let mut problem = linear(dtype, Phase::Prefill, (2, 2), (0, 0), (64, 64));
            problem.mechanism = Mechanism::Linear { feature_map, normalised: feature_map == FeatureMap::Relu };
            problem.batch = 3;
            problem.causal = dtype == Dtype::Bf16;
            problem.seqlen_q = Lengths::List(vec![300, 1, 70]);
            problem.seqlen_kv = Lengths::List(vec![300, 90, 0]);
            check(&Linear, &problem);
        }
    }
}

/// Sums far beyond what f16 holds: constant keys, whose normalised output is their value, whatever the sums in between.
#[test]
fn linear_prefill_in_f16_does_not_overflow() {
    for causal in [false, true] {
        let mut problem = linear(Dtype::F16, Phase::Prefill, (1, 1), (300, 300), (128, 128));
        problem.mechanism = Mechanism::Linear { feature_map: FeatureMap::Relu, normalised: true };
        problem.causal = causal;
        let plan = Linear.plan(&problem, &DEVICE).expect("it is supported");
        let spec = InputSpec::new(&problem, 5);
        let mut inputs = Generator::new(&problem, &spec, 0).inputs();
        // 1000 in f16; products are 1e6, their sum over d 1e8, and over keys 4e10.
        let thousand = 0x63d0u16.to_le_bytes();
        for name in [TensorName::Q, TensorName::K, TensorName::V] {
            inputs.get_mut(name).bytes_mut().chunks_exact_mut(2).for_each(|x| x.copy_from_slice(&thousand));
        }
        let mut outputs = input::outputs(&problem);
        shim::run(&shim::cuda_folder(), &plan, &inputs, &mut outputs).expect("it runs");
        let o = outputs.get(TensorName::O);
        for index in 0..o.len() {
            assert!((o.get_f64(index) - 1000.0).abs() <= 1.0, "causal {causal}, {index}: {}", o.get_f64(index));
        }
    }
}
