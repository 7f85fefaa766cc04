//! `attnbench run`: measure a suite and write a record.

mod devices;
pub(super) mod dtype;
pub(super) mod interrupt;
pub(super) mod locks;
mod progress;
pub(super) mod workers;

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use attn_kernels::problem::Dtype;

use super::Exit;
use super::terminal;
use crate::case::Mode;
use crate::device::cpu::info::CpuInfo;
use crate::device::cpu::usable_cores;
use crate::device::cuda::selection::Selection;
use crate::device::telemetry::{Source, nvml::NvmlSource, trace::Trace};
use crate::history::point::of_record;
use crate::measure::builder::RecordBuilder;
use crate::measure::journal::{Header, Journal};
use crate::measure::run::{RunContext, run as measure};
use crate::measure::shard::{Sharding, known_latencies};
use crate::record::environment::{self, fingerprint, provenance};
use crate::record::{CaseResult, Record, RunInfo, TimeSpent, file};
use crate::report;
use crate::store::history;
use crate::suite::shard::{KnownLatencies, Shard};
use crate::suite::{self, CaseGlob, SUITES_DIR, Suite};
use crate::vcs::{self, RepositoryState};

/// Measure a suite: verify every case against the f64 oracle, time it in fresh processes, write a record.
#[derive(clap::Args, Debug, Default)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Suite file, or the name of one in `suites/`
    #[arg(required_unless_present = "kernel_manifest")]
    suite: Option<String>,

    /// Where the record goes [default: results/SUITE-TIME.json]
    #[arg(long, short, value_name = "FILE")]
    out: Option<PathBuf>,

    /// Measure only cases whose id matches one of these globs (`*` crosses slashes)
    #[arg(long, value_name = "GLOB")]
    include: Vec<CaseGlob>,

    /// Leave out cases whose id matches one of these globs
    #[arg(long, value_name = "GLOB")]
    exclude: Vec<CaseGlob>,

    /// Run the built-in kernels here: `cpu`, `cuda:0`, `cuda:0,1`, `all`, or GPU-... or MIG-... of `nvidia-smi -L`; several devices share the cases out
    #[arg(long, value_name = "DEVICE")]
    device: Option<Selection>,

    /// Measure a CUDA kernel of one's own, .cu, .ptx or .cubin, on every problem that it supports
    #[arg(long, value_name = "FILE", requires = "kernel_manifest")]
    kernel_source: Option<PathBuf>,

    /// What that kernel computes and how it is launched: see kernels/cuda/examples/README.md
    #[arg(long, value_name = "FILE", requires = "kernel_source")]
    kernel_manifest: Option<PathBuf>,

    /// Rounds: fresh worker processes, each of which measures every case once
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,

    /// Empty caches before each sample, or run calls back to back
    #[arg(long, value_enum)]
    mode: Option<Mode>,

    /// CPU threads of every case
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: Option<u32>,

    /// Compute every problem in this dtype: `f32`, `f16` or `bf16`, the keys' too; most GPU kernels know no f32
    #[arg(long, value_name = "DTYPE", value_parser = dtype::parse)]
    dtype: Option<Dtype>,

    /// Seed of inputs and of the order of cases
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    seed: Option<u64>,

    /// Allow this provider: `torch`, `onnxruntime`, `jax`, `ggml`, `cudnn` and `flash_attn` are known, another is started as NAME='COMMAND ARGS' (words split as a shell would, no shell runs)
    #[arg(long, value_name = "NAME[=COMMAND]")]
    provider: Vec<String>,

    /// Also run every GPU case back to back for two seconds a round, for its energy a call and its memory's activity
    #[arg(long)]
    energy: bool,

    /// Ask this recorded trace instead of NVML what GPUs do: for tests, and the record says so
    #[arg(long, value_name = "FILE")]
    nvml_trace: Option<PathBuf>,

    /// Go on with a run that was stopped or killed, from its journal (RECORD.journal); the rest as in the first call
    #[arg(long, value_name = "JOURNAL", conflicts_with = "dry_run")]
    resume: Option<PathBuf>,

    /// Measure one part of the plan: the I-th of N that take about the same time, from 1; `attnbench merge` joins them
    #[arg(long, value_name = "I/N")]
    shard: Option<Shard>,

    /// Earlier record of the suite, from whose times the shards are made instead of from the work; the same for all
    #[arg(long, value_name = "RECORD", requires = "shard")]
    shard_times: Option<PathBuf>,

    /// Keep the results in this history too: a file, or a server as postgresql://USER@HOST/DATABASE
    #[arg(long, value_name = "PATH|URL")]
    store: Option<String>,

    /// List what would be measured, with its work and memory, and stop
    #[arg(long)]
    dry_run: bool,

    /// Print the record as JSON instead of a table
    #[arg(long)]
    json: bool,

    /// The run's id, where it is not to be made of the time and random bits: a nightly run has one a commit and day.
    #[arg(skip)]
    pub(super) id: Option<String>,
}

