//! `flash` and `flash1`: lengths, masks, head dimensions, layouts.

use attn_kernels::cuda::CudaKernel;
use attn_kernels::cuda::flash::Flash;
use attn_kernels::cuda::flash1::Flash1;
use attn_kernels::input::{self, Generator, InputSpec};
use attn_kernels::pattern::Visibility;
use attn_kernels::problem::{AttentionProblem, Bias, CausalAlignment, Dtype, Layout, Lengths, Pattern, Phase};
use attn_kernels::tensor::TensorName;

use super::{DEVICE, check, problems, shim};

pub(crate) fn problem(dtype: Dtype, heads: (usize, usize), lengths: (usize, usize), dim: usize) -> AttentionProblem {
    AttentionProblem::softmax(Phase::Prefill, dtype, 1, heads, lengths, dim)
}

/// FlashAttention's own list as far as it is quick, and the smallest lengths.
pub(crate) const LENGTHS: [(usize, usize); 14] = [
    (1, 1),
    (1, 33),
    (64, 128),
    (128, 192),
    (239, 1),
    (300, 3),
    (113, 203),
    (113, 128),
    (128, 217),
    (113, 211),
    (108, 256),
    (256, 100),
    (129, 127),
    (257, 258),
];

pub(crate) fn irregular_lengths(kernel: &dyn CudaKernel) {
    for (index, lengths) in LENGTHS.into_iter().enumerate() {
        for causal in [false, true] {
            let dtype = [Dtype::Bf16, Dtype::F16][index % 2];
            let mut problem = problem(dtype, [(1, 1), (2, 1)][index / 2 % 2], lengths, 64);
            problem.causal = causal;
            problem.causal_alignment = [CausalAlignment::BottomRight, CausalAlignment::TopLeft][index / 3 % 2];
            problem.layout = [Layout::Bshd, Layout::Bhsd, Layout::Thd][index % 3];
            check(kernel, &problem);
        }
    }
}

#[test]
fn flash_of_irregular_lengths() {
    irregular_lengths(&Flash);
}

#[test]
fn flash1_of_irregular_lengths() {
    irregular_lengths(&Flash1);
}

#[test]
fn windows() {
    for problem in problems::windows(Phase::Prefill, Dtype::F16, &[(150, 150), (70, 300), (200, 65)]) {
        check(&Flash, &problem);
        if problem.lengths_q()[0] == 70 {
            check(&Flash1, &problem);
        }
    }
}

/// Every compiled width, and widths that fill one in part.
#[test]
fn head_dimensions() {
    let dims = [
        (64, 64),
        (96, 96),
        (128, 128),
        (192, 128),
        (192, 192),
        (256, 256),
        (40, 72),
        (8, 8),
        (104, 128),
        (200, 24),
        (1, 1),
        (7, 20),
        (65, 33),
        (80, 3),
        (255, 249),
    ];
    for (index, (dim_qk, dim_v)) in dims.into_iter().enumerate() {
        let mut problem = problem([Dtype::Bf16, Dtype::F16][index % 2], (1, 1), (70, 150), dim_qk);
        problem.head_dim_v = dim_v;
        problem.causal = true;
        check(&Flash, &problem);
        if matches!(dim_qk, 96 | 128) {
            // A softcap changes the tiles of these.
            check(&Flash, &AttentionProblem { softcap: Some(20.0), ..problem.clone() });
        }
        if matches!(dim_v, 72 | 256) {
            check(&Flash1, &problem);
        }
    }
}

#[test]
fn shared_heads_ragged_batches_and_softcap() {
    for mut problem in problems::ragged(Phase::Prefill, &[Layout::Bshd, Layout::Bhsd, Layout::Thd], [64; 3]) {
        problem.softcap = (problem.heads_q == 2).then_some(3.0);
        check(&Flash, &problem);
        if problem.layout == Layout::Thd {
            check(&Flash1, &problem);
        }
    }
}

