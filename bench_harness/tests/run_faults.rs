//! Runs that are killed, interrupted, shared or pointed at bad places: nothing that was measured is lost.

mod support;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use support::{attnbench, dishonest_provider, record, small_suite};

const MEASURE: &str = "rounds = 30\nmin_samples = 6\nmax_samples = 12\nbudget_ms = 20\ntimeout_s = 20";

fn start(suite: &Path, out: &Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_attnbench"))
        .args(["run", "--provider", &dishonest_provider(""), "--out"])
        .args([out, suite])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary starts")
}

fn journal(out: &Path) -> std::path::PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(".journal");
    name.into()
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Waits until something is so; what never becomes so fails the test, however slow the machine is.
fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(120), "{what} never happened");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Processes whose parent is `pid`.
fn children(pid: u32) -> Vec<u32> {
    let parent_of = |process: u32| -> Option<u32> {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    };
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|&process| parent_of(process) == Some(pid))
        .collect()
}

fn is_alive(pid: u32) -> bool {
    // A zombie is dead, whoever has yet to collect it.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

/// The samples of a case's round, whether written as integers or not.
fn samples(round: &Value) -> Vec<f64> {
    round["device_ns"].as_array().into_iter().flatten().filter_map(Value::as_f64).collect()
}

/// The samples of every case and round in journal lines.
fn case_rounds(entries: &[Value]) -> Vec<(String, u64, Vec<f64>)> {
    let case = |entry: &Value| {
        let case = entry.get("case")?;
        let id = case["key"]["case_id"].as_str()?.to_owned();
        Some((id, case["round"]["round"].as_u64()?, samples(&case["round"])))
    };
    entries.iter().filter_map(case).collect()
}

#[test]
fn a_killed_run_goes_on_where_it_was() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let suite = small_suite(folder.path(), "test", &["honest", "slowed"], MEASURE);
    let out = folder.path().join("record.json");
    let mut run = start(&suite, &out);
    wait_for("five journal entries", || lines(&journal(&out)).len() >= 6);
    let workers = children(run.id());
    kill(Pid::from_raw(run.id() as i32), Signal::SIGKILL).expect("the run is ours");
    run.wait().expect("the run is dead");
    wait_for("the death of the killed run's workers", || workers.iter().all(|&worker| !is_alive(worker)));
    assert!(!out.exists(), "a killed run writes no record");
    let before = case_rounds(&lines(&journal(&out)));

    attnbench()
        .args(["run", "--provider", &dishonest_provider(""), "--resume"])
        .args([journal(&out).as_os_str(), suite.as_os_str()])
        .assert()
        .success();
    let record = record(&out);
    assert_eq!(record["run"]["complete"], true);
    assert!(!journal(&out).exists(), "the journal goes when the record is whole");
    for case in record["cases"].as_array().expect("a list") {
        assert_eq!(case["rounds"].as_array().map(Vec::len), Some(30), "{}", case["case_id"]);
    }
    for (id, round, measured) in before {
        let cases = record["cases"].as_array().expect("a list");
        let case = cases.iter().find(|case| case["case_id"] == id.as_str()).expect("planned");
        let rounds = case["rounds"].as_array().expect("a list");
        let kept = rounds.iter().find(|seen| seen["round"] == round).expect("kept");
        assert_eq!(samples(kept), measured, "what was measured before the kill is in the record");
    }
}

#[test]
fn an_interrupted_run_saves_its_record_and_can_go_on() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let suite = small_suite(folder.path(), "test", &["honest", "slowed"], MEASURE);
    let out = folder.path().join("record.json");
    let mut run = start(&suite, &out);
    wait_for("three journal entries", || lines(&journal(&out)).len() >= 4);
    kill(Pid::from_raw(run.id() as i32), Signal::SIGINT).expect("the run is ours");
    let status = run.wait().expect("the run ends");
    assert_eq!(status.code(), Some(5), "an interrupted run has not done what was asked");
    let interrupted = record(&out);
    assert_eq!(interrupted["run"]["complete"], false);
    assert!(interrupted["run"]["rounds_done"].as_u64() >= Some(1));

    let resume = |suite: &Path| {
        let mut command = attnbench();
        command.args(["run", "--provider", &dishonest_provider(""), "--resume"]);
        command.args([journal(&out).as_os_str(), suite.as_os_str()]).assert()
    };
    let other = small_suite(tempfile::tempdir().expect("a folder").keep().as_path(), "test", &["honest"], MEASURE);
    let refused = resume(&other).code(2);
    let said = String::from_utf8_lossy(&refused.get_output().stderr).into_owned();
    assert!(said.contains("another plan"), "{said}");
    resume(&suite).success();
    assert_eq!(record(&out)["run"]["complete"], true);
}

#[test]
fn two_runs_on_one_device_say_so_and_both_finish() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let suite = small_suite(folder.path(), "test", &["honest", "slowed"], MEASURE);
    let (first_out, second_out) = (folder.path().join("first.json"), folder.path().join("second.json"));
    let mut first = start(&suite, &first_out);
    wait_for("the first run's start", || lines(&journal(&first_out)).len() >= 2);
    let second = attnbench()
        .args(["run", "--rounds", "1", "--provider", &dishonest_provider(""), "--out"])
        .args([second_out.as_os_str(), suite.as_os_str()])
        .assert()
        .success();
    let said = String::from_utf8_lossy(&second.get_output().stderr).into_owned();
    assert!(said.contains("device is shared") && said.contains(&first.id().to_string()), "{said}");
    assert_eq!(record(&second_out)["run"]["device_shared"], true);
    kill(Pid::from_raw(first.id() as i32), Signal::SIGTERM).expect("the run is ours");
    first.wait().expect("the first run ends");
    for case in record(&first_out)["cases"].as_array().expect("a list") {
        assert_ne!(case["disposition"], "crashed", "{case:#}");
    }
}

