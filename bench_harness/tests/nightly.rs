//! Nights in a real repository: done once, gone on with after a kill, and judged by a history.

mod support;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use support::{attnbench, small_suite};

fn git(folder: &Path, arguments: &[&str]) {
    let mut command = Command::new("git");
    command.current_dir(folder).args(["-c", "user.name=T", "-c", "user.email=t@example.org"]).args(arguments);
    let output = command.output().expect("git is there");
    assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A repository with a suite and a commit.
fn repository(rounds: u32) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let measure = format!("rounds = {rounds}\nmin_samples = 4\nmax_samples = 6\nbudget_ms = 5\ntimeout_s = 20");
    small_suite(folder.path(), "cpu", &["flash", "naive"], &measure);
    git(folder.path(), &["init", "-q"]);
    git(folder.path(), &["add", "small.toml"]);
    git(folder.path(), &["commit", "-q", "-m", "a suite"]);
    folder
}

const NIGHT: [&str; 6] = ["nightly", "small.toml", "--store", "history.db", "--day", "2026-01-31"];

/// Exit code, stdout and stderr.
fn nightly(folder: &Path, more: &[&str]) -> (i32, String, String) {
    let output = attnbench().current_dir(folder).args(NIGHT).args(more).output().expect("the binary starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().expect("it ends by itself"), text(&output.stdout), text(&output.stderr))
}

fn runs(folder: &Path) -> Vec<Value> {
    let output = attnbench().current_dir(folder).args(["history", "list", "--store", "history.db", "--json"]).output();
    serde_json::from_slice(&output.expect("the binary starts").stdout).expect("a list")
}

/// The folder of the only night.
fn folder_of_the_night(folder: &Path) -> std::path::PathBuf {
    let nights: Vec<_> = std::fs::read_dir(folder.join("results/nightly")).expect("nights").flatten().collect();
    assert_eq!(nights.len(), 1);
    nights[0].path()
}

#[test]
fn a_night_is_done_once() {
    let folder = repository(2);
    let (code, told, said) = nightly(folder.path(), &["--summary", "chat.txt"]);
    assert_eq!(code, 0, "{said}");
    assert!(
        told.starts_with("nightly small of 2026-01-31, ") && told.contains(": ok\n2 of 2 cases measured"),
        "{told}"
    );
    assert_eq!(std::fs::read_to_string(folder.path().join("chat.txt")).expect("written"), told);
    let night = folder_of_the_night(folder.path());
    let record = std::fs::read(night.join("record.json")).expect("a record");
    assert!(std::fs::read_to_string(night.join("report.txt")).expect("a report").contains("no open regression"));
    let before = runs(folder.path());
    assert_eq!(before.len(), 1);

    let (code, again, said) = nightly(folder.path(), &[]);
    assert_eq!((code, said.contains("is measured")), (0, true), "{said}");
    assert!(again.contains("in the history already"), "{again}");
    assert_eq!(runs(folder.path()), before, "nothing is kept twice");
    assert_eq!(std::fs::read(night.join("record.json")).expect("a record"), record, "nothing is measured twice");

    // Another machine of the fleet, or a runner whose files are gone: the history knows the night.
    std::fs::remove_dir_all(&night).expect("removed");
    let (code, elsewhere, _) = nightly(folder.path(), &[]);
    assert!(code == 0 && elsewhere.contains("measured before"), "{elsewhere}");
    assert!(!night.exists() && runs(folder.path()) == before);

    // Another day, and another way to measure, are other nights.
    assert_eq!(nightly(folder.path(), &["--", "--rounds", "1"]).0, 0);
    assert_eq!(runs(folder.path()).len(), 2);
}

#[test]
fn a_killed_night_goes_on() {
    let folder = repository(12);
    let start = |what: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_attnbench"));
        command.current_dir(folder.path()).args(NIGHT).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().unwrap_or_else(|error| panic!("{what}: {error}"))
    };
    let mut night = start("the night starts");
    let begun = Instant::now();
    let journal = || {
        std::fs::read_dir(folder.path().join("results/nightly"))
            .ok()?
            .flatten()
            .next()
            .map(|night| night.path().join("record.json.journal"))
    };
    let lines = || journal().and_then(|path| std::fs::read_to_string(path).ok()).map_or(0, |text| text.lines().count());
    while lines() < 5 {
        assert!(begun.elapsed() < Duration::from_secs(120), "the night never measured anything");
        std::thread::sleep(Duration::from_millis(5));
    }
    kill(Pid::from_raw(night.id() as i32), Signal::SIGKILL).expect("the night is ours");
    night.wait().expect("it is dead");
    assert!(runs(folder.path()).is_empty(), "half a night is kept nowhere");
    let kept = std::fs::read_to_string(journal().expect("it is there")).expect("its journal");
    let first: Value = serde_json::from_str(kept.lines().nth(2).expect("a case")).expect("JSON");

    let (code, told, said) = nightly(folder.path(), &[]);
    assert_eq!(code, 0, "{said}");
    assert!(told.contains("2 of 2 cases measured"), "{told}");
    assert_eq!(runs(folder.path()).len(), 1);
    let record = support::record(&folder_of_the_night(folder.path()).join("record.json"));
    let is_it = |case: &&Value| case["case_id"] == first["case"]["key"]["case_id"];
    let case = record["cases"].as_array().expect("a list").iter().find(is_it).expect("planned");
    let samples = |round: &Value| round["device_ns"].as_array().map(Vec::len);
    assert_eq!(samples(&case["rounds"][0]), samples(&first["case"]["round"]), "what was measured is kept");

    // A journal that was killed before its first line is no obstacle.
    let night = folder_of_the_night(folder.path());
    std::fs::remove_file(night.join("record.json")).expect("removed");
    std::fs::remove_file(folder.path().join("history.db")).expect("removed");
    std::fs::write(night.join("record.json.journal"), "{\"header\": ").expect("written");
    let (code, _, said) = nightly(folder.path(), &[]);
    assert_eq!(code, 0, "{said}");
}

