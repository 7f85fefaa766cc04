//! What control groups of both versions leave to this process.

use std::fs;
use std::path::Path;

use super::small_file::read_line;

/// The directories of this process's control group and of its ancestors, innermost first, under a mounted hierarchy.
///
/// In a container the path of `/proc/self/cgroup` is often the host's and does not exist: the mount's own root, which is
/// then the container's group, is always the last.
fn directories(root: &Path, mount: &str, controller: &str) -> Vec<std::path::PathBuf> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let group = groups.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, group) = (parts.next()?, parts.next()?);
        controllers.split(',').any(|name| name == controller).then(|| group.trim_start_matches('/').to_owned())
    });
    let mount = root.join(mount);
    let inner = mount.join(group.unwrap_or_default());
    inner.ancestors().take_while(|path| path.starts_with(&mount)).map(Path::to_owned).collect()
}

/// CPUs' worth of time that control groups grant: the least of all levels.
pub(super) fn quota_cores(root: &Path) -> Option<f64> {
    let number = |text: &str| text.parse::<f64>().ok().filter(|number| *number > 0.0);
    let v2 = directories(root, "sys/fs/cgroup", "").into_iter().filter_map(|directory| {
        let line = read_line(&directory.join("cpu.max"))?;
        let (quota, period) = line.split_once(' ')?;
        Some(number(quota)? / number(period)?)
    });
    let v1 = ["sys/fs/cgroup/cpu", "sys/fs/cgroup/cpu,cpuacct"].into_iter().flat_map(|mount| {
        directories(root, mount, "cpu").into_iter().filter_map(|directory| {
            let read = |name: &str| number(&read_line(&directory.join(name))?);
            Some(read("cpu.cfs_quota_us")? / read("cpu.cfs_period_us")?)
        })
    });
    v2.chain(v1).min_by(f64::total_cmp)
}

/// Bytes that control groups leave to this process: the least of all levels.
pub(super) fn memory_left(root: &Path) -> Option<u64> {
    let left = |directory: &Path, limit: &str, used: &str| {
        let read = |name: &str| read_line(&directory.join(name))?.parse::<u64>().ok();
        Some(read(limit)?.saturating_sub(read(used)?))
    };
    let v2 = directories(root, "sys/fs/cgroup", "")
        .into_iter()
        .filter_map(|directory| left(&directory, "memory.max", "memory.current"));
    let v1 = directories(root, "sys/fs/cgroup/memory", "memory")
        .into_iter()
        .filter_map(|directory| left(&directory, "memory.limit_in_bytes", "memory.usage_in_bytes"));
    v2.chain(v1).min()
}