const EXAMPLES: &str = "\
Examples:
  attnbench run suites/quickstart.toml
  attnbench run ci --rounds 10 --out base.json
  attnbench run prefill --include '*/flash/*' --mode hot --threads 1
  attnbench run ci --dry-run
  attnbench run prefill --device cuda:0 --dtype bf16
  attnbench run --kernel-source my.cu --kernel-manifest my.toml
  attnbench run ci --store results/history.db
  attnbench run prefill --shard 2/4 --out 2.json
  attnbench run peers --provider torch --provider onnxruntime --provider jax --provider ggml
  attnbench run ci --resume results/ci-20260102T030405Z.json.journal";

/// Measures, saves and prints.
pub fn run(args: Args) -> anyhow::Result<Exit> {
    if args.dry_run {
        let mut suite = planned_suite(&args)?;
        sharding(&mut suite, &args)?;
        return super::suites::print_plan(&suite, args.json);
    }
    if let Some(store) = &args.store {
        // A store that cannot take the results is found before there are any.
        history::open(store)?;
    }
    let (record, saved) = measured(&args)?;
    let is_kept = args.store.as_deref().is_none_or(|store| keep(store, &record, &saved.path));
    if args.json {
        terminal::print(&report::json::reviewable(&record)?)?;
    } else {
        let is_own = |case: &&CaseResult| args.shard.is_none_or(|own| case.shard == Some(own.index));
        let cases: Vec<_> = record.cases.iter().filter(is_own).collect();
        terminal::print(report::table::record_table(&record, &cases, terminal::style()).trim_end())?;
        eprintln!("\nrecord: {}", saved.path.display());
    }
    Ok(exit_of(&record).and(if saved.is_as_asked && is_kept { Exit::Pass } else { Exit::Failed }))
}

/// Measures what the arguments ask for, and saves the record.
pub(super) fn measured(args: &Args) -> anyhow::Result<(Record, SavedRecord)> {
    let mut suite = planned_suite(args)?;
    let sharding = sharding(&mut suite, args)?;
    measure_suite(&suite, sharding, args)
}

/// Keeps a record's results in a history. The record itself is safe already: a failure is told and loses nothing.
fn keep(store: &str, record: &Record, path: &Path) -> bool {
    let pushed = history::open(store).and_then(|mut store| store.push(&[of_record(record)]));
    if let Err(error) = &pushed {
        let again = format!("attnbench history push {} --store {}", path.display(), history::shown(store));
        eprintln!("error: {error}\nthe record is saved; `{again}` tries again");
    }
    pushed.is_ok()
}

/// Failures are told apart from a clean run; the gate does the rest.
pub(super) fn exit_of(record: &Record) -> Exit {
    let failed = record.cases.iter().any(|case| case.disposition.is_failure());
    if failed || !record.run.complete { Exit::Failed } else { Exit::Pass }
}

fn planned_suite(args: &Args) -> anyhow::Result<Suite> {
    let mut suite = match (&args.suite, args.user_kernel()?) {
        (Some(name), _) => Suite::load(&suite::find(name, &[PathBuf::from(SUITES_DIR)])?)?,
        (None, Some(kernel)) => devices::own_suite(&kernel)?,
        (None, None) => bail!("measuring nothing: name a suite"),
    };
    if let Some(dtype) = args.dtype {
        dtype::compute_in(&mut suite, dtype)?;
    }
    devices::retarget(&mut suite, args)?;
    let cores = usable_cores();
    if let Some(seed) = args.seed {
        suite.seed = seed;
    }
    let planned = suite.cases.len();
    suite.cases.retain(|case| {
        let id = case.case.id();
        let included = args.include.is_empty() || args.include.iter().any(|glob| glob.matches(&id));
        included && !args.exclude.iter().any(|glob| glob.matches(&id))
    });
    if suite.cases.is_empty() {
        bail!(
            "selecting cases of suite `{}`: --include and --exclude leave none of its {planned} cases; \
             `attnbench suites {}` lists their ids",
            suite.name,
            suite.name
        );
    }
    for case in &mut suite.cases {
        if let Some(rounds) = args.rounds {
            case.settings.rounds = rounds;
        }
        if let Some(mode) = args.mode {
            case.settings.mode = mode;
        }
        case.settings.energy |= args.energy;
        if let Some(threads) = args.threads
            && case.threads > 0
        {
            case.threads = threads as usize;
        }
    }
    let most = suite.cases.iter().map(|case| case.threads).max().unwrap_or(0);
    if most > cores {
        eprintln!("warning: {most} threads are asked for, this machine has {cores} cores");
    }
    // Overrides can make cases alike.
    let mut seen = std::collections::BTreeSet::new();
    suite.cases.retain(|case| seen.insert(case.key()));
    Ok(suite)
}

