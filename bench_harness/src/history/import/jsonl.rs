//! An object a line, as scripts around flash-attention write them: some fields are results, the others say of what.

use serde_json::Value;

use super::{Context, ImportError, better_of, json, number, point, run, text, time};
use crate::history::point::Run;

/// Parts of names of fields that are results.
const RESULTS: [&str; 12] = [
    "tflops",
    "gflops",
    "flops",
    "latency",
    "time",
    "speed",
    "throughput",
    "bandwidth",
    "gbps",
    "gb/s",
    "memory",
    "elapsed",
];
/// Ends of names of fields that are results.
const UNITS: [&str; 7] = ["_ms", "_us", "_ns", "_s", "_bytes", "_mb", "_gb"];
/// Fields that say when.
const TIMES: [&str; 4] = ["timestamp", "date", "time", "datetime"];
/// Fields that say what of.
const COMMITS: [&str; 5] = ["commit", "commit_hash", "sha", "git_commit", "git_sha"];
/// Fields that say where.
const MACHINES: [&str; 4] = ["gpu", "gpu_name", "device", "device_name"];

pub(super) fn read(bytes: &[u8], context: &Context) -> Result<Vec<Run>, ImportError> {
    let mut runs = Vec::new();
    for (number, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let place = || format!("line {}: ", number + 1);
        let object = json(line, place)?;
        if !object.is_object() {
            return Err(ImportError::Shape(format!("{}this is no object", place())));
        }
        if let Some(run) =
            of_line(&object, context).map_err(|error| ImportError::Shape(format!("{}{error}", place())))?
        {
            runs.push(run);
        }
    }
    Ok(runs)
}

fn is_result(name: &str) -> bool {
    let name = name.to_lowercase();
    name == "ms" || RESULTS.iter().any(|part| name.contains(part)) || UNITS.iter().any(|end| name.ends_with(end))
}

/// `None` for a line without results, such as a header of the environment.
fn of_line(object: &Value, context: &Context) -> Result<Option<Run>, ImportError> {
    let Some(fields) = object.as_object() else { return Ok(None) };
    let first = |names: &[&str]| names.iter().find_map(|name| text(object, name));
    let when = TIMES.iter().find_map(|name| match object.get(*name)? {
        Value::String(text) => Some(text.clone()),
        // Seconds since 1970; a `time` that is a small number is a result.
        Value::Number(seconds) => seconds.as_f64().filter(|s| *s > 1e9).and_then(|s| super::time_of_ms(s * 1e3)),
        _ => None,
    });
    let is_about_run = |name: &str| [&TIMES[..], &COMMITS[..], &MACHINES[..]].iter().any(|names| names.contains(&name));
    let mut results = Vec::new();
    let mut parts = Vec::new();
    for (name, value) in fields {
        match (value, number(value)) {
            (Value::Number(_), Some(result))
                if is_result(name) && !(name == "timestamp" || result > 1e9 && name == "time") =>
            {
                results.push((name, result));
            }
            (Value::String(_) | Value::Number(_) | Value::Bool(_), _) if !is_about_run(name) => {
                parts.push(format!("{name}={}", value.as_str().map_or(value.to_string(), str::to_owned)));
            }
            _ => {}
        }
    }
    if results.is_empty() {
        return Ok(None);
    }
    let machine = first(&MACHINES).unwrap_or_else(|| context.machine.clone());
    // The order of fields in a line means nothing.
    parts.sort();
    let case = parts.join(",");
    let points = results
        .into_iter()
        .map(|(name, value)| point(&context.suite, &case, name, &machine, better_of(name), value))
        .collect();
    let when = when.map_or_else(|| time(context), Ok)?;
    Ok(Some(run(when, first(&COMMITS).or_else(|| context.commit.clone()), None, points)))
}
