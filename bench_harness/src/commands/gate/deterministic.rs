//! `attnbench gate --deterministic`: instructions of both builds instead of times.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use attn_kernels::cpu::simd::Isa;
use attn_kernels::work::Work;
use serde::Deserialize;

use super::{Args, against, pairs};
use crate::build::{BuiltWorker, Purpose};
use crate::commands::run::interrupt;
use crate::commands::{Exit, terminal};
use crate::compare::Side;
use crate::device::cpu::info::CpuInfo;
use crate::gate::deterministic::resources::ByArchitecture;
use crate::gate::deterministic::{Count, Counted, CountedCase, CountedReport, Counts, judge};
use crate::gate::outcome::GateReport;
use crate::measure::instructions::{check_tools, count};
use crate::measure::pairs::{Sides, WorkerSet};
use crate::report::comparison::accepted_text;
use crate::report::printable;
use crate::rules::{MAX_RULE_BYTES, suite_file};
use crate::suite::PlannedCase;
use crate::vcs::{Snapshot, Sources};

/// Builds, counts twice on each side, judges and prints.
pub(super) fn run(args: &Args) -> anyhow::Result<Exit> {
    check_tools().map_err(anyhow::Error::msg)?;
    let stop = interrupt::stop_flag()?;
    let builds = args.pairs.builds(stop.clone())?;
    let (base, head) = (against::base(args, builds.sources())?, builds.sources().working_tree()?);
    let rules = against::rules(args, builds.sources(), &base, &head, &CpuInfo::read())?;
    let command = args.pairs.command()?;
    let built = Sides {
        base: pairs::build(&builds, &base, &command, Purpose::Base, 0)?,
        head: pairs::build(&builds, &head, &command, Purpose::Head, 0)?,
    };
    let scratch = tempfile::Builder::new().prefix("attnbench-").tempdir().context("making a private scratch folder")?;
    let workers = args.pairs.workers(&built, scratch.path())?;
    let mut isa: Option<String> = None;
    let mut count_side = |set: &WorkerSet, case: &PlannedCase| -> Counts {
        let provider = &case.case.provider;
        let command = set.commands.get(provider).ok_or_else(|| format!("provider `{provider}` was not named"))?;
        let mut once = || -> Result<Count, String> {
            let counted = count(command, case, rules.suite.seed, scratch.path(), stop.clone())?;
            if counted.isa.is_some() {
                isa.clone_from(&counted.isa);
            }
            Ok(Count { instructions: counted.instructions, extra_peak_bytes: counted.extra_peak_bytes })
        };
        Ok([once()?, once()?])
    };
    let works = [&built.base, &built.head].map(|built| match args.pairs.binary.ends_with(OWN_BINARY) {
        true => works_of(built, builds.sources(), &base, &args.pairs.suite, scratch.path()),
        false => Ok(BTreeMap::new()),
    });
    let [base_works, head_works] = works;
    let (base_works, head_works) = (base_works?, head_works?);
    let mut cases: Vec<CountedCase> = Vec::new();
    for case in &rules.suite.cases {
        // Modes and threads of a case are one call.
        let case_id = case.case.id();
        if cases.iter().any(|known| known.case_id == case_id) {
            continue;
        }
        eprintln!("counting {case_id}");
        let (base, head) = (count_side(&workers.base, case), count_side(&workers.head, case));
        let work = [&base_works, &head_works].map(|works| works.get(&case_id).copied());
        cases.push(CountedCase { case_id, base, head, work });
        if stop.load(std::sync::atomic::Ordering::Relaxed) {
            anyhow::bail!("interrupted");
        }
    }
    let kernels = match args.gpu_arch.is_empty() {
        true => None,
        false => Some([kernels_of(&built.base, &args.gpu_arch)?, kernels_of(&built.head, &args.gpu_arch)?]),
    };
    let kernels = kernels.as_ref().map(|[base, head]| [base, head]);
    let side = |snapshot: &Snapshot| Side {
        suite: rules.suite.name.clone(),
        commits: vec![snapshot.name()],
        ..Side::default()
    };
    let sides = [side(&base), side(&head)];
    let counted = Counted {
        cases: &cases,
        isa: isa.as_deref(),
        native_isa: Isa::best().name(),
        kernels,
        removed: &rules.removed,
        acceptances: &rules.acceptances,
        sides: [&sides[0], &sides[1]],
        strict: args.strict,
    };
    let mut report = judge(counted, &rules.policy);
    report.gate.command = super::command_line();
    report.gate.comparison.notes.extend(rules.notes);
    if let Some(out) = &args.out {
        against::save(out, &report)?;
    }
    if args.common.json {
        terminal::print_json(&report)?;
    } else {
        terminal::print(text(&report).trim_end())?;
    }
    conclude(args, &report.gate, &base, head)
}

