//! What the CPU kernels reach of this machine's limits: `cargo run --release -p attn-kernels --example rates -- [threads]
//! [filter] [isa]`, where the filter is a part of the listed cases, or another case as "KERNEL PROBLEM-ID", and isa is
//! `portable`, `avx2` or `avx512`, the widest unless given.
//!
//! Compute-bound cases are compared with the FMA rate of a loop without memory, memory-bound ones with the bandwidth of
//! reading, both measured before each call in the same process: times and their rates are the best call's, shares and ceilings the
//! median call's.
//! Times are CPU time a thread: idle threads do not count.

use std::hint::black_box;

use attn_kernels::cpu;
use attn_kernels::cpu::simd::{Isa, Simd, Task};
use attn_kernels::input::{self, Generator, InputSpec};
use attn_kernels::kernel::{Kernel, Plan, PlanContext};
use attn_kernels::problem::{AttentionProblem, Phase};
use attn_kernels::tensor::{ElementType, Tensor, TensorName, TensorSet};
use attn_kernels::work::Work;
use rayon::prelude::*;

/// Chains of [`FmaLoop`].
const CHAINS: usize = 10;

/// Ten independent chains of FMAs, more than latency times ports on any CPU, whose operands change from step to step and
/// lane to lane: on equal or constant operands many CPUs draw less power and run at a higher clock than any real product.
/// Chains and operands fit the 16 registers of AVX2.
struct FmaLoop<'a> {
    steps: usize,
    /// (4, LANES), between -1 and 1.
    operands: &'a [f32],
}

impl Task for FmaLoop<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self) -> f32 {
        let mut operands = [S::splat(0.0); 4];
        for (operand, lanes) in operands.iter_mut().zip(self.operands.chunks_exact(S::LANES)) {
            // SAFETY: a chunk has LANES elements.
            *operand = unsafe { S::load(lanes.as_ptr()) };
        }
        let mut chains = [S::splat(black_box(0.5)); CHAINS];
        for _ in 0..self.steps / 4 {
            for step in 0..4 {
                for chain in 0..CHAINS {
                    let (x, y) = (operands[(chain + step) % 2], operands[2 + (chain + step) % 2]);
                    chains[chain] = S::fma(chains[chain], x, y);
                }
            }
        }
        let mut total = 0.0;
        for chain in chains {
            total += S::sum(chain);
        }
        total
    }
}

/// FLOP/s of all threads.
fn fma_rate(isa: Isa) -> f64 {
    let steps = 2_000_000;
    let flops = (2 * CHAINS * steps * isa.lanes() * rayon::current_num_threads()) as f64;
    let operands: Vec<f32> = (0..4 * isa.lanes() as u64)
        .map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / (1 << 23) as f32 - 1.0)
        .collect();
    let operands = black_box(operands.as_slice());
    flops / best_seconds(5, || rayon::broadcast(|_| black_box(isa.run(FmaLoop { steps, operands }))))
}

/// Elements between what is read and what is asked for.
const AHEAD_ELEMENTS: usize = 2048;

/// Sums of vectors, eight at a time.
struct ReadLoop<'a> {
    values: &'a [f32],
}

impl Task for ReadLoop<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self) -> f32 {
        let mut sums = [S::splat(0.0); 8];
        for chunk in self.values.chunks_exact(8 * S::LANES) {
            for (i, sum) in sums.iter_mut().enumerate() {
                // As the kernels do: many CPUs read faster when asked than by their own guess.
                S::prefetch(chunk.as_ptr().wrapping_add(AHEAD_ELEMENTS + i * S::LANES).cast());
                // SAFETY: the chunk holds eight vectors.
                *sum = S::add(*sum, unsafe { S::load(chunk.as_ptr().add(i * S::LANES)) });
            }
        }
        sums.into_iter().map(S::sum).sum()
    }
}

/// Bytes a second that all threads read from memory.
fn read_rate(isa: Isa, values: &[f32]) -> f64 {
    let part = values.len() / rayon::current_num_threads();
    let read = || values.par_chunks(part).map(|values| isa.run(ReadLoop { values })).sum::<f32>();
    (values.len() * 4) as f64 / best_seconds(5, || black_box(read()))
}

/// CPU time that this process has used, in seconds.
fn cpu_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec of this frame.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// The shortest call, in CPU time a thread: on a shared machine, time that other programs had does not count.
fn best_seconds<T>(calls: usize, mut call: impl FnMut() -> T) -> f64 {
    (0..calls)
        .map(|_| {
            let start = cpu_seconds();
            black_box(call());
            (cpu_seconds() - start) / rayon::current_num_threads() as f64
        })
        .fold(f64::INFINITY, f64::min)
}

