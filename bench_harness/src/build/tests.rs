use std::fs;
use std::path::PathBuf;

use git2::{IndexAddOption, Repository, RepositoryInitOptions, Signature, Time};

use super::*;

/// A repository whose build copies `text` into `made` and counts how often it ran.
struct Project {
    _folder: tempfile::TempDir,
    root: PathBuf,
    runs: PathBuf,
    repository: Repository,
}

impl Project {
    fn new() -> Project {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("project");
        let repository = Repository::init_opts(&root, RepositoryInitOptions::new().initial_head("main")).unwrap();
        let runs = folder.path().join("runs");
        Project { _folder: folder, root, runs, repository }
    }

    fn commit(&self, text: &str) -> String {
        fs::write(self.root.join("text"), text).unwrap();
        let mut index = self.repository.index().unwrap();
        index.add_all(["*"], IndexAddOption::DEFAULT, None).unwrap();
        index.write().unwrap();
        let tree = self.repository.find_tree(index.write_tree().unwrap()).unwrap();
        let author = Signature::new("a", "a@example.org", &Time::new(0, 0)).unwrap();
        let parent = self.repository.head().ok().map(|head| head.peel_to_commit().unwrap());
        let parents: Vec<_> = parent.iter().collect();
        self.repository.commit(Some("HEAD"), &author, &author, text, &tree, &parents).unwrap().to_string()
    }

    fn command(&self, script: &str) -> BuildCommand {
        let script = format!("echo run >> {}; {script}", self.runs.display());
        BuildCommand { argv: vec!["sh".into(), "-c".into(), script], binary: "made".into() }
    }

    fn copying(&self) -> BuildCommand {
        self.command("cp text $CARGO_TARGET_DIR/made")
    }

    fn builds(&self) -> Builds {
        Builds::open_in(&self.root, &self.root.with_file_name("cache")).unwrap()
    }

    fn runs(&self) -> usize {
        fs::read_to_string(&self.runs).map_or(0, |text| text.lines().count())
    }
}

fn text(built: &BuiltWorker) -> String {
    fs::read_to_string(&built.path).unwrap()
}

#[test]
fn a_commit_is_built_once_and_what_was_tampered_with_again() {
    let project = Project::new();
    let first = project.commit("one");
    project.commit("two");
    let builds = project.builds();
    let one = builds.build("HEAD~1", &project.copying()).unwrap();
    let two = builds.build("main", &project.copying()).unwrap();
    assert_eq!((text(&one), text(&two), project.runs()), ("one".into(), "two".into(), 2));
    assert_eq!(one.path.as_os_str().len(), two.path.as_os_str().len());
    assert_ne!(one.hash, two.hash);

    let again = builds.build(&first[..12], &project.copying()).unwrap();
    assert_eq!(again, BuiltWorker { was_cached: true, ..one.clone() });
    assert_eq!(project.runs(), 2);

    for damage in ["damaged", ""] {
        fs::write(&one.path, damage).unwrap();
        let rebuilt = builds.build(&first, &project.copying()).unwrap();
        assert_eq!((text(&rebuilt), rebuilt.was_cached), ("one".into(), false));
    }
    // An entry of another build under this one's name.
    fs::copy(two.path.with_file_name("build.json"), one.path.with_file_name("build.json")).unwrap();
    fs::copy(&two.path, &one.path).unwrap();
    assert_eq!(text(&builds.build(&first, &project.copying()).unwrap()), "one");

    // Another command or another copy is another build.
    let other = BuildCommand { argv: ["cp", "text", "made"].map(str::to_owned).to_vec(), binary: "made".into() };
    assert_ne!(builds.build(&first, &other).unwrap().path, one.path, "it may lie in the tree as well");
    let snapshot = builds.sources().commit(&first).unwrap();
    let copy = builds.build_snapshot(&snapshot, &project.copying(), Purpose::Head, 1).unwrap();
    assert_eq!((copy.was_cached, copy.hash), (false, one.hash));
}

#[test]
fn the_working_tree_is_what_it_holds_now() {
    let project = Project::new();
    fs::write(project.root.join("gone"), "").unwrap();
    let commit = project.commit("one");
    let builds = project.builds();
    let clean = builds.sources().working_tree().unwrap();
    assert_eq!((clean.name(), clean.dirty), (commit.clone(), false));

    let script = project.command("ls > $CARGO_TARGET_DIR/made; cat text >> $CARGO_TARGET_DIR/made");
    let build = || {
        let snapshot = builds.sources().working_tree().unwrap();
        (text(&builds.build_snapshot(&snapshot, &script, Purpose::Head, 0).unwrap()), snapshot)
    };
    assert_eq!(build().0, "gone\ntext\none");
    fs::write(project.root.join("text"), "changed").unwrap();
    fs::write(project.root.join("new"), "").unwrap();
    fs::remove_file(project.root.join("gone")).unwrap();
    fs::write(project.root.join(".git/info/exclude"), "ignored\n").unwrap();
    fs::write(project.root.join("ignored"), "").unwrap();
    let status = || project.repository.statuses(None).unwrap().iter().map(|s| s.status()).collect::<Vec<_>>();
    let before = status();
    let (built, dirty) = build();
    assert_eq!((built.as_str(), dirty.name()), ("new\ntext\nchanged", format!("{commit}-dirty")));
    assert_eq!(status(), before, "neither the index nor the working tree is touched");
    fs::write(project.root.join("text"), "changed again").unwrap();
    assert_eq!(build().0, "new\ntext\nchanged again", "each state has its own key");
    assert_eq!(builds.sources().file(&dirty, "text", 100).unwrap().unwrap(), b"changed");
    assert_eq!(builds.sources().file(&dirty, "gone", 100).unwrap(), None);
    assert!(builds.sources().file(&dirty, "text", 3).unwrap_err().to_string().contains("larger than the limit"));
}

