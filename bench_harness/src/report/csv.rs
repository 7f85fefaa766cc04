//! CSV: of a run a row a case with every axis and every metric, of a judgement a row a compared metric.
//!
//! Spreadsheets run a field that begins like a formula, quoted or not: such a field of a text gets an apostrophe in front.

use super::Subject;
use super::axes::{AXES, axes};
use crate::case::CaseKey;
use crate::gate::outcome::GateReport;
use crate::metric::METRICS;
use crate::record::{Disposition, Record};

/// The text of a subject, header first. Values are in the units of their columns' names.
pub fn text(subject: Subject<'_>) -> String {
    match subject {
        Subject::Run(record) => of_run(record),
        Subject::Gate(report) => of_gate(report),
    }
}

/// The names of the columns that name a case.
fn case_columns() -> Vec<String> {
    let axes = AXES.iter().map(|(axis, _)| (*axis).to_owned());
    std::iter::once("case_id".to_owned()).chain(axes).chain(["mode".to_owned(), "threads".to_owned()]).collect()
}

fn case_fields(key: &CaseKey) -> Vec<String> {
    let axes = axes(&key.case_id).map(shown);
    let mut fields = vec![shown(&key.case_id)];
    fields.extend(axes);
    fields.extend([key.mode.name().to_owned(), key.threads.to_string()]);
    fields
}

fn of_run(record: &Record) -> String {
    let mut header = case_columns();
    header.extend(["matrix", "disposition", "reason", "flags", "pairs", "flops", "bytes"].map(str::to_owned));
    for metric in METRICS {
        let name = metric.name();
        header.extend([name.to_owned(), format!("{name}_low"), format!("{name}_high")]);
    }
    let rows = record.cases.iter().map(|case| {
        let mut row = case_fields(&case.key);
        row.extend([
            shown(&case.matrix),
            case.disposition.name().to_owned(),
            shown(case.reason.as_deref().unwrap_or_default()),
            shown(&case.flags.join("; ")),
        ]);
        row.extend([case.work.pairs, case.work.flops, case.work.bytes()].map(|count| count.to_string()));
        for metric in METRICS {
            match metric.value(case, record) {
                Some(value) => row.extend([value.value, value.low, value.high].map(|end| number(Some(end)))),
                None => row.extend(std::iter::repeat_n(String::new(), 3)),
            }
        }
        row
    });
    write(&header, rows)
}

fn of_gate(report: &GateReport) -> String {
    let mut header = case_columns();
    let own = "base_disposition head_disposition verdict reason metric base head ratio ratio_low ratio_high confidence \
               p_value mde metric_verdict metric_reason";
    header.extend(own.split(' ').map(str::to_owned));
    let mut rows = Vec::new();
    for case in &report.comparison.cases {
        let word = |disposition: Option<Disposition>| disposition.map_or(String::new(), |was| was.name().to_owned());
        let mut start = case_fields(&case.key);
        start.extend([word(case.base), word(case.head), case.verdict.name().to_owned(), shown(&case.reason)]);
        for metric in &case.metrics {
            let finding = &metric.finding;
            let ratio = finding.ratio.map_or([None; 4], |r| [r.value, r.low, r.high, r.confidence].map(Some));
            let mut row = start.clone();
            row.extend([shown(&metric.metric), number(metric.base), number(metric.head)]);
            row.extend(ratio.map(number));
            row.extend([number(finding.p_value), number(finding.mde)]);
            row.extend([finding.verdict.name().to_owned(), shown(&finding.reason)]);
            rows.push(row);
        }
        if case.metrics.is_empty() {
            start.resize(header.len(), String::new());
            rows.push(start);
        }
    }
    write(&header, rows.into_iter())
}

fn write(header: &[String], rows: impl Iterator<Item = Vec<String>>) -> String {
    let in_memory = "writing to memory does not fail, and rows are as long as the header";
    let mut writer = ::csv::Writer::from_writer(Vec::new());
    writer.write_record(header).expect(in_memory);
    rows.for_each(|row| writer.write_record(row).expect(in_memory));
    String::from_utf8(writer.into_inner().expect(in_memory)).expect("fields are text")
}

/// A number that is one; nothing for infinities, which spreadsheets do not know.
fn number(value: Option<f64>) -> String {
    value.filter(|value| value.is_finite()).map(|value| value.to_string()).unwrap_or_default()
}

/// A text that no spreadsheet runs.
fn shown(text: &str) -> String {
    let quote = if text.starts_with(['=', '+', '-', '@', '\t', '\r']) { "'" } else { "" };
    format!("{quote}{text}")
}
