//! What each round saw of a case: where a table's single number comes from.

use super::{Style, printable, units, wrap};
use crate::record::{CaseResult, CaseRound, Disposition};
use crate::stats::quantile::quantile;
use crate::stats::sorted;

/// Bars of a histogram, from empty to full.
const BARS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Fewest and most bins of a histogram: with fewer, its scale would not fit above it, and there is none.
const BINS: std::ops::RangeInclusive<usize> = 18..=24;

/// Columns in front of a histogram.
const FIGURES_WIDTH: usize = 62;

/// Every case with a line a round: samples, quartiles and their histogram, on one scale a case.
pub fn samples_text(cases: &[&CaseResult], style: Style) -> String {
    let mut lines = Vec::new();
    for case in cases {
        if !lines.is_empty() {
            lines.push(String::new());
        }
        let heading = wrap(&printable(&case.key.to_string()), style.width, &['/', ' ']);
        lines.extend(heading.iter().map(|line| style.bold(line)));
        let all: Vec<f64> = case.rounds.iter().flat_map(|round| &round.device_ns).copied().collect();
        // The slowest hundredth would squeeze all others into one bin.
        let range = sorted(&all).map(|all| (all[0], all[(all.len() - 1) * 99 / 100]));
        if let (Some(range), true) = (range, case.disposition == Disposition::Measured) {
            lines.push(format!(
                "  round  samples  {:>9}  {:>9}  {:>9}  {:>9}{}",
                "fastest",
                "25 %",
                "median",
                "75 %",
                match bins(style.width) {
                    0 => String::new(),
                    _ => format!("  {} to {}", units::nanoseconds(range.0), units::nanoseconds(range.1)),
                }
            ));
        }
        for round in &case.rounds {
            lines.extend(round_line(round, range, style.width));
        }
        if case.rounds.is_empty() {
            let reason = case.reason.as_deref().unwrap_or("no reason was recorded");
            let text = format!("  {}: {}", case.disposition.name(), printable(reason));
            lines.extend(wrap(&text, style.width, &[' ']));
        }
    }
    lines.join("\n") + "\n"
}

fn round_line(round: &CaseRound, range: Option<(f64, f64)>, width: usize) -> Vec<String> {
    if round.disposition != Disposition::Measured {
        let reason = round.reason.as_deref().unwrap_or("no reason was recorded");
        let text = format!("{:>7}  {}: {}", round.round, round.disposition.name(), printable(reason));
        return wrap(&text, width, &[' ']);
    }
    let at = |q| quantile(&round.device_ns, q).map_or(units::NOTHING.to_owned(), units::nanoseconds);
    let line = format!(
        "{:>7}  {:>7}  {:>9}  {:>9}  {:>9}  {:>9}  {}",
        round.round,
        round.device_ns.len(),
        sorted(&round.device_ns).map_or(units::NOTHING.to_owned(), |samples| units::nanoseconds(samples[0])),
        at(0.25),
        at(0.5),
        at(0.75),
        range.map_or(String::new(), |range| histogram(&round.device_ns, range, bins(width)))
    );
    vec![line.trim_end().to_owned()]
}

/// Bins of a histogram on lines of this width.
fn bins(width: usize) -> usize {
    let room = width.saturating_sub(FIGURES_WIDTH).min(*BINS.end());
    if BINS.contains(&room) { room } else { 0 }
}

/// The samples of a range in bins of equal width, the fullest being a full bar; later ones count in the last bin.
fn histogram(samples: &[f64], (low, high): (f64, f64), bins: usize) -> String {
    if bins == 0 {
        return String::new();
    }
    let mut counts = vec![0usize; bins];
    for &sample in samples {
        let share = if high > low { (sample - low) / (high - low) } else { 0.0 };
        counts[((share * bins as f64) as usize).min(bins - 1)] += 1;
    }
    let most = counts.iter().copied().max().unwrap_or(0).max(1);
    // A bin that holds anything shows it.
    counts.iter().map(|&count| BARS[(count * (BARS.len() - 1)).div_ceil(most)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::sample;

    #[test]
    fn at_100_columns() {
        let record = sample::record();
        let cases: Vec<&CaseResult> = record.cases.iter().collect();
        insta::assert_snapshot!(samples_text(&cases, Style { width: 100, colour: false }));
    }

    #[test]
    fn lines_keep_to_the_width() {
        let record = sample::record();
        let cases: Vec<&CaseResult> = record.cases.iter().collect();
        for width in [60, 70, 80, 160] {
            let text = samples_text(&cases, Style { width, colour: false });
            let longest = text.lines().map(|line| line.chars().count()).max().unwrap();
            assert!(longest <= width && !text.contains(" \n"), "{longest} > {width}:\n{text}");
        }
    }

    #[test]
    fn histograms() {
        assert_eq!(histogram(&[], (0.0, 1.0), 24).trim(), "");
        assert_eq!(histogram(&[1.0], (0.0, 1.0), 0), "");
        let one_value = histogram(&[5.0, 5.0], (5.0, 5.0), 24);
        assert_eq!((one_value.chars().count(), one_value.trim_end()), (24, "█"));
        let ends = histogram(&[0.0, 0.0, 1.0, 9.0, 9.0], (0.0, 1.0), 24);
        assert!(ends.starts_with('▆') && ends.ends_with('█'), "{ends}");
    }
}
