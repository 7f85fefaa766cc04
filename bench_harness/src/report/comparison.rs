//! Comparisons: the verdicts that need somebody first, what did not change last and briefly.

use super::baselines::grid;
use super::case_names::group_names;
use super::{Style, Tone, printable, short_commit, units, wrap};
use crate::compare::{CaseComparison, Comparison, Difference, Side, Verdict};
use crate::gate::acceptance::{Acceptance, Accepted};
use crate::gate::families::FamilyFinding;
use crate::gate::outcome::GateReport;

/// In the order in which a reader wants them.
pub(super) const ORDER: [Verdict; 5] =
    [Verdict::Regressed, Verdict::NotComparable, Verdict::Inconclusive, Verdict::Improved, Verdict::Unchanged];

/// Columns that the figures beside the case's name take.
const FIGURES_WIDTH: usize = 58;

/// A gate's outcome: how much was judged, what led to the exit code, then the comparison.
pub fn gate_text(report: &GateReport, style: Style) -> String {
    let mut lines: Vec<String> = wrap(&printable(&report.headline), style.width, &[' ']);
    let mut say = |text: String, tone: Tone| {
        lines.extend(wrap(&printable(&text), style.width, &[' ']).iter().map(|line| style.paint(tone, line)));
    };
    for accepted in &report.accepted {
        say(accepted_text(accepted), Tone::Doubtful);
    }
    for cause in &report.causes {
        say(cause.clone(), Tone::Bad);
    }
    lines.push(comparison_text(&report.comparison, style).trim_end().to_owned());
    lines.extend(families_text(&report.families, style));
    lines.join("\n") + "\n"
}

pub(crate) fn accepted_text(accepted: &Accepted) -> String {
    let Acceptance { case, metric, at_most, reason, by, expires, .. } = &accepted.acceptance;
    let size = at_most.map_or(String::new(), |bound| format!(" up to {}", units::percent(bound)));
    let count = match accepted.cases.len() {
        1 => "1 case".to_owned(),
        count => format!("{count} cases"),
    };
    format!("accepted for {count}: {metric} of {case}{size}, by {by} until {expires}: {reason}")
}

/// The families that changed or that nobody can be sure of; how many did not.
fn families_text(families: &[FamilyFinding], style: Style) -> Vec<String> {
    if families.is_empty() {
        return Vec::new();
    }
    let (quiet, shown): (Vec<_>, Vec<_>) =
        families.iter().partition(|family| family.finding.verdict == Verdict::Unchanged);
    let mut lines = vec![String::new(), style.bold("families, each on the mean of its cases")];
    let rows: Vec<Vec<String>> = shown
        .iter()
        .map(|family| {
            let change = family
                .finding
                .ratio
                .map_or(units::NOTHING.to_owned(), |ratio| units::signed_percent(ratio.value - 1.0));
            let room = style.width.saturating_sub(48).max(16);
            let name = wrap(&printable(&family.family), room, &['/', ' ']).join("\n");
            vec![name, family.cases.to_string(), change, family.finding.verdict.name().to_owned()]
        })
        .collect();
    if !rows.is_empty() {
        lines.extend(grid(&["family", "cases", "change", "verdict"], &[1, 2], &rows));
    }
    if !quiet.is_empty() {
        lines.push(format!("{} unchanged", quiet.len()));
    }
    lines
}

/// Both sides, what differs between them, and a table a verdict.
pub fn comparison_text(comparison: &Comparison, style: Style) -> String {
    let mut lines = Vec::new();
    let mut say = |text: String, tone: Tone| {
        lines.extend(wrap(&printable(&text), style.width, &[' ']).iter().map(|line| style.paint(tone, line)));
    };
    say(format!("base: {}", side_text(&comparison.base)), Tone::Plain);
    say(format!("head: {}", side_text(&comparison.head)), Tone::Plain);
    for difference in &comparison.fingerprint {
        say(format!("fingerprint differs: {}", difference_text(difference)), Tone::Bad);
    }
    for difference in &comparison.provenance {
        say(format!("differs: {}", difference_text(difference)), Tone::Plain);
    }
    for (provider, drift) in &comparison.drift {
        let moved = units::signed_percent(drift.log_ratio.exp_m1());
        say(
            format!("drift of {provider}: {moved} time of `{}`, the control that moved most", drift.control),
            Tone::Plain,
        );
    }
    for note in &comparison.notes {
        say(format!("note: {note}"), Tone::Doubtful);
    }

    for verdict in ORDER {
        let cases: Vec<&CaseComparison> = comparison.cases.iter().filter(|case| case.verdict == verdict).collect();
        if cases.is_empty() {
            continue;
        }
        lines.push(String::new());
        lines.push(style.paint(tone_of(verdict), &format!("{}: {}", verdict.name(), cases.len())));
        lines.extend(verdict_table(&cases, style));
    }
    lines.push(String::new());
    lines.push(style.bold(&counts_text(comparison)));
    lines.join("\n") + "\n"
}

