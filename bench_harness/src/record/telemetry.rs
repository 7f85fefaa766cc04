//! What a GPU said of itself while a case was measured: the readings themselves, so that anything can be derived later.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A round of a case, as the GPU's management library saw it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CaseTelemetry {
    /// The GPU, as the worker named it.
    pub gpu_uuid: String,
    /// Where the readings come from: the library and its version, or a recorded trace.
    pub source: String,
    /// Bytes a second that the GPU's memory moves at its highest clock: what activity is a share of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_peak_bytes_per_s: Option<f64>,
    /// Power in watts before the worker had launched anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_power_w: Option<f64>,
    /// One a batch of calls, warm-up and repeated batches included, in order.
    #[serde(default)]
    pub intervals: Vec<Interval>,
    /// The loop that energy and activity are taken from, where it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hot_loop: Option<HotLoop>,
    /// Nanoseconds of calls that take no part in the latency, because the GPU was throttled while they ran.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub throttled_device_ns: Vec<f64>,
    /// What is not known, and why.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub missing: BTreeMap<String, String>,
}

impl CaseTelemetry {
    /// Every reading of every interval.
    pub fn readings(&self) -> impl Iterator<Item = &Reading> {
        self.intervals.iter().flat_map(|interval| &interval.readings)
    }
}

/// A stretch of time in which calls ran.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Interval {
    /// Nanoseconds from its first reading to its last.
    pub wall_ns: u64,
    /// The clock reductions that made its samples invalid; none where they count.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub throttled_by: Vec<String>,
    /// At its beginning, now and then, and at its end.
    pub readings: Vec<Reading>,
}

/// Calls back to back for long enough that the energy counter says something.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HotLoop {
    /// Calls.
    pub calls: u64,
    /// Their nanoseconds on the device's clock: the rest of the interval's were between calls.
    pub device_ns: f64,
    /// The readings around them.
    pub interval: Interval,
}

/// What a GPU said at one time. What it did not say is absent, and `refused` says why.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Reading {
    /// Nanoseconds since the interval, or the trace, began.
    pub at_ns: u64,
    /// Clock of the multiprocessors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sm_clock_mhz: Option<u32>,
    /// Clock of the memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_clock_mhz: Option<u32>,
    /// Power that the board draws: now where the GPU tells, else its average over the last second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub power_milliwatts: Option<u32>,
    /// Energy since the driver was loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub energy_millijoules: Option<u64>,
    /// Temperature of the GPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature_c: Option<u32>,
    /// Temperature of the memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_temperature_c: Option<u32>,
    /// Why clocks are lower than they could be: the bit mask of `nvmlDeviceGetCurrentClocksEventReasons`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throttle_reasons: Option<u64>,
    /// Time since the driver was loaded in which heat or the power brake held clocks down (the sum of three counters), which
    /// shows what happened between two readings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slowdown_ns: Option<u64>,
    /// Device memory of the worker's process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process_memory_bytes: Option<u64>,
    /// Memory errors that could not be corrected since the driver was loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ecc_uncorrected_errors: Option<u64>,
    /// Share of the memory's peak bandwidth that was used since the interval began: in its last reading.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_activity_percent: Option<f64>,
    /// Share of the time since the interval began in which multiprocessors worked on tensor cores: in its last reading.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tensor_activity_percent: Option<f64>,
    /// What was not said, by field, and why. In a record, `missing` of the case says it once for all readings.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub refused: BTreeMap<String, Refusal>,
}

impl Reading {
    /// Whether the GPU is gone: whatever it computed since is not to be trusted.
    pub fn is_lost(&self) -> bool {
        self.refused.values().any(|refusal| matches!(refusal, Refusal::GpuLost))
    }
}

/// Why a GPU did not answer a question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// This GPU, or this driver, does not have it.
    #[error("not supported by this GPU or its driver")]
    NotSupported,
    /// This user may not ask.
    #[error("no permission; ask as root, or have the driver's restrictions lifted")]
    NoPermission,
    /// The GPU fell off the bus, or needs a reset.
    #[error("the GPU is lost: it fell off the bus or needs a reset")]
    GpuLost,
    /// Anything else, in words.
    #[error("{0}")]
    Failed(String),
}
