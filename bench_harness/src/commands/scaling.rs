//! `attnbench scaling`: how time grows with length.

use std::path::PathBuf;

use anyhow::bail;

use super::{Exit, terminal};
use crate::record::file;
use crate::report::scaling::{scalings, table};

/// Fit the exponent of time over length for every family of cases in a record
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Record of a suite that has at least three lengths a family, such as `exponents`
    record: PathBuf,

    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  attnbench run exponents --out exponents.json && attnbench scaling exponents.json";

/// Fits and prints.
pub fn run(args: Args) -> anyhow::Result<Exit> {
    let record = file::load(&args.record)?;
    let scalings = scalings(&record);
    if scalings.is_empty() {
        bail!(
            "fitting exponents of `{}`: no family of cases was measured at three lengths or more; \
             `attnbench run exponents` measures one",
            args.record.display()
        );
    }
    if args.json {
        terminal::print_json(&scalings)?;
    } else {
        terminal::print(table(&scalings, terminal::width()).trim_end())?;
    }
    Ok(Exit::Pass)
}
