//! What `gate` and `calibrate` share: which builds, which workers, which cases.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::build::{BuildCommand, Builds, BuiltWorker, Purpose};
use crate::commands::run::workers;
use crate::device::telemetry::nvml::NvmlSource;
use crate::measure::pairs::{PairObserver, Sides, WorkerSet};
use crate::record::{CaseRound, Disposition, environment};
use crate::report::units;
use crate::stats::quantile::median;
use crate::suite::{CaseGlob, PlannedCase};
use crate::vcs::Snapshot;
use crate::worker::client::{Failure, Surroundings, Worker, WorkerCommand};
use crate::worker::protocol::Hello;

/// What stands for the built worker in a provider's command.
const WORKER: &str = "{worker}";
/// How long a worker may take to say who it is.
const HELLO_TIMEOUT: Duration = Duration::from_secs(60);

/// Options of what is measured in pairs.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Suite: a name in `suites/` or a path from the repository's root
    #[arg(long, value_name = "SUITE", default_value = "ci", help_heading = "Pairs")]
    pub(in crate::commands) suite: String,
    /// Measure only cases whose id matches one of these globs (`*` crosses slashes)
    #[arg(long, value_name = "GLOB", help_heading = "Pairs")]
    pub(in crate::commands) include: Vec<CaseGlob>,
    /// Leave out cases whose id matches one of these globs
    #[arg(long, value_name = "GLOB", help_heading = "Pairs")]
    pub(in crate::commands) exclude: Vec<CaseGlob>,
    /// Command that builds a commit, run in its tree with CARGO_TARGET_DIR set (split as a shell would, no shell runs)
    #[arg(long, value_name = "COMMAND", default_value = "cargo build --release", help_heading = "Pairs")]
    pub(in crate::commands) build: String,
    /// What the build makes: a path in its target folder or in the tree
    #[arg(long, value_name = "PATH", default_value = "release/attnbench", help_heading = "Pairs")]
    pub(in crate::commands) binary: PathBuf,
    /// Allow this provider; in NAME='COMMAND ARGS', {worker} is the built worker of each side
    #[arg(long, value_name = "NAME[=COMMAND]", help_heading = "Pairs")]
    pub(in crate::commands) provider: Vec<String>,
    /// Repository [default: that of the current folder]
    #[arg(long, value_name = "DIR", default_value = ".", hide_default_value = true, help_heading = "Pairs")]
    pub(in crate::commands) repository: PathBuf,
    /// Seconds of measuring, after which no further pairs start [default: the policy's]
    #[arg(long, value_name = "SECONDS", help_heading = "Pairs")]
    pub(in crate::commands) budget_s: Option<u64>,
    /// Seed of orders and coins [default: the suite's]
    #[arg(long, value_name = "N", help_heading = "Pairs")]
    pub(in crate::commands) seed: Option<u64>,
}

impl Options {
    /// The build command.
    pub(in crate::commands) fn command(&self) -> anyhow::Result<BuildCommand> {
        let argv = shlex::split(&self.build).filter(|words| !words.is_empty());
        let argv = argv.with_context(|| format!("reading --build `{}`: it is empty or a quote is open", self.build))?;
        Ok(BuildCommand { argv, binary: self.binary.clone() })
    }

    /// The repository's builds.
    pub(in crate::commands) fn builds(&self, stop: Arc<AtomicBool>) -> anyhow::Result<Builds> {
        Ok(Builds::open(&self.repository)?.stop_with(stop))
    }

    /// Leaves the cases that --include and --exclude select.
    pub(in crate::commands) fn select(&self, cases: &mut Vec<PlannedCase>) {
        cases.retain(|case| self.selects(&case.case.id()));
    }

    /// Whether a case is selected.
    pub(in crate::commands) fn selects(&self, id: &str) -> bool {
        let included = self.include.is_empty() || self.include.iter().any(|glob| glob.matches(id));
        included && !self.exclude.iter().any(|glob| glob.matches(id))
    }

    /// How both sides' workers are started, by provider. Sources of adapters are written to `scratch`.
    pub(in crate::commands) fn workers(
        &self,
        built: &Sides<BuiltWorker>,
        scratch: &Path,
    ) -> anyhow::Result<Sides<WorkerSet>> {
        let commands = workers::commands(&self.provider, scratch)?;
        let of = |built: &BuiltWorker, is_head: bool| -> anyhow::Result<WorkerSet> {
            let path = built.path.to_str().context("the path of the built worker is not UTF-8")?;
            let mut own = BTreeMap::new();
            for (name, command) in &commands {
                let mut argv: Vec<String> = command.argv.iter().map(|word| word.replace(WORKER, path)).collect();
                if workers::built_in(name)?.argv == command.argv {
                    path.clone_into(&mut argv[0]);
                }
                own.insert(name.clone(), WorkerCommand { provider: name.clone(), argv });
            }
            Ok(WorkerSet { commands: own, is_head })
        };
        Ok(Sides { base: of(&built.base, false)?, head: of(&built.head, true)? })
    }
}

