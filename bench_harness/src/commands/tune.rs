//! `attnbench tune`: which tiles CUDA kernels should take.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use attn_kernels::cuda::nvrtc::Nvrtc;
use attn_kernels::cuda::resources::check_architecture;
use attn_kernels::problem::Dtype;
use serde::Serialize;

use super::run::{Planned, dtype, exit_of, measure_made, planned_on, run_id};
use super::{Exit, terminal};
use crate::case::Mode;
use crate::device::cuda::selection::{Selected, Selection};
use crate::files::write_atomically;
use crate::gate::policy::Policy;
use crate::record::Record;
use crate::report::tune as report;
use crate::suite::CaseGlob;
use crate::tune::choose::{Choice, contender, decide, screened};
use crate::tune::fit::{Fit, fits};
use crate::tune::{Contest, contests, suite_of};

/// Measure which tiles CUDA kernels should take on the problems of a suite, and write down the choices
///
/// Every candidate of a kernel's table is a case of its own, verified and timed beside the others in the same rounds. The
/// fastest of each class of problems is measured again beside what is taken, in new rounds, which alone decide.
/// No code is changed: a kernel's table is.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  attnbench tune prefill --dtype bf16 --device cuda:0 --out kernels/cuda/tuning/h200.toml
  attnbench tune prefill --dtype bf16 --kernel flash --include '*/d128' --tiles 'rows128-*'
  attnbench tune prefill --dtype bf16 --resources --arch sm_90a    what the assembler says of each, without a GPU")]
pub struct Args {
    /// Suite file, or the name of one in `suites/`
    suite: String,
    /// Tune these kernels only [default: all that have a choice]
    #[arg(long, value_name = "NAME")]
    kernel: Vec<String>,
    /// Only problems of cases whose id matches one of these globs (`*` crosses slashes)
    #[arg(long, value_name = "GLOB")]
    include: Vec<CaseGlob>,
    /// Leave out problems of cases whose id matches one of these globs
    #[arg(long, value_name = "GLOB")]
    exclude: Vec<CaseGlob>,
    /// Only candidates whose name matches one of these globs, and what is taken: 'rows128-*'
    #[arg(long, value_name = "GLOB")]
    tiles: Vec<CaseGlob>,
    /// The GPU, as for `attnbench run` [default: cuda:0]
    #[arg(long, value_name = "DEVICE", conflicts_with = "resources")]
    device: Option<Selection>,
    /// Compute every problem in this dtype
    #[arg(long, value_name = "DTYPE", value_parser = dtype::parse)]
    dtype: Option<Dtype>,
    /// Empty caches before each sample, or run calls back to back
    #[arg(long, value_enum)]
    mode: Option<Mode>,
    /// Rounds of all candidates
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// New rounds of the fastest candidates beside what is taken
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1000))]
    confirm_rounds: u32,
    /// Where the choices go, as TOML, with the records of both sets of rounds beside them [default: results/tune-SUITE-TIME.toml]
    #[arg(long, short, value_name = "FILE", conflicts_with = "resources")]
    out: Option<PathBuf>,
    /// Compile the candidates with NVRTC and list registers, spills, shared memory and blocks of each; needs no GPU
    #[arg(long)]
    resources: bool,
    /// Architectures to compile for
    #[arg(long, value_name = "SM", value_delimiter = ',', default_values = ["sm_80", "sm_90a"], requires = "resources",
        value_parser = architecture)]
    arch: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn architecture(name: &str) -> Result<String, String> {
    check_architecture(name).map(|()| name.to_owned())
}

/// What is written down: the choices, and where they hold.
#[derive(Serialize)]
struct Written<'a> {
    suite: &'a str,
    started_at: &'a str,
    command: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    commit: Option<&'a str>,
    fingerprint: &'a BTreeMap<String, String>,
    provenance: &'a BTreeMap<String, String>,
    choice: &'a [Choice],
}

