//! The commands that read files and describe the machine, as a user calls them.

use std::path::Path;

use assert_cmd::Command;
use serde_json::Value;

/// A record with cases that were measured and cases that were not.
const RECORD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/record.json");

/// Runs attnbench in a directory and returns its exit code, stdout and stderr.
fn attnbench(directory: &Path, args: &[&str]) -> (i32, String, String) {
    let mut command = Command::cargo_bin("attnbench").unwrap();
    let output = command.current_dir(directory).env("COLUMNS", "100").args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn json(directory: &Path, args: &[&str]) -> Value {
    let (code, stdout, stderr) = attnbench(directory, args);
    assert_eq!(code, 0, "{stderr}");
    serde_json::from_str(&stdout).unwrap()
}

#[test]
fn show_prints_a_record_for_people_and_for_programs() {
    let dir = tempfile::tempdir().unwrap();
    let (code, table, _) = attnbench(dir.path(), &["show", RECORD]);
    assert_eq!(code, 0);
    assert!(table.contains("flash/q1024/k1024") && table.contains("out_of_memory"), "{table}");
    assert!(!table.contains('\x1b'), "no colours in a pipe");

    let (_, samples, _) = attnbench(dir.path(), &["show", RECORD, "--samples", "--case", "*/flash/*"]);
    assert!(samples.contains("q256") && !samples.contains("naive"), "{samples}");

    let shown = json(dir.path(), &["show", RECORD, "--json"]);
    let cases = shown["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 6);
    assert!(cases[0]["metrics"]["latency_ns_median"]["value"].as_f64().unwrap() > 1e6);
    assert!(cases[0].get("rounds").is_none() && cases[3]["metrics"].get("latency_ns_median").is_none());
    let with_samples = json(dir.path(), &["show", RECORD, "--json", "--samples"]);
    assert_eq!(with_samples["cases"][0]["rounds"][0]["device_ns"].as_array().unwrap().len(), 20);
}

#[test]
fn bad_input_is_one_clear_error_and_exit_code_2() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("cut.json"), "{\"record_version\": 1, \"run\": {").unwrap();
    for (args, expected) in [
        (vec!["show", "no.json"], "error: reading record `no.json`: there is no such file"),
        (vec!["show", "cut.json"], "error: reading record `cut.json`: the file ends in the middle"),
        (vec!["show", "."], "error: reading record `.`: this is a directory"),
        (vec!["show", RECORD, "--case", "torch/*"], "none of its 6 cases matches `torch/*`"),
        (vec!["baseline", "save", "no.json"], "error: reading record `no.json`: there is no such file"),
        (vec!["baseline", "save", RECORD, "--name", "../../x"], "names no baseline"),
        (vec!["baseline", "show", "ci"], "there are none yet"),
        (vec!["compare", RECORD, RECORD, "--policy", "/dev/zero"], "gate policy `/dev/zero`: the file is larger than"),
        (vec!["schema", "nonsense"], "invalid value 'nonsense'"),
        (vec!["kernels", "--resources", "--arch", "sm_12"], "these kernels are for sm_80 and later"),
        (vec!["kernels", "--resources", "--arch", "sm_80,pascal"], "an architecture is named sm_80"),
    ] {
        let (code, _, stderr) = attnbench(dir.path(), &args);
        assert_eq!(code, 2, "{args:?}: {stderr}");
        assert!(stderr.contains(expected), "{args:?}: {stderr}");
        assert_eq!(stderr.matches(expected).count(), 1, "said once: {args:?}: {stderr}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing was written");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    for args in [
        &["show", RECORD, "--json"][..],
        &["compare", RECORD, RECORD],
        &["compare", RECORD, RECORD, "--json"],
        &["gate", RECORD, "--baseline", RECORD, "--json"],
        &["suites", "--dir", concat!(env!("CARGO_MANIFEST_DIR"), "/../suites"), "--json"],
        &["kernels"],
        &["devices", "--json"],
        &["schema"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let binary = env!("CARGO_BIN_EXE_attnbench");
        let mut run = std::process::Command::new(binary);
        run.args(args).stdout(writer).stderr(std::process::Stdio::piped());
        let output = run.spawn().unwrap().wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code().is_some_and(|code| code <= 5) && stderr.is_empty(), "{args:?}: {stderr}");
    }
}

#[test]
fn baselines_are_saved_listed_and_shown() {
    let dir = tempfile::tempdir().unwrap();
    let (code, saved, stderr) = attnbench(dir.path(), &["baseline", "save", RECORD]);
    assert_eq!(code, 0, "{stderr}");
    assert!(saved.contains("baseline example-9000/quickstart: 1 session in `baselines/example-9000/quickstart.json`"));
    let (code, _, twice) = attnbench(dir.path(), &["baseline", "save", RECORD]);
    assert_eq!(code, 2);
    assert!(twice.contains("it is already there"), "{twice}");
    assert_eq!(attnbench(dir.path(), &["baseline", "save", RECORD, "--replace"]).0, 0);

    let list = json(dir.path(), &["baseline", "list", "--json"]);
    assert_eq!((&list[0]["name"], &list[0]["cases"]), (&"example-9000/quickstart".into(), &6.into()));
    let (_, shown, _) = attnbench(dir.path(), &["baseline", "show", "example-9000/quickstart"]);
    assert!(shown.contains("flash/q256/k256"), "{shown}");

    std::fs::write(dir.path().join("baselines/example-9000/broken.json"), "{").unwrap();
    let (code, list, _) = attnbench(dir.path(), &["baseline", "list"]);
    assert_eq!(code, 0);
    assert!(list.contains("example-9000/quickstart") && list.contains("the file ends in the middle"), "{list}");
}

#[test]
fn devices_says_what_there_is_and_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let devices = json(dir.path(), &["devices", "--json"]);
    assert!(devices["cpu"]["cores_usable"].as_u64().unwrap() >= 1);
    assert!(devices["fingerprint"]["input_generator_version"].is_string());
    for library in ["cuda", "nvml"] {
        let found = devices[library]["devices"].as_array().unwrap().len();
        assert_eq!(found == 0, devices[library]["missing"].is_string(), "{library}: found, or why not");
    }
    let (code, text, _) = attnbench(dir.path(), &["devices"]);
    assert_eq!(code, 0);
    assert!(text.starts_with("cpu: "), "{text}");
}

#[test]
fn schemas_and_completions_are_printed() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["record", "baseline", "protocol"] {
        assert!(json(dir.path(), &["schema", name])["$schema"].is_string());
    }
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let (code, script, _) = attnbench(dir.path(), &["completions", shell]);
        assert!(code == 0 && script.contains("baseline"), "{shell}");
    }
}

/// Whether or not this machine has NVRTC: an empty folder has none.
#[test]
fn a_missing_nvrtc_is_named_once_with_the_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::cargo_bin("attnbench").unwrap();
    command.args(["kernels", "--resources", "--arch", "sm_80"]).env("ATTNBENCH_NVRTC", dir.path());
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains(&dir.path().display().to_string()) && said.contains("ci/nvrtc.sh"), "{said}");
    // A file of that name that is no library: the loader's own words, and the name once.
    std::fs::write(dir.path().join("libnvrtc.so.13"), "no library").unwrap();
    let said = String::from_utf8_lossy(&command.output().unwrap().stderr).into_owned();
    assert!(said.contains("libnvrtc.so.13") && !said.contains("dlopen failed"), "{said}");
}
