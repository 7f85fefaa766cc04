//! `attnbench calibrate`: how much two builds of one commit differ here.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::gate::pairs::{self, Options};
use super::run::locks::is_shared;
use super::run::{interrupt, journal_path, run_id};
use super::{Exit, terminal};
use crate::build::Purpose;
use crate::device::cpu::info::CpuInfo;
use crate::device::telemetry::nvml::NvmlSource;
use crate::files::write_document;
use crate::gate::calibration::{self, CALIBRATION, Calibration, Injected, MAX_RATE, SLOWDOWNS, calibration_file};
use crate::gate::plan::PairedCase;
use crate::gate::policy::Policy;
use crate::measure::journal::{Header, Journal};
use crate::measure::pairs::{PairContext, PairError, PairRun, PairState, Sides};
use crate::record::environment::fingerprint;
use crate::report::calibration::calibration_text;
use crate::rules::{RuleSource, Rules};
use crate::store::device_lock::DeviceLock;
use crate::suite::PlannedCase;

/// Cases whose kernels are slowed down by their workers, for each size.
const INJECTED_CASES: usize = 3;

/// Measure two separate builds of one commit against each other: the gate's false alarms, power and floors on this machine
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  attnbench calibrate                          suite `ci`, 100 pairs of each case
  attnbench calibrate --suite decode --pairs 200

Whatever is found between two builds of one commit is a false alarm. Slowdowns of 1, 2, 5 and 10 %
are made by the workers of three cases, and put into the numbers of all. The file that is written,
ci/calibration/<device>/<suite>.json, has the noise of each case, which the gate's floors rest on:
commit it.

Exit codes: 0 false alarms are rare enough, 3 they are not, or too few windows show it, 5 a case
failed or the calibration was stopped.")]
pub struct Args {
    #[command(flatten)]
    options: Options,
    /// Pairs of each case
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(40..=10_000))]
    pairs: u32,
    /// Where the calibration goes [default: ci/calibration/DEVICE/SUITE.json of the repository]
    #[arg(long, short, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Go on with a calibration that was stopped or killed, from its journal; the rest as in the first call
    #[arg(long, value_name = "JOURNAL")]
    resume: Option<PathBuf>,
    /// Print the calibration as JSON
    #[arg(long)]
    json: bool,
}

