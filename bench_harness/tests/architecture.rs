//! The invariants of ARCHITECTURE.md, kept by reading the sources.

use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in a workspace").to_owned()
}

/// Rust sources below a folder (or one file), with their texts up to the unit tests.
fn sources(place: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut pending = vec![root().join(place)];
    assert!(pending[0].exists(), "{place} is where ARCHITECTURE.md says");
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            let entries = std::fs::read_dir(&path).expect("readable").map(|entry| entry.expect("readable").path());
            pending.extend(entries);
        } else if path.extension().is_some_and(|extension| extension == "rs")
            && path.file_name().is_none_or(|name| name != "tests.rs")
        {
            let text = std::fs::read_to_string(&path).expect("readable");
            let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_owned();
            found.push((path, code));
        }
    }
    assert!(!found.is_empty(), "{place} has sources");
    found
}

fn assert_absent(places: &[&str], words: &[&str], why: &str) {
    for place in places {
        for (path, code) in sources(place) {
            let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
            for line in lines {
                for word in words {
                    assert!(!line.contains(word), "{}: `{}`: {why}", path.display(), line.trim());
                }
            }
        }
    }
}

#[test]
fn kernels_know_no_harness() {
    assert_absent(&["kernels/src"], &["attnbench", "bench_harness"], "kernels never import the harness");
}

#[test]
fn statistics_verdicts_and_reports_are_pure() {
    let impure = [
        "std::fs",
        "std::net",
        "std::env",
        "std::process",
        "Instant::now",
        "SystemTime",
        "Timestamp::now",
        "println!",
        "eprintln!",
        "rand::rng(",
        "thread_rng",
        "static mut",
        "Mutex",
        "OnceLock",
        "std::thread",
    ];
    let bench = "bench_harness/src";
    let pure = ["stats", "compare", "gate", "report", "metric"].map(|folder| format!("{bench}/{folder}"));
    assert_absent(&pure.each_ref().map(String::as_str), &impure, "what is pure is a function of its arguments");
}

#[test]
fn nothing_reaches_up_to_the_commands() {
    for folder in std::fs::read_dir(root().join("bench_harness/src")).expect("readable") {
        let path = folder.expect("readable").path();
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
        if !matches!(name.as_str(), "commands" | "main.rs") {
            assert_absent(&[&format!("bench_harness/src/{name}")], &["crate::commands"], "commands call the library");
        }
    }
}

#[test]
fn commands_print_through_one_file() {
    // The macros panic where the reader of a pipe has gone. A blank in front tells them from those for stderr.
    assert_absent(&["bench_harness/src/commands"], &[" println!(", " print!("], "print with commands/terminal.rs");
}

#[test]
fn drivers_are_touched_in_one_place() {
    for folder in std::fs::read_dir(root().join("bench_harness/src")).expect("readable") {
        let path = folder.expect("readable").path();
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
        if matches!(name.as_str(), "device" | "commands") {
            continue;
        }
        assert_absent(
            &[&format!("bench_harness/src/{name}")],
            &["cudarc", "nvml_wrapper"],
            "CUDA and NVML are loaded in device/ and named in commands/devices.rs",
        );
    }
    for (path, code) in sources("bench_harness/src/commands") {
        let is_devices = path.file_name().is_some_and(|name| name == "devices.rs");
        assert!(is_devices || !code.contains("cudarc"), "{}", path.display());
    }
}

#[test]
fn the_oracle_is_derived_apart() {
    assert_absent(
        &["kernels/src/reference"],
        &["crate::cpu", "Visibility", "crate::kernel"],
        "an oracle that shares code with what it judges shares its errors",
    );
}

#[test]
fn every_kernel_and_subcommand_is_in_its_table() {
    for (folder, kernel) in [("kernels/src/cpu", "impl Kernel for "), ("kernels/src/cuda", "impl CudaKernel for ")] {
        let table = std::fs::read_to_string(root().join(folder).join("mod.rs")).expect("readable");
        for (path, code) in sources(folder) {
            // Candidates of tiles are kernels that the table's kernels list themselves.
            if code.contains(kernel) && !path.ends_with("cuda/tiles.rs") {
                let stem = path.file_stem().and_then(|stem| stem.to_str()).expect("a name");
                assert!(table.contains(&format!("&{stem}::")), "{} is missing in {folder}/mod.rs", path.display());
            }
        }
    }
    let commands = std::fs::read_to_string(root().join("bench_harness/src/commands/mod.rs")).expect("readable");
    for (path, code) in sources("bench_harness/src/commands") {
        if code.contains("#[derive(clap::Args") {
            let stem = path.file_stem().and_then(|stem| stem.to_str()).expect("a name");
            let folder = path.parent().and_then(Path::file_name).and_then(|name| name.to_str()).expect("a folder");
            let module = if stem == "mod" { folder } else { stem };
            assert!(commands.contains(&format!("{module}::Args")), "{} is missing in Command", path.display());
        }
    }
}

/// Numbers that decide are quoted from where they are defined.
#[test]
fn the_readme_states_the_policy() {
    let text = std::fs::read_to_string(root().join("README.md")).expect("README.md exists");
    let policy = attnbench::gate::policy::Policy::default();
    let (sessions, gross) = (policy.min_sessions, (policy.gross_threshold * 100.0).round());
    let (screen, confirm) = (policy.screen_pairs, policy.confirm_pairs);
    for said in [
        format!("fewer than {sessions} runs"),
        format!("{sessions} sessions"),
        format!("beyond {gross} %"),
        format!("Every case gets {screen} pairs"),
        format!("p <= {:.2} gets {confirm} new ones", policy.screen_p),
        format!("the floor: {} %", policy.floor * 100.0),
    ] {
        assert!(text.contains(&said), "README.md says `{said}`");
    }
}

#[test]
fn documents_name_paths_that_exist() {
    for document in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "suites/README.md", "baselines/README.md"] {
        let text = std::fs::read_to_string(root().join(document)).unwrap_or_else(|_| panic!("{document} exists"));
        let quoted = text.split('`').skip(1).step_by(2);
        let roots = ["kernels/", "bench_harness/", "suites/", "baselines/", "ci/"];
        for path in quoted.filter(|path| roots.iter().any(|root| path.starts_with(root))) {
            if path.contains(['*', '<', '{', ' ', '$']) || path.contains("NAME") {
                continue;
            }
            assert!(root().join(path).exists(), "{document} names `{path}`, which does not exist");
        }
    }
}
