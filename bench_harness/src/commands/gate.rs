//! `attnbench gate`: may this change go in?

pub(super) mod against;
mod deterministic;
pub(super) mod pairs;
mod stored;

use std::path::PathBuf;

use anyhow::bail;

use super::compare::Common;
use super::report::Target;
use super::{Exit, terminal};
use crate::gate::outcome::GateReport;
use crate::report::comparison;
use crate::store::history::{GateEntry, open, shown};

/// Judge a change and say so by the exit code: builds of two commits measured in pairs, or runs against a baseline
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  attnbench gate                                   the working tree against its merge base
  attnbench gate --against v1.2.0 --suite prefill  against a release
  attnbench gate --build 'make -j2' --binary out/worker --provider mine='{worker} --serve'
  attnbench gate run.json --baseline ci            a finished run against a stored baseline
  attnbench gate --deterministic --gpu-arch sm_90a instructions and registers, not times
  attnbench gate monday.json tuesday.json --baseline ci --max-mde 0.15

In pairs, base and head are built apart and measured in turns on this device. Suite, policy
(ci/gate.toml), acceptances (ci/acceptances.toml) and calibration (ci/calibration/) are those of
base: a change cannot move its own goalposts. Finished runs are judged by base's policy and
acceptances too, and by its copy of a baseline that is named and not given as a file.

Exit codes: 0 pass, 1 a regression, 2 usage or bad input, 3 undecided, 4 not comparable, 5 cases
failed to run; where several apply, the first of 2, 1, 5, 4, 3, 0.")]
pub struct Args {
    /// Records of head, one a session, to judge against a baseline
    #[arg(value_name = "RECORD", requires = "baseline")]
    records: Vec<PathBuf>,
    /// Baseline: a file, or `[DEVICE/]SUITE` in the directory of baselines
    #[arg(long, value_name = "NAME|PATH", requires = "records")]
    baseline: Option<String>,
    /// Base: the commit to measure the working tree against, or whose rules judge finished runs
    /// [default: the merge base with the target branch]
    #[arg(long, value_name = "REF")]
    against: Option<String>,
    /// Branch that the change is for [default: the one of the CI job, else the server's default branch]
    #[arg(long, value_name = "BRANCH", conflicts_with = "against")]
    target: Option<String>,
    #[command(flatten)]
    pairs: pairs::Options,
    /// Where the report goes, with what was measured beside it [default: results/gate-SUITE-TIME.json]
    #[arg(long, short, value_name = "FILE", conflicts_with = "records")]
    out: Option<PathBuf>,
    /// Go on with a gate that was stopped or killed, from its journal; the rest as in the first call
    #[arg(long, value_name = "JOURNAL", conflicts_with = "records")]
    resume: Option<PathBuf>,
    /// Keep the outcome in this history: a file, or a server as postgresql://USER@HOST/DATABASE
    #[arg(long, value_name = "PATH|URL")]
    store: Option<String>,
    /// Count instructions under valgrind instead of measuring times: for machines whose clocks mean little
    #[arg(long, conflicts_with_all = ["records", "resume"])]
    deterministic: bool,
    /// Compile the CUDA kernels of both builds too, and compare registers, spills, stack and shared memory: needs NVRTC, no GPU
    #[arg(long, value_name = "SM", value_delimiter = ',', requires = "deterministic")]
    gpu_arch: Vec<String>,
    /// Write a report too, in a format of `attnbench report`: --report markdown=comment.md
    #[arg(long, value_name = "FORMAT=FILE")]
    report: Vec<Target>,
    /// Every inconclusive case makes the gate undecided
    #[arg(long)]
    strict: bool,
    /// Share of the cases that must be decided
    #[arg(long, value_name = "SHARE")]
    min_decided: Option<f64>,
    /// Largest median of the smallest detectable slowdowns; 0.05 is 5 %
    #[arg(long, value_name = "SHARE")]
    max_mde: Option<f64>,
    #[command(flatten)]
    common: Common,
}

/// Runs it.
pub fn run(args: Args) -> anyhow::Result<Exit> {
    if let Some(store) = &args.store {
        // A store that cannot take the outcome is found before there is one.
        open(store)?;
    }
    if args.deterministic {
        return deterministic::run(&args);
    }
    match &args.baseline {
        Some(baseline) => stored::run(&args, baseline),
        None => against::run(&args),
    }
}

impl Args {
    fn override_in(&self, policy: &mut crate::gate::policy::Policy) -> anyhow::Result<()> {
        policy.accept_removed |= self.common.accept_removed;
        policy.min_decided = self.min_decided.unwrap_or(policy.min_decided);
        policy.max_mde = self.max_mde.unwrap_or(policy.max_mde);
        policy.budget_s = self.pairs.budget_s.unwrap_or(policy.budget_s);
        Ok(policy.check()?)
    }
}

/// This command line.
fn command_line() -> Vec<String> {
    std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect()
}

/// Prints a report, and writes it wherever else it is wanted.
fn print(args: &Args, report: &GateReport) -> anyhow::Result<()> {
    if args.common.json {
        terminal::print_json(report)?;
    } else {
        terminal::print(comparison::gate_text(report, terminal::style()).trim_end())?;
    }
    args.report.iter().try_for_each(|target| target.write(report))
}

/// Keeps the outcome in the history, where one is named.
fn keep(args: &Args, report: &GateReport, base: Option<String>, head: Option<String>) -> anyhow::Result<()> {
    let Some(store) = &args.store else { return Ok(()) };
    let time = format!("{:.3}", jiff::Timestamp::now());
    let text = serde_json::to_string(report)? + &time;
    let id = blake3::hash(text.as_bytes()).to_hex()[..12].to_owned();
    let (exit_code, headline) = (report.exit_code, report.headline.clone());
    let entry = GateEntry { id: id.clone(), time, head, base, exit_code, headline, overridden: None };
    if let Err(error) = open(store).and_then(|mut store| store.push_gate(&entry)) {
        bail!("{error}: the gate came to exit code {exit_code}, and its report is the one above");
    }
    eprintln!("gate {id} in `{}`", shown(store));
    Ok(())
}
