//! What the CPU kernels reach of this machine's limits: `cargo run --release -p attn-kernels --example rates -- [threads]
//! [filter]`.
//!
//! Compute-bound cases are compared with the FMA rate of a loop without memory, memory-bound ones with the bandwidth of
//! reading, both measured before each call in the same process: times and rates are the best, shares the median call's.
//! Times are CPU time a thread: idle threads do not count.

use std::hint::black_box;

use attn_kernels::cpu;
use attn_kernels::cpu::simd::{Isa, Simd, Task};
use attn_kernels::input::{self, Generator, InputSpec};
use attn_kernels::kernel::PlanContext;
use attn_kernels::problem::{AttentionProblem, Dtype, KvLayout, Layout, Pattern, Phase};
use attn_kernels::tensor::{ElementType, Tensor, TensorName, TensorSet};
use attn_kernels::work::Work;
use rayon::prelude::*;

/// Twelve independent chains of FMAs, more than latency times ports on any CPU, whose operands change from step to step and
/// lane to lane: on equal or constant operands many CPUs draw less power and run at a higher clock than any real product.
struct FmaLoop<'a> {
    steps: usize,
    /// (8, LANES), between -1 and 1.
    operands: &'a [f32],
}

impl Task for FmaLoop<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self) -> f32 {
        let mut operands = [S::splat(0.0); 8];
        for (operand, lanes) in operands.iter_mut().zip(self.operands.chunks_exact(S::LANES)) {
            // SAFETY: a chunk has LANES elements.
            *operand = unsafe { S::load(lanes.as_ptr()) };
        }
        let mut chains = [S::splat(black_box(0.5)); 12];
        for _ in 0..self.steps / 4 {
            for step in 0..4 {
                for chain in 0..12 {
                    let (x, y) = (operands[(chain + step) % 4], operands[4 + (chain + step) % 4]);
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
fn fma_rate() -> f64 {
    let (isa, steps) = (Isa::best(), 2_000_000);
    let flops = (2 * 12 * steps * isa.lanes() * rayon::current_num_threads()) as f64;
    let operands: Vec<f32> = (0..8 * isa.lanes() as u64)
        .map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / (1 << 23) as f32 - 1.0)
        .collect();
    let operands = black_box(operands.as_slice());
    flops / best_seconds(2, || rayon::broadcast(|_| black_box(isa.run(FmaLoop { steps, operands }))))
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
fn read_rate(values: &[f32]) -> f64 {
    let isa = Isa::best();
    let part = values.len() / rayon::current_num_threads();
    let read = || values.par_chunks(part).map(|values| isa.run(ReadLoop { values })).sum::<f32>();
    (values.len() * 4) as f64 / best_seconds(2, || black_box(read()))
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

fn cases() -> Vec<(&'static str, AttentionProblem)> {
    let prefill = |heads, n, d| AttentionProblem::softmax(Phase::Prefill, Dtype::F32, 1, heads, (n, n), d);
    let decode = |dtype, heads, k| AttentionProblem::softmax(Phase::Decode, dtype, 1, heads, (1, k), 128);
    let backward = |heads, n, d| AttentionProblem::softmax(Phase::Backward, Dtype::F32, 1, heads, (n, n), d);
    let causal = |problem| AttentionProblem { causal: true, ..problem };
    let window = |problem| AttentionProblem { pattern: Pattern::Window { left: 255, right: 0 }, ..problem };
    let paged = |problem| AttentionProblem { kv_layout: KvLayout::Paged { page_size: 16 }, ..problem };
    let mut cases = vec![
        ("flash", prefill((8, 8), 512, 64)),
        ("flash", causal(prefill((8, 8), 512, 64))),
        ("flash", prefill((8, 8), 2048, 64)),
        ("flash", causal(prefill((8, 8), 2048, 64))),
        ("flash", prefill((32, 8), 1024, 128)),
        ("flash", causal(prefill((32, 8), 1024, 128))),
        ("flash", window(prefill((8, 8), 4096, 64))),
        ("flash", AttentionProblem { dtype: Dtype::Bf16, dtype_kv: Dtype::Bf16, ..prefill((8, 8), 2048, 64) }),
        ("flash1", prefill((8, 8), 2048, 64)),
        ("naive", prefill((8, 8), 2048, 64)),
        ("split_kv", AttentionProblem::softmax(Phase::Append, Dtype::F32, 1, (32, 8), (64, 4096), 128)),
    ];
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        cases.push(("split_kv", decode(dtype, (32, 8), 8192)));
        cases.push(("split_kv", decode(dtype, (32, 8), 65536)));
        cases.push(("split_kv", decode(dtype, (32, 32), 65536)));
        cases.push(("split_kv", decode(dtype, (32, 1), 65536)));
        cases.push(("paged", paged(decode(dtype, (32, 8), 65536))));
    }
    let bhsd = AttentionProblem { layout: Layout::Bhsd, ..decode(Dtype::F32, (32, 8), 65536) };
    cases.push(("split_kv", bhsd));
    for (heads, n, d) in [((8, 8), 2048, 64), ((8, 8), 2048, 128), ((2, 2), 8192, 64), ((2, 2), 8192, 128)] {
        let full = backward(heads, n, d);
        cases.extend([("flash", full.clone()), ("flash", causal(full))]);
    }
    let half = AttentionProblem { dtype: Dtype::Bf16, dtype_kv: Dtype::Bf16, ..backward((8, 8), 2048, 64) };
    cases.extend([
        ("flash", causal(backward((8, 2), 2048, 128))),
        ("flash", causal(backward((3, 1), 2048, 64))),
        ("flash", window(backward((8, 8), 4096, 64))),
        ("flash", half),
    ]);
    cases
}

/// The inputs of a problem; for backward with O and LSE as `flash` computes them.
fn inputs_of(problem: &AttentionProblem, threads: usize) -> TensorSet {
    let mut inputs = Generator::new(problem, &InputSpec::new(problem, 1), 0).inputs();
    if problem.phase == Phase::Backward {
        let forward = AttentionProblem { phase: Phase::Prefill, ..problem.clone() };
        let context = PlanContext { problem: &forward, static_tensors: &inputs, threads, available_bytes: u64::MAX };
        let mut plan = cpu::find("flash").expect("a kernel").plan(&context).expect("a plan");
        let mut results = TensorSet::new();
        for name in [TensorName::O, TensorName::Lse] {
            let (element, dims) = input::tensor_shape(problem, name);
            results.insert(name, Tensor::zeros(element, &dims));
        }
        plan.run(&inputs, &mut results);
        for name in [TensorName::O, TensorName::Lse] {
            inputs.insert(name, results.remove(name).expect("it was asked for"));
        }
    }
    inputs
}

/// Calls of a case.
const CALLS: usize = 7;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let threads = arguments.next().map_or(1, |text| text.parse().expect("a number of threads"));
    let filter = arguments.next().unwrap_or_default();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads start");
    let mut stream = Tensor::zeros(ElementType::F32, &[1 << 26]);
    stream.as_mut_slice::<f32>().fill(1.0);
    println!("{} on {threads} threads", Isa::best().name());
    for (name, problem) in cases() {
        let lengths = (problem.lengths_q()[0], problem.lengths_kv()[0]);
        let label = format!(
            "{name} {} {}{} {} {}:{} q{} k{} d{}{}",
            problem.phase.name(),
            problem.pattern.name(),
            if problem.causal { "+causal" } else { "" },
            problem.dtype.name(),
            problem.heads_q,
            problem.heads_kv,
            lengths.0,
            lengths.1,
            problem.head_dim_qk,
            if problem.layout == Layout::Bhsd { " bhsd" } else { "" }
        );
        if !label.contains(&filter) {
            continue;
        }
        pool.install(|| {
            let inputs = inputs_of(&problem, threads);
            let mut outputs = input::outputs(&problem);
            let context =
                PlanContext { problem: &problem, static_tensors: &inputs, threads, available_bytes: u64::MAX };
            let mut plan = cpu::find(name).expect("a kernel").plan(&context).expect("a plan");
            let bytes = input::tensor_bytes(&problem) as f64;
            let flops = Work::of(&problem).flops as f64;
            // Both rates before each call: on a shared machine, they and the call have to do with the same neighbours.
            let mut seconds = f64::INFINITY;
            let (mut of_fma, mut of_read) = ([0.0; CALLS], [0.0; CALLS]);
            let (mut fma, mut read) = (0f64, 0f64);
            for call in 0..CALLS {
                let rates = (fma_rate(), read_rate(stream.as_slice()));
                let now = best_seconds(1, || plan.run(&inputs, &mut outputs));
                (of_fma[call], of_read[call]) = (flops / now / rates.0, bytes / now / rates.1);
                (fma, read, seconds) = (fma.max(rates.0), read.max(rates.1), seconds.min(now));
            }
            of_fma.sort_by(f64::total_cmp);
            of_read.sort_by(f64::total_cmp);
            println!(
                "{label:<52} {:9.3} ms {:7.1} GFLOP/s ({:3.0} % of FMA {:4.0}) {:6.1} GB/s ({:3.0} % of read {:4.1})",
                seconds * 1e3,
                flops / seconds / 1e9,
                100.0 * of_fma[CALLS / 2],
                fma / 1e9,
                bytes / seconds / 1e9,
                100.0 * of_read[CALLS / 2],
                read / 1e9
            );
        });
    }
}
