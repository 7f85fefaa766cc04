//! Results over time: what there is, and what changed.

use super::baselines::grid;
use super::{Style, Tone, printable, units, wrap};
use crate::history::changes::{Change, Direction, SeriesChanges, State};

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
            "open regression: the level is {} off the {} that was normal",
            units::signed_percent(excess),
            units::three_digits(normal)
        );
        lines.extend(wrap(&text, style.width, &[' ']).iter().map(|line| style.paint(Tone::Bad, line)));
    }
    lines.join("\n") + "\n"
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
        let level = |t: usize| if (40..90).contains(&t) { 105.0 } else if t >= 150 { 103.0 } else { 100.0 };
        let observations: Vec<Observation> = (0..200)
            .map(|t| Observation {
                // A sequence without a pattern that the detector could see.
                value: Some(level(t) + ((t * 7919 % 101) as f64 - 50.0) / 100.0),
                time: Some(format!("2026-01-01T00:{:02}:{:02}Z", t / 60, t % 60)),
                commit: Some(format!("c{t:04}")),
            })
            .collect();
        let query = Query {
            better: Better::Lower,
            provisional: false,
            settings: Settings::default(),
            is_accepted: &|_| false,
        };
        let found = find(&observations, &query);
        insta::assert_snapshot!(changes_text("latency_ns_median of cpu/flash", 200, &found, Style { width: 100, colour: false }));
        let nothing = find(&observations[..30], &query);
        assert_eq!(changes_text("x", 30, &nothing, Style { width: 80, colour: false }), "x\nno change of level in 30 values\n");
    }
}
