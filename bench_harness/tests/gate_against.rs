//! `gate --against` from a repository to an exit code: real commits, real builds, real worker processes.
//!
//! The built worker is a script that starts the worker in `tests/workers/dishonest.rs` with arguments that are committed,
//! so that a build takes no time. Its kernel `spins` waits for the clock: its times hardly depend on what else the machine
//! does.

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use support::dishonest_provider;

/// Few pairs, so that a gate takes seconds; nothing is asked of what it decides beside regressions.
const POLICY: &str = "false_discovery_rate = 0.02\nscreen_pairs = 4\nconfirm_pairs = 7\nmax_pairs = 11\nsimulations = 20\ninput_seeds = 2\npair_samples \
                      = 4\nmax_mde = 1000.0\nmin_decided = 0.0\nmargin = 0.5\ncontrol_floor = 100.0\n";

struct Project {
    folder: tempfile::TempDir,
}

impl Project {
    /// A repository whose only commit has a suite of these kernels and a worker with these arguments.
    fn new(kernels: &[&str], arguments: &str) -> Project {
        let project = Project { folder: tempfile::tempdir().expect("a temporary folder") };
        std::fs::create_dir_all(project.root()).expect("made");
        project.git(&["init", "-q", "-b", "main"]);
        project.write("ci/gate.toml", POLICY);
        project.write("build.sh", "echo building; cp worker.sh $CARGO_TARGET_DIR/worker\n");
        project.suite(kernels);
        project.worker(arguments);
        project.commit("base");
        project
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("project")
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.root().join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        std::fs::write(&path, text).expect("written");
    }

    fn suite(&self, kernels: &[&str]) {
        let kernels = kernels.iter().map(|kernel| format!("\"{kernel}\"")).collect::<Vec<_>>().join(", ");
        let text = format!(
            "description = \"small\"\n[measure]\nmin_samples = 4\nmax_samples = 4\nbudget_ms = 200\n[[matrix]]\nname = \
             \"small\"\nreason = \"a test\"\nproviders = [\"test\"]\nkernels = [{kernels}]\nphase = \"prefill\"\nheads = \
             \"1:1\"\nseqlen = 32\nhead_dim = 16\nthreads = 1\n"
        );
        self.write("suites/ci.toml", &text);
    }

    fn worker(&self, arguments: &str) {
        let command = dishonest_provider(arguments);
        let command = command.strip_prefix("test=").expect("the provider's name");
        self.write("worker.sh", &format!("#!/bin/sh\nexec {command}\n"));
        let path = self.root().join("worker.sh");
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("executable");
    }

