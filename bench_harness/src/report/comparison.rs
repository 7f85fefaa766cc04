//! A comparison or a gate's outcome as a table for people.

use std::fmt::Write;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

use super::units;
use crate::compare::{CaseComparison, Comparison, Verdict};
use crate::gate::outcome::GateReport;

/// Columns of the widest table.
const WIDTH: u16 = 100;

/// A gate's outcome: the headline first, then what led to it, then the comparison.
pub fn gate(report: &GateReport) -> String {
    let mut text = format!("{}\n", report.headline);
    for cause in &report.causes {
        let _ = writeln!(text, "{cause}");
    }
    text + &table(&report.comparison)
}

/// Every case that has something to say, then how many there are of each verdict.
pub fn table(comparison: &Comparison) -> String {
    let mut text = String::new();
    for difference in &comparison.fingerprint {
        let _ = writeln!(text, "not comparable: fingerprint {difference}");
    }
    for (provider, drift) in &comparison.drift {
        let moved = units::signed_percent(drift.log_ratio.exp_m1());
        let _ = writeln!(text, "drift of {provider}: {moved} time of `{}`, the control that moved most", drift.control);
    }
    for note in &comparison.notes {
        let _ = writeln!(text, "note: {note}");
    }
    for difference in &comparison.provenance {
        let _ = writeln!(text, "provenance: {difference}");
    }
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_HORIZONTAL_ONLY)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(WIDTH);
    table.set_header(["case", "base", "head", "change", "MDE", "verdict"]);
    for case in &comparison.cases {
        table.add_row(row(case));
    }
    for column in 1..=4 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let _ = writeln!(text, "{table}");
    let count = |verdict: Verdict| comparison.cases.iter().filter(|case| case.verdict == verdict).count();
    let verdicts =
        [Verdict::Regressed, Verdict::Improved, Verdict::Unchanged, Verdict::Inconclusive, Verdict::NotComparable];
    let counts: Vec<String> = verdicts
        .into_iter()
        .filter(|&verdict| count(verdict) > 0)
        .map(|verdict| format!("{} {}", count(verdict), verdict.name()))
        .collect();
    let _ = writeln!(text, "{} cases: {}", comparison.cases.len(), counts.join(", "));
    text
}

fn row(case: &CaseComparison) -> [String; 6] {
    let latency = case.metric("latency_ns_median");
    let nothing = || units::NOTHING.to_owned();
    let time = |ns: Option<f64>| ns.map_or_else(nothing, units::nanoseconds);
    let finding = latency.map(|metric| &metric.finding);
    let ratio = finding.and_then(|finding| finding.ratio);
    let change = ratio.map(|ratio| {
        let (low, high) = (units::signed_percent(ratio.low - 1.0), units::signed_percent(ratio.high - 1.0));
        format!("{}\n[{low}, {high}]", units::signed_percent(ratio.value - 1.0))
    });
    [
        case.key.to_string(),
        time(latency.and_then(|metric| metric.base)),
        time(latency.and_then(|metric| metric.head)),
        change.unwrap_or_else(nothing),
        finding.and_then(|finding| finding.mde).map_or_else(nothing, units::percent),
        format!("{}\n{}", case.verdict.name(), case.reason),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::{Baseline, compare};
    use crate::gate::outcome::judge;
    use crate::gate::policy::Policy;
    use crate::record::sample;

    #[test]
    fn a_gate_fits_a_terminal_and_says_what_matters_first() {
        let base = Baseline::from_records("example", &[sample::record()]).unwrap();
        let mut head = sample::record();
        head.run.id = "another".into();
        head.cases.truncate(5);
        let report = judge(&[head], &base, &Policy::default(), false).unwrap();
        let text = gate(&report);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("judged "), "{text}");
        assert!(text.contains("inconclusive"), "{text}");
        assert!(text.contains("removed;"), "{text}");
        let table = lines.iter().skip_while(|line| !line.contains('─'));
        assert!(
            table.clone().count() > 5 && table.clone().all(|line| line.chars().count() <= usize::from(WIDTH)),
            "{text}"
        );
    }

    #[test]
    fn other_machines_are_named() {
        let base = Baseline::from_records("example", &[sample::record()]).unwrap();
        let mut head = base.clone();
        head.fingerprint.insert("cpu_model".into(), "Other CPU".into());
        let text = table(&compare(&base, &head, &Policy::default()));
        let first = "not comparable: fingerprint `cpu_model` (`Example CPU 9000` against `Other CPU`)";
        assert!(text.starts_with(first), "{text}");
    }
}