/// Runs it.
pub fn run(args: Args) -> anyhow::Result<Exit> {
    let stop = interrupt::stop_flag()?;
    let options = &args.options;
    let builds = options.builds(stop.clone())?;
    let snapshot = builds.sources().working_tree()?;
    let cpu = CpuInfo::read();
    let device = cpu.slug();
    let source = RuleSource {
        sources: builds.sources(),
        base: &snapshot,
        head: &snapshot,
        device: &device,
        today: &jiff::Zoned::now().date().to_string(),
    };
    let mut rules = source.read(&options.suite, None)?;
    options.select(&mut rules.suite.cases);
    if rules.suite.cases.is_empty() {
        bail!("selecting cases of suite `{}`: --include and --exclude leave none", rules.suite.name);
    }
    // Accuracy repeats exactly between builds of one commit: one seed saves the oracle's work.
    rules.policy.input_seeds = 1;
    let slowed = slowed(&rules.suite.cases);

    let command = options.command()?;
    let built = Sides {
        base: pairs::build(&builds, &snapshot, &command, Purpose::Base, 1)?,
        head: pairs::build(&builds, &snapshot, &command, Purpose::Head, 2)?,
    };
    let scratch = tempfile::Builder::new().prefix("attnbench-").tempdir().context("making a private scratch folder")?;
    let workers = options.workers(&built, scratch.path())?;
    let hellos = pairs::greet(&workers, &rules.suite.cases, &stop)?;
    let mut fingerprint = fingerprint(&cpu);
    pairs::add_gpus(&hellos, &mut fingerprint, &mut BTreeMap::new());
    for (provider, sides) in hellos {
        for hello in [sides.base, sides.head] {
            hello.with_context(|| format!("starting the worker of provider `{provider}`"))?;
        }
    }

    let now = jiff::Timestamp::now();
    let header = Header::new(run_id(now), format!("{now:.0}"), rules.suite.name.clone(), plan_hash(&rules, &built));
    let mut state = PairState::new(&rules.suite, &[], &slowed, |_| None);
    let journal = match &args.resume {
        None => Journal::create(&journal_path(&PathBuf::from(format!("results/calibrate-{}", run_id(now)))), header)?,
        Some(path) => {
            let (journal, _, entries) = Journal::resume(path, &header.plan_hash)?;
            entries.iter().for_each(|entry| state.add(entry));
            journal
        }
    };
    let journal_file = journal.path().to_owned();
    let lock = DeviceLock::acquire("cpu").map_err(|error| eprintln!("warning: announcing this run: {error}")).ok();
    is_shared(lock.as_slice());
    let start = Instant::now();
    let context = PairContext {
        workers: Sides { base: &workers.base, head: &workers.head },
        control_worker: None,
        checks_timing: false,
        scratch: scratch.path(),
        stop: stop.clone(),
        seed: options.seed.unwrap_or(rules.suite.seed),
        policy: &rules.policy,
        telemetry: &NvmlSource,
        deadline: start + Duration::from_secs(options.budget_s.unwrap_or(24 * 3600)),
    };
    let mut progress = pairs::Progress::new(args.json);
    let mut run = PairRun::new(&context, state, Some(journal), &mut progress);
    let outcome = measure(&mut run, rules.suite.cases.len(), args.pairs as usize, &rules.policy);
    let (state, journal) = run.into_parts();
    drop(progress);
    let measured_s = start.elapsed().as_secs_f64();
    let (plain, injected) = state.pairs().split_at(rules.suite.cases.len());
    if let Err(PairError::Journal(error)) = outcome {
        return Err(error.into());
    }
    let is_whole = plain.iter().all(|case| case.is_closed || case.log_ratios.len() >= args.pairs as usize);
    if !is_whole {
        eprintln!("stopped: what was measured is in the journal; go on with --resume {}", journal_file.display());
        return Ok(Exit::Failed);
    }

    let plain_cases: Vec<PairedCase> = plain.iter().filter(|case| !case.is_closed).cloned().collect();
    let failed = plain.len() - plain_cases.len();
    let (case_rate, windows) = calibration::case_rate(&plain_cases, &rules.policy);
    let physical: Vec<Injected> = slowed
        .iter()
        .zip(injected)
        .filter_map(|(planned, pairs)| {
            let plain = plain.iter().find(|case| case.key == pairs.key)?;
            calibration::injected(plain, pairs, planned.slowdown, &rules.policy)
        })
        .collect();
    let calibration = Calibration {
        calibration_version: CALIBRATION.version,
        suite: rules.suite.name.clone(),
        device: device.clone(),
        date: format!("{now:.0}"),
        commit: snapshot.name(),
        fingerprint,
        pairs: args.pairs as usize,
        measured_s,
        case_rate,
        windows,
        gate_rate_extrapolated: calibration::gate_rate(&plain_cases, &rules.policy),
        numeric: calibration::numeric(&plain_cases, &rules.policy),
        physical,
        passes: case_rate.upper <= MAX_RATE,
        cases: calibration::noise(&plain_cases, &rules.policy),
    };
    let file = builds.sources().root().join(calibration_file(&device, &rules.suite.name));
    let out = args.out.clone().unwrap_or(file);
    write_document(&CALIBRATION, &out, &calibration)?;
    if let Some(journal) = journal {
        journal.remove()?;
    }
    match args.json {
        true => terminal::print_json(&calibration)?,
        false => terminal::print(calibration_text(&calibration, &rules.policy, terminal::style()).trim_end())?,
    }
    eprintln!("\ncalibration: {}", out.display());
    let exit = if calibration.passes { Exit::Pass } else { Exit::Undecided };
    Ok(exit.and(if failed > 0 { Exit::Failed } else { Exit::Pass }))
}

/// Rounds of all cases; those that are slowed down take part until a gate could decide on them.
fn measure(run: &mut PairRun<'_>, plain: usize, pairs: usize, policy: &Policy) -> Result<(), PairError> {
    let decides = policy.screen_pairs + policy.confirm_pairs;
    loop {
        let lacks = |case: &usize| {
            let pairs_of = &run.state.pairs()[*case];
            !pairs_of.is_closed && pairs_of.log_ratios.len() < if *case < plain { pairs } else { decides.min(pairs) }
        };
        let open: Vec<usize> = (0..run.state.pairs().len()).filter(lacks).collect();
        if open.is_empty() || run.is_over() {
            return Ok(());
        }
        run.round(&open)?;
    }
}

/// Cases spread over the suite, each with every slowdown.
fn slowed(cases: &[PlannedCase]) -> Vec<PlannedCase> {
    let count = INJECTED_CASES.min(cases.len());
    let chosen = (0..count).map(|number| &cases[(2 * number + 1) * cases.len() / (2 * count)]);
    chosen.flat_map(|case| SLOWDOWNS.map(|slowdown| PlannedCase { slowdown, ..case.clone() })).collect()
}

/// What must be equal for a journal to be resumed.
fn plan_hash(rules: &Rules, built: &Sides<crate::build::BuiltWorker>) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in ["calibrate", &rules.suite.hash, &built.base.hash, &built.head.hash] {
        hasher.update(part.as_bytes());
    }
    for case in &rules.suite.cases {
        hasher.update(case.key().to_string().as_bytes());
    }
    hasher.finalize().to_hex()[..32].to_owned()
}
