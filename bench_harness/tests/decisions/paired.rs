//! From pairs to an exit code: families, controls, acceptances and the metrics beside latency.

use attnbench::case::CaseKey;
use attnbench::compare::{Baseline, Finding, Verdict};
use attnbench::gate::acceptance::Acceptance;
use attnbench::gate::exit::Exit;
use attnbench::gate::outcome::{GateReport, PairResults, judge_pairs};
use attnbench::gate::plan::{self, Evidence, PairedCase, Step};
use attnbench::gate::policy::Policy;

use crate::machine::{Noise, key, sessions};

fn policy() -> Policy {
    Policy { simulations: 20, max_mde: 1000.0, ..Policy::default() }
}

/// What was measured of some cases with these slowdowns, a thousandth of noise and nothing else.
struct Measured {
    base: Baseline,
    head: Baseline,
    pairs: Vec<PairedCase>,
    controls: Vec<f64>,
    timing: Vec<f64>,
    acceptances: Vec<Acceptance>,
    removed: Vec<CaseKey>,
}

impl Measured {
    fn new(slowdowns: &[f64]) -> Measured {
        let one = |(index, &slowdown): (usize, &f64)| PairedCase {
            key: key(index),
            log_ratios: (0..48).map(|pair| slowdown.ln_1p() + 0.001 * f64::from(pair * 7 % 5 - 2)).collect(),
            calibrated_error: None,
            is_closed: true,
        };
        Measured {
            base: sessions("base", 1, 48, Noise::White(0.001), &vec![0.0; slowdowns.len()], 1),
            head: sessions("head", 1, 48, Noise::White(0.001), slowdowns, 2),
            pairs: slowdowns.iter().enumerate().map(one).collect(),
            controls: [0.0001, -0.0001].repeat(12),
            timing: Vec::new(),
            acceptances: Vec::new(),
            removed: Vec::new(),
        }
    }

    fn judge(&self) -> GateReport {
        let evidence = Evidence::Pairs { cases: &self.pairs, may_measure: false };
        let Step::Decided(findings) = plan::next(&policy(), &evidence) else { panic!("nothing may be measured") };
        judge_pairs(self.results(findings), &policy(), false)
    }

    fn results(&self, findings: Vec<Finding>) -> PairResults<'_> {
        PairResults {
            base: &self.base,
            head: &self.head,
            pairs: &self.pairs,
            findings,
            control_ratios: &self.controls,
            timing_ratios: &self.timing,
            removed: &self.removed,
            acceptances: &self.acceptances,
            notes: vec!["a note".into()],
            is_complete: true,
        }
    }
}

fn acceptance(metric: &str, at_most: Option<f64>) -> Acceptance {
    Acceptance {
        case: "cpu/flash/*".into(),
        metric: metric.into(),
        at_most,
        reason: "because".into(),
        by: "me".into(),
        expires: "2030-01-01".into(),
        commit: None,
    }
}

#[test]
fn one_slow_case_fails_and_is_accepted_up_to_its_bound() {
    let mut measured = Measured::new(&[0.0, 0.05, 0.0, 0.0]);
    let report = measured.judge();
    assert_eq!(report.exit(), Exit::Regression, "{:?}", report.causes);
    assert_eq!(report.comparison.cases[1].verdict, Verdict::Regressed);
    assert!(report.comparison.notes.contains(&"a note".to_owned()));
    measured.acceptances = vec![acceptance("latency_ns_median", Some(0.04))];
    assert_eq!(measured.judge().exit(), Exit::Regression, "it is larger than what was accepted");
    measured.acceptances = vec![acceptance("latency_ns_median", Some(0.06))];
    let report = measured.judge();
    assert_eq!(report.exit(), Exit::Pass, "{:?}", report.causes);
    assert_eq!(report.accepted[0].cases, [measured.pairs[1].key.to_string()]);
    assert!(report.comparison.cases[1].reason.contains("accepted up to 6 % by me until 2030-01-01: because"));
}

#[test]
fn many_small_losses_fail_together() {
    let report = Measured::new(&[0.008; 12]).judge();
    assert!(report.comparison.cases.iter().all(|case| case.verdict != Verdict::Regressed), "each is below the floor");
    assert_eq!(report.exit(), Exit::Regression, "{:?}", report.causes);
    assert!(report.causes[0].contains("the 12 cases of cpu/flash together are"), "{:?}", report.causes);
    assert_eq!(Measured::new(&[0.001; 12]).judge().exit(), Exit::Pass);
}

#[test]
fn controls_that_differ_take_the_times_out_and_nothing_else() {
    let mut measured = Measured::new(&[0.2, 0.0]);
    measured.controls = (0..16).map(|slot| 0.02 + 0.001 * f64::from(slot % 3)).collect();
    let report = measured.judge();
    assert_eq!(report.exit(), Exit::NotComparable, "{:?}", report.causes);
    assert!(report.comparison.cases[0].reason.contains("the controls, which no commit can change, are"));
    // A kernel that takes more memory does so on any machine.
    measured.head.sessions[0].cases[1].extra_peak_bytes = Some((3 << 20, 3 << 20));
    let report = measured.judge();
    assert_eq!(report.exit(), Exit::Regression, "{:?}", report.causes);
    measured.acceptances = vec![acceptance("extra_peak_bytes", Some(2.0))];
    assert_eq!(measured.judge().exit(), Exit::NotComparable);

    let mut measured = Measured::new(&[0.0, 0.0]);
    measured.timing = (0..16).map(|slot| -0.02 - 0.001 * f64::from(slot % 3)).collect();
    let report = measured.judge();
    assert_eq!(report.exit(), Exit::NotComparable);
    assert!(report.comparison.cases[0].reason.contains("the sources that time differ"), "{report:?}");
}

#[test]
fn what_is_removed_regresses_unless_it_is_accepted() {
    let mut measured = Measured::new(&[0.0, 0.0]);
    measured.removed = vec![key(7)];
    let report = measured.judge();
    assert_eq!((report.exit(), report.comparison.cases[2].verdict), (Exit::Regression, Verdict::Regressed));
    measured.acceptances = vec![acceptance("disposition", None)];
    assert_eq!(measured.judge().exit(), Exit::Pass);
}

#[test]
fn times_above_the_ceiling_take_no_part_in_families_either() {
    let mut measured = Measured::new(&[0.008; 12]);
    for case in &mut measured.head.sessions[0].cases[1..] {
        case.flags.push("implausible: 250 % of the FMA rate".into());
    }
    let report = measured.judge();
    assert_eq!(report.exit(), Exit::Undecided, "{:?}", report.causes);
    assert!(report.families.is_empty());
}
