//! A simulated gate: the state machine, families, controls, memory and accuracy as a real one, on a simulated machine.

use attn_kernels::tensor::TensorName;
use attnbench::case::{CaseKey, Mode};
use attnbench::compare::{CaseComparison, Comparison, MetricComparison, SessionCase, SessionError, Side, Verdict, exact};
use attnbench::gate::controls::{self, PairedControl};
use attnbench::gate::exit::Exit;
use attnbench::gate::families;
use attnbench::gate::outcome::report;
use attnbench::gate::plan::{self, Evidence, PairedCase, Step};
use attnbench::gate::policy::Policy;
use attnbench::record::Disposition;
use rand::RngExt;
use rand_pcg::Pcg64;

use crate::noise::{Machine, Noise};
use crate::simulated::normal;

/// Cases of a gate.
pub(crate) const CASES: usize = 200;
/// Controls of a round.
const CONTROLS: usize = 4;
/// Kernels and their phases, which the cases are dealt to in turns.
const KINDS: [&str; 10] = [
    "flash/softmax/prefill",
    "flash/softmax/append",
    "flash/softmax/backward",
    "naive/softmax/prefill",
    "block_sparse/softmax/prefill",
    "split_kv/softmax/decode",
    "paged/softmax/decode",
    "linear/linear/prefill",
    "linear/linear/decode",
    "mla/mla/decode",
];

/// What a gate came to.
pub(crate) struct Outcome {
    pub(crate) exit: Exit,
    /// Cases called regressed, by latency.
    pub(crate) slower: Vec<usize>,
    pub(crate) family_regressed: bool,
    pub(crate) controls_differ: bool,
    /// Whether it was undecided by itself.
    pub(crate) undecided: bool,
    /// Whether memory or accuracy failed.
    pub(crate) other_metric: bool,
    pub(crate) pairs: usize,
    pub(crate) median_mde: Option<f64>,
}

/// A gate of [`CASES`] cases, each slower on head by its slowdown in log time.
pub(crate) fn gate(noise: Noise, slowdowns: &[f64], policy: &Policy, seed: u64) -> Outcome {
    assert_eq!(slowdowns.len(), CASES);
    let mut machine = Machine::new(noise, CASES + CONTROLS, seed);
    let mut cases: Vec<PairedCase> = (0..CASES).map(paired_case).collect();
    let mut controls: Vec<PairedControl> =
        (0..CONTROLS).map(|i| PairedControl { name: format!("control {i}"), log_ratios: vec![] }).collect();
    let findings = loop {
        match plan::next(policy, &Evidence::Pairs { cases: &cases, may_measure: true }) {
            Step::Decided(findings) => break findings,
            Step::Measure { cases: which, pairs } => {
                for _ in 0..pairs {
                    round(&mut machine, &which, slowdowns, &mut cases, &mut controls);
                }
            }
        }
    };
    let families = families::judge(policy, &cases);
    let machine_is_same = controls::judge(policy, &controls).is_comparable;

    let mut slower = Vec::new();
    let mut other_metric = false;
    let mut compared = Vec::with_capacity(CASES);
    for (i, (case, finding)) in cases.iter().zip(findings).enumerate() {
        if finding.verdict == Verdict::Regressed {
            slower.push(i);
        }
        let latency = MetricComparison { metric: "latency_ns_median".into(), base: None, head: None, finding };
        let others = other_metrics(&case.key, machine.rng(), policy);
        other_metric |= others.iter().any(|metric| metric.finding.verdict == Verdict::Regressed);
        compared.push(comparison(case.key.clone(), [vec![latency], others].concat()));
    }
    let side = || Side { suite: "simulated".into(), runs: vec![], commits: vec![] };
    let comparison = Comparison {
        base: side(),
        head: side(),
        fingerprint: vec![],
        provenance: vec![],
        drift: Default::default(),
        notes: vec![],
        cases: compared,
    };
    let report = report(comparison, true, policy, false);
    let family_regressed = families.iter().any(|family| family.finding.verdict == Verdict::Regressed);
    let exit = report
        .exit()
        .and(if family_regressed { Exit::Regression } else { Exit::Pass })
        .and(if machine_is_same { Exit::Pass } else { Exit::NotComparable });
    Outcome {
        exit,
        slower,
        family_regressed,
        controls_differ: !machine_is_same,
        undecided: report.exit() == Exit::Undecided,
        other_metric,
        pairs: cases.iter().map(|case| case.log_ratios.len()).sum(),
        median_mde: report.median_mde,
    }
}

/// One round of some cases in a shuffled order, with the controls.
fn round(
    machine: &mut Machine,
    which: &[usize],
    slowdowns: &[f64],
    cases: &mut [PairedCase],
    controls: &mut [PairedControl],
) {
    machine.start_round();
    let mut order = which.to_vec();
    for place in (1..order.len()).rev() {
        let other = machine.rng().random_range(0..=place);
        order.swap(place, other);
    }
    for case in order {
        let pair = machine.pair(case);
        cases[case].log_ratios.push(slowdowns[case] + pair);
    }
    for (i, control) in controls.iter_mut().enumerate() {
        // Controls run in the coordinator, whose speed is no worker's.
        let pair = machine.control_pair(CASES + i);
        control.log_ratios.push(pair);
    }
}

fn paired_case(index: usize) -> PairedCase {
    let case_id = format!("cpu/{}/full/f32/b1/h8:8/q{index}/k{index}/d64", KINDS[index % KINDS.len()]);
    let key = CaseKey { case_id, mode: Mode::Cold, threads: 2 };
    PairedCase { key, log_ratios: vec![], calibrated_error: None, is_closed: false }
}

/// Memory and accuracy of a case on two sides that do not differ: a few pages more or less, and errors of other inputs.
fn other_metrics(key: &CaseKey, rng: &mut Pcg64, policy: &Policy) -> Vec<MetricComparison> {
    let mut side = || SessionCase {
        key: key.clone(),
        disposition: Disposition::Measured,
        reason: None,
        round_ns: vec![],
        extra_peak_bytes: Some((1 << 20, (1 << 20) + rng.random_range(0..16u64 << 10))),
        errors: [(
            TensorName::O,
            SessionError { relative_l2: 1e-4 * (0.05 * normal(rng)).exp(), allowed_relative_l2: 1e-3, calls: 8 },
        )]
        .into(),
        flags: vec![],
    };
    let (base, head) = (side(), side());
    let (base, head) = ([&base], [&head]);
    let compared =
        [("extra_peak_bytes", exact::memory(&base, &head, policy)), ("relative_l2", exact::accuracy(&base, &head, policy))];
    let named = |(name, compared): (&str, Option<_>)| {
        let (base, head, finding) = compared?;
        Some(MetricComparison { metric: name.into(), base: Some(base), head: Some(head), finding })
    };
    compared.into_iter().filter_map(named).collect()
}

fn comparison(key: CaseKey, metrics: Vec<MetricComparison>) -> CaseComparison {
    let worst = metrics.iter().min_by_key(|metric| metric.finding.verdict).expect("there is latency");
    CaseComparison {
        key,
        base: Some(Disposition::Measured),
        head: Some(Disposition::Measured),
        verdict: worst.finding.verdict,
        reason: worst.finding.reason.clone(),
        metrics,
    }
}
