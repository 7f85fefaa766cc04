//! The dense softmax kernels against the f64 oracle: irregular lengths and head dims, every dtype, layout, bias and
//! instruction set of this CPU, one and two threads.

use attn_kernels::cpu::flash::Flash;
use attn_kernels::cpu::flash1::Flash1;
use attn_kernels::cpu::naive::Naive;
use attn_kernels::cpu::paged::Paged;
use attn_kernels::cpu::simd::Isa;
use attn_kernels::cpu::split_kv::SplitKv;
use attn_kernels::input::{self, Generator, InputSpec, hash64};
use attn_kernels::kernel::{Kernel, KernelError, PlanContext};
use attn_kernels::problem::{
    AttentionProblem, Bias, CausalAlignment, Dtype, KvLayout, Layout, Lengths, Mechanism, Pattern, Phase,
};
use attn_kernels::reference::{Oracle, SamplePlan, TensorRows};
use attn_kernels::tensor::{Tensor, TensorName, TensorSet};

/// FLOPs that the oracle may spend on one case.
const ORACLE_FLOPS: f64 = 4e6;

/// FlashAttention's own list of (queries, keys) up to 1024, and the smallest lengths.
const LENGTHS: [(usize, usize); 26] = [
    (1, 1),
    (1, 2),
    (2, 1),
    (3, 0),
    (0, 5),
    (1, 33),
    (97, 129),
    (64, 128),
    (128, 192),
    (256, 256),
    (239, 1),
    (799, 3),
    (113, 203),
    (113, 128),
    (128, 217),
    (113, 211),
    (108, 256),
    (256, 512),
    (384, 256),
    (640, 128),
    (512, 256),
    (1024, 1024),
    (1023, 1024),
    (1024, 1023),
    (2, 4100),
    (1, 1000),
];

/// Every kernel of this file on every instruction set of this CPU.
fn kernels() -> Vec<(Isa, Box<dyn Kernel>)> {
    let on = |isa: Isa| -> [Box<dyn Kernel>; 5] {
        let isa = Some(isa);
        [
            Box::new(Naive { isa }),
            Box::new(Flash1 { isa }),
            Box::new(Flash { isa }),
            Box::new(SplitKv { isa }),
            Box::new(Paged { isa }),
        ]
    };
    Isa::available().into_iter().flat_map(|isa| on(isa).map(|kernel| (isa, kernel))).collect()
}

/// Pools of one and two threads.
fn pools() -> [rayon::ThreadPool; 2] {
    [1, 2].map(|threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap())
}

/// The outputs, LSE included, of the second call of a plan whose first call saw other inputs.
fn run(kernel: &dyn Kernel, problem: &AttentionProblem, inputs: &TensorSet, pool: &rayon::ThreadPool) -> TensorSet {
    let mut static_tensors = TensorSet::new();
    for (name, tensor) in inputs.iter().filter(|(name, _)| input::is_static(*name)) {
        static_tensors.insert(name, tensor.clone());
    }
    let threads = pool.current_num_threads();
    let context = PlanContext { problem, static_tensors: &static_tensors, threads, available_bytes: 1 << 30 };
    let mut outputs = input::outputs(problem);
    let (element, dims) = input::tensor_shape(problem, TensorName::Lse);
    outputs.insert(TensorName::Lse, Tensor::zeros(element, &dims));
    let mut other = inputs.clone();
    Generator::new(problem, &InputSpec::new(problem, 99), 1).overwrite(&mut other, false);
    if let Some(bias) = inputs.find(TensorName::Bias) {
        other.insert(TensorName::Bias, bias.clone());
    }
    pool.install(|| {
        let mut plan = kernel.plan(&context).expect("the kernel supports the problem");
        plan.run(&other, &mut outputs);
        outputs.iter_mut().for_each(|(_, tensor)| tensor.poison());
        plan.run(inputs, &mut outputs);
    });
    outputs
}

/// Compares every kernel that supports the problem with the oracle; returns how many did.
fn check(problem: &AttentionProblem, inputs: &TensorSet) -> usize {
    let rows = TensorRows::new(problem, inputs);
    let spec = InputSpec::new(problem, 7);
    let plan = SamplePlan::for_problem(problem, &spec, 0, ORACLE_FLOPS).with_lse();
    let expected = Oracle::new(problem, &rows).expected(&plan);
    let pools = pools();
    let mut count = 0;
    for (isa, kernel) in kernels() {
        if kernel.supports(problem).is_err() {
            continue;
        }
        count += 1;
        let outputs = pools.each_ref().map(|pool| run(&*kernel, problem, inputs, pool));
        for expected in &expected {
            let bytes = expected.rows.gather(problem, &outputs[0]).unwrap();
            let report = expected.judge_bytes(&bytes).unwrap();
            let tensor = expected.rows.tensor;
            assert!(report.pass, "{} {} {tensor:?}: {report:#?}\n{problem:#?}", kernel.name(), isa.name());
            let parallel = expected.rows.gather(problem, &outputs[1]).unwrap();
            assert_eq!(bytes, parallel, "{} depends on the number of threads: {problem:?}", kernel.name());
        }
    }
    count
}

