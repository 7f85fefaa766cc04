//! Records against records: verdicts.
//!
//! A record is a baseline of one session, so [`compare`] sees two baselines. Cases are aligned by their key. Every case
//! gets a verdict with a reason, be it that only one side has it.

pub mod baseline;
pub mod clocks;
pub mod devices;
pub mod drift;
pub mod exact;
pub mod latency;
pub mod pairs;
pub mod verdict;

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use baseline::{
    BASELINE_VERSION, Baseline, BaselineError, Difference, Session, SessionCase, SessionControl, SessionError,
    differences,
};
pub use drift::Drift;
pub use latency::StoredCase;
pub use verdict::{Finding, Verdict};

use crate::case::CaseKey;
use crate::gate::plan::{self, Evidence, Step};
use crate::gate::policy::Policy;
use crate::record::Disposition;
use crate::stats::quantile::median;

/// Two sides and what their difference comes to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Comparison {
    /// What was compared with.
    pub base: Side,
    /// What was compared.
    pub head: Side,
    /// Fingerprint fields that differ: where there are any, nothing is comparable.
    pub fingerprint: Vec<Difference>,
    /// Provenance fields that differ between the latest sessions: worth knowing, never blocking.
    pub provenance: Vec<Difference>,
    /// The control that moved most, by provider.
    pub drift: BTreeMap<String, Drift>,
    /// What else a reader should know.
    pub notes: Vec<String>,
    /// Every case of either side: base's in its order, then new ones.
    pub cases: Vec<CaseComparison>,
}

/// Where one side came from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Side {
    /// The suite.
    pub suite: String,
    /// Ids of the runs, oldest first.
    pub runs: Vec<String>,
    /// Their commits, without repeats.
    pub commits: Vec<String>,
}

/// One case of a comparison.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CaseComparison {
    /// Which.
    #[serde(flatten)]
    pub key: CaseKey,
    /// What became of it on base; `None` where base does not have it.
    pub base: Option<Disposition>,
    /// What became of it on head; `None` where head does not have it.
    pub head: Option<Disposition>,
    /// The verdict of the metric that matters most.
    pub verdict: Verdict,
    /// Why.
    pub reason: String,
    /// Metric by metric, where the case was measured on both sides.
    pub metrics: Vec<MetricComparison>,
}

/// One metric of a case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MetricComparison {
    /// Name in [`crate::metric::METRICS`].
    pub metric: String,
    /// Base's value.
    pub base: Option<f64>,
    /// Head's value.
    pub head: Option<f64>,
    /// The verdict and what it rests on.
    #[serde(flatten)]
    pub finding: Finding,
}

impl CaseComparison {
    /// The metric of that name.
    pub fn metric(&self, name: &str) -> Option<&MetricComparison> {
        self.metrics.iter().find(|metric| metric.metric == name)
    }

    /// Whether head has a case that base does not: such a case never fails.
    pub fn is_new(&self) -> bool {
        self.base.is_none()
    }

    /// Whether there are times of both sides.
    fn was_measured_on_both(&self) -> bool {
        [self.base, self.head] == [Some(Disposition::Measured); 2]
    }

    /// Whether the case was to be measured and could not be, on both sides.
    pub fn failed_on_both(&self) -> bool {
        self.base.is_some_and(Disposition::is_failure) && self.head.is_some_and(Disposition::is_failure)
    }

    /// Whether there was anything to judge: not for new cases, nor for those that neither side can run.
    pub fn is_eligible(&self) -> bool {
        self.base == Some(Disposition::Measured) || (self.base.is_some() && self.head == Some(Disposition::Measured))
    }
}

/// Compares head with base. Pure: the same input gives the same answer.
pub fn compare(base: &Baseline, head: &Baseline, policy: &Policy) -> Comparison {
    let fingerprint = differences(&base.fingerprint, &head.fingerprint);
    let drift = drift::drifts(&base.sessions, &head.sessions);
    let mut cases = pairings(base, head).into_iter().map(|pairing| pairing.without_latency(policy)).collect::<Vec<_>>();
    if fingerprint.is_empty() {
        judge_latency(&mut cases, base, head, &drift, policy);
    } else {
        refuse(&mut cases, &fingerprint);
    }
    conclude(base, head, drift, cases)
}

fn conclude(
    base: &Baseline,
    head: &Baseline,
    drift: BTreeMap<String, Drift>,
    mut cases: Vec<CaseComparison>,
) -> Comparison {
    let sides: BTreeMap<&CaseKey, Pairing<'_>> =
        pairings(base, head).into_iter().map(|pairing| (pairing.key, pairing)).collect();
    for case in &mut cases {
        let side = &sides[&case.key];
        for latency in case.metrics.iter_mut().filter(|metric| metric.metric == LATENCY) {
            clocks::blame_power(&side.base, &side.head, &mut latency.finding);
        }
        case.conclude();
    }
    Comparison {
        base: Side::of(base),
        head: Side::of(head),
        fingerprint: differences(&base.fingerprint, &head.fingerprint),
        provenance: differences(&latest_provenance(base), &latest_provenance(head)),
        notes: notes(base, head, &drift),
        drift,
        cases,
    }
}

