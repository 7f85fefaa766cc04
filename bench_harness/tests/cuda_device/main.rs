//! The CUDA back end on the emulated device: real runs, in which only the driver and the compiler are replaced.

mod emulator;
mod gpu_script;
mod runs;
mod slowdown;
mod trouble;
mod tune;
mod user_kernels;

use std::path::{Path, PathBuf};

use serde_json::Value;

/// A suite with these lines after its `[measure]`.
pub(crate) fn suite(folder: &Path, measure: &str, matrices: &str) -> PathBuf {
    let path = folder.join("small.toml");
    let text = format!(
        "description = \"small problems\"\n[measure]\nrounds = 1\nmin_samples = 4\nmax_samples = 4\nbudget_ms = 1\n\
         oracle_flops = 2_000_000\n{measure}\n{matrices}"
    );
    std::fs::write(&path, text).expect("a temporary folder is writable");
    path
}

/// A matrix of one small prefill problem.
pub(crate) fn prefill(kernels: &str, more: &str) -> String {
    format!(
        "[[matrix]]\nname = \"prefill\"\nreason = \"a test\"\nkernels = {kernels}\ncausal = true\nheads = \"2:1\"\n\
         head_dim = 64\n{more}\n"
    )
}

/// The record of a run in a folder, and what it wrote to stderr.
pub(crate) fn run(folder: &Path, arguments: &[&str], environment: &[(&str, &str)], code: i32) -> (Value, String) {
    let out = folder.join("record.json");
    let assert = emulator::attnbench()
        .arg("run")
        .args(arguments)
        .arg("--out")
        .arg(&out)
        .envs(environment.iter().copied())
        .assert()
        .code(code);
    let stderr = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    let text = std::fs::read_to_string(&out).unwrap_or_else(|error| panic!("no record: {error}\n{stderr}"));
    (serde_json::from_str(&text).expect("records are JSON"), stderr)
}

/// Kernel and disposition of every case.
pub(crate) fn dispositions(record: &Value) -> Vec<(String, String)> {
    let cases = record["cases"].as_array().expect("a list");
    let kernel = |case: &Value| case["case_id"].as_str().and_then(|id| id.split('/').nth(1)).expect("an id").to_owned();
    cases.iter().map(|case| (kernel(case), case["disposition"].as_str().expect("a name").to_owned())).collect()
}
