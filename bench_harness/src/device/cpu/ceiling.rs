//! Controls: what this device can do at most, measured and not looked up.
//!
//! No commit can change them, so they serve twice: as the ceilings that rates are judged against, and as witnesses of
//! drift between two runs.

use std::hint::black_box;
use std::time::Instant;

use attn_kernels::cpu::simd::{Isa, Simd, Task};
use attn_kernels::tensor::{ElementType, Tensor};
use rayon::prelude::*;

use super::flush::evict;
use crate::case::Mode;
use crate::record::ControlKind;
use crate::worker::protocol::{Control, ControlSamples};

/// Largest working set of a control.
const MAX_WORKING_SET_BYTES: u64 = 4 << 30;
/// How far ahead of its loads reading prefetches, in f32 elements.
const AHEAD_ELEMENTS: usize = 1024;
/// Steps of one sample of the FMA loop: a few milliseconds.
const FMA_SAMPLE_STEPS: usize = 1_000_000;
/// Independent chains of FMAs: latency 4 times two ports, with room for wider machines.
const FMA_CHAINS: usize = 12;

/// Measures a control in a pool of its threads. Errors are sentences.
pub fn measure(control: &Control) -> Result<ControlSamples, String> {
    if control.working_set_bytes > MAX_WORKING_SET_BYTES {
        return Err(format!(
            "control working set of {} bytes is above the limit of {MAX_WORKING_SET_BYTES}",
            control.working_set_bytes
        ));
    }
    let pool = super::thread_pool(control.threads.clamp(1, 1024))?;
    let samples = control.samples.clamp(1, 10_000) as usize;
    Ok(match control.kind {
        ControlKind::Fma => fma(&pool, samples),
        kind => pool.install(|| bandwidth(kind, control.mode, control.working_set_bytes, samples)),
    })
}

fn bandwidth(kind: ControlKind, mode: Mode, working_set_bytes: u64, samples: usize) -> ControlSamples {
    let isa = Isa::best();
    // A copy's working set is its source and its destination.
    let buffers = if kind == ControlKind::Copy { 2 } else { 1 };
    let words = ((working_set_bytes / buffers / 4) as usize).max(64);
    // Tensors, as kernels read and write them: with huge pages where the system gives them.
    let mut source = Tensor::zeros(ElementType::F32, &[words]);
    let mut target = Tensor::zeros(ElementType::F32, &[if kind == ControlKind::Copy { words } else { 0 }]);
    let (source, target) = (source.as_mut_slice::<f32>(), target.as_mut_slice::<f32>());
    source.iter_mut().enumerate().for_each(|(index, word)| *word = (index % 251) as f32);
    let share = words.div_ceil(rayon::current_num_threads());
    // Small working sets are passed over several times, so that waking the threads does not count.
    let passes = match mode {
        Mode::Cold => 1,
        Mode::Hot => ((32 << 20) / working_set_bytes.max(1)).clamp(1, 4096),
    };
    let mut device_ns = Vec::with_capacity(samples);
    for sample in 0..samples + 1 {
        if mode == Mode::Cold {
            as_bytes(source).par_chunks(1 << 20).for_each(evict);
            as_bytes(target).par_chunks(1 << 20).for_each(evict);
        }
        let start = Instant::now();
        match kind {
            ControlKind::Read => {
                let sum: f32 = source
                    .par_chunks(share)
                    .map(|part| (0..passes).map(|_| isa.run(ReadSum(black_box(part)))).sum::<f32>())
                    .sum();
                black_box(sum);
            }
            ControlKind::Write => source.par_chunks_mut(share).for_each(|part| {
                for pass in 0..passes {
                    black_box(&mut *part).fill(pass as f32);
                }
            }),
            ControlKind::Copy => source.par_chunks(share).zip(target.par_chunks_mut(share)).for_each(|(from, to)| {
                for _ in 0..passes {
                    black_box(&mut *to).copy_from_slice(black_box(from));
                }
            }),
            ControlKind::Fma => unreachable!("not a bandwidth"),
        }
        // The first sample faults pages in.
        if sample > 0 {
            device_ns.push(start.elapsed().as_nanos() as f64);
        }
    }
    black_box((&source, &target));
    ControlSamples { work: words as u64 * 4 * buffers * passes, device_ns }
}

fn as_bytes(words: &[f32]) -> &[u8] {
    // SAFETY: f32 has no padding, and a byte has no alignment.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), std::mem::size_of_val(words)) }
}

/// Sums of a slice, eight vectors at a time: reading is all that takes time.
struct ReadSum<'a>(&'a [f32]);

impl Task for ReadSum<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self) -> f32 {
        let mut sums = [S::splat(0.0); 8];
        let chunks = self.0.chunks_exact(8 * S::LANES);
        let tail: f32 = chunks.remainder().iter().sum();
        for chunk in chunks {
            for (index, sum) in sums.iter_mut().enumerate() {
                // The hardware's prefetcher stops at each page; a good kernel asks ahead, so the ceiling does too.
                S::prefetch(chunk.as_ptr().wrapping_add(AHEAD_ELEMENTS + index * S::LANES).cast());
                // SAFETY: the chunk holds eight vectors.
                *sum = S::add(*sum, unsafe { S::load(chunk.as_ptr().add(index * S::LANES)) });
            }
        }
        sums.into_iter().map(S::sum).sum::<f32>() + tail
    }
}

/// Independent chains of FMAs on registers.
struct FmaLoop;

impl Task for FmaLoop {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self) -> f32 {
        let (factor, term) = (S::splat(black_box(0.999)), S::splat(black_box(1e-3)));
        let mut chains = [S::splat(black_box(0.5)); FMA_CHAINS];
        for _ in 0..FMA_SAMPLE_STEPS {
            for chain in &mut chains {
                *chain = S::fma(*chain, factor, term);
            }
        }
        chains.into_iter().map(S::sum).sum()
    }
}

fn fma(pool: &rayon::ThreadPool, samples: usize) -> ControlSamples {
    let isa = Isa::best();
    let run = || pool.broadcast(|_| black_box(isa.run(FmaLoop)));
    run();
    let device_ns = (0..samples)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed().as_nanos() as f64
        })
        .collect();
    let flops = 2 * FMA_SAMPLE_STEPS * FMA_CHAINS * isa.lanes() * pool.current_num_threads();
    ControlSamples { work: flops as u64, device_ns }
}
