use super::*;
use crate::case::Mode;

/// Cases of independent noise of this deviation, as two builds that differ by `offset` would show it.
fn stream(cases: usize, pairs: usize, deviation: f64, offset: f64, seed: u64) -> Vec<PairedCase> {
    let mut rng = Pcg64::seed_from_u64(seed);
    let mut noise = || (0..4).map(|_| rng.random::<f64>() - 0.5).sum::<f64>() * 3f64.sqrt() * deviation;
    (0..cases)
        .map(|number| PairedCase {
            key: CaseKey {
                case_id: format!("cpu/flash/softmax/prefill/full/f32/b1/h8:8/q{number}/k{number}/d64"),
                mode: Mode::Cold,
                threads: 2,
            },
            log_ratios: (0..pairs).map(|_| offset + noise()).collect(),
            calibrated_error: None,
            is_closed: false,
        })
        .collect()
}

/// The 0.95 quantiles of the beta distributions (4, 37) and (1, 100).
#[test]
fn bounds_of_shares() {
    for (seen, count, expected) in [(3, 40, 0.18259), (0, 100, 0.02951), (40, 40, 1.0)] {
        let bound = binomial_upper(seen, count);
        assert!((bound - expected).abs() < 1e-5, "{seen} of {count}: {bound}");
    }
}

#[test]
fn quiet_builds_pass_and_builds_that_differ_do_not() {
    let policy = Policy::default();
    let (rate, windows) = case_rate(&stream(60, 40, 0.01, 0.0, 1), &policy);
    assert_eq!(windows, 300);
    assert!(rate.value < 0.06 && rate.upper > rate.value && rate.upper <= MAX_RATE, "{rate:?}");
    let (rate, _) = case_rate(&stream(60, 40, 0.01, 0.01, 1), &policy);
    assert!(rate.value > 0.5 && rate.upper > MAX_RATE, "{rate:?}");
    assert_eq!(case_rate(&[], &policy), (Rate { value: 0.0, upper: 1.0 }, 0));
}

#[test]
fn gates_without_a_change_pass() {
    let rate = gate_rate(&stream(20, 40, 0.01, 0.0, 2), &Policy::default());
    assert!(rate.value <= 0.03, "{rate:?}");
    assert_eq!(gate_rate(&[], &Policy::default()).upper, 1.0);
}

#[test]
fn noise_and_what_builds_differ_by_make_the_error() {
    let policy = Policy::default();
    let of = |offset: f64| {
        let noise = noise(&stream(40, 80, 0.02, offset, 3), &policy);
        noise.iter().map(|case| case.error).sum::<f64>() / noise.len() as f64
    };
    // 2 % over 24 pairs, and 3 % that no number of pairs takes away.
    assert!((0.004..0.007).contains(&of(0.0)), "{}", of(0.0));
    assert!((0.029..0.032).contains(&of(0.03)), "{}", of(0.03));
}

#[test]
fn slowdowns_in_the_numbers_are_found_by_their_size() {
    let policy = Policy::default();
    let cases = stream(30, 64, 0.01, 0.0, 4);
    let found = numeric(&cases, &policy);
    assert_eq!(found.iter().map(|found| found.of).collect::<Vec<_>>(), [60; 4]);
    assert!(found[0].found < 50 && found[1].found > 40 && found[2].found > 58 && found[3].found == 60, "{found:?}");
    let slowed = stream(1, 32, 0.01, 0.05f64.ln_1p(), 5);
    let injected = injected(&cases[0], &slowed[0], 0.05, &policy).unwrap();
    assert_eq!((injected.verdict, injected.numeric_verdict), (Verdict::Regressed, Verdict::Regressed));
    assert!((injected.measured - injected.numeric).abs() < 0.02, "{injected:?}");
}
