//! `attnbench gate --against`: builds of two commits, measured in pairs.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::{Args, pairs};
use crate::build::Purpose;
use crate::commands::Exit;
use crate::commands::run::locks::is_shared;
use crate::commands::run::{interrupt, journal_path, run_id, workers};
use crate::compare::{Baseline, Side};
use crate::device::cpu::info::CpuInfo;
use crate::device::telemetry::nvml::NvmlSource;
use crate::files::write_atomically;
use crate::gate::drive::{PairSource, drive};
use crate::gate::outcome::{GateReport, PairResults, judge_pairs};
use crate::gate::plan::{self, Evidence, Step};
use crate::measure::journal::{Header, Journal};
use crate::measure::pairs::{PairContext, PairError, PairRun, PairState, Sides};
use crate::record::environment::{fingerprint, provenance};
use crate::record::{GitState, Record, RunInfo, TimeSpent};
use crate::rules::{RuleSource, Rules};
use crate::store::device_lock::DeviceLock;
use crate::suite::PlannedCase;
use crate::vcs::{Snapshot, Sources};
use crate::worker::client::Failure;
use crate::worker::protocol::ErrorKind;

/// Variables in which CI systems name the branch that a change is for.
const TARGET_VARIABLES: [&str; 3] =
    ["GITHUB_BASE_REF", "CI_MERGE_REQUEST_TARGET_BRANCH_NAME", "BUILDKITE_PULL_REQUEST_BASE_BRANCH"];

/// Builds, measures, judges, saves and prints.
pub(super) fn run(args: &Args) -> anyhow::Result<Exit> {
    let stop = interrupt::stop_flag()?;
    let builds = args.pairs.builds(stop.clone())?;
    let (base, head) = (base(args, builds.sources())?, builds.sources().working_tree()?);
    let cpu = CpuInfo::read();
    let rules = rules(args, builds.sources(), &base, &head, &cpu)?;
    let now = jiff::Timestamp::now();
    let out = out_path(args, &rules.suite.name, now)?;

    let command = args.pairs.command()?;
    let built = Sides {
        base: pairs::build(&builds, &base, &command, Purpose::Base, 0)?,
        head: pairs::build(&builds, &head, &command, Purpose::Head, 0)?,
    };
    let scratch = tempfile::Builder::new().prefix("attnbench-").tempdir().context("making a private scratch folder")?;
    let worker_sets = args.pairs.workers(&built, scratch.path())?;
    let cases = [&rules.suite.cases[..], &rules.new].concat();
    let hellos = pairs::greet(&worker_sets, &cases, &stop)?;
    let mut notes = rules.notes.clone();
    if let Some((exit, reason)) = refused(&hellos)? {
        let side = |snapshot: &Snapshot| Side {
            suite: rules.suite.name.clone(),
            commits: vec![snapshot.name()],
            ..Side::default()
        };
        let keys: Vec<_> = cases.iter().map(PlannedCase::key).collect();
        let refused = GateReport::refused(side(&base), side(&head), &keys, exit, &reason);
        let report = GateReport { command: super::command_line(), ..refused };
        save(&out, &report)?;
        return conclude(args, &out, &report, &base, head);
    }
    notes.extend(what_hellos_say(&hellos));
    if built.base.hash == built.head.hash {
        notes.push("base and head are the same bytes: whatever differs is noise".to_owned());
    }
    let checks_timing = hellos.values().any(|sides| match (&sides.base, &sides.head) {
        (Ok(base), Ok(head)) => base.timing_hash != head.timing_hash,
        _ => false,
    });

    let (mut fingerprint, mut provenance) = (fingerprint(&cpu), provenance(&cpu));
    pairs::add_gpus(&hellos, &mut fingerprint, &mut provenance);
    let calibration = rules.calibration.as_ref().filter(|calibration| {
        let fits = calibration.fingerprint == fingerprint;
        if !fits {
            notes.push("the calibration is of another machine: each case's floor rests on its own pairs".to_owned());
        }
        fits
    });
    let mut state = PairState::new(&rules.suite, &rules.new, &[], |key| calibration?.error_of(key));
    let plan_hash = plan_hash(&rules, &built);
    let header = Header::new(run_id(now), format!("{now:.0}"), rules.suite.name.clone(), plan_hash);
    let (journal, header) = match &args.resume {
        None => (Journal::create(&journal_path(&out), header.clone())?, header),
        Some(path) => {
            let (journal, header, entries) = Journal::resume(path, &header.plan_hash)?;
            entries.iter().for_each(|entry| state.add(entry));
            (journal, header)
        }
    };
    let journal_file = journal.path().to_owned();

    let lock = DeviceLock::acquire("cpu").map_err(|error| eprintln!("warning: announcing this run: {error}")).ok();
    let shared_at_start = is_shared(lock.as_slice());
    let start = Instant::now();
    let context = PairContext {
        workers: Sides { base: &worker_sets.base, head: &worker_sets.head },
        control_worker: Some(&workers::built_in("cpu")?),
        checks_timing,
        scratch: scratch.path(),
        stop: stop.clone(),
        seed: args.pairs.seed.unwrap_or(rules.suite.seed),
        policy: &rules.policy,
        telemetry: &NvmlSource,
        deadline: start + Duration::from_secs(rules.policy.budget_s),
    };
    let mut progress = pairs::Progress::new(args.common.json);
    let mut run = PairRun::new(&context, state, Some(journal), &mut progress);
    let findings = match drive(&rules.policy, &mut run) {
        Ok(findings) => findings,
        // What was measured is judged as it stands.
        Err(PairError::Interrupted) => decided_now(&rules, &run),
        Err(PairError::Journal(error)) => return Err(error.into()),
    };
    let (state, journal) = run.into_parts();
    drop(progress);
    let interrupted = stop.load(Ordering::Relaxed);
    if interrupted {
        notes.push("the gate was interrupted".to_owned());
    } else if Instant::now() >= context.deadline {
        notes.push(format!("the budget of {} s is spent; --budget-s or `budget_s` raises it", rules.policy.budget_s));
    }
    notes.extend(state.flaky().map(|case| format!("failed once, then measured: {}", case.case.id())));
    let device_shared = shared_at_start || is_shared(lock.as_slice());

    let records = Sides { base: &base, head: &head }.map(|snapshot| {
        let is_head = snapshot == &head;
        let builder = if is_head { &state.builders().head } else { &state.builders().base };
        let side = if is_head { "head" } else { "base" };
        let info = RunInfo {
            id: format!("{}-{side}", header.run_id),
            started_at: header.started_at.clone(),
            finished_at: format!("{:.0}", jiff::Timestamp::now()),
            command: super::command_line(),
            attnbench_version: env!("CARGO_PKG_VERSION").to_owned(),
            suite: rules.suite.name.clone(),
            suite_hash: rules.suite.hash.clone(),
            seed: context.seed,
            rounds_planned: rules.policy.screen_pairs as u32,
            rounds_done: 0,
            complete: false,
            device_shared,
            time: TimeSpent::default(),
            shard: None,
        };
        builder.finish(info, fingerprint.clone(), provenance.clone(), Some(git_state(builds.sources(), snapshot)))
    });
    let has_pairs = |case: &plan::PairedCase| case.is_closed || case.log_ratios.len() >= rules.policy.screen_pairs;
    let results = PairResults {
        base: &Baseline::from_records("", std::slice::from_ref(&records.base))?,
        head: &Baseline::from_records("", std::slice::from_ref(&records.head))?,
        pairs: state.pairs(),
        findings,
        control_ratios: state.control_ratios(),
        timing_ratios: state.timing_ratios(),
        removed: &rules.removed,
        acceptances: &rules.acceptances,
        notes,
        is_complete: state.pairs().iter().all(has_pairs) && !interrupted,
    };
    let report = GateReport { command: super::command_line(), ..judge_pairs(results, &rules.policy, args.strict) };
    save_records(&out, &records)?;
    save(&out, &report)?;
    match journal {
        Some(journal) if !interrupted => journal.remove()?,
        _ => eprintln!(
            "interrupted: what was measured is in the journal; go on with --resume {}",
            journal_file.display()
        ),
    }
    conclude(args, &out, &report, &base, head)
}

