//! Times are what they claim to be: each test provokes one way in which benchmarks go wrong.
//!
//! A busy machine makes calls longer, never shorter, so the bounds are on the fastest of many samples.

mod support;

use std::time::Instant;

use attn_kernels::tensor::{Tensor, TensorName, TensorSet};
use attnbench::device::cpu::cache::CacheSizes;
use attnbench::device::cpu::flush::CacheFlusher;
use serde_json::Value;
use support::{attnbench, case, dishonest_provider, record, small_suite};

const MEASURE: &str = "rounds = 2\nmin_samples = 20\nmax_samples = 20\nbudget_ms = 2000\noracle_flops = 1000000";

/// Runs kernels of the test provider and returns the record.
fn run(kernels: &[&str], arguments: &str) -> Value {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let suite = small_suite(folder.path(), "test", kernels, MEASURE);
    let out = folder.path().join("record.json");
    attnbench()
        .args(["run", "--provider", &dishonest_provider(arguments)])
        .args(["--out".as_ref(), out.as_os_str(), suite.as_os_str()])
        .assert()
        .success();
    record(&out)
}

/// The fastest sample of a case, in nanoseconds.
fn fastest_ns(case: &Value) -> f64 {
    let rounds = case["rounds"].as_array().expect("a list");
    let samples = rounds.iter().flat_map(|round| round["device_ns"].as_array().expect("a list"));
    samples.filter_map(Value::as_f64).fold(f64::INFINITY, f64::min)
}

#[test]
fn a_calibrated_spin_takes_the_time_it_was_given() {
    let record = run(&["spins"], "--spin-ns 5000000");
    let fastest = fastest_ns(case(&record, "spins"));
    assert!((5e6..5e6 * 1.02).contains(&fastest), "a spin of 5 ms was measured as {fastest} ns");
}

#[test]
fn planning_does_not_count_as_latency() {
    let record = run(&["slow_plan"], "");
    let case = case(&record, "slow_plan");
    assert!(case["rounds"][0]["plan_ns"].as_f64() >= Some(300e6), "planning is a metric of its own");
    assert!(fastest_ns(case) < 300e6, "a call does not contain its plan");
}

#[test]
fn cold_samples_are_cold_whatever_fits_in_the_caches() {
    let caches = CacheSizes::read();
    let level = caches.l2.unwrap_or(1 << 20) as usize;
    let mut flusher = CacheFlusher::new(caches, 1);
    let mut fastest = |bytes: usize, is_cold: bool| {
        let mut set = TensorSet::new();
        set.insert(TensorName::K, Tensor::from_slice(&[bytes / 4], &vec![1.0f32; bytes / 4]));
        let mut least = f64::INFINITY;
        for _ in 0..30 {
            if is_cold {
                flusher.flush(&[&set]);
            }
            let start = Instant::now();
            std::hint::black_box(set.get(TensorName::K).as_slice::<f32>().iter().sum::<f32>());
            least = least.min(start.elapsed().as_nanos() as f64);
        }
        least
    };
    // From a tenth of a cache to twice its size: no step where the data begins to fit.
    let (small, large) = (level / 10 / 64 * 64, level * 2);
    let (cold_small, cold_large) = (fastest(small, true) / small as f64, fastest(large, true) / large as f64);
    assert!(cold_small > 0.6 * cold_large, "cold time a byte: {cold_small} ns at {small} B, {cold_large} at {large}");
}

#[test]
fn a_slowdown_is_measured_as_what_it_is() {
    let ratio = |slowdown: &str| {
        let record = run(&["honest", "slowed"], slowdown);
        fastest_ns(case(&record, "slowed")) / fastest_ns(case(&record, "honest"))
    };
    // Two fastest samples on a shared machine: wide bounds, far from 1.
    let doubled = ratio("--slowdown 1.0");
    assert!((1.5..3.0).contains(&doubled), "twice the time was measured as {doubled} times");
}
