//! Workers of other commits: checked out, built with the user's command, and kept.
//!
//! A build is named by everything that may change it: the files, `Cargo.lock`, the toolchain, the command with its
//! features, flags in the environment and the processor. Its binary is kept beside a hash of its contents, so that an
//! entry that was cut off, damaged or put there by somebody else is built anew instead of measured.
//!
//! Trees are checked out and built in *lanes*, a source and a target folder that stay for the next commit, so that a build
//! tool redoes only what differs. Each lane serves one build at a time; a second process takes another lane. Base and
//! head have lanes of their own. Finished entries appear by a rename, whole or not at all.

mod entry;
mod key;
mod lane;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::vcs::{Snapshot, Sources, VcsError};
use lane::Lane;

/// How often a waiting build looks at the stop flag.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Lines of a build's log that its error shows.
const SHOWN_LOG_LINES: usize = 12;

/// How a worker is built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildCommand {
    /// Program and arguments, run in the root of the checked-out tree with `CARGO_TARGET_DIR` set; no shell is between.
    pub argv: Vec<String>,
    /// What it makes: a path in the target folder, or else in the tree.
    pub binary: PathBuf,
}

impl Default for BuildCommand {
    /// This project's own binary.
    fn default() -> Self {
        BuildCommand {
            argv: ["cargo", "build", "--release"].map(str::to_owned).to_vec(),
            binary: PathBuf::from("release/attnbench"),
        }
    }
}

/// A worker's executable, kept in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuiltWorker {
    /// The file. Those of one cache have paths of equal length, so that the stacks of their processes start alike.
    pub path: PathBuf,
    /// blake3 of its contents, in hex.
    pub hash: String,
    /// Whether it was there already.
    pub was_cached: bool,
}

/// What a lane is for: two sides of a comparison never share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// What is compared with.
    Base,
    /// What is judged.
    Head,
    /// One of many commits, as in a bisection.
    Step,
}

/// Why a worker was not built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The commit or its files cannot be had.
    #[error(transparent)]
    Vcs(#[from] VcsError),
    /// There is no home for a cache.
    #[error("choosing a folder for builds: neither XDG_CACHE_HOME nor HOME is set; name one with ATTNBENCH_CACHE")]
    NoCache,
    /// The cache cannot be written.
    #[error("{action} `{}`: {source}", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The command failed.
    #[error("building {commit} with `{command}`: it {how}; the log is `{}`{}", .log.display(), quoted(.tail))]
    Failed {
        /// What was built.
        commit: String,
        /// How.
        command: String,
        /// Exit status in words.
        how: String,
        /// Where everything is that it wrote.
        log: PathBuf,
        /// The last lines of it.
        tail: String,
    },
    /// The command succeeded without making the binary.
    #[error(
        "building {commit} with `{command}`: it succeeded, but made no `{}` in its target folder or its tree; name what \
         it makes with --binary; the log is `{}`", .binary.display(), .log.display()
    )]
    NoBinary {
        /// What was built.
        commit: String,
        /// How.
        command: String,
        /// What was expected.
        binary: PathBuf,
        /// Where everything is that it wrote.
        log: PathBuf,
    },
    /// The user asked to stop.
    #[error("interrupted")]
    Interrupted,
}

fn quoted(tail: &str) -> String {
    if tail.is_empty() { String::new() } else { format!(", which ends with:\n{tail}") }
}

/// Makes workers of a repository's commits.
pub struct Builds {
    sources: Sources,
    cache: PathBuf,
    stop: Arc<AtomicBool>,
}

impl Builds {
    /// Builds of the repository that contains a path, kept in `ATTNBENCH_CACHE`, else in the user's cache folder.
    ///
    /// # Errors
    /// There is no repository, or no place for a cache.
    pub fn open(repository: &Path) -> Result<Builds, BuildError> {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let cache = set("ATTNBENCH_CACHE")
            .or_else(|| set("XDG_CACHE_HOME").map(|folder| folder.join("attnbench")))
            .or_else(|| set("HOME").map(|home| home.join(".cache/attnbench")))
            .ok_or(BuildError::NoCache)?;
        Builds::open_in(repository, &cache)
    }

    /// [`Builds::open`] with the folder of the cache.
    ///
    /// # Errors
    /// There is no repository.
    pub fn open_in(repository: &Path, cache: &Path) -> Result<Builds, BuildError> {
        let sources = Sources::open(repository)?;
        std::fs::create_dir_all(cache).map_err(io("making the folder of builds", cache))?;
        // Builds run elsewhere: a relative path would mean another folder there.
        let cache = cache.canonicalize().map_err(io("finding the folder of builds", cache))?;
        Ok(Builds { sources, cache, stop: Arc::default() })
    }

    /// Ends builds when the flag is set.
    pub fn stop_with(mut self, stop: Arc<AtomicBool>) -> Builds {
        self.stop = stop;
        self
    }

    /// The repository.
    pub fn sources(&self) -> &Sources {
        &self.sources
    }

    /// The worker of a commit, which any name may mean that git knows; built where it is not there yet.
    ///
    /// # Errors
    /// [`BuildError`] names what failed and where its log is.
    pub fn build(&self, commit: &str, command: &BuildCommand) -> Result<BuiltWorker, BuildError> {
        self.build_snapshot(&self.sources.commit(commit)?, command, Purpose::Step, 0)
    }

