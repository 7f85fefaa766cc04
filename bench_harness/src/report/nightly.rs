//! What a night came to: a few lines for a chat, and every open regression for the report.

use serde::Serialize;

use super::{Style, history, printable, units};
use crate::history::changes::{Change, State};
use crate::history::search::FoundSeries;
use crate::record::{Disposition, Record};

/// Open regressions and failed cases that a summary names.
const NAMED: usize = 5;

/// A night.
#[derive(Clone, Debug, Serialize)]
pub struct Nightly {
    /// The run's id.
    pub id: String,
    /// The suite's name.
    pub suite: String,
    /// The day, as 2026-01-31.
    pub day: String,
    /// Full hash.
    pub commit: String,
    /// What it was measured on, where that is known.
    pub device: Option<String>,
    /// Whether the history did not have it before.
    pub is_new: bool,
    /// What became of the cases, where the record is here.
    pub counts: Option<Counts>,
    /// Series with an open regression, worst first.
    pub open: Vec<FoundSeries>,
    /// Further series that look as if they had regressed lately, and may not have.
    pub possible: usize,
    /// The history, without a password.
    pub store: String,
    /// The report, where there is one.
    pub report: Option<String>,
    /// What the command answers.
    pub exit_code: u8,
}

/// What became of the cases of a night.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Measured.
    pub measured: usize,
    /// Planned.
    pub planned: usize,
    /// Cases that were meant to run and could not, with the reason.
    pub failed: Vec<String>,
}

impl Counts {
    /// Counts the cases of a record.
    pub fn of(record: &Record) -> Counts {
        let cases = &record.cases;
        let failed = cases.iter().filter(|case| case.disposition.is_failure()).map(|case| {
            let reason = case.reason.as_deref().unwrap_or("no reason is known");
            format!("{} {}: {}", case.key, case.disposition.name(), first_line(reason))
        });
        Counts {
            measured: cases.iter().filter(|case| case.disposition == Disposition::Measured).count(),
            planned: cases.len(),
            failed: failed.collect(),
        }
    }
}

/// The summary for a chat: the outcome first, then the worst of it.
pub fn summary(night: &Nightly) -> String {
    let failed = night.counts.as_ref().map_or(&[][..], |counts| &counts.failed);
    let outcome = match (night.open.len(), failed.len()) {
        (0, 0) => "ok".to_owned(),
        (open, 0) => format!("REGRESSED, {}", many(open, "open regression")),
        (0, failed) => format!("FAILED, {}", many(failed, "failed case")),
        (open, failed) => format!("REGRESSED, {}, {}", many(open, "open regression"), many(failed, "failed case")),
    };
    let commit: String = night.commit.chars().take(10).collect();
    let mut lines = vec![format!("nightly {} of {}, {commit}: {outcome}", night.suite, night.day)];
    let cases = match &night.counts {
        Some(counts) => format!("{} of {} cases measured", counts.measured, counts.planned),
        None => "measured before".to_owned(),
    };
    let device = night.device.as_deref().map(|device| format!(" on {}", printable(device))).unwrap_or_default();
    let known = if night.is_new { "" } else { ", in the history already" };
    lines.push(format!("{cases}{device}{known}"));
    lines.extend(night.open.iter().take(NAMED).map(|series| format!("- {}", regression(series))));
    lines.extend(more(night.open.len()));
    lines.extend(failed.iter().take(NAMED).map(|case| format!("- failed: {}", printable(case))));
    lines.extend(more(failed.len()));
    if night.possible > 0 {
        lines.push(format!("{} may have regressed within the last values; a few nights will tell", night.possible));
    }
    if let Some(report) = &night.report {
        lines.push(format!("report: {}", printable(report)));
    }
    lines.join("\n") + "\n"
}

/// Every open regression, with all changes of its series.
pub fn changes_text(night: &Nightly, style: Style) -> String {
    if night.open.is_empty() {
        return "no open regression\n".to_owned();
    }
    let series = night.open.iter().map(|series| {
        let title =
            format!("{} of {} on {}", series.summary.key.metric, series.summary.key.case, series.summary.key.machine);
        history::changes_text(&title, series.points.len(), &series.found, style)
    });
    series.collect::<Vec<_>>().join("\n")
}