/// Prints the report, says where it is, and keeps it in the history.
fn conclude(args: &Args, out: &Path, report: &GateReport, base: &Snapshot, head: Snapshot) -> anyhow::Result<Exit> {
    super::print(args, report)?;
    eprintln!("\nreport: {}", out.display());
    super::keep(args, report, Some(base.commit.clone()), Some(head_name(head)))?;
    Ok(report.exit())
}

/// What head is called in a history: two states of the working tree on one commit are no two tries of one gate.
pub(super) fn head_name(head: Snapshot) -> String {
    if head.dirty { format!("{}.{}", head.name(), &head.tree[..10]) } else { head.commit }
}

fn decided_now(rules: &Rules, run: &PairRun<'_>) -> Vec<crate::compare::Finding> {
    match plan::next(&rules.policy, &Evidence::Pairs { cases: run.cases(), may_measure: false }) {
        Step::Decided(findings) => findings,
        Step::Measure { .. } => unreachable!("nothing may be measured any more"),
    }
}

/// The commit that was named, else the merge base with the target branch.
pub(super) fn base(args: &Args, sources: &Sources) -> anyhow::Result<Snapshot> {
    if let Some(name) = &args.against {
        return Ok(sources.commit(name)?);
    }
    let of_ci = || TARGET_VARIABLES.iter().find_map(|name| std::env::var(name).ok().filter(|name| !name.is_empty()));
    Ok(sources.merge_base(args.target.clone().or_else(of_ci).as_deref())?)
}

