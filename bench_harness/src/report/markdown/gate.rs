//! A judgement as Markdown.

use std::collections::BTreeMap;

use super::escape::{block, code, prose};
use super::{FOLDED_ROWS, MAX_LINES, OPEN_ROWS, cases_text, folded, table};
use crate::compare::{CaseComparison, Comparison, MetricComparison, Verdict};
use crate::gate::exit::Exit;
use crate::gate::outcome::GateReport;
use crate::report::case_names::group_names;
use crate::report::comparison::{ORDER, accepted_text, difference_text, side_text};
use crate::report::repeat::repeat_gate;
use crate::report::units;

/// Most notes, differences and acceptances of each kind.
const MOST_NOTES: usize = 4;

pub(super) fn lines(report: &GateReport) -> Vec<String> {
    let comparison = &report.comparison;
    let regressed = by_effect(comparison, Verdict::Regressed);
    let mut lines = vec![title(report, regressed.len()), String::new()];
    lines.push(meaning(report));
    for accepted in report.accepted.iter().take(MOST_NOTES) {
        lines.push(format!("- {}", prose(&accepted_text(accepted))));
    }
    // Those are counted already.
    let is_counted = |cause: &&String| [" regressed", " not comparable"].iter().any(|end| cause.ends_with(end));
    let causes = report.causes.iter().filter(|cause| !is_counted(cause));
    lines.extend(causes.take(MOST_NOTES).map(|cause| format!("- {}", prose(cause))));
    for difference in comparison.fingerprint.iter().take(MOST_NOTES) {
        lines.push(format!("- fingerprint differs: {}", prose(&difference_text(difference))));
    }
    if let (Exit::NotComparable, Some(reason)) = (report.exit(), commonest_reason(comparison, Verdict::NotComparable)) {
        lines.push(format!("- {}", prose(reason)));
        lines.push(
            "- `attnbench gate --against COMMIT` measures both sides in turns, under equal conditions.".to_owned(),
        );
    }
    if !regressed.is_empty() {
        lines.push(String::new());
        lines.extend(cases_table(&regressed, OPEN_ROWS));
    }
    lines.extend(["".to_owned(), how_sure(report)]);
    if let Some(case) = repeated(comparison) {
        lines.extend(["".to_owned(), "To measure the first of them again, with this change checked out:".to_owned()]);
        lines.extend(block(&repeat_gate(report, &case.key.case_id)));
    }
    // What is folded is cut where the lines end, the least important last.
    for part in folded_parts(report) {
        if lines.len() + part.len() < MAX_LINES {
            lines.push(String::new());
            lines.extend(part);
        }
    }
    lines.truncate(MAX_LINES);
    lines
}

fn title(report: &GateReport, regressed: usize) -> String {
    let cases = report.comparison.cases.iter().filter(|case| !case.is_new()).count();
    let said = match report.exit() {
        Exit::Regression if regressed > 0 => format!("❌ attnbench: {regressed} of {} got worse", cases_text(cases)),
        Exit::Regression => "❌ attnbench: cases got worse together".to_owned(),
        Exit::Failed => "❌ attnbench: cases failed to run".to_owned(),
        Exit::NotComparable => "⚠️ attnbench: base and head are not comparable".to_owned(),
        Exit::Undecided => "⚠️ attnbench: undecided".to_owned(),
        Exit::Usage => "⚠️ attnbench: no judgement".to_owned(),
        Exit::Pass => "✅ attnbench: nothing got worse".to_owned(),
    };
    format!("### {said}")
}

/// The outcome in plain words, and how many cases have which verdict.
fn meaning(report: &GateReport) -> String {
    let said = match report.exit() {
        Exit::Regression => {
            "This change makes attention kernels slower, hungrier or less accurate than they are on its base."
        }
        Exit::Failed => "Nothing can be said of kernels that do not run: see why below.",
        Exit::NotComparable => {
            "The two sides were not measured under equal conditions, so nothing is said about this change."
        }
        Exit::Undecided => {
            "The measurements do not show whether this change makes anything worse. That is noise or too little of \
             measuring, not a finding about the change."
        }
        Exit::Usage => "This report has no outcome.",
        Exit::Pass => {
            "No attention kernel was found to be slower, hungrier or less accurate than on the change's base."
        }
    };
    format!("{said} **{}**", counts(&report.comparison))
}

