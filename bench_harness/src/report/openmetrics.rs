//! OpenMetrics 1.0 text: a gauge a metric, a sample a case, with its axes as labels.
//!
//! Intervals are gauges of their own, `..._low` and `..._high`. No sample has a time: it is when it was scraped or pushed.

use std::fmt::Write;

use super::Subject;
use super::axes::{AXES, axes};
use crate::case::CaseKey;
use crate::compare::{CaseComparison, MetricComparison};
use crate::gate::outcome::GateReport;
use crate::metric::METRICS;
use crate::record::Record;

/// A sample: what tells it from others, and its value.
type Sample = (String, f64);

/// The text of a subject.
pub fn text(subject: Subject<'_>) -> String {
    let mut out = String::new();
    match subject {
        Subject::Run(record) => of_run(&mut out, record),
        Subject::Gate(report) => of_gate(&mut out, report),
    }
    out.push_str("# EOF\n");
    out
}

fn of_run(out: &mut String, record: &Record) {
    let run = [("suite", record.run.suite.as_str()), ("device", record.device_model().unwrap_or_default())];
    for metric in METRICS {
        let values: Vec<(String, [f64; 3])> = record
            .cases
            .iter()
            .filter_map(|case| {
                let value = metric.value(case, record)?;
                Some((labels(&case.key, &run), [value.value, value.low, value.high]))
            })
            .collect();
        for (at, (end, what)) in [("", ""), ("_low", ", lower end"), ("_high", ", upper end")].into_iter().enumerate() {
            let samples = values.iter().map(|(labels, ends)| (labels.clone(), ends[at])).collect();
            let help = format!("{}{what}", help(metric.name(), metric.unit()));
            family(out, &format!("attnbench_{}{end}", metric.name()), &help, samples);
        }
    }
    let words = record.cases.iter().map(|case| {
        let labels = labels(&case.key, &[run[0], run[1], ("disposition", case.disposition.name())]);
        (labels, 1.0)
    });
    family(out, "attnbench_case", "What became of each case: 1 with its disposition.", words.collect());
}

fn of_gate(out: &mut String, report: &GateReport) {
    let suite = [("suite", report.comparison.head.suite.as_str())];
    let metrics: Vec<(&CaseComparison, &MetricComparison)> =
        report.comparison.cases.iter().flat_map(|case| case.metrics.iter().map(move |metric| (case, metric))).collect();
    type Value = fn(&MetricComparison) -> Option<f64>;
    let gauges: [(&str, &str, Value); 5] = [
        ("attnbench_ratio", "Head over base.", |metric| Some(metric.finding.ratio?.value)),
        ("attnbench_ratio_low", "Head over base, lower end.", |metric| Some(metric.finding.ratio?.low)),
        ("attnbench_ratio_high", "Head over base, upper end.", |metric| Some(metric.finding.ratio?.high)),
        ("attnbench_p_value", "One-sided p of a regression.", |metric| metric.finding.p_value),
        ("attnbench_mde_ratio", "Smallest slowdown that would have been found.", |metric| metric.finding.mde),
    ];
    for (name, help, value) in gauges {
        let samples = metrics.iter().filter_map(|(case, metric)| {
            let labels = labels(&case.key, &[suite[0], ("metric", &metric.metric)]);
            Some((labels, value(metric)?))
        });
        family(out, name, help, samples.collect());
    }
    let words = report.comparison.cases.iter().map(|case| {
        let labels = labels(&case.key, &[suite[0], ("verdict", case.verdict.name())]);
        (labels, 1.0)
    });
    family(out, "attnbench_case", "What was found of each case: 1 with its verdict.", words.collect());
    let one = |value: f64| vec![(format!("{{suite=\"{}\"}}", escaped(suite[0].1)), value)];
    family(out, "attnbench_gate_exit_code", "What the judgement came to.", one(f64::from(report.exit_code)));
}

fn help(name: &str, unit: &str) -> String {
    let unit = if unit.is_empty() { String::new() } else { format!(" in {unit}") };
    format!("{}{unit}", name.replace('_', " "))
}

/// A family of gauges; nothing where it has no sample.
fn family(out: &mut String, name: &str, help: &str, samples: Vec<Sample>) {
    if samples.is_empty() {
        return;
    }
    let mut line = |text: std::fmt::Arguments<'_>| out.write_fmt(text).expect("writing to memory does not fail");
    line(format_args!("# TYPE {name} gauge\n# HELP {name} {}\n", escaped(help)));
    for (labels, value) in samples {
        line(format_args!("{name}{labels} {}\n", number(value)));
    }
}

fn number(value: f64) -> String {
    match value {
        _ if value.is_nan() => "NaN".to_owned(),
        f64::INFINITY => "+Inf".to_owned(),
        f64::NEG_INFINITY => "-Inf".to_owned(),
        _ => value.to_string(),
    }
}

/// The labels of a case: its id and axes, mode and threads, and others.
fn labels(key: &CaseKey, others: &[(&str, &str)]) -> String {
    let values = axes(&key.case_id);
    let threads = key.threads.to_string();
    let own = [("case_id", key.case_id.as_str()), ("mode", key.mode.name()), ("threads", &threads)];
    let axes = AXES.iter().zip(values).map(|((name, _), value)| (*name, value));
    let pairs: Vec<String> = own
        .into_iter()
        .chain(axes)
        .chain(others.iter().copied())
        // An empty label is the same as none.
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| format!("{name}=\"{}\"", escaped(value)))
        .collect();
    format!("{{{}}}", pairs.join(","))
}

/// A text as the value of a label or as help: backslash, quote and line break are all that its grammar escapes.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
