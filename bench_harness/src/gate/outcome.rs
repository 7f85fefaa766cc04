//! From a comparison to an exit code.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use std::collections::BTreeMap;

use super::acceptance::{self, Acceptance, Accepted};
use super::controls;
use super::exit::Exit;
use super::families::{self, FamilyFinding};
use super::plan::PairedCase;
use super::policy::Policy;
use crate::case::CaseKey;
use crate::compare::pairs::compare_pairs;
use crate::compare::verdict::percent;
use crate::compare::{Baseline, BaselineError, CaseComparison, Comparison, Finding, Side, Verdict, compare};
use crate::record::{Disposition, Record};
use crate::stats::quantile::median;

/// What a gate came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GateReport {
    /// `judged x of y, median MDE z %`: how much of the matrix the gate can speak for.
    pub headline: String,
    /// The exit code, see [`Exit`].
    pub exit_code: u8,
    /// What led to the exit code, most important first; empty when everything passed.
    pub causes: Vec<String>,
    /// Cases with a decided verdict.
    pub judged: usize,
    /// Cases that there was something to judge of.
    pub eligible: usize,
    /// Median over cases of the smallest slowdown that would have been found; 0.02 is 2 %.
    pub median_mde: Option<f64>,
    /// Regressions that were let through, since somebody decided to live with them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accepted: Vec<Accepted>,
    /// Families of cases, where they were measured in pairs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub families: Vec<FamilyFinding>,
    /// Verdict by verdict.
    pub comparison: Comparison,
    /// The command line that made it, for whoever wants to repeat it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
}

/// What a comparison in pairs came to, before anything is said of it.
pub struct PairResults<'a> {
    /// What was seen of base.
    pub base: &'a Baseline,
    /// What was seen of head.
    pub head: &'a Baseline,
    /// The pairs of each case.
    pub pairs: &'a [PairedCase],
    /// What the state machine found of each.
    pub findings: Vec<Finding>,
    /// Log ratios of the controls beside head to those beside base.
    pub control_ratios: &'a [f64],
    /// As above, measured by the sides' own workers, where their timing sources differ.
    pub timing_ratios: &'a [f64],
    /// Cases of base's suite that head's no longer has.
    pub removed: &'a [CaseKey],
    /// Acceptances that count now.
    pub acceptances: &'a [Acceptance],
    /// What else a reader should know.
    pub notes: Vec<String>,
    /// Whether every case got the pairs that a decision needs.
    pub is_complete: bool,
}

/// Judges runs of head, usually one, against a stored baseline, but for what was accepted. `strict` makes every inconclusive
/// case count.
///
/// # Errors
/// No head, or heads that are no sessions of one kind: other suites, other fingerprints, one run twice.
pub fn judge(
    heads: &[Record],
    baseline: &Baseline,
    policy: &Policy,
    acceptances: &[Acceptance],
    strict: bool,
) -> Result<GateReport, BaselineError> {
    let head = Baseline::from_records(&baseline.device, heads)?;
    let mut comparison = compare(baseline, &head, policy);
    let accepted = acceptance::apply(&mut comparison, acceptances);
    let is_complete = head.sessions.iter().all(|session| session.complete);
    Ok(report_all(comparison, Vec::new(), accepted, is_complete, policy, strict))
}

/// Judges pairs: latency by the state machine's findings, everything else as ever, families, controls, acceptances.
pub fn judge_pairs(results: PairResults<'_>, policy: &Policy, strict: bool) -> GateReport {
    let doubt = controls::difference(results.control_ratios, policy)
        .map(|how| format!("the controls, which no commit can change, are {how}"))
        .or_else(|| {
            let how = controls::difference(results.timing_ratios, policy)?;
            Some(format!("the sources that time differ, and measure controls {how}"))
        });
    let keys = results.pairs.iter().map(|pairs| pairs.key.clone());
    let findings: BTreeMap<CaseKey, Finding> = match &doubt {
        None => keys.zip(results.findings).collect(),
        Some(doubt) => keys.map(|key| (key, Finding::bare(Verdict::NotComparable, doubt.clone()))).collect(),
    };
    let mut comparison = compare_pairs(results.base, results.head, policy, &findings);
    comparison.cases.extend(results.removed.iter().map(|key| removed(key, policy)));
    comparison.notes.extend(results.notes);
    let accepted = acceptance::apply(&mut comparison, results.acceptances);
    // A loss that was accepted is no part of a family's, nor are times that nobody believes.
    let let_through: Vec<&String> = accepted.iter().flat_map(|accepted| &accepted.cases).collect();
    let is_doubtful = |key: &CaseKey| {
        let sessions = results.base.sessions.iter().chain(&results.head.sessions);
        sessions.filter_map(|session| session.case(key)).any(|case| !case.flags.is_empty())
    };
    let counts = |pairs: &&PairedCase| !let_through.contains(&&pairs.key.to_string()) && !is_doubtful(&pairs.key);
    let counted: Vec<PairedCase> = results.pairs.iter().filter(counts).cloned().collect();
    let families = if doubt.is_some() { Vec::new() } else { families::judge(policy, &counted) };
    report_all(comparison, families, accepted, results.is_complete, policy, strict)
}