/// Leaves the shard that was asked for in the suite.
fn sharding(suite: &mut Suite, args: &Args) -> anyhow::Result<Option<Sharding>> {
    let Some(shard) = args.shard else { return Ok(None) };
    let known = match &args.shard_times {
        Some(path) => known_latencies(&file::load(path)?),
        None => KnownLatencies::new(),
    };
    let sharding = Sharding::of(suite, shard, &known);
    if suite.cases.is_empty() {
        eprintln!("warning: shard {shard} has no case: there are more shards than cases");
    }
    Ok(Some(sharding))
}

/// What another command wants of a suite.
pub(super) struct Planned {
    pub(super) suite: String,
    pub(super) device: Selection,
    pub(super) include: Vec<CaseGlob>,
    pub(super) exclude: Vec<CaseGlob>,
    pub(super) dtype: Option<Dtype>,
    pub(super) mode: Option<Mode>,
}

/// The suite as a run with these options would measure it.
pub(super) fn planned_on(planned: Planned) -> anyhow::Result<Suite> {
    let Planned { suite, device, include, exclude, dtype, mode } = planned;
    planned_suite(&Args { suite: Some(suite), device: Some(device), include, exclude, dtype, mode, ..Args::default() })
}

/// Measures a suite that another command made, and says where the record is.
pub(super) fn measure_made(
    mut suite: Suite,
    device: Option<Selection>,
    out: Option<PathBuf>,
    quiet: bool,
) -> anyhow::Result<(Record, PathBuf)> {
    let args = Args { device, out, json: quiet, ..Args::default() };
    devices::retarget(&mut suite, &args)?;
    let (record, saved) = measure_suite(&suite, None, &args)?;
    Ok((record, saved.path))
}

/// Measures a checked suite and returns its record and where it was saved.
fn measure_suite(suite: &Suite, sharding: Option<Sharding>, args: &Args) -> anyhow::Result<(Record, SavedRecord)> {
    let started = jiff::Timestamp::now();
    let id = args.id.clone().unwrap_or_else(|| run_id(started));
    let mut header = Header::new(id, format!("{started:.0}"), suite.name.clone(), plan_hash(suite));
    header.turns_planned = Some(suite.cases.iter().map(|case| u64::from(case.settings.rounds)).sum());
    let path = record_path(suite, args, started)?;
    // Everything that can be refused is, before there is a journal that only a deletion gets out of the way.
    let scratch = tempfile::Builder::new().prefix("attnbench-").tempdir().context("making a private scratch folder")?;
    let workers = workers::commands(&args.provider, scratch.path())?;
    let gpus = devices::gpus(suite, args)?;
    let control_worker = workers::built_in("cpu")?;
    let telemetry: Box<dyn Source> = match &args.nvml_trace {
        None => Box::new(NvmlSource),
        Some(path) => Box::new(Trace::load(path)?),
    };
    let stop = interrupt::stop_flag()?;
    let mut builder = RecordBuilder::new(suite);
    if let Some(device) = gpus.device() {
        builder = builder.on_gpu(suite, device);
    }
    let mut journal = match &args.resume {
        None => Journal::create(&journal_path(&path), header.clone())
            .with_context(|| format!("starting a run of suite `{}`", suite.name))?,
        Some(resumed) => {
            let (journal, found, entries) = Journal::resume(resumed, &header.plan_hash)?;
            entries.iter().for_each(|entry| builder.add(entry));
            header = found;
            journal
        }
    };

    let locks = locks::lock_devices(suite, &gpus.uuids);
    let context = RunContext {
        workers: &workers,
        gpu_workers: &gpus.workers,
        control_worker: &control_worker,
        telemetry: &*telemetry,
        scratch: scratch.path(),
        stop: stop.clone(),
    };
    let mut observer = progress::observer(suite, args.json);
    let shared_at_start = locks::is_shared(&locks);
    let (clock, earlier_ns) = (std::time::Instant::now(), builder.entry_time_ns());
    let outcome = measure(suite, &context, &mut builder, &mut journal, observer.as_mut());
    let wall_ns = u64::try_from(clock.elapsed().as_nanos()).unwrap_or(u64::MAX);
    let between_entries_ns = wall_ns.saturating_sub(builder.entry_time_ns() - earlier_ns);
    builder.add_time(&TimeSpent { total_ns: between_entries_ns, ..TimeSpent::default() });
    drop(observer);
    let device_shared = shared_at_start || locks::is_shared(&locks);

    let info = RunInfo {
        id: header.run_id,
        started_at: header.started_at,
        finished_at: format!("{:.0}", jiff::Timestamp::now()),
        command: std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect(),
        attnbench_version: env!("CARGO_PKG_VERSION").to_owned(),
        suite: suite.name.clone(),
        suite_hash: suite.hash.clone(),
        seed: suite.seed,
        rounds_planned: suite.cases.iter().map(|case| case.settings.rounds).max().unwrap_or(0),
        rounds_done: 0,
        complete: false,
        device_shared,
        time: TimeSpent::default(),
        shard: None,
    };
    let git = vcs::repository_state(Path::new("."))
        .map_err(|error| eprintln!("warning: the record has no git state: {error}"))
        .ok()
        .and_then(RepositoryState::into_git_state);
    let cpu = CpuInfo::read();
    let (mut fingerprint, mut provenance) = (fingerprint(&cpu), provenance(&cpu));
    if let Some(hello) = &gpus.hello {
        environment::add_gpu(hello, &*telemetry, &mut fingerprint, &mut provenance);
    }
    let mut record = builder.finish(info, fingerprint, provenance, git);
    if let Some(sharding) = sharding {
        sharding.complete(&mut record);
    }
    let saved = save(&path, &record, journal)?;
    // The record is safe: only now may the journal's own failure end the command.
    outcome?;
    if stop.load(std::sync::atomic::Ordering::Relaxed) {
        let journal = args.resume.clone().unwrap_or_else(|| journal_path(&path));
        eprintln!("interrupted: what was measured is saved; go on with --resume {}", journal.display());
    }
    Ok((record, saved))
}

