//! JUnit XML: a test a case, and one for the judgement itself, so that the suite fails exactly where the command does.

use quick_xml::Writer;
use quick_xml::events::{BytesDecl, BytesText, Event};

use super::Subject;
use crate::case::CaseKey;
use crate::compare::Verdict;
use crate::gate::exit::Exit;
use crate::gate::outcome::GateReport;
use crate::metric::Metric;
use crate::metric::latency::LatencyMedian;
use crate::record::{Disposition, Record};

/// What a test came to.
enum Outcome {
    Passed(String),
    Skipped(String),
    Failed(String),
    /// It could not be run.
    Error(String),
}

struct Test {
    class: String,
    name: String,
    seconds: f64,
    outcome: Outcome,
}

/// The text of a subject.
pub fn text(subject: Subject<'_>) -> String {
    let (name, tests) = match subject {
        Subject::Gate(report) => (&report.comparison.head.suite, of_gate(report)),
        Subject::Run(record) => (&record.run.suite, of_run(record)),
    };
    let mut writer = Writer::new_with_indent(Vec::new(), b' ', 2);
    write(&mut writer, &xml_text(name), &tests).expect("writing to memory does not fail");
    String::from_utf8(writer.into_inner()).expect("quick-xml writes UTF-8") + "\n"
}

fn write(writer: &mut Writer<Vec<u8>>, suite: &str, tests: &[Test]) -> std::io::Result<()> {
    let count = |is_it: fn(&Outcome) -> bool| tests.iter().filter(|test| is_it(&test.outcome)).count().to_string();
    let attributes = [
        ("name", format!("attnbench {suite}")),
        ("tests", tests.len().to_string()),
        ("failures", count(|outcome| matches!(outcome, Outcome::Failed(_)))),
        ("errors", count(|outcome| matches!(outcome, Outcome::Error(_)))),
        ("skipped", count(|outcome| matches!(outcome, Outcome::Skipped(_)))),
        ("time", seconds(tests.iter().map(|test| test.seconds).sum())),
    ];
    let attributes = || attributes.iter().map(|(name, value)| (*name, value.as_str()));
    writer.write_event(Event::Decl(BytesDecl::new("1.0", Some("UTF-8"), None)))?;
    let all = writer.create_element("testsuites").with_attributes(attributes().filter(|(name, _)| *name != "skipped"));
    all.write_inner_content(|writer| {
        let suite = writer.create_element("testsuite").with_attributes(attributes());
        suite.write_inner_content(|writer| tests.iter().try_for_each(|test| write_test(writer, test)))?;
        Ok(())
    })?;
    Ok(())
}

fn write_test(writer: &mut Writer<Vec<u8>>, test: &Test) -> std::io::Result<()> {
    let seconds = seconds(test.seconds);
    let attributes = [("classname", test.class.as_str()), ("name", &test.name), ("time", &seconds)];
    let element = writer.create_element("testcase").with_attributes(attributes);
    let (name, kind, text) = match &test.outcome {
        Outcome::Passed(text) => ("system-out", None, text),
        Outcome::Skipped(text) => ("skipped", None, text),
        Outcome::Failed(text) => ("failure", Some("regression"), text),
        Outcome::Error(text) => ("error", Some("failed to run"), text),
    };
    element.write_inner_content(|writer| {
        let mut inner = writer.create_element(name);
        if let Outcome::Passed(text) = &test.outcome {
            inner.write_text_content(BytesText::new(text))?;
            return Ok(());
        }
        let first = text.lines().next().unwrap_or_default();
        inner = inner.with_attribute(("message", first));
        if let Some(kind) = kind {
            inner = inner.with_attribute(("type", kind));
        }
        inner.write_text_content(BytesText::new(text))?;
        Ok(())
    })?;
    Ok(())
}

fn of_gate(report: &GateReport) -> Vec<Test> {
    let said = |sign: Exit| {
        let lines = std::iter::once(&report.headline).chain(&report.causes).map(|line| xml_text(line));
        let text = lines.collect::<Vec<_>>().join("\n");
        match sign {
            Exit::Pass => Outcome::Passed(text),
            Exit::Failed => Outcome::Error(text),
            _ => Outcome::Failed(text),
        }
    };
    let judgement = Test {
        class: "attnbench".to_owned(),
        name: "judgement".to_owned(),
        seconds: 0.0,
        outcome: said(report.exit()),
    };
    let case = |case: &crate::compare::CaseComparison| {
        let text = format!("{}: {}", case.verdict.name(), xml_text(&case.reason));
        let outcome = match case.verdict {
            Verdict::Regressed => Outcome::Failed(text),
            _ if case.failed_on_both() => Outcome::Error(text),
            Verdict::NotComparable | Verdict::Inconclusive => Outcome::Skipped(text),
            Verdict::Improved | Verdict::Unchanged => Outcome::Passed(text),
        };
        let ns = case.metric(LatencyMedian.name()).and_then(|latency| latency.head);
        test(&case.key, ns, outcome)
    };
    std::iter::once(judgement).chain(report.comparison.cases.iter().map(case)).collect()
}

fn of_run(record: &Record) -> Vec<Test> {
    let case = |case: &crate::record::CaseResult| {
        let reason = case.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        let text = xml_text(&format!("{}{reason}", case.disposition.name()));
        let outcome = match case.disposition {
            Disposition::Measured => Outcome::Passed(text),
            Disposition::Incorrect => Outcome::Failed(text),
            Disposition::TimedOut | Disposition::Crashed => Outcome::Error(text),
            _ => Outcome::Skipped(text),
        };
        test(&case.key, LatencyMedian.value(case, record).map(|latency| latency.value), outcome)
    };
    record.cases.iter().map(case).collect()
}

/// A case as a test: its class is provider and kernel, its time that of one call.
fn test(key: &CaseKey, ns: Option<f64>, outcome: Outcome) -> Test {
    let mut parts = key.case_id.splitn(3, '/');
    let class: Vec<String> = [parts.next(), parts.next()].into_iter().flatten().map(xml_text).collect();
    let seconds = ns.filter(|ns| ns.is_finite()).unwrap_or(0.0) * 1e-9;
    Test { class: class.join("."), name: xml_text(&key.to_string()), seconds, outcome }
}

fn seconds(seconds: f64) -> String {
    format!("{seconds:.9}")
}

/// A text without what XML 1.0 cannot hold in any escape.
fn xml_text(text: &str) -> String {
    super::printable(text).replace(['\u{fffe}', '\u{ffff}'], " ")
}
