//! From a comparison to an exit code.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::exit::Exit;
use super::policy::Policy;
use crate::compare::verdict::percent;
use crate::compare::{Baseline, BaselineError, Comparison, Verdict, compare};
use crate::record::Record;
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
    /// Verdict by verdict.
    pub comparison: Comparison,
}

/// Judges runs of head, usually one, against a stored baseline. `strict` makes every inconclusive case count.
///
/// # Errors
/// No head, or heads that are no sessions of one kind: other suites, other fingerprints, one run twice.
pub fn judge(
    heads: &[Record],
    baseline: &Baseline,
    policy: &Policy,
    strict: bool,
) -> Result<GateReport, BaselineError> {
    let head = Baseline::from_records(&baseline.device, heads)?;
    let comparison = compare(baseline, &head, policy);
    let is_complete = head.sessions.iter().all(|session| session.complete);
    Ok(report(comparison, is_complete, policy, strict))
}

/// The outcome of a comparison; `is_complete` tells whether head's runs reached every planned round.
pub fn report(comparison: Comparison, is_complete: bool, policy: &Policy, strict: bool) -> GateReport {
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
        comparison,
    }
}

impl GateReport {
    /// The exit code as an outcome of a command.
    pub fn exit(&self) -> Exit {
        Exit::ALL.into_iter().find(|exit| *exit as u8 == self.exit_code).unwrap_or(Exit::Usage)
    }
}

fn cases(count: usize) -> String {
    format!("{count} case{}", if count == 1 { "" } else { "s" })
}
