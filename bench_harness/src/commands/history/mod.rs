//! `attnbench history`: results over time, and where they changed.

mod changes;
mod gates;
mod transfer;
mod view;

use std::path::PathBuf;

use super::Exit;
use crate::history::{export, import};
use crate::metric::Better;
use crate::store::history::{HistoryStore, open};

/// Where a history is when nobody says so.
const DEFAULT_STORE: &str = "results/history.db";

/// Keep results over time, and find what changed, when and on which commit
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  attnbench run ci --store results/history.db                       measure and keep
  attnbench history push record.json                                keep a record that is there
  attnbench history changes                                         every change of every series
  attnbench history changes --csv nightly.csv --column value        the changes of a column of a CSV file
  attnbench history import gh-pages/dev/bench/data.js               take over another tool's results")]
pub struct Args {
    #[command(subcommand)]
    action: Action,
    /// Store: a file, or a server as postgresql://USER@HOST/DATABASE
    #[arg(long, global = true, value_name = "PATH|URL", default_value = DEFAULT_STORE, env = "ATTNBENCH_STORE")]
    store: String,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(clap::Subcommand, Debug)]
enum Action {
    /// Add records; a record that is there already changes nothing
    #[command(after_help = "Examples:
  attnbench history push record.json
  attnbench history push results/*.json --store postgresql://bench@db/attnbench")]
    Push {
        /// Records that `attnbench run` wrote
        #[arg(required = true)]
        records: Vec<PathBuf>,
    },
    /// List the latest runs
    #[command(after_help = "Examples:
  attnbench history list
  attnbench history list --most 5 --json")]
    List {
        /// How many
        #[arg(long, value_name = "N", default_value_t = 20)]
        most: usize,
    },
    /// List series, or the values of those that match
    #[command(after_help = "Examples:
  attnbench history series
  attnbench history series --case '*/flash/*' --metric latency_ns_median --points")]
    Series {
        #[command(flatten)]
        select: Select,
        /// Their values too
        #[arg(long)]
        points: bool,
    },
    /// Find where the level of series changed for good
    #[command(after_help = "Examples:
  attnbench history changes
  attnbench history changes --case '*/flash/*' --metric latency_ns_median --fail-on-open
  attnbench history changes --csv nightly.csv --column value --json
  attnbench history changes --csv rates.csv --column tflops --better higher --provisional

Spikes, second modes, excursions that go away, autocorrelated noise and drift are no changes. A change within the last 8
values may yet go away: it is provisional, and shown with --provisional only. What was normal before a regression stays
normal until the regression is accepted (`attnbench history accept`) or goes away. Exit codes: 0, or 1 with
--fail-on-open while a regression is open.")]
    Changes {
        #[command(flatten)]
        select: Select,
        /// CSV file with a header, a value a row in the order of time, instead of the store
        #[arg(long, value_name = "FILE")]
        csv: Option<PathBuf>,
        /// Column of the values
        #[arg(long, value_name = "NAME", default_value = "value", requires = "csv")]
        column: String,
        /// Column of the times [default: `time`, where it exists]
        #[arg(long, value_name = "NAME", requires = "csv")]
        time_column: Option<String>,
        /// Column of the commits [default: `commit`, where it exists]
        #[arg(long, value_name = "NAME", requires = "csv")]
        commit_column: Option<String>,
        /// Which direction of the column's values is good
        #[arg(long, value_enum, default_value = "lower", requires = "csv")]
        better: BetterArg,
        /// Show changes within the last 8 values too
        #[arg(long)]
        provisional: bool,
        /// Exit with 1 while a regression is open
        #[arg(long)]
        fail_on_open: bool,
    },
    /// Accept a regression: its level becomes the normal one
    #[command(after_help = "Examples:
  attnbench history accept 3f2a91c --case '*/flash/*' --metric latency_ns_median --at-most 5 --reason 'fixes NaN rows'")]
    Accept {
        /// The commit of the change, or any commit of its range
        commit: String,
        /// Cases that it is accepted for
        #[arg(long, value_name = "GLOB")]
        case: crate::suite::CaseGlob,
        /// Metric that it is accepted for
        #[arg(long, value_name = "NAME")]
        metric: String,
        /// Largest change that is accepted, in percent
        #[arg(long, value_name = "PERCENT")]
        at_most: f64,
        /// Why
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
    /// Take over results of other tools; what is there already changes nothing
    #[command(after_help = "Examples:
  attnbench history import nightly.csv --column tflops --better higher --suite nightly
  attnbench history import gh-pages/dev/bench/data.js
  attnbench history import nvbench.json --time 2026-01-02T03:04:05Z --commit 3f2a91c")]
    Import {
        /// Files of one format
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// Their format [default: by name and contents]
        #[arg(long, value_enum)]
        format: Option<import::Format>,
        /// Suite of their series, where they name none [default: the file's name]
        #[arg(long, value_name = "NAME")]
        suite: Option<String>,
        /// Machine of their series, where they name none
        #[arg(long, value_name = "NAME", default_value = "imported")]
        machine: String,
        /// When they were measured, where they do not say: RFC 3339
        #[arg(long, value_name = "TIME")]
        time: Option<jiff::Timestamp>,
        /// Their commit, where they do not say
        #[arg(long, value_name = "HASH")]
        commit: Option<String>,
        /// Column of a CSV file's values
        #[arg(long, value_name = "NAME", default_value = "value")]
        column: String,
        /// Which direction of a CSV file's values is good
        #[arg(long, value_enum, default_value = "lower")]
        better: BetterArg,
    },
    /// Write series for other tools
    #[command(after_help = "Examples:
  attnbench history export --format csv > history.csv
  attnbench history export --format bencher --metric latency_ns_median --out latest.json")]
    Export {
        #[command(flatten)]
        select: Select,
        /// What to write
        #[arg(long, value_enum)]
        format: export::Format,
        /// Where to [default: stdout]
        #[arg(long, short, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Every gate's outcome, and how often gates were overridden
    #[command(after_help = "Examples:
  attnbench history gates
  attnbench history gates --add gate.json --head 3f2a91c       keep what `gate --json` printed
  attnbench history gates --override ID --reason 'runner was throttled'")]
    Gates {
        /// Keep a report that `attnbench gate --json` printed
        #[arg(long, value_name = "FILE", conflicts_with = "overridden")]
        add: Option<PathBuf>,
        /// What that gate judged
        #[arg(long, value_name = "HASH", requires = "add")]
        head: Option<String>,
        /// What it was compared with
        #[arg(long, value_name = "HASH", requires = "add")]
        base: Option<String>,
        /// Say that a gate's outcome was overridden
        #[arg(long = "override", value_name = "ID", requires = "reason")]
        overridden: Option<String>,
        /// Why it was
        #[arg(long, value_name = "TEXT", requires = "overridden")]
        reason: Option<String>,
    },
}

/// Which series.
#[derive(Clone, Debug, clap::Args)]
struct Select {
    /// Only cases that match; `*` crosses slashes
    #[arg(long, value_name = "GLOB")]
    case: Option<crate::suite::CaseGlob>,
    /// Only this metric
    #[arg(long, value_name = "NAME")]
    metric: Option<String>,
    /// Only this suite
    #[arg(long, value_name = "NAME")]
    suite: Option<String>,
    /// Only this machine
    #[arg(long, value_name = "NAME")]
    machine: Option<String>,
}

/// Which direction of a value is good.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum BetterArg {
    /// Times, bytes
    Lower,
    /// Rates
    Higher,
    /// Neither: changes are just changes
    None,
}

impl From<BetterArg> for Better {
    fn from(better: BetterArg) -> Better {
        match better {
            BetterArg::Lower => Better::Lower,
            BetterArg::Higher => Better::Higher,
            BetterArg::None => Better::None,
        }
    }
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<Exit> {
    let (store, json) = (args.store, args.json);
    match args.action {
        Action::Push { records } => transfer::push(&store, &records, json),
        Action::List { most } => view::list(existing(&store)?.as_mut(), most, json),
        Action::Series { select, points } => view::series(existing(&store)?.as_mut(), &select, points, json),
        Action::Changes { select, csv, column, time_column, commit_column, better, provisional, fail_on_open } => {
            let show = changes::Show { provisional, fail_on_open, json };
            match csv {
                Some(path) => {
                    let columns =
                        crate::history::csv::Columns { value: column, time: time_column, commit: commit_column };
                    changes::of_csv(&path, &columns, better.into(), show)
                }
                None => changes::of_store(existing(&store)?.as_mut(), &select, show),
            }
        }
        Action::Accept { commit, case, metric, at_most, reason } => {
            changes::accept(existing(&store)?.as_mut(), &commit, &case, &metric, at_most, &reason)
        }
        Action::Import { files, format, suite, machine, time, commit, column, better } => {
            let context = import::Context {
                suite: suite.clone().unwrap_or_default(),
                machine,
                time: time.map(|time| time.to_string()),
                commit,
                column,
                better: better.into(),
            };
            transfer::import(&store, &files, format, suite.is_none(), context, json)
        }
        Action::Export { select, format, out } => {
            transfer::export(existing(&store)?.as_mut(), &select, format, out.as_deref())
        }
        Action::Gates { add, head, base, overridden, reason } => match (add, overridden) {
            (Some(report), _) => gates::add(&store, &report, head, base),
            (None, Some(id)) => gates::overridden(existing(&store)?.as_mut(), &id, reason.unwrap_or_default()),
            (None, None) => gates::list(existing(&store)?.as_mut(), json),
        },
    }
}

/// A store to read: a file that is not there is not made.
pub(crate) fn existing(place: &str) -> anyhow::Result<Box<dyn HistoryStore>> {
    if !place.contains("://") && !std::path::Path::new(place).exists() {
        anyhow::bail!(
            "opening history `{place}`: there is no such file; `attnbench run SUITE --store {place}` or `attnbench \
             history push RECORD` makes one, --store names another"
        );
    }
    Ok(open(place)?)
}
