//! Announcing a run on its devices, and noticing others there.

use crate::store::device_lock::{DeviceLock, Sharing};
use crate::suite::Suite;

/// Announces this run on every device that it measures on.
pub(super) fn lock_devices(suite: &Suite, gpu_uuids: &[String]) -> Vec<DeviceLock> {
    let on_cpu = suite.cases.iter().any(|case| case.threads > 0).then(|| "cpu".to_owned());
    let lock = |device: String| {
        DeviceLock::acquire(&device).map_err(|error| eprintln!("warning: announcing this run: {error}")).ok()
    };
    on_cpu.into_iter().chain(gpu_uuids.iter().cloned()).filter_map(lock).collect()
}

/// Says so where others measure on one of the devices now.
pub(in crate::commands) fn is_shared(locks: &[DeviceLock]) -> bool {
    let mut pids: Vec<u32> = Vec::new();
    for lock in locks {
        if let Sharing::Shared { pids: others } = lock.sharing() {
            pids.extend(others);
        }
    }
    pids.sort_unstable();
    pids.dedup();
    if pids.is_empty() {
        return false;
    }
    let list = pids.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
    eprintln!(
        "warning: the device is shared: another attnbench (process {list}) is measuring on it now; both runs go on, their \
         times disturb each other, and the record says so"
    );
    true
}
