//! `attnbench kernels`: the built-in kernels and what they compute.

use attn_kernels::cpu;

use super::{Exit, terminal};
use crate::report::listing::{self, KernelListing};
use crate::suite::support;

/// List the built-in kernels and what each computes
///
/// Which mechanisms, phases and patterns a kernel supports is found by asking it about a small problem of every kind.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  attnbench kernels          every kernel, with a table of mechanism x phase
  attnbench kernels --json   the same for programs")]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<Exit> {
    let kernels: Vec<KernelListing> = cpu::KERNELS
        .iter()
        .map(|kernel| KernelListing {
            provider: "cpu",
            name: kernel.name(),
            summary: kernel.summary(),
            supports: support(*kernel),
        })
        .collect();
    if args.json {
        terminal::print_json(&kernels)?;
    } else {
        terminal::print(&listing::kernels(&kernels, terminal::width()))?;
    }
    Ok(Exit::Pass)
}
