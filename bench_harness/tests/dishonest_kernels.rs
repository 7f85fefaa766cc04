//! Kernels that cheat, and workers that fail: each costs its own case, is named for what it did, and nothing else is
//! lost.

mod support;

use support::{attnbench, case, dishonest_provider, record, small_suite};

const QUICK: &str = "rounds = 1\nmin_samples = 6\nmax_samples = 12\nbudget_ms = 50\ntimeout_s = 5";

/// Kernel, disposition, and what the reason must mention.
const EXPECTED: &[(&str, &str, &str)] = &[
    ("honest", "measured", ""),
    ("slowed", "measured", ""),
    ("cached_output", "incorrect", "after timing"),
    ("cached_by_address", "incorrect", "after timing"),
    ("stale_keys", "incorrect", "after timing"),
    ("skipped_work", "incorrect", "before timing"),
    ("skipped_row", "incorrect", "before timing"),
    ("side_thread", "incorrect", ""),
    ("late_launch", "incorrect", ""),
    ("lazy", "incorrect", ""),
    ("mutated_input", "incorrect", "changed its inputs"),
    ("busy_afterwards", "incorrect", "after the call had returned"),
    ("nan", "incorrect", "NaN"),
    ("panics", "crashed", "index out of range in a kernel"),
    ("crashes", "crashed", "SIGABRT"),
    ("exits", "crashed", "code 3"),
    ("hangs", "timed_out", "within 5 s"),
    ("out_of_memory", "out_of_memory", "bytes"),
    ("allocation_fails", "crashed", "memory allocation of"),
    ("rubbish", "crashed", "here is a debugging print"),
];

#[test]
fn every_trick_is_caught_and_costs_only_its_own_case() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let kernels: Vec<&str> = EXPECTED.iter().map(|(kernel, ..)| *kernel).collect();
    let suite = small_suite(folder.path(), "test", &kernels, QUICK);
    let out = folder.path().join("record.json");
    let run = attnbench()
        .args(["run", "--provider", &dishonest_provider("")])
        .args(["--out".as_ref(), out.as_os_str(), suite.as_os_str()])
        .assert()
        .code(5);
    let record = record(&out);
    for (kernel, disposition, reason) in EXPECTED {
        let case = case(&record, kernel);
        assert_eq!(case["disposition"], *disposition, "{kernel}: {case:#}");
        let said = case["reason"].as_str().unwrap_or_default();
        assert!(said.contains(reason), "{kernel}: `{said}` does not mention `{reason}`");
        let samples = case["rounds"][0]["device_ns"].as_array().map_or(0, Vec::len);
        assert_eq!(samples > 0, *disposition == "measured", "{kernel}: a wrong answer has no latency");
    }
    assert_eq!(record["cases"].as_array().map(Vec::len), Some(EXPECTED.len()), "no case disappears");
    assert!(!is_running("sleep\086399\0"), "a killed worker's helpers die with it");
    let table = String::from_utf8_lossy(&run.get_output().stdout).into_owned();
    assert!(table.contains("incorrect") && table.contains("crashed"), "{table}");
}

/// Whether a process with this command line is there (arguments end in NUL).
fn is_running(command_line: &str) -> bool {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
        .any(|line| line == command_line.as_bytes())
}

#[test]
fn a_provider_that_only_a_suite_names_is_not_started() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let suite = small_suite(folder.path(), "touch", &["flash"], QUICK);
    let out = folder.path().join("record.json");
    attnbench().args(["run", "--out"]).args([out.as_os_str(), suite.as_os_str()]).assert().success();
    let record = record(&out);
    let case = case(&record, "flash");
    assert_eq!(case["disposition"], "unsupported");
    assert!(case["reason"].as_str().is_some_and(|reason| reason.contains("--provider touch=")), "{case:#}");
}

#[test]
fn a_worker_that_lies_about_itself_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let suite = small_suite(folder.path(), "mine", &["honest"], QUICK);
    let out = folder.path().join("record.json");
    for (command, reason) in [
        (dishonest_provider("").replacen("test=", "mine=", 1), "says it is `test`"),
        ("mine=/nowhere/worker".to_owned(), "could not be started"),
        ("mine=echo hello".to_owned(), "no protocol message"),
        ("mine=true".to_owned(), "exited with code 0"),
        (
            "mine=echo '{\"id\":1,\"ok\":{\"protocol\":[9,0],\"provider\":\"mine\",\"device\":\"\",\"versions\":{},\
             \"timing_hash\":\"\",\"golden_hash\":\"\"}}'"
                .to_owned(),
            "protocol 9.0",
        ),
        (
            "mine=echo '{\"id\":1,\"ok\":{\"protocol\":[1,0],\"provider\":\"mine\",\"device\":\"\",\"versions\":{},\
             \"timing_hash\":\"\",\"golden_hash\":\"0\"}}'"
                .to_owned(),
            "other inputs",
        ),
    ] {
        attnbench()
            .args(["run", "--provider", &command, "--out"])
            .args([out.as_os_str(), suite.as_os_str()])
            .assert()
            .code(5);
        let record = record(&out);
        let case = case(&record, "honest");
        assert_eq!(case["disposition"], "crashed", "{command}");
        let said = case["reason"].as_str().unwrap_or_default();
        assert!(said.contains(reason), "{command}: `{said}` does not mention `{reason}`");
    }
}
