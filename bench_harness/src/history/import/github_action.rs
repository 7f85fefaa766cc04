//! `data.js` of github-action-benchmark: a script that assigns one object to `window.BENCHMARK_DATA`.

use serde_json::Value;

use super::{Context, ImportError, better_of, field, json, list, number, point, run, text, time_of_ms};
use crate::history::point::{Point, Run};
use crate::metric::Better;

pub(super) fn read(bytes: &[u8], context: &Context) -> Result<Vec<Run>, ImportError> {
    let start = bytes.iter().position(|&byte| byte == b'{').unwrap_or(0);
    let end = bytes.iter().rposition(|&byte| byte == b'}').map_or(bytes.len(), |at| at + 1).max(start);
    let data = json(&bytes[start..end], String::new)?;
    let entries = field(&data, "entries", "the object")?;
    let suites = entries.as_object().ok_or_else(|| ImportError::Shape("field `entries` is no object".into()))?;
    let mut runs = Vec::new();
    for (suite, entries) in suites {
        let place = format!("suite `{suite}`");
        for entry in entries.as_array().ok_or_else(|| ImportError::Shape(format!("{place} is no list")))? {
            runs.push(one_run(suite, entry, &place, context)?);
        }
    }
    Ok(runs)
}

fn one_run(suite: &str, entry: &Value, place: &str, context: &Context) -> Result<Run, ImportError> {
    let commit = entry.get("commit");
    let time = entry.get("date").and_then(Value::as_f64).and_then(time_of_ms).or_else(|| context.time.clone());
    let time = time.ok_or_else(|| ImportError::Shape(format!("an entry of {place} has no `date`")))?;
    let tool = text(entry, "tool").unwrap_or_default();
    let points = list(entry, "benches", place)?.iter().filter_map(|bench| {
        let (name, unit) = (text(bench, "name")?, text(bench, "unit").unwrap_or_else(|| "value".into()));
        let value = number(bench.get("value")?)?;
        let better = match tool.as_str() {
            "customBiggerIsBetter" => Better::Higher,
            "customSmallerIsBetter" => Better::Lower,
            _ => better_of(&unit),
        };
        let mut point = point(suite, &name, &unit, &context.machine, better, value);
        // `range` is free text; of the usual form `± 3` or `+/- 3` it is an interval.
        let range = text(bench, "range").unwrap_or_default();
        let range = range.trim_start_matches(['±', '+', '/', '-', ' ']).replace(',', "");
        if let Ok(half) = range.parse::<f64>()
            && half.is_finite()
        {
            (point.low, point.high) = (Some(value - half), Some(value + half));
        }
        Some(point)
    });
    let points: Vec<Point> = points.collect();
    let of_commit = |name: &str| commit.and_then(|commit| text(commit, name));
    Ok(run(time, of_commit("id").or_else(|| context.commit.clone()), of_commit("timestamp"), points))
}