/// Runs it.
pub fn run(args: Args) -> anyhow::Result<Exit> {
    let selection = args.device.clone().unwrap_or(Selection::Cuda(vec![Selected::Ordinal(0)]));
    match &selection {
        Selection::Cuda(devices) if devices.len() == 1 => {}
        Selection::Cpu => bail!(
            "tuning on `cpu`: tiles of CPU kernels are constants of the build; change one and compare the builds with \
             `attnbench gate`"
        ),
        _ => bail!("tuning on several devices: times of one device compare, so name one: --device cuda:0"),
    }
    let suite = planned_on(Planned {
        suite: args.suite.clone(),
        device: selection.clone(),
        include: args.include.clone(),
        exclude: args.exclude.clone(),
        dtype: args.dtype,
        mode: args.mode,
    })?;
    let contests = contests(&suite, &args.kernel, &args.tiles)?;
    if args.resources {
        return list_resources(&args, &contests);
    }
    let id = run_id(jiff::Timestamp::now());
    let out = args.out.clone().unwrap_or_else(|| PathBuf::from(format!("results/tune-{}-{id}.toml", suite.name)));
    if out.is_dir() {
        bail!("writing choices `{}`: this is a directory; name a file in it", out.display());
    }
    let measured = |stage: &str, entries: &[(&Contest, Vec<_>)], rounds: u32| -> anyhow::Result<Record> {
        let staged = suite_of(&suite, stage, entries, rounds);
        let path = out.with_extension(format!("{stage}.json"));
        let (record, path) = measure_made(staged, Some(selection.clone()), Some(path), args.json)?;
        eprintln!("record of the {stage}: {}", path.display());
        if !record.run.complete {
            bail!(
                "tuning suite `{}`: the {stage} was not finished; what it measured is saved; start again",
                suite.name
            );
        }
        Ok(record)
    };
    let all: Vec<(&Contest, Vec<_>)> =
        contests.iter().map(|contest| (contest, contest.candidates().collect())).collect();
    let screen = measured("screen", &all, args.rounds)?;
    let contending: Vec<(&Contest, Vec<_>)> = contests
        .iter()
        .filter_map(|contest| Some((contest, vec![contest.taken, contender(&screened(contest, &screen))?])))
        .collect();
    let confirm = match contending.is_empty() {
        true => None,
        false => Some(measured("confirmation", &contending, args.confirm_rounds)?),
    };
    let choices = decide(&contests, &screen, confirm.as_ref(), &Policy::default());
    save(&out, &suite.name, &screen, &choices)?;
    if args.json {
        terminal::print_json(&choices)?;
    } else {
        terminal::print(report::choices(&choices, terminal::style()).trim_end())?;
    }
    eprintln!("\nchoices: {}", out.display());
    Ok(confirm.iter().fold(exit_of(&screen), |exit, record| exit.and(exit_of(record))))
}

fn save(out: &Path, suite: &str, record: &Record, choices: &[Choice]) -> anyhow::Result<()> {
    let written = Written {
        suite,
        started_at: &record.run.started_at,
        command: &record.run.command,
        commit: record.git.as_ref().map(|git| git.commit.as_str()),
        fingerprint: &record.fingerprint,
        provenance: &record.provenance,
        choice: choices,
    };
    let head = "# Written by `attnbench tune`. Nothing reads it: tables of tiles are in kernels/src/cuda/.\n";
    let text = format!("{head}{}", toml::to_string_pretty(&written)?);
    write_atomically(out, text.as_bytes()).with_context(|| format!("writing choices `{}`", out.display()))
}

/// Compiles every candidate for every architecture asked for.
fn list_resources(args: &Args, contests: &[Contest]) -> anyhow::Result<Exit> {
    let nvrtc = Nvrtc::load()?;
    let mut found: BTreeMap<&str, Vec<Fit>> = BTreeMap::new();
    for architecture in &args.arch {
        found.insert(architecture, fits(&nvrtc, contests, architecture)?);
    }
    if args.json {
        terminal::print_json(&found)?;
    } else {
        for (architecture, fits) in &found {
            terminal::print(&report::fits(architecture, fits, terminal::style()))?;
        }
    }
    Ok(Exit::Pass)
}
