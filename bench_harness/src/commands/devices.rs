//! `attnbench devices`: what is found, what is missing and why.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

use super::{Exit, terminal};
use crate::device::cpu::info::CpuInfo;
use crate::device::cuda::{self, self_test};
use crate::device::telemetry::nvml::NvmlSource;
use crate::device::telemetry::{GpuState, NoTelemetry, Source, trace};
use crate::files::write_atomically;
use crate::record::environment;
use crate::report;
use crate::report::devices::{self, Devices, Found};

/// Time between two readings of a recorded trace.
const TRACE_PAUSE: Duration = Duration::from_millis(50);

/// List the devices that can be measured, and say what is missing
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  attnbench devices          CPU, GPUs and their management library
  attnbench devices --self-test
                             whether times on the GPUs can be believed
  attnbench devices --json   the same for programs, with the fingerprint that records will have
  attnbench devices --record-trace h200.jsonl --seconds 30
                             write down what every GPU says meanwhile; `run --nvml-trace` says it again")]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Ask NVML for a while what every GPU does, and write it to this file as a trace (`attnbench schema nvml_trace`)
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    record_trace: Option<PathBuf>,
    /// How long to record
    #[arg(long, value_name = "N", default_value_t = 10, requires = "record_trace",
        value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// The process whose memory is meant; its GPU memory is not recorded without one
    #[arg(long, value_name = "PID", default_value_t = 0, hide_default_value = true, requires = "record_trace")]
    pid: u32,
    /// Measure kernels of a known length on every CUDA device, and fail where a time is off by more than 1 %
    #[arg(long)]
    self_test: bool,
}

/// Runs the command. A device that is missing is no failure.
pub fn run(args: Args) -> anyhow::Result<Exit> {
    if let Some(path) = &args.record_trace {
        return record_trace(path, args.pid, Duration::from_secs(args.seconds));
    }
    if args.self_test {
        return self_test(args.json);
    }
    let cpu = CpuInfo::read();
    let devices = Devices {
        slug: cpu.slug(),
        fingerprint: environment::fingerprint(&cpu),
        cpu,
        cuda: Found::from(cuda::devices()),
        nvml: Found::from(gpus()),
    };
    if args.json {
        terminal::print_json(&devices)?;
    } else {
        terminal::print(devices::devices_text(&devices, terminal::style()).trim_end())?;
    }
    Ok(Exit::Pass)
}

fn gpus() -> Result<Vec<GpuState>, NoTelemetry> {
    Ok(NvmlSource.gpus()?.iter().map(|gpu| gpu.state()).collect())
}

fn record_trace(path: &Path, pid: u32, total: Duration) -> anyhow::Result<Exit> {
    let doing = || format!("recording the GPU trace `{}`", path.display());
    let mut text = Vec::new();
    let readings = trace::record(&NvmlSource, pid, &mut text, total, TRACE_PAUSE).with_context(doing)?;
    text.flush().and_then(|()| write_atomically(path, &text)).with_context(doing)?;
    terminal::print(&format!("{readings} readings of each GPU in `{}`", path.display()))?;
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
