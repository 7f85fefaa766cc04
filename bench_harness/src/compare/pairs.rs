//! Two sides that were measured in pairs: latency was judged pair by pair, and everything else is compared as ever.

use std::collections::BTreeMap;

use super::{Baseline, CaseComparison, Comparison, Finding, LATENCY, MetricComparison, Verdict};
use super::{conclude, drift, pairings};
use crate::case::CaseKey;
use crate::gate::policy::Policy;
use crate::stats::quantile::median;

/// The comparison of two sides whose latencies have these findings. Cases without one were not measured often enough.
pub fn compare_pairs(
    base: &Baseline,
    head: &Baseline,
    policy: &Policy,
    findings: &BTreeMap<CaseKey, Finding>,
) -> Comparison {
    let drift = drift::drifts(&base.sessions, &head.sessions);
    let cases = pairings(base, head).into_iter().map(|pairing| {
        let mut case: CaseComparison = pairing.without_latency(policy);
        if case.was_measured_on_both() {
            let value = |cases: &[&super::SessionCase]| {
                median(&cases.iter().flat_map(|case| case.round_ns.iter().copied()).collect::<Vec<_>>())
            };
            let finding = match (pairing.doubt(), findings.get(&case.key)) {
                (Some(doubt), _) => Finding::bare(Verdict::Inconclusive, doubt),
                (None, Some(finding)) => finding.clone(),
                (None, None) => Finding::bare(Verdict::Inconclusive, "no pair was measured"),
            };
            let (base, head) = (value(&pairing.base), value(&pairing.head));
            case.metrics.insert(0, MetricComparison { metric: LATENCY.to_owned(), base, head, finding });
        }
        case
    });
    let cases = cases.collect();
    conclude(base, head, drift, cases)
}
