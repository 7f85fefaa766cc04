//! `attnbench history`: results over time, and where they changed.

mod changes;

use std::path::PathBuf;

use super::{Exit, terminal};

/// Keep results over time, and find what changed, when and on which commit
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  attnbench history changes --csv nightly.csv --column value        the changes of a column of a CSV file
  attnbench history changes --csv nightly.csv --json --provisional  also the last 8 values' changes, as JSON")]
pub struct Args {
    #[command(subcommand)]
    action: Action,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(clap::Subcommand, Debug)]
enum Action {
    /// Find where the level of series changed for good
    #[command(after_help = "Examples:
  attnbench history changes --csv nightly.csv --column value --json
  attnbench history changes --csv rates.csv --column tflops --better higher --provisional

Spikes, second modes, excursions that go away, autocorrelated noise and drift are no changes. A change within the last 8
values may yet go away: it is provisional, and shown with --provisional only. Exit codes: 0, or 1 with --fail-on-open
while a regression is open.")]
    Changes {
        /// CSV file with a header; a value a row, in the order of time
        #[arg(long, value_name = "FILE")]
        csv: PathBuf,
        /// Column of the values
        #[arg(long, value_name = "NAME", default_value = "value")]
        column: String,
        /// Column of the times [default: `time`, where it exists]
        #[arg(long, value_name = "NAME")]
        time_column: Option<String>,
        /// Column of the commits [default: `commit`, where it exists]
        #[arg(long, value_name = "NAME")]
        commit_column: Option<String>,
        /// Which direction of the values is good
        #[arg(long, value_enum, default_value = "lower")]
        better: BetterArg,
        /// Show changes within the last 8 values too
        #[arg(long)]
        provisional: bool,
        /// Exit with 1 while a regression is open
        #[arg(long)]
        fail_on_open: bool,
    },
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

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<Exit> {
    match args.action {
        Action::Changes { csv, column, time_column, commit_column, better, provisional, fail_on_open } => {
            let columns = crate::history::csv::Columns { value: column, time: time_column, commit: commit_column };
            changes::of_csv(&csv, &columns, better, changes::Show { provisional, fail_on_open, json: args.json })
        }
    }
}