#[test]
fn failures_name_the_commit_the_command_and_the_log() {
    let project = Project::new();
    let commit = project.commit("one");
    let builds = project.builds();
    let error = builds.build("HEAD", &project.command("echo no such thing >&2; exit 3")).unwrap_err();
    let BuildError::Failed { log, .. } = &error else { panic!("{error}") };
    assert_eq!(fs::read_to_string(log).unwrap(), "no such thing\n");
    let message = error.to_string();
    for part in [&commit, "exited with code 3", log.to_str().unwrap(), "no such thing"] {
        assert!(message.contains(part), "{message}");
    }
    let message = builds.build("HEAD", &project.command("true")).unwrap_err().to_string();
    assert!(message.contains("made no `made`") && message.contains("--binary"), "{message}");
    let missing = BuildCommand { argv: vec!["/no/such/tool".into()], binary: "made".into() };
    let message = builds.build("HEAD", &missing).unwrap_err().to_string();
    assert!(message.contains("/no/such/tool"), "{message}");
    let message = builds.build("nowhere", &project.copying()).unwrap_err().to_string();
    assert!(message.starts_with("finding commit `nowhere`"), "{message}");
    assert_eq!(text(&builds.build("HEAD", &project.copying()).unwrap()), "one", "a failure leaves nothing in the way");
}

#[test]
fn two_at_once_do_not_disturb_each_other() {
    let project = Project::new();
    let commits: Vec<String> = (0..4).map(|number| project.commit(&format!("text {number}"))).collect();
    let command = project.command("cat text > half; sleep 0.05; mv half $CARGO_TARGET_DIR/made");
    let (root, cache) = (&project.root, project.root.with_file_name("cache"));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let builds = Builds::open_in(root, &cache).unwrap();
                for (number, commit) in commits.iter().enumerate() {
                    assert_eq!(text(&builds.build(commit, &command).unwrap()), format!("text {number}"));
                }
            });
        }
    });
    let left: Vec<_> = fs::read_dir(cache.join("workers")).unwrap().collect();
    assert_eq!(left.len(), commits.len(), "no temporary folder is left: {left:?}");
}

#[test]
fn a_build_ends_when_asked_to() {
    let project = Project::new();
    project.commit("one");
    let stop = Arc::new(AtomicBool::new(true));
    let builds = project.builds().stop_with(stop);
    assert!(matches!(builds.build("HEAD", &project.command("sleep 600")), Err(BuildError::Interrupted)));
}

/// Separate builds of one commit are the same bytes: folders of other names leave no trace that could move code.
#[test]
fn two_builds_of_one_commit_are_alike() {
    let project = Project::new();
    let manifest =
        "[package]\nname = \"tiny\"\nversion = \"0.1.0\"\nedition = \"2024\"\n[profile.release]\ndebug = true\n";
    fs::write(project.root.join("Cargo.toml"), manifest).unwrap();
    fs::create_dir(project.root.join("src")).unwrap();
    fs::write(project.root.join("src/main.rs"), "fn main() {\n    panic!(\"at {}\", file!());\n}\n").unwrap();
    fs::write(project.root.join(".gitignore"), "target\n").unwrap();
    project.commit("tiny");
    let builds = project.builds();
    let snapshot = builds.sources().working_tree().unwrap();
    // The cargo that runs the tests, by its path: on PATH there may be a wrapper that waits for it.
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let argv = [cargo, "build".into(), "--release".into()].to_vec();
    let command = BuildCommand { argv, binary: "release/tiny".into() };
    let base = builds.build_snapshot(&snapshot, &command, Purpose::Base, 1).unwrap();
    let head = builds.build_snapshot(&snapshot, &command, Purpose::Head, 2).unwrap();
    assert_ne!(base.path, head.path);
    assert_eq!(base.hash, head.hash);
    let lane = project.root.with_file_name("cache").join("lanes");
    let bytes = fs::read(&base.path).unwrap();
    let trace = lane.as_os_str().as_encoded_bytes();
    assert!(!bytes.windows(trace.len()).any(|window| window == trace), "no path of a lane is in the binary");
}