fn check_generated(problem: &AttentionProblem) -> usize {
    let spec = InputSpec::new(problem, 7);
    check(problem, &Generator::new(problem, &spec, 0).inputs())
}

/// A stream of choices: seed and position.
struct Choices(u64, u64);

impl Choices {
    fn of<T: Clone>(&mut self, options: &[T]) -> T {
        self.1 += 1;
        options[(hash64(self.0, self.1) % options.len() as u64) as usize].clone()
    }
}

/// A problem whose options are drawn.
fn draw(seed: u64, (len_q, len_kv): (usize, usize)) -> AttentionProblem {
    let is_large = len_q * len_kv > 100_000;
    let mut choose = Choices(seed, 0);
    let mut phases = vec![Phase::Prefill, Phase::Append];
    if len_q <= 4 {
        phases.push(Phase::Decode);
    }
    let phase = choose.of(&phases);
    let heads = choose.of(&[(1, 1), (2, 1), (4, 1), (4, 2), (8, 1), (3, 3), (6, 2)]);
    let (heads, batch) = if is_large { ((2, 1), 1) } else { (heads, choose.of(&[1, 2])) };
    let dim = choose.of(&[1, 3, 16, 40, 64, 80, 96, 128, 192, 256]);
    let mut problem = AttentionProblem::softmax(phase, Dtype::F32, batch, heads, (len_q, len_kv), dim);
    problem.head_dim_v = choose.of(&[dim, dim, dim, 5, 72, 128]);
    problem.dtype = choose.of(&Dtype::ALL);
    problem.dtype_kv = choose.of(&[problem.dtype, problem.dtype, Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::E4m3]);
    problem.causal = choose.of(&[true, false]);
    problem.causal_alignment = choose.of(&[CausalAlignment::BottomRight, CausalAlignment::TopLeft]);
    problem.pattern = choose.of(&[
        Pattern::Full,
        Pattern::Full,
        Pattern::Window { left: 0, right: 0 },
        Pattern::Window { left: 7, right: 40 },
        Pattern::Window { left: 130, right: 0 },
        Pattern::Window { left: 1 << 23, right: 3 },
    ]);
    problem.layout = choose.of(&[Layout::Bshd, Layout::Bhsd, Layout::Thd]);
    problem.softcap = choose.of(&[None, None, Some(2.0), Some(30.0)]);
    problem.scale = choose.of(&[None, None, Some(0.3)]);
    problem.sinks = choose.of(&[false, false, true]);
    problem.bias = choose.of(&[Bias::None, Bias::None, Bias::Alibi, Bias::Bool, Bias::Additive]);
    if phase != Phase::Prefill {
        problem.kv_layout = choose.of(&[
            KvLayout::Contiguous,
            KvLayout::Paged { page_size: 1 },
            KvLayout::Paged { page_size: 16 },
            KvLayout::Paged { page_size: 37 },
        ]);
    }
    if batch == 2 && choose.of(&[true, false]) {
        problem.seqlen_q = Lengths::List(vec![len_q, len_q / 2]);
        problem.seqlen_kv = Lengths::List(vec![len_kv.div_ceil(3), len_kv]);
    }
    problem
}

#[test]
fn drawn_problems_agree_with_the_oracle() {
    let mut count = 0;
    for (index, &lengths) in LENGTHS.iter().enumerate() {
        let draws = if lengths.0 * lengths.1 > 100_000 { 2 } else { 5 };
        for round in 0..draws {
            count += check_generated(&draw(index as u64 * 100 + round, lengths));
        }
    }
    assert!(count > 100, "only {count} runs");
}

#[test]
fn every_head_dim_and_dtype_agrees_with_the_oracle() {
    for dtype in Dtype::ALL {
        for dim in [1, 3, 16, 40, 64, 80, 96, 128, 192, 256] {
            let mut problem = AttentionProblem::softmax(Phase::Append, dtype, 1, (2, 1), (33, 70), dim);
            problem.causal = true;
            check_generated(&problem);
            problem = AttentionProblem::softmax(Phase::Decode, dtype, 2, (8, 2), (1, 600), dim);
            check_generated(&problem);
            problem.kv_layout = KvLayout::Paged { page_size: 16 };
            check_generated(&problem);
            problem.dtype_kv = Dtype::E4m3;
            check_generated(&problem);
        }
    }
}

