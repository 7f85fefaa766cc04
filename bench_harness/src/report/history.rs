//! Results over time: what there is, and what changed.

use super::baselines::grid;
use super::{Style, Tone, printable, units, wrap};
use crate::history::changes::{Change, Direction, SeriesChanges, State};
use crate::history::gates::GateSummary;
use crate::store::history::{GateEntry, RunSummary, SeriesSummary, StoredPoint};

/// The changes of one series of so many values, a line each.
pub fn changes_text(title: &str, values: usize, found: &SeriesChanges, style: Style) -> String {
    let mut lines = wrap(&printable(title), style.width, &['/', ',', ' ']);
    lines.iter_mut().for_each(|line| *line = style.bold(line));
    if found.changes.is_empty() {
        lines.push(format!("no change of level in {values} value{}", if values == 1 { "" } else { "s" }));
        return lines.join("\n") + "\n";
    }
    let rows: Vec<Vec<String>> = found.changes.iter().map(row).collect();
    let header = ["at", "between", "change", "interval", "before", "after", "confidence", "verdict"];
    lines.extend(grid(&header, &[0, 2, 4, 5, 6], &rows));
    for change in &found.changes {
        let when = change.time.as_deref().map(printable).unwrap_or_default();
        let commits = match (&change.after_commit, &change.until_commit) {
            (Some(after), Some(until)) => format!("{}..{}", printable(after), printable(until)),
            (None, Some(until)) => format!("up to {}", printable(until)),
            (Some(after), None) => format!("after {}", printable(after)),
            (None, None) => String::new(),
        };
        let about = [when, commits].into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join(", ");
        if !about.is_empty() {
            lines.extend(wrap(&format!("{}: {about}", change.index), style.width, &[' ', '.']));
        }
    }
    if let (Some(excess), Some(normal)) = (found.open_regression, found.normal) {
        let text = format!(
            "open regression: {} from the {} that was normal",
            units::signed_percent(excess),
            units::three_digits(normal)
        );
        lines.extend(wrap(&text, style.width, &[' ']).iter().map(|line| style.paint(Tone::Bad, line)));
    }
    lines.join("\n") + "\n"
}

/// Runs, newest first, a line each.
pub fn runs_text(runs: &[RunSummary]) -> String {
    if runs.is_empty() {
        return "no runs\n".to_owned();
    }
    let rows: Vec<Vec<String>> = runs
        .iter()
        .map(|run| {
            vec![
                printable(&run.id),
                printable(&run.time),
                short(run.commit.as_deref()),
                run.branch.as_deref().map_or(units::NOTHING.to_owned(), printable),
                run.points.to_string(),
            ]
        })
        .collect();
    grid(&["run", "time", "commit", "branch", "values"], &[4], &rows).join("\n") + "\n"
}

/// Series, a line each.
pub fn series_text(series: &[SeriesSummary], style: Style) -> String {
    if series.is_empty() {
        return "no series\n".to_owned();
    }
    let rows: Vec<Vec<String>> = series
        .iter()
        .map(|summary| {
            let key = &summary.key;
            vec![
                printable(&key.suite),
                wrap(&printable(&key.case), style.width.saturating_sub(60).max(20), &['/', ',', ' ']).join("\n"),
                printable(&key.metric),
                printable(&key.machine),
                summary.points.to_string(),
            ]
        })
        .collect();
    grid(&["suite", "case", "metric", "machine", "values"], &[4], &rows).join("\n") + "\n"
}

/// The values of a series, a line each.
pub fn points_text(series: &SeriesSummary, points: &[StoredPoint], style: Style) -> String {
    let key = &series.key;
    let title = format!("{}: {} of {} on {}", key.suite, key.metric, key.case, key.machine);
    let mut lines: Vec<String> =
        wrap(&printable(&title), style.width, &['/', ',', ' ']).iter().map(|line| style.bold(line)).collect();
    let rows: Vec<Vec<String>> = points
        .iter()
        .enumerate()
        .map(|(number, point)| {
            vec![number.to_string(), printable(&point.time), short(point.commit.as_deref()), point.value.to_string()]
        })
        .collect();
    lines.extend(grid(&["at", "time", "commit", "value"], &[0, 3], &rows));
    lines.join("\n") + "\n"
}