impl Side {
    fn of(baseline: &Baseline) -> Side {
        let mut commits: Vec<String> = baseline
            .sessions
            .iter()
            .filter_map(|session| {
                Some(format!("{}{}", session.commit.as_ref()?, if session.dirty { "-dirty" } else { "" }))
            })
            .collect();
        commits.dedup();
        let runs = baseline.sessions.iter().map(|session| session.run_id.clone()).collect();
        Side { suite: baseline.suite.clone(), runs, commits }
    }
}

fn latest_provenance(baseline: &Baseline) -> BTreeMap<String, String> {
    let mut provenance = baseline.sessions.last().map(|session| session.provenance.clone()).unwrap_or_default();
    // It differs always, and says nothing that the controls' drift does not say better.
    provenance.remove("load_1min");
    provenance
}

fn notes(base: &Baseline, head: &Baseline, drift: &BTreeMap<String, Drift>) -> Vec<String> {
    let mut notes = Vec::new();
    let hashes =
        |side: &Baseline| side.sessions.iter().map(|session| session.suite_hash.clone()).collect::<BTreeSet<_>>();
    if base.suite != head.suite {
        notes.push(format!("base ran suite `{}`, head ran `{}`", base.suite, head.suite));
    } else if hashes(base) != hashes(head) {
        notes.push(format!("suite `{}` changed between base and head: cases compare by their keys", base.suite));
    }
    for (name, side) in [("base", base), ("head", head)] {
        for session in &side.sessions {
            if !session.complete {
                notes.push(format!("run {} of {name} did not reach every planned round", session.run_id));
            }
            if session.device_shared {
                notes.push(format!("run {} of {name} shared its device with another attnbench", session.run_id));
            }
        }
    }
    if drift.is_empty() {
        notes.push("no control ran on both sides: the machine's own drift is unknown".to_owned());
    }
    notes
}

/// What both sides have of a case.
struct Pairing<'a> {
    key: &'a CaseKey,
    base: Vec<&'a SessionCase>,
    head: Vec<&'a SessionCase>,
}

/// Every case of either side: base's in the order of its latest session, then those of older ones, then new ones.
fn pairings<'a>(base: &'a Baseline, head: &'a Baseline) -> Vec<Pairing<'a>> {
    fn by_key(side: &Baseline) -> BTreeMap<&CaseKey, Vec<&SessionCase>> {
        let mut cases: BTreeMap<&CaseKey, Vec<&SessionCase>> = BTreeMap::new();
        for case in side.sessions.iter().flat_map(|session| &session.cases) {
            cases.entry(&case.key).or_default().push(case);
        }
        cases
    }
    let (base_cases, head_cases) = (by_key(base), by_key(head));
    let mut seen = BTreeSet::new();
    base.sessions
        .iter()
        .rev()
        .chain(head.sessions.iter().rev())
        .flat_map(|session| &session.cases)
        .map(|case| &case.key)
        .filter(|&key| seen.insert(key))
        .map(|key| Pairing {
            key,
            base: base_cases.get(key).cloned().unwrap_or_default(),
            head: head_cases.get(key).cloned().unwrap_or_default(),
        })
        .collect()
}

