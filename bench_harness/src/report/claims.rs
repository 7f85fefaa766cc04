//! The answers of `attnbench claims` for people.

use super::{Style, Tone, printable, units, wrap};
use crate::claims::Claim;
use crate::claims::answer::{Answer, Finding, MeasuredFigure, Verdict};

/// Columns before a claim's name: the longest verdict and a blank.
const INDENT: usize = 21;

/// Every answer with its figures, and how many were decided.
pub fn text(answers: &[Answer], disturbance: f64, style: Style) -> String {
    let mut lines = Vec::new();
    for answer in answers {
        lines.extend(answer_lines(answer, style));
        lines.push(String::new());
    }
    lines.push(style.bold(&summary(answers)));
    let factor = units::three_digits(disturbance);
    let width = style.width.max(40);
    let noise =
        format!("The machine's own speed varied by a factor of {factor}; intervals of times are that much wider.");
    lines.extend(wrap(&noise, width, &[' ']));
    lines.join("\n")
}

/// `29 claims: 18 confirmed, 4 contradicted, 1 inconclusive, 6 not measurable here`.
pub fn summary(answers: &[Answer]) -> String {
    let verdicts = [Verdict::Confirmed, Verdict::Contradicted, Verdict::Inconclusive, Verdict::NotMeasurableHere];
    let counts: Vec<String> = verdicts
        .into_iter()
        .map(|verdict| (answers.iter().filter(|answer| answer.verdict == verdict).count(), verdict))
        .filter(|(count, _)| *count > 0)
        .map(|(count, verdict)| format!("{count} {}", verdict.name()))
        .collect();
    format!("{} claim{}: {}", answers.len(), if answers.len() == 1 { "" } else { "s" }, counts.join(", "))
}

fn answer_lines(answer: &Answer, style: Style) -> Vec<String> {
    let tone = match answer.verdict {
        Verdict::Confirmed => Tone::Good,
        Verdict::Contradicted => Tone::Bad,
        Verdict::Inconclusive => Tone::Doubtful,
        Verdict::NotMeasurableHere => Tone::Plain,
    };
    let verdict = style.paint(tone, &format!("{:INDENT$}", answer.verdict.name()));
    let mut lines = vec![format!("{verdict}{}", style.bold(&printable(&answer.name)))];
    lines.extend(indented(&answer.statement, style));
    for finding in &answer.findings {
        lines.extend(figures_text(finding).iter().flat_map(|text| indented(text, style)));
    }
    let reason = answer.reason.iter().map(|reason| format!("{}: {reason}", answer.verdict.name()));
    lines.extend(reason.flat_map(|reason| indented(&reason, style)));
    let note = answer.note.iter().map(|note| format!("note: {note}"));
    lines.extend(note.chain([format!("source: {}", answer.source)]).flat_map(|text| indented(&text, style)));
    lines
}

fn indented(text: &str, style: Style) -> Vec<String> {
    let width = style.width.saturating_sub(INDENT).max(40);
    wrap(&printable(text), width, &[' ', '/']).into_iter().map(|line| format!("{:INDENT$}{line}", "")).collect()
}

/// `-> 2.03 (1.99 to 2.06), claimed 1.80 to 2.20: exponent of time over length`; of several figures the ends.
fn figures_text(finding: &Finding) -> Option<String> {
    let by_value = |a: &&MeasuredFigure, b: &&MeasuredFigure| a.estimate.value.total_cmp(&b.estimate.value);
    let (least, most) = (finding.figures.iter().min_by(by_value)?, finding.figures.iter().max_by(by_value)?);
    let is_exact = finding.figures.iter().all(|figure| figure.estimate.low == figure.estimate.high);
    let number = |value: f64| match is_exact && (0.1..1.0).contains(&value.abs()) {
        // A share may be claimed to a tenth of a per cent.
        true => format!("{value:.4}"),
        false => units::three_digits(value),
    };
    let shown = |figure: &MeasuredFigure| {
        let estimate = &figure.estimate;
        match estimate.low == estimate.high {
            true => number(estimate.value),
            false => format!("{} ({} to {})", number(estimate.value), number(estimate.low), number(estimate.high)),
        }
    };
    let figures = match finding.figures.len() {
        1 => shown(least),
        count => format!("{count} cases from {} to {}", shown(least), shown(most)),
    };
    let claimed = match (finding.at_least, finding.at_most) {
        (Some(least), Some(most)) if (most - least).abs() <= 1e-9 * most.abs() => number(least),
        (Some(least), Some(most)) => format!("{} to {}", number(least), number(most)),
        (Some(least), None) => format!("at least {}", number(least)),
        (None, Some(most)) => format!("at most {}", number(most)),
        (None, None) => "nothing".to_owned(),
    };
    Some(format!("-> {figures}, claimed {claimed}: {}", finding.says))
}

/// Names, statements and what each claim needs: `attnbench claims --list`.
pub fn listing(claims: &[Claim], style: Style) -> String {
    let mut lines = Vec::new();
    for claim in claims {
        let needs = match &claim.needs {
            None if claim.suite.is_none() => " (arithmetic)".to_owned(),
            None => String::new(),
            Some(crate::claims::Device::Gpu) => " (needs a GPU)".to_owned(),
            Some(crate::claims::Device::Model(model)) => format!(" (needs an {model})"),
        };
        lines.push(format!("{}{}", style.bold(&printable(&claim.name)), printable(&needs)));
        let text = wrap(&printable(&claim.statement), style.width.saturating_sub(2).max(40), &[' ']);
        lines.extend(text.into_iter().map(|line| format!("  {line}")));
    }
    lines.join("\n")
}
