//! One run on several machines: shards, one of which is killed, and the record that they make.

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use support::{attnbench, dishonest_provider, record, small_suite};

/// Kernels of the test worker: a case each, enough for three shards that all have something.
const KERNELS: [&str; 5] = ["honest", "slowed", "skipped_row", "out_of_memory", "exits"];

fn suite(folder: &Path, rounds: u32) -> PathBuf {
    let measure = format!("rounds = {rounds}\nmin_samples = 4\nmax_samples = 6\nbudget_ms = 5\ntimeout_s = 20");
    small_suite(folder, "test", &KERNELS, &measure)
}

fn run(suite: &Path, out: &Path, more: &[&str]) -> i32 {
    let mut command = attnbench();
    command.args(["run", "--provider", &dishonest_provider(""), "--out"]).args([out, suite]).args(more);
    command.output().expect("the binary starts").status.code().expect("it ends by itself")
}

/// Exit code and stderr of a merge.
fn merge(out: &Path, shards: &[&Path]) -> (i32, String) {
    let output = attnbench().arg("merge").args(shards).arg("--out").arg(out).output().expect("the binary starts");
    (output.status.code().expect("it ends by itself"), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Key, matrix, disposition and number of rounds of every case.
fn case_list(record: &Value) -> Vec<(String, String, String, String, usize)> {
    let text = |case: &Value, field: &str| case[field].to_string();
    let rounds = |case: &Value| case["rounds"].as_array().map_or(0, Vec::len);
    let row = |case: &Value| {
        let key = format!("{} {} {}", text(case, "case_id"), text(case, "mode"), text(case, "threads"));
        (key, text(case, "matrix"), text(case, "disposition"), text(case, "settings"), rounds(case))
    };
    record["cases"].as_array().expect("a list").iter().map(row).collect()
}

#[test]
fn two_shards_merged_are_one_run() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let suite = suite(folder.path(), 2);
    let at = |name: &str| folder.path().join(name);
    let whole_code = run(&suite, &at("whole.json"), &[]);
    for shard in ["1", "2"] {
        run(&suite, &at(&format!("{shard}.json")), &["--shard", &format!("{shard}/2")]);
    }
    let (code, said) = merge(&at("merged.json"), &[&at("2.json"), &at("1.json")]);
    assert_eq!(code, whole_code, "{said}");
    let (whole, merged) = (record(&at("whole.json")), record(&at("merged.json")));
    assert_eq!(case_list(&merged), case_list(&whole));
    assert_eq!((&merged["run"]["complete"], &merged["run"]["rounds_done"]), (&true.into(), &2.into()));
    for name in ["1.json", "2.json"] {
        let own = record(&at(name));
        let measured = |case: &&Value| case["rounds"].as_array().is_some_and(|rounds| !rounds.is_empty());
        let cases = own["cases"].as_array().expect("a list");
        assert_eq!(cases.len(), KERNELS.len(), "a shard has a row for each case of the plan");
        assert!((2..=3).contains(&cases.iter().filter(measured).count()), "shards take about the same time");
    }
    // A shard alone is no run to judge by: what the others measured would look as if it were gone.
    let compared = attnbench().arg("compare").args([at("whole.json"), at("1.json")]).output().expect("it starts");
    let said = String::from_utf8_lossy(&compared.stderr).into_owned();
    assert_eq!(compared.status.code(), Some(2), "{said}");
    assert!(said.contains("it is shard 1/2 of a run; join the shards with `attnbench merge`"), "{said}");
    // An earlier record decides as well: what it says took no time goes where there is most left.
    let times = at("whole.json").display().to_string();
    run(&suite, &at("by-times.json"), &["--shard", "2/2", "--shard-times", &times]);
    let by_times = record(&at("by-times.json"));
    assert_eq!(case_list(&by_times).len(), KERNELS.len());
    assert_eq!(by_times["run"]["shard"], serde_json::json!({"index": 2, "count": 2}));
}

#[test]
fn a_killed_shard_leaves_the_others_usable() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let suite = suite(folder.path(), 12);
    let at = |name: &str| folder.path().join(name);
    let journal = at("2.json.journal");
    let mut killed = Command::new(env!("CARGO_BIN_EXE_attnbench"))
        .args(["run", "--provider", &dishonest_provider(""), "--shard", "2/3", "--out"])
        .args([&at("2.json"), &suite])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary starts");
    let start = Instant::now();
    while std::fs::read_to_string(&journal).unwrap_or_default().lines().count() < 4 {
        assert!(start.elapsed() < Duration::from_secs(120), "the shard never measured anything");
        std::thread::sleep(Duration::from_millis(5));
    }
    kill(Pid::from_raw(killed.id() as i32), Signal::SIGKILL).expect("the run is ours");
    killed.wait().expect("the shard is dead");
    assert!(!at("2.json").exists(), "a killed run writes no record");
    for shard in ["1", "3"] {
        run(&suite, &at(&format!("{shard}.json")), &["--shard", &format!("{shard}/3")]);
    }

    let (code, said) = merge(&at("partial.json"), &[&at("1.json"), &at("3.json")]);
    assert_eq!(code, 5, "{said}");
    let partial = record(&at("partial.json"));
    let lost: Vec<&Value> =
        partial["cases"].as_array().expect("a list").iter().filter(|case| case["shard"] == 2).collect();
    assert!(!lost.is_empty() && partial["run"]["complete"] == false);
    assert!(said.contains(&format!("shard 2/3 is missing, and with it {} of 5 cases", lost.len())), "{said}");
    for case in &lost {
        assert_eq!((&case["disposition"], &case["reason"]), (&"skipped".into(), &"shard 2/3 is missing".into()));
        assert!(said.contains(case["case_id"].as_str().expect("an id")), "{said}");
    }
    // The others are as usable as ever: the record can be shown and compared.
    attnbench().arg("show").arg(at("partial.json")).assert().success();

    // Nothing that the killed shard measured is lost either.
    let measured_before = std::fs::read_to_string(&journal).expect("its journal").lines().count();
    run(&suite, &at("2.json"), &["--shard", "2/3", "--resume", &journal.display().to_string()]);
    assert!(measured_before >= 4 && !journal.exists());
    let (_, said) = merge(&at("whole.json"), &[&at("1.json"), &at("2.json"), &at("3.json")]);
    let whole = record(&at("whole.json"));
    assert_eq!(whole["run"]["complete"], true, "{said}");
    assert!(!said.contains("missing"), "{said}");
    let again = merge(&at("1.json"), &[&at("1.json")]);
    assert!(again.0 == 2 && again.1.contains("this is one of the shards"), "{again:?}");
}

#[test]
fn more_shards_than_cases_are_no_failure() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let suite = suite(folder.path(), 1);
    let out = folder.path().join("9.json");
    assert_eq!(run(&suite, &out, &["--shard", "9/9"]), 0);
    let (code, said) = merge(&folder.path().join("merged.json"), &[&out]);
    assert_eq!(code, 5);
    assert!(
        said.contains("shard 1/9 is missing") && said.contains("shard 8/9 is missing, and with it 0 of 5"),
        "{said}"
    );
}
