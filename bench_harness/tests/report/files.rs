//! Reports as files: what is written where, and the errors.

use std::path::Path;

use serde_json::{Value, json};

use crate::support;

/// A record with cases that were measured and cases that were not.
const RECORD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/record.json");

/// Runs attnbench in a folder and returns its exit code, stdout and stderr.
fn attnbench(folder: &Path, arguments: &[&str]) -> (i32, String, String) {
    let done =
        support::attnbench().args(arguments).current_dir(folder).env("COLUMNS", "100").output().expect("it runs");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (done.status.code().expect("no signal"), text(done.stdout), text(done.stderr))
}

/// The record as another run, of whatever device the change makes of it.
fn another(folder: &Path, name: &str, change: impl Fn(&mut Value)) {
    let mut record = support::record(Path::new(RECORD));
    record["run"]["id"] = json!(name);
    change(&mut record);
    std::fs::write(folder.join(name), record.to_string()).expect("written");
}

#[test]
fn every_format_of_a_run_and_of_a_judgement() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    another(folder, "head.json", |_| {});
    let gate = ["gate", "head.json", "--baseline", RECORD, "--json", "--report", "junit=out/gate.xml", "--report"];
    let (code, gated, stderr) = attnbench(folder, &[&gate[..], &["markdown=comment.md"]].concat());
    // One session cannot decide, and one case fails on both sides.
    assert_eq!(code, 5, "{stderr}");
    let xml = std::fs::read_to_string(folder.join("out/gate.xml")).expect("written");
    assert!(xml.contains(r#"<testcase classname="attnbench" name="judgement""#), "{xml}");
    let comment = std::fs::read_to_string(folder.join("comment.md")).expect("written");
    assert!(comment.starts_with("### ❌ attnbench: cases failed to run\n"), "{comment}");
    std::fs::write(folder.join("gate.json"), &gated).expect("written");

    for (format, of_run, of_gate) in [
        ("markdown", "### ❌ attnbench: 3 of 6 cases of `quickstart` measured", "### ❌ attnbench: cases failed"),
        ("annotations", "::error title=cpu/flash1/", "::error title=attnbench::judged "),
        ("junit", "<testsuite name=\"attnbench quickstart\" tests=\"6\"", "name=\"judgement\""),
        ("sarif", "\"version\": \"2.1.0\"", "\"version\": \"2.1.0\""),
        ("csv", "case_id,provider,kernel,", "metric_verdict,metric_reason"),
        ("json", "\"timed_rounds\": 2", "\"headline\": \"judged "),
        ("openmetrics", "# EOF", "attnbench_gate_exit_code{suite=\"quickstart\"} 5"),
        ("bencher", "\"latency_ns_median\"", "\"latency_ns_median\""),
    ] {
        for (input, expected) in [(RECORD, of_run), ("gate.json", of_gate)] {
            let (code, stdout, stderr) = attnbench(folder, &["report", format, input]);
            assert_eq!(code, 0, "{format} {input}: {stderr}");
            assert!(stdout.contains(expected), "{format} {input}: {stdout}");
            let (code, _, stderr) = attnbench(folder, &["report", format, input, "--out", "new/folder/file"]);
            assert_eq!(code, 0, "{stderr}");
            let written = std::fs::read_to_string(folder.join("new/folder/file")).expect("written");
            assert_eq!(written.trim_end(), stdout.trim_end(), "{format} {input}");
        }
    }
    // A base makes a judgement of records, too.
    let (code, stdout, _) = attnbench(folder, &["report", "markdown", "head.json", "--base", RECORD]);
    assert!(code == 0 && stdout.starts_with("### ❌ attnbench: cases failed to run\n"), "{stdout}");
    // What it says is to be repeated is what the gate was told.
    assert!(comment.contains("attnbench compare base.json head.json"), "{comment}");
}

#[test]
fn errors_name_the_way_out_and_nothing_is_written_over() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    std::fs::create_dir(folder.join("mine")).expect("made");
    std::fs::write(folder.join("mine/thesis.txt"), "precious").expect("written");
    std::fs::write(folder.join("cut.json"), "{\"headline\": \"judged").expect("written");
    for (arguments, expected) in [
        (vec!["report", "poem", RECORD], "invalid value 'poem'"),
        (vec!["report", "csv", "no.json"], "reading record `no.json`: there is no such file"),
        (vec!["report", "csv", "cut.json"], "this is not what `attnbench gate --json` prints"),
        (vec!["report", "csv", RECORD, RECORD], "a report of 2 files: `csv` takes one; --base judges several"),
        (vec!["report", "csv", RECORD, "--store", "h.db"], "--store and --price are for `html`"),
        (vec!["report", "csv", RECORD, "--out", "mine"], "this is a directory; name a file in it"),
        (vec!["report", "html", RECORD, "--out", "mine"], "the folder has other files and no report"),
        (vec!["report", "html", RECORD, "--store", "no.db"], "opening history `no.db`: there is no such file"),
        (vec!["report", "html", RECORD, "--price", "x=1"], "--price needs one record each of several devices"),
        (vec!["gate", RECORD, "--baseline", RECORD, "--report", "html=x"], "`attnbench report html` makes pages"),
        (vec!["gate", RECORD, "--baseline", RECORD, "--report", "junit"], "expected FORMAT=FILE"),
        (vec!["compare", "--by", "device", RECORD, RECORD], "are of one device; `attnbench compare` without --by"),
        (vec!["compare", RECORD, RECORD, RECORD], "--by <WHAT>"),
        (vec!["compare", "--by", "device", RECORD, RECORD, "--price", "x=-1"], "no positive number of US dollars"),
    ] {
        let (code, _, stderr) = attnbench(folder, &arguments);
        assert_eq!(code, 2, "{arguments:?}: {stderr}");
        assert!(stderr.contains(expected), "{arguments:?}: {stderr}");
    }
    assert_eq!(std::fs::read_to_string(folder.join("mine/thesis.txt")).expect("there"), "precious");
    assert_eq!(std::fs::read_dir(folder).expect("readable").count(), 2, "nothing was written");
}