/// Every bias with and without what else changes scores, over lengths that no tile divides.
#[test]
fn biases_sinks_and_scales_of_either_sign() {
    for (index, bias) in Bias::ALL.into_iter().enumerate() {
        for sinks in [false, true] {
            let mut problem = problem([Dtype::Bf16, Dtype::F16][index % 2], (4, 2), (0, 0), 64);
            problem.batch = 3;
            problem.causal = bias == Bias::Alibi;
            problem.bias = bias;
            problem.sinks = sinks;
            problem.softcap = sinks.then_some(4.0);
            problem.scale = [None, Some(-0.2)][index % 2];
            problem.seqlen_q = Lengths::List(vec![70, 1, 133]);
            problem.seqlen_kv = Lengths::List(vec![70, 0, 90]);
            check(&Flash, &problem);
        }
    }
    // The tiles of every width, and a window whose first keys the bias favours.
    for (dim, dim_v) in [(96, 96), (128, 128), (192, 128), (256, 256)] {
        let mut problem = problem(Dtype::Bf16, (3, 1), (70, 150), dim);
        problem.head_dim_v = dim_v;
        problem.bias = Bias::Alibi;
        problem.causal_alignment = CausalAlignment::TopLeft;
        problem.pattern = Pattern::Window { left: 40, right: 9 };
        check(&Flash, &problem);
    }
}

/// Pairs of a query tile and a key tile that a launch of `flash` reads, found out by values that are no numbers: whoever reads
/// a tile of V that holds them has them in its output, whatever weight they get.
fn visits(problem: &AttentionProblem, rows: usize, keys: usize) -> Vec<(usize, usize)> {
    let plan = Flash.plan(problem, &DEVICE).expect("it is supported");
    let (len_q, len_kv) = (problem.lengths_q()[0], problem.lengths_kv()[0]);
    let spec = InputSpec::new(problem, 3);
    let mut visits = Vec::new();
    for tile in 0..len_kv.div_ceil(keys) {
        let mut inputs = Generator::new(problem, &spec, 0).inputs();
        let v = inputs.get_mut(TensorName::V).bytes_mut();
        let row_bytes = v.len() / len_kv;
        v[tile * keys * row_bytes..((tile + 1) * keys).min(len_kv) * row_bytes].fill(0xff);
        let mut outputs = input::outputs(problem);
        shim::run(&shim::cuda_folder(), &plan, &inputs, &mut outputs).expect("it runs");
        let o = outputs.get(TensorName::O);
        let is_tainted = |query: usize| o.get_f64(query * problem.head_dim_v).is_nan();
        visits.extend((0..len_q.div_ceil(rows)).filter(|block| is_tainted(block * rows)).map(|block| (block, tile)));
    }
    visits.sort_unstable();
    visits
}

#[test]
fn windows_visit_only_tiles_that_they_meet() {
    let windows = [(70, 0, true), (20, 30, false), (3, 200, false)];
    for (left, right, causal) in windows {
        for (alignment, lengths) in [
            (CausalAlignment::BottomRight, (300, 300)),
            (CausalAlignment::BottomRight, (130, 450)),
            (CausalAlignment::TopLeft, (130, 450)),
            (CausalAlignment::TopLeft, (300, 129)),
        ] {
            let mut problem = problem(Dtype::Bf16, (1, 1), lengths, 64);
            problem.pattern = Pattern::Window { left, right };
            (problem.causal, problem.causal_alignment) = (causal, alignment);
            let problem = problem.normalise();
            let visibility = Visibility::new(&problem, lengths.0, lengths.1);
            let map = visibility.block_map(0, 128, 64);
            let meets: Vec<(usize, usize)> =
                (0..map.rows()).flat_map(|row| map.row(row).iter().map(move |block| (row, block.index))).collect();
            assert_eq!(visits(&problem, 128, 64), meets, "{problem:?}");
        }
    }
}
