//! `attnbench show`: the table of a record.

use std::path::PathBuf;

use serde::Serialize;

use super::{Exit, terminal};
use crate::metric::{Estimate, METRICS, latency};
use crate::record::{CaseResult, CaseRound, Disposition, Record, RunInfo, file};
use crate::report::{plot, samples, table};
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

/// A record as programs want it: metrics are computed, samples are left out unless asked for.
#[derive(Serialize)]
struct Shown<'a> {
    run: &'a RunInfo,
    fingerprint: &'a std::collections::BTreeMap<String, String>,
    git: &'a Option<crate::record::GitState>,
    cases: Vec<ShownCase<'a>>,
}

#[derive(Serialize)]
struct ShownCase<'a> {
    #[serde(flatten)]
    key: &'a crate::case::CaseKey,
    matrix: &'a str,
    disposition: Disposition,
    reason: &'a Option<String>,
    flags: &'a [String],
    /// Rounds whose times count.
    timed_rounds: usize,
    metrics: std::collections::BTreeMap<&'static str, ShownMetric>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rounds: Option<&'a [CaseRound]>,
}

#[derive(Serialize)]
struct ShownMetric {
    unit: &'static str,
    #[serde(flatten)]
    estimate: Estimate,
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
        terminal::print_json(&shown(&record, &cases, args.samples))?;
    } else if args.samples {
        terminal::print(samples::samples_text(&cases, terminal::style()).trim_end())?;
    } else {
        terminal::print(table::record_table(&record, &cases, terminal::style()).trim_end())?;
    }
    Ok(Exit::Pass)
}

fn shown<'a>(record: &'a Record, cases: &[&'a CaseResult], with_samples: bool) -> Shown<'a> {
    let metrics = |case: &CaseResult| {
        METRICS
            .iter()
            .filter_map(|metric| {
                // JSON has no infinity: an output that is not finite has no error that is a number.
                let estimate = metric.value(case, record).filter(|estimate| estimate.value.is_finite())?;
                Some((metric.name(), ShownMetric { unit: metric.unit(), estimate }))
            })
            .collect()
    };
    let case = |case: &&'a CaseResult| ShownCase {
        key: &case.key,
        matrix: &case.matrix,
        disposition: case.disposition,
        reason: &case.reason,
        flags: &case.flags,
        timed_rounds: latency::timed_rounds(case).count(),
        metrics: metrics(case),
        rounds: with_samples.then_some(case.rounds.as_slice()),
    };
    Shown {
        run: &record.run,
        fingerprint: &record.fingerprint,
        git: &record.git,
        cases: cases.iter().map(case).collect(),
    }
}
