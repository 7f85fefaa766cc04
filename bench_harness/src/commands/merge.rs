//! `attnbench merge`: shards of a run -> one record.

use std::path::PathBuf;

use anyhow::bail;

use super::{Exit, terminal};
use crate::record::merge::{Merged, merge};
use crate::record::{CaseResult, Disposition, file};
use crate::report;

/// Cases of missing shards that are named; more are counted.
const SHOWN_CASES: usize = 10;

/// Join the shards of a run into one record
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  attnbench run ci --shard 1/2 --out 1.json        on one machine
  attnbench run ci --shard 2/2 --out 2.json        on another of the same kind
  attnbench merge 1.json 2.json --out ci.json

Shards of different machines, suites, commits or settings are refused, and what differs is named. Where a
shard is missing, its cases are `skipped`, everything else is as usable as ever, and the exit code is 5:
measure that shard, and merge all of them again.")]
pub struct Args {
    /// Records that `attnbench run --shard` wrote
    #[arg(required = true, value_name = "SHARD")]
    shards: Vec<PathBuf>,
    /// Where the record goes
    #[arg(long, short, value_name = "FILE")]
    out: PathBuf,
    /// Print the record as JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<Exit> {
    if args.shards.contains(&args.out) {
        bail!("writing record `{}`: this is one of the shards; choose another --out", args.out.display());
    }
    let shards = args
        .shards
        .iter()
        .map(|path| Ok((path.display().to_string(), file::load(path)?)))
        .collect::<Result<Vec<_>, file::RecordError>>()?;
    let command = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    let merged = merge(shards, command)?;
    let record = &merged.record;
    file::save(&args.out, record)?;
    if args.json {
        terminal::print(&report::json::reviewable(record)?)?;
    } else {
        let cases: Vec<_> = record.cases.iter().collect();
        terminal::print(report::table::record_table(record, &cases, terminal::style()).trim_end())?;
        eprintln!("\nrecord: {}", args.out.display());
    }
    for line in shortfalls(&merged) {
        eprintln!("warning: {}", report::printable(&line));
    }
    let failed = record.cases.iter().any(|case| case.disposition.is_failure());
    Ok(if failed || !record.run.complete { Exit::Failed } else { Exit::Pass })
}

/// What the record lacks, in words.
fn shortfalls(merged: &Merged) -> Vec<String> {
    let mut lines = Vec::new();
    for &shard in &merged.missing {
        let lost: Vec<&CaseResult> = merged.record.cases.iter().filter(|case| case.shard == Some(shard)).collect();
        let total = merged.record.cases.len();
        lines.push(format!(
            "shard {shard}/{} is missing, and with it {} of {total} cases; measure it with --shard {shard}/{} (or go on \
             from its journal with --resume) and merge again",
            merged.count,
            lost.len(),
            merged.count
        ));
        lines.extend(lost.iter().take(SHOWN_CASES).map(|case| format!("not measured: {}", case.key)));
        if lost.len() > SHOWN_CASES {
            lines.push(format!("not measured: {} more", lost.len() - SHOWN_CASES));
        }
    }
    let unreached = |case: &&CaseResult| {
        let is_lost = case.shard.is_some_and(|shard| merged.missing.contains(&shard));
        !is_lost && case.disposition == Disposition::Skipped
    };
    let skipped = merged.record.cases.iter().filter(unreached).count();
    if skipped > 0 {
        lines.push(format!("{skipped} cases of shards that are there were skipped; their rows say why"));
    }
    lines
}
