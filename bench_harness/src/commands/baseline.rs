//! `attnbench baseline`: the stored summaries that later runs are compared with.

use std::path::PathBuf;

use serde::Serialize;

use super::{Exit, terminal};
use crate::case::check_name;
use crate::compare::Baseline;
use crate::device::cpu::info::{CpuInfo, slug};
use crate::record::file;
use crate::report::baselines::{self, BaselineSummary};
use crate::store::baseline::{BaselineName, BaselineStore, DEFAULT_DIRECTORY};

/// Keep records to compare with, list and show them
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  attnbench baseline save record.json               add a session to its suite's baseline
  attnbench baseline save a.json b.json --replace   start over with two sessions
  attnbench baseline list                           every baseline of ./baselines
  attnbench baseline show ci                        this machine's baseline of the suite `ci`
  attnbench baseline show amd-epyc-7b13-64-core/ci  another device's")]
pub struct Args {
    #[command(subcommand)]
    action: Action,
    /// Directory of stored baselines
    #[arg(long, global = true, value_name = "DIR", default_value = DEFAULT_DIRECTORY)]
    baselines: PathBuf,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(clap::Subcommand, Debug)]
enum Action {
    /// Add records to the baseline of their suite and device, a session each
    #[command(after_help = "Examples:
  attnbench baseline save record.json
  attnbench baseline save monday.json tuesday.json --replace
  attnbench baseline save record.json --name my-cluster/ci")]
    Save {
        /// Records that `attnbench run` wrote, of one suite and one kind of device
        #[arg(required = true)]
        records: Vec<PathBuf>,
        /// Save as SUITE or DEVICE/SUITE instead of what the records say
        #[arg(long)]
        name: Option<String>,
        /// Forget the sessions that are there
        #[arg(long)]
        replace: bool,
    },
    /// List all baselines
    #[command(after_help = "Examples:
  attnbench baseline list
  attnbench baseline list --baselines elsewhere/baselines --json")]
    List,
    /// Show a baseline's sessions and cases
    #[command(after_help = "Examples:
  attnbench baseline show ci
  attnbench baseline show amd-epyc-7b13-64-core/ci --json")]
    Show {
        /// SUITE on this device, or DEVICE/SUITE
        name: String,
    },
}

/// What `save` reports.
#[derive(Serialize)]
struct Saved {
    name: String,
    path: PathBuf,
    sessions_before: usize,
    sessions: usize,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<Exit> {
    let store = BaselineStore::new(args.baselines);
    match args.action {
        Action::Save { records, name, replace } => save(&store, &records, name.as_deref(), replace, args.json)?,
        Action::List => list(&store, args.json)?,
        Action::Show { name } => {
            let baseline = store.find(&name, &CpuInfo::read().slug())?;
            if args.json {
                terminal::print_json(&baseline)?;
            } else {
                terminal::print(baselines::baseline_text(&baseline, terminal::style()).trim_end())?;
            }
        }
    }
    Ok(Exit::Pass)
}

fn save(store: &BaselineStore, paths: &[PathBuf], name: Option<&str>, replace: bool, json: bool) -> anyhow::Result<()> {
    let records = paths.iter().map(|path| file::load(path)).collect::<Result<Vec<_>, _>>()?;
    // The device is the record's, not this machine's: records travel.
    let device = match records[0].device_model() {
        Some(model) => slug(model),
        None => CpuInfo::read().slug(),
    };
    let suite = &records[0].run.suite;
    let name = match name {
        Some(name) => BaselineName::parse(name, &device)?,
        None => {
            check_name(suite).map_err(|reason| {
                anyhow::anyhow!("saving the baseline of `{}`: its suite's {reason}; use --name", paths[0].display())
            })?;
            BaselineName::parse(&format!("{device}/{suite}"), &device)?
        }
    };
    let incomplete = records.iter().zip(paths).filter(|(record, _)| !record.run.complete);
    for (_, path) in incomplete {
        eprintln!("warning: `{}` is of an interrupted run: some of its cases have fewer rounds", path.display());
    }
    for (record, path) in records.iter().zip(paths) {
        if record.run.device_shared {
            eprintln!("warning: `{}` was measured while another attnbench used the device", path.display());
        }
    }
    let saved = if replace { store.replace(&name, &records) } else { store.append(&name, &records) }?;
    if json {
        return terminal::print_json(&Saved {
            name: name.to_string(),
            path: saved.path,
            sessions_before: saved.sessions_before,
            sessions: saved.sessions,
        });
    }
    let sessions = saved.sessions;
    terminal::print(&format!(
        "baseline {name}: {sessions} session{} in `{}`",
        if sessions == 1 { "" } else { "s" },
        saved.path.display()
    ))
}

fn list(store: &BaselineStore, json: bool) -> anyhow::Result<()> {
    // A broken file is shown as such and hides no other.
    let summaries: Vec<BaselineSummary> = store
        .list()?
        .iter()
        .map(|name| match store.load(name) {
            Ok(baseline) => summary(name, &baseline),
            Err(error) => BaselineSummary::broken(name.to_string(), error.to_string()),
        })
        .collect();
    if json {
        return terminal::print_json(&summaries);
    }
    if summaries.is_empty() {
        return terminal::print(&format!(
            "no baselines in `{}`: `attnbench baseline save RECORD` makes one",
            store.directory().display()
        ));
    }
    terminal::print(baselines::list_text(&summaries, terminal::style()).trim_end())
}

fn summary(name: &BaselineName, baseline: &Baseline) -> BaselineSummary {
    let last = baseline.sessions.last();
    BaselineSummary {
        name: name.to_string(),
        sessions: baseline.sessions.len(),
        cases: last.map_or(0, |session| session.cases.len()),
        last_date: last.map(|session| session.date.clone()),
        last_commit: last.and_then(|session| session.commit.clone()),
        error: None,
    }
}
