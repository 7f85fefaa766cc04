//! A record, or a judgement, as JSON for programs: with metrics computed, and without samples unless they are asked for.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Subject;
use crate::case::CaseKey;
use crate::metric::{Estimate, METRICS, latency};
use crate::record::{CaseResult, CaseRound, Disposition, GitState, Record, RunInfo};

/// The text of a subject.
pub fn text(subject: Subject<'_>) -> String {
    let text = match subject {
        Subject::Gate(report) => serde_json::to_string_pretty(report),
        Subject::Run(record) => {
            serde_json::to_string_pretty(&shown(record, &record.cases.iter().collect::<Vec<_>>(), false))
        }
    };
    text.expect("the keys of all maps are texts") + "\n"
}

/// A record as programs want it: metrics are computed, samples are left out unless asked for.
#[derive(Serialize)]
pub struct Shown<'a> {
    run: &'a RunInfo,
    fingerprint: &'a BTreeMap<String, String>,
    git: &'a Option<GitState>,
    cases: Vec<ShownCase<'a>>,
}

#[derive(Serialize)]
struct ShownCase<'a> {
    #[serde(flatten)]
    key: &'a CaseKey,
    matrix: &'a str,
    disposition: Disposition,
    reason: &'a Option<String>,
    flags: &'a [String],
    /// Rounds whose times count.
    timed_rounds: usize,
    metrics: BTreeMap<&'static str, ShownMetric>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rounds: Option<&'a [CaseRound]>,
}

#[derive(Serialize)]
struct ShownMetric {
    unit: &'static str,
    #[serde(flatten)]
    estimate: Estimate,
}

/// The view of some cases of a record, with every sample where they are wanted.
pub fn shown<'a>(record: &'a Record, cases: &[&'a CaseResult], with_samples: bool) -> Shown<'a> {
    let metrics = |case: &CaseResult| {
        METRICS
            .iter()
            .filter_map(|metric| {
                // JSON has no infinity: an output that is not finite has no error that is a number.
                let estimate = metric.value(case, record).filter(|estimate| estimate.value.is_finite())?;
                Some((metric.name(), ShownMetric { unit: metric.unit(), estimate }))
            })
            .collect()
    };
    let case = |case: &&'a CaseResult| ShownCase {
        key: &case.key,
        matrix: &case.matrix,
        disposition: case.disposition,
        reason: &case.reason,
        flags: &case.flags,
        timed_rounds: latency::timed_rounds(case).count(),
        metrics: metrics(case),
        rounds: with_samples.then_some(case.rounds.as_slice()),
    };
    Shown {
        run: &record.run,
        fingerprint: &record.fingerprint,
        git: &record.git,
        cases: cases.iter().map(case).collect(),
    }
}
