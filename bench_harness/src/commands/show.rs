//! `attnbench show`: the table of a record.

use std::path::PathBuf;

use super::{Exit, terminal};
use crate::record::{CaseResult, file};
use crate::report::{plot, samples, shown, table};
use crate::suite::CaseGlob;

/// Show what a record says of every case
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  attnbench show record.json                       the table
  attnbench show record.json --case '*/flash/*'    some of its cases
  attnbench show record.json --samples             what each round saw of each case
  attnbench show record.json --plot                latency against length, drawn
  attnbench show record.json --json                every metric of every case, for programs")]
pub struct Args {
    /// A record that `attnbench run` wrote
    record: PathBuf,
    /// Only cases whose id matches: `*` is any run of characters, slashes too
    #[arg(long, value_name = "GLOB", value_parser = CaseGlob::parse)]
    case: Option<CaseGlob>,
    /// What each round saw of each case; with --json also every sample
    #[arg(long)]
    samples: bool,
    /// Draw latency against length, both logarithmic: a chart a family of problems, a line a kernel
    #[arg(long, conflicts_with_all = ["samples", "json"])]
    plot: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<Exit> {
    let record = file::load(&args.record)?;
    let is_wanted = |case: &&CaseResult| args.case.as_ref().is_none_or(|glob| glob.matches(&case.key.case_id));
    let cases: Vec<&CaseResult> = record.cases.iter().filter(is_wanted).collect();
    if let (Some(glob), true) = (&args.case, cases.is_empty()) {
        anyhow::bail!(
            "showing record `{}`: none of its {} cases matches `{}`; `attnbench show` without --case lists them",
            args.record.display(),
            record.cases.len(),
            glob.as_str()
        );
    }
    if args.plot {
        let plots = plot::plots(&record, &cases, terminal::style());
        if plots.is_empty() {
            anyhow::bail!(
                "plotting record `{}`: no family of its cases was measured at two lengths; `attnbench run exponents` \
                 measures some",
                args.record.display()
            );
        }
        terminal::print(plots.trim_end())?;
    } else if args.json {
        terminal::print_json(&shown::shown(&record, &cases, args.samples))?;
    } else if args.samples {
        terminal::print(samples::samples_text(&cases, terminal::style()).trim_end())?;
    } else {
        terminal::print(table::record_table(&record, &cases, terminal::style()).trim_end())?;
    }
    Ok(Exit::Pass)
}
