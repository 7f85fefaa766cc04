//! Histories, as a user keeps them: pushed, imported, searched, accepted and exported by the real binary.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// A record with cases that were measured and cases that were not.
const RECORD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/record.json");

/// Runs `attnbench history` in a directory and returns its exit code, stdout and stderr.
fn history(directory: &Path, args: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_attnbench"));
    command.current_dir(directory).env("COLUMNS", "100").env_remove("ATTNBENCH_STORE").arg("history").args(args);
    let output = command.output().expect("the binary starts");
    let text = |bytes| String::from_utf8(bytes).expect("output is text");
    (output.status.code().expect("it exits"), text(output.stdout), text(output.stderr))
}

fn ok(directory: &Path, args: &[&str]) -> String {
    let (code, stdout, stderr) = history(directory, args);
    assert_eq!(code, 0, "{args:?}: {stderr}");
    stdout
}

fn json(directory: &Path, args: &[&str]) -> Value {
    serde_json::from_str(&ok(directory, args)).expect("--json prints JSON")
}

/// A value of noise of about 1 % that no pattern betrays, the same in every run of the tests.
fn noise(t: usize) -> f64 {
    let hash = blake3::hash(&t.to_le_bytes());
    let sum: u32 = hash.as_bytes()[..12].iter().map(|&byte| u32::from(byte)).sum();
    // The sum of 12 bytes is nearly normal: mean 1530, standard deviation 256.
    1.0 + 0.01 * (f64::from(sum) - 1530.0) / 256.0
}

/// A CSV file of so many values with this level at each.
fn series(path: &Path, n: usize, level: impl Fn(usize) -> f64) {
    let rows =
        (0..n).map(|t| format!("2026-01-{:02}T{:02}:00:00Z,{},{t:08x}\n", 1 + t / 24, t % 24, level(t) * noise(t)));
    std::fs::write(path, format!("time,value,commit\n{}", rows.collect::<String>())).expect("writable");
}

#[test]
fn a_csv_column_has_its_changes() {
    let dir = tempfile::tempdir().unwrap();
    series(&dir.path().join("s.csv"), 200, |t| if t < 120 { 10.0 } else { 10.5 });
    let found = json(dir.path(), &["changes", "--csv", "s.csv", "--column", "value", "--json"]);
    let changes = found["changes"].as_array().unwrap();
    assert_eq!(changes.len(), 1, "{found}");
    assert!(changes[0]["index"].as_u64().unwrap().abs_diff(120) <= 1, "{found}");
    assert_eq!((&changes[0]["direction"], &changes[0]["state"]), (&"regressed".into(), &"open".into()));
    let size = changes[0]["size"].as_f64().unwrap();
    assert!((size - 0.05).abs() < 0.01, "{found}");
    let text = ok(dir.path(), &["changes", "--csv", "s.csv"]);
    assert!(text.contains("regressed") && text.contains("open regression"), "{text}");
    assert_eq!(history(dir.path(), &["changes", "--csv", "s.csv", "--fail-on-open"]).0, 1);
    assert_eq!(history(dir.path(), &["changes", "--csv", "s.csv", "--fail-on-open", "--better", "higher"]).0, 0);

    series(&dir.path().join("clean.csv"), 200, |_| 3.0);
    assert_eq!(json(dir.path(), &["changes", "--csv", "clean.csv", "--json"])["changes"], serde_json::json!([]));
    // The last values' changes are shown on demand only.
    series(&dir.path().join("recent.csv"), 200, |t| if t < 194 { 1.0 } else { 1.1 });
    assert_eq!(json(dir.path(), &["changes", "--csv", "recent.csv", "--json"])["changes"], serde_json::json!([]));
    let recent = json(dir.path(), &["changes", "--csv", "recent.csv", "--json", "--provisional"]);
    assert_eq!(recent["changes"][0]["index"], 194, "{recent}");
    assert_eq!(recent["changes"][0]["provisional"], true);
}

