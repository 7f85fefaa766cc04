//! The caches of the CPU, as sysfs tells them. Virtual machines often show their host's.

use std::path::Path;

use serde::Serialize;

use super::small_file::{count_of_list, read_line};

/// One cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cache {
    /// 1 is the nearest.
    pub level: u32,
    /// What it holds.
    pub kind: CacheKind,
    /// Size in bytes.
    pub bytes: u64,
    /// Logical CPUs that share it.
    pub shared_by: usize,
}

/// What a cache holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CacheKind {
    /// Data.
    Data,
    /// Instructions.
    Instruction,
    /// Both.
    Unified,
}

/// Sizes of the data caches of the first CPU in bytes, by level, where readable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheSizes {
    /// Second-level cache of a core.
    pub l2: Option<u64>,
    /// Last level, shared.
    pub l3: Option<u64>,
}

impl CacheSizes {
    /// This machine's.
    pub fn read() -> CacheSizes {
        let caches = caches(Path::new("/sys/devices/system/cpu/cpu0/cache"));
        let level = |level: u32| {
            let is_it = |cache: &&Cache| cache.level == level && cache.kind != CacheKind::Instruction;
            caches.iter().find(is_it).map(|cache| cache.bytes)
        };
        CacheSizes { l2: level(2), l3: level(3) }
    }
}

/// The caches of sysfs's `cache` directory of a CPU, from the nearest on.
pub(super) fn caches(directory: &Path) -> Vec<Cache> {
    let cache = |path: &Path| {
        let size = read_line(&path.join("size"))?;
        let (number, unit) = size.split_at(size.find(|c: char| !c.is_ascii_digit()).unwrap_or(size.len()));
        let unit = match unit {
            "" => 1,
            "K" => 1 << 10,
            "M" => 1 << 20,
            "G" => 1 << 30,
            _ => return None,
        };
        Some(Cache {
            level: read_line(&path.join("level"))?.parse().ok()?,
            kind: match read_line(&path.join("type"))?.as_str() {
                "Data" => CacheKind::Data,
                "Instruction" => CacheKind::Instruction,
                _ => CacheKind::Unified,
            },
            bytes: number.parse::<u64>().ok()?.checked_mul(unit)?,
            shared_by: read_line(&path.join("shared_cpu_list")).and_then(|list| count_of_list(&list)).unwrap_or(1),
        })
    };
    // No machine has this many; a hole in the numbers does not hide the rest.
    let mut caches: Vec<Cache> = (0..16).filter_map(|index| cache(&directory.join(format!("index{index}")))).collect();
    caches.sort_by_key(|cache| (cache.level, cache.kind == CacheKind::Instruction));
    caches
}
