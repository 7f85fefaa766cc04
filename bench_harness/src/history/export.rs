//! A history for other tools, one function a format.

use serde_json::{Map, Value, json};

use super::parquet::parquet;
use super::point::SeriesKey;
use crate::metric::Better;
use crate::store::history::{SeriesSummary, StoredPoint};

/// A format that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A row a point, with a header
    Csv,
    /// The same columns as a Parquet file, a row group a series
    Parquet,
    /// Bencher Metric Format: the latest value of each series, for `bencher run --adapter json`
    Bencher,
    /// The latest value of each series as github-action-benchmark's custom JSON, of values that should be small
    GithubActionSmaller,
    /// The same of values that should be large
    GithubActionBigger,
}

/// A series with its points, in the order of time.
pub type WithPoints = (SeriesSummary, Vec<StoredPoint>);

/// The bytes of a file of series in a format.
pub fn file(format: Format, series: &[WithPoints]) -> Vec<u8> {
    match format {
        Format::Csv => csv(series),
        Format::Parquet => parquet(series),
        Format::Bencher => bencher_text(series).into_bytes(),
        Format::GithubActionSmaller => pretty(&github_action(series, Better::Lower)).into_bytes(),
        Format::GithubActionBigger => pretty(&github_action(series, Better::Higher)).into_bytes(),
    }
}

/// Series in Bencher Metric Format.
pub fn bencher_text(series: &[WithPoints]) -> String {
    pretty(&bencher(series))
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).expect("values serialise") + "\n"
}

/// `lower`, `higher` or `none`.
pub(super) fn direction(better: Better) -> &'static str {
    match better {
        Better::Lower => "lower",
        Better::Higher => "higher",
        Better::None => "none",
    }
}

fn csv(series: &[WithPoints]) -> Vec<u8> {
    let mut writer = ::csv::Writer::from_writer(Vec::new());
    let in_memory = "writing to memory does not fail";
    let header = ["suite", "case", "metric", "machine", "better", "time", "commit", "run", "value", "low", "high"];
    writer.write_record(header).expect(in_memory);
    for (summary, points) in series {
        let SeriesKey { suite, case, metric, machine } = &summary.key;
        let better = direction(summary.better);
        for point in points {
            let number = |value: Option<f64>| value.map(|value| value.to_string()).unwrap_or_default();
            let (commit, value) = (point.commit.clone().unwrap_or_default(), point.value.to_string());
            let (low, high) = (number(point.low), number(point.high));
            let row: [&str; 11] =
                [suite, case, metric, machine, better, &point.time, &commit, &point.run, &value, &low, &high];
            writer.write_record(row).expect(in_memory);
        }
    }
    writer.into_inner().expect(in_memory)
}

/// `{benchmark: {measure: {value, lower_value, upper_value}}}`; machines are told apart in the benchmark's name where
/// there are several.
fn bencher(series: &[WithPoints]) -> Value {
    let mut benchmarks = Map::new();
    for (summary, points) in series {
        let Some(last) = points.last() else { continue };
        let mut metric = Map::from_iter([("value".to_owned(), json!(last.value))]);
        for (name, end) in [("lower_value", last.low), ("upper_value", last.high)] {
            if let Some(end) = end {
                metric.insert(name.to_owned(), json!(end));
            }
        }
        let measures = benchmarks.entry(name(summary, series)).or_insert_with(|| json!({}));
        measures[summary.key.metric.as_str()] = Value::Object(metric);
    }
    Value::Object(benchmarks)
}

fn github_action(series: &[WithPoints], better: Better) -> Value {
    let of_direction = series.iter().filter(|(summary, _)| summary.better == better);
    let entries = of_direction.filter_map(|(summary, points)| {
        let last = points.last()?;
        let mut entry = json!({
            "name": format!("{} {}", name(summary, series), summary.key.metric),
            "unit": summary.key.metric,
            "value": last.value,
        });
        if let (Some(low), Some(high)) = (last.low, last.high) {
            entry["range"] = json!(format!("± {}", 0.5 * (high - low)));
        }
        Some(entry)
    });
    Value::Array(entries.collect())
}

/// Case, and what else tells the series apart.
fn name(summary: &SeriesSummary, series: &[WithPoints]) -> String {
    let key = &summary.key;
    let differ = |field: fn(&SeriesKey) -> &String| series.iter().any(|(other, _)| field(&other.key) != field(key));
    let mut name = key.case.clone();
    if differ(|key| &key.suite) {
        name = format!("{}: {name}", key.suite);
    }
    if differ(|key| &key.machine) {
        name = format!("{name} on {}", key.machine);
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series() -> Vec<WithPoints> {
        let key = |metric: &str| SeriesKey {
            suite: "ci".into(),
            case: "cpu/flash, cold".into(),
            metric: metric.into(),
            machine: "abc".into(),
        };
        let point = |run: &str, value: f64| StoredPoint {
            run: run.into(),
            time: "2026-01-01T00:00:00Z".into(),
            commit: Some("0123".into()),
            value,
            low: Some(value - 0.5),
            high: Some(value + 0.5),
        };
        let summary = |metric: &str, better| SeriesSummary { key: key(metric), better, points: 2 };
        vec![
            (summary("latency_ns_median", Better::Lower), vec![point("a", 10.0), point("b", 11.5)]),
            (summary("flop_per_s", Better::Higher), vec![point("a", 3e9)]),
        ]
    }

    #[test]
    fn every_format() {
        let formats = [Format::Csv, Format::Bencher, Format::GithubActionSmaller, Format::GithubActionBigger];
        let texts: Vec<String> = formats
            .iter()
            .map(|&format| format!("== {format:?}\n{}", String::from_utf8(file(format, &series())).unwrap()))
            .collect();
        insta::assert_snapshot!(texts.join("\n"));
    }
}