#[test]
fn many_splits_and_long_ragged_caches_agree_with_the_oracle() {
    for (heads, len_q) in [((8, 8), 1), ((8, 2), 1), ((8, 1), 2), ((8, 2), 9)] {
        for kv_layout in [KvLayout::Contiguous, KvLayout::Paged { page_size: 16 }] {
            let phase = if len_q == 1 { Phase::Decode } else { Phase::Append };
            let mut problem = AttentionProblem::softmax(phase, Dtype::F16, 3, heads, (len_q, 1), 64);
            problem.kv_layout = kv_layout;
            problem.causal = true;
            problem.seqlen_kv = Lengths::List(vec![5000, 17, 1300]);
            assert!(check_generated(&problem) >= Isa::available().len());
            problem.pattern = Pattern::Window { left: 1023, right: 0 };
            check_generated(&problem);
        }
    }
}

#[test]
fn mla_prefill_agrees_with_the_oracle() {
    let mut problem = AttentionProblem::softmax(Phase::Prefill, Dtype::Bf16, 1, (4, 4), (200, 200), 192);
    problem.mechanism = Mechanism::MLA;
    problem.head_dim_v = 128;
    problem.causal = true;
    assert_eq!(check_generated(&problem), 2 * Isa::available().len());
}

#[test]
fn naive_takes_every_pattern() {
    for pattern in [
        Pattern::Dilated { window: 5, step: 3 },
        Pattern::Longformer { window: 9, global: 4, dilation: 2 },
        Pattern::Bigbird { block: 16, window: 3, global: 2, random: 2, seed: 5 },
        Pattern::Strided { stride: 12 },
        Pattern::Fixed { block: 16, summary: 3 },
    ] {
        let mut problem = AttentionProblem::softmax(Phase::Prefill, Dtype::F32, 2, (4, 2), (150, 150), 32);
        problem.pattern = pattern;
        problem.causal = matches!(pattern, Pattern::Strided { .. } | Pattern::Fixed { .. });
        assert_eq!(check_generated(&problem), Isa::available().len());
        problem.bias = Bias::Bool;
        assert_eq!(check_generated(&problem), Isa::available().len());
    }
}

/// Masks as a user hands them in: broadcast, short, and with rows that hide everything.
#[test]
fn handed_in_masks_agree_with_the_oracle() {
    let (batch, heads, len_q, len_kv) = (2, 4, 70, 150);
    for (dims, dtype) in [
        ([1, 1, len_q, len_kv], Dtype::F32),
        ([batch, 1, 1, len_kv], Dtype::F16),
        ([1, heads, len_q, 1], Dtype::Bf16),
        ([batch, heads, len_q, 101], Dtype::F32),
        ([1, 1, 1, 1], Dtype::F16),
        ([1, heads, 1, 130], Dtype::F32),
    ] {
        for (bias, causal) in [(Bias::Bool, false), (Bias::Bool, true), (Bias::Additive, false), (Bias::Additive, true)]
        {
            let mut problem = AttentionProblem::softmax(Phase::Append, dtype, batch, (heads, 2), (len_q, len_kv), 24);
            problem.bias = bias;
            problem.causal = causal;
            problem.softcap = Some(5.0);
            let mut inputs = Generator::new(&problem, &InputSpec::new(&problem, 3), 0).inputs();
            // Every seventh row hides everything, and so does one element in four.
            let hidden = |index: usize| (index / dims[3]) % 7 == 3 || hash64(1, index as u64).is_multiple_of(4);
            let additive = |index: usize| match hidden(index) {
                true => f32::NEG_INFINITY,
                false => (hash64(2, index as u64) % 64) as f32 / 16.0 - 2.0,
            };
            let all = 0..dims.iter().product();
            let f16s = || all.clone().map(|index| half::f16::from_f32(additive(index)));
            let bf16s = || all.clone().map(|index| half::bf16::from_f32(additive(index)));
            let mask = match (bias, dtype) {
                (Bias::Bool, _) => {
                    Tensor::from_slice(&dims, &all.clone().map(|index| u8::from(!hidden(index))).collect::<Vec<_>>())
                }
                (_, Dtype::F32) => Tensor::from_slice(&dims, &all.clone().map(additive).collect::<Vec<_>>()),
                (_, Dtype::F16) => Tensor::from_slice(&dims, &f16s().collect::<Vec<_>>()),
                (_, Dtype::Bf16) => Tensor::from_slice(&dims, &bf16s().collect::<Vec<_>>()),
                (_, Dtype::E4m3) => unreachable!("a bias has the dtype of the queries"),
            };
            inputs.insert(TensorName::Bias, mask);
            assert_eq!(check(&problem, &inputs), 2 * Isa::available().len());
        }
    }
}

