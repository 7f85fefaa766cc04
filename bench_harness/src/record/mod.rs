//! Everything that one run saw: versioned JSON with a published schema.
//!
//! A record stores primitives (samples, work, bytes); every rate and interval is derived from them by [`crate::metric`],
//! so a metric that is invented later can be computed from old records.

pub mod environment;
pub mod file;
pub mod launch;
pub mod merge;
#[cfg(test)]
pub(crate) mod sample;
pub mod schema;
pub mod telemetry;

use std::collections::BTreeMap;

use attn_kernels::tolerance::ErrorReport;
use attn_kernels::work::Work;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::case::CaseKey;
use crate::suite::MeasureSettings;
use crate::suite::shard::Shard;

/// The major version of the record format. Readers refuse a larger one and ignore fields that they do not know.
pub const RECORD_VERSION: u32 = 1;

/// Everything one run saw.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Record {
    /// [`RECORD_VERSION`] of the writer.
    pub record_version: u32,
    /// What ran, when and how long.
    pub run: RunInfo,
    /// What must be equal for two records to be comparable, by field.
    pub fingerprint: BTreeMap<String, String>,
    /// What is worth knowing and blocks no comparison (compiler, flags, versions, host), by field.
    pub provenance: BTreeMap<String, String>,
    /// The repository that the measured binary was built from, where there is one.
    pub git: Option<GitState>,
    /// Cases that no commit can change: they measure the ceilings and reveal drift.
    pub controls: Vec<ControlResult>,
    /// Every planned case, in the suite's order, whatever became of it.
    pub cases: Vec<CaseResult>,
}

impl Record {
    /// What it was measured on: the GPU where there is one, else the processor.
    pub fn device_model(&self) -> Option<&str> {
        let model = self.fingerprint.get("gpu_model").or_else(|| self.fingerprint.get("cpu_model"));
        model.map(String::as_str)
    }
}

/// What ran, when and how long.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RunInfo {
    /// Unique: time and random bits.
    pub id: String,
    /// RFC 3339, UTC.
    pub started_at: String,
    /// RFC 3339, UTC; of the last save while the run goes on.
    pub finished_at: String,
    /// The command line.
    pub command: Vec<String>,
    /// Version of the coordinator.
    pub attnbench_version: String,
    /// The suite's name.
    pub suite: String,
    /// The suite file's hash.
    pub suite_hash: String,
    /// Seed of inputs and orders.
    pub seed: u64,
    /// Rounds that were to be measured.
    pub rounds_planned: u32,
    /// Rounds that were finished.
    pub rounds_done: u32,
    /// Whether every planned round of every case was reached (false after Ctrl-C).
    pub complete: bool,
    /// Whether another attnbench measured on the same device at the same time.
    pub device_shared: bool,
    /// Where the time went; of a record that was merged from shards, the sum over them.
    pub time: TimeSpent,
    /// Which part of a run on several machines this is; none of a whole one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<Shard>,
}

/// Where a run's wall-clock time went, in nanoseconds. Overhead is what is left of `total_ns` after all other parts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TimeSpent {
    /// Start to end.
    pub total_ns: u64,
    /// Timed calls and warm-up calls, as the coordinator's share of wall time.
    pub calls_ns: u64,
    /// Emptying caches.
    pub flush_ns: u64,
    /// Making, overwriting, poisoning, checksumming and freeing tensors.
    pub inputs_ns: u64,
    /// The f64 oracle and the comparison with it.
    pub oracle_ns: u64,
    /// Starting workers, contexts, compiling and planning kernels.
    pub start_ns: u64,
    /// Controls.
    pub controls_ns: u64,
}

impl TimeSpent {
    /// Nanoseconds that went to none of the named parts.
    pub fn overhead_ns(&self) -> u64 {
        let parts = self.calls_ns + self.flush_ns + self.inputs_ns + self.oracle_ns + self.start_ns + self.controls_ns;
        self.total_ns.saturating_sub(parts)
    }
}

/// The state of the repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GitState {
    /// Full hash of HEAD.
    pub commit: String,
    /// Branch, unless HEAD is detached.
    pub branch: Option<String>,
    /// Whether tracked files differ from HEAD.
    pub dirty: bool,
    /// Merge base of HEAD and the default branch, where both exist.
    pub merge_base: Option<String>,
    /// Commit time, RFC 3339, UTC.
    pub committed_at: String,
}

/// What became of a planned case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Disposition {
    /// Verified and timed in at least one round, and in none of them anything else.
    Measured,
    /// Its output is wrong, or its timing was caught cheating: it has no latency.
    Incorrect,
    /// The kernel or the provider does not do it.
    Unsupported,
    /// It needs more memory than there is.
    OutOfMemory,
    /// It did not answer before its deadline.
    TimedOut,
    /// Its worker died.
    Crashed,
    /// The device was throttled in every try.
    Throttled,
    /// It was not reached.
    Skipped,
}

impl Disposition {
    /// The name in records and tables.
    pub const fn name(self) -> &'static str {
        match self {
            Disposition::Measured => "measured",
            Disposition::Incorrect => "incorrect",
            Disposition::Unsupported => "unsupported",
            Disposition::OutOfMemory => "out_of_memory",
            Disposition::TimedOut => "timed_out",
            Disposition::Crashed => "crashed",
            Disposition::Throttled => "throttled",
            Disposition::Skipped => "skipped",
        }
    }

    /// Whether the case was meant to run and could not (exit code 5 of a gate).
    pub const fn is_failure(self) -> bool {
        matches!(self, Disposition::Incorrect | Disposition::TimedOut | Disposition::Crashed)
    }
}

