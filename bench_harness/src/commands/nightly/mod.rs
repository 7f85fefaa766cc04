//! `attnbench nightly`: run, push, changes, report, each step done once a commit and day.
//!
//! Every step leaves a file or a row by which the next start sees that it is done: a nightly job that was killed is
//! simply started again.

mod measure;
mod report;

use std::path::PathBuf;

use anyhow::Context;

use super::{Exit, run, terminal};
use crate::files::write_atomically;
use crate::history::point::{machine_name, of_record};
use crate::history::search::{FoundSeries, search};
use crate::report::nightly::{Nightly, summary};
use crate::store::history::{self, HistoryStore, shown};

/// Where everything of the nights goes, unless said otherwise.
const DEFAULT_DIRECTORY: &str = "results/nightly";

/// Measure a suite once a day and commit, keep the results, and say what changed
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  attnbench nightly suites/nightly.toml --store results/history.db
  attnbench nightly nightly --store postgresql://bench@db/attnbench --summary chat.txt
  attnbench nightly nightly -- --device cuda:0 --provider torch

Runs the suite, adds the results to the history, looks for changes and writes a report, in
results/nightly/SUITE-DAY-COMMIT-HASH/. For the same commit, day, suite and options nothing is done
twice; after a stop or a kill the same command goes on. The first line of the summary has the
outcome. Exit codes: 0, 1 while a regression is open, 2 bad input, 5 cases failed or the run did
not finish.")]
pub struct Args {
    /// Suite file, or the name of one in `suites/`
    suite: String,
    /// History: a file, or a server as postgresql://USER@HOST/DATABASE
    #[arg(long, value_name = "PATH|URL", default_value = "results/history.db", env = "ATTNBENCH_STORE")]
    store: String,
    /// Folder of the nights, each in a folder of its own
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DIRECTORY)]
    dir: PathBuf,
    /// Day that the results belong to [default: today, UTC]
    #[arg(long, value_name = "YYYY-MM-DD")]
    day: Option<jiff::civil::Date>,
    /// Write the summary here too, as short text for a chat
    #[arg(long, value_name = "FILE")]
    summary: Option<PathBuf>,
    /// Measure although tracked files differ from the commit
    #[arg(long)]
    allow_dirty: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Options of `attnbench run`, after `--`
    #[arg(last = true, value_name = "RUN OPTIONS")]
    options: Vec<String>,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<Exit> {
    let mut store = history::open(&args.store)?;
    let night = measure::Night::of(&args)?;
    let measured = night.measured(store.as_mut(), &args)?;
    let mut exit = Exit::Pass;
    let mut is_new = false;
    if let Some(measured) = &measured {
        exit = run::exit_of(&measured.record);
        if !measured.record.run.complete {
            eprintln!("night {} did not finish; the same command goes on with it", night.id);
            return Ok(Exit::Failed);
        }
        is_new = store.push(&[of_record(&measured.record)]).with_context(|| {
            format!(
                "keeping night {}: its record is `{}`; the same command tries again",
                night.id,
                night.record().display()
            )
        })? > 0;
    }
    let record = measured.as_ref().map(|measured| &measured.record);
    let machine = record.map(|record| machine_name(&record.fingerprint));
    let (open, possible, history) = changes(store.as_mut(), &night.suite, machine.as_deref())?;
    if !open.is_empty() {
        exit = exit.and(Exit::Regression);
    }
    let mut told = Nightly {
        id: night.id.clone(),
        suite: night.suite.clone(),
        day: night.day.to_string(),
        commit: night.commit.clone(),
        device: record.and_then(|record| record.device_model()).map(str::to_owned),
        is_new,
        counts: record.map(crate::report::nightly::Counts::of),
        open,
        possible,
        store: shown(&args.store),
        report: None,
        exit_code: exit as u8,
    };
    if let Some(record) = record {
        told.report = Some(report::write(&night.folder, record, &told, &history)?.display().to_string());
    }
    let text = summary(&told);
    if let Some(path) = &args.summary {
        write_atomically(path, text.as_bytes()).with_context(|| format!("writing summary `{}`", path.display()))?;
    }
    match args.json {
        true => terminal::print_json(&told)?,
        false => terminal::print(text.trim_end())?,
    }
    Ok(exit)
}

/// The series of a suite with an open regression, worst first, how many more look as if they had one, and all its series.
fn changes(
    store: &mut dyn HistoryStore,
    suite: &str,
    machine: Option<&str>,
) -> anyhow::Result<(Vec<FoundSeries>, usize, Vec<FoundSeries>)> {
    let mut series = store.series()?;
    series.retain(|summary| summary.key.suite == suite && machine.is_none_or(|machine| summary.key.machine == machine));
    let is_open = |series: &FoundSeries| series.found.open_regression.is_some();
    let mut open = search(store, series.clone(), false)?;
    open.retain(is_open);
    let size = |series: &FoundSeries| series.found.open_regression.map_or(0.0, f64::abs);
    open.sort_by(|a, b| size(b).total_cmp(&size(a)));
    let all = search(store, series, true)?;
    let maybe = all.iter().filter(|series| is_open(series)).count().saturating_sub(open.len());
    Ok((open, maybe, all))
}
