//! What Linux tells about memory: available bytes, the resident high-water mark, cache sizes.

use std::fs;

/// Cache sizes in bytes, where readable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheSizes {
    /// First-level data cache of a core.
    pub l1d: Option<u64>,
    /// Second-level cache of a core.
    pub l2: Option<u64>,
    /// Last level, shared. Virtual machines often show their host's whole cache.
    pub l3: Option<u64>,
}

impl CacheSizes {
    /// Reads sysfs; what is missing there stays None.
    pub fn read() -> CacheSizes {
        let mut sizes = CacheSizes::default();
        for index in 0..8 {
            let base = format!("/sys/devices/system/cpu/cpu0/cache/index{index}");
            let read = |file: &str| fs::read_to_string(format!("{base}/{file}")).ok();
            let (Some(level), Some(kind), Some(size)) = (read("level"), read("type"), read("size")) else { continue };
            let Some(bytes) = parse_size(size.trim()) else { continue };
            match (level.trim(), kind.trim()) {
                ("1", "Data") => sizes.l1d = Some(bytes),
                ("2", _) => sizes.l2 = Some(bytes),
                ("3", _) => sizes.l3 = Some(bytes),
                _ => {}
            }
        }
        sizes
    }
}

/// sysfs writes `48K`, `2048K`, `480M`: powers of two.
fn parse_size(text: &str) -> Option<u64> {
    let (digits, factor) = match text.strip_suffix('K') {
        Some(digits) => (digits, 1 << 10),
        None => match text.strip_suffix('M') {
            Some(digits) => (digits, 1 << 20),
            None => (text, 1),
        },
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

fn kib_field(file: &str, field: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(field))?;
    line[field.len()..]
        .trim_start_matches(':')
        .trim()
        .trim_end_matches("kB")
        .trim()
        .parse::<u64>()
        .ok()
        .map(|kib| kib * 1024)
}

/// Bytes that can be allocated without swapping: what the system reports, within the control group's limit.
pub fn available_bytes() -> u64 {
    let system = kib_field("/proc/meminfo", "MemAvailable").unwrap_or(1 << 30);
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let group = match (number("/sys/fs/cgroup/memory.max"), number("/sys/fs/cgroup/memory.current")) {
        (Some(limit), Some(used)) => limit.saturating_sub(used),
        _ => u64::MAX,
    };
    system.min(group)
}

/// Sets the resident high-water mark back to what is resident now. False where the system does not allow it.
pub fn reset_rss_peak() -> bool {
    fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// The resident high-water mark of this process.
pub fn rss_peak_bytes() -> Option<u64> {
    kib_field("/proc/self/status", "VmHWM")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysfs_sizes_are_powers_of_two() {
        assert_eq!(parse_size("48K"), Some(48 * 1024));
        assert_eq!(parse_size("480M"), Some(480 << 20));
        assert_eq!(parse_size("512"), Some(512));
        assert_eq!(parse_size("x"), None);
        assert_eq!(parse_size("99999999999999999999K"), None);
    }
}
