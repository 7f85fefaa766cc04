//! The devices of a machine, and what is missing.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Style, Tone, printable, units, wrap};
use crate::device::cpu::cache::CacheKind;
use crate::device::cpu::info::CpuInfo;
use crate::device::cuda::CudaDevice;
use crate::device::telemetry::GpuState;

/// What a machine has.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Devices {
    /// The CPU's directory under the baselines.
    pub slug: String,
    /// The CPU.
    pub cpu: CpuInfo,
    /// What records of the CPU will have to agree on.
    pub fingerprint: BTreeMap<String, String>,
    /// GPUs, as CUDA lists them.
    pub cuda: Found<CudaDevice>,
    /// GPUs, as NVML lists them.
    pub nvml: Found<GpuState>,
}

/// A list, or why there is none.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Found<T> {
    /// What was found.
    pub devices: Vec<T>,
    /// What is missing.
    pub missing: Option<String>,
}

impl<T, E: std::fmt::Display> From<Result<Vec<T>, E>> for Found<T> {
    fn from(result: Result<Vec<T>, E>) -> Self {
        match result {
            Ok(devices) => Found { devices, missing: None },
            Err(error) => Found { devices: Vec::new(), missing: Some(error.to_string()) },
        }
    }
}

/// One block a device: its name and a line a fact.
pub fn devices_text(devices: &Devices, style: Style) -> String {
    let mut lines = vec![style.bold(&printable(&format!("cpu: {}", devices.cpu.model)))];
    for (name, value) in cpu_facts(devices) {
        lines.extend(fact(name, &value, style));
    }
    lines.push(String::new());
    for gpu in &devices.cuda.devices {
        lines.push(style.bold(&printable(&format!("cuda:{}: {}", gpu.ordinal, gpu.name))));
        let (major, minor) = gpu.compute_capability;
        lines.extend(fact("capability", &format!("{major}.{minor}, {} multiprocessors", gpu.multiprocessors), style));
        lines.extend(fact("memory", &units::bytes(gpu.memory_bytes), style));
        lines.extend(fact("L2 cache", &units::bytes(gpu.l2_cache_bytes.unsigned_abs().into()), style));
    }
    lines.extend(missing("cuda", &devices.cuda.missing, style));
    for gpu in &devices.nvml.devices {
        lines.push(style.bold(&printable(&format!("nvml:{}: {}", gpu.index, gpu.name))));
        let text = |value: Option<String>| value.unwrap_or_else(|| units::NOTHING.to_owned());
        lines.extend(fact("driver", &text(gpu.driver_version.clone()), style));
        lines.extend(fact("VBIOS", &text(gpu.vbios_version.clone()), style));
        lines.extend(fact("power limit", &text(gpu.power_limit_w.map(|watts| format!("{watts:.0} W"))), style));
        lines.extend(fact("temperature", &text(gpu.temperature_c.map(|degrees| format!("{degrees} °C"))), style));
        lines.extend(fact("ECC", &text(gpu.ecc.map(|on| if on { "on" } else { "off" }.to_owned())), style));
        lines.extend(fact("MIG", &text(gpu.mig.map(|on| if on { "on" } else { "off" }.to_owned())), style));
        let activity = gpu.activity.map(|has| if has { "measured" } else { "not measured by this GPU" }.to_owned());
        lines.extend(fact("activity", &text(activity), style));
        lines.extend(fact("processes", &text(gpu.compute_processes.map(|count| count.to_string())), style));
    }
    lines.extend(missing("nvml", &devices.nvml.missing, style));
    lines.join("\n") + "\n"
}

fn cpu_facts(devices: &Devices) -> Vec<(&'static str, String)> {
    let cpu = &devices.cpu;
    let unknown = || "not readable here".to_owned();
    let mut cores = format!("{} usable of {}", cpu.cores_usable, cpu.cores_online);
    if let Some(threads) = cpu.threads_per_core {
        cores += &format!(", {threads} thread{} a core", if threads == 1 { "" } else { "s" });
    }
    if let Some(nodes) = cpu.numa_nodes {
        cores += &format!(", {nodes} memory node{}", if nodes == 1 { "" } else { "s" });
    }
    if let Some(quota) = cpu.quota_cores {
        cores += &format!("; the control group grants the time of {}", units::three_digits(quota));
    }
    let caches: Vec<String> = cpu
        .caches
        .iter()
        .map(|cache| {
            let kind = match cache.kind {
                CacheKind::Data => "d",
                CacheKind::Instruction => "i",
                CacheKind::Unified => "",
            };
            format!("L{}{kind} {}", cache.level, units::bytes(cache.bytes))
        })
        .collect();
    let mut memory = cpu.memory_total_bytes.map_or_else(unknown, units::bytes);
    if let Some(available) = cpu.memory_available_bytes {
        memory += &format!(", {} available", units::bytes(available));
    }
    let mut governor = cpu.governor.clone().unwrap_or_else(unknown);
    if let Some(mhz) = cpu.frequency_max_mhz {
        governor += &format!(", up to {mhz:.0} MHz");
    }
    if let Some(turbo) = cpu.turbo {
        governor += if turbo { ", turbo on" } else { ", turbo off" };
    }
    let sets = cpu.instruction_sets.join(" ");
    let machine = cpu.virtual_machine.map_or_else(unknown, |vm| {
        if vm { "virtual: caches, clocks and quiet neighbours are the host's to promise" } else { "physical" }
            .to_owned()
    });
    vec![
        ("cores", cores),
        ("caches", if caches.is_empty() { unknown() } else { caches.join(", ") }),
        ("memory", memory),
        ("governor", governor),
        ("sets", if sets.is_empty() { unknown() } else { sets }),
        ("microcode", cpu.microcode.clone().unwrap_or_else(unknown)),
        ("machine", machine),
        ("load", cpu.load_1min.map_or_else(unknown, |load| format!("{load} runnable processes over the last minute"))),
        ("baselines", format!("{}/", devices.slug)),
    ]
}

