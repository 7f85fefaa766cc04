//! What Linux tells about memory: available bytes and the resident high-water mark.

use std::fs;
use std::path::Path;

use super::cgroup;

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
    let group = cgroup::memory_left(Path::new("/")).unwrap_or(u64::MAX);
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
