//! Stored baselines.

use attnbench::compare::{Verdict, compare};
use attnbench::gate::policy::Policy;

use crate::machine::{Noise, sessions};

/// Cases of one comparison.
const CASES: usize = 10;

/// How many of `comparisons` comparisons of one build with itself call a case regressed or improved.
fn false_alarms(noise: Noise, count: usize, rounds: usize, comparisons: u64) -> usize {
    (0..comparisons)
        .filter(|&seed| {
            let base = sessions("base", count, rounds, noise, &[0.0; CASES], 2 * seed);
            let head = sessions("head", count, rounds, noise, &[0.0; CASES], 2 * seed + 1);
            let compared = compare(&base, &head, &Policy::default());
            compared.cases.iter().any(|case| matches!(case.verdict, Verdict::Regressed | Verdict::Improved))
        })
        .count()
}

/// Share of cases that are called regressed when every one is slower by `slowdown`.
fn found(noise: Noise, count: usize, rounds: usize, slowdown: f64, comparisons: u64) -> f64 {
    let regressed: usize = (0..comparisons)
        .map(|seed| {
            let base = sessions("base", count, rounds, noise, &[0.0; CASES], 2 * seed);
            let head = sessions("head", count, rounds, noise, &[slowdown.ln_1p(); CASES], 2 * seed + 1);
            let compared = compare(&base, &head, &Policy::default());
            compared.cases.iter().filter(|case| case.verdict == Verdict::Regressed).count()
        })
        .sum();
    regressed as f64 / (comparisons as usize * CASES) as f64
}

/// A thousand comparisons of ten cases for each kind of noise with 5 rounds, and some with 3 and 10: about one comparison
/// in a thousand may raise an alarm, on however noisy a machine.
#[test]
fn one_session_never_cries_wolf() {
    let noises = [
        Noise::White(0.01),
        Noise::White(0.05),
        Noise::White(0.15),
        Noise::White(0.4),
        Noise::Autocorrelated(0.05),
        Noise::Autocorrelated(0.15),
        Noise::Bimodal(0.10),
        Noise::Bimodal(0.5),
        Noise::Drifting(0.3),
        Noise::Spiky,
        Noise::Sessions(0.05),
        Noise::Sessions(0.2),
    ];
    let mut total = 0;
    for noise in noises {
        for (rounds, comparisons) in [(3, 200), (5, 1000), (10, 200)] {
            let alarms = false_alarms(noise, 1, rounds, comparisons);
            println!("{noise:?}, {rounds} rounds: {alarms} of {comparisons}");
            assert!(alarms <= 2, "{noise:?}, {rounds} rounds: {alarms} of {comparisons}");
            total += alarms;
        }
    }
    assert!(total <= 8, "{total} of 16,800");
}

/// With sessions against sessions the false discovery rate is 2 % each way, so of comparisons where nothing changed at
/// most 4 % may raise an alarm.
#[test]
fn many_sessions_keep_the_nominal_rate() {
    for noise in [Noise::White(0.02), Noise::Bimodal(0.05), Noise::Spiky, Noise::Sessions(0.01), Noise::Drifting(0.05)]
    {
        for count in [5, 8] {
            let alarms = false_alarms(noise, count, 5, 250);
            println!("{noise:?}, {count} sessions: {alarms} of 250");
            assert!(alarms <= 10, "{noise:?}, {count} sessions: {alarms} of 250");
        }
    }
}

#[test]
fn what_one_session_finds() {
    // Rounds of 1 %: 2 % and 5 % are below the gross threshold, 10 % is beyond it.
    assert_eq!(found(Noise::White(0.01), 1, 5, 0.02, 100), 0.0);
    assert!(found(Noise::White(0.01), 1, 5, 0.05, 100) < 0.01);
    let ten = found(Noise::White(0.01), 1, 5, 0.10, 100);
    assert!(ten > 0.7, "{ten}");
    let twenty = found(Noise::White(0.01), 1, 5, 0.20, 100);
    assert!(twenty > 0.999, "{twenty}");
    // A noisy machine still sees a doubling, unless its controls drift too far apart by chance.
    let doubled = found(Noise::White(0.05), 1, 5, 1.0, 100);
    assert!(doubled > 0.85, "{doubled}");
}