#[test]
fn an_open_regression_fails_the_night_and_is_named() {
    let folder = repository(2);
    let (code, _, said) = nightly(folder.path(), &[]);
    assert_eq!(code, 0, "{said}");
    let path = folder_of_the_night(folder.path()).join("record.json");
    let real = support::record(&path);
    // Earlier nights: the first twenty at half the time, the next twenty as slow as now.
    let mut files = Vec::new();
    for night in 0..40 {
        let mut record = real.clone();
        let share = if night < 20 { 0.5 } else { 1.0 } * (1.0 + 0.002 * (f64::from(night * 7 % 5) - 2.0));
        let day = format!("2025-{:02}-{:02}T03:04:05Z", night / 28 + 1, night % 28 + 1);
        record["run"]["id"] = json!(format!("night-{night}"));
        record["run"]["started_at"] = json!(day);
        record["git"]["commit"] = json!(format!("{night:040x}"));
        record["git"]["committed_at"] = json!(day);
        for case in record["cases"].as_array_mut().expect("a list") {
            for round in case["rounds"].as_array_mut().expect("a list") {
                for ns in round["device_ns"].as_array_mut().expect("a list") {
                    *ns = json!(ns.as_f64().expect("a number") * share);
                }
            }
        }
        let file = folder.path().join(format!("{night}.json"));
        std::fs::write(&file, record.to_string()).expect("written");
        files.push(file);
    }
    attnbench()
        .current_dir(folder.path())
        .args(["history", "push", "--store", "history.db"])
        .args(&files)
        .assert()
        .success();

    let (code, told, _) = nightly(folder.path(), &[]);
    assert_eq!(code, 1, "{told}");
    assert!(told.lines().next().is_some_and(|line| line.contains("REGRESSED")), "{told}");
    let latency = told.lines().find(|line| line.contains("latency_ns_median")).expect("it is named");
    assert!(latency.contains("since 2025-01-2") && latency.contains("0000000000"), "{latency}");
    let (_, json, _) = nightly(folder.path(), &["--json"]);
    let told: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(told["exit_code"], 1);
    assert!(told["open"].as_array().is_some_and(|open| !open.is_empty()));
}

#[test]
fn nights_belong_to_commits() {
    let folder = repository(1);
    for (options, mentions) in [
        (&["--", "--out", "elsewhere.json"][..], "`--out` is not for nights"),
        (&["--", "--shard=1/2"], "is not for nights"),
        (&["--", "--nonsense"], "--nonsense"),
    ] {
        let (code, _, said) = nightly(folder.path(), options);
        assert!(code == 2 && said.contains(mentions), "{said}");
    }
    let suite = folder.path().join("small.toml");
    let text = std::fs::read_to_string(&suite).expect("a suite");
    std::fs::write(&suite, text.replace("one small problem", "another description")).expect("written");
    let (code, _, said) = nightly(folder.path(), &[]);
    assert!(code == 2 && said.contains("tracked files differ from commit"), "{said}");
    assert_eq!(nightly(folder.path(), &["--allow-dirty"]).0, 0);

    let outside = tempfile::tempdir().expect("a temporary folder");
    std::fs::copy(&suite, outside.path().join("small.toml")).expect("copied");
    let (code, _, said) = nightly(outside.path(), &[]);
    assert!(code == 2 && said.contains("run it in a git repository"), "{said}");
}