/// A case that head no longer has.
pub(super) fn removed(key: &CaseKey, policy: &Policy) -> CaseComparison {
    let (verdict, reason) = if policy.accept_removed {
        (Verdict::Unchanged, "removed, as accepted")
    } else {
        (Verdict::Regressed, "removed: head's suite no longer has it")
    };
    CaseComparison {
        key: key.clone(),
        base: Some(Disposition::Skipped),
        head: None,
        verdict,
        reason: reason.to_owned(),
        metrics: Vec::new(),
    }
}

/// The outcome of a comparison; `is_complete` tells whether head's runs reached every planned round.
pub fn report(comparison: Comparison, is_complete: bool, policy: &Policy, strict: bool) -> GateReport {
    report_all(comparison, Vec::new(), Vec::new(), is_complete, policy, strict)
}

fn report_all(
    comparison: Comparison,
    families: Vec<FamilyFinding>,
    accepted: Vec<Accepted>,
    is_complete: bool,
    policy: &Policy,
    strict: bool,
) -> GateReport {
    let eligible: Vec<_> = comparison.cases.iter().filter(|case| case.is_eligible()).collect();
    let judged = eligible.iter().filter(|case| case.verdict.is_decided()).count();
    let mdes: Vec<f64> = eligible
        .iter()
        .filter_map(|case| case.metric("latency_ns_median"))
        // A case whose smallest detectable effect is unknown detects nothing that is worth a number.
        .map(|metric| metric.finding.mde.unwrap_or(f64::MAX))
        .collect();
    let median_mde = median(&mdes).filter(|&mde| mde < f64::MAX);

    let count =
        |verdict: Verdict| comparison.cases.iter().filter(|case| !case.is_new() && case.verdict == verdict).count();
    let (regressed, incomparable, inconclusive) =
        (count(Verdict::Regressed), count(Verdict::NotComparable), count(Verdict::Inconclusive));
    let failed = comparison.cases.iter().filter(|case| case.failed_on_both()).count();

    let mut causes: Vec<(Exit, String)> = Vec::new();
    if regressed > 0 {
        causes.push((Exit::Regression, format!("{} regressed", cases(regressed))));
    }
    for family in families.iter().filter(|family| family.finding.verdict == Verdict::Regressed) {
        let (name, count, reason) = (&family.family, family.cases, &family.finding.reason);
        causes.push((Exit::Regression, format!("the {} of {name} together are {reason}", cases(count))));
    }
    if failed > 0 {
        causes.push((Exit::Failed, format!("{} failed on both sides", cases(failed))));
    }
    if !is_complete {
        causes.push((Exit::Failed, "head's run did not reach every planned round".to_owned()));
    }
    if incomparable > 0 {
        causes.push((Exit::NotComparable, format!("{} not comparable", cases(incomparable))));
    }
    if eligible.is_empty() {
        causes.push((Exit::Undecided, "base and head share no measured case".to_owned()));
    } else if (judged as f64) < policy.min_decided * eligible.len() as f64 {
        let (share, least) = (percent(judged as f64 / eligible.len() as f64), percent(policy.min_decided));
        causes.push((Exit::Undecided, format!("{share} of the cases judged, fewer than the {least} of `min_decided`")));
    } else if strict && inconclusive > 0 {
        causes.push((Exit::Undecided, format!("{} inconclusive, which --strict does not accept", cases(inconclusive))));
    }
    if !mdes.is_empty() && median_mde.is_none_or(|mde| mde > policy.max_mde) {
        let (mde, least) = (if median_mde.is_some() { "above" } else { "unknown, not below" }, percent(policy.max_mde));
        let way_out = "more rounds or sessions of both sides lower it";
        causes.push((Exit::Undecided, format!("median MDE {mde} the {least} of `max_mde`: {way_out}")));
    }

    let exit = causes.iter().fold(Exit::Pass, |exit, (cause, _)| exit.and(*cause));
    let mde = median_mde.map_or("unknown".to_owned(), percent);
    GateReport {
        headline: format!("judged {judged} of {}, median MDE {mde}", eligible.len()),
        exit_code: exit as u8,
        causes: causes.into_iter().map(|(_, text)| text).collect(),
        judged,
        eligible: eligible.len(),
        median_mde,
        accepted,
        families,
        comparison,
        command: Vec::new(),
    }
}

impl GateReport {
    /// The outcome where nothing could be measured of some sides: every case is `not_comparable`, for one reason.
    pub fn refused(base: Side, head: Side, keys: &[CaseKey], exit: Exit, reason: &str) -> GateReport {
        let case = |key: &CaseKey| CaseComparison {
            key: key.clone(),
            base: Some(Disposition::Skipped),
            head: Some(Disposition::Skipped),
            verdict: Verdict::NotComparable,
            reason: reason.to_owned(),
            metrics: Vec::new(),
        };
        let comparison = Comparison { base, head, cases: keys.iter().map(case).collect(), ..Comparison::default() };
        GateReport {
            headline: format!("judged 0 of {}, median MDE unknown", keys.len()),
            exit_code: exit as u8,
            causes: vec![reason.to_owned()],
            judged: 0,
            eligible: keys.len(),
            median_mde: None,
            accepted: Vec::new(),
            families: Vec::new(),
            comparison,
            command: Vec::new(),
        }
    }

    /// The exit code as an outcome of a command.
    pub fn exit(&self) -> Exit {
        Exit::ALL.into_iter().find(|exit| *exit as u8 == self.exit_code).unwrap_or(Exit::Usage)
    }
}

fn cases(count: usize) -> String {
    format!("{count} case{}", if count == 1 { "" } else { "s" })
}
