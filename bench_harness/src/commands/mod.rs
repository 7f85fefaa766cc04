//! The subcommands, one file each and thin: they parse, call the library and print.

pub mod accept;
pub mod advise;
pub mod baseline;
pub mod bisect;
pub mod calibrate;
pub mod claims;
pub mod compare;
pub mod completions;
pub mod devices;
pub mod eval;
pub mod gate;
pub mod history;
pub mod kernels;
pub mod kv;
pub mod merge;
pub mod nightly;
pub mod ratios;
pub mod report;
pub mod run;
pub mod scaling;
pub mod schema;
pub mod show;
pub mod suites;
pub mod terminal;
pub mod tune;
pub mod watch;
pub mod worker;

use std::process::ExitCode;

use attn_kernels::cpu::simd::{Isa, MAX_ISA_VARIABLE};

pub use crate::gate::exit::Exit;

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
    Merge(merge::Args),
    Watch(watch::Args),
    Show(show::Args),
    Compare(compare::Args),
    Gate(gate::Args),
    Accept(accept::Args),
    Calibrate(calibrate::Args),
    Bisect(bisect::Args),
    Baseline(baseline::Args),
    Report(report::Args),
    History(history::Args),
    Nightly(nightly::Args),
    Ratios(ratios::Args),
    Scaling(scaling::Args),
    Eval(eval::Args),
    Advise(advise::Args),
    Claims(claims::Args),
    Kv(kv::Args),
    Suites(suites::Args),
    Kernels(kernels::Args),
    Tune(tune::Args),
    Devices(devices::Args),
    Schema(schema::Args),
    Completions(completions::Args),
    #[command(hide = true)]
    Worker(worker::Args),
}

impl Command {
    /// Runs it.
    pub fn execute(self) -> anyhow::Result<Exit> {
        let cap = std::env::var(MAX_ISA_VARIABLE).ok().filter(|cap| !cap.is_empty());
        Isa::up_to(cap.as_deref()).map_err(anyhow::Error::msg)?;
        match self {
            Command::Run(args) => run::run(args),
            Command::Merge(args) => merge::run(args),
            Command::Watch(args) => watch::run(args),
            Command::Show(args) => show::run(args),
            Command::Compare(args) => compare::run(args),
            Command::Gate(args) => gate::run(args),
            Command::Accept(args) => accept::run(args),
            Command::Calibrate(args) => calibrate::run(args),
            Command::Bisect(args) => bisect::run(args),
            Command::Baseline(args) => baseline::run(args),
            Command::Report(args) => report::run(args),
            Command::History(args) => history::run(args),
            Command::Nightly(args) => nightly::run(args),
            Command::Ratios(args) => ratios::run(args),
            Command::Scaling(args) => scaling::run(args),
            Command::Eval(args) => eval::run(args),
            Command::Advise(args) => advise::run(args),
            Command::Claims(args) => claims::run(args),
            Command::Kv(args) => kv::run(args),
            Command::Suites(args) => suites::run(args),
            Command::Kernels(args) => kernels::run(args),
            Command::Tune(args) => tune::run(args),
            Command::Devices(args) => devices::run(args),
            Command::Schema(args) => schema::run(args),
            Command::Completions(args) => completions::run(args),
            Command::Worker(args) => worker::run(args),
        }
    }
}