#[test]
fn bad_input_is_one_clear_error_and_exit_code_2() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("bad.csv"), "time,value\n1,2\n2,fast\n").unwrap();
    std::fs::write(dir.path().join("empty.csv"), "value\n").unwrap();
    std::fs::write(dir.path().join("text.db"), "this is no database, and long enough to have a header".repeat(20))
        .unwrap();
    std::fs::write(dir.path().join("x.json"), "{}").unwrap();
    for (args, expected) in [
        (vec!["changes", "--csv", "no.csv"], "reading series `no.csv`: No such file"),
        (vec!["changes", "--csv", "."], "this is a directory"),
        (vec!["changes", "--csv", "bad.csv"], "line 3, column `value`: `fast` is no finite number"),
        (vec!["changes", "--csv", "bad.csv", "--column", "x"], "no column `x`; the header has `time`, `value`"),
        (vec!["changes", "--csv", "empty.csv"], "no rows below its header"),
        (vec!["changes"], "there is no such file; `attnbench run SUITE --store results/history.db`"),
        (vec!["list", "--store", "text.db"], "this is no SQLite file"),
        (vec!["list", "--store", "mysql://x/y"], "scheme `mysql` is not known"),
        (vec!["push", "x.json"], "not an attnbench record"),
        (vec!["import", "x.json"], "add --format"),
        (vec!["gates", "--add", "x.json"], "not what `attnbench gate --json` prints"),
    ] {
        let (code, stdout, stderr) = history(dir.path(), &args);
        assert_eq!(code, 2, "{args:?}: {stdout}");
        assert!(stderr.contains(expected), "{args:?}: {stderr}");
        assert_eq!(stderr.trim().lines().count(), 1, "{args:?}: {stderr}");
    }
}

/// What a store does, wherever it is.
fn a_store_keeps_what_it_is_given(store: &str) {
    let dir = tempfile::tempdir().unwrap();
    let on = |args: &[&str]| ok(dir.path(), &[args, &["--store", store]].concat());
    let json_on = |args: &[&str]| json(dir.path(), &[args, &["--store", store, "--json"]].concat());
    let pushed = on(&["push", RECORD]);
    assert!(pushed.starts_with("1 new run in"), "{pushed}");
    assert!(on(&["push", RECORD]).contains("0 new runs"), "a record is there once");
    let runs = json_on(&["list"]);
    let id = serde_json::from_str::<Value>(&std::fs::read_to_string(RECORD).unwrap()).unwrap()["run"]["id"].clone();
    assert_eq!(runs.as_array().unwrap().iter().filter(|run| run["id"] == id).count(), 1, "{runs}");
    let all = json_on(&["series"]);
    assert!(all.as_array().unwrap().len() >= 3, "{all}");
    let one = json_on(&["series", "--case", "*/flash/*q1024*", "--metric", "latency_ns_median", "--points"]);
    assert_eq!(one.as_array().unwrap().len(), 1, "{one}");
    assert!(one[0]["values"][0]["value"].as_f64().unwrap() > 1e3, "{one}");
    let exported: Value = serde_json::from_str(&on(&["export", "--format", "bencher", "--case", "*/flash/*"])).unwrap();
    let (_, measures) = exported.as_object().unwrap().iter().next().unwrap();
    assert!(measures["latency_ns_median"]["lower_value"].as_f64().is_some(), "{exported}");

    // A regression stays open, and what was normal stays normal, until it is accepted.
    series(&dir.path().join("n.csv"), 240, |t| if t < 120 { 10.0 } else { 10.6 });
    assert!(on(&["import", "n.csv"]).starts_with("240 new runs"));
    assert!(on(&["import", "n.csv"]).contains("0 new runs"), "imports are idempotent");
    let changes = json_on(&["changes", "--suite", "n"]);
    let found = &changes["series"][0];
    assert!((found["normal"].as_f64().unwrap() - 10.0).abs() < 0.1, "{found}");
    assert!((found["open_regression"].as_f64().unwrap() - 0.06).abs() < 0.01, "{found}");
    let commit = found["changes"][0]["commit"].as_str().unwrap().to_owned();
    let check = ["changes", "--suite", "n", "--fail-on-open", "--store", store];
    assert_eq!(history(dir.path(), &check).0, 1);
    let accept = |at_most: &str| {
        on(&["accept", &commit, "--case", "*", "--metric", "value", "--at-most", at_most, "--reason", "exact sums"])
    };
    accept("2");
    assert_eq!(history(dir.path(), &check).0, 1, "6 % is more than the 2 % that were accepted");
    accept("8");
    assert_eq!(history(dir.path(), &check).0, 0);
    let accepted = json_on(&["changes", "--suite", "n"]);
    assert_eq!(accepted["series"][0]["changes"][0]["state"], "accepted");
    assert!((accepted["series"][0]["normal"].as_f64().unwrap() - 10.6).abs() < 0.1, "{accepted}");

    // What is exported can be read again, and has the same change.
    let path = dir.path().join("out.csv");
    on(&["export", "--format", "csv", "--suite", "n", "--out", path.to_str().unwrap()]);
    let again = json(dir.path(), &["changes", "--csv", path.to_str().unwrap(), "--json"]);
    assert_eq!(again["changes"][0]["index"], found["changes"][0]["index"]);

    assert!(on(&["gates"]).contains("no gates"));
    let (code, report, _) = {
        let output = Command::new(env!("CARGO_BIN_EXE_attnbench"))
            .current_dir(dir.path())
            .args(["baseline", "save", RECORD])
            .output()
            .unwrap();
        assert!(output.status.success());
        let baseline = find_json(&dir.path().join("baselines"));
        let output = Command::new(env!("CARGO_BIN_EXE_attnbench"))
            .current_dir(dir.path())
            .args(["gate", RECORD, "--json", "--baseline", baseline.to_str().unwrap()])
            .output()
            .unwrap();
        (output.status.code(), output.stdout, output.stderr)
    };
    std::fs::write(dir.path().join("gate.json"), &report).unwrap();
    assert!(on(&["gates", "--add", "gate.json", "--head", "abcd"]).starts_with("gate "));
    let gates = json_on(&["gates"]);
    assert_eq!(gates["gates"][0]["exit_code"].as_i64(), code.map(i64::from), "{gates}");
    let id = gates["gates"][0]["id"].as_str().unwrap().to_owned();
    on(&["gates", "--override", &id, "--reason", "a busy machine"]);
    assert_eq!(json_on(&["gates"])["gates"][0]["overridden"], "a busy machine");
}

