//! `attnbench gate --deterministic`: instructions of both builds instead of times.

use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use attn_kernels::cpu::simd::Isa;

use super::{Args, against, pairs};
use crate::build::{BuiltWorker, Purpose};
use crate::commands::run::interrupt;
use crate::commands::{Exit, terminal};
use crate::device::cpu::info::CpuInfo;
use crate::gate::deterministic::resources::ByArchitecture;
use crate::gate::deterministic::{Count, CountedCase, CountedReport, Counts, judge};
use crate::measure::instructions::{check_tools, count};
use crate::measure::pairs::{Sides, WorkerSet};
use crate::report::printable;
use crate::suite::PlannedCase;

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
    let mut cases: Vec<CountedCase> = Vec::new();
    for case in &rules.suite.cases {
        // Modes and threads of a case are one call.
        let case_id = case.case.id();
        if cases.iter().any(|known| known.case_id == case_id) {
            continue;
        }
        eprintln!("counting {case_id}");
        let (base, head) = (count_side(&workers.base, case), count_side(&workers.head, case));
        cases.push(CountedCase { case_id, base, head });
        if stop.load(std::sync::atomic::Ordering::Relaxed) {
            anyhow::bail!("interrupted");
        }
    }
    let kernels = match args.gpu_arch.is_empty() {
        true => None,
        false => Some([kernels_of(&built.base, &args.gpu_arch)?, kernels_of(&built.head, &args.gpu_arch)?]),
    };
    let kernels = kernels.as_ref().map(|[base, head]| [base, head]);
    let report = judge(&cases, isa.as_deref(), Isa::best().name(), kernels, &rules.policy);
    if args.common.json {
        terminal::print_json(&report)?;
    } else {
        terminal::print(text(&report).trim_end())?;
    }
    Ok(report.exit())
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
    let mut text = format!("{}\n", report.headline);
    report.causes.iter().for_each(|cause| text += &format!("  {cause}\n"));
    for case in &report.cases {
        text += &format!("  {:14} {}\n{:17}{}\n", case.verdict.name(), case.case_id, "", printable(&case.reason));
    }
    if let Some(compared) = report.kernels_compared {
        let changed = report.kernels.len();
        text += &format!("compared {compared} CUDA kernels, each on its architecture; {changed} differ\n");
    }
    for kernel in &report.kernels {
        let name = format!("{} {} of {}", kernel.architecture, kernel.entry, kernel.module);
        let (name, reason) = (printable(&name), printable(&kernel.reason));
        text += &format!("  {:14} {name}\n{:17}{reason}\n", kernel.verdict.name(), "");
    }
    text
}
