//! Which controls a run measures: the ceilings that its cases' modes and threads are judged against.

use std::collections::BTreeSet;

use attn_kernels::problem::Dtype;

use crate::case::Mode;
use crate::device::cpu::cache::CacheSizes;
use crate::device::cuda::CudaDevice;
use crate::record::{ControlKind, ControlResult};
use crate::suite::PlannedCase;
use crate::worker::protocol::Control;

/// Samples a round of each control.
const SAMPLES: u32 = 5;
/// Working set of cold controls: evicted before each sample, so it need not exceed the last-level cache.
const COLD_WORKING_SET_BYTES: u64 = 64 << 20;
/// The working set that stands for memory in hot mode.
const MEMORY_WORKING_SET_BYTES: u64 = 512 << 20;

/// The controls for these cases, without samples yet.
pub fn controls_for(cases: &[PlannedCase]) -> Vec<ControlResult> {
    let levels: BTreeSet<(usize, Mode)> =
        cases.iter().filter(|case| case.threads > 0).map(|case| (case.threads, case.settings.mode)).collect();
    let mut controls = Vec::new();
    let mut threads_seen = BTreeSet::new();
    for (threads, mode) in levels {
        if threads_seen.insert(threads) {
            controls.push(control(ControlKind::Fma, Mode::Hot, threads, 0));
        }
        let working_sets = match mode {
            Mode::Cold => vec![COLD_WORKING_SET_BYTES],
            Mode::Hot => hot_working_sets(threads),
        };
        for working_set_bytes in working_sets {
            for kind in [ControlKind::Read, ControlKind::Write, ControlKind::Copy] {
                controls.push(control(kind, mode, threads, working_set_bytes));
            }
        }
    }
    controls
}

/// One working set for each level that a hot case may live in: half of the level, so that it fits.
fn hot_working_sets(threads: usize) -> Vec<u64> {
    let caches = CacheSizes::read();
    let private = caches.l2.map(|bytes| bytes * threads as u64 / 2);
    // A virtual machine's share of a very large cache is unknown: a quarter of what is shown, at most 64 MiB.
    let shared = caches.l3.map(|bytes| (bytes / 4).min(64 << 20));
    let mut sets: Vec<u64> = [private, shared, Some(MEMORY_WORKING_SET_BYTES)].into_iter().flatten().collect();
    sets.sort_unstable();
    sets.dedup();
    sets
}

/// Largest share of a GPU's memory that a control takes.
const GPU_MEMORY_SHARE: u64 = 16;
/// The working set that stands for a GPU's memory: many times its second-level cache.
const GPU_WORKING_SET_BYTES: u64 = 1 << 30;

/// The controls of a GPU for these cases: arithmetic of each dtype, and bandwidth in each mode, when hot also of half the
/// second-level cache.
pub fn gpu_controls_for(cases: &[PlannedCase], device: &CudaDevice) -> Vec<ControlResult> {
    let own = || cases.iter().filter(|case| case.case.provider == "cuda");
    let dtypes: BTreeSet<Dtype> = own().map(|case| case.case.problem.dtype).collect();
    let modes: BTreeSet<Mode> = own().map(|case| case.settings.mode).collect();
    let gpu = |control: ControlResult| ControlResult { provider: "cuda".to_owned(), ..control };
    let mut controls: Vec<ControlResult> = dtypes
        .into_iter()
        .map(|dtype| ControlResult {
            name: format!("{}/{}", if dtype == Dtype::F32 { "fma" } else { "mma" }, dtype.name()),
            dtype: Some(dtype),
            ..gpu(control(ControlKind::Fma, Mode::Hot, 0, 0))
        })
        .collect();
    let memory = GPU_WORKING_SET_BYTES.min(device.memory_bytes / GPU_MEMORY_SHARE);
    for mode in modes {
        let cache = (mode == Mode::Hot).then_some(device.l2_cache_bytes.max(0) as u64 / 2).filter(|&bytes| bytes > 0);
        for working_set_bytes in cache.into_iter().chain([memory]) {
            for kind in [ControlKind::Read, ControlKind::Write, ControlKind::Copy] {
                controls.push(gpu(control(kind, mode, 0, working_set_bytes)));
            }
        }
    }
    controls
}

fn control(kind: ControlKind, mode: Mode, threads: usize, working_set_bytes: u64) -> ControlResult {
    let name = match kind {
        ControlKind::Fma => "fma/f32".to_owned(),
        ControlKind::Read => format!("read/{working_set_bytes}"),
        ControlKind::Write => format!("write/{working_set_bytes}"),
        ControlKind::Copy => format!("copy/{working_set_bytes}"),
    };
    ControlResult {
        name,
        kind,
        provider: "cpu".to_owned(),
        mode,
        threads,
        working_set_bytes,
        dtype: None,
        work: 0,
        rounds: vec![],
    }
}

/// The request that measures it once more.
pub fn request(control: &ControlResult) -> Control {
    Control {
        kind: control.kind,
        mode: control.mode,
        threads: control.threads,
        working_set_bytes: control.working_set_bytes,
        samples: SAMPLES,
        dtype: control.dtype,
    }
}
