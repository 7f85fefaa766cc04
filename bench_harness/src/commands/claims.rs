//! `attnbench claims`: what this machine says to published claims.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use anyhow::Context;

use super::run::{interrupt, measure_made, workers};
use super::{Exit, terminal};
use crate::claims::answer::{Answer, answer};
use crate::claims::library::{CLAIMS, load};
use crate::claims::quantity::Quantity;
use crate::claims::{Claim, Evidence};
use crate::device::cpu::info::CpuInfo;
use crate::device::cuda::devices;
use crate::device::cuda::selection::Selection;
use crate::files;
use crate::measure::instructions::{check_tools, count};
use crate::record::{Record, file};
use crate::report::claims::{listing, text};
use crate::suite::{Environment, PlannedCase, Suite};

/// Test published claims about attention on this machine
///
/// Each claim is a file of suites/claims: what is claimed and by whom, the cases that test it, and the relation that should
/// hold. Answers are `confirmed`, `contradicted`, `inconclusive` where an interval straddles a bound, and `not measurable
/// here` with the reason. Any answer is exit code 0; 5 says that measuring failed.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Claims by name, or files of one's own; all where none is named
    #[arg(value_name = "NAME")]
    names: Vec<String>,

    /// List the claims and stop
    #[arg(long)]
    list: bool,

    /// Run the built-in kernels on this device: `cpu`, or `cuda:0`
    #[arg(long, value_name = "DEVICE")]
    device: Option<Selection>,

    /// Rounds of every measurement, instead of each claim's own: more give narrower intervals
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,

    /// Judge what this record holds, and measure nothing
    #[arg(long, value_name = "FILE", conflicts_with_all = ["device", "rounds", "record_out"])]
    record: Option<PathBuf>,

    /// Where the measurements go [default: results/claims-TIME.json]
    #[arg(long, value_name = "FILE")]
    record_out: Option<PathBuf>,

    /// Also write the answers there, as JSON
    #[arg(long, short, value_name = "FILE")]
    out: Option<PathBuf>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  attnbench claims                                 all of them, in a few minutes
  attnbench claims flash_speed window_linear_in_length --rounds 15
  attnbench claims --list
  attnbench claims my/claim.toml --json";

/// Measures what has to be measured, judges and prints.
pub fn run(args: Args) -> anyhow::Result<Exit> {
    let environment = Environment::default();
    let names: Vec<&str> = match args.names.as_slice() {
        [] => CLAIMS.iter().map(|(name, _)| *name).collect(),
        names => names.iter().map(String::as_str).collect(),
    };
    let claims: Vec<Claim> = names.into_iter().map(|name| load(name, &environment)).collect::<Result<_, _>>()?;
    if args.list {
        if args.json {
            let named: Vec<_> = claims.iter().map(|claim| (&claim.name, &claim.statement, &claim.source)).collect();
            terminal::print_json(&named)?;
        } else {
            terminal::print(&listing(&claims, terminal::style()))?;
        }
        return Ok(Exit::Pass);
    }
    let cpu = CpuInfo::read();
    let gpu_model = match &args.device {
        None | Some(Selection::Cpu) => None,
        Some(_) => devices().ok().and_then(|found| found.into_iter().next()).map(|device| device.name),
    };
    let here: Vec<&Claim> = claims
        .iter()
        .filter(|claim| {
            let refusal = claim.needs.as_ref().and_then(|needs| needs.refusal(gpu_model.as_deref(), None));
            refusal.is_none()
        })
        .collect();
    let record = match &args.record {
        Some(path) => Some(file::load(path)?),
        None => measured(&here, &args)?,
    };
    let instructions = match (&args.record, &gpu_model) {
        (None, None) => counted(&here)?,
        _ => BTreeMap::new(),
    };
    let evidence = Evidence::new(record.as_ref(), instructions);
    let answers: Vec<Answer> = claims.iter().map(|claim| answer(claim, &evidence, Some(&cpu.model))).collect();
    if let Some(path) = &args.out {
        let json = serde_json::to_string_pretty(&answers).context("writing the answers as JSON")?;
        files::write_atomically(path, json.as_bytes()).with_context(|| format!("writing `{}`", path.display()))?;
    }
    if args.json {
        terminal::print_json(&answers)?;
    } else {
        terminal::print(&text(&answers, evidence.disturbance, terminal::style()))?;
    }
    let is_complete = record.is_none_or(|record| record.run.complete);
    Ok(if is_complete { Exit::Pass } else { Exit::Failed })
}

/// The cases of claims whose quantity is one of these, each key once.
fn cases_of(claims: &[&Claim], is_wanted: impl Fn(Quantity) -> bool) -> Vec<PlannedCase> {
    let mut seen = BTreeSet::new();
    let mut cases = Vec::new();
    for claim in claims {
        let Some(suite) = &claim.suite else { continue };
        let wanted: BTreeSet<&str> = claim
            .expectations
            .iter()
            .filter(|expected| expected.relation.quantity().is_some_and(&is_wanted))
            .flat_map(|expected| expected.relation.matrices())
            .collect();
        for case in suite.cases.iter().filter(|case| wanted.contains(case.matrix.as_str())) {
            if seen.insert(case.key()) {
                cases.push(PlannedCase { matrix: format!("{}.{}", claim.name, case.matrix), ..case.clone() });
            }
        }
    }
    cases
}

/// One run of everything that the claims need measured; None where they need nothing.
fn measured(claims: &[&Claim], args: &Args) -> anyhow::Result<Option<Record>> {
    let mut cases = cases_of(claims, |quantity| !matches!(quantity, Quantity::Instructions | Quantity::CacheBytes));
    if cases.is_empty() {
        return Ok(None);
    }
    for case in &mut cases {
        case.settings.rounds = args.rounds.unwrap_or(case.settings.rounds);
    }
    let hashes: Vec<&str> = claims.iter().filter_map(|claim| Some(claim.suite.as_ref()?.hash.as_str())).collect();
    let suite = Suite {
        name: "claims".to_owned(),
        description: "What published claims need measured".to_owned(),
        hash: blake3::hash(hashes.concat().as_bytes()).to_hex().to_string(),
        seed: 42,
        matrices: Vec::new(),
        cases,
    };
    let (record, path) = measure_made(suite, args.device.clone(), args.record_out.clone(), args.json)?;
    eprintln!("record: {}\n", path.display());
    Ok(Some(record))
}

/// Instructions of one call of each case that a claim counts, where the tools are there.
fn counted(claims: &[&Claim]) -> anyhow::Result<BTreeMap<String, Result<u64, String>>> {
    let cases = cases_of(claims, |quantity| quantity == Quantity::Instructions);
    if cases.is_empty() {
        return Ok(BTreeMap::new());
    }
    let missing = check_tools().err();
    let scratch = tempfile::Builder::new().prefix("attnbench-").tempdir().context("making a private scratch folder")?;
    let (worker, stop) = (workers::built_in("cpu")?, interrupt::stop_flag()?);
    let count_case = |case: &PlannedCase| match &missing {
        Some(reason) => Err(reason.clone()),
        None => count(&worker, case, 42, scratch.path(), stop.clone()).map(|counted| counted.instructions),
    };
    Ok(cases.iter().map(|case| (case.case.id(), count_case(case))).collect())
}
