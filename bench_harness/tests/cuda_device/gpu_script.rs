//! `ci/gpu.sh`, which measures on machines that are lent for minutes: nothing in it may be run there for the first time.

use std::path::Path;

use assert_cmd::Command;
use assert_cmd::assert::Assert;

use crate::emulator::on_device;

/// Suites with the names that the script knows, of one small problem each.
fn suites(folder: &Path) {
    let suite = |name: &str, rounds: u32, matrix: &str| {
        let text = format!(
            "description = \"small problems\"\n[measure]\nrounds = {rounds}\nmin_samples = 4\nmax_samples = 4\n\
             budget_ms = 1\noracle_flops = 2_000_000\n[[matrix]]\nname = \"small\"\nreason = \"a test\"\n\
             causal = true\nheads = \"2:1\"\nhead_dim = 64\nseqlen = 40\n{matrix}\n"
        );
        std::fs::write(folder.join(format!("{name}.toml")), text).expect("a temporary folder is writable");
    };
    let providers = "providers = [\"cuda\", \"torch\"]\nkernels = [\"flash\", \"sdpa_flash\"]\ndtype = \"bf16\"\n\
                     include = [\"cuda/flash/*\", \"torch/*\"]";
    suite("cuda_correctness", 1, "providers = \"cuda\"\nkernels = [\"naive\", \"flash\"]\ndtype = \"bf16\"");
    suite("cuda_peers", 1, providers);
    suite("tune", 1, "providers = \"cuda\"\nkernels = [\"flash\", \"naive\"]\ndtype = \"bf16\"");
    // As suites for every device are: in f32, which `flash` does not compute there.
    suite("ci", 1, "kernels = \"flash\"");
}

/// A tool that runs what it is to watch, and then says that it found something.
fn sanitizer(folder: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let path = folder.join("compute-sanitizer");
    let script = "#!/bin/sh\nwhile [ \"$1\" != --error-exitcode ]; do shift; done\nshift 2\n\"$@\"\ncode=$?\n\
                  echo '========= ERROR SUMMARY: 2 errors'\nexit $code\n";
    std::fs::write(&path, script).expect("a temporary folder is writable");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("it can be made executable");
}

fn script(folder: &Path, arguments: &[&str]) -> (Assert, String) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut path = vec![folder.to_owned()];
    path.extend(std::env::split_paths(&std::env::var_os("PATH").expect("there is a PATH")));
    let assert = on_device(Command::new(root.join("ci/gpu.sh")))
        .args(["--binary", env!("CARGO_BIN_EXE_attnbench"), "--suite-folder", folder.to_str().expect("UTF-8")])
        .args(["--suites", "ci"])
        .args(arguments)
        .env("PATH", std::env::join_paths(path).expect("no colons in it"))
        .assert();
    let said = String::from_utf8_lossy(&assert.get_output().stdout).into_owned();
    (assert, said)
}

#[test]
fn every_step_runs_and_keeps_its_records() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    suites(folder.path());
    sanitizer(folder.path());
    let out = folder.path().join("out");
    let tiles = ["--tune-kernels", "flash3 flash", "--tiles", "rows64-keys64-*"];
    let arguments = [&tiles[..], &["--include", "*", out.to_str().expect("UTF-8")]].concat();
    let (assert, said) = script(folder.path(), &arguments);
    // How long a kernel of a known length takes here is for the machine's load to say, and so is what differs between two
    // runs. What the sanitizer found is a failure of its own, although what it watched went well.
    assert.code(1);
    for line in [
        "ok   devices",
        "ok   correctness",
        "ok   peers",
        "ok   aa-a",
        "ok   aa-b",
        "ok   energy",
        "ok   tune-flash",
        "ok   ci",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    assert!(said.contains("2 of 2 cases measured"), "{said}");
    assert!(said.contains(" selftest") && said.contains("tolerance 1 %"), "{said}");
    assert!(said.contains("ok   aa (") || said.contains("FAIL aa: exit code"), "{said}");
    assert!(said.contains("A/A spread of round medians"), "{said}");
    assert!(said.contains("none tune-flash3: the selection leaves no case of it"), "{said}");
    assert!(said.contains("keep: ") || said.contains("take another: "), "{said}");
    let choices: toml::Table =
        std::fs::read_to_string(out.join("tune-flash.toml")).expect("choices").parse().expect("TOML");
    assert_eq!(choices["choice"][0]["class"].as_str(), Some("d64 plain"));
    assert!(said.contains("FAIL memcheck: its log has what it found"), "{said}");
    assert!(said.contains("ERROR SUMMARY: 2 errors"), "{said}");
    assert_eq!(std::fs::read_to_string(out.join("summary.txt")).expect("a summary"), said);
    for name in [
        "correctness",
        "peers",
        "example",
        "aa-a",
        "aa-b",
        "energy",
        "tune-flash.screen",
        "ci",
        "memcheck",
        "racecheck",
    ] {
        let text = std::fs::read_to_string(out.join(format!("{name}.json"))).unwrap_or_else(|e| panic!("{name}: {e}"));
        let record: serde_json::Value = serde_json::from_str(&text).expect("records are JSON");
        assert_eq!(record["fingerprint"]["gpu_model"], "attnbench emulated device", "{name}");
        assert!(!out.join(format!("{name}.json.journal")).exists(), "{name} is whole");
    }
}

#[test]
fn steps_are_chosen_cut_and_packed() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    suites(folder.path());
    let out = folder.path().join("out").display().to_string();
    let (assert, said) = script(folder.path(), &["--pack", &out, "correctness", "devices"]);
    assert.code(0);
    let order = ["ok   devices", "ok   correctness", "all steps passed"].map(|line| said.find(line).expect(line));
    assert!(order.is_sorted(), "{said}");
    let mut files: Vec<_> =
        std::fs::read_dir(&out).expect("a folder").map(|entry| entry.expect("a file").file_name()).collect();
    files.sort();
    assert_eq!(files, ["results.tar.gz", "summary.txt"]);
    let listed = Command::new("tar").args(["-tzf", "results.tar.gz"]).current_dir(&out).assert().success();
    let listed = String::from_utf8_lossy(&listed.get_output().stdout).into_owned();
    assert!(listed.contains("./correctness.json\n") && listed.contains("./devices.log\n"), "{listed}");

    let (assert, said) = script(folder.path(), &["--seconds", "16", &out, "correctness"]);
    assert.code(1);
    assert!(said.contains("CUT  correctness: not begun, 16 s are over"), "{said}");
    let (assert, said) = script(folder.path(), &["--include", "*/nothing/*", &out, "correctness"]);
    assert.code(0);
    assert!(said.contains("none correctness: the selection leaves no case of it"), "{said}");
    let (assert, _) = script(folder.path(), &[&out, "everything"]);
    let stderr = String::from_utf8_lossy(&assert.code(2).get_output().stderr).into_owned();
    assert!(stderr.contains("there is no step `everything`"), "{stderr}");
    let (assert, _) = script(folder.path(), &["--unknown", &out]);
    let stderr = String::from_utf8_lossy(&assert.code(2).get_output().stderr).into_owned();
    assert!(stderr.contains("usage: ci/gpu.sh"), "{stderr}");
}