/// Builds a snapshot, and says so.
pub(in crate::commands) fn build(
    builds: &Builds,
    snapshot: &Snapshot,
    command: &BuildCommand,
    purpose: Purpose,
    copy: u32,
) -> anyhow::Result<BuiltWorker> {
    let name = if purpose == Purpose::Base { "base" } else { "head" };
    eprintln!("{name}: building {} with `{}`", snapshot.name(), command.argv.join(" "));
    let start = std::time::Instant::now();
    let built = builds.build_snapshot(snapshot, command, purpose, copy)?;
    match built.was_cached {
        true => eprintln!("{name}: it was there already"),
        false => eprintln!("{name}: built in {}", units::duration_s(start.elapsed().as_secs_f64())),
    }
    Ok(built)
}

/// What the workers of both sides say of themselves, by provider.
pub(in crate::commands) type Hellos = BTreeMap<String, Sides<Result<Hello, Failure>>>;

/// Starts each provider's worker of both sides once.
pub(in crate::commands) fn greet(
    workers: &Sides<WorkerSet>,
    cases: &[PlannedCase],
    stop: &Arc<AtomicBool>,
) -> anyhow::Result<Hellos> {
    let mut hellos = Hellos::new();
    let surroundings = Surroundings { is_untrusted: true, ..Surroundings::default() };
    let hello = |command: &WorkerCommand| {
        let worker = Worker::spawn_in(command, &surroundings, Arc::clone(stop), HELLO_TIMEOUT)?;
        let hello = worker.hello.clone();
        worker.shutdown();
        Ok(hello)
    };
    for provider in cases.iter().map(|case| &case.case.provider) {
        let (Some(base), Some(head)) = (workers.base.commands.get(provider), workers.head.commands.get(provider))
        else {
            bail!(
                "measuring provider `{provider}`: it was not named on the command line: --provider \
                 {provider}='COMMAND ARGS', with {WORKER} for the built worker of each side"
            );
        };
        if !hellos.contains_key(provider) {
            hellos.insert(provider.clone(), Sides { base: hello(base), head: hello(head) });
        }
    }
    Ok(hellos)
}

/// Adds what the GPUs of base's workers are to the machine's description; head's are the same ones.
pub(in crate::commands) fn add_gpus(
    hellos: &Hellos,
    fingerprint: &mut BTreeMap<String, String>,
    provenance: &mut BTreeMap<String, String>,
) {
    for hello in hellos.values().filter_map(|sides| sides.base.as_ref().ok()) {
        environment::add_gpu(hello, &NvmlSource, fingerprint, provenance);
    }
}

/// A line a round, and one for each case that fails.
pub(in crate::commands) struct Progress {
    quiet: bool,
    round: Option<(u32, std::time::Instant)>,
    pairs: usize,
}

impl Progress {
    /// One that says of rounds only what fails, where it is to be quiet.
    pub(in crate::commands) fn new(quiet: bool) -> Progress {
        Progress { quiet, round: None, pairs: 0 }
    }

    fn end_round(&mut self) {
        if let Some((round, start)) = self.round.take()
            && !self.quiet
        {
            let (time, plural) = (start.elapsed().as_secs_f64(), if self.pairs == 1 { "" } else { "s" });
            eprintln!("round {}: {} pair{plural} in {}", round + 1, self.pairs, units::duration_s(time));
        }
        self.pairs = 0;
    }
}

impl PairObserver for Progress {
    fn round_started(&mut self, round: u32, _cases: usize) {
        self.end_round();
        self.round = Some((round, std::time::Instant::now()));
    }

    fn pair_finished(&mut self, case: &PlannedCase, base: Option<&CaseRound>, head: &CaseRound) {
        self.pairs += 1;
        for (side, seen) in [("base", base), ("head", Some(head))] {
            if let Some(seen) = seen.filter(|seen| seen.disposition != Disposition::Measured) {
                let reason = seen.reason.as_deref().unwrap_or_default();
                let text = format!("  {} on {side}: {}: {reason}", seen.disposition.name(), case.case.id());
                eprintln!("{}", text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>());
            } else if base.is_none() && side == "head" && !self.quiet {
                let latency = median(&head.device_ns).map_or(String::new(), units::nanoseconds);
                eprintln!("  new: {} {latency}", case.case.id());
            }
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end_round();
    }
}