fn regression(series: &FoundSeries) -> String {
    let size = series.found.open_regression.map(units::signed_percent).unwrap_or_default();
    let last = series.found.changes.iter().rev().find(|change| change.state == State::Open);
    let since = last.map(since).unwrap_or_default();
    printable(&format!("{} {size}{since}: {}", series.summary.key.metric, series.summary.key.case))
}

/// Since when, and between which commits.
fn since(change: &Change) -> String {
    let short = |commit: &String| commit.chars().take(10).collect::<String>();
    let day = change.time.as_ref().map(|time| format!(" since {}", time.chars().take(10).collect::<String>()));
    let commits = match (&change.after_commit, &change.until_commit) {
        (Some(after), Some(until)) => format!(" ({}..{})", short(after), short(until)),
        (None, Some(until)) => format!(" (up to {})", short(until)),
        (Some(after), None) => format!(" (after {})", short(after)),
        (None, None) => String::new(),
    };
    day.unwrap_or_default() + &commits
}

fn many(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

fn more(count: usize) -> Option<String> {
    (count > NAMED).then(|| format!("- and {} more", count - NAMED))
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::changes::{Observation, Query, find};
    use crate::history::point::SeriesKey;
    use crate::metric::Better;
    use crate::record::sample;
    use crate::stats::change_point::Settings;
    use crate::store::history::{SeriesSummary, StoredPoint};

    /// A series that became slower by a tenth after twenty nights.
    fn slower(case: &str) -> FoundSeries {
        let value = |night: usize| if night < 20 { 100.0 } else { 110.0 } + 0.3 * ((night * 7 % 5) as f64 - 2.0);
        let observations: Vec<Observation> = (0..40)
            .map(|night| Observation {
                value: Some(value(night)),
                time: Some(format!("2026-01-{:02}T03:04:05Z", night % 28 + 1)),
                commit: Some(format!("{night:040x}")),
            })
            .collect();
        let query =
            Query { better: Better::Lower, provisional: false, settings: Settings::default(), is_accepted: &|_| false };
        let key = SeriesKey {
            suite: "nightly".into(),
            case: case.into(),
            metric: "latency_ns_median".into(),
            machine: "0123456789ab".into(),
        };
        let found = find(&observations, &query);
        let point = |observation: Observation| StoredPoint {
            run: "night".into(),
            time: observation.time.unwrap_or_default(),
            commit: observation.commit,
            value: observation.value.unwrap_or_default(),
            low: None,
            high: None,
        };
        let points: Vec<StoredPoint> = observations.into_iter().map(point).collect();
        FoundSeries {
            summary: SeriesSummary { key, better: Better::Lower, points: points.len() as u64 },
            points,
            found,
        }
    }

    fn night() -> Nightly {
        Nightly {
            id: "20260131-0123456789ab-01234567".into(),
            suite: "nightly".into(),
            day: "2026-01-31".into(),
            commit: "0123456789abcdef0123456789abcdef01234567".into(),
            device: Some("Example CPU 9000".into()),
            is_new: true,
            counts: Some(Counts { measured: 47, planned: 47, failed: vec![] }),
            open: vec![],
            possible: 0,
            store: "results/history.db".into(),
            report: Some("results/nightly/x/report.txt".into()),
            exit_code: 0,
        }
    }

    #[test]
    fn summaries_say_the_outcome_first() {
        insta::assert_snapshot!("ok", summary(&night()));
        let series = slower("cpu/flash/softmax/prefill/full+causal/f32/b1/h8:2/q1024/k1024/d64 [cold, 2 threads]");
        let bad = Nightly {
            open: vec![series; 7],
            possible: 2,
            counts: Some(Counts::of(&sample::record())),
            is_new: false,
            ..night()
        };
        insta::assert_snapshot!("regressed", summary(&bad));
        let elsewhere = Nightly { counts: None, device: None, report: None, is_new: false, ..night() };
        insta::assert_snapshot!("measured_before", summary(&elsewhere));
    }

    #[test]
    fn hostile_names_move_no_cursor() {
        let hostile = Nightly { open: vec![slower("a\x1b[2Jb\nc")], device: Some("x\r\ny".into()), ..night() };
        let text = summary(&hostile) + &changes_text(&hostile, Style { width: 80, colour: false });
        assert!(!text.contains(['\x1b', '\r']), "{text}");
        assert_eq!(summary(&hostile).lines().count(), 4);
    }
}
