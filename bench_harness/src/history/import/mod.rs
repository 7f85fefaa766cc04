//! Results of other tools as runs of a history, one file a format.
//!
//! Imports are idempotent: a run's id is a hash of what it says, so a file that grew is imported again and only its new
//! runs are added.

mod csv;
mod github_action;
mod google_benchmark;
mod jsonl;
mod nvbench;

use serde_json::Value;

use super::point::{Point, Run, SeriesKey};
use crate::metric::Better;

/// A format that is understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A header and a row a value: `time,value[,commit]`
    Csv,
    /// `data.js` of github-action-benchmark
    GithubAction,
    /// What `--json` of an NVBench program writes
    Nvbench,
    /// What `--benchmark_format=json` of a Google Benchmark program writes
    GoogleBenchmark,
    /// An object a line: what flash-attention's and similar scripts write
    Jsonl,
}

/// What a file does not say.
#[derive(Clone, Debug, PartialEq)]
pub struct Context {
    /// The suite of its series, where it names none.
    pub suite: String,
    /// The machine, where it names none.
    pub machine: String,
    /// The time of its results, where it has none.
    pub time: Option<String>,
    /// Their commit, where it has none.
    pub commit: Option<String>,
    /// The column of a CSV file.
    pub column: String,
    /// Which direction of that column is good.
    pub better: Better,
}

/// Why a file is not of its format.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// It is no such series.
    #[error(transparent)]
    Csv(#[from] super::csv::CsvError),
    /// It is no JSON.
    #[error("{place}not valid JSON: {cause}")]
    Json {
        /// Where, if the file has several texts.
        place: String,
        /// The parser's words.
        cause: serde_json::Error,
    },
    /// It lacks something.
    #[error("{0}")]
    Shape(String),
}

/// The runs of a file's bytes.
///
/// # Errors
/// [`ImportError`] says what is missing where.
pub fn read(format: Format, bytes: &[u8], context: &Context) -> Result<Vec<Run>, ImportError> {
    let runs = match format {
        Format::Csv => csv::read(bytes, context)?,
        Format::GithubAction => github_action::read(bytes, context)?,
        Format::Nvbench => nvbench::read(bytes, context)?,
        Format::GoogleBenchmark => google_benchmark::read(bytes, context)?,
        Format::Jsonl => jsonl::read(bytes, context)?,
    };
    if runs.iter().all(|run| run.points.is_empty()) {
        return Err(ImportError::Shape("there is no result in it".into()));
    }
    Ok(runs)
}

/// The format of a file, by its name and its first bytes.
pub fn guess(name: &str, bytes: &[u8]) -> Option<Format> {
    let start = String::from_utf8_lossy(&bytes[..bytes.len().min(4096)]);
    match name.rsplit_once('.').map(|(_, extension)| extension) {
        Some("csv") => Some(Format::Csv),
        Some("jsonl" | "ndjson") => Some(Format::Jsonl),
        Some("js") => Some(Format::GithubAction),
        _ if start.contains("window.BENCHMARK_DATA") => Some(Format::GithubAction),
        _ if start.contains("\"nvbench\"") || start.contains("NVBench") => Some(Format::Nvbench),
        _ if start.contains("\"context\"") => Some(Format::GoogleBenchmark),
        _ => None,
    }
}

/// A JSON text as a value.
fn json(bytes: &[u8], place: impl Fn() -> String) -> Result<Value, ImportError> {
    serde_json::from_slice(bytes).map_err(|cause| ImportError::Json { place: place(), cause })
}

/// The field of an object.
fn field<'a>(value: &'a Value, name: &str, place: &str) -> Result<&'a Value, ImportError> {
    value.get(name).ok_or_else(|| ImportError::Shape(format!("{place} has no field `{name}`")))
}

/// The list in the field of an object.
fn list<'a>(value: &'a Value, name: &str, place: &str) -> Result<&'a Vec<Value>, ImportError> {
    field(value, name, place)?
        .as_array()
        .ok_or_else(|| ImportError::Shape(format!("field `{name}` of {place} is no list")))
}

fn text(value: &Value, name: &str) -> Option<String> {
    value.get(name).and_then(Value::as_str).map(str::to_owned)
}

/// A number, also where it is written as text.
fn number(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value.as_str()?.trim().parse().ok()).filter(|number| number.is_finite())
}

/// Milliseconds since 1970 as RFC 3339.
fn time_of_ms(ms: f64) -> Option<String> {
    jiff::Timestamp::from_millisecond(ms as i64).ok().map(|time| format!("{time:.0}"))
}

/// Any RFC 3339 time in UTC, so that the order of texts is that of times; other texts as they are.
fn in_utc(time: String) -> String {
    time.parse::<jiff::Timestamp>().map_or(time, |time| time.to_string())
}

/// Which direction is good, by the unit or the name of a metric: rates have a slash and time last, or are called so.
fn better_of(metric: &str) -> Better {
    const RATES: [&str; 10] =
        ["flop", "bandwidth", "throughput", "ops/", "iter/", "/s", "per_s", "per_second", "bw", "speedup"];
    let metric = metric.to_lowercase();
    if RATES.iter().any(|rate| metric.contains(rate)) { Better::Higher } else { Better::Lower }
}

/// A run whose id says what it holds.
fn run(time: String, commit: Option<String>, committed_at: Option<String>, points: Vec<Point>) -> Run {
    let mut run = Run {
        id: String::new(),
        time: in_utc(time),
        commit,
        committed_at: committed_at.map(in_utc),
        branch: None,
        fingerprint: std::collections::BTreeMap::new(),
        points,
    };
    let hash = blake3::hash(&serde_json::to_vec(&run).expect("runs serialise"));
    run.id = format!("import-{}", &hash.to_hex()[..16]);
    run
}

/// A point without an interval.
fn point(suite: &str, case: &str, metric: &str, machine: &str, better: Better, value: f64) -> Point {
    let key = |text: &str| text.trim().to_owned();
    let series = SeriesKey { suite: key(suite), case: key(case), metric: key(metric), machine: key(machine) };
    Point { series, better, value, low: None, high: None }
}

/// The time that a context must have where the file has none.
fn time(context: &Context) -> Result<String, ImportError> {
    context.time.clone().ok_or_else(|| ImportError::Shape("it does not say when it was measured; add --time".into()))
}

#[cfg(test)]
mod tests;
