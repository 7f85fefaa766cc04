//! `split_kv` and `paged`: few queries over long caches, shared heads, pages.

use attn_kernels::cuda::CudaKernel;
use attn_kernels::cuda::paged::Paged;
use attn_kernels::cuda::split_kv::SplitKv;
use attn_kernels::e4m3::e4m3;
use attn_kernels::input::{self, Generator, InputSpec};
use attn_kernels::problem::{
    AttentionProblem, Bias, CausalAlignment, Dtype, KvLayout, Layout, Lengths, Pattern, Phase,
};

use attn_kernels::tensor::TensorName;

use super::{DEVICE, check, shim};

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

/// 16, 32 and 64 rows a block, of which one warp takes as many as its registers hold.
#[test]
fn row_tiles() {
    for (group, len_q) in [(20, 1), (9, 5), (32, 2), (33, 4)] {
        for (dim_qk, dim_v) in [(128, 128), (248, 200)] {
            let mut problem = problem(Dtype::Bf16, (2 * group, 2), (len_q, 450), dim_qk);
            problem.head_dim_v = dim_v;
            check(&SplitKv, &problem);
        }
    }
}

/// Pages of one token and pages of many steps. What no token owns is NaN in the pool and -1 in the table.
#[test]
fn page_sizes() {
    let mut problem = problem(Dtype::Bf16, (8, 2), (1, 0), 64);
    problem.batch = 3;
    problem.seqlen_kv = Lengths::List(vec![700, 3, 257]);
    for dtype_kv in [Dtype::Bf16, Dtype::E4m3] {
        for page_size in [1, 16, 64, 256] {
            check(&Paged, &AttentionProblem { dtype_kv, kv_layout: KvLayout::Paged { page_size }, ..problem.clone() });
        }
    }
    let spec = InputSpec::new(&problem, 7);
    let paged = AttentionProblem { kv_layout: KvLayout::Paged { page_size: 64 }, ..problem.clone() };
    let inputs = Generator::new(&paged, &spec, 0).inputs();
    let table = inputs.get(TensorName::PageTable);
    assert_eq!((0..table.len()).filter(|&entry| table.get_f64(entry) == -1.0).count(), 3 * 11 - 11 - 1 - 5);
    let keys = inputs.get(TensorName::K);
    let unused = (0..keys.len()).filter(|&element| keys.get_f64(element).is_nan()).count();
    assert_eq!(unused, keys.len() - (700 + 3 + 257) * 2 * 64);
}

/// Keys and values of one byte: every shape of tile, shares, and rows that are no whole 16 bytes.
#[test]
fn keys_of_one_byte() {
    let cases = [
        (Dtype::Bf16, (8, 2), (1, 900), (64, 64)),
        (Dtype::F16, (40, 1), (1, 100), (64, 64)),
        (Dtype::Bf16, (40, 2), (2, 300), (128, 128)),
        (Dtype::F16, (4, 2), (3, 200), (96, 80)),
        (Dtype::Bf16, (6, 2), (1, 333), (192, 128)),
        (Dtype::F16, (18, 1), (1, 130), (256, 256)),
        (Dtype::Bf16, (4, 2), (2, 500), (40, 33)),
    ];
    for (index, (dtype, heads, lengths, (dim_qk, dim_v))) in cases.into_iter().enumerate() {
        let mut problem = problem(dtype, heads, lengths, dim_qk);
        (problem.head_dim_v, problem.dtype_kv) = (dim_v, Dtype::E4m3);
        problem.sinks = index % 2 == 0;
        problem.softcap = (index == 0).then_some(5.0);
        check(&SplitKv, &problem);
    }
}

/// One key, so that O is V: every number of this type in its place, and NaN.
#[test]
fn every_number_of_one_byte_is_read() {
    let mut problem = problem(Dtype::F16, (4, 4), (1, 1), 64);
    problem.dtype_kv = Dtype::E4m3;
    let mut inputs = Generator::new(&problem, &InputSpec::new(&problem, 7), 0).inputs();
    let values = inputs.get_mut(TensorName::V).as_mut_slice::<e4m3>();
    values.iter_mut().enumerate().for_each(|(index, value)| *value = e4m3::from_bits(index as u8));
    let mut outputs = input::outputs(&problem);
    let plan = SplitKv.plan(&problem, &DEVICE).expect("the problem is supported");
    shim::run(&shim::cuda_folder(), &plan, &inputs, &mut outputs).expect("it runs");
    for index in 0..256 {
        let (stored, read) = (inputs.get(TensorName::V).get_f64(index), outputs.get(TensorName::O).get_f64(index));
        assert!(read == stored || read.is_nan() && stored.is_nan(), "number {index}: {read} for {stored}");
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
