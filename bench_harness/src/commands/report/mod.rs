//! `attnbench report`: files for people and for other tools.

mod input;
mod site;

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, bail};
use clap::builder::PossibleValue;

use super::compare::Price;
use super::{Exit, terminal};
use crate::files::write_atomically;
use crate::gate::outcome::GateReport;
use crate::report::{FORMATS, Format, Subject};
use crate::store::baseline::DEFAULT_DIRECTORY;

use input::Input;
pub(crate) use input::load_gate;
pub(crate) use site::write_pages;

/// Write a report of a run, of a judgement or of both
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// What to write
    #[arg(value_name = "FORMAT", value_parser = FormatParser)]
    format: Wanted,
    /// A record, or what `attnbench gate` wrote; with --base, records of head, one a session; `html` takes several
    #[arg(required = true, value_name = "FILE")]
    inputs: Vec<PathBuf>,
    /// Judge the records against this: a record, a baseline file, or `baseline:[DEVICE/]SUITE`
    #[arg(long, value_name = "BASE")]
    base: Option<String>,
    /// Where the report goes: a file [default: stdout], or the folder of `html` [default: report]
    #[arg(long, short, value_name = "PATH")]
    out: Option<PathBuf>,
    /// Directory of stored baselines
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DIRECTORY)]
    baselines: PathBuf,
    /// TOML file of decision constants that differ from the defaults
    #[arg(long, value_name = "FILE", requires = "base")]
    policy: Option<PathBuf>,
    /// History whose series `html` shows: a file, or a server as postgresql://USER@HOST/DATABASE
    #[arg(long, value_name = "PATH|URL")]
    store: Option<String>,
    /// US dollars an hour of a device, for `html` of several devices: --price nvidia-h200=3.79
    #[arg(long, value_name = "DEVICE=USD")]
    price: Vec<Price>,
}

/// What to write: a folder of pages, or a file.
#[derive(Clone, Copy, Debug)]
enum Wanted {
    Html,
    File(&'static Format),
}

/// The name of the format that is a folder.
const HTML: &str = "html";

const EXAMPLES: &str = "\
Examples:
  attnbench report html record.json --out report/
  attnbench report html head.json --base base.json --store results/history.db
  attnbench report markdown gate.json >> $GITHUB_STEP_SUMMARY
  attnbench report junit gate.json --out junit.xml
  attnbench report markdown head.json --base base.json
  attnbench report csv record.json > record.csv
  attnbench report openmetrics record.json --out /var/lib/node_exporter/attnbench.prom

`attnbench gate --report FORMAT=FILE` writes the same while it gates. The exit code says whether the report was written, not
what it says.";

/// Writes it.
pub fn run(args: Args) -> anyhow::Result<Exit> {
    match args.format {
        Wanted::Html => site::write(&args)?,
        Wanted::File(format) => {
            if args.store.is_some() || !args.price.is_empty() {
                bail!("writing a report: --store and --price are for `html`; `{}` shows neither", format.name);
            }
            let input = Input::read(&args, format)?;
            write(format, input.subject(), args.out.as_deref())?;
        }
    }
    Ok(Exit::Pass)
}

fn write(format: &Format, subject: Subject<'_>, out: Option<&Path>) -> anyhow::Result<()> {
    let text = (format.write)(subject);
    let Some(out) = out else { return terminal::print(text.trim_end_matches('\n')) };
    if out.is_dir() {
        bail!("writing report `{}`: this is a directory; name a file in it", out.display());
    }
    write_atomically(out, text.as_bytes()).with_context(|| format!("writing report `{}`", out.display()))
}

/// A report to write beside what a command prints: `FORMAT=FILE`.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    format: &'static Format,
    path: PathBuf,
}

impl Target {
    /// Writes a judgement.
    pub(crate) fn write(&self, report: &GateReport) -> anyhow::Result<()> {
        write(self.format, Subject::Gate(report), Some(&self.path))
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Target, String> {
        let (name, path) = text.split_once('=').filter(|(_, path)| !path.is_empty()).ok_or("expected FORMAT=FILE")?;
        let format = crate::report::format(name).ok_or_else(|| {
            let known: Vec<&str> = FORMATS.iter().map(|format| format.name).collect();
            let html = "; `attnbench report html` makes pages of what a gate wrote";
            format!("format `{name}` is none of {}{}", known.join(", "), if name == HTML { html } else { "" })
        })?;
        Ok(Target { format, path: path.into() })
    }
}

/// Reads the name of a format, and lists them all in the help.
#[derive(Clone)]
struct FormatParser;

impl clap::builder::TypedValueParser for FormatParser {
    type Value = Wanted;

    fn parse_ref(
        &self,
        command: &clap::Command,
        argument: Option<&clap::Arg>,
        value: &std::ffi::OsStr,
    ) -> Result<Self::Value, clap::Error> {
        let names = clap::builder::PossibleValuesParser::new(possible());
        let name = names.parse_ref(command, argument, value)?;
        Ok(crate::report::format(&name).map_or(Wanted::Html, Wanted::File))
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(possible()))
    }
}

fn possible() -> impl Iterator<Item = PossibleValue> {
    let html = PossibleValue::new(HTML).help("a folder of pages that any browser opens from the disk");
    std::iter::once(html).chain(FORMATS.iter().map(|format| PossibleValue::new(format.name).help(format.about)))
}
