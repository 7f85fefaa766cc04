//! What GPUs say of themselves while they work: clocks, power, energy, temperature, memory, activity.
//!
//! The coordinator asks, not the worker: so every provider's GPU is watched alike, from another process than the one that
//! launches, and no build under test can hide that it was throttled. A worker only says which GPU it uses, by its UUID.
//!
//! There are two sources behind one trait: [`nvml`], the vendor's library, and [`trace`], a recorded file, with which
//! throttled, forbidding and vanishing GPUs are tested on machines that have none. [`watch`] is the code between them and
//! a run, the same for both.

pub mod nvml;
pub mod throttle;
pub mod trace;
pub mod watch;

use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::record::telemetry::Reading;

/// What is known of a GPU before anything runs on it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct GpuState {
    /// Its number in NVML, which need not be CUDA's.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What it is called everywhere: `GPU-...`, and `MIG-...` for a slice.
    pub uuid: Option<String>,
    /// Version of the driver.
    pub driver_version: Option<String>,
    /// Version of the VBIOS.
    pub vbios_version: Option<String>,
    /// Power limit in watts.
    pub power_limit_w: Option<f64>,
    /// Temperature in degrees Celsius.
    pub temperature_c: Option<u32>,
    /// Whether memory errors are corrected.
    pub ecc: Option<bool>,
    /// Whether it is cut into slices.
    pub mig: Option<bool>,
    /// Processes that compute on it now.
    pub compute_processes: Option<usize>,
    /// Clock that applications are set to run the multiprocessors at.
    pub set_clock_mhz: Option<u32>,
    /// Highest clock of the multiprocessors.
    pub sm_clock_max_mhz: Option<u32>,
    /// Highest clock of the memory.
    pub memory_clock_max_mhz: Option<u32>,
    /// Width of the memory's bus.
    pub memory_bus_bits: Option<u32>,
    /// Whether it measures activity of memory and tensor cores (GPM).
    pub activity: Option<bool>,
}

impl GpuState {
    /// Bytes a second of its memory at the highest clock: two transfers a clock, as the datasheets count.
    pub fn memory_peak_bytes_per_s(&self) -> Option<f64> {
        Some(2.0 * f64::from(self.memory_clock_max_mhz?) * 1e6 * f64::from(self.memory_bus_bits?) / 8.0)
    }
}

/// Why nothing is known of GPUs, or of one of them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoTelemetry {
    /// No library.
    #[error("no NVML: {} not found; it comes with the NVIDIA driver", nvml::NVML_LIBRARY)]
    NoLibrary,
    /// A library that does not start.
    #[error("NVML does not start: {0}")]
    Failed(String),
    /// No such GPU.
    #[error("{origin} has no GPU `{uuid}`: {reason}")]
    NoGpu {
        /// The library or the trace.
        origin: String,
        /// What was looked for.
        uuid: String,
        /// In words.
        reason: String,
    },
}

/// When in an interval a reading is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// At its beginning: activity is counted from here.
    Begin,
    /// In between.
    During,
    /// At its end: the reading says the activity since the beginning.
    End,
}

/// A GPU that can be asked.
pub trait Gpu: Send + Sync {
    /// What is known of it.
    fn state(&self) -> GpuState;
    /// What it says now, `pid` being the process whose memory is meant. Never fails: what is not said is in `refused`.
    fn read(&self, pid: u32, moment: Moment) -> Reading;
}

/// Where GPUs are asked.
pub trait Source: Send + Sync {
    /// In words, for records.
    fn name(&self) -> String;
    /// Every GPU there is.
    ///
    /// # Errors
    /// [`NoTelemetry`]: there is no library, or it does not start.
    fn gpus(&self) -> Result<Vec<Arc<dyn Gpu>>, NoTelemetry>;
    /// The GPU, or the slice of one, of that UUID.
    ///
    /// # Errors
    /// [`NoTelemetry`]: there is none, or nobody to ask.
    fn gpu(&self, uuid: &str) -> Result<Arc<dyn Gpu>, NoTelemetry>;
    /// Time between two readings of an interval. `None` where the source's readings have their own times: then an
    /// interval has one at its beginning and one at its end, and nobody waits.
    fn period(&self) -> Option<Duration>;
}