/// Kernels and problems by their ids, as suites print them.
const CASES: &[(&str, &str)] = &[
    ("flash", "softmax/prefill/full/f32/b1/h8:8/q512/k512/d64"),
    ("flash", "softmax/prefill/full+causal/f32/b1/h8:8/q512/k512/d64"),
    ("flash", "softmax/prefill/full/f32/b1/h8:8/q2048/k2048/d64"),
    ("flash", "softmax/prefill/full+causal/f32/b1/h8:8/q2048/k2048/d64"),
    ("flash", "softmax/prefill/full/f32/b1/h32:8/q1024/k1024/d128"),
    ("flash", "softmax/prefill/full+causal/f32/b1/h32:8/q1024/k1024/d128"),
    ("flash", "softmax/prefill/window:255,0/f32/b1/h8:8/q4096/k4096/d64"),
    ("flash", "softmax/prefill/full/bf16/b1/h8:8/q2048/k2048/d64"),
    ("flash", "softmax/backward/full/f32/b1/h8:8/q2048/k2048/d64"),
    ("flash", "softmax/backward/full+causal/f32/b1/h8:8/q2048/k2048/d64"),
    ("flash", "softmax/backward/full/f32/b1/h8:8/q2048/k2048/d128"),
    ("flash", "softmax/backward/full+causal/f32/b1/h8:8/q2048/k2048/d128"),
    ("flash", "softmax/backward/full/f32/b1/h2:2/q8192/k8192/d64"),
    ("flash", "softmax/backward/full+causal/f32/b1/h2:2/q8192/k8192/d64"),
    ("flash", "softmax/backward/full+causal/f32/b1/h8:2/q2048/k2048/d128"),
    ("flash1", "softmax/prefill/full/f32/b1/h8:8/q2048/k2048/d64"),
    ("naive", "softmax/prefill/full/f32/b1/h8:8/q2048/k2048/d64"),
    ("split_kv", "softmax/append/full/f32/b1/h32:8/q64/k4096/d128"),
    ("split_kv", "softmax/decode/full/f32/b1/h32:8/q1/k8192/d128"),
    ("split_kv", "softmax/decode/full/f32/b1/h32:8/q1/k65536/d128"),
    ("split_kv", "softmax/decode/full/f32/b1/h32:8/q1/k65536/d128/layout=bhsd"),
    ("split_kv", "softmax/decode/full/f32/b1/h32:32/q1/k65536/d128"),
    ("split_kv", "softmax/decode/full/f32/b1/h32:1/q1/k65536/d128"),
    ("split_kv", "softmax/decode/full/f16/b1/h32:8/q1/k65536/d128"),
    ("split_kv", "softmax/decode/full/f16/b1/h32:32/q1/k65536/d128"),
    ("split_kv", "softmax/decode/full/bf16/b1/h32:8/q1/k65536/d128"),
    ("split_kv", "softmax/decode/full/bf16/b1/h32:32/q1/k65536/d128"),
    ("paged", "softmax/decode/full/f32/b1/h32:8/q1/k65536/d128/page=16"),
    ("block_sparse", "softmax/prefill/full/f32/b1/h4:4/q4096/k4096/d64"),
    ("block_sparse", "softmax/prefill/window:1023,0/f32/b1/h4:4/q16384/k16384/d64"),
    ("block_sparse", "softmax/prefill/bigbird:block=64,global=2,random=3,window=3/f32/b1/h4:4/q16384/k16384/d64"),
    ("block_sparse", "softmax/prefill/longformer:256,1/f32/b1/h4:4/q16384/k16384/d64"),
    ("block_sparse", "softmax/prefill/dilated:256,4/f32/b1/h4:4/q16384/k16384/d64"),
    ("block_sparse", "softmax/prefill/strided:128+causal/f32/b1/h4:4/q16384/k16384/d64"),
    ("block_sparse", "softmax/prefill/fixed:128,16+causal/f32/b1/h4:4/q16384/k16384/d64"),
    ("linear", "linear/prefill/full/f32/b1/h4:4/q16384/k16384/d64"),
    ("linear", "linear/prefill/full+causal/f32/b1/h4:4/q16384/k16384/d64"),
    ("linear", "linear/decode/full+causal/f32/b64/h16:16/q1/k4096/d64"),
    ("linformer", "linformer/prefill/full/f32/b1/h4:4/q16384/k16384/d64"),
    ("mla", "mla/prefill/full+causal/f32/b1/h16:16/q1024/k1024/d192:128"),
    ("mla", "mla/decode/full/f32/b1/h128:1/q1/k8192/d576:512"),
    ("mla", "mla/decode/full/f32/b1/h16:1/q1/k8192/d576:512"),
];

