//! The whole path of a gate: a run, its baseline, another run, an exit code.
//!
//! A busy machine may change any single comparison, so nothing is concluded from one. A slowdown must be found at some
//! size, each try far beyond the last; an unchanged kernel must pass in some try, where a bug would fail them all.

mod support;

use std::path::{Path, PathBuf};

use serde_json::Value;
use support::{attnbench, dishonest_provider, small_suite};

const MEASURE: &str = "rounds = 5\nmin_samples = 10\nmax_samples = 40\nbudget_ms = 60";

/// A run whose kernel `slowed` takes longer by this share.
fn measure(suite: &Path, slowdown: f64, name: &str) -> PathBuf {
    measure_with(suite, &format!("--slowdown {slowdown}"), name)
}

/// A run of the dishonest worker with these arguments.
fn measure_with(suite: &Path, arguments: &str, name: &str) -> PathBuf {
    let out = suite.with_file_name(format!("{name}.json"));
    attnbench()
        .args(["run", "--provider", &dishonest_provider(arguments), "--out"])
        .args([&out, suite])
        .assert()
        .success();
    out
}

/// The baseline of some records.
fn save(records: &[&Path], folder: &Path) -> PathBuf {
    let saved = attnbench()
        .args(["baseline", "save", "--replace", "--json", "--name", "here/small", "--baselines"])
        .arg(folder.join("baselines"))
        .args(records)
        .assert()
        .success();
    let saved: Value = serde_json::from_slice(&saved.get_output().stdout).expect("JSON");
    assert_eq!((saved["name"].as_str(), saved["sessions"].as_u64()), (Some("here/small"), Some(records.len() as u64)));
    PathBuf::from(saved["path"].as_str().expect("a path"))
}

/// The exit code and the report of a gate. Drift of a busy machine is taken off effects however large it is.
fn gate(head: &Path, baseline: &Path) -> (i32, Value) {
    let policy = baseline.with_file_name("policy.toml");
    std::fs::write(&policy, "max_drift = 1000.0\n").expect("written");
    let run = attnbench()
        .args(["gate", "--json", "--baseline"])
        .args([baseline, Path::new("--policy"), &policy, head])
        .output()
        .expect("the binary runs");
    let said = String::from_utf8_lossy(&run.stderr).into_owned();
    let report: Value = serde_json::from_slice(&run.stdout).unwrap_or_else(|_| panic!("no report: {said}"));
    assert_eq!(report["exit_code"].as_i64(), run.status.code().map(i64::from), "the code is the report's");
    (run.status.code().expect("no signal"), report)
}

/// The verdict of a kernel's case.
fn verdict<'a>(report: &'a Value, kernel: &str) -> &'a str {
    let cases = report["comparison"]["cases"].as_array().expect("a list");
    let is_it = |case: &&Value| case["case_id"].as_str().is_some_and(|id| id.split('/').nth(1) == Some(kernel));
    cases.iter().find(is_it).and_then(|case| case["verdict"].as_str()).expect("every case has a verdict")
}

#[test]
fn a_slowed_kernel_fails_the_gate() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let suite = small_suite(folder.path(), "test", &["honest", "slowed"], MEASURE);
    let mut seen = Vec::new();
    for (number, slowdown) in [0.5, 2.0, 9.0, 29.0].into_iter().enumerate() {
        let base = measure(&suite, 0.0, &format!("base-{number}"));
        let baseline = save(&[&base], folder.path());
        let head = measure(&suite, slowdown, &format!("head-{number}"));
        let (code, report) = gate(&head, &baseline);
        if verdict(&report, "slowed") == "regressed" {
            assert_eq!(code, 1, "a regression decides the exit code: {report:#}");
            assert!(report["causes"][0].as_str().is_some_and(|cause| cause.contains("regressed")), "{report:#}");
            return;
        }
        seen.push(report);
    }
    panic!("no slowdown was found: {seen:#?}");
}

/// The kernel waits for the clock, so that its times hardly depend on what else the machine does.
#[test]
fn ten_percent_are_beyond_the_gross_threshold_and_nothing_is_not() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let measured = "rounds = 5\nmin_samples = 10\nmax_samples = 20\nbudget_ms = 200";
    let suite = small_suite(folder.path(), "test", &["spins"], measured);
    let mut seen = Vec::new();
    for number in 0..3 {
        let spin = |ns: u64, name: &str| measure_with(&suite, &format!("--spin-ns {ns}"), &format!("{name}-{number}"));
        let baseline = save(&[&spin(10_000_000, "base")], folder.path());
        let same = gate(&spin(10_000_000, "same"), &baseline);
        let slower = gate(&spin(11_000_000, "slower"), &baseline);
        if (verdict(&same.1, "spins"), verdict(&slower.1, "spins"), slower.0) == ("unchanged", "regressed", 1) {
            return;
        }
        seen.push((same, slower));
    }
    panic!("10 % were not told from nothing: {seen:#?}");
}

#[test]
fn one_build_does_not_regress_against_itself() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let suite = small_suite(folder.path(), "test", &["honest", "slowed"], MEASURE);
    let mut seen = Vec::new();
    for number in 0..3 {
        let base = measure(&suite, 0.0, &format!("base-{number}"));
        let baseline = save(&[&base], folder.path());
        let head = measure(&suite, 0.0, &format!("head-{number}"));
        let (code, report) = gate(&head, &baseline);
        assert!(matches!(code, 0 | 1 | 3), "runs of one build are comparable and complete: {report:#}");
        let headline = report["headline"].as_str().unwrap_or_default();
        assert!(headline.starts_with("judged ") && headline.contains(" of 2, median MDE "), "{headline}");
        if code != 1 {
            return;
        }
        seen.push(report);
    }
    panic!("a build regressed against itself three times in a row: {seen:#?}");
}

#[test]
fn a_record_against_itself_is_never_decided_against() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let suite = small_suite(folder.path(), "test", &["honest", "slowed"], MEASURE);
    let record = measure(&suite, 0.0, "record");
    let baseline = save(&[&record], folder.path());
    let (code, report) = gate(&record, &baseline);
    assert!(matches!(code, 0 | 3), "{report:#}");
    for kernel in ["honest", "slowed"] {
        assert!(matches!(verdict(&report, kernel), "unchanged" | "inconclusive"), "{report:#}");
    }
    attnbench().arg("compare").args([&record, &record]).assert().success();

    // An improvement is told from a regression: the sides swapped, nothing is slower.
    let slower = measure(&suite, 29.0, "slower");
    let (code, report) = gate(&record, &save(&[&slower], folder.path()));
    assert_ne!(verdict(&report, "slowed"), "regressed", "exit code {code}: {report:#}");
}