/// Scores of 10,000 are exact to 2^-24 of that only, so weights are to 1e-3: but nothing may overflow.
#[test]
fn large_scores_stay_finite() {
    for (phase, len_q) in [(Phase::Prefill, 130), (Phase::Append, 3)] {
        let mut problem = AttentionProblem::softmax(phase, Dtype::F32, 1, (2, 1), (len_q, 260), 64);
        problem.scale = Some(100.0);
        let inputs = Generator::new(&problem, &InputSpec::new(&problem, 7), 0).inputs();
        let rows = TensorRows::new(&problem, &inputs);
        let queries: Vec<_> = (0..2).flat_map(|head| (0..len_q).map(move |query| (0, head, query))).collect();
        let expected = Oracle::new(&problem, &rows).forward_rows(&queries);
        let largest = expected.iter().map(|row| row.lse.abs()).fold(0.0, f64::max);
        assert!(largest > 5e3, "the scores are large: {largest}");
        let pools = pools();
        for (isa, kernel) in kernels() {
            if kernel.supports(&problem).is_err() {
                continue;
            }
            let outputs = run(&*kernel, &problem, &inputs, &pools[1]);
            let o = outputs.get(TensorName::O).as_slice::<f32>();
            for (&(_, head, query), row) in queries.iter().zip(&expected) {
                let got = &o[(query * 2 + head) * 64..][..64];
                let error = got.iter().zip(&row.o).map(|(&x, y)| (f64::from(x) - y).powi(2)).sum::<f64>().sqrt();
                let bound = 8.0 * largest / f64::from(1 << 24) * row.scale;
                assert!(error <= bound, "{} {}: {error} > {bound}", kernel.name(), isa.name());
            }
        }
    }
}

/// A NaN in a visible key reaches the rows that see it.
#[test]
fn nan_is_not_hidden() {
    let problem = AttentionProblem::softmax(Phase::Append, Dtype::F32, 1, (1, 1), (3, 40), 16);
    let mut inputs = Generator::new(&problem, &InputSpec::new(&problem, 7), 0).inputs();
    for elements in [5 * 16..5 * 16 + 1, 0..40 * 16] {
        inputs.get_mut(TensorName::K).as_mut_slice::<f32>()[elements].fill(f32::NAN);
        for (isa, kernel) in kernels() {
            if kernel.supports(&problem).is_ok() {
                let outputs = run(&*kernel, &problem, &inputs, &pools()[0]);
                let o = outputs.get(TensorName::O).as_slice::<f32>();
                assert!(o.iter().all(|x| x.is_nan()), "{} {}", kernel.name(), isa.name());
            }
        }
    }
}

#[test]
fn naive_refuses_scores_that_do_not_fit() {
    let problem = AttentionProblem::softmax(Phase::Prefill, Dtype::F32, 1, (32, 8), (65536, 65536), 64);
    let available_bytes = 1 << 33;
    let context = PlanContext { problem: &problem, static_tensors: &TensorSet::new(), threads: 2, available_bytes };
    match (Naive { isa: None }).plan(&context).map(|_| ()) {
        Err(KernelError::OutOfMemory { needed_bytes, available_bytes: available }) => {
            assert!(needed_bytes >= 32 * 65536 * 65536 * 4 && available == available_bytes);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn refusals_name_the_property() {
    let base = AttentionProblem::softmax(Phase::Decode, Dtype::F32, 1, (2, 1), (1, 8), 8);
    let paged = AttentionProblem { kv_layout: KvLayout::Paged { page_size: 4 }, ..base.clone() };
    let masked = AttentionProblem { bias: Bias::Bool, ..base.clone() };
    let backward = AttentionProblem { phase: Phase::Backward, ..base.clone() };
    let strided = AttentionProblem { pattern: Pattern::Strided { stride: 4 }, causal: true, ..base.clone() };
    let linear = AttentionProblem { mechanism: Mechanism::LINEAR, ..base.clone() };
    let cases: [(&dyn Kernel, &AttentionProblem, &str); 9] = [
        (&Naive { isa: None }, &paged, "pages"),
        (&Flash { isa: None }, &paged, "pages"),
        (&SplitKv { isa: None }, &paged, "pages"),
        (&Paged { isa: None }, &base, "contiguous"),
        (&SplitKv { isa: None }, &masked, "mask"),
        (&Flash1 { isa: None }, &masked, "mask"),
        (&Flash1 { isa: None }, &backward, "backward"),
        (&Flash { isa: None }, &strided, "strided"),
        (&Naive { isa: None }, &linear, "softmax"),
    ];
    for (kernel, problem, word) in cases {
        let error = kernel.supports(problem).unwrap_err().to_string();
        assert!(error.contains(kernel.name()) && error.contains(word), "{error}");
    }
}
