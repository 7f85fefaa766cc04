//! Files as the tools write them, and files that are broken.

use super::*;

fn context() -> Context {
    Context {
        suite: "nightly".into(),
        machine: "box".into(),
        time: None,
        commit: None,
        column: "value".into(),
        better: Better::Lower,
    }
}

/// Every point in a line: run's time and commit, series, direction and value.
fn lines(format: Format, text: &str, context: &Context) -> Vec<String> {
    let runs = read(format, text.as_bytes(), context).unwrap_or_else(|error| panic!("{error}"));
    let again = read(format, text.as_bytes(), context).unwrap();
    assert_eq!(runs, again, "the same file has the same runs");
    let mut lines = Vec::new();
    for run in runs {
        for point in run.points {
            let key = point.series;
            let commit = run.commit.as_deref().unwrap_or("-");
            let direction = format!("{:?}", point.better).to_lowercase();
            let (suite, case, metric, machine) = (key.suite, key.case, key.metric, key.machine);
            let interval = point.low.zip(point.high).map(|(low, high)| format!(" {low}..{high}")).unwrap_or_default();
            let value = point.value;
            lines.push(format!(
                "{} {commit} {suite} | {case} | {metric} | {machine} {direction} {value}{interval}",
                run.time
            ));
        }
    }
    lines
}

#[test]
fn csv_with_and_without_times() {
    assert_eq!(
        lines(
            Format::Csv,
            "time,value,commit\n2026-01-02T03:04:05+01:00,1.5,abc\n2026-01-03T00:00:00Z,,d\n",
            &context()
        ),
        ["2026-01-02T02:04:05Z abc nightly | value | value | box lower 1.5"]
    );
    let without = lines(Format::Csv, "value\n1\n2\n", &context());
    assert!(without[0].starts_with("0000000000 ") && without[1].starts_with("0000000001 "), "{without:?}");
}

#[test]
fn github_action_benchmark() {
    let text = r#"window.BENCHMARK_DATA = {"lastUpdate": 1, "repoUrl": "x", "entries": {"Rust": [
        {"commit": {"id": "aaaa", "timestamp": "2026-01-01T10:00:00+02:00"}, "date": 1767261600000, "tool": "cargo",
         "benches": [{"name": "fwd", "value": 1200, "range": "± 1,000", "unit": "ns/iter"}]},
        {"commit": {"id": "bbbb"}, "date": 1767348000000, "tool": "customBiggerIsBetter",
         "benches": [{"name": "rate", "value": 5.5, "unit": "TFLOP"}]}]}};"#;
    assert_eq!(
        lines(Format::GithubAction, text, &context()),
        [
            "2026-01-01T10:00:00Z aaaa Rust | fwd | ns/iter | box lower 1200 200..2200",
            "2026-01-02T10:00:00Z bbbb Rust | rate | TFLOP | box higher 5.5",
        ]
    );
}

#[test]
fn google_benchmark() {
    let text = r#"{"context": {"date": "2026-01-01T00:00:00+00:00", "host_name": "h"}, "benchmarks": [
        {"name": "BM_a/8", "run_name": "BM_a/8", "run_type": "iteration", "real_time": 2.0, "time_unit": "us"},
        {"name": "BM_a/8", "run_name": "BM_a/8", "run_type": "iteration", "real_time": 4.0, "time_unit": "us"},
        {"name": "BM_b_median", "run_name": "BM_b", "run_type": "aggregate", "aggregate_name": "median", "real_time": 7.0, "time_unit": "ns"},
        {"name": "BM_b_mean", "run_name": "BM_b", "run_type": "aggregate", "aggregate_name": "mean", "real_time": 9.0, "time_unit": "ns"},
        {"name": "BM_c", "run_type": "iteration", "error_occurred": true, "real_time": 0.0, "time_unit": "ns"}]}"#;
    assert_eq!(
        lines(Format::GoogleBenchmark, text, &context()),
        [
            "2026-01-01T00:00:00Z - nightly | BM_a/8 | real_time_ns | h lower 3000",
            "2026-01-01T00:00:00Z - nightly | BM_b | real_time_ns | h lower 7",
        ]
    );
}