/// A kernel on an instruction set.
fn kernel_on(name: &str, isa: Isa) -> Box<dyn Kernel> {
    let isa = Some(isa);
    match name {
        "naive" => Box::new(cpu::naive::Naive { isa }),
        "flash1" => Box::new(cpu::flash1::Flash1 { isa }),
        "flash" => Box::new(cpu::flash::Flash { isa }),
        "split_kv" => Box::new(cpu::split_kv::SplitKv { isa }),
        "paged" => Box::new(cpu::paged::Paged { isa }),
        "block_sparse" => Box::new(cpu::block_sparse::BlockSparse { isa }),
        "linear" => Box::new(cpu::linear::Linear { isa }),
        "linformer" => Box::new(cpu::linformer::Linformer { isa }),
        "mla" => Box::new(cpu::mla::Mla { isa }),
        other => panic!("no kernel is called {other}"),
    }
}

/// The inputs of a problem; those of a backward have O and the log-sum-exps of its forward.
fn inputs_of(problem: &AttentionProblem, isa: Isa, threads: usize) -> TensorSet {
    let mut inputs = Generator::new(problem, &InputSpec::new(problem, 1), 0).inputs();
    if problem.phase == Phase::Backward {
        let forward = AttentionProblem { phase: Phase::Prefill, deterministic: false, ..problem.clone() };
        let mut outputs = input::outputs(&forward);
        let (element, dims) = input::tensor_shape(problem, TensorName::Lse);
        outputs.insert(TensorName::Lse, Tensor::zeros(element, &dims));
        plan("flash", isa, &forward, &inputs, threads).run(&inputs, &mut outputs);
        for (name, tensor) in outputs.iter() {
            inputs.insert(name, tensor.clone());
        }
    }
    inputs
}

fn plan(kernel: &str, isa: Isa, problem: &AttentionProblem, inputs: &TensorSet, threads: usize) -> Box<dyn Plan> {
    let context = PlanContext { problem, static_tensors: inputs, threads, available_bytes: u64::MAX };
    kernel_on(kernel, isa).plan(&context).expect("a plan")
}

/// Calls of a case.
const CALLS: usize = 7;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let threads = arguments.next().map_or(1, |text| text.parse().expect("a number of threads"));
    let filter = arguments.next().unwrap_or_default();
    let isa = arguments.next().map_or(Isa::best(), |name| {
        Isa::available().into_iter().find(|isa| isa.name() == name).expect("an instruction set of this CPU")
    });
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads start");
    let mut stream = Tensor::zeros(ElementType::F32, &[1 << 26]);
    stream.as_mut_slice::<f32>().fill(1.0);
    println!("{} on {threads} threads", isa.name());
    let labels = CASES.iter().map(|(name, id)| format!("{name} {id}")).filter(|label| label.contains(&filter));
    let mut labels: Vec<String> = labels.collect();
    if labels.is_empty() {
        labels.push(filter);
    }
    for label in labels {
        let (name, id) = label.split_once(' ').expect("a filter is part of a case, or KERNEL ID");
        let problem: AttentionProblem = id.parse().expect("a problem's id");
        pool.install(|| {
            let inputs = inputs_of(&problem, isa, threads);
            let mut outputs = input::outputs(&problem);
            let mut plan = plan(name, isa, &problem, &inputs, threads);
            let work = Work::of(&problem);
            let (bytes, flops) = (work.bytes() as f64, work.flops as f64);
            // Both rates before each call: on a shared machine, they and the call have to do with the same neighbours.
            let mut seconds = f64::INFINITY;
            let (mut of_fma, mut of_read) = ([0.0; CALLS], [0.0; CALLS]);
            let (mut fma, mut read) = ([0.0; CALLS], [0.0; CALLS]);
            for call in 0..CALLS {
                let rates = (fma_rate(isa), read_rate(isa, stream.as_slice()));
                let now = best_seconds(1, || plan.run(&inputs, &mut outputs));
                (of_fma[call], of_read[call]) = (flops / now / rates.0, bytes / now / rates.1);
                (fma[call], read[call], seconds) = (rates.0, rates.1, seconds.min(now));
            }
            for list in [&mut of_fma, &mut of_read, &mut fma, &mut read] {
                list.sort_by(f64::total_cmp);
            }
            println!(
                "{label:<80} {:9.3} ms {:7.1} GFLOP/s ({:3.0} % of FMA {:4.0}) {:6.1} GB/s ({:3.0} % of read {:4.1})",
                seconds * 1e3,
                flops / seconds / 1e9,
                100.0 * of_fma[CALLS / 2],
                fma[CALLS / 2] / 1e9,
                bytes / seconds / 1e9,
                100.0 * of_read[CALLS / 2],
                read[CALLS / 2] / 1e9
            );
        });
    }
}
