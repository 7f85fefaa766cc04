//! SARIF 2.1.0 (OASIS, 2020): a result a case that needs somebody, for code scanning.
//!
//! A result must lie in a file of the repository: that is the suite's. Two reports of one finding have one fingerprint, so
//! that it is shown once.

use serde_json::{Value, json};

use super::{Subject, printable};
use crate::case::CaseKey;
use crate::compare::{CaseComparison, Verdict};
use crate::gate::outcome::GateReport;
use crate::record::{CaseResult, Disposition, Record};

/// What can be found: its id, what it means, and its level.
const RULES: [(&str, &str, &str); 6] = [
    ("slower", "A kernel takes longer than on the base of the change.", "error"),
    ("hungrier", "A kernel needs more memory than on the base of the change.", "error"),
    ("less-accurate", "A kernel's error grew against the f64 oracle.", "error"),
    ("broken", "A case that could be measured on the base cannot be measured any more, or a case fails.", "error"),
    ("undecided", "The measurements do not show whether the case got worse.", "note"),
    ("not-comparable", "Base and head were not measured alike.", "note"),
];

/// One finding.
struct Finding<'a> {
    rule: &'static str,
    key: &'a CaseKey,
    message: String,
}

/// The text of a subject.
pub fn text(subject: Subject<'_>) -> String {
    let (suite, findings, complete) = match subject {
        Subject::Gate(report) => (&report.comparison.head.suite, of_gate(report), true),
        Subject::Run(record) => (&record.run.suite, of_run(record), record.run.complete),
    };
    let index = |id: &str| RULES.iter().position(|(rule, ..)| *rule == id);
    let uri = format!("suites/{}.toml", uri_part(suite));
    let result = |finding: &Finding<'_>| {
        let place = index(finding.rule).expect("findings have rules of the table");
        json!({
            "ruleId": finding.rule,
            "ruleIndex": place,
            "level": RULES[place].2,
            "message": { "text": printable(&format!("{}: {}", finding.key, finding.message)) },
            "locations": [{
                "physicalLocation": { "artifactLocation": { "uri": uri }, "region": { "startLine": 1 } },
                "logicalLocations": [{ "fullyQualifiedName": printable(&finding.key.to_string()) }],
            }],
            "partialFingerprints": { "attnbenchCase/v1": fingerprint(finding) },
        })
    };
    let rules: Vec<Value> = RULES
        .iter()
        .map(|(id, meaning, level)| {
            json!({
                "id": id,
                "shortDescription": { "text": meaning },
                "defaultConfiguration": { "level": level },
            })
        })
        .collect();
    let log = json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": {
                "name": "attnbench",
                "version": env!("CARGO_PKG_VERSION"),
                "informationUri": env!("CARGO_PKG_REPOSITORY"),
                "rules": rules,
            } },
            "invocations": [{ "executionSuccessful": complete }],
            "results": findings.iter().map(result).collect::<Vec<_>>(),
        }],
    });
    serde_json::to_string_pretty(&log).expect("values serialise") + "\n"
}

fn of_gate(report: &GateReport) -> Vec<Finding<'_>> {
    report
        .comparison
        .cases
        .iter()
        .filter(|case| !case.is_new())
        .filter_map(|case| Some(Finding { rule: rule(case)?, key: &case.key, message: case.reason.clone() }))
        .collect()
}

fn rule(case: &CaseComparison) -> Option<&'static str> {
    if case.failed_on_both() {
        return Some("broken");
    }
    match case.verdict {
        Verdict::Improved | Verdict::Unchanged => None,
        Verdict::Inconclusive => Some("undecided"),
        Verdict::NotComparable => Some("not-comparable"),
        Verdict::Regressed => {
            let metric = case.metrics.iter().find(|metric| metric.finding.verdict == Verdict::Regressed);
            Some(match metric.map(|metric| metric.metric.as_str()) {
                Some("extra_peak_bytes") => "hungrier",
                Some("relative_l2") => "less-accurate",
                Some(_) => "slower",
                None => "broken",
            })
        }
    }
}

fn of_run(record: &Record) -> Vec<Finding<'_>> {
    let finding = |case: &'_ CaseResult| {
        let reason = case.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        format!("{}{reason}", case.disposition.name())
    };
    record
        .cases
        .iter()
        .filter(|case| case.disposition.is_failure() || case.disposition == Disposition::Throttled)
        .map(|case| {
            let rule = if case.disposition == Disposition::Throttled { "undecided" } else { "broken" };
            Finding { rule, key: &case.key, message: finding(case) }
        })
        .collect()
}

/// The same for the same finding of the same case, whatever the figures are.
fn fingerprint(finding: &Finding<'_>) -> String {
    let text = format!("{}\n{}", finding.rule, finding.key);
    blake3::hash(text.as_bytes()).to_hex()[..32].to_owned()
}

/// A name as a part of a relative URI (RFC 3986, section 2.3).
fn uri_part(name: &str) -> String {
    name.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}