/// The reason that most cases of a verdict have.
fn commonest_reason(comparison: &Comparison, verdict: Verdict) -> Option<&str> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for case in comparison.cases.iter().filter(|case| case.verdict == verdict && !case.is_new()) {
        *counts.entry(&case.reason).or_default() += 1;
    }
    counts.into_iter().max_by_key(|(_, count)| *count).map(|(reason, _)| reason)
}

/// `1 regressed · 41 unchanged`.
fn counts(comparison: &Comparison) -> String {
    let of = |verdict: &Verdict| comparison.cases.iter().filter(|case| case.verdict == *verdict).count();
    let counts: Vec<String> = ORDER
        .iter()
        .map(|verdict| (verdict, of(verdict)))
        .filter(|(_, count)| *count > 0)
        .map(|(verdict, count)| format!("{count} {}", in_words(*verdict)))
        .collect();
    if counts.is_empty() { "no cases".to_owned() } else { counts.join(" · ") }
}

fn in_words(verdict: Verdict) -> String {
    verdict.name().replace('_', " ")
}

/// Cases of a verdict, those that changed most first.
fn by_effect(comparison: &Comparison, verdict: Verdict) -> Vec<&CaseComparison> {
    let mut cases: Vec<&CaseComparison> = comparison.cases.iter().filter(|case| case.verdict == verdict).collect();
    // What no longer works is worse than anything that is merely slower.
    let effect = |case: &CaseComparison| {
        deciding(case).and_then(|metric| metric.finding.ratio).map_or(f64::INFINITY, |ratio| ratio.value.ln().abs())
    };
    cases.sort_by(|a, b| effect(b).total_cmp(&effect(a)));
    cases
}

/// The metric that the verdict is of.
fn deciding(case: &CaseComparison) -> Option<&MetricComparison> {
    case.metrics.iter().find(|metric| metric.finding.verdict == case.verdict)
}

fn cases_table(cases: &[&CaseComparison], most: usize) -> Vec<String> {
    let shown = &cases[..cases.len().min(most)];
    let keys: Vec<_> = shown.iter().map(|case| &case.key).collect();
    let (heading, names) = match shown {
        [case] => (None, vec![case.key.to_string()]),
        _ => {
            let names = group_names(&keys);
            (Some(names.heading), names.names)
        }
    };
    let mut rows: Vec<Vec<String>> = shown.iter().zip(&names).map(|(case, name)| row(case, name)).collect();
    // The table says how many it does not show.
    rows.extend(cases.iter().skip(shown.len()).map(|_| Vec::new()));
    let mut lines = Vec::new();
    if let Some(heading) = heading {
        lines.extend([format!("Cases are {}; rows name what differs.", code(&heading)), String::new()]);
    }
    lines.extend(table(&["case", "metric", "base:", "head:", "change (95 % interval):", "why"], &rows, most));
    lines
}

fn row(case: &CaseComparison, name: &str) -> Vec<String> {
    let Some(metric) = deciding(case).or(case.metrics.first()) else {
        let word = |disposition: Option<crate::record::Disposition>| {
            disposition.map_or(units::NOTHING.to_owned(), |disposition| disposition.name().replace('_', " "))
        };
        return vec![
            code(name),
            "result".into(),
            word(case.base),
            word(case.head),
            units::NOTHING.into(),
            prose(&case.reason),
        ];
    };
    let (label, show) = metric_words(&metric.metric);
    let number = |value: Option<f64>| value.map_or(units::NOTHING.to_owned(), show);
    let change = metric.finding.ratio.map_or(units::NOTHING.to_owned(), |ratio| {
        let [value, low, high] = [ratio.value, ratio.low, ratio.high].map(|ratio| units::signed_percent(ratio - 1.0));
        if low == high { format!("**{value}**") } else { format!("**{value}** ({low} to {high})") }
    });
    vec![code(name), prose(label), number(metric.base), number(metric.head), change, prose(&metric.finding.reason)]
}

