//! What each round saw of a case: where a table's single number comes from.

use super::{Style, printable, units, wrap};
use crate::record::{CaseResult, CaseRound, Disposition};
use crate::stats::quantile::quantile;
use crate::stats::sorted;

/// Bars of a histogram, from empty to full.
const BARS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Bins of a histogram.
const BINS: usize = 24;

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
                "  round  samples  {:>9}  {:>9}  {:>9}  {:>9}  {} to {}",
                "fastest",
                "25 %",
                "median",
                "75 %",
                units::nanoseconds(range.0),
                units::nanoseconds(range.1)
            ));
        }
        for round in &case.rounds {
            lines.extend(round_line(round, range, style.width));
        }
        if case.rounds.is_empty() {
            let reason = case.reason.as_deref().unwrap_or("no reason was recorded");
            lines.push(format!("  {}: {}", case.disposition.name(), printable(reason)));
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
    vec![format!(
        "{:>7}  {:>7}  {:>9}  {:>9}  {:>9}  {:>9}  {}",
        round.round,
        round.device_ns.len(),
        sorted(&round.device_ns).map_or(units::NOTHING.to_owned(), |samples| units::nanoseconds(samples[0])),
        at(0.25),
        at(0.5),
        at(0.75),
        range.map_or(String::new(), |range| histogram(&round.device_ns, range))
    )]
}

/// The samples of a range in bins of equal width, the fullest being a full bar; later ones count in the last bin.
fn histogram(samples: &[f64], (low, high): (f64, f64)) -> String {
    let mut counts = [0usize; BINS];
    for &sample in samples {
        let share = if high > low { (sample - low) / (high - low) } else { 0.0 };
        counts[((share * BINS as f64) as usize).min(BINS - 1)] += 1;
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
    fn histograms() {
        assert_eq!(histogram(&[], (0.0, 1.0)).trim(), "");
        let one_value = histogram(&[5.0, 5.0], (5.0, 5.0));
        assert_eq!((one_value.chars().count(), one_value.trim_end()), (BINS, "█"));
        let ends = histogram(&[0.0, 0.0, 1.0, 9.0, 9.0], (0.0, 1.0));
        assert!(ends.starts_with('▆') && ends.ends_with('█'), "{ends}");
    }
}
