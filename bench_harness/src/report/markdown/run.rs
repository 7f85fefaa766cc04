//! A run as Markdown: what became of its cases, and how close they come to the device's limits.

use super::escape::{block, code, prose};
use super::{OPEN_ROWS, cases_text, folded, table};
use crate::metric::{Metric, latency, limits};
use crate::record::{CaseResult, Disposition, Record};
use crate::report::case_names::group_names;
use crate::report::repeat::repeat_run;
use crate::report::{short_commit, units};

/// Most matrices, of which each is a row.
const MOST_MATRICES: usize = 20;

pub(super) fn lines(record: &Record) -> Vec<String> {
    let run = &record.run;
    let failed: Vec<&CaseResult> = record.cases.iter().filter(|case| case.disposition.is_failure()).collect();
    let measured = record.cases.iter().filter(|case| case.disposition == Disposition::Measured).count();
    let sign = match (failed.is_empty(), run.complete) {
        (false, _) => "❌",
        (_, false) => "⚠️",
        _ => "✅",
    };
    let total = cases_text(record.cases.len());
    let mut lines = vec![
        format!("### {sign} attnbench: {measured} of {total} of {} measured", code(&run.suite)),
        String::new(),
        about(record),
    ];
    if !run.complete {
        lines.push("- The run was interrupted: not every planned round was reached.".to_owned());
    }
    if run.device_shared {
        lines.push("- Another attnbench measured on this device at the same time: times are disturbed.".to_owned());
    }
    let others: Vec<&CaseResult> =
        record.cases.iter().filter(|case| case.disposition != Disposition::Measured).collect();
    if let Some(first) = failed.first().or(others.first()) {
        lines.push(String::new());
        lines.extend(others_table(&others));
        lines.extend(["".to_owned(), "To run it again:".to_owned()]);
        lines.extend(block(&[repeat_run(record, &first.key.case_id)]));
    }
    lines.push(String::new());
    lines.extend(folded("Times by matrix", matrices(record)));
    lines
}

fn about(record: &Record) -> String {
    let device = record.device_model().map(|model| format!("On {}, ", prose(model))).unwrap_or_default();
    let commit = record.git.as_ref().map_or(String::new(), |git| {
        format!(" of commit {}{}", code(short_commit(&git.commit)), if git.dirty { " with changes" } else { "" })
    });
    let day = record.run.started_at.get(..10).unwrap_or(&record.run.started_at);
    let rounds = record.run.rounds_done;
    let rounds = format!("{rounds} round{}", if rounds == 1 { "" } else { "s" });
    format!(
        "{device}{rounds}{commit}, {}. Every output was compared with an exact one before its time counts.",
        prose(day)
    )
}

/// What was not measured, failures first.
fn others_table(others: &[&CaseResult]) -> Vec<String> {
    let mut others = others.to_vec();
    others.sort_by_key(|case| !case.disposition.is_failure());
    let names = match &others[..] {
        [case] => vec![case.key.to_string()],
        _ => group_names(&others.iter().map(|case| &case.key).collect::<Vec<_>>()).names,
    };
    let row = |(case, name): (&&CaseResult, &String)| {
        let reason = case.reason.as_deref().unwrap_or_default();
        vec![code(name), case.disposition.name().replace('_', " "), prose(reason)]
    };
    let rows: Vec<Vec<String>> = others.iter().zip(&names).map(row).collect();
    table(&["case", "result", "why"], &rows, OPEN_ROWS)
}

/// A row a matrix: its cases, its fastest and slowest, and the range of shares of the device's limits.
fn matrices(record: &Record) -> Vec<String> {
    let range = |values: Vec<f64>, show: fn(f64) -> String| {
        let low = values.iter().copied().min_by(f64::total_cmp);
        let high = values.iter().copied().max_by(f64::total_cmp);
        match (low, high) {
            (Some(low), Some(high)) if low < high => format!("{} to {}", show(low), show(high)),
            (Some(low), _) => show(low),
            _ => units::NOTHING.to_owned(),
        }
    };
    let rows: Vec<Vec<String>> = record
        .cases
        .chunk_by(|a, b| a.matrix == b.matrix)
        .map(|cases| {
            let values = |metric: &dyn Metric| {
                cases.iter().filter_map(|case| Some(metric.value(case, record)?.value)).collect::<Vec<_>>()
            };
            vec![
                prose(&cases[0].matrix),
                cases.len().to_string(),
                range(values(&latency::LatencyMedian), units::nanoseconds),
                range(values(&limits::PercentOfLimit), |percent| units::percent(percent / 100.0)),
            ]
        })
        .collect();
    table(&["matrix", "cases:", "time:", "share of the device's limit:"], &rows, MOST_MATRICES)
}