    fn commit(&self, message: &str) {
        self.git(&["add", "-A"]);
        self.git(&["-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "-qm", message]);
    }

    fn git(&self, arguments: &[&str]) {
        let done = Command::new("git").args(arguments).current_dir(self.root()).output().expect("git is installed");
        assert!(done.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    }

    fn command(&self, folder: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_attnbench"));
        command.args(arguments).current_dir(folder).env("ATTNBENCH_CACHE", self.folder.path().join("cache"));
        for name in ["GITHUB_BASE_REF", "CI_MERGE_REQUEST_TARGET_BRANCH_NAME", "BUILDKITE_PULL_REQUEST_BASE_BRANCH"] {
            command.env_remove(name);
        }
        command
    }

    /// A gate with a report in `report.json`.
    fn gate_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(&self.root(), &["gate", "--out"]);
        command.arg(self.folder.path().join("report.json"));
        command.args(["--build", "sh build.sh", "--binary", "worker", "--provider", "test={worker}"]).args(arguments);
        command
    }

    fn gate(&self, arguments: &[&str]) -> Gate {
        let output = self.gate_command(arguments).output().expect("the binary runs");
        let text = std::fs::read_to_string(self.folder.path().join("report.json")).unwrap_or_default();
        Gate { report: serde_json::from_str(&text).unwrap_or_default(), output }
    }
}

struct Gate {
    output: Output,
    report: Value,
}

impl Gate {
    fn code(&self) -> i32 {
        self.output.status.code().expect("no signal")
    }

    fn said(&self) -> String {
        let [out, err] = [&self.output.stdout, &self.output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
        format!("{out}{err}")
    }

    fn case(&self, kernel: &str) -> &Value {
        let cases = self.report["comparison"]["cases"].as_array().unwrap_or_else(|| panic!("{}", self.said()));
        let is_it = |case: &&Value| case["case_id"].as_str().is_some_and(|id| id.split('/').nth(1) == Some(kernel));
        cases.iter().find(is_it).unwrap_or_else(|| panic!("no case of {kernel}: {}", self.said()))
    }

    fn verdict(&self, kernel: &str) -> &str {
        self.case(kernel)["verdict"].as_str().expect("a verdict")
    }
}

fn spins(ns: u32) -> String {
    format!("--spin-ns {ns}")
}

/// A slower head fails, and its outcome is kept; merged acceptances let it through, those of the change itself do not.
#[test]
fn a_planted_slowdown_fails_until_it_is_accepted() {
    let project = Project::new(&["spins"], &spins(1_000_000));
    project.worker(&spins(30_000_000));
    let accept = |project: &Project| {
        let arguments = ["accept", "--case", "test/spins/*", "--metric", "latency_ns_median", "--at-most", "90000"];
        let done = project.command(&project.root(), &arguments).args(["--reason", "NaN rows", "--by", "me"]).output();
        let done = done.expect("the binary runs");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    };
    accept(&project);
    let store = project.folder.path().join("history.db");
    let store = store.to_str().expect("a path");
    let gate = project.gate(&["--against", "HEAD", "--store", store]);
    assert_eq!((gate.code(), gate.verdict("spins")), (1, "regressed"), "{}", gate.said());
    assert!(gate.report["headline"].as_str().is_some_and(|text| text.starts_with("judged 1 of 1, median MDE ")));
    let latency = &gate.case("spins")["metrics"][0];
    let ratio = latency["ratio"]["value"].as_f64().expect("a ratio");
    assert!(ratio > 2.0, "{latency}");
    let record = support::record(&project.folder.path().join("report.head.json"));
    assert_eq!(support::case(&record, "spins")["rounds"].as_array().map(Vec::len), Some(11), "samples are kept");
    let gates = project.command(&project.root(), &["history", "gates", "--json", "--store", store]).output();
    let gates: Value = serde_json::from_slice(&gates.expect("the binary runs").stdout).expect("JSON");
    assert_eq!(gates["gates"][0]["exit_code"], 1, "{gates}");

    // Merged first, it counts: only the worker differs now.
    project.worker(&spins(1_000_000));
    project.commit("accept");
    project.worker(&spins(30_000_000));
    let gate = project.gate(&["--against", "HEAD"]);
    assert_eq!((gate.code(), gate.verdict("spins")), (0, "unchanged"), "{}", gate.said());
    let second = String::from_utf8_lossy(&gate.output.stdout).lines().nth(1).unwrap_or_default().to_owned();
    assert!(second.starts_with("accepted for 1 case: latency_ns_median of test/spins/* up to 90000 %"), "{second}");
    assert_eq!(gate.report["accepted"][0]["reason"], "NaN rows");
}

/// What base's suite has is judged, whatever head makes of the suite; a base whose workers know less is one all the same.
#[test]
fn new_removed_and_failing_cases_against_an_old_worker() {
    let project = Project::new(&["spins", "honest", "slow_plan"], &format!("{} --old", spins(1_000_000)));
    project.suite(&["spins", "slow_plan", "nan"]);
    // The kernel is gone from head's worker.
    let worker = std::fs::read_to_string(project.root().join("worker.sh")).expect("a script");
    project.write("worker.sh", &worker.replace(" --old", " --without slow_plan"));
    let gate = project.gate(&["--against", "main"]);
    assert_eq!(gate.code(), 1, "{}", gate.said());
    assert_ne!(gate.verdict("spins"), "not_comparable", "{}", gate.said());
    assert_eq!(gate.verdict("honest"), "regressed");
    assert!(gate.case("honest")["reason"].as_str().is_some_and(|reason| reason.starts_with("removed")));
    assert_eq!(gate.verdict("slow_plan"), "regressed");
    assert!(
        gate.case("slow_plan")["reason"].as_str().is_some_and(|r| r.contains("measured on base, unsupported on head"))
    );
    assert_eq!((gate.case("nan")["base"].as_str(), gate.case("nan")["head"].as_str()), (None, Some("incorrect")));
    assert!(gate.said().contains("protocol 1.0 on base, 1.1 on head"), "{}", gate.said());

    // Both that were taken away may be so, where that is accepted.
    let gate = project.gate(&["--against", "main", "--accept-removed", "--exclude", "*/slow_plan/*"]);
    assert_ne!(gate.verdict("honest"), "regressed", "{}", gate.said());
}

/// A commit against itself may be undecided on a busy machine, and regressed only by chance: not three times in a row.
#[test]
fn a_commit_does_not_regress_against_itself() {
    let project = Project::new(&["spins", "honest"], &spins(1_000_000));
    let mut seen = Vec::new();
    for _ in 0..3 {
        // Not on a branch of its own, the merge base with main is HEAD.
        let gate = project.gate(&[]);
        assert!(matches!(gate.code(), 0 | 1 | 3), "{}", gate.said());
        assert!(gate.said().contains("base and head are the same bytes"), "{}", gate.said());
        if gate.code() != 1 {
            return;
        }
        seen.push(gate.said());
    }
    panic!("a commit regressed against itself three times in a row: {seen:#?}");
}

#[test]
fn what_cannot_start_says_why_and_what_to_do() {
    let project = Project::new(&["spins"], &spins(1_000_000));
    project.write("text", "more");
    project.commit("second");
    project.git(&["checkout", "-q", "-b", "change"]);
    let gate = project.gate(&["--against", "nowhere"]);
    assert_eq!(gate.code(), 2);
    assert!(gate.said().contains("finding commit `nowhere`") && gate.said().contains("git fetch"), "{}", gate.said());
    let gate = project.gate(&["--suite", "other"]);
    assert!(gate.code() == 2 && gate.said().contains("reading suite `suites/other.toml`"), "{}", gate.said());

    // A shallow clone, as CI systems make by default: of a branch whose history ends before the merge base.
    project.write("text", "even more");
    project.commit("third");
    let clone = project.folder.path().join("clone");
    let url = format!("file://{}", project.root().display());
    let branch = ["clone", "-q", "--depth", "1", "--no-single-branch", "-b", "change", &url];
    let done = Command::new("git").args(branch).arg(&clone).output().expect("git is installed");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let shallow = project.command(&clone, &["gate", "--target", "main"]).output().expect("the binary runs");
    let said = String::from_utf8_lossy(&shallow.stderr).into_owned();
    assert_eq!(shallow.status.code(), Some(2), "{said}");
    assert!(said.contains("git fetch --unshallow") && said.contains("--against REF"), "{said}");

    // A base that does not build.
    project.write("build.sh", "echo this is broken >&2; exit 7\n");
    project.commit("broken");
    project.write("build.sh", "cp worker.sh $CARGO_TARGET_DIR/worker\n");
    let gate = project.gate(&["--against", "HEAD"]);
    assert_eq!(gate.code(), 2, "{}", gate.said());
    let said = gate.said();
    let log = said.split("the log is `").nth(1).and_then(|rest| rest.split('`').next()).expect("the log's path");
    assert_eq!(std::fs::read_to_string(log).expect("the log is kept"), "this is broken\n");

    // Base's policy counts, and its mistakes are named; head's own is not even read.
    project.write("ci/gate.toml", "flor = 0.5\n");
    project.commit("policy");
    let gate = project.gate(&["--against", "HEAD"]);
    assert!(gate.code() == 2 && gate.said().contains("flor"), "{}", gate.said());
}

/// A base that cannot take part is an outcome like any other: in the report, in JSON, in the history.
#[test]
fn a_worker_that_cannot_take_part_is_reported() {
    let project = Project::new(&["spins"], &spins(1_000_000));
    project.write("worker.sh", "#!/bin/sh\nexit 9\n");
    project.commit("crashes at once");
    project.worker(&spins(1_000_000));
    let store = project.folder.path().join("gates.db");
    let gate = project.gate(&["--against", "HEAD", "--json", "--store", store.to_str().expect("UTF-8")]);
    assert_eq!(gate.code(), 5, "{}", gate.said());
    let printed: Value = serde_json::from_slice(&gate.output.stdout).expect("JSON");
    assert_eq!(printed, gate.report);
    let cause = gate.report["causes"][0].as_str().expect("a cause");
    assert!(cause.contains("the worker of base for provider `test`"), "{cause}");
    assert_eq!(gate.verdict("spins"), "not_comparable");
    assert!(gate.said().contains("gates.db"), "{}", gate.said());
}

#[test]
fn what_was_measured_before_a_kill_is_kept_and_gone_on_from() {
    let project = Project::new(&["spins"], &spins(1_000_000));
    project.worker(&spins(30_000_000));
    let journal = project.folder.path().join("report.json.journal");
    let pairs = || {
        let text = std::fs::read_to_string(&journal).unwrap_or_default();
        text.lines().filter(|line| line.starts_with("{\"pair\":")).map(str::to_owned).collect::<Vec<_>>()
    };
    let mut command = project.gate_command(&["--against", "HEAD"]);
    let mut gate = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the binary runs");
    while pairs().len() < 2 {
        assert!(gate.try_wait().expect("a status").is_none(), "it ended before it was killed");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    gate.kill().expect("killed");
    gate.wait().expect("ended");
    let kept = pairs();
    assert!(kept.len() >= 2);
    let again = project.gate(&["--against", "HEAD"]);
    assert!(again.code() == 2 && again.said().contains("--resume"), "{}", again.said());
    let resumed = project.gate(&["--against", "HEAD", "--resume", journal.to_str().expect("a path")]);
    assert_eq!((resumed.code(), resumed.verdict("spins")), (1, "regressed"), "{}", resumed.said());
    assert!(!journal.exists(), "its report is saved");
    let entry: Value = serde_json::from_str(&kept[0]).expect("JSON");
    let record = support::record(&project.folder.path().join("report.base.json"));
    let rounds = &support::case(&record, "spins")["rounds"];
    let times =
        |round: &Value| round["device_ns"].as_array().map(|times| times.iter().map(Value::as_f64).collect::<Vec<_>>());
    assert_eq!(times(&rounds[0]), times(&entry["pair"]["base"]), "the first pair is the killed gate's");
    assert_eq!(rounds.as_array().map(Vec::len), Some(11));
}
