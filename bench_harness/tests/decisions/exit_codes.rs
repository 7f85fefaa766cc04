//! From comparisons to exit codes.

use attnbench::compare::{Baseline, Verdict, compare};
use attnbench::gate::exit::Exit;
use attnbench::gate::outcome::{GateReport, report};
use attnbench::gate::policy::Policy;
use attnbench::record::Disposition;

use crate::machine::{Noise, sessions};

const QUIET: Noise = Noise::White(0.001);

/// A policy whose largest MDE a single session can meet.
fn lenient() -> Policy {
    Policy { max_mde: 0.15, ..Policy::default() }
}

fn gate(base: &Baseline, head: &Baseline, policy: &Policy, strict: bool) -> GateReport {
    let is_complete = head.sessions.iter().all(|session| session.complete);
    report(compare(base, head, policy), is_complete, policy, strict)
}

fn base(cases: usize) -> Baseline {
    sessions("base", 1, 5, QUIET, &vec![0.0; cases], 1)
}

fn head(slowdowns: &[f64]) -> Baseline {
    sessions("head", 1, 5, QUIET, slowdowns, 2)
}

/// The exit code is never a count: 256 regressions are no success.
#[test]
fn failures_are_not_counted() {
    for regressed in [0, 1, 256] {
        let slowdowns: Vec<f64> = (0..300).map(|i| if i < regressed { 0.10f64.ln_1p() } else { 0.0 }).collect();
        let report = gate(&base(300), &head(&slowdowns), &lenient(), false);
        let found = report.comparison.cases.iter().filter(|case| case.verdict == Verdict::Regressed).count();
        assert_eq!(found, regressed);
        assert_eq!(report.exit(), if regressed == 0 { Exit::Pass } else { Exit::Regression }, "{:?}", report.causes);
        assert_eq!(report.exit_code, u8::from(regressed > 0));
        assert!(report.headline.starts_with("judged 300 of 300, median MDE "), "{}", report.headline);
    }
}

#[test]
fn precedence() {
    let order = [Exit::Usage, Exit::Regression, Exit::Failed, Exit::NotComparable, Exit::Undecided, Exit::Pass];
    assert_eq!(order.map(|exit| exit as u8), [2, 1, 5, 4, 3, 0]);
    for (i, &first) in order.iter().enumerate() {
        for &second in &order[i..] {
            assert_eq!(first.and(second), first);
            assert_eq!(second.and(first), first);
        }
    }
}

#[test]
fn one_session_detects_too_little_for_the_default_gate() {
    let report = gate(&base(4), &head(&[0.0; 4]), &Policy::default(), false);
    assert_eq!(report.exit(), Exit::Undecided);
    assert!(report.causes[0].contains("`max_mde`"), "{:?}", report.causes);
    // A regression is one all the same.
    let report = gate(&base(4), &head(&[0.2, 0.0, 0.0, 0.0]), &Policy::default(), false);
    assert_eq!(report.exit(), Exit::Regression);
}

#[test]
fn undecided_cases() {
    // One case of twenty in the grey zone: enough are decided, unless the gate is strict.
    let mut slowdowns = vec![0.0; 20];
    slowdowns[3] = 0.05;
    assert_eq!(gate(&base(20), &head(&slowdowns), &lenient(), false).exit(), Exit::Pass);
    assert_eq!(gate(&base(20), &head(&slowdowns), &lenient(), true).exit(), Exit::Undecided);
    slowdowns[..3].fill(0.05);
    let report = gate(&base(20), &head(&slowdowns), &lenient(), false);
    assert_eq!(report.exit(), Exit::Undecided);
    assert!(report.headline.starts_with("judged 16 of 20"), "{}", report.headline);
}

#[test]
fn another_machine_is_not_comparable() {
    let mut head = head(&[0.5, 0.0]);
    head.fingerprint.insert("cpu_model".into(), "another".into());
    let report = gate(&base(2), &head, &lenient(), false);
    assert_eq!(report.exit(), Exit::NotComparable);
    assert!(report.comparison.cases[0].reason.contains("`cpu_model` (nothing against `another`)"));
}

