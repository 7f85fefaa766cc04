//! `tune`: candidates measured, a contender confirmed or not, choices written. What is fastest here says nothing.

use serde_json::Value;

use crate::emulator::attnbench;
use crate::{prefill, suite};

#[test]
fn candidates_are_verified_measured_and_written_down() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let suite = suite(folder.path(), "", &prefill("[\"naive\", \"flash\"]", "dtype = \"bf16\"\nseqlen = 40"));
    let out = folder.path().join("choices.toml");
    let arguments = ["--tiles", "rows64-keys64-*", "--rounds", "2", "--confirm-rounds", "2", "--json"];
    let assert = attnbench()
        .args(["tune", suite.to_str().expect("a path of text"), "--out"])
        .arg(&out)
        .args(arguments)
        .assert()
        .code(0);
    let choices: Value = serde_json::from_slice(&assert.get_output().stdout).expect("JSON");
    let choice = &choices[0];
    assert_eq!((&choice["kernel"], &choice["class"]), (&"flash".into(), &"d64 plain".into()));
    assert_eq!(choices.as_array().map(Vec::len), Some(1), "naive has no choice");
    // Two rounds confirm nothing, whatever they saw.
    assert_eq!(choice["best"], choice["taken"]);
    assert_eq!(choice["screened"][0]["tiles"], "rows64-keys64-warps4");
    assert!(choice["screened"][0]["time_ratio"]["value"].as_f64().is_some_and(|ratio| ratio > 0.0), "{choice}");
    let written: toml::Table = std::fs::read_to_string(&out).expect("written").parse().expect("TOML");
    assert_eq!(written["fingerprint"]["gpu_model"].as_str(), Some("attnbench emulated device"));
    assert_eq!(written["choice"][0]["kernel"].as_str(), Some("flash"));
    let screen: Value =
        serde_json::from_slice(&std::fs::read(out.with_extension("screen.json")).expect("kept")).expect("JSON");
    let kernels: Vec<&str> = screen["cases"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|case| case["case_id"].as_str()?.split('/').nth(1))
        .collect();
    assert_eq!(kernels, ["flash+rows128-keys64-warps4", "flash+rows64-keys64-warps4"]);
    assert!(screen["cases"].as_array().expect("a list").iter().all(|case| case["disposition"] == "measured"));
}

#[test]
fn what_cannot_be_tuned_is_said_and_what_can() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let suite = suite(folder.path(), "", &prefill("[\"naive\"]", "dtype = \"bf16\"\nseqlen = 40"));
    let refused = |arguments: &[&str]| {
        let output = attnbench().arg("tune").arg(&suite).args(arguments).assert().code(2).get_output().stderr.clone();
        String::from_utf8_lossy(&output).into_owned()
    };
    assert!(refused(&[]).contains("flash, flash3, split_kv"));
    assert!(refused(&["--kernel", "naive"]).contains("flash, flash3, split_kv"));
    assert!(refused(&["--device", "cpu"]).contains("constants of the build"));
    assert!(refused(&["--device", "cuda:0,1"]).contains("name one"));
    assert!(refused(&["--device", "cuda:0", "--resources"]).contains("--resources"));
}
