//! Google Benchmark: times of repetitions; the median aggregate where there is one, else the median of the repetitions.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Context, ImportError, json, list, number, point, run, text};
use crate::history::point::Run;
use crate::metric::Better;
use crate::stats::quantile::median;

pub(super) fn read(bytes: &[u8], context: &Context) -> Result<Vec<Run>, ImportError> {
    let data = json(bytes, String::new)?;
    let about = data.get("context");
    let of_context = |name: &str| about.and_then(|about| text(about, name));
    let time = of_context("date").or_else(|| context.time.clone());
    let time = time.map_or_else(|| super::time(context), Ok)?;
    let mut medians: BTreeMap<String, f64> = BTreeMap::new();
    let mut repetitions: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for benchmark in list(&data, "benchmarks", "the object")? {
        let name = text(benchmark, "run_name").or_else(|| text(benchmark, "name"));
        let Some((name, ns)) = name.zip(real_time_ns(benchmark)) else { continue };
        match (text(benchmark, "run_type").as_deref(), text(benchmark, "aggregate_name").as_deref()) {
            (Some("aggregate"), Some("median")) => _ = medians.insert(name, ns),
            (Some("aggregate"), _) => {}
            _ => repetitions.entry(name).or_default().push(ns),
        }
    }
    for (name, values) in repetitions {
        if let Some(value) = median(&values) {
            medians.entry(name).or_insert(value);
        }
    }
    let machine = of_context("host_name").unwrap_or_else(|| context.machine.clone());
    let points = medians
        .iter()
        .map(|(name, &ns)| point(&context.suite, name, "real_time_ns", &machine, Better::Lower, ns))
        .collect();
    Ok(vec![run(time, context.commit.clone(), None, points)])
}

/// The time of one iteration; `None` for what failed.
fn real_time_ns(benchmark: &Value) -> Option<f64> {
    if benchmark.get("error_occurred").and_then(Value::as_bool) == Some(true) {
        return None;
    }
    let scale = match text(benchmark, "time_unit").as_deref() {
        None | Some("ns") => 1.0,
        Some("us") => 1e3,
        Some("ms") => 1e6,
        Some("s") => 1e9,
        Some(_) => return None,
    };
    number(benchmark.get("real_time")?).map(|time| time * scale)
}