/// How many cases have which verdict: `1 regressed, 41 unchanged`.
pub fn counts_text(comparison: &Comparison) -> String {
    let counts: Vec<String> = ORDER
        .iter()
        .map(|verdict| (verdict, comparison.cases.iter().filter(|case| case.verdict == *verdict).count()))
        .filter(|(_, count)| *count > 0)
        .map(|(verdict, count)| format!("{count} {}", verdict.name()))
        .collect();
    if counts.is_empty() { "no cases".to_owned() } else { counts.join(", ") }
}

/// A row a case with its latencies, the change with its interval and the smallest detectable one; below, the reasons.
fn verdict_table(cases: &[&CaseComparison], style: Style) -> Vec<String> {
    let keys: Vec<_> = cases.iter().map(|case| &case.key).collect();
    let names = group_names(&keys);
    let room = style.width.saturating_sub(FIGURES_WIDTH).max(15);
    let rows: Vec<Vec<String>> = cases
        .iter()
        .zip(&names.names)
        .map(|(case, name)| {
            let latency = case.metric("latency_ns_median");
            let time = |ns: Option<f64>| ns.map_or(units::NOTHING.to_owned(), units::nanoseconds);
            let finding = latency.map(|latency| &latency.finding);
            let ratio = finding.and_then(|finding| finding.ratio);
            vec![
                wrap(&printable(name), room, &['/', ',']).join("\n"),
                time(latency.and_then(|latency| latency.base)),
                time(latency.and_then(|latency| latency.head)),
                ratio.map_or(units::NOTHING.to_owned(), |ratio| {
                    let [value, low, high] =
                        [ratio.value, ratio.low, ratio.high].map(|ratio| units::signed_percent(ratio - 1.0));
                    format!("{value}\n[{low}, {high}]")
                }),
                finding.and_then(|finding| finding.mde).map_or(units::NOTHING.to_owned(), units::percent),
            ]
        })
        .collect();
    let mut lines: Vec<String> = wrap(&printable(&names.heading), style.width, &['/', ' ']);
    lines.extend(grid(&["case", "base", "head", "change", "MDE"], &[1, 2, 3, 4], &rows));

    // Cases with one reason share it.
    let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
    for (case, name) in cases.iter().zip(&names.names) {
        match reasons.iter_mut().find(|(reason, _)| *reason == case.reason) {
            Some((_, names)) => names.push(name),
            None => reasons.push((&case.reason, vec![name])),
        }
    }
    for (reason, named) in reasons.into_iter().filter(|(reason, _)| !reason.is_empty()) {
        let who = if named.len() == cases.len() && named.len() > 1 { "all".to_owned() } else { named.join(", ") };
        let text = wrap(&printable(&format!("{who}: {reason}")), style.width.saturating_sub(4), &[' ', '/']);
        lines
            .extend(text.iter().enumerate().map(|(at, line)| format!("{}{line}", if at == 0 { "  " } else { "    " })));
    }
    lines
}

pub(super) fn side_text(side: &Side) -> String {
    let commits: Vec<&str> = side.commits.iter().map(|commit| short_commit(commit)).collect();
    let runs = match side.runs.len() {
        1 => format!("run {}", side.runs[0]),
        count => format!("{count} sessions"),
    };
    let at = if commits.is_empty() { String::new() } else { format!(" at {}", commits.join(", ")) };
    format!("{}, {runs}{at}", side.suite)
}

pub(super) fn difference_text(difference: &Difference) -> String {
    let shown = |value: &Option<String>| value.as_ref().map_or("nothing".to_owned(), |value| format!("`{value}`"));
    format!("{}: {} on base, {} on head", difference.field, shown(&difference.base), shown(&difference.head))
}