#[test]
fn what_many_sessions_find() {
    let noise = Noise::White(0.01);
    let two = found(noise, 8, 5, 0.02, 50);
    let five = found(noise, 8, 5, 0.05, 50);
    let ten = found(noise, 8, 5, 0.10, 50);
    println!("8 sessions: 2 % {two}, 5 % {five}, 10 % {ten}");
    assert!(two > 0.8 && five > 0.99 && ten > 0.999, "{two} {five} {ten}");
}

/// A machine that became slower as a whole is no regression, nor does it hide behind a verdict.
#[test]
fn a_slower_machine_is_not_a_slower_build() {
    let base = sessions("base", 1, 10, Noise::White(0.01), &[0.0; CASES], 1);
    let mut head = sessions("head", 1, 10, Noise::White(0.01), &[0.0; CASES], 2);
    for session in &mut head.sessions {
        let rounds = session.cases.iter_mut().map(|case| &mut case.round_ns);
        rounds
            .chain(session.controls.iter_mut().map(|control| &mut control.round_ns))
            .flatten()
            .for_each(|ns| *ns *= 1.25);
    }
    let compared = compare(&base, &head, &Policy::default());
    for case in &compared.cases {
        assert_eq!(case.verdict, Verdict::NotComparable);
        assert!(case.reason.contains("own ceilings differ by 2"), "{}", case.reason);
    }
}

/// The stated MDE is what is found with about 80 % power: the effect is injected and counted.
#[test]
fn the_stated_mde_is_found() {
    for (count, rounds, deviation) in [(1, 5, 0.005), (1, 5, 0.03), (1, 10, 0.05), (8, 5, 0.02)] {
        let noise = Noise::White(deviation);
        let stated: Vec<f64> = (0..20)
            .flat_map(|seed| {
                let base = sessions("base", count, rounds, noise, &[0.0; CASES], 1000 + 2 * seed);
                let head = sessions("head", count, rounds, noise, &[0.0; CASES], 1001 + 2 * seed);
                let compared = compare(&base, &head, &Policy::default());
                compared
                    .cases
                    .into_iter()
                    .filter_map(|case| case.metric("latency_ns_median")?.finding.mde)
                    .collect::<Vec<_>>()
            })
            .collect();
        let mde = attnbench::stats::quantile::median(&stated).unwrap();
        let power = found(noise, count, rounds, mde, 40);
        println!("{count} sessions of {rounds} rounds of {deviation}: MDE {mde:.3}, power {power:.2}");
        assert!((0.6..=1.0).contains(&power), "{count} sessions of {rounds} rounds of {deviation}: {mde} {power}");
    }
}

#[test]
fn quiet_sessions_are_unchanged() {
    let base = sessions("base", 1, 5, Noise::White(0.002), &[0.0; CASES], 1);
    let head = sessions("head", 1, 5, Noise::White(0.002), &[0.0; CASES], 2);
    let compared = compare(&base, &head, &Policy::default());
    assert!(compared.cases.iter().all(|case| case.verdict == Verdict::Unchanged), "{compared:#?}");
    let itself = compare(&base, &base, &Policy::default());
    assert!(itself.cases.iter().all(|case| case.verdict == Verdict::Unchanged));
}

#[test]
fn too_few_rounds_are_said() {
    let base = sessions("base", 1, 2, Noise::White(0.01), &[0.0], 1);
    let head = sessions("head", 1, 2, Noise::White(0.01), &[1.0], 2);
    let compared = compare(&base, &head, &Policy::default());
    assert_eq!(compared.cases[0].verdict, Verdict::Inconclusive);
    assert!(compared.cases[0].reason.contains("too few rounds: 2 of base, 2 of head (needs 3"), "{compared:?}");
}