/// What a metric is called in a table, and how its values are shown.
fn metric_words(name: &str) -> (&str, fn(f64) -> String) {
    match name {
        "latency_ns_median" => ("time", units::nanoseconds),
        "extra_peak_bytes" => ("memory", |bytes| units::bytes(bytes as u64)),
        "relative_l2" => ("error", units::scientific),
        other => (other, units::three_digits),
    }
}

/// How much of the matrix this speaks for, and what it could have missed.
fn how_sure(report: &GateReport) -> String {
    let judged = format!("**How sure?** {} of {} were decided.", report.judged, cases_text(report.eligible));
    match report.median_mde {
        Some(mde) if mde.is_finite() && report.judged > 0 => format!(
            "{judged} A case that had become {} slower, or more, would have been found with 80 % power (the median case's \
             minimum detectable effect).",
            units::percent(mde)
        ),
        _ => judged,
    }
}

/// The case to repeat: the worst one.
fn repeated(comparison: &Comparison) -> Option<&CaseComparison> {
    [Verdict::Regressed, Verdict::Inconclusive]
        .iter()
        .find_map(|&verdict| by_effect(comparison, verdict).into_iter().next())
}

/// Everything else, the most important first.
fn folded_parts(report: &GateReport) -> Vec<Vec<String>> {
    let comparison = &report.comparison;
    let mut parts = Vec::new();
    let families: Vec<Vec<String>> = report
        .families
        .iter()
        .filter(|family| family.finding.verdict != Verdict::Unchanged)
        .map(|family| {
            let ratio = family.finding.ratio;
            let change = ratio.map_or(units::NOTHING.to_owned(), |ratio| units::signed_percent(ratio.value - 1.0));
            let verdict = in_words(family.finding.verdict);
            vec![code(&family.family), family.cases.to_string(), change, verdict, prose(&family.finding.reason)]
        })
        .collect();
    if !families.is_empty() {
        let columns = ["family", "cases:", "mean change:", "verdict", "why"];
        let summary = format!("Families: {} whose cases were judged together", families.len());
        parts.push(folded(&summary, table(&columns, &families, FOLDED_ROWS)));
    }
    for verdict in [Verdict::Inconclusive, Verdict::NotComparable, Verdict::Improved] {
        let cases = by_effect(comparison, verdict);
        if !cases.is_empty() {
            let summary = format!("{}: {}", capital(&in_words(verdict)), explained(verdict, cases.len()));
            parts.push(folded(&summary, cases_table(&cases, FOLDED_ROWS)));
        }
    }
    let mut conditions = vec![format!("- base: {}", prose(&side_text(&comparison.base)))];
    conditions.push(format!("- head: {}", prose(&side_text(&comparison.head))));
    let differences =
        comparison.provenance.iter().map(|difference| format!("differs: {}", difference_text(difference)));
    let drifts = comparison.drift.iter().map(|(provider, drift)| {
        let moved = units::signed_percent(drift.log_ratio.exp_m1());
        format!("the machine itself moved by {moved} (`{}`, the control of {provider} that moved most)", drift.control)
    });
    for kind in [drifts.collect::<Vec<_>>(), differences.collect(), comparison.notes.clone()] {
        conditions.extend(kind.iter().take(MOST_NOTES).map(|note| format!("- {}", prose(note))));
    }
    parts.push(folded("Conditions of both sides", conditions));
    parts
}

fn explained(verdict: Verdict, count: usize) -> String {
    let cases = cases_text(count);
    match verdict {
        Verdict::Inconclusive => format!("{cases} with too much noise, or too little measuring, for a verdict"),
        Verdict::NotComparable => format!("{cases} that only one side has, or that were not measured alike"),
        _ => cases,
    }
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or(String::new(), |first| first.to_uppercase().chain(chars).collect())
}
