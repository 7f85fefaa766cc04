//! `attnbench devices`: what is found, what is missing and why.

use anyhow::Context;

use super::{Exit, terminal};
use crate::device::cpu::info::CpuInfo;
use crate::device::cuda::self_test;
use crate::device::{cuda, telemetry::nvml};
use crate::record::environment;
use crate::report;
use crate::report::devices::{self, Devices, Found};

/// List the devices that can be measured, and say what is missing
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  attnbench devices          CPU, GPUs and their management library
  attnbench devices --self-test
                             whether times on the GPUs can be believed
  attnbench devices --json   the same for programs, with the fingerprint that records will have")]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Measure kernels of a known length on every CUDA device, and fail where a time is off by more than 1 %
    #[arg(long)]
    self_test: bool,
}

/// Runs the command. A device that is missing is no failure.
pub fn run(args: Args) -> anyhow::Result<Exit> {
    if args.self_test {
        return self_test(args.json);
    }
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

fn self_test(json: bool) -> anyhow::Result<Exit> {
    let mut tests = Vec::new();
    for device in cuda::devices().context("testing the timing of CUDA devices")? {
        let test = self_test::run(&device).with_context(|| format!("testing the timing of cuda:{}", device.ordinal))?;
        tests.push(test);
    }
    if json {
        terminal::print_json(&tests)?;
    } else {
        terminal::print(report::self_test::text(&tests, self_test::TOLERANCE).trim_end())?;
    }
    Ok(if tests.iter().all(|test| test.pass) { Exit::Pass } else { Exit::Failed })
}
