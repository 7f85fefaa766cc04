//! `attnbench ratios`: how fast one provider's kernels are beside everybody else's.

use std::path::PathBuf;

use anyhow::bail;

use super::{Exit, terminal};
use crate::record::file;
use crate::report::ratios::{ratios, table};

/// Show the time of each kernel's peers as a multiple of its own
#[derive(clap::Args, Debug)]
#[command(after_long_help = EXAMPLES)]
pub struct Args {
    /// Record of a suite whose problems several providers computed, such as `peers`
    record: PathBuf,

    /// The provider whose kernels the others are compared with
    #[arg(long, value_name = "PROVIDER", default_value = "cpu")]
    of: String,

    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  attnbench run peers --provider torch --provider ggml --out peers.json
  attnbench ratios peers.json
  attnbench ratios peers.json --of torch";

/// Computes and prints.
pub fn run(args: Args) -> anyhow::Result<Exit> {
    let record = file::load(&args.record)?;
    let ratios = ratios(&record, &args.of);
    if ratios.iter().all(|ratio| ratio.peers.is_empty()) {
        bail!(
            "comparing provider `{}` of `{}`: no problem was measured by it and by another; \
             `attnbench run peers --provider torch` measures some",
            args.of,
            args.record.display()
        );
    }
    if args.json {
        terminal::print_json(&ratios)?;
    } else {
        terminal::print(&table(&ratios, terminal::style()))?;
    }
    Ok(Exit::Pass)
}