/// Gates, a line each, and how often they were not believed.
pub fn gates_text(gates: &[GateEntry], summary: &GateSummary, style: Style) -> String {
    if gates.is_empty() {
        return "no gates\n".to_owned();
    }
    let rows: Vec<Vec<String>> = gates
        .iter()
        .map(|gate| {
            vec![
                gate.id.clone(),
                printable(&gate.time),
                short(gate.head.as_deref()),
                gate.exit_code.to_string(),
                wrap(&printable(&gate.headline), style.width.saturating_sub(64).max(20), &[' ']).join("\n"),
                gate.overridden.as_deref().map_or(units::NOTHING.to_owned(), printable),
            ]
        })
        .collect();
    let mut lines = grid(&["gate", "time", "head", "exit", "outcome", "overridden"], &[3], &rows);
    let share = |count: usize| {
        if summary.regressions == 0 {
            String::new()
        } else {
            format!(" ({})", units::percent(count as f64 / summary.regressions as f64))
        }
    };
    lines.push(format!(
        "{} gates, {} found a regression: {} of these{} overridden, {}{} passed when run again; {} re-runs",
        summary.gates,
        summary.regressions,
        summary.overridden,
        share(summary.overridden),
        summary.passed_on_rerun,
        share(summary.passed_on_rerun),
        summary.reruns
    ));
    lines.join("\n") + "\n"
}

/// The first ten digits of a commit.
fn short(commit: Option<&str>) -> String {
    commit.map_or(units::NOTHING.to_owned(), |commit| printable(&commit.chars().take(10).collect::<String>()))
}

fn row(change: &Change) -> Vec<String> {
    let mut verdict = verdict(change).to_owned();
    if change.provisional {
        verdict += ", provisional";
    }
    vec![
        change.index.to_string(),
        format!("{}-{}", change.index_low, change.index_high),
        units::signed_percent(change.size),
        format!("{} to {}", units::signed_percent(change.size_low), units::signed_percent(change.size_high)),
        units::three_digits(change.before),
        units::three_digits(change.after),
        // A chance of less than one in ten thousand is not known better than that.
        if change.confidence > 0.9999 { "> 99.99 %".to_owned() } else { format!("{:.2} %", 100.0 * change.confidence) },
        verdict,
    ]
}

/// A change in words.
fn verdict(change: &Change) -> &'static str {
    match (change.direction, change.state) {
        (Direction::Regressed, State::Accepted) => "regressed, accepted",
        (Direction::Regressed, State::Recovered) => "regressed, recovered",
        (Direction::Regressed, _) => "regressed",
        (Direction::Improved, _) => "improved",
        (Direction::Changed, _) => "changed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::changes::{Observation, Query, find};
    use crate::metric::Better;
    use crate::stats::change_point::Settings;

    #[test]
    fn a_regression_that_recovers_and_one_that_is_open() {
        let level = |t: usize| {
            if (40..90).contains(&t) {
                105.0
            } else if t >= 150 {
                103.0
            } else {
                100.0
            }
        };
        let observations: Vec<Observation> = (0..200)
            .map(|t| Observation {
                // A sequence without a pattern that the detector could see.
                value: Some(level(t) + ((t * 7919 % 101) as f64 - 50.0) / 100.0),
                time: Some(format!("2026-01-01T00:{:02}:{:02}Z", t / 60, t % 60)),
                commit: Some(format!("c{t:04}")),
            })
            .collect();
        let query =
            Query { better: Better::Lower, provisional: false, settings: Settings::default(), is_accepted: &|_| false };
        let found = find(&observations, &query);
        insta::assert_snapshot!(changes_text(
            "latency_ns_median of cpu/flash",
            200,
            &found,
            Style { width: 100, colour: false }
        ));
        let nothing = find(&observations[..30], &query);
        assert_eq!(
            changes_text("x", 30, &nothing, Style { width: 80, colour: false }),
            "x\nno change of level in 30 values\n"
        );
    }
}