/// Writes the other reports, and keeps the outcome in the history.
fn conclude(args: &Args, report: &GateReport, base: &Snapshot, head: Snapshot) -> anyhow::Result<Exit> {
    args.report.iter().try_for_each(|target| target.write(report))?;
    super::keep(args, report, Some(base.commit.clone()), Some(against::head_name(head)))?;
    Ok(report.exit())
}

/// The name of a build that can be asked what it counts.
const OWN_BINARY: &str = "attnbench";

/// The exact work of each case of base's suite, as a build counts it.
fn works_of(
    built: &BuiltWorker,
    sources: &Sources,
    base: &Snapshot,
    suite: &str,
    scratch: &Path,
) -> anyhow::Result<BTreeMap<String, Work>> {
    #[derive(Deserialize)]
    struct Planned {
        case_id: String,
        work: Work,
    }
    let file = suite_file(suite)?;
    let text = sources.file(base, &file, MAX_RULE_BYTES)?.with_context(|| format!("reading `{file}` of base"))?;
    let path = scratch.join("counted.toml");
    std::fs::write(&path, text).with_context(|| format!("writing `{}`", path.display()))?;
    let mut command = Command::new(&built.path);
    command.arg("run").arg(&path).args(["--dry-run", "--json"]).stdin(Stdio::null());
    let output =
        command.output().with_context(|| format!("asking the build `{}` for its work", built.path.display()))?;
    // A build that does not know the suite, or an old one, counts nothing; its cases say more.
    let planned: Vec<Planned> = serde_json::from_slice(&output.stdout).unwrap_or_default();
    Ok(planned.into_iter().map(|planned| (planned.case_id, planned.work)).collect())
}

/// What a build's CUDA kernels take of a multiprocessor, as that build itself says.
fn kernels_of(built: &BuiltWorker, architectures: &[String]) -> anyhow::Result<ByArchitecture> {
    let doing = || format!("compiling the CUDA kernels of the build `{}`", built.path.display());
    eprintln!("{}", doing());
    let mut command = Command::new(&built.path);
    command.args(["kernels", "--resources", "--json", "--arch", &architectures.join(",")]);
    let output = command.stderr(Stdio::inherit()).output().with_context(doing)?;
    if !output.status.success() {
        bail!("{}: it ended with {}; what it said is above", doing(), output.status);
    }
    serde_json::from_slice(&output.stdout).with_context(|| format!("{}: reading what it printed", doing()))
}

fn text(report: &CountedReport) -> String {
    let gate = &report.gate;
    let mut text = format!("{}\n", gate.headline);
    for accepted in &gate.accepted {
        text += &format!("  {}\n", printable(&accepted_text(accepted)));
    }
    gate.causes.iter().for_each(|cause| text += &format!("  {cause}\n"));
    for case in &gate.comparison.cases {
        let (id, reason) = (&case.key.case_id, printable(&case.reason));
        text += &format!("  {:14} {id}\n{:17}{reason}\n", case.verdict.name(), "");
        for metric in case.metrics.iter().filter(|metric| metric.metric.starts_with("work_")) {
            text += &format!("{:17}{}: {}\n", "", metric.metric, printable(&metric.finding.reason));
        }
    }
    if let Some(compared) = report.kernels_compared {
        let changed = report.kernels.len();
        text += &format!("compared {compared} CUDA kernels, each on its architecture; {changed} differ\n");
    }
    for note in &gate.comparison.notes {
        text += &format!("note: {}\n", printable(note));
    }
    text
}
