//! What the integration tests share: the binary, the dishonest worker, small suites.
#![allow(dead_code, reason = "every test binary uses its own part")]

use std::path::{Path, PathBuf};

use assert_cmd::Command;
use serde_json::Value;

/// The built binary.
pub(crate) fn attnbench() -> Command {
    Command::new(env!("CARGO_BIN_EXE_attnbench"))
}

/// `--provider` for the worker in `tests/workers/dishonest.rs`.
pub(crate) fn dishonest_provider(arguments: &str) -> String {
    let binary = Path::new(env!("CARGO_BIN_EXE_attnbench"));
    let worker = binary.parent().expect("binaries are in a folder").join("examples/dishonest");
    assert!(worker.exists(), "cargo builds examples with the tests: {}", worker.display());
    format!("test='{}' --provider test {arguments}", worker.display())
}

/// A suite of one small problem for each of these kernels of a provider.
pub(crate) fn small_suite(folder: &Path, provider: &str, kernels: &[&str], measure: &str) -> PathBuf {
    let path = folder.join("small.toml");
    let kernels = kernels.iter().map(|kernel| format!("\"{kernel}\"")).collect::<Vec<_>>().join(", ");
    let text = format!(
        "description = \"one small problem\"\n\n[measure]\n{measure}\n\n[[matrix]]\nname = \"small\"\nreason = \"a \
         test\"\nproviders = [\"{provider}\"]\nkernels = [{kernels}]\nphase = \"prefill\"\ncausal = true\nheads = \
         \"4:2\"\nseqlen = 192\nhead_dim = 32\nthreads = 2\n"
    );
    std::fs::write(&path, text).expect("a temporary folder is writable");
    path
}

/// The record at a path.
pub(crate) fn record(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("no record {}: {error}", path.display()));
    serde_json::from_str(&text).expect("records are JSON")
}

/// The case of a record whose id starts with `provider/kernel/`.
pub(crate) fn case<'a>(record: &'a Value, kernel: &str) -> &'a Value {
    let is_it = |case: &&Value| case["case_id"].as_str().is_some_and(|id| id.split('/').nth(1) == Some(kernel));
    record["cases"].as_array().expect("a list").iter().find(is_it).unwrap_or_else(|| panic!("no case of {kernel}"))
}
