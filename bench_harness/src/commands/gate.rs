//! `attnbench gate`: may this change go in?

use std::path::PathBuf;

use super::compare::{Common, load_record};
use super::{Exit, terminal};
use crate::gate::outcome::judge;
use crate::report::comparison;

/// Judge runs against a stored baseline and say so by the exit code
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  attnbench gate run.json --baseline ci
  attnbench gate run.json --baseline baselines/some-device/ci.json --strict
  attnbench gate monday.json tuesday.json --baseline ci --max-mde 0.15

Exit codes: 0 pass, 1 a regression, 2 usage or bad input, 3 undecided, 4 not comparable, 5 cases failed to run;
where several apply, the first of 2, 1, 5, 4, 3, 0.")]
pub struct Args {
    /// Records of head, one a session
    #[arg(required = true, value_name = "RECORD")]
    records: Vec<PathBuf>,
    /// Baseline: a file, or `[DEVICE/]SUITE` in the directory of baselines
    #[arg(long, value_name = "NAME|PATH")]
    baseline: String,
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
    let mut policy = args.common.policy()?;
    policy.min_decided = args.min_decided.unwrap_or(policy.min_decided);
    policy.max_mde = args.max_mde.unwrap_or(policy.max_mde);
    policy.check()?;
    let heads = args.records.iter().map(|path| load_record(path)).collect::<anyhow::Result<Vec<_>>>()?;
    let baseline = args.common.baseline(&args.baseline)?;
    let report = judge(&heads, &baseline, &policy, args.strict)?;
    if args.common.json {
        terminal::print_json(&report)?;
    } else {
        terminal::print(comparison::gate_text(&report, terminal::style()).trim_end())?;
    }
    Ok(report.exit())
}