#[test]
fn bad_places_are_found_before_anything_is_measured() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let suite = small_suite(folder.path(), "cpu", &["flash"], MEASURE);
    let fails = |arguments: &[&std::ffi::OsStr], mentions: &str| {
        let run = attnbench().arg("run").args(arguments).assert().code(2);
        let said = String::from_utf8_lossy(&run.get_output().stderr).into_owned();
        assert!(said.contains(mentions), "`{said}` does not mention `{mentions}`");
    };
    let in_no_folder = Path::new("/proc/nowhere/record.json");
    fails(&["--out".as_ref(), in_no_folder.as_os_str(), suite.as_os_str()], "/proc/nowhere/record.json");
    fails(&["nosuchsuite".as_ref()], "nosuchsuite");
    fails(&[suite.as_os_str(), "--include".as_ref(), "nothing/*".as_ref()], "--include");
    fails(&[suite.as_os_str(), "--resume".as_ref(), "/nowhere.journal".as_ref()], "/nowhere.journal");
    let (renamed, lost) = (folder.path().join("renamed"), folder.path().join("lost.json"));
    fails(&["--out".as_ref(), folder.path().as_os_str(), suite.as_os_str()], "this is a directory");
    fails(&["--resume".as_ref(), renamed.as_os_str(), suite.as_os_str()], "--out");
    fails(&["--resume=/x".as_ref(), "--out=/x".as_ref(), suite.as_os_str()], "this is the journal");
    fails(&["--resume=/dev/zero".as_ref(), "--out".as_ref(), lost.as_os_str(), suite.as_os_str()], "line 1");
    let provider = ["--provider".as_ref(), "mine".as_ref(), "--out".as_ref(), lost.as_os_str(), suite.as_os_str()];
    fails(&provider, "--provider mine=");
    assert!(!journal(&lost).exists(), "a run that is refused leaves no journal in the way of the next");
    let taken = folder.path().join("taken.json");
    std::fs::write(journal(&taken), "{}\n").expect("written");
    fails(&["--out".as_ref(), taken.as_os_str(), suite.as_os_str()], "--resume");
}

#[test]
fn threads_beyond_reason_are_refused_case_by_case_and_not_accused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let suite = small_suite(folder.path(), "cpu", &["flash"], "rounds = 1\nmax_samples = 10\nbudget_ms = 20");
    let out = folder.path().join("record.json");
    let threads = 16 * std::thread::available_parallelism().map_or(1, usize::from) + 1;
    if threads > 1024 {
        return; // More than --threads takes.
    }
    let run = attnbench()
        .args(["run", "--threads", &threads.to_string(), "--out"])
        .args([&out, &suite])
        .output()
        .expect("the binary runs");
    let said = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(said.contains("threads are asked for, this machine has"), "{said}");
    let case = &record(&out)["cases"][0];
    assert_eq!(case["disposition"], "unsupported", "{case:#}");
    assert!(case["reason"].as_str().is_some_and(|reason| reason.contains("more than 16 a core")), "{case:#}");
}

#[test]
fn odd_places_hold_a_record_and_full_ones_lose_none() {
    use std::os::unix::ffi::OsStrExt;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let suite = small_suite(folder.path(), "cpu", &["flash"], "rounds = 1\nmax_samples = 10\nbudget_ms = 20");
    let run = |out: &Path, temporary: &Path| {
        let mut command = attnbench();
        command.env("TMPDIR", temporary).args(["run", "--out"]).args([out.as_os_str(), suite.as_os_str()]).assert()
    };
    let no_text = folder.path().join(std::ffi::OsStr::from_bytes(b"no\xfftext.json"));
    run(&no_text, folder.path()).success();
    assert_eq!(record(&no_text)["run"]["complete"], true);

    let (target, link) = (folder.path().join("target.json"), folder.path().join("link.json"));
    std::os::unix::fs::symlink("target.json", &link).expect("a link into nowhere");
    run(&link, folder.path()).success();
    assert!(link.is_symlink() && target.is_file(), "the link stays, and what it points to is made");

    // A link, so that the journal beside it has room.
    let full = folder.path().join("full.json");
    std::os::unix::fs::symlink("/dev/full", &full).expect("a link");
    let rescue = tempfile::tempdir().expect("a temporary folder");
    let said = run(&full, rescue.path()).code(5);
    let said = String::from_utf8_lossy(&said.get_output().stderr).into_owned();
    assert!(said.contains("the disk is full") && said.contains("was saved to"), "{said}");
    let rescued = std::fs::read_dir(rescue.path()).expect("readable").flatten().map(|entry| entry.path());
    let rescued: Vec<_> = rescued.filter(|path| path.extension().is_some_and(|e| e == "json")).collect();
    assert_eq!(rescued.len(), 1, "{rescued:?}");
    assert_eq!(record(&rescued[0])["run"]["complete"], true);
}
