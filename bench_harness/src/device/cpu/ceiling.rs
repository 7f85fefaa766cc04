//! Controls: what this device can do at most, measured and not looked up.
//!
//! No commit can change them, so they serve twice: as the ceilings that rates are judged against, and as witnesses of
//! drift between two runs.

use std::time::Instant;

use rayon::prelude::*;

use super::flush::evict;
use crate::case::Mode;
use crate::record::ControlKind;
use crate::worker::protocol::{Control, ControlSamples};

/// Largest working set of a control.
const MAX_WORKING_SET_BYTES: u64 = 4 << 30;
/// Nanoseconds that one sample of the FMA loop aims at.
const FMA_SAMPLE_ITERATIONS: u64 = 200_000;
/// Independent chains of FMAs: latency 4 times two ports, with room for wider machines.
const FMA_CHAINS: usize = 12;
/// f32 lanes of a chain: one AVX-512 register, two AVX2 registers.
const FMA_LANES: usize = 16;

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
    // A copy's working set is its source and its destination.
    let buffers = if kind == ControlKind::Copy { 2 } else { 1 };
    let words = ((working_set_bytes / buffers / 8) as usize).max(64);
    let mut source: Vec<u64> = (0..words as u64).collect();
    let mut target: Vec<u64> = if kind == ControlKind::Copy { vec![1; words] } else { Vec::new() };
    let share = words.div_ceil(rayon::current_num_threads());
    // Small working sets are passed over several times, so that waking the threads does not count.
    let passes = match mode {
        Mode::Cold => 1,
        Mode::Hot => ((32 << 20) / working_set_bytes.max(1)).clamp(1, 4096),
    };
    let mut device_ns = Vec::with_capacity(samples);
    for sample in 0..samples + 1 {
        if mode == Mode::Cold {
            as_bytes(&source).par_chunks(1 << 20).for_each(evict);
            as_bytes(&target).par_chunks(1 << 20).for_each(evict);
        }
        let start = Instant::now();
        match kind {
            ControlKind::Read => {
                let sum: u64 = source
                    .par_chunks(share)
                    .map(|part| (0..passes).map(|_| read_sum(std::hint::black_box(part))).fold(0, u64::wrapping_add))
                    .sum();
                std::hint::black_box(sum);
            }
            ControlKind::Write => source.par_chunks_mut(share).for_each(|part| {
                for pass in 0..passes {
                    std::hint::black_box(&mut *part).fill(pass);
                }
            }),
            ControlKind::Copy => source.par_chunks(share).zip(target.par_chunks_mut(share)).for_each(|(from, to)| {
                for _ in 0..passes {
                    std::hint::black_box(&mut *to).copy_from_slice(std::hint::black_box(from));
                }
            }),
            ControlKind::Fma => unreachable!("not a bandwidth"),
        }
        // The first sample faults pages in.
        if sample > 0 {
            device_ns.push(start.elapsed().as_nanos() as f64);
        }
    }
    std::hint::black_box((&source, &target));
    ControlSamples { work: words as u64 * 8 * buffers * passes, device_ns }
}

fn as_bytes(words: &[u64]) -> &[u8] {
    // SAFETY: u64 has no padding, and a byte has no alignment.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), std::mem::size_of_val(words)) }
}

macro_rules! for_each_isa {
    ($dispatch:ident, $body:ident, ($($argument:ident: $type:ty),*) -> $result:ty) => {
        fn $dispatch($($argument: $type),*) -> $result {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f")]
                fn avx512($($argument: $type),*) -> $result {
                    $body($($argument),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($argument: $type),*) -> $result {
                    $body($($argument),*)
                }
                if is_x86_feature_detected!("avx512f") {
                    // SAFETY: the feature was just detected.
                    return unsafe { avx512($($argument),*) };
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    // SAFETY: the features were just detected.
                    return unsafe { avx2($($argument),*) };
                }
            }
            $body($($argument),*)
        }
    };
}

#[inline(always)]
fn read_sum_body(words: &[u64]) -> u64 {
    let mut sums = [0u64; 32];
    let chunks = words.chunks_exact(32);
    let tail = chunks.remainder().iter().fold(0u64, |sum, &word| sum.wrapping_add(word));
    for chunk in chunks {
        for lane in 0..32 {
            sums[lane] = sums[lane].wrapping_add(chunk[lane]);
        }
    }
    sums.into_iter().fold(tail, u64::wrapping_add)
}
for_each_isa!(read_sum, read_sum_body, (words: &[u64]) -> u64);

#[inline(always)]
fn fma_body(iterations: u64, factor: f32) -> f32 {
    let mut chains = [[1.0f32; FMA_LANES]; FMA_CHAINS];
    for _ in 0..iterations {
        for chain in &mut chains {
            for lane in chain {
                *lane = lane.mul_add(factor, 0.5);
            }
        }
    }
    chains.iter().flatten().sum()
}
for_each_isa!(fma_loop, fma_body, (iterations: u64, factor: f32) -> f32);

fn fma(pool: &rayon::ThreadPool, samples: usize) -> ControlSamples {
    let run = || {
        pool.broadcast(|_| std::hint::black_box(fma_loop(FMA_SAMPLE_ITERATIONS, std::hint::black_box(0.25))));
    };
    run();
    let device_ns = (0..samples)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed().as_nanos() as f64
        })
        .collect();
    let flops = 2 * FMA_SAMPLE_ITERATIONS * (FMA_CHAINS * FMA_LANES) as u64 * pool.current_num_threads() as u64;
    ControlSamples { work: flops, device_ns }
}
