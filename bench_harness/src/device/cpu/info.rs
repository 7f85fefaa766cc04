//! What this machine's CPU is, as far as it says so. Everything that cannot be read is absent, never guessed.
//!
//! Linux says it in files, which are read below a root directory, so that tests can bring their own machine. Virtual
//! machines and containers hide or inflate some of it: a cache size, for instance, is the host's.

use std::fs;
use std::path::Path;

use serde::Serialize;

use super::cache::{Cache, CacheKind, caches};
use super::cgroup;
use super::small_file::{count_of_list, one_line, read_line};

/// What is known of the CPU and the memory.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CpuInfo {
    /// As the vendor names it; the architecture where it has no name.
    pub model: String,
    /// Revision of the microcode.
    pub microcode: Option<String>,
    /// Logical CPUs that are on line.
    pub cores_online: usize,
    /// Logical CPUs that this process may run on, by its affinity mask.
    pub cores_usable: usize,
    /// CPU time a second that the control group grants, in CPUs; `None` where it is not limited.
    pub quota_cores: Option<f64>,
    /// Threads that share a physical core: 1 without simultaneous multithreading.
    pub threads_per_core: Option<usize>,
    /// Memory nodes with CPUs.
    pub numa_nodes: Option<usize>,
    /// Caches that the first CPU uses, from the nearest on.
    pub caches: Vec<Cache>,
    /// Frequency governor of the first CPU.
    pub governor: Option<String>,
    /// Whether the CPU may exceed its nominal frequency.
    pub turbo: Option<bool>,
    /// Highest frequency that the governor may choose, in MHz.
    pub frequency_max_mhz: Option<f64>,
    /// Instruction sets that matter to kernels and that this CPU has, in a fixed order.
    pub instruction_sets: Vec<&'static str>,
    /// Whether a hypervisor is below.
    pub virtual_machine: Option<bool>,
    /// Memory of the machine, in bytes.
    pub memory_total_bytes: Option<u64>,
    /// Memory that could be taken now without swapping, in bytes; what the control group leaves, if that is less.
    pub memory_available_bytes: Option<u64>,
    /// Runnable processes over the last minute.
    pub load_1min: Option<f64>,
}

impl CpuInfo {
    /// This machine, now.
    pub fn read() -> CpuInfo {
        let mut info = CpuInfo::read_below(Path::new("/"));
        if let Some(usable) = affinity_count() {
            info.cores_usable = usable;
        }
        info.instruction_sets = instruction_sets();
        info
    }

    /// What the files below a root directory say; instruction sets are not among them.
    pub fn read_below(root: &Path) -> CpuInfo {
        let cpuinfo = fs::read_to_string(root.join("proc/cpuinfo")).unwrap_or_default();
        let field = |names: &[&str]| {
            names.iter().find_map(|name| {
                let value =
                    cpuinfo.lines().filter_map(|line| line.split_once(':')).find(|(key, _)| key.trim() == *name);
                value.map(|(_, value)| one_line(value)).filter(|value| !value.is_empty())
            })
        };
        let cpu = root.join("sys/devices/system/cpu");
        let online = read_line(&cpu.join("online")).and_then(|list| count_of_list(&list));
        let parallelism = std::thread::available_parallelism().map_or(1, usize::from);
        let cores_online = online.unwrap_or_else(|| match cpuinfo.matches("processor\t:").count() {
            0 => parallelism,
            counted => counted,
        });
        let meminfo = fs::read_to_string(root.join("proc/meminfo")).unwrap_or_default();
        let memory = |name: &str| {
            let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            // The kernel's "kB" are 1024 bytes.
            line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
        };
        let available = [memory("MemAvailable"), cgroup::memory_left(root)].into_iter().flatten().min();
        CpuInfo {
            model: field(&["model name", "Processor", "cpu", "Hardware"])
                .unwrap_or_else(|| format!("{} CPU", std::env::consts::ARCH)),
            microcode: field(&["microcode"]),
            cores_online,
            cores_usable: cores_online,
            quota_cores: cgroup::quota_cores(root),
            threads_per_core: read_line(&cpu.join("cpu0/topology/thread_siblings_list"))
                .and_then(|list| count_of_list(&list)),
            numa_nodes: read_line(&root.join("sys/devices/system/node/has_cpu")).and_then(|list| count_of_list(&list)),
            caches: caches(&cpu.join("cpu0/cache")),
            governor: read_line(&cpu.join("cpu0/cpufreq/scaling_governor")),
            turbo: turbo(&cpu),
            frequency_max_mhz: read_line(&cpu.join("cpu0/cpufreq/scaling_max_freq"))
                .and_then(|khz| khz.parse::<f64>().ok())
                .map(|khz| khz / 1000.0),
            instruction_sets: Vec::new(),
            virtual_machine: field(&["flags"]).map(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
            memory_total_bytes: memory("MemTotal"),
            memory_available_bytes: available,
            load_1min: read_line(&root.join("proc/loadavg")).and_then(|line| line.split(' ').next()?.parse().ok()),
        }
    }

    /// Size of the cache that is nearest to memory, in bytes.
    pub fn last_level_cache_bytes(&self) -> Option<u64> {
        self.data_caches().map(|cache| cache.bytes).max()
    }

    /// The caches that data pass through, from the nearest on.
    pub fn data_caches(&self) -> impl Iterator<Item = &Cache> {
        self.caches.iter().filter(|cache| cache.kind != CacheKind::Instruction)
    }

    /// The model as a name for directories: see [`slug`].
    pub fn slug(&self) -> String {
        slug(&self.model)
    }
}

/// A name for files and directories: runs of anything but letters and digits become one hyphen, letters become small.
/// The result is 1 to 64 of `a-z`, `0-9` and `-`, whatever the text, so that no path can be smuggled in.
pub fn slug(text: &str) -> String {
    // Marks such as "(R)" and "(TM)" say nothing, nor does the nominal clock of "CPU @ 2.70GHz".
    let text = text.to_lowercase().replace("(r)", " ").replace("(tm)", " ").replace("(c)", " ");
    let text = text.split('@').next().unwrap_or_default();
    let words = text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    let mut slug = words.filter(|word| *word != "cpu" && *word != "processor").collect::<Vec<_>>().join("-");
    slug.truncate(64);
    let slug = slug.trim_matches('-');
    if slug.is_empty() { "unknown".to_owned() } else { slug.to_owned() }
}

/// Logical CPUs that this process may run on.
#[cfg(target_os = "linux")]
fn affinity_count() -> Option<usize> {
    let mask = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).ok()?;
    let count = (0..nix::sched::CpuSet::count()).filter(|&cpu| mask.is_set(cpu).unwrap_or(false)).count();
    (count > 0).then_some(count)
}

