//! The subcommands, one file each and thin: they parse, call the library and print.

pub mod baseline;
pub mod compare;
pub mod completions;
pub mod devices;
pub mod eval;
pub mod gate;
pub mod kernels;
pub mod ratios;
pub mod run;
pub mod scaling;
pub mod schema;
pub mod show;
pub mod suites;
pub mod terminal;
pub mod worker;

use std::process::ExitCode;

/// What a command came to. The numbers are the contract with CI; precedence 2 > 1 > 5 > 4 > 3 > 0, never a count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Nothing to complain about.
    Pass = 0,
    /// A confirmed regression.
    Regression = 1,
    /// Usage or bad input.
    Usage = 2,
    /// Not enough evidence for a verdict.
    Undecided = 3,
    /// Records of different machines, inputs or policies.
    NotComparable = 4,
    /// Cases failed to run.
    Failed = 5,
}

impl Exit {
    /// Every outcome, most important first.
    pub const ALL: [Exit; 6] =
        [Exit::Usage, Exit::Regression, Exit::Failed, Exit::NotComparable, Exit::Undecided, Exit::Pass];

    /// The more important of two outcomes.
    pub fn and(self, other: Exit) -> Exit {
        Exit::ALL.into_iter().find(|&exit| exit == self || exit == other).unwrap_or(Exit::Pass)
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// One variant a subcommand, in the order of the help: each is a file of this folder with `Args` and
/// `run(Args) -> anyhow::Result<Exit>`.
#[derive(clap::Subcommand, Debug)]
#[expect(missing_docs, reason = "the help text of each `Args` is the command's")]
pub enum Command {
    Run(run::Args),
    Show(show::Args),
    Compare(compare::Args),
    Gate(gate::Args),
    Baseline(baseline::Args),
    Ratios(ratios::Args),
    Scaling(scaling::Args),
    Eval(eval::Args),
    Suites(suites::Args),
    Kernels(kernels::Args),
    Devices(devices::Args),
    Schema(schema::Args),
    Completions(completions::Args),
    #[command(hide = true)]
    Worker(worker::Args),
}

impl Command {
    /// Runs it.
    pub fn execute(self) -> anyhow::Result<Exit> {
        match self {
            Command::Run(args) => run::run(args),
            Command::Show(args) => show::run(args),
            Command::Compare(args) => compare::run(args),
            Command::Gate(args) => gate::run(args),
            Command::Baseline(args) => baseline::run(args),
            Command::Ratios(args) => ratios::run(args),
            Command::Scaling(args) => scaling::run(args),
            Command::Eval(args) => eval::run(args),
            Command::Suites(args) => suites::run(args),
            Command::Kernels(args) => kernels::run(args),
            Command::Devices(args) => devices::run(args),
            Command::Schema(args) => schema::run(args),
            Command::Completions(args) => completions::run(args),
            Command::Worker(args) => worker::run(args),
        }
    }
}
