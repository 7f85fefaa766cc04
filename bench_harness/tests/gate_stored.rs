//! `gate RECORD --baseline NAME` in a real repository: whose policy, acceptances and baseline count.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

const RECORD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/record.json");

/// A repository on a branch that is one commit ahead of `main`.
struct Project {
    folder: tempfile::TempDir,
}

impl Project {
    /// What `main` has, besides a baseline of times as they are.
    fn new(files: &[(&str, &str)]) -> Project {
        let project = Project { folder: tempfile::tempdir().expect("a temporary folder") };
        project.git(&["init", "-q", "-b", "main"]);
        files.iter().for_each(|(name, text)| project.write(name, text));
        project.write("base.json", &run("base", 1.0).to_string());
        project.write("head.json", &run("head", 1.5).to_string());
        let saved = project.attnbench(&["baseline", "save", "base.json", "--name", "here/small"]);
        assert_eq!(saved.0, 0, "{}", saved.1);
        project.commit("base");
        project.git(&["checkout", "-q", "-b", "change"]);
        project.write("changed", "");
        project.commit("change");
        project
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.folder.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        std::fs::write(path, text).expect("written");
    }

    fn git(&self, arguments: &[&str]) {
        git(self.folder.path(), arguments);
    }

    fn commit(&self, message: &str) {
        self.git(&["add", "-A"]);
        self.git(&["-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "-qm", message]);
    }

    fn attnbench(&self, arguments: &[&str]) -> (i32, String) {
        attnbench(self.folder.path(), arguments)
    }

    /// The exit code and the report of a gate of `head.json`.
    fn gate(&self, arguments: &[&str]) -> (i32, Value) {
        let (code, said) = self.attnbench(&[&["gate", "head.json", "--json"], arguments].concat());
        (code, serde_json::from_str(&said).unwrap_or_else(|_| panic!("no report: {said}")))
    }
}

fn git(folder: &Path, arguments: &[&str]) {
    let done = Command::new("git").args(arguments).current_dir(folder).output().expect("git is installed");
    assert!(done.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
}

/// The exit code, and what was printed: on stdout, else on stderr.
fn attnbench(folder: &Path, arguments: &[&str]) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_attnbench"));
    for name in ["GITHUB_BASE_REF", "CI_MERGE_REQUEST_TARGET_BRANCH_NAME", "BUILDKITE_PULL_REQUEST_BASE_BRANCH"] {
        command.env_remove(name);
    }
    let output = command.args(arguments).current_dir(folder).output().expect("the binary runs");
    let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    (output.status.code().expect("no signal"), String::from_utf8(text).expect("UTF-8"))
}

/// A run of five rounds whose kernels take `factor` times what the example's do.
fn run(id: &str, factor: f64) -> Value {
    let mut record: Value = serde_json::from_str(&std::fs::read_to_string(RECORD).expect("it is there")).expect("JSON");
    record["run"]["id"] = json!(id);
    record["run"]["rounds_planned"] = json!(5);
    let cases = record["cases"].as_array_mut().expect("a list");
    cases.retain(|case| case["disposition"] == "measured");
    for case in cases {
        let first = case["rounds"][0].clone();
        let round = |number: u64| {
            let mut round = first.clone();
            round["round"] = json!(number);
            let scale = factor * (1.0 + 0.001 * number as f64);
            for name in ["device_ns", "wall_ns"] {
                for ns in round[name].as_array_mut().into_iter().flatten() {
                    *ns = json!((ns.as_f64().expect("a time") * scale).round());
                }
            }
            round
        };
        case["rounds"] = (0..5).map(round).collect();
    }
    record
}

fn notes(report: &Value) -> String {
    report["comparison"]["notes"].to_string()
}

const LAX: &str = "gross_threshold = 10.0\nmax_mde = 1000.0\nmin_decided = 0.0\n";

#[test]
fn a_change_cannot_bring_its_own_policy() {
    let strict = Project::new(&[("ci/gate.toml", "floor = 0.02\n")]);
    strict.write("ci/gate.toml", LAX);
    assert_eq!(strict.gate(&["--baseline", "here/small"]).0, 1, "what is not committed does not count");
    strict.commit("a lax policy");
    let (code, report) = strict.gate(&["--baseline", "here/small"]);
    assert_eq!(code, 1, "nor does what the change commits: {report:#}");
    assert_ne!(strict.gate(&["--baseline", "here/small", "--against", "HEAD"]).0, 1, "it does once it is base");
    assert_eq!(strict.gate(&["--baseline", "here/small", "--target", "main"]).0, 1);

    let lax = Project::new(&[("ci/gate.toml", LAX)]);
    let (code, report) = lax.gate(&["--baseline", "here/small"]);
    assert_ne!(code, 1, "base's policy is read: {report:#}");
    lax.write("mine.toml", "floor = 0.02\n");
    assert_eq!(lax.gate(&["--baseline", "here/small", "--policy", "mine.toml"]).0, 1, "the command line's comes first");
}

#[test]
fn acceptances_count_once_they_are_merged() {
    let project = Project::new(&[]);
    let accept = ["accept", "--case", "*", "--metric", "latency_ns_median", "--at-most", "60", "--reason", "NaN rows"];
    let done = project.attnbench(&[&accept[..], &["--by", "me"]].concat());
    assert_eq!(done.0, 0, "{}", done.1);
    project.commit("accept");
    assert_eq!(project.gate(&["--baseline", "here/small"]).0, 1);
    project.git(&["branch", "-f", "main", "HEAD"]);
    let (code, report) = project.gate(&["--baseline", "here/small"]);
    assert_ne!(code, 1, "{report:#}");
    assert_eq!(report["accepted"][0]["reason"], "NaN rows", "{report:#}");
}

#[test]
fn a_named_baseline_is_that_of_base() {
    let project = Project::new(&[]);
    let saved = project.attnbench(&["baseline", "save", "--replace", "head.json", "--name", "here/small"]);
    assert_eq!(saved.0, 0, "{}", saved.1);
    let (code, report) = project.gate(&["--baseline", "here/small"]);
    assert_eq!(code, 1, "{report:#}");
    assert!(notes(&report).contains("`baselines/here/small.json` is not as base has it"), "{report:#}");
    // A file is what it is, and so is a name that base does not know.
    assert_ne!(project.gate(&["--baseline", "baselines/here/small.json"]).0, 1);
    assert_eq!(project.attnbench(&["baseline", "save", "base.json", "--name", "here/other"]).0, 0);
    let (code, report) = project.gate(&["--baseline", "here/other"]);
    assert_eq!(code, 1, "{report:#}");
    assert!(notes(&report).contains("base has no `baselines/here/other.json`"), "{report:#}");
    // Base has its file even where the change takes it away, and from whatever folder it is asked for.
    std::fs::remove_dir_all(project.folder.path().join("baselines")).expect("removed");
    assert_eq!(project.gate(&["--baseline", "here/small"]).0, 1);
    std::fs::create_dir(project.folder.path().join("deep")).expect("made");
    let from_below = ["gate", "../head.json", "--baseline", "here/small", "--baselines", "../baselines"];
    assert_eq!(attnbench(&project.folder.path().join("deep"), &from_below).0, 1);
}

#[test]
fn without_a_base_it_says_so() {
    let outside = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(outside.path().join("base.json"), run("base", 1.0).to_string()).expect("written");
    std::fs::write(outside.path().join("head.json"), run("head", 1.5).to_string()).expect("written");
    assert_eq!(attnbench(outside.path(), &["baseline", "save", "base.json", "--name", "here/small"]).0, 0);
    let (code, said) = attnbench(outside.path(), &["gate", "head.json", "--baseline", "here/small"]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("no commit is here to read a policy from"), "{said}");

    let project = Project::new(&[]);
    let clone = tempfile::tempdir().expect("a temporary folder");
    let from = format!("file://{}", project.folder.path().display());
    git(clone.path(), &["clone", "-q", "--depth", "1", "--branch", "change", &from, "."]);
    let (code, said) = attnbench(clone.path(), &["gate", "head.json", "--baseline", "here/small", "--target", "main"]);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("--against REF") && said.contains("fetch --unshallow"), "{said}");
    assert_eq!(attnbench(clone.path(), &["gate", "head.json", "--baseline", "here/small", "--against", "HEAD"]).0, 1);
}
