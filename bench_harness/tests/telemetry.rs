//! GPUs that are throttled, forbid questions or vanish, replayed from traces through the code that watches real ones.

mod support;

use std::path::{Path, PathBuf};

use serde_json::Value;
use support::{attnbench, case, dishonest_provider, record, small_suite};

const QUICK: &str = "rounds = 1\nmin_samples = 4\nmax_samples = 8\nbudget_ms = 20\ntimeout_s = 30";
const GPU: &str = "GPU-00000000-0000-0000-0000-000000000000";

fn trace(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/nvml").join(name)
}

/// The record of a run of these kernels on a worker that says it uses the GPU, with this trace or with what is there.
fn run(folder: &Path, kernels: &[&str], name: Option<&str>, more: &[&str], code: i32) -> Value {
    let suite = small_suite(folder, "test", kernels, QUICK);
    let out = folder.join("record.json");
    let mut command = attnbench();
    command.args(["run", "--provider", &dishonest_provider(&format!("--gpu-uuid {GPU}"))]).args(more);
    if let Some(name) = name {
        command.arg("--nvml-trace").arg(trace(name));
    }
    command.args(["--out".as_ref(), out.as_os_str(), suite.as_os_str()]).assert().code(code);
    record(&out)
}

/// The metrics that `show` prints of a record's only case.
fn metrics(folder: &Path) -> Value {
    let output = attnbench().args(["show", "--json"]).arg(folder.join("record.json")).output().expect("it runs");
    let shown: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    shown["cases"][0]["metrics"].clone()
}

fn telemetry(case: &Value) -> &Value {
    &case["rounds"][0]["telemetry"]
}

fn samples(case: &Value) -> usize {
    case["rounds"][0]["device_ns"].as_array().map_or(0, Vec::len)
}

#[test]
fn a_fast_kernel_at_its_power_cap_is_measured_and_the_record_shows_it() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let record = run(folder.path(), &["honest"], Some("power_capped.jsonl"), &["--energy"], 0);
    let case = case(&record, "honest");
    assert_eq!(case["disposition"], "measured", "{case:#}");
    let seen = telemetry(case);
    assert!(seen["source"].as_str().is_some_and(|source| source.contains("recorded trace")), "{seen:#}");
    assert_eq!((&seen["gpu_uuid"], &seen["idle_power_w"]), (&GPU.into(), &76.5.into()));
    assert!(seen["hot_loop"]["calls"].as_u64().is_some_and(|calls| calls >= 2), "{seen:#}");
    // Warm-up and at least two batches, each with a beginning and an end.
    let intervals = seen["intervals"].as_array().expect("a list");
    assert!(intervals.len() >= 3);
    assert!(intervals.iter().all(|interval| interval["readings"].as_array().map(Vec::len) == Some(2)), "{seen:#}");
    let metrics = metrics(folder.path());
    assert_eq!(metrics["throttled_percent"]["value"], 0.0);
    assert!(metrics["power_capped_percent"]["value"].as_f64().is_some_and(|percent| percent > 0.0), "{metrics:#}");
    assert!(metrics["sm_clock_mhz"]["value"].as_f64().is_some_and(|mhz| (1755.0..=1980.0).contains(&mhz)));
}

#[test]
fn a_gpu_that_stays_hot_gives_no_latency_and_is_no_regression() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let record = run(folder.path(), &["honest"], Some("throttled.jsonl"), &[], 0);
    let case = case(&record, "honest");
    assert_eq!(case["disposition"], "throttled", "{case:#}");
    let reason = case["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("hardware_thermal_slowdown"), "{reason}");
    assert_eq!(samples(case), 0, "a throttled case has no latency");
    let thrown = telemetry(case)["throttled_device_ns"].as_array().map_or(0, Vec::len);
    assert!(thrown >= 3, "but what was measured is kept: {case:#}");
}

#[test]
fn batches_of_a_throttled_gpu_are_repeated() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let record = run(folder.path(), &["honest"], Some("recovers.jsonl"), &[], 0);
    let case = case(&record, "honest");
    assert_eq!(case["disposition"], "measured", "{case:#}");
    let seen = telemetry(case);
    let throttled: Vec<&Value> = seen["intervals"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|interval| &interval["throttled_by"])
        .filter(|reasons| !reasons.is_null())
        .collect();
    assert_eq!(throttled.len(), 2, "{seen:#}");
    assert_eq!(throttled[0], &serde_json::json!(["hardware_slowdown", "hardware_power_brake"]));
    assert_eq!(throttled[1], &serde_json::json!(["heat or power brake between two readings"]));
    let kept = case["rounds"][0]["device_ns"].as_array().expect("a list");
    let thrown = seen["throttled_device_ns"].as_array().expect("a list");
    assert!(!kept.is_empty() && !thrown.is_empty());
    assert!(thrown.iter().all(|sample| !kept.contains(sample)), "no sample of a throttled batch counts");
}