#[test]
fn nvbench() {
    let text = r#"{"meta": {}, "devices": [{"id": 0, "name": "H200"}], "benchmarks": [{"name": "copy", "states": [
        {"name": "a", "device": 0, "axis_values": [{"name": "T", "type": "string", "value": "F32"}, {"name": "N", "type": "int64", "value": "256"}],
         "summaries": [
            {"tag": "nv/cold/time/gpu/mean", "data": [{"name": "value", "type": "float64", "value": "1.25e-5"}]},
            {"tag": "nv/cold/time/gpu/stdev/relative", "data": [{"name": "value", "type": "float64", "value": "0.1"}]},
            {"tag": "nv/cold/bw/global/bytes_per_second", "data": [{"name": "value", "type": "float64", "value": "2e12"}]}],
         "is_skipped": false},
        {"name": "b", "device": 0, "axis_values": [], "summaries": null, "is_skipped": true}]}]}"#;
    let error = read(Format::Nvbench, text.as_bytes(), &context()).unwrap_err().to_string();
    assert_eq!(error, "it does not say when it was measured; add --time");
    let context = Context { time: Some("2026-01-01T00:00:00Z".into()), commit: Some("abc".into()), ..context() };
    assert_eq!(
        lines(Format::Nvbench, text, &context),
        [
            "2026-01-01T00:00:00Z abc nightly | copy/T=F32/N=256 | gpu_time_ns_mean | H200 lower 12500",
            "2026-01-01T00:00:00Z abc nightly | copy/T=F32/N=256 | bandwidth_bytes_per_s | H200 higher 2000000000000",
        ]
    );
}

#[test]
fn an_object_a_line() {
    let text = r#"
{"event": "start", "gpu": "H200"}
{"timestamp": "2026-01-01T00:00:00Z", "commit": "abc", "gpu": "H200", "causal": true, "seqlen": 4096, "headdim": 128, "fwd_tflops": 600.5, "fwd_ms": 0.25}
"#;
    assert_eq!(
        lines(Format::Jsonl, text, &context()),
        [
            "2026-01-01T00:00:00Z abc nightly | causal=true,headdim=128,seqlen=4096 | fwd_ms | H200 lower 0.25",
            "2026-01-01T00:00:00Z abc nightly | causal=true,headdim=128,seqlen=4096 | fwd_tflops | H200 higher 600.5",
        ]
    );
}

#[test]
fn broken_files_say_what_is_wrong() {
    let error = |format, text: &str| read(format, text.as_bytes(), &context()).unwrap_err().to_string();
    assert!(error(Format::GithubAction, "{").starts_with("not valid JSON: "));
    assert_eq!(error(Format::GithubAction, "{}"), "the object has no field `entries`");
    assert_eq!(error(Format::GithubAction, r#"{"entries": {"a": [{}]}}"#), "an entry of suite `a` has no `date`");
    assert_eq!(error(Format::GithubAction, r#"{"entries": {}}"#), "there is no result in it");
    assert!(error(Format::Jsonl, "{}\nx").starts_with("line 2: not valid JSON: "));
    assert_eq!(error(Format::Jsonl, "[]"), "line 1: this is no object");
    assert_eq!(error(Format::Jsonl, r#"{"ms": 1}"#), "line 1: it does not say when it was measured; add --time");
    assert_eq!(error(Format::GoogleBenchmark, r#"{"context": {"date": "x"}}"#), "the object has no field `benchmarks`");
    assert!(error(Format::Csv, "a\n1\n").contains("no column `value`"));
}

#[test]
fn formats_are_guessed() {
    assert_eq!(guess("a.csv", b""), Some(Format::Csv));
    assert_eq!(guess("data.js", b""), Some(Format::GithubAction));
    assert_eq!(guess("a.jsonl", b""), Some(Format::Jsonl));
    assert_eq!(guess("a.json", br#"{"context": {"#), Some(Format::GoogleBenchmark));
    assert_eq!(
        guess("a.json", br#"{"meta": {"argv": [], "version": {"json": {}, "nvbench": {"#),
        Some(Format::Nvbench)
    );
    assert_eq!(guess("a.json", b"{}"), None);
}
