//! The fingerprint and the provenance of this machine and this build.
//!
//! The fingerprint holds what must be equal for times to be comparable and nothing that differs between equal machines
//! or between two readings of one: no host name, no current frequency, no load. Everything else that helps to explain a
//! difference is provenance, which is shown and never blocks.

use std::collections::BTreeMap;

use attn_kernels::cpu::simd::Isa;

use crate::device::cpu::cache::CacheKind;
use crate::device::cpu::info::CpuInfo;
use crate::device::telemetry::Source;
use crate::worker::protocol::Hello;

/// The version of how cases are measured: warm-up, flush, stopping rule, rotation of inputs. Raised whenever a change of
/// the harness may change the times that it reports.
pub const MEASUREMENT_POLICY_VERSION: u32 = 1;

/// What stands for a field that this machine does not tell.
const UNKNOWN: &str = "unknown";

/// What must be equal for two runs on the CPU to be comparable, by field. Threads are part of each case's key.
pub fn fingerprint(cpu: &CpuInfo) -> BTreeMap<String, String> {
    let unknown = || UNKNOWN.to_owned();
    let mut fields = fields([
        ("cpu_governor", cpu.governor.clone().unwrap_or_else(unknown)),
        ("cpu_instruction_sets", join_or(&cpu.instruction_sets, UNKNOWN)),
        ("cpu_microcode", cpu.microcode.clone().unwrap_or_else(unknown)),
        ("cpu_model", cpu.model.clone()),
        ("cpu_quota_cores", cpu.quota_cores.map_or("unlimited".to_owned(), |cores| cores.to_string())),
        ("cpu_usable_cores", cpu.cores_usable.to_string()),
        ("input_generator_version", attn_kernels::input::GENERATOR_VERSION.to_string()),
        ("measurement_policy_version", MEASUREMENT_POLICY_VERSION.to_string()),
    ]);
    if Isa::best() != Isa::detected_best() {
        fields.insert("cpu_max_isa".to_owned(), Isa::best().name().to_owned());
    }
    fields
}

/// What is worth knowing of the machine and the build, by field; fields that cannot be read are absent.
pub fn provenance(cpu: &CpuInfo) -> BTreeMap<String, String> {
    let mut fields = fields([
        ("arch", std::env::consts::ARCH.to_owned()),
        ("attnbench_version", env!("CARGO_PKG_VERSION").to_owned()),
        ("build_opt_level", env!("ATTNBENCH_BUILD_OPT_LEVEL").to_owned()),
        ("build_profile", env!("ATTNBENCH_BUILD_PROFILE").to_owned()),
        ("build_rustc", env!("ATTNBENCH_BUILD_RUSTC").to_owned()),
        ("build_rustflags", env!("ATTNBENCH_BUILD_RUSTFLAGS").to_owned()),
        ("build_target", env!("ATTNBENCH_BUILD_TARGET").to_owned()),
        ("build_target_features", env!("ATTNBENCH_BUILD_TARGET_FEATURES").to_owned()),
        ("cores_online", cpu.cores_online.to_string()),
        ("os", std::env::consts::OS.to_owned()),
    ]);
    let mut add = |name: &str, value: Option<String>| {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            fields.insert(name.to_owned(), value);
        }
    };
    for cache in cpu.data_caches() {
        let kind = if cache.kind == CacheKind::Data { "d" } else { "" };
        add(&format!("cache_l{}{kind}_bytes", cache.level), Some(cache.bytes.to_string()));
    }
    add("cpu_frequency_max_mhz", cpu.frequency_max_mhz.map(|mhz| mhz.to_string()));
    add("cpu_turbo", cpu.turbo.map(|on| if on { "on" } else { "off" }.to_owned()));
    add("cpu_threads_per_core", cpu.threads_per_core.map(|threads| threads.to_string()));
    add("load_1min", cpu.load_1min.map(|load| load.to_string()));
    add("memory_total_bytes", cpu.memory_total_bytes.map(|bytes| bytes.to_string()));
    add("numa_nodes", cpu.numa_nodes.map(|nodes| nodes.to_string()));
    add("virtual_machine", cpu.virtual_machine.map(|vm| if vm { "yes" } else { "no" }.to_owned()));
    add("libc", libc_version());
    add("distribution", distribution());
    add("transparent_hugepages", transparent_hugepages());
    if let Ok(system) = nix::sys::utsname::uname() {
        add("host", Some(system.nodename().to_string_lossy().into_owned()));
        add("kernel", Some(system.release().to_string_lossy().into_owned()));
    }
    fields
}