/// A name and a value that may take several lines.
fn fact(name: &str, value: &str, style: Style) -> Vec<String> {
    const INDENT: usize = 14;
    let lines = wrap(&printable(value), style.width.saturating_sub(INDENT), &[' ']);
    let label = |at: usize| if at == 0 { format!("  {name}") } else { String::new() };
    lines.iter().enumerate().map(|(at, line)| format!("{:<INDENT$}{line}", label(at))).collect()
}

fn missing(name: &str, reason: &Option<String>, style: Style) -> Vec<String> {
    let Some(reason) = reason else { return Vec::new() };
    wrap(&printable(&format!("{name}: {reason}")), style.width, &[' '])
        .iter()
        .map(|line| style.paint(Tone::Doubtful, line))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cpu::cache::Cache;
    use crate::device::{cuda::NoCuda, telemetry::NoTelemetry};

    fn text(devices: &Devices) -> String {
        devices_text(devices, Style { width: 100, colour: false })
    }

    #[test]
    fn a_machine_without_a_gpu_that_says_little() {
        insta::assert_snapshot!(text(&Devices {
            slug: "x".into(),
            cpu: CpuInfo { model: "x".into(), cores_online: 1, cores_usable: 1, ..CpuInfo::default() },
            fingerprint: BTreeMap::new(),
            cuda: Found::from(Err::<Vec<_>, _>(NoCuda::NoLibrary)),
            nvml: Found::from(Err::<Vec<_>, _>(NoTelemetry::NoLibrary)),
        }));
    }

    #[test]
    fn a_machine_with_everything() {
        let cpu = CpuInfo {
            model: "AMD EPYC 7B13 64-Core Processor".into(),
            microcode: Some("0xa0011d1".into()),
            cores_online: 128,
            cores_usable: 64,
            quota_cores: Some(2.5),
            threads_per_core: Some(2),
            numa_nodes: Some(2),
            caches: vec![
                Cache { level: 1, kind: CacheKind::Data, bytes: 32 << 10, shared_by: 2 },
                Cache { level: 1, kind: CacheKind::Instruction, bytes: 32 << 10, shared_by: 2 },
                Cache { level: 3, kind: CacheKind::Unified, bytes: 32 << 20, shared_by: 16 },
            ],
            governor: Some("performance".into()),
            turbo: Some(true),
            frequency_max_mhz: Some(3500.0),
            instruction_sets: vec!["avx2", "fma"],
            virtual_machine: Some(true),
            memory_total_bytes: Some(512 << 30),
            memory_available_bytes: Some(500 << 30),
            load_1min: Some(0.25),
        };
        let gpu = CudaDevice {
            ordinal: 0,
            name: "NVIDIA H200".into(),
            compute_capability: (9, 0),
            multiprocessors: 132,
            memory_bytes: 150_000_000_000,
            l2_cache_bytes: 62_914_560,
            uuid: "GPU-0".into(),
            shared_bytes_per_block: 232_448,
            threads_per_multiprocessor: 2048,
            ecc: true,
            driver_cuda_version: 13_000,
        };
        let state = GpuState {
            index: 0,
            name: "NVIDIA H200".into(),
            driver_version: Some("580.1".into()),
            vbios_version: None,
            power_limit_w: Some(700.0),
            temperature_c: Some(31),
            ecc: Some(true),
            compute_processes: Some(0),
            mig: Some(false),
            activity: Some(true),
            ..GpuState::default()
        };
        insta::assert_snapshot!(text(&Devices {
            slug: cpu.slug(),
            cpu,
            fingerprint: BTreeMap::new(),
            cuda: Found { devices: vec![gpu], missing: None },
            nvml: Found { devices: vec![state], missing: None },
        }));
    }
}
