//! `attnbench suites`: what suites there are, and what is in one.

use std::path::PathBuf;

use serde::Serialize;

use super::{Exit, terminal};
use crate::report::listing;
use crate::suite::{self, Environment, Estimate, MatrixInfo, SUITES_DIR, Suite};

/// List suites, or the cases of one
///
/// A suite is a TOML file; its matrices are products of axes, which expand to cases. suites/README.md describes the
/// format and says why each case is there.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  attnbench suites                      every suite of ./suites
  attnbench suites ci                   the cases of suites/ci.toml, by matrix
  attnbench suites my/own.toml --json   the cases of any file, with their exact work")]
pub struct Args {
    /// A suite's name, or the path of its file
    #[arg(value_name = "SUITE")]
    suite: Option<String>,

    /// Where to look for suites; may be repeated
    #[arg(long = "dir", value_name = "DIR", default_value = SUITES_DIR)]
    dirs: Vec<PathBuf>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A suite as JSON.
#[derive(Serialize)]
struct SuiteListing {
    name: String,
    file: String,
    description: String,
    seed: u64,
    hash: String,
    matrices: Vec<MatrixInfo>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cases: Option<Vec<Estimate>>,
}

impl SuiteListing {
    fn new(file: &std::path::Path, suite: &Suite, cases: Option<Vec<Estimate>>) -> Self {
        SuiteListing {
            name: suite.name.clone(),
            file: file.display().to_string(),
            description: suite.description.clone(),
            seed: suite.seed,
            hash: suite.hash.clone(),
            matrices: suite.matrices.clone(),
            cases,
        }
    }
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<Exit> {
    let environment = Environment::default();
    if let Some(name) = &args.suite {
        let path = suite::find(name, &args.dirs)?;
        let suite = Suite::load_in(&path, &environment)?;
        if args.json {
            let cases = suite.cases.iter().map(|planned| Estimate::of(planned, &environment)).collect();
            terminal::print_json(&SuiteListing::new(&path, &suite, Some(cases)))?;
        } else {
            terminal::print(&listing::suite(&suite, terminal::width()))?;
        }
        return Ok(Exit::Pass);
    }
    let mut suites = Vec::new();
    for dir in &args.dirs {
        for path in suite::list(dir)? {
            let suite = Suite::load_in(&path, &environment)?;
            suites.push((path, suite));
        }
    }
    if suites.is_empty() {
        let dirs: Vec<String> = args.dirs.iter().map(|dir| format!("`{}`", dir.display())).collect();
        anyhow::bail!("listing suites: there is no .toml file in {}; name another folder with --dir", dirs.join(", "));
    }
    if args.json {
        let listings: Vec<_> = suites.iter().map(|(path, suite)| SuiteListing::new(path, suite, None)).collect();
        terminal::print_json(&listings)?;
    } else {
        let suites: Vec<Suite> = suites.into_iter().map(|(_, suite)| suite).collect();
        terminal::print(&listing::suites(&suites, terminal::width()))?;
    }
    Ok(Exit::Pass)
}

/// Prints what a run of the suite would do (`attnbench run --dry-run`): every case with its exact work and its memory.
pub(super) fn print_plan(suite: &Suite, json: bool) -> anyhow::Result<Exit> {
    let environment = Environment::default();
    let estimates: Vec<Estimate> = suite.cases.iter().map(|planned| Estimate::of(planned, &environment)).collect();
    if json {
        terminal::print_json(&estimates)?;
    } else {
        terminal::print(&listing::plan(suite, &estimates, terminal::width()))?;
    }
    Ok(Exit::Pass)
}
