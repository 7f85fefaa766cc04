//! How fast the statistics of a gate and of a history are: `cargo bench -p attnbench`.

use std::hint::black_box;

use attnbench::case::{CaseKey, Mode};
use attnbench::gate::plan::{PairedCase, mde};
use attnbench::gate::policy::Policy;
use attnbench::stats::change_point::{Settings, change_points};
use attnbench::stats::signed_rank::CappedRanks;
use attnbench::stats::{Alternative, fdr, hodges_lehmann, rank_sum};
use criterion::{Criterion, criterion_group, criterion_main};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

/// Noise of 1 % around zero, nearly normal.
fn noise(n: usize) -> Vec<f64> {
    let mut rng = Pcg64::seed_from_u64(7);
    (0..n).map(|_| (0..4).map(|_| rng.random::<f64>() - 0.5).sum::<f64>() * 3f64.sqrt() * 0.01).collect()
}

fn tests(c: &mut Criterion) {
    for pairs in [8, 24, 40] {
        let values = noise(pairs);
        c.bench_function(&format!("capped signed rank of {pairs} pairs"), |b| {
            b.iter(|| CappedRanks::new(pairs).p_value(black_box(&values), Alternative::Greater));
        });
        c.bench_function(&format!("Hodges-Lehmann interval of {pairs} pairs"), |b| {
            b.iter(|| hodges_lehmann::one_sample(black_box(&values), 0.90));
        });
    }
    let (base, head) = (noise(10), noise(10));
    c.bench_function("rank sum of 10 against 10", |b| {
        let mut rng = Pcg64::seed_from_u64(1);
        b.iter(|| rank_sum::p_value(black_box(&base), black_box(&head), Alternative::Greater, 1000, &mut rng));
    });
    let p: Vec<f64> = noise(500).iter().map(|value| value.abs()).collect();
    c.bench_function("Benjamini-Hochberg over 500", |b| b.iter(|| fdr::adjusted(black_box(&p))));
}

fn smallest_effects(c: &mut Criterion) {
    let key = CaseKey { case_id: "cpu/a/softmax/prefill".into(), mode: Mode::Cold, threads: 1 };
    let case = PairedCase { key, log_ratios: noise(24), calibrated_error: None, is_closed: false };
    c.bench_function("smallest detectable effect of a case", |b| {
        b.iter(|| mde(black_box(&Policy::default()), black_box(&case), 20));
    });
}

fn changes(c: &mut Criterion) {
    let clean: Vec<f64> = noise(500).iter().map(|value| 1.0 + value).collect();
    let stepped: Vec<f64> = clean.iter().enumerate().map(|(t, v)| if t < 300 { *v } else { 1.03 * v }).collect();
    for (name, series) in [("clean", &clean), ("with a step", &stepped)] {
        c.bench_function(&format!("change points of 500 values, {name}"), |b| {
            b.iter(|| change_points(black_box(series), &Settings::default()));
        });
    }
}

criterion_group!(benches, tests, smallest_effects, changes);
criterion_main!(benches);
