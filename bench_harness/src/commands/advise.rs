//! `attnbench advise`: which attention design a scenario should serve, as a memo.

use std::path::PathBuf;

use anyhow::{Context, bail};

use super::run::measure_made;
use super::{Exit, terminal};
use crate::advise::{Memo, cases, library};
use crate::device::cpu::usable_cores;
use crate::device::cuda::selection::Selection;
use crate::files;
use crate::record::file;
use crate::report::memo::{html, markdown};

/// Recommend an attention design for a scenario, as a memo with its reasons
///
/// A scenario is a TOML file: model, device, workloads, needs and candidates. For each candidate: cache and capacity, time to
/// the first token and a token, and quality probes; attention is measured on this machine, or predicted from the datasheet
/// of a device that is not here and marked so.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A scenario's name, or its file
    #[arg(value_name = "SCENARIO", required_unless_present = "list")]
    scenario: Option<String>,

    /// List the scenarios and stop
    #[arg(long)]
    list: bool,

    /// What to print
    #[arg(long, value_enum, default_value = "markdown")]
    format: Format,

    /// Also write the memo there: .md, .html or .json; may be repeated
    #[arg(long, short, value_name = "FILE")]
    out: Vec<PathBuf>,

    /// Use the measurements of this record, and measure nothing: the same record gives the same memo
    #[arg(long, value_name = "FILE", conflicts_with_all = ["device", "record_out"])]
    record: Option<PathBuf>,

    /// Where the measurements go [default: results/advise-SCENARIO-TIME.json]
    #[arg(long, value_name = "FILE")]
    record_out: Option<PathBuf>,

    /// Measure the built-in kernels on this device: `cpu`, or `cuda:0`
    #[arg(long, value_name = "DEVICE")]
    device: Option<Selection>,
}

/// A form of the memo.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// For people and repositories.
    Markdown,
    /// One page that needs nothing else.
    Html,
    /// Everything, in numbers.
    Json,
}

const EXAMPLES: &str = "\
Examples:
  attnbench advise internal_assistant_64k
  attnbench advise my/scenario.toml -o memo.md -o memo.html
  attnbench advise multi_tenant --record results/advise-multi_tenant.json --format json
  attnbench advise --list";

/// Measures, decides and writes.
pub fn run(args: Args) -> anyhow::Result<Exit> {
    if args.list {
        for (name, _) in library::SCENARIOS {
            terminal::print(&format!("{name}: {}", library::load(name)?.description))?;
        }
        return Ok(Exit::Pass);
    }
    let scenario = library::load(args.scenario.as_deref().unwrap_or_default())?;
    for path in &args.out {
        format_of(path)?;
    }
    let record = match &args.record {
        Some(path) => file::load(path)?,
        None => {
            let suite = cases::suite(&scenario, usable_cores());
            let (record, path) = measure_made(suite, args.device.clone(), args.record_out.clone(), false)?;
            eprintln!("record: {}\n", path.display());
            record
        }
    };
    let memo = Memo::write(&scenario, Some(&record)).map_err(anyhow::Error::msg);
    let memo = memo.with_context(|| format!("advising on scenario `{}`", scenario.name))?;
    for path in &args.out {
        let text = text(&memo, format_of(path)?)?;
        files::write_atomically(path, text.as_bytes()).with_context(|| format!("writing memo `{}`", path.display()))?;
    }
    terminal::print(text(&memo, args.format)?.trim_end())?;
    Ok(if record.run.complete { Exit::Pass } else { Exit::Failed })
}

fn text(memo: &Memo, format: Format) -> anyhow::Result<String> {
    Ok(match format {
        Format::Markdown => markdown(memo),
        Format::Html => html(memo),
        Format::Json => serde_json::to_string_pretty(memo).context("writing the memo as JSON")? + "\n",
    })
}

/// The form that a file's name asks for.
fn format_of(path: &std::path::Path) -> anyhow::Result<Format> {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("md") => Ok(Format::Markdown),
        Some("html") => Ok(Format::Html),
        Some("json") => Ok(Format::Json),
        _ => bail!("writing memo `{}`: name it .md, .html or .json", path.display()),
    }
}