    /// The worker of a snapshot. `copy` tells separate builds of one snapshot apart.
    ///
    /// # Errors
    /// As [`Builds::build`].
    pub fn build_snapshot(
        &self,
        snapshot: &Snapshot,
        command: &BuildCommand,
        purpose: Purpose,
        copy: u32,
    ) -> Result<BuiltWorker, BuildError> {
        let key = key::of(&self.sources, snapshot, command, copy)?;
        let entry = entry::Entry::at(&self.cache, &key);
        if let Some(hash) = entry.valid_hash() {
            return Ok(BuiltWorker { path: entry.binary(), hash, was_cached: true });
        }
        let lane = Lane::take(&self.cache, self.sources.root(), purpose, &self.stop)?;
        // Somebody else may have built the same while this process waited for the lane.
        if let Some(hash) = entry.valid_hash() {
            return Ok(BuiltWorker { path: entry.binary(), hash, was_cached: true });
        }
        self.sources.check_out(snapshot, &lane.source)?;
        let log = self.cache.join("logs").join(format!("{key}.log"));
        let shown = command.argv.join(" ");
        let status = self.run(command, &lane, &log, &shown)?;
        if !status.success() {
            return Err(BuildError::Failed {
                commit: snapshot.name(),
                command: shown,
                how: in_words(status),
                tail: last_lines(&log),
                log,
            });
        }
        let made = [&lane.target, &lane.source].map(|folder| folder.join(&command.binary));
        let Some(made) = made.into_iter().find(|path| path.is_file()) else {
            let (commit, binary) = (snapshot.name(), command.binary.clone());
            return Err(BuildError::NoBinary { commit, command: shown, binary, log });
        };
        let hash = entry.publish(&made)?;
        Ok(BuiltWorker { path: entry.binary(), hash, was_cached: false })
    }

    /// Runs the command in the lane, with all that it writes going to the log.
    fn run(&self, command: &BuildCommand, lane: &Lane, log: &Path, shown: &str) -> Result<ExitStatus, BuildError> {
        if let Some(folder) = log.parent() {
            std::fs::create_dir_all(folder).map_err(io("making the folder of build logs", folder))?;
        }
        let file = File::create(log).map_err(io("writing build log", log))?;
        let second = file.try_clone().map_err(io("writing build log", log))?;
        let Some((program, arguments)) = command.argv.split_first() else {
            let empty = std::io::Error::new(std::io::ErrorKind::InvalidInput, "the command is empty");
            return Err(io("running the build command", Path::new(shown))(empty));
        };
        let mut builder = Command::new(program);
        builder.args(arguments).current_dir(&lane.source).stdin(Stdio::null()).stdout(file).stderr(second);
        builder.env("CARGO_TARGET_DIR", &lane.target).process_group(0);
        for (name, value) in remapped_flags(lane) {
            builder.env(name, value);
        }
        crate::worker::environment::without_secrets(&mut builder);
        #[cfg(target_os = "linux")]
        // SAFETY: prctl is async-signal-safe and touches no memory of the parent.
        unsafe {
            builder.pre_exec(|| nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(std::io::Error::from));
        }
        let mut child = builder.spawn().map_err(io("running the build command", Path::new(shown)))?;
        loop {
            if let Some(status) = child.try_wait().map_err(io("waiting for the build command", Path::new(shown)))? {
                return Ok(status);
            }
            if self.stop.load(Ordering::Relaxed) {
                // A build tool's compilers go with it.
                let _ = killpg(Pid::from_raw(child.id() as i32), Signal::SIGKILL);
                let _ = child.wait();
                return Err(BuildError::Interrupted);
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }
}

/// Flags that take the lane's own paths out of what rustc writes into binaries, beside those that are set already. Lanes
/// have paths of different lengths, and these would move code and data.
fn remapped_flags(lane: &Lane) -> Vec<(&'static str, OsString)> {
    let remap = |path: &Path, to: &str| format!("--remap-path-prefix={}={to}", path.display());
    let flags = [remap(&lane.source, "/attnbench/source"), remap(&lane.target, "/attnbench/target")];
    let set = |name: &str| std::env::var(name).ok().filter(|flags| !flags.is_empty());
    // The first of these that is set hides the others, and all of them but the last hide what the tree's own
    // configuration says.
    if let Some(own) = set("CARGO_ENCODED_RUSTFLAGS") {
        return vec![("CARGO_ENCODED_RUSTFLAGS", format!("{own}\u{1f}{}", flags.join("\u{1f}")).into())];
    }
    if flags.iter().any(|flag| flag.contains(char::is_whitespace)) {
        // The other two split at blanks.
        return Vec::new();
    }
    let name = if set("RUSTFLAGS").is_some() { "RUSTFLAGS" } else { "CARGO_BUILD_RUSTFLAGS" };
    let own = set(name).map_or(String::new(), |own| own + " ");
    vec![(name, format!("{own}{}", flags.join(" ")).into())]
}

fn in_words(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with code {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        _ => "ended".to_owned(),
    }
}

fn last_lines(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(SHOWN_LOG_LINES)..].join("\n")
}

fn io<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(std::io::Error) -> BuildError + use<'a> {
    move |source| BuildError::Io { action, path: path.to_owned(), source }
}
