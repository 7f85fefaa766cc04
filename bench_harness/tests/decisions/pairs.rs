//! A/B pairs: the state machine, driven by simulated machines.

use attnbench::compare::Verdict;
use attnbench::gate::plan::{self, Evidence, PairedCase, Step};
use attnbench::gate::policy::Policy;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

use crate::machine::{Noise, key};

const CASES: usize = 10;

fn policy() -> Policy {
    Policy { simulations: 0, ..Policy::default() }
}

/// The whole of a series of pairs: base and head follow each other in an order that a coin decides, so each pair's
/// difference of neighbouring rounds gets a random sign.
fn series(noise: Noise, slowdown: f64, rng: &mut Pcg64) -> Vec<f64> {
    let rounds = noise.rounds(2 * policy().max_pairs, 0.0, rng);
    rounds
        .chunks(2)
        .map(|pair| slowdown + if rng.random::<bool>() { pair[1] - pair[0] } else { pair[0] - pair[1] })
        .collect()
}

/// Drives the machine to its decision; answers the verdicts and the pairs that were measured.
fn decide(all: &[Vec<f64>]) -> (Vec<Verdict>, usize) {
    let case =
        |index: usize| PairedCase { key: key(index), log_ratios: vec![], calibrated_error: None, is_closed: false };
    let mut cases: Vec<PairedCase> = (0..all.len()).map(case).collect();
    for _ in 0..100 {
        match plan::next(&policy(), &Evidence::Pairs { cases: &cases, may_measure: true }) {
            Step::Decided(findings) => {
                let measured = cases.iter().map(|case| case.log_ratios.len()).sum();
                return (findings.iter().map(|finding| finding.verdict).collect(), measured);
            }
            Step::Measure { cases: which, pairs } => {
                assert!(pairs > 0 && !which.is_empty());
                for index in which {
                    let have = cases[index].log_ratios.len();
                    cases[index].log_ratios.extend(&all[index][have..have + pairs]);
                }
            }
        }
    }
    panic!("the machine does not come to an end");
}

fn share_of(wanted: Verdict, noise: Noise, slowdown: f64, gates: u64) -> f64 {
    let mut count = 0;
    for seed in 0..gates {
        let mut rng = Pcg64::seed_from_u64(seed);
        let all: Vec<Vec<f64>> = (0..CASES).map(|_| series(noise, slowdown.ln_1p(), &mut rng)).collect();
        count += decide(&all).0.into_iter().filter(|&verdict| verdict == wanted).count();
    }
    count as f64 / (gates as usize * CASES) as f64
}

/// A thousand gates of ten cases where nothing changed: at most 2 % of them may fail, however the noise looks.
#[test]
fn a_thousand_gates_without_a_change() {
    for noise in [
        Noise::White(0.01),
        Noise::White(0.1),
        Noise::Autocorrelated(0.05),
        Noise::Bimodal(0.05),
        Noise::Drifting(0.2),
        Noise::Spiky,
    ] {
        let failed = (0..1000u64)
            .filter(|&seed| {
                let mut rng = Pcg64::seed_from_u64(seed);
                let all: Vec<Vec<f64>> = (0..CASES).map(|_| series(noise, 0.0, &mut rng)).collect();
                decide(&all).0.contains(&Verdict::Regressed)
            })
            .count();
        println!("{noise:?}: {failed} of 1000 gates fail");
        assert!(failed <= 20, "{noise:?}: {failed} of 1000 gates fail");
    }
}

#[test]
fn what_a_gate_finds() {
    let noise = Noise::White(0.01);
    let [two, five, ten] = [0.02, 0.05, 0.10].map(|slowdown| share_of(Verdict::Regressed, noise, slowdown, 100));
    println!("1 % noise: 2 % {two}, 5 % {five}, 10 % {ten}");
    assert!(two > 0.8 && five > 0.99 && ten > 0.999, "{two} {five} {ten}");
    let five_in_noise = share_of(Verdict::Regressed, Noise::White(0.05), 0.05, 100);
    assert!((0.1..0.9).contains(&five_in_noise), "{five_in_noise}");
    assert!(share_of(Verdict::Improved, noise, -0.05, 50) > 0.99);
    assert!(share_of(Verdict::Unchanged, noise, 0.0, 50) > 0.9);
}

/// Effort goes where the question is open: a quiet, unchanged matrix costs little more than its screen.
#[test]
fn most_cases_cost_a_screen() {
    let mut rng = Pcg64::seed_from_u64(9);
    let all: Vec<Vec<f64>> = (0..100).map(|_| series(Noise::White(0.005), 0.0, &mut rng)).collect();
    let (verdicts, measured) = decide(&all);
    assert!(verdicts.iter().all(|&verdict| verdict == Verdict::Unchanged), "{verdicts:?}");
    assert!(measured < 100 * 14, "{measured} pairs");
}

#[test]
fn too_little_evidence_is_said() {
    let one = |log_ratios: Vec<f64>| PairedCase { key: key(0), log_ratios, calibrated_error: None, is_closed: true };
    let decide = |cases: &[PairedCase], policy: &Policy| {
        let Step::Decided(findings) = plan::next(policy, &Evidence::Pairs { cases, may_measure: false }) else {
            panic!("nothing may be measured");
        };
        findings
    };
    let few = decide(&[one(vec![0.1; 3])], &policy());
    assert_eq!(few[0].verdict, Verdict::Inconclusive);
    assert!(few[0].reason.contains("too few rounds: 3 (needs 8)"), "{}", few[0].reason);
    // Nothing of the confirmation: a screened effect alone never fails.
    let screened = decide(&[one((0..8).map(|i| 0.1 + 0.001 * f64::from(i)).collect())], &policy());
    assert_eq!(screened[0].verdict, Verdict::Inconclusive);
    assert!(screened[0].reason.contains("too few rounds to confirm: 0 (needs 7)"), "{}", screened[0].reason);
    // A closed case does not hold the others up.
    let mut cases = vec![one(vec![]), one(vec![])];
    cases[1].is_closed = false;
    let step = plan::next(&policy(), &Evidence::Pairs { cases: &cases, may_measure: true });
    assert_eq!(step, Step::Measure { cases: vec![1], pairs: 8 });
    assert_eq!(decide(&[], &policy()), []);
}

/// The stated MDE of A/B is found with about the stated power.
#[test]
fn the_stated_mde_is_found() {
    let mut rng = Pcg64::seed_from_u64(4);
    let noise = Noise::White(0.02);
    let policy = Policy::default();
    let mdes: Vec<f64> = (0..40)
        .filter_map(|_| {
            let log_ratios = series(noise, 0.0, &mut rng);
            let case = PairedCase { key: key(0), log_ratios, calibrated_error: None, is_closed: false };
            plan::mde(&policy, &case, CASES)
        })
        .collect();
    assert_eq!(mdes.len(), 40);
    let mde = attnbench::stats::quantile::median(&mdes).unwrap();
    let power = share_of(Verdict::Regressed, noise, mde, 60);
    println!("MDE {mde:.4}, power {power:.2}");
    // Where all ten cases regress, later ranks need less than the first that the MDE allows for.
    assert!((0.7..=0.97).contains(&power), "MDE {mde}, power {power}");
}