/// Adds a GPU, as its worker describes it and as its management library does: what must be equal for times to be comparable,
/// and what computes. A worker without a GPU adds nothing.
pub fn add_gpu(
    hello: &Hello,
    source: &dyn Source,
    fingerprint: &mut BTreeMap<String, String>,
    provenance: &mut BTreeMap<String, String>,
) {
    let Some(gpu) = &hello.gpu else { return };
    let state = source.gpu(&gpu.uuid).map(|gpu| gpu.state()).unwrap_or_default();
    let known = |value: Option<String>| value.unwrap_or_else(|| UNKNOWN.to_owned());
    fingerprint.extend(fields([
        ("gpu_driver", known(state.driver_version)),
        ("gpu_mig", known(state.mig.map(|mig| if mig { "on" } else { "off" }.to_owned()))),
        ("gpu_power_limit_w", known(state.power_limit_w.map(|watts| format!("{watts:.0}")))),
        ("gpu_set_clock_mhz", known(state.set_clock_mhz.map(|mhz| mhz.to_string()))),
        ("gpu_vbios", known(state.vbios_version)),
    ]));
    let (major, minor) = gpu.compute_capability;
    fingerprint.extend(fields([
        ("gpu_compute_capability", format!("{major}.{minor}")),
        ("gpu_ecc", if gpu.ecc { "on" } else { "off" }.to_owned()),
        ("gpu_l2_cache_bytes", gpu.l2_cache_bytes.to_string()),
        ("gpu_memory_bytes", gpu.memory_bytes.to_string()),
        ("gpu_model", gpu.name.clone()),
        ("gpu_multiprocessors", gpu.multiprocessors.to_string()),
    ]));
    for (name, version) in hello.versions.iter().filter(|(name, _)| *name != "attnbench") {
        provenance.insert(format!("gpu_{name}_version"), version.clone());
    }
    provenance.insert("gpu_uuid".to_owned(), gpu.uuid.clone());
}

fn fields<const N: usize>(fields: [(&str, String); N]) -> BTreeMap<String, String> {
    fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn join_or(words: &[&str], none: &str) -> String {
    if words.is_empty() { none.to_owned() } else { words.join(" ") }
}

/// The C library, whose allocator and `memcpy` kernels use.
fn libc_version() -> Option<String> {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: the function takes nothing and returns a static, NUL-terminated string.
        let version = unsafe { std::ffi::CStr::from_ptr(libc::gnu_get_libc_version()) };
        Some(format!("glibc {}", version.to_str().ok()?))
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    (cfg!(target_env = "musl")).then(|| "musl".to_owned())
}

/// The distribution's own name for itself.
fn distribution() -> Option<String> {
    let text = std::fs::read_to_string("/etc/os-release").ok()?;
    let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(name.trim().trim_matches('"').to_owned())
}

/// The choice in force of a list such as `always [madvise] never`.
fn transparent_hugepages() -> Option<String> {
    let text = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").ok()?;
    Some(text.split_once('[')?.1.split_once(']')?.0.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_readings_have_one_fingerprint_and_it_names_no_host() {
        let fingerprint = fingerprint(&CpuInfo::read());
        assert_eq!(fingerprint, super::fingerprint(&CpuInfo::read()));
        assert!(fingerprint.values().all(|value| !value.is_empty()));
        let host = nix::sys::utsname::uname().unwrap().nodename().to_string_lossy().into_owned();
        assert!(fingerprint.values().all(|value| *value != host), "{fingerprint:?}");
    }

    #[test]
    fn what_jitters_changes_no_fingerprint_and_what_matters_does() {
        let cpu = CpuInfo { model: "A".into(), cores_usable: 4, ..CpuInfo::default() };
        let of = |change: fn(&mut CpuInfo)| {
            let mut other = cpu.clone();
            change(&mut other);
            fingerprint(&other)
        };
        let same = fingerprint(&cpu);
        assert_eq!(of(|cpu| cpu.load_1min = Some(9.0)), same);
        assert_eq!(of(|cpu| cpu.memory_available_bytes = Some(1)), same);
        assert_eq!(of(|cpu| cpu.cores_online = 8), same);
        assert_ne!(of(|cpu| cpu.model = "B".into()), same);
        assert_ne!(of(|cpu| cpu.microcode = Some("0x2".into())), same);
        assert_ne!(of(|cpu| cpu.cores_usable = 2), same);
        assert_ne!(of(|cpu| cpu.quota_cores = Some(1.5)), same);
        assert_ne!(of(|cpu| cpu.governor = Some("powersave".into())), same);
        assert_ne!(of(|cpu| cpu.instruction_sets = vec!["avx2"]), same);
    }

    #[test]
    fn provenance_says_what_built_this() {
        let provenance = provenance(&CpuInfo::read());
        assert!(provenance["build_rustc"].starts_with("rustc 1."), "{provenance:?}");
        assert!(!provenance["build_target"].is_empty());
        assert_eq!(provenance["attnbench_version"], env!("CARGO_PKG_VERSION"));
    }
}
