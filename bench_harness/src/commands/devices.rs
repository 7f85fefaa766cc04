//! `attnbench devices`: what is found, what is missing and why.

use super::{Exit, terminal};
use crate::device::cpu::info::CpuInfo;
use crate::device::{cuda, telemetry::nvml};
use crate::record::environment;
use crate::report::devices::{self, Devices, Found};

/// List the devices that can be measured, and say what is missing
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  attnbench devices          CPU, GPUs and their management library
  attnbench devices --json   the same for programs, with the fingerprint that records will have")]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command. A device that is missing is no failure.
pub fn run(args: Args) -> anyhow::Result<Exit> {
    let cpu = CpuInfo::read();
    let devices = Devices {
        slug: cpu.slug(),
        fingerprint: environment::fingerprint(&cpu),
        cpu,
        cuda: Found::from(cuda::devices()),
        nvml: Found::from(nvml::gpus()),
    };
    if args.json {
        terminal::print_json(&devices)?;
    } else {
        terminal::print(devices::devices_text(&devices, terminal::style()).trim_end())?;
    }
    Ok(Exit::Pass)
}