pub(super) fn rules(
    args: &Args,
    sources: &Sources,
    base: &Snapshot,
    head: &Snapshot,
    cpu: &CpuInfo,
) -> anyhow::Result<Rules> {
    let today = jiff::Zoned::now().date().to_string();
    let source = RuleSource { sources, base, head, device: &cpu.slug(), today: &today };
    let mut rules = source.read(&args.pairs.suite, args.common.policy()?)?;
    args.override_in(&mut rules.policy)?;
    args.pairs.select(&mut rules.suite.cases);
    args.pairs.select(&mut rules.new);
    rules.removed.retain(|key| args.pairs.selects(&key.case_id));
    if rules.suite.cases.is_empty() && rules.new.is_empty() && rules.removed.is_empty() {
        bail!("selecting cases of suite `{}`: --include and --exclude leave none", rules.suite.name);
    }
    for case in &mut rules.suite.cases {
        case.settings.rounds = rules.policy.screen_pairs as u32;
    }
    for case in &mut rules.new {
        case.settings.rounds = 1;
    }
    Ok(rules)
}

/// The outcome where a worker of base cannot take part at all: nothing can be compared then. A worker of head that cannot
/// is a regression of every case, which the rounds show; so is a provider that neither side supports here.
fn refused(hellos: &pairs::Hellos) -> anyhow::Result<Option<(Exit, String)>> {
    for (provider, sides) in hellos {
        if let (Err(Failure::Interrupted), _) | (_, Err(Failure::Interrupted)) = (&sides.base, &sides.head) {
            bail!("interrupted");
        }
        let kind = |hello: &Result<_, Failure>| match hello {
            Err(Failure::Refused(error)) => Some(error.kind),
            _ => None,
        };
        let kinds = [kind(&sides.base), kind(&sides.head)];
        let (exit, side, failure) = match (&sides.base, &sides.head) {
            _ if kinds == [Some(ErrorKind::Unsupported); 2] => continue,
            (Err(failure @ Failure::Refused(_)), _) => (Exit::NotComparable, "base", failure),
            (Err(failure), _) => (Exit::Failed, "base", failure),
            // Other inputs, or a protocol that nobody speaks here.
            (_, Err(failure @ Failure::Refused(error))) if error.kind == ErrorKind::Invalid => {
                (Exit::NotComparable, "head", failure)
            }
            _ => continue,
        };
        let reason = format!("the worker of {side} for provider `{provider}` cannot take part: {failure}");
        return Ok(Some((exit, reason)));
    }
    Ok(None)
}

fn what_hellos_say(hellos: &pairs::Hellos) -> Vec<String> {
    let mut notes = Vec::new();
    for (provider, sides) in hellos {
        let (Ok(base), Ok(head)) = (&sides.base, &sides.head) else { continue };
        if base.protocol != head.protocol {
            let [b, h] = [base.protocol, head.protocol].map(|(major, minor)| format!("{major}.{minor}"));
            notes.push(format!("workers of `{provider}` speak protocol {b} on base, {h} on head"));
        }
        if base.timing_hash != head.timing_hash {
            notes.push(format!(
                "the sources that time differ between base and head for `{provider}`: controls ran in both workers"
            ));
        }
    }
    notes
}

fn git_state(sources: &Sources, snapshot: &Snapshot) -> GitState {
    GitState {
        commit: snapshot.commit.clone(),
        branch: None,
        dirty: snapshot.dirty,
        merge_base: None,
        committed_at: sources.committed_at(&snapshot.commit).unwrap_or_default(),
    }
}

/// What must be equal for a journal to be resumed.
fn plan_hash(rules: &Rules, built: &Sides<crate::build::BuiltWorker>) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in [&rules.suite.hash, &built.base.hash, &built.head.hash, &format!("{:?}", rules.policy)] {
        hasher.update(part.as_bytes());
    }
    for case in rules.suite.cases.iter().chain(&rules.new) {
        hasher.update(case.key().to_string().as_bytes());
    }
    hasher.finalize().to_hex()[..32].to_owned()
}

/// Where the report goes. A place that cannot hold one is found here, before anything is measured.
fn out_path(args: &Args, suite: &str, now: jiff::Timestamp) -> anyhow::Result<PathBuf> {
    let path = match (&args.out, &args.resume) {
        (Some(out), _) => out.clone(),
        (None, Some(journal)) if journal.extension().is_some_and(|extension| extension == "journal") => {
            journal.with_extension("")
        }
        _ => PathBuf::from(format!("results/gate-{suite}-{}.json", run_id(now))),
    };
    if path.is_dir() {
        bail!("writing report `{}`: this is a directory; name a file in it", path.display());
    }
    Ok(path)
}

/// Writes the records of both sides beside the report.
fn save_records(out: &Path, records: &Sides<Record>) -> anyhow::Result<()> {
    for (side, record) in [("base", &records.base), ("head", &records.head)] {
        crate::record::file::save(&out.with_extension(format!("{side}.json")), record)?;
    }
    Ok(())
}

pub(super) fn save(out: &Path, report: &impl serde::Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(report)? + "\n";
    write_atomically(out, text.as_bytes()).with_context(|| format!("writing report `{}`", out.display()))
}
