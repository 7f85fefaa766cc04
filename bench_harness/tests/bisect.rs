//! `bisect` on a real repository: a planted slowdown among commits that change nothing, do not build or do not run.
//!
//! The built worker is a script that starts the worker in `tests/workers/dishonest.rs` with committed arguments. Its
//! kernel `spins` waits for the clock, so its times hardly depend on what else the machine does.

mod support;

use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;
use support::dishonest_provider;

/// Few pairs, so that a search takes seconds, and a level that a disturbed pair or two do not keep from being reached.
const POLICY: &str = "screen_pairs = 6\nscreen_p = 0.3\nconfirm_pairs = 8\nmax_pairs = 14\nfalse_discovery_rate = \
                      0.1\nlook_p = 0.9\ninput_seeds = 2\npair_samples = 4\n";
const SUITE: &str = "description = \"small\"\n[measure]\nmin_samples = 4\nmax_samples = 4\nbudget_ms = 200\n[[matrix]]\nname \
                     = \"small\"\nreason = \"a test\"\nproviders = [\"test\"]\nkernels = [\"spins\", \"slowed\"]\nphase = \
                     \"prefill\"\nheads = \"1:1\"\nseqlen = 32\nhead_dim = 16\nthreads = 1\n";

struct Project {
    folder: tempfile::TempDir,
}

impl Project {
    fn new() -> Project {
        let project = Project { folder: tempfile::tempdir().expect("a temporary folder") };
        std::fs::create_dir_all(project.root()).expect("made");
        project.git(&["init", "-q", "-b", "main"]);
        project.write("ci/gate.toml", POLICY);
        project.write("suites/ci.toml", SUITE);
        project.write("build.sh", "cp worker.sh $CARGO_TARGET_DIR/worker && chmod +x $CARGO_TARGET_DIR/worker\n");
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

    fn spins(&self, ns: u32) {
        let command = dishonest_provider(&format!("--spin-ns {ns}"));
        let command = command.strip_prefix("test=").expect("the provider's name");
        self.write("worker.sh", &format!("#!/bin/sh\nexec {command}\n"));
    }

    /// Commits everything; answers the hash.
    fn commit(&self, message: &str) -> String {
        self.write("notes.txt", message);
        self.git(&["add", "-A"]);
        self.git(&["-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "-qm", message]);
        self.git(&["rev-parse", "HEAD"])
    }

    fn git(&self, arguments: &[&str]) -> String {
        let done = Command::new("git").args(arguments).current_dir(self.root()).output().expect("git is installed");
        assert!(done.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8_lossy(&done.stdout).trim().to_owned()
    }

    fn bisect(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_attnbench"));
        command.current_dir(self.root()).env("ATTNBENCH_CACHE", self.folder.path().join("cache"));
        command.args(["bisect", "--case", "test/spins/*", "--build", "sh build.sh", "--binary", "worker", "--json"]);
        command.args(["--provider", "test={worker}"]).args(arguments);
        command.output().expect("the binary runs")
    }
}

fn said(output: &Output) -> String {
    let [out, err] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    format!("{out}{err}")
}

#[test]
fn a_planted_slowdown_is_found_confirmed_and_resumed() {
    let project = Project::new();
    project.spins(2_000_000);
    let good = project.commit("fast");
    project.commit("nothing changes");
    let build = std::fs::read_to_string(project.root().join("build.sh")).expect("readable");
    project.write("build.sh", "exit 1\n");
    project.commit("does not build");
    project.write("build.sh", &build);
    let parent = project.commit("builds again");
    project.spins(4_000_000);
    let culprit = project.commit("slower");
    project.commit("nothing changes either");
    project.write("worker.sh", "#!/bin/sh\nexit 7\n");
    project.commit("does not run");
    project.spins(4_000_000);
    project.commit("runs again");
    let bad = project.commit("last");

    let kept = project.folder.path().join("search.json");
    let kept = kept.to_str().expect("UTF-8");
    let found = project.bisect(&["--good", &good, "--bad", &bad, "--out", kept]);
    assert_eq!(found.status.code(), Some(0), "{}", said(&found));
    let report: Value = serde_json::from_slice(&found.stdout).expect("JSON");
    assert_eq!(report["culprit"]["commit"], culprit.as_str(), "{}", said(&found));
    assert_eq!(report["culprit"]["subject"], "slower");
    let slowdown = report["confirmed_slowdown"].as_f64().expect("confirmed");
    assert!((0.3..2.0).contains(&slowdown), "{slowdown}");
    let tests = report["tests"].as_array().expect("a list").len();
    assert!((3..=6).contains(&tests), "{}", said(&found));

    // What was found once is not measured again, and a file of another search is refused.
    let again = project.bisect(&["--good", &good, "--bad", &bad, "--resume", kept]);
    assert_eq!(again.status.code(), Some(0), "{}", said(&again));
    let resumed: Value = serde_json::from_slice(&again.stdout).expect("JSON");
    assert_eq!(resumed["tests"], report["tests"]);
    let other = project.bisect(&["--good", &parent, "--bad", &bad, "--resume", kept]);
    assert_eq!(other.status.code(), Some(2));
    assert!(said(&other).contains("it searches another good commit"), "{}", said(&other));

    let reversed = project.bisect(&["--good", &bad, "--bad", &good]);
    assert_eq!(reversed.status.code(), Some(2));
    assert!(said(&reversed).contains("good is no ancestor of bad"), "{}", said(&reversed));
}

#[test]
fn without_a_difference_there_is_nothing_to_search() {
    let project = Project::new();
    project.spins(1_000_000);
    let good = project.commit("fast");
    let bad = project.commit("as fast");
    let kept = project.folder.path().join("search.json");
    let kept = kept.to_str().expect("UTF-8");
    let found = project.bisect(&["--good", &good, "--bad", &bad, "--out", kept]);
    assert_eq!(found.status.code(), Some(3), "{}", said(&found));
    assert!(said(&found).contains("nothing to search"), "{}", said(&found));
    let one = project.bisect(&["--good", &bad, "--bad", &bad, "--out", kept]);
    assert!(said(&one).contains("they are one commit"), "{}", said(&one));
}