#[test]
fn pages_are_written_anew_and_old_rounds_go() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    another(folder, "head.json", |_| {});
    let write = |inputs: &[&str]| {
        let (code, stdout, stderr) = attnbench(folder, &[&["report", "html"], inputs].concat());
        assert_eq!(code, 0, "{stderr}");
        assert_eq!(stdout, "report: report/index.html\n");
    };
    write(&[RECORD]);
    assert!(!folder.join("report/comparison.html").exists());
    std::fs::write(folder.join("report/rounds/99.js"), "of more cases").expect("written");
    write(&["head.json", "--base", RECORD]);
    assert!(folder.join("report/comparison.html").exists() && !folder.join("report/rounds/99.js").exists());
    let has_both = || {
        let data = std::fs::read_to_string(folder.join("report/data.js")).expect("written");
        data.contains(r#"\"role\":\"base\""#) && data.contains(r#"\"role\":\"head\""#)
    };
    assert!(has_both());
    // What a gate wrote beside its report comes with it.
    let (_, gated, _) = attnbench(folder, &["gate", "head.json", "--baseline", RECORD, "--json"]);
    std::fs::write(folder.join("gate.json"), gated).expect("written");
    std::fs::copy(RECORD, folder.join("gate.base.json")).expect("copied");
    std::fs::copy(folder.join("head.json"), folder.join("gate.head.json")).expect("copied");
    write(&["gate.json"]);
    assert!(has_both());
}

#[test]
fn devices_beside_each_other() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    for (name, model) in [("a.json", "First GPU"), ("b.json", "Second GPU")] {
        another(folder, name, |record| {
            record["fingerprint"]["gpu_model"] = json!(model);
            let cases = record["cases"].as_array_mut().expect("cases");
            for ns in
                cases.iter_mut().flat_map(|case| case["rounds"].as_array_mut().expect("rounds")).flat_map(|round| {
                    let faster = if model.starts_with("Second") { 0.5 } else { 1.0 };
                    round["device_ns"].as_array_mut().expect("times").iter_mut().map(move |ns| (ns, faster))
                })
            {
                *ns.0 = json!(ns.1 * ns.0.as_f64().expect("a time"));
            }
        });
    }
    let by_device =
        ["compare", "--by", "device", "a.json", "b.json", "--price", "first-gpu=2", "--price", "second-gpu=3"];
    let (code, text, stderr) = attnbench(folder, &by_device);
    assert_eq!(code, 0, "{stderr}");
    assert!(text.contains("speed, geometric means beside first-gpu") && text.contains("2.00x"), "{text}");
    assert!(text.contains("3 cases that not every device measured"), "{text}");
    let (_, json, _) = attnbench(folder, &[&by_device[..], &["--json"]].concat());
    let compared: Value = serde_json::from_str(&json).expect("JSON");
    let second = &compared["families"][0]["relative"][1];
    // Twice as fast for half as much again.
    assert!((second["speed"].as_f64().expect("a mean") - 2.0).abs() < 1e-6, "{second}");
    assert!((second["per_dollar"].as_f64().expect("a mean") - 2.0 / 1.5).abs() < 1e-6, "{second}");
    assert_eq!(compared["missing"].as_array().map(Vec::len), Some(3));
}
