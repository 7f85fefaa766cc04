//! A simulated gate: the state machine, families, controls, memory and accuracy as a real one, on a simulated machine.

use std::convert::Infallible;

use attn_kernels::tensor::TensorName;
use attnbench::case::{CaseKey, Mode};
use attnbench::compare::{
    BASELINE_VERSION, Baseline, Finding, MetricComparison, Session, SessionCase, SessionError, Verdict,
};
use attnbench::gate::drive::{PairSource, drive};
use attnbench::gate::exit::Exit;
use attnbench::gate::outcome::{PairResults, judge_pairs};
use attnbench::gate::plan::PairedCase;
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
    let mut simulated = Simulated {
        machine: Machine::new(noise, CASES + CONTROLS, seed),
        slowdowns,
        cases: (0..CASES).map(paired_case).collect(),
        control_ratios: Vec::new(),
    };
    let Ok(findings) = drive(policy, &mut simulated);
    let slower: Vec<usize> = (0..CASES).filter(|&case| findings[case].verdict == Verdict::Regressed).collect();
    let Simulated { mut machine, cases, control_ratios, .. } = simulated;
    let (base, head) = (side(&cases, machine.rng()), side(&cases, machine.rng()));
    let results = PairResults {
        base: &base,
        head: &head,
        pairs: &cases,
        findings,
        control_ratios: &control_ratios,
        timing_ratios: &[],
        removed: &[],
        acceptances: &[],
        notes: vec![],
        is_complete: true,
    };
    let report = judge_pairs(results, policy, false);
    let is_regressed = |metric: &MetricComparison| metric.finding.verdict == Verdict::Regressed;
    let mut metrics = report.comparison.cases.iter().flat_map(|case| &case.metrics);
    let says = |what: &str| report.causes.iter().any(|cause| cause.contains(what));
    Outcome {
        exit: report.exit(),
        slower,
        family_regressed: report.families.iter().any(|family| family.finding.verdict == Verdict::Regressed),
        controls_differ: says("not comparable"),
        undecided: report.exit() == Exit::Undecided,
        other_metric: metrics.any(|metric| metric.metric != "latency_ns_median" && is_regressed(metric)),
        pairs: cases.iter().map(|case| case.log_ratios.len()).sum(),
        median_mde: report.median_mde,
    }
}

/// What stands in for workers.
struct Simulated<'a> {
    machine: Machine,
    slowdowns: &'a [f64],
    cases: Vec<PairedCase>,
    control_ratios: Vec<f64>,
}

impl PairSource for Simulated<'_> {
    type Error = Infallible;

    fn cases(&self) -> &[PairedCase] {
        &self.cases
    }

    fn may_measure(&self) -> bool {
        true
    }

    /// Rounds of these cases in a shuffled order, with the controls.
    fn measure(&mut self, cases: &[usize], pairs: usize) -> Result<(), Infallible> {
        for _ in 0..pairs {
            self.machine.start_round();
            let mut order = cases.to_vec();
            for place in (1..order.len()).rev() {
                let other = self.machine.rng().random_range(0..=place);
                order.swap(place, other);
            }
            for case in order {
                let ratio = self.slowdowns[case] + self.machine.pair(case);
                self.cases[case].log_ratios.push(ratio);
            }
            self.control_ratios.extend((0..CONTROLS).map(|control| self.machine.control_pair(CASES + control)));
        }
        Ok(())
    }
}

fn paired_case(index: usize) -> PairedCase {
    let case_id = format!("cpu/{}/full/f32/b1/h8:8/q{index}/k{index}/d64", KINDS[index % KINDS.len()]);
    let key = CaseKey { case_id, mode: Mode::Cold, threads: 2 };
    PairedCase { key, log_ratios: vec![], calibrated_error: None, is_closed: false }
}

/// All that one of two sides has beside latency, which do not differ: a few pages more or less, and errors of other inputs.
fn side(cases: &[PairedCase], rng: &mut Pcg64) -> Baseline {
    let mut case = |case: &PairedCase| SessionCase {
        key: case.key.clone(),
        disposition: Disposition::Measured,
        reason: None,
        round_ns: vec![1e6; 8],
        extra_peak_bytes: Some((1 << 20, (1 << 20) + rng.random_range(0..16u64 << 10))),
        errors: [(
            TensorName::O,
            SessionError { relative_l2: 1e-4 * (0.05 * normal(rng)).exp(), allowed_relative_l2: 1e-3, calls: 8 },
        )]
        .into(),
        flags: vec![],
        clocks: None,
    };
    let session = Session {
        run_id: "simulated".into(),
        date: "2026-01-01T00:00:00Z".into(),
        commit: None,
        dirty: false,
        suite_hash: "00".into(),
        complete: true,
        device_shared: false,
        provenance: Default::default(),
        controls: vec![],
        cases: cases.iter().map(&mut case).collect(),
    };
    Baseline {
        baseline_version: BASELINE_VERSION,
        device: "simulated".into(),
        suite: "simulated".into(),
        fingerprint: Default::default(),
        sessions: vec![session],
    }
}

/// A gate of one case that is slower by this log ratio: its finding, and its pairs.
pub(crate) fn one_case(machine: &mut Machine, slowdown: f64, policy: &Policy) -> (Finding, Vec<f64>) {
    struct One<'a> {
        machine: &'a mut Machine,
        slowdown: f64,
        cases: Vec<PairedCase>,
    }
    impl PairSource for One<'_> {
        type Error = Infallible;
        fn cases(&self) -> &[PairedCase] {
            &self.cases
        }
        fn may_measure(&self) -> bool {
            true
        }
        fn measure(&mut self, _cases: &[usize], pairs: usize) -> Result<(), Infallible> {
            for _ in 0..pairs {
                self.machine.start_round();
                let ratio = self.slowdown + self.machine.pair(0);
                self.cases[0].log_ratios.push(ratio);
            }
            Ok(())
        }
    }
    let mut one = One { machine, slowdown, cases: vec![paired_case(0)] };
    let Ok(findings) = drive(policy, &mut one);
    let case = one.cases.remove(0);
    (findings.into_iter().next().expect("one case"), case.log_ratios)
}
