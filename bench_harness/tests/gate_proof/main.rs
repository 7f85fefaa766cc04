//! A small version of the example `gate_proof`, with fixed seeds and bounds far from what a correct gate does.

#[allow(dead_code, reason = "the table prints more than the tests compare")]
mod bisection;
#[allow(dead_code, reason = "the table prints more than the tests compare")]
mod gate;
#[allow(dead_code, reason = "the table prints more than the tests compare")]
mod measure;
mod noise;
#[allow(dead_code, reason = "the table prints more than the tests compare")]
#[path = "../support/simulated.rs"]
mod simulated;

use attnbench::gate::policy::Policy;
use measure::{family_power, power, unchanged};
use noise::Noise;

const GATES: std::ops::Range<u64> = 0..6;

#[test]
fn gates_without_a_change_pass_in_every_noise() {
    // Fewer simulations make the smallest detectable effects rougher, and the test short.
    let policy = Policy { simulations: 40, ..Policy::default() };
    for noise in Noise::ALL {
        let seen = unchanged(noise, &policy, GATES);
        // Of gates that fail 2 % of the time, 3 of 6 fail in one of 6000 tries.
        assert!(seen.alarms.count <= 2, "{}: {:?}", noise.name(), seen.alarms);
        let most = if noise == Noise::Bimodal { 25.0 } else { 16.0 };
        assert!(seen.pairs.0 < most, "{}: {} pairs", noise.name(), seen.pairs.0);
        assert!(seen.mde < 0.05, "{}: {}", noise.name(), seen.mde);
    }
    assert!(unchanged(Noise::Gaussian, &policy, GATES).pairs.0 < 10.5);
}

#[test]
fn slowdowns_are_found() {
    let policy = Policy::default();
    let five = power(Noise::Gaussian, 0.05, &policy, 0..40);
    assert!(five.count >= 38, "{five:?}");
    let two = power(Noise::Gaussian, 0.02, &policy, 0..40);
    assert!(two.count >= 32, "{two:?}");
    let family = family_power(Noise::Gaussian, 0.008, &policy, 0..20);
    assert!(family.count >= 16, "{family:?}");
}

#[test]
fn a_bisection_over_a_thousand_commits_names_the_culprit() {
    let seen = bisection::searches(Noise::Gaussian, 0.05, 0..200);
    assert!(seen.right.count >= 188, "{:?}", seen.right);
    assert!(seen.mean_pairs < 150.0, "{}", seen.mean_pairs);
}