/// What was seen of a case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CaseResult {
    /// Case id, mode and threads.
    #[serde(flatten)]
    pub key: CaseKey,
    /// The matrix that it came from.
    pub matrix: String,
    /// How it was to be measured.
    pub settings: MeasureSettings,
    /// What became of it.
    pub disposition: Disposition,
    /// Why, unless it was simply measured.
    pub reason: Option<String>,
    /// The shard that measures it, from 1, where several do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<u32>,
    /// Queries of each sequence, where the batch is ragged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lengths_q: Option<Vec<usize>>,
    /// Keys of each sequence, where the batch is ragged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lengths_kv: Option<Vec<usize>>,
    /// The dtype by whose tolerance its outputs are judged, where that is not the problem's: what the kernel multiplies in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub multiplied_in: Option<attn_kernels::problem::Dtype>,
    /// Exact work of one call.
    pub work: Work,
    /// Warnings that follow it everywhere: `implausible: ...`, `few samples`, ...
    pub flags: Vec<String>,
    /// What each round saw, in the order of rounds.
    pub rounds: Vec<CaseRound>,
}

/// What one round saw of a case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CaseRound {
    /// Number of the round, from 0.
    pub round: u32,
    /// Position in the round's shuffled order, from 0.
    pub order: u32,
    /// What became of it in this round.
    pub disposition: Disposition,
    /// Why, unless it was simply measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Nanoseconds of each timed call on the device's clock.
    pub device_ns: Vec<f64>,
    /// Nanoseconds of each timed call on the worker's wall clock, synchronisation included.
    pub wall_ns: Vec<f64>,
    /// The input set of each timed call.
    pub sets: Vec<u64>,
    /// Flags of single samples, by the sample's number.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sample_flags: BTreeMap<u32, Vec<String>>,
    /// Nanoseconds of planning (workspaces, block lists).
    pub plan_ns: Option<u64>,
    /// Nanoseconds of compiling kernels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compile_ns: Option<u64>,
    /// Device cycles of each timed call, where the device tells of all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cycles: Vec<f64>,
    /// Nanoseconds that the host took to enqueue each timed call, where the worker tells of all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_ns: Vec<f64>,
    /// What a call launches on a GPU, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub launches: Vec<launch::LaunchReport>,
    /// The device, in the worker's words, where a provider may have several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Memory, in bytes.
    pub memory: Option<MemoryReport>,
    /// Comparison with the oracle, one a tensor and verified call.
    pub verification: Vec<Verification>,
    /// What the GPU said of itself, for a worker that uses one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub telemetry: Option<telemetry::CaseTelemetry>,
}

impl CaseRound {
    /// A round in which nothing was measured, or not yet.
    pub fn without_samples(round: u32, order: u32, disposition: Disposition, reason: Option<String>) -> Self {
        CaseRound {
            round,
            order,
            disposition,
            reason,
            device_ns: Vec::new(),
            wall_ns: Vec::new(),
            sets: Vec::new(),
            sample_flags: BTreeMap::new(),
            plan_ns: None,
            compile_ns: None,
            cycles: Vec::new(),
            host_ns: Vec::new(),
            launches: Vec::new(),
            device: None,
            memory: None,
            verification: Vec::new(),
            telemetry: None,
        }
    }
}

/// Memory of a case in a worker, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MemoryReport {
    /// Inputs and outputs of one call.
    pub tensor_bytes: u64,
    /// High-water mark of the allocator above the tensors, from planning to the last call: this one gates.
    pub extra_peak_bytes: Option<u64>,
    /// High-water mark of the process's resident memory, reset before the case: evidence.
    pub rss_peak_bytes: Option<u64>,
    /// Bytes of a GPU's memory that are taken, by whomever, after the last call: evidence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_used_bytes: Option<u64>,
}

/// One tensor of one call against the oracle.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Verification {
    /// `before` or `after` timing.
    pub stage: String,
    /// Input set of the verified call.
    pub set: u64,
    /// The tensor.
    pub tensor: attn_kernels::tensor::TensorName,
    /// Rows that were compared.
    pub rows: usize,
    /// The figures.
    pub error: ErrorReport,
}

/// What a control measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ControlKind {
    /// Bytes read a second.
    Read,
    /// Bytes written a second.
    Write,
    /// Bytes read plus bytes written a second.
    Copy,
    /// Fused multiply-adds, two FLOPs each.
    Fma,
}

/// One control over all rounds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ControlResult {
    /// `read`, `copy/4194304`, `fma/f32`, ...
    pub name: String,
    /// What it measures.
    pub kind: ControlKind,
    /// The provider whose device it ran on.
    pub provider: String,
    /// Cold or hot.
    pub mode: crate::case::Mode,
    /// CPU threads.
    pub threads: usize,
    /// Bytes of the working set.
    pub working_set_bytes: u64,
    /// Type of the elements of `fma` on devices that have a rate for each; cases are judged by their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<attn_kernels::problem::Dtype>,
    /// Bytes or FLOPs of one sample.
    pub work: u64,
    /// Nanoseconds of each sample, a list a round.
    pub rounds: Vec<Vec<f64>>,
}