impl Pairing<'_> {
    /// What takes the case's times out of verdicts.
    fn doubt(&self) -> Option<String> {
        let flagged = |(name, cases): (&str, &Vec<&SessionCase>)| {
            let flag = cases.iter().find_map(|case| case.flags.first())?;
            Some(format!("{flag} (on {name})"))
        };
        [("base", &self.base), ("head", &self.head)].into_iter().find_map(flagged)
    }

    /// Everything but latency, which is judged for all cases together.
    fn without_latency(&self, policy: &Policy) -> CaseComparison {
        let measured = |case: &&&SessionCase| case.disposition == Disposition::Measured;
        // Base is what the case could do at its best; head is judged by its worst session.
        let base = self.base.iter().find(measured).or(self.base.last()).map(|case| case.disposition);
        let head = self.head.iter().find(|case| !measured(case)).or(self.head.last()).map(|case| case.disposition);
        let mut comparison = CaseComparison {
            key: self.key.clone(),
            base,
            head,
            verdict: Verdict::Unchanged,
            reason: String::new(),
            metrics: Vec::new(),
        };
        if let Some((verdict, reason)) = self.by_disposition(base, head, policy) {
            comparison.verdict = verdict;
            comparison.reason = reason;
            return comparison;
        }
        let mut push = |name: &str, compared: Option<(f64, f64, Finding)>| {
            if let Some((base, head, finding)) = compared {
                let metric = name.to_owned();
                comparison.metrics.push(MetricComparison { metric, base: Some(base), head: Some(head), finding });
            }
        };
        push("extra_peak_bytes", exact::memory(&self.base, &self.head, policy));
        push("relative_l2", exact::accuracy(&self.base, &self.head, policy));
        push("throttled_percent", clocks::throttling(&self.base, &self.head, policy));
        comparison
    }

    /// The verdict of a case that was not measured on both sides.
    fn by_disposition(
        &self,
        base: Option<Disposition>,
        head: Option<Disposition>,
        policy: &Policy,
    ) -> Option<(Verdict, String)> {
        use Disposition::{Measured, Skipped, Throttled};
        let because = |cases: &[&SessionCase]| {
            let reason = cases.iter().rev().find_map(|case| case.reason.as_ref());
            reason.map_or(String::new(), |reason| format!(": {reason}"))
        };
        Some(match (base, head) {
            (Some(Measured), Some(Measured)) => return None,
            (None, _) => (Verdict::NotComparable, "new: base does not have it".to_owned()),
            (Some(Measured), None) if policy.accept_removed => (Verdict::Unchanged, "removed, as accepted".to_owned()),
            (Some(Measured), None) => (Verdict::Regressed, "removed: head no longer has it".to_owned()),
            (Some(base), None) => (Verdict::Unchanged, format!("removed; was {}", base.name())),
            (Some(Measured), Some(now @ (Skipped | Throttled))) => {
                (Verdict::Inconclusive, format!("{} on head{}", now.name(), because(&self.head)))
            }
            (Some(Measured), Some(now)) => {
                (Verdict::Regressed, format!("measured on base, {} on head{}", now.name(), because(&self.head)))
            }
            (Some(was), Some(Measured)) => (Verdict::Improved, format!("{} on base, measured on head", was.name())),
            (Some(was), Some(now)) if was.is_failure() && now.is_failure() => (
                Verdict::Inconclusive,
                format!("{} on base, {} on head{}", was.name(), now.name(), because(&self.head)),
            ),
            (Some(was), Some(now)) if was == now => (Verdict::Unchanged, format!("{} on both sides", now.name())),
            (Some(was), Some(now)) => {
                let verdict = if now.is_failure() { Verdict::Regressed } else { Verdict::Inconclusive };
                (verdict, format!("{} on base, {} on head{}", was.name(), now.name(), because(&self.head)))
            }
        })
    }
}

fn judge_latency(
    cases: &mut [CaseComparison],
    base: &Baseline,
    head: &Baseline,
    drift: &BTreeMap<String, Drift>,
    policy: &Policy,
) {
    let sides: BTreeMap<CaseKey, Pairing> =
        pairings(base, head).into_iter().map(|pairing| (pairing.key.clone(), pairing)).collect();
    let rounds = |cases: &[&SessionCase]| cases.iter().map(|case| case.round_ns.clone()).collect::<Vec<_>>();
    let value =
        |sessions: &[Vec<f64>]| median(&sessions.iter().filter_map(|rounds| median(rounds)).collect::<Vec<_>>());
    let mut judged = Vec::new();
    let mut stored = Vec::new();
    for (index, case) in cases.iter_mut().enumerate().filter(|(_, case)| case.was_measured_on_both()) {
        let side = &sides[&case.key];
        let provider = case.key.case_id.split('/').next().unwrap_or_default();
        let stored_case = StoredCase {
            key: case.key.clone(),
            base: rounds(&side.base),
            head: rounds(&side.head),
            drift: drift.get(provider).map_or(0.0, |drift| drift.log_ratio),
        };
        if let Some(doubt) = side.doubt() {
            case.metrics.insert(
                0,
                MetricComparison {
                    metric: LATENCY.to_owned(),
                    base: value(&stored_case.base),
                    head: value(&stored_case.head),
                    finding: Finding::bare(Verdict::Inconclusive, doubt),
                },
            );
        } else {
            judged.push(index);
            stored.push(stored_case);
        }
    }
    let Step::Decided(findings) = plan::next(policy, &Evidence::Stored(&stored)) else {
        unreachable!("what is stored cannot be measured again");
    };
    for ((index, stored_case), finding) in judged.into_iter().zip(stored).zip(findings) {
        let metric = MetricComparison {
            metric: LATENCY.to_owned(),
            base: value(&stored_case.base),
            head: value(&stored_case.head),
            finding,
        };
        cases[index].metrics.insert(0, metric);
    }
}

/// The metric that repeats only with noise.
const LATENCY: &str = "latency_ns_median";

fn refuse(cases: &mut [CaseComparison], fingerprint: &[Difference]) {
    let fields = fingerprint.iter().map(Difference::to_string).collect::<Vec<_>>().join(", ");
    for case in cases.iter_mut().filter(|case| !case.is_new()) {
        case.metrics.clear();
        case.verdict = Verdict::NotComparable;
        case.reason = format!("the fingerprints differ in {fields}");
    }
}

impl CaseComparison {
    /// Takes the verdict of the metric that matters most. Improvements elsewhere excuse no regression, and memory and
    /// accuracy that stay the same decide nothing about latency.
    pub(crate) fn conclude(&mut self) {
        if let Some(worst) = self.metrics.iter().min_by_key(|metric| metric.finding.verdict) {
            self.verdict = worst.finding.verdict;
            self.reason = format!("{}: {}", worst.metric, worst.finding.reason);
        }
    }
}