#[test]
fn what_is_refused_is_missing_and_said() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let record = run(folder.path(), &["honest"], Some("refuses.jsonl"), &[], 0);
    let case = case(&record, "honest");
    assert_eq!(case["disposition"], "measured", "{case:#}");
    let missing = &telemetry(case)["missing"];
    for (query, why) in [
        ("energy_millijoules", "no permission"),
        ("throttle_reasons", "no permission"),
        ("slowdown_ns", "not supported"),
        ("process_memory_bytes", "lists no process"),
    ] {
        assert!(missing[query].as_str().is_some_and(|said| said.contains(why)), "{query}: {missing:#}");
    }
    let metrics = metrics(folder.path());
    assert!(metrics["latency_ns_median"]["value"].as_f64().is_some_and(|ns| ns > 0.0));
    assert_eq!(metrics["sm_clock_mhz"]["value"], 1410.0);
    for absent in ["energy_per_call_j", "power_capped_percent", "process_memory_peak_bytes"] {
        assert!(metrics.get(absent).is_none(), "{absent}: what was refused is no 0: {metrics:#}");
    }
}

#[test]
fn a_gpu_that_falls_off_the_bus_ends_its_case_and_skips_the_rest() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let record = run(folder.path(), &["honest", "slowed", "spins"], Some("lost.jsonl"), &[], 5);
    let cases = record["cases"].as_array().expect("a list");
    let of =
        |disposition: &str| -> Vec<&Value> { cases.iter().filter(|case| case["disposition"] == disposition).collect() };
    let ([crashed], skipped) = (&of("crashed")[..], of("skipped")) else { panic!("{cases:#?}") };
    assert!(crashed["reason"].as_str().is_some_and(|reason| reason.contains("the GPU is lost")), "{crashed:#}");
    assert_eq!((samples(crashed), skipped.len()), (0, 2));
    for case in skipped {
        assert!(case["reason"].as_str().is_some_and(|reason| reason.contains("device unhealthy")), "{case:#}");
    }
}

#[test]
fn without_nvml_everything_else_works_and_the_record_says_why() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let record = run(folder.path(), &["honest"], None, &["--energy"], 0);
    let case = case(&record, "honest");
    assert_eq!((&case["disposition"], samples(case) >= 4), (&"measured".into(), true), "{case:#}");
    let why = telemetry(case)["missing"]["everything"].as_str().unwrap_or_default();
    // The one on a machine without a driver, the other where there is one, which knows no such GPU.
    assert!(why.contains("libnvidia-ml") || why.contains(GPU), "{why}");
}

#[test]
fn a_bad_trace_is_refused_before_anything_is_measured() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let suite = small_suite(folder.path(), "cpu", &["flash"], QUICK);
    let bad = folder.path().join("bad.jsonl");
    std::fs::write(&bad, "{\"line\":\"gpu\"}\n").expect("writable");
    for (path, expected) in [(bad, "line 1: the first line is not the header"), ("/no.jsonl".into(), "no.jsonl")] {
        let run =
            attnbench().args(["run", "--nvml-trace"]).args([path.as_os_str(), suite.as_os_str()]).assert().code(2);
        let said = String::from_utf8_lossy(&run.get_output().stderr).into_owned();
        assert!(said.contains("reading GPU trace") && said.contains(expected), "{said}");
    }
}

/// A trace of a GPU that is there, or the reason why there is none.
#[test]
fn recording_needs_a_gpu_and_says_so() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = folder.path().join("trace.jsonl");
    let run = attnbench().args(["devices", "--seconds", "1", "--record-trace"]).arg(&out).output().expect("it runs");
    if run.status.success() {
        assert!(std::fs::read_to_string(&out).expect("written").lines().count() >= 3);
    } else {
        let said = String::from_utf8_lossy(&run.stderr).into_owned();
        assert!(said.contains("recording the GPU trace") && said.contains("NVML"), "{said}");
        assert!(!out.exists());
    }
}

/// Every committed trace is what the published schema says.
#[test]
fn committed_traces_follow_the_schema() {
    let schema: Value = serde_json::from_str(include_str!("../schema/nvml_trace.schema.json")).expect("JSON");
    let validator = jsonschema::validator_for(&schema).expect("a schema");
    let mut lines = 0;
    for entry in std::fs::read_dir(trace("")).expect("readable") {
        let path = entry.expect("readable").path();
        if path.extension().is_some_and(|extension| extension == "jsonl") {
            for line in std::fs::read_to_string(&path).expect("text").lines() {
                let value: Value = serde_json::from_str(line).expect("JSON");
                validator.validate(&value).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                lines += 1;
            }
        }
    }
    assert!(lines > 50);
    assert!(!validator.is_valid(&serde_json::json!({"line": "reading", "gpu": 0, "sm_clock_mhz": "fast"})));
}