/// Other systems have no mask that is as simple: what the standard library says.
#[cfg(not(target_os = "linux"))]
fn affinity_count() -> Option<usize> {
    std::thread::available_parallelism().ok().map(usize::from)
}

/// Instruction sets that kernels dispatch on.
fn instruction_sets() -> Vec<&'static str> {
    macro_rules! detected {
        ($detect:ident: $($name:tt),+ $(,)?) => {
            vec![$(($name, std::arch::$detect!($name))),+]
        };
    }
    #[cfg(target_arch = "x86_64")]
    let known = detected!(is_x86_feature_detected:
        "sse4.2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vnni",
        "avx512bf16", "avx512fp16");
    #[cfg(target_arch = "aarch64")]
    let known = detected!(is_aarch64_feature_detected: "neon", "fp16", "dotprod", "bf16", "i8mm", "sve", "sve2");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let known: Vec<(&'static str, bool)> = Vec::new();
    known.into_iter().filter(|&(_, there)| there).map(|(name, _)| name).collect()
}

/// Whether turbo is allowed, from the driver of the day.
fn turbo(cpu: &Path) -> Option<bool> {
    let is_one = |path: &str| read_line(&cpu.join(path)).map(|value| value == "1");
    is_one("intel_pstate/no_turbo").map(|off| !off).or_else(|| is_one("cpufreq/boost"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine made of files.
    fn machine(files: &[(&str, &str)]) -> (tempfile::TempDir, CpuInfo) {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let info = CpuInfo::read_below(root.path());
        (root, info)
    }

    #[test]
    fn a_machine_that_says_everything() {
        let (_root, info) = machine(&[
            (
                "proc/cpuinfo",
                "processor\t: 0\nmodel name\t: AMD EPYC  7B13 64-Core Processor\nmicrocode\t: 0xa0011d1\n\
                 flags\t\t: fpu hypervisor avx2\nprocessor\t: 1\n",
            ),
            ("proc/meminfo", "MemTotal:       16000000 kB\nMemFree: 1 kB\nMemAvailable:    8000000 kB\n"),
            ("proc/loadavg", "0.52 0.41 0.30 1/200 4242\n"),
            ("sys/devices/system/cpu/online", "0-7\n"),
            ("sys/devices/system/cpu/cpu0/topology/thread_siblings_list", "0,4\n"),
            ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "performance\n"),
            ("sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq", "3500000\n"),
            ("sys/devices/system/cpu/cpufreq/boost", "0\n"),
            ("sys/devices/system/node/has_cpu", "0-1\n"),
            ("sys/devices/system/cpu/cpu0/cache/index0/level", "1\n"),
            ("sys/devices/system/cpu/cpu0/cache/index0/type", "Data\n"),
            ("sys/devices/system/cpu/cpu0/cache/index0/size", "32K\n"),
            ("sys/devices/system/cpu/cpu0/cache/index0/shared_cpu_list", "0,4\n"),
            ("sys/devices/system/cpu/cpu0/cache/index3/level", "3\n"),
            ("sys/devices/system/cpu/cpu0/cache/index3/type", "Unified\n"),
            ("sys/devices/system/cpu/cpu0/cache/index3/size", "32M\n"),
            ("sys/devices/system/cpu/cpu0/cache/index3/shared_cpu_list", "0-7\n"),
            ("proc/self/cgroup", "0::/box/inner\n"),
            ("sys/fs/cgroup/cpu.max", "max 100000\n"),
            ("sys/fs/cgroup/box/cpu.max", "250000 100000\n"),
            ("sys/fs/cgroup/box/inner/cpu.max", "max 100000\n"),
            ("sys/fs/cgroup/box/memory.max", "2000000000\n"),
            ("sys/fs/cgroup/box/memory.current", "500000000\n"),
            ("sys/fs/cgroup/box/inner/memory.max", "max\n"),
        ]);
        assert_eq!(info.model, "AMD EPYC 7B13 64-Core Processor");
        assert_eq!(info.slug(), "amd-epyc-7b13-64-core");
        assert_eq!(info.microcode.as_deref(), Some("0xa0011d1"));
        assert_eq!((info.cores_online, info.threads_per_core, info.numa_nodes), (8, Some(2), Some(2)));
        assert_eq!((info.quota_cores, info.virtual_machine), (Some(2.5), Some(true)));
        assert_eq!((info.governor.as_deref(), info.turbo), (Some("performance"), Some(false)));
        assert_eq!(info.frequency_max_mhz, Some(3500.0));
        assert_eq!(info.memory_total_bytes, Some(16_384_000_000));
        assert_eq!(info.memory_available_bytes, Some(1_500_000_000));
        assert_eq!(info.load_1min, Some(0.52));
        let sizes: Vec<_> = info.data_caches().map(|cache| (cache.level, cache.bytes, cache.shared_by)).collect();
        assert_eq!(sizes, [(1, 32 << 10, 2), (3, 32 << 20, 8)]);
        assert_eq!(info.last_level_cache_bytes(), Some(32 << 20));
    }

    #[test]
    fn older_control_groups() {
        let (_root, info) = machine(&[
            ("proc/meminfo", "MemAvailable: 4000000 kB\n"),
            ("proc/self/cgroup", "5:cpu,cpuacct:/host/path/of/a/container\n4:memory:/a\n0::/\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "150000\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
            ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "1000\n"),
            ("sys/fs/cgroup/memory/a/memory.usage_in_bytes", "1200\n"),
        ]);
        assert_eq!(info.quota_cores, Some(1.5));
        assert_eq!(info.memory_available_bytes, Some(0));
        let (_root, unlimited) = machine(&[
            ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
        ]);
        assert_eq!(unlimited.quota_cores, None);
    }

    #[test]
    fn a_machine_that_says_nothing_or_rubbish() {
        let (_root, silent) = machine(&[]);
        assert_eq!(silent.model, format!("{} CPU", std::env::consts::ARCH));
        assert!(silent.cores_online >= 1);
        assert_eq!((silent.caches.len(), silent.memory_available_bytes, silent.governor), (0, None, None));

        let (_root, rubbish) = machine(&[
            ("proc/cpuinfo", "model name\t:   \n:::\n"),
            ("proc/meminfo", "MemTotal: 99999999999999999999999 kB\nMemAvailable: 18446744073709551615 kB\n"),
            ("sys/devices/system/cpu/online", "3-1\n"),
            ("sys/devices/system/cpu/cpu0/cache/index0/size", "99999999999999999G"),
            ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "\n"),
            ("sys/fs/cgroup/cpu.max", "100000 0\n"),
        ]);
        assert_eq!((rubbish.memory_total_bytes, rubbish.quota_cores, rubbish.governor), (None, None, None));
        assert!(rubbish.cores_online >= 1 && rubbish.caches.is_empty());
    }

    #[test]
    fn this_machine_is_read() {
        let info = CpuInfo::read();
        assert!(!info.model.is_empty() && info.cores_usable >= 1);
        #[cfg(target_os = "linux")]
        assert!(info.memory_available_bytes.unwrap() <= info.memory_total_bytes.unwrap());
    }

    #[test]
    fn slugs_are_safe_names() {
        for (text, expected) in [
            ("Intel(R) Xeon(R) Processor @ 2.70GHz", "intel-xeon"),
            ("../../etc/passwd", "etc-passwd"),
            ("NVIDIA H200 NVL", "nvidia-h200-nvl"),
            ("\0\n", "unknown"),
            ("Äé", "unknown"),
            ("CPU", "unknown"),
        ] {
            assert_eq!(slug(text), expected);
        }
        let long = slug(&"ab-".repeat(100));
        assert!(long.len() <= 64 && !long.ends_with('-'), "{long}");
    }
}
