//! The subcommands, one file each and thin: they parse, call the library and print.

pub mod eval;
pub mod kernels;
pub mod run;
pub mod scaling;
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
    /// The more important of two outcomes.
    pub fn and(self, other: Exit) -> Exit {
        const PRECEDENCE: [Exit; 6] =
            [Exit::Usage, Exit::Regression, Exit::Failed, Exit::NotComparable, Exit::Undecided, Exit::Pass];
        PRECEDENCE.into_iter().find(|&exit| exit == self || exit == other).unwrap_or(Exit::Pass)
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
    Scaling(scaling::Args),
    Eval(eval::Args),
    Suites(suites::Args),
    Kernels(kernels::Args),
    #[command(hide = true)]
    Worker(worker::Args),
}

impl Command {
    /// Runs it.
    pub fn execute(self) -> anyhow::Result<Exit> {
        match self {
            Command::Run(args) => run::run(args),
            Command::Scaling(args) => scaling::run(args),
            Command::Eval(args) => eval::run(args),
            Command::Suites(args) => suites::run(args),
            Command::Kernels(args) => kernels::run(args),
            Command::Worker(args) => worker::run(args),
        }
    }
}