/// The first JSON file below a folder.
fn find_json(folder: &Path) -> std::path::PathBuf {
    let mut pending = vec![folder.to_owned()];
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            pending.extend(std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|extension| extension == "json") {
            return path;
        }
    }
    panic!("no JSON file in {}", folder.display());
}

/// Ten processes that each push a run of their own, all at once, while the store does not exist yet.
fn nothing_is_lost(store: &str) {
    let dir = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(RECORD).unwrap();
    let record: Value = serde_json::from_str(&text).unwrap();
    let pushes: Vec<_> = (0..10)
        .map(|number| {
            let mut own = record.clone();
            own["run"]["id"] = format!("parallel-{number}").into();
            let path = dir.path().join(format!("{number}.json"));
            std::fs::write(&path, own.to_string()).unwrap();
            Command::new(env!("CARGO_BIN_EXE_attnbench"))
                .current_dir(dir.path())
                .args(["history", "push", path.to_str().unwrap(), "--store", store])
                .stdout(std::process::Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    for mut push in pushes {
        assert!(push.wait().unwrap().success());
    }
    let runs = json(dir.path(), &["list", "--most", "100", "--json", "--store", store]);
    let points: Vec<u64> = runs
        .as_array()
        .unwrap()
        .iter()
        .filter(|run| run["id"].as_str().unwrap().starts_with("parallel-"))
        .map(|run| run["points"].as_u64().unwrap())
        .collect();
    assert_eq!(points.len(), 10, "{runs}");
    assert!(points.iter().all(|&count| count > 0 && count == points[0]), "{runs}");
}

#[test]
fn a_file_keeps_what_it_is_given() {
    let dir = tempfile::tempdir().unwrap();
    a_store_keeps_what_it_is_given(dir.path().join("new/history.db").to_str().unwrap());
}

#[test]
fn ten_processes_lose_nothing_in_a_file() {
    let dir = tempfile::tempdir().unwrap();
    nothing_is_lost(dir.path().join("history.db").to_str().unwrap());
}

#[test]
fn a_server_keeps_what_it_is_given_and_loses_nothing() {
    // Each process of a fleet connects on its own; `ci/postgres.sh` starts a server on loopback and sets the variable.
    let Ok(url) = std::env::var("ATTNBENCH_TEST_POSTGRES") else {
        eprintln!("SKIPPED: ATTNBENCH_TEST_POSTGRES is not set: PostgreSQL is tested by `ci/postgres.sh COMMAND`");
        return;
    };
    // The parallel pushes come first: they find no tables, and make them under one lock.
    nothing_is_lost(&url);
    a_store_keeps_what_it_is_given(&url);
}

#[test]
fn a_newer_store_is_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    ok(dir.path(), &["push", RECORD, "--store", "h.db"]);
    let connection = rusqlite::Connection::open(dir.path().join("h.db")).unwrap();
    connection.pragma_update(None, "user_version", 999).unwrap();
    drop(connection);
    let (code, _, stderr) = history(dir.path(), &["list", "--store", "h.db"]);
    assert_eq!(code, 2);
    assert!(stderr.contains("it has version 999"), "{stderr}");
    let connection = rusqlite::Connection::open(dir.path().join("other.db")).unwrap();
    connection.execute_batch("CREATE TABLE mine (x)").unwrap();
    drop(connection);
    let (code, _, stderr) = history(dir.path(), &["push", RECORD, "--store", "other.db"]);
    assert_eq!(code, 2);
    assert!(stderr.contains("a database of another program"), "{stderr}");
}