#[test]
fn dispositions() {
    let with = |which: usize, side: &mut Baseline, disposition: Disposition| {
        let case = &mut side.sessions[0].cases[which];
        case.disposition = disposition;
        case.reason = Some("because".into());
        case.round_ns.clear();
    };
    let outcome = |on_base: Option<Disposition>, on_head: Option<Disposition>| {
        let (mut base, mut head) = (base(3), head(&[0.0; 3]));
        if let Some(disposition) = on_base {
            with(1, &mut base, disposition);
        }
        if let Some(disposition) = on_head {
            with(1, &mut head, disposition);
        }
        let policy = Policy { min_decided: 0.5, ..lenient() };
        let report = gate(&base, &head, &policy, false);
        (report.comparison.cases[1].verdict, report.exit())
    };
    for broken in [
        Disposition::Crashed,
        Disposition::Incorrect,
        Disposition::TimedOut,
        Disposition::OutOfMemory,
        Disposition::Unsupported,
    ] {
        assert_eq!(outcome(None, Some(broken)), (Verdict::Regressed, Exit::Regression), "{broken:?}");
        assert_eq!(outcome(Some(broken), None), (Verdict::Improved, Exit::Pass), "{broken:?}");
    }
    assert_eq!(outcome(None, Some(Disposition::Throttled)), (Verdict::Inconclusive, Exit::Pass));
    assert_eq!(
        outcome(Some(Disposition::OutOfMemory), Some(Disposition::OutOfMemory)),
        (Verdict::Unchanged, Exit::Pass)
    );
    assert_eq!(outcome(Some(Disposition::Crashed), Some(Disposition::Crashed)), (Verdict::Inconclusive, Exit::Failed));
}

#[test]
fn cases_of_one_side_only() {
    let report = gate(&base(3), &head(&[0.0; 4]), &lenient(), true);
    assert_eq!(report.exit(), Exit::Pass, "a new case never fails: {:?}", report.causes);
    assert!(report.comparison.cases[3].is_new());
    let report = gate(&base(4), &head(&[0.0; 3]), &lenient(), false);
    assert_eq!(report.exit(), Exit::Regression);
    let accepting = Policy { accept_removed: true, ..lenient() };
    assert_eq!(gate(&base(4), &head(&[0.0; 3]), &accepting, false).exit(), Exit::Pass);
    let report = gate(&base(0), &head(&[]), &lenient(), false);
    assert_eq!(report.exit(), Exit::Undecided, "nothing judged is no pass");
}

#[test]
fn memory_and_accuracy_fail_too() {
    let mut hungry = head(&[0.0; 2]);
    hungry.sessions[0].cases[1].extra_peak_bytes = Some((2 << 20, 2 << 20));
    let report = gate(&base(2), &hungry, &lenient(), false);
    assert_eq!(report.exit(), Exit::Regression);
    assert!(report.comparison.cases[1].reason.starts_with("extra_peak_bytes: 1048576 bytes more"), "{report:?}");
    // Rounds that disagree prove nothing, and a page more is nothing.
    hungry.sessions[0].cases[1].extra_peak_bytes = Some((1 << 20, 2 << 20));
    assert_eq!(gate(&base(2), &hungry, &lenient(), false).comparison.cases[1].verdict, Verdict::Inconclusive);
    hungry.sessions[0].cases[1].extra_peak_bytes = Some(((1 << 20) + 4096, (1 << 20) + 4096));
    assert_eq!(gate(&base(2), &hungry, &lenient(), false).exit(), Exit::Pass);

    let error = |relative_l2: f64| {
        let error = attnbench::compare::SessionError { relative_l2, allowed_relative_l2: 1e-5, calls: 8 };
        [(attn_kernels::tensor::TensorName::O, error)].into()
    };
    let (mut before, mut after) = (base(2), head(&[0.0; 2]));
    for (now, verdict) in [(1e-6, Verdict::Unchanged), (1.4e-6, Verdict::Unchanged), (2e-6, Verdict::Regressed)] {
        before.sessions[0].cases[0].errors = error(1e-6);
        after.sessions[0].cases[0].errors = error(now);
        assert_eq!(gate(&before, &after, &lenient(), false).comparison.cases[0].verdict, verdict, "{now}");
    }
    // Twice nothing is nothing: the rise is below 5 % of the tolerance.
    before.sessions[0].cases[0].errors = error(1e-8);
    after.sessions[0].cases[0].errors = error(1e-7);
    assert_eq!(gate(&before, &after, &lenient(), false).comparison.cases[0].verdict, Verdict::Unchanged);
}

#[test]
fn implausible_speeds_take_no_part() {
    let mut fast = head(&[0.0, -2.0]);
    fast.sessions[0].cases[1].flags.push("implausible: 250 % of the FMA rate".into());
    let report = gate(&base(2), &fast, &Policy { min_decided: 0.5, ..lenient() }, false);
    assert_eq!(report.comparison.cases[1].verdict, Verdict::Inconclusive);
    assert!(report.comparison.cases[1].reason.contains("implausible: 250 %"), "{report:?}");
}

#[test]
fn an_unfinished_run_fails() {
    let mut head = head(&[0.0; 2]);
    head.sessions[0].complete = false;
    let report = gate(&base(2), &head, &lenient(), false);
    assert_eq!(report.exit(), Exit::Failed);
    assert_eq!(report.exit_code, 5);
}
