//! The binary: parses the command line and maps outcomes to exit codes, here and nowhere else.

use std::process::ExitCode;

use attnbench::commands::{Command, Exit, terminal};
use attnbench::device::cpu::allocator::CountingAllocator;
use clap::Parser;

/// Memory is a metric: a worker counts its own.
#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Benchmarks attention kernels and gates their regressions: speed, memory and numerical accuracy.
#[derive(Parser, Debug)]
#[command(version, propagate_version = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

fn main() -> ExitCode {
    match Cli::parse().command.execute() {
        Ok(exit) => exit.into(),
        Err(error) => {
            eprintln!("error: {}", terminal::error_text(&error));
            Exit::Usage.into()
        }
    }
}
