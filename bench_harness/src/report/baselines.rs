//! Baselines: which there are, and what one of them holds.

use std::collections::BTreeSet;

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;

use super::case_names::group_names;
use super::{Style, Tone, printable, units, wrap};
use crate::case::CaseKey;
use crate::compare::Baseline;
use crate::record::Disposition;
use crate::stats::quantile::median;

/// A baseline in a list.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BaselineSummary {
    /// `DEVICE/SUITE`.
    pub name: String,
    /// Runs that it holds.
    pub sessions: usize,
    /// Cases of the last of them.
    pub cases: usize,
    /// When the last of them started.
    pub last_date: Option<String>,
    /// What the last of them measured.
    pub last_commit: Option<String>,
    /// Why nothing else is known.
    pub error: Option<String>,
}

impl BaselineSummary {
    /// A baseline whose file cannot be read.
    pub fn broken(name: String, error: String) -> BaselineSummary {
        BaselineSummary { name, sessions: 0, cases: 0, last_date: None, last_commit: None, error: Some(error) }
    }
}

/// A line a baseline.
pub fn list_text(summaries: &[BaselineSummary], style: Style) -> String {
    let rows = summaries.iter().filter(|summary| summary.error.is_none()).map(|summary| {
        vec![
            summary.name.clone(),
            summary.sessions.to_string(),
            summary.cases.to_string(),
            day(summary.last_date.as_deref()),
            short_commit(summary.last_commit.as_deref()),
        ]
    });
    let rows: Vec<_> = rows.collect();
    let mut lines = Vec::new();
    if !rows.is_empty() {
        lines.extend(grid(&["baseline", "sessions", "cases", "last", "commit"], &[1, 2], &rows));
    }
    for summary in summaries {
        if let Some(error) = &summary.error {
            lines.extend(wrap(&printable(error), style.width, &[' ']).iter().map(|line| style.paint(Tone::Bad, line)));
        }
    }
    lines.join("\n") + "\n"
}

/// The sessions of a baseline, and the median of each case over them.
pub fn baseline_text(baseline: &Baseline, style: Style) -> String {
    let mut lines = vec![style.bold(&printable(&format!("{}/{}", baseline.device, baseline.suite)))];
    let fingerprint: Vec<String> =
        baseline.fingerprint.iter().map(|(name, value)| format!("{name}: {value}")).collect();
    lines.extend(wrap(&printable(&fingerprint.join(", ")), style.width, &[' ']));
    lines.push(String::new());
    let sessions: Vec<Vec<String>> = baseline
        .sessions
        .iter()
        .map(|session| {
            let commit = short_commit(session.commit.as_deref());
            let measured = session.cases.iter().filter(|case| case.disposition == Disposition::Measured).count();
            vec![
                printable(&session.run_id),
                day(Some(&session.date)),
                if session.dirty { format!("{commit} with changes") } else { commit },
                format!("{measured} of {}", session.cases.len()),
            ]
        })
        .collect();
    lines.extend(grid(&["session", "date", "commit", "measured"], &[3], &sessions));

    let keys: BTreeSet<&CaseKey> =
        baseline.sessions.iter().flat_map(|session| &session.cases).map(|case| &case.key).collect();
    // In the order of the last session, which is the suite's; then what only earlier ones had.
    let mut ordered: Vec<&CaseKey> = baseline
        .sessions
        .last()
        .map(|session| session.cases.iter().map(|case| &case.key).collect())
        .unwrap_or_default();
    let known: BTreeSet<&CaseKey> = ordered.iter().copied().collect();
    ordered.extend(keys.difference(&known));
    let names = group_names(&ordered);
    let rows: Vec<Vec<String>> = ordered
        .iter()
        .zip(&names.names)
        .map(|(key, name)| {
            let cases: Vec<_> = baseline.sessions.iter().filter_map(|session| session.case(key)).collect();
            let medians: Vec<f64> = cases.iter().filter_map(|case| median(&case.round_ns)).collect();
            let spread = medians.iter().copied().reduce(f64::max).zip(medians.iter().copied().reduce(f64::min));
            let last = cases.last().map_or("", |case| case.disposition.name());
            vec![
                wrap(&printable(name), style.width.saturating_sub(50).max(16), &['/', ',']).join("\n"),
                median(&medians).map_or(units::NOTHING.to_owned(), units::nanoseconds),
                spread.map_or(units::NOTHING.to_owned(), |(high, low)| units::percent(high / low - 1.0)),
                medians.len().to_string(),
                last.to_owned(),
            ]
        })
        .collect();
    lines.push(String::new());
    lines.extend(wrap(&printable(&names.heading), style.width, &['/', ' ']).iter().map(|line| style.bold(line)));
    lines.extend(grid(&["case", "median", "spread", "sessions", "last"], &[1, 2, 3], &rows));
    lines.join("\n") + "\n"
}

/// Rows under a header, the numbered columns aligned to the right.
pub(crate) fn grid(header: &[&str], right: &[usize], rows: &[Vec<String>]) -> Vec<String> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    let cell = |(at, text): (usize, &str)| {
        let alignment = if right.contains(&at) { CellAlignment::Right } else { CellAlignment::Left };
        Cell::new(text).set_alignment(alignment)
    };
    table.set_header(header.iter().copied().enumerate().map(cell).collect::<Vec<_>>());
    for row in rows {
        table.add_row(row.iter().map(String::as_str).enumerate().map(cell).collect::<Vec<_>>());
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect()
}

/// The date of an RFC 3339 time.
fn day(time: Option<&str>) -> String {
    time.map_or(units::NOTHING.to_owned(), |time| printable(time.get(..10).unwrap_or(time)))
}

/// The first ten digits of a commit.
fn short_commit(commit: Option<&str>) -> String {
    commit.map_or(units::NOTHING.to_owned(), |commit| printable(super::short_commit(commit)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::sample;

    fn baseline() -> Baseline {
        let (mut first, mut second) = (sample::record(), sample::record());
        (first.run.id, second.run.id) = ("one".into(), "two".into());
        second.run.started_at = "2026-01-03T00:00:00Z".into();
        second.cases[0] = sample::measured("flash", 256, 1_300_000.0);
        second.cases.remove(2);
        Baseline::from_records("example", &[first, second]).unwrap()
    }

    #[test]
    fn one_baseline() {
        insta::assert_snapshot!(baseline_text(&baseline(), Style { width: 100, colour: false }));
    }

    #[test]
    fn a_list_with_a_broken_file() {
        let summaries = [
            BaselineSummary {
                name: "example/ci".into(),
                sessions: 5,
                cases: 42,
                last_date: Some("2026-01-03T00:00:00Z".into()),
                last_commit: Some("0123456789abcdef0123456789abcdef01234567".into()),
                error: None,
            },
            BaselineSummary::broken("example/x".into(), "reading baseline `x.json`: the file is empty".into()),
        ];
        insta::assert_snapshot!(list_text(&summaries, Style { width: 100, colour: false }));
    }
}
