//! Workflow commands of GitHub Actions: one line a finding, which a job prints and GitHub shows beside the change.

use super::Subject;
use crate::compare::Verdict;
use crate::gate::exit::Exit;
use crate::gate::outcome::GateReport;
use crate::record::Record;

/// GitHub shows no more of a kind and step than this.
const MOST_OF_A_KIND: usize = 10;

/// The lines of a subject: errors for what got worse, a warning or a notice for the outcome.
pub fn text(subject: Subject<'_>) -> String {
    let lines = match subject {
        Subject::Gate(report) => of_gate(report),
        Subject::Run(record) => of_run(record),
    };
    lines.iter().map(|line| format!("{line}\n")).collect()
}

fn of_gate(report: &GateReport) -> Vec<String> {
    let kind = match report.exit() {
        Exit::Pass => "notice",
        Exit::Regression | Exit::Failed => "error",
        _ => "warning",
    };
    let outcome = std::iter::once(&report.headline).chain(&report.causes).cloned().collect::<Vec<_>>().join("; ");
    let mut lines = vec![command(kind, "attnbench", &outcome)];
    let worse = report.comparison.cases.iter().filter(|case| case.verdict == Verdict::Regressed && !case.is_new());
    lines.extend(worse.map(|case| command("error", &case.key.to_string(), &case.reason)).take(MOST_OF_A_KIND - 1));
    lines
}

fn of_run(record: &Record) -> Vec<String> {
    let failed = record.cases.iter().filter(|case| case.disposition.is_failure());
    let line = |case: &crate::record::CaseResult| {
        let reason = case.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        command("error", &case.key.to_string(), &format!("{}{reason}", case.disposition.name()))
    };
    failed.map(line).take(MOST_OF_A_KIND).collect()
}

/// A command, escaped as the runner's own toolkit does it: a line break would begin another one.
fn command(kind: &str, title: &str, message: &str) -> String {
    let data = |text: &str| text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A");
    let property = data(title).replace(':', "%3A").replace(',', "%2C");
    format!("::{kind} title={property}::{}", data(message))
}