/// Where a record went.
pub(super) struct SavedRecord {
    pub(super) path: PathBuf,
    /// Whether that is the place that was asked for.
    pub(super) is_as_asked: bool,
}

/// Saves the record; the journal goes only when the record is whole and where it was asked for.
fn save(path: &Path, record: &Record, journal: Journal) -> anyhow::Result<SavedRecord> {
    match file::save_or_rescue(path, record)? {
        file::Saved::AsAsked => {
            if record.run.complete {
                journal.remove()?;
            }
            Ok(SavedRecord { path: path.to_owned(), is_as_asked: true })
        }
        file::Saved::Rescued { path, cause } => {
            eprintln!("error: {cause}\nthe record was saved to {} instead", path.display());
            Ok(SavedRecord { path, is_as_asked: false })
        }
    }
}

pub(super) fn run_id(started: jiff::Timestamp) -> String {
    format!("{}-{:08x}", compact(started), std::process::id() ^ (started.subsec_nanosecond() as u32))
}

fn compact(time: jiff::Timestamp) -> String {
    time.strftime("%Y%m%dT%H%M%SZ").to_string()
}

/// Where the record goes. A place that cannot hold one is found here, before anything is measured.
fn record_path(suite: &Suite, args: &Args, started: jiff::Timestamp) -> anyhow::Result<PathBuf> {
    let path = match (&args.out, &args.resume) {
        (Some(out), _) => out.clone(),
        (None, None) => PathBuf::from(format!("results/{}-{}.json", suite.name, run_id(started))),
        (None, Some(journal)) => match journal.extension() {
            Some(extension) if extension == JOURNAL_EXTENSION => journal.with_extension(""),
            _ => bail!(
                "resuming journal `{}`: its name does not end in .{JOURNAL_EXTENSION}, so say where the record goes: --out",
                journal.display()
            ),
        },
    };
    if path.is_dir() {
        bail!("writing record `{}`: this is a directory; name a file in it", path.display());
    }
    if args.resume.as_ref() == Some(&path) {
        bail!("writing record `{}`: this is the journal; choose another --out", path.display());
    }
    Ok(path)
}

/// What a record's journal has after its name.
const JOURNAL_EXTENSION: &str = "journal";

pub(super) fn journal_path(record: &Path) -> PathBuf {
    let mut name = record.as_os_str().to_owned();
    name.push(".");
    name.push(JOURNAL_EXTENSION);
    PathBuf::from(name)
}

/// What must be equal for a journal to be resumed.
fn plan_hash(suite: &Suite) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(suite.hash.as_bytes());
    hasher.update(&suite.seed.to_le_bytes());
    for case in &suite.cases {
        hasher.update(case.key().to_string().as_bytes());
        hasher.update(&serde_json::to_vec(&case.settings).expect("settings serialise"));
    }
    hasher.finalize().to_hex()[..32].to_owned()
}