fn tone_of(verdict: Verdict) -> Tone {
    match verdict {
        Verdict::Regressed => Tone::Bad,
        Verdict::NotComparable | Verdict::Inconclusive => Tone::Doubtful,
        Verdict::Improved => Tone::Good,
        Verdict::Unchanged => Tone::Plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::{Baseline, Finding, compare};
    use crate::gate::policy::Policy;
    use crate::record::{CaseResult, Disposition, Record, sample};

    /// Head is slower in one case, faster in another, broken in a third, and has a new one.
    fn comparison() -> Comparison {
        let run = |id: &str, cases| Record { cases, ..with_id(id) };
        let base = vec![
            sample::measured("flash", 256, 1_000_000.0),
            sample::measured("flash", 1024, 20_000_000.0),
            sample::measured("naive", 1024, 45_000_000.0),
            sample::measured("flash1", 1024, 30_000_000.0),
        ];
        let head = vec![
            sample::measured("flash", 256, 1_300_000.0),
            sample::measured("flash", 1024, 20_000_000.0),
            sample::measured("naive", 1024, 30_000_000.0),
            sample::failed("flash1", 1024, Disposition::Incorrect, "o: a key block is missing"),
            sample::measured("flash", 2048, 80_000_000.0),
        ];
        let more_rounds = |cases: Vec<_>| cases.into_iter().map(with_rounds).collect();
        let base = Baseline::from_records("x", &[run("base", more_rounds(base))]).unwrap();
        let mut head = Baseline::from_records("x", &[run("head", more_rounds(head))]).unwrap();
        head.sessions[0].provenance.insert("build_rustc".into(), "rustc 1.96.0".into());
        compare(&base, &head, &Policy::default())
    }

    /// The case with its two rounds four times.
    fn with_rounds(mut case: CaseResult) -> CaseResult {
        case.rounds = case.rounds.iter().cycle().take(8).cloned().collect();
        case
    }

    fn with_id(id: &str) -> Record {
        let mut record = sample::record();
        record.run.id = id.into();
        record
    }

    fn text(width: usize) -> String {
        comparison_text(&comparison(), Style { width, colour: false })
    }

    #[test]
    fn at_80_columns() {
        insta::assert_snapshot!(text(80));
    }

    #[test]
    fn at_100_columns() {
        insta::assert_snapshot!(text(100));
    }

    #[test]
    fn at_140_columns() {
        insta::assert_snapshot!(text(140));
    }

    #[test]
    fn lines_keep_the_width() {
        for width in [60, 72, 80, 100, 140] {
            let text = text(width);
            let longest = text.lines().map(|line| line.chars().count()).max().unwrap();
            assert!(longest <= width, "{longest} columns of {width}:\n{text}");
        }
    }

    #[test]
    fn a_gate_says_first_how_much_it_judged() {
        let report = crate::gate::outcome::report(comparison(), true, &Policy::default(), false);
        let text = gate_text(&report, Style { width: 100, colour: false });
        assert!(text.starts_with("judged "), "{text}");
        assert!(text.lines().nth(1).is_some_and(|line| line.contains("regressed")), "{text}");
    }

    #[test]
    fn what_was_accepted_comes_first_and_families_last() {
        let mut report = crate::gate::outcome::report(comparison(), true, &Policy::default(), false);
        let acceptance = Acceptance {
            case: "cpu/flash/*".into(),
            metric: "latency_ns_median".into(),
            at_most: Some(0.3),
            reason: "rows of NaN are right now, which costs a pass over the scores".into(),
            by: "a maintainer".into(),
            expires: "2026-12-31".into(),
            commit: None,
        };
        report.accepted.push(Accepted { acceptance, cases: vec!["a".into(), "b".into()] });
        for (family, verdict) in [("cpu/flash", Verdict::Regressed), ("cpu/flash prefill", Verdict::Unchanged)] {
            let ratio = crate::metric::Estimate::exact(1.012);
            let finding = Finding { ratio: Some(ratio), ..Finding::bare(verdict, "1.2 % slower on average") };
            report.families.push(FamilyFinding { family: family.into(), cases: 12, finding });
        }
        for width in [80, 120] {
            let text = gate_text(&report, Style { width, colour: false });
            assert!(text.lines().all(|line| line.chars().count() <= width), "{text}");
            insta::assert_snapshot!(format!("gate_at_{width}"), text);
        }
    }

    #[test]
    fn other_machines_are_named() {
        let base = Baseline::from_records("x", &[with_id("base")]).unwrap();
        let mut other = with_id("head");
        other.fingerprint.insert("cpu_model".into(), "Another CPU".into());
        let head = Baseline::from_records("x", &[other]).unwrap();
        let comparison = compare(&base, &head, &Policy::default());
        let text = comparison_text(&comparison, Style { width: 100, colour: false });
        let named = "fingerprint differs: cpu_model: `Example CPU 9000` on base, `Another CPU` on head";
        assert!(text.contains(named), "{text}");
    }
}
