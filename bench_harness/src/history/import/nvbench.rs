//! NVBench: states of benchmarks, each with summaries that carry tagged values.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Context, ImportError, better_of, json, list, number, point, run, text, time};
use crate::history::point::{Point, Run};
use crate::metric::Better;

/// Summaries that are kept, and what they are called here: seconds are made nanoseconds.
const SUMMARIES: [(&str, &str, f64); 4] = [
    ("nv/cold/time/gpu/mean", "gpu_time_ns_mean", 1e9),
    ("nv/cold/time/cpu/mean", "cpu_time_ns_mean", 1e9),
    ("nv/batch/time/gpu/mean", "batch_gpu_time_ns_mean", 1e9),
    ("nv/cold/bw/global/bytes_per_second", "bandwidth_bytes_per_s", 1.0),
];

pub(super) fn read(bytes: &[u8], context: &Context) -> Result<Vec<Run>, ImportError> {
    let data = json(bytes, String::new)?;
    let devices: BTreeMap<u64, String> = data
        .get("devices")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|device| Some((device.get("id")?.as_u64()?, text(device, "name")?)))
        .collect();
    let mut points = Vec::new();
    for benchmark in list(&data, "benchmarks", "the object")? {
        let name = text(benchmark, "name").ok_or_else(|| ImportError::Shape("a benchmark has no name".into()))?;
        for state in list(benchmark, "states", &format!("benchmark `{name}`"))? {
            let device = state.get("device").and_then(Value::as_u64).and_then(|id| devices.get(&id));
            let machine = device.unwrap_or(&context.machine);
            points.extend(of_state(&name, state, machine, context));
        }
    }
    Ok(vec![run(time(context)?, context.commit.clone(), None, points)])
}

fn of_state(benchmark: &str, state: &Value, machine: &str, context: &Context) -> Vec<Point> {
    if state.get("is_skipped").and_then(Value::as_bool) == Some(true) {
        return Vec::new();
    }
    let items = |name: &str| state.get(name).and_then(Value::as_array).into_iter().flatten();
    let axes: Vec<String> = items("axis_values")
        .filter_map(|axis| {
            let value = axis.get("value")?;
            Some(format!("{}={}", text(axis, "name")?, value.as_str().map_or(value.to_string(), str::to_owned)))
        })
        .collect();
    let case = [vec![benchmark.to_owned()], axes].concat().join("/");
    items("summaries")
        .filter_map(|summary| {
            let tag = text(summary, "tag").or_else(|| text(summary, "name"))?;
            let (_, metric, scale) = SUMMARIES.iter().find(|(known, _, _)| *known == tag)?;
            let value = summary.get("data")?.as_array()?.iter().find_map(|item| {
                (text(item, "name").as_deref() == Some("value")).then(|| number(item.get("value")?)).flatten()
            })?;
            let better = if *scale > 1.0 { Better::Lower } else { better_of(metric) };
            Some(point(&context.suite, &case, metric, machine, better, value * scale))
        })
        .collect()
}
