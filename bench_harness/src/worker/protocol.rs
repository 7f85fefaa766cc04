//! The protocol between the coordinator and a worker: one JSON object a line, requests on the worker's stdin, answers on
//! its stdout. stderr is free text that the coordinator keeps the tail of.
//!
//! A request is `{"id": 7, "request": "prepare", ...}`; its answer is `{"id": 7, "ok": {...}}` or
//! `{"id": 7, "error": {"kind": "unsupported", "message": "..."}}`. Unknown fields are ignored; an unknown request is
//! answered with `unsupported`. A worker handles one request at a time and holds one prepared case at a time. All policy
//! (rounds, stopping, statistics, verification) is the coordinator's.

use attn_kernels::input::InputSpec;
use attn_kernels::problem::{AttentionProblem, Dtype};
use attn_kernels::reference::SampledRows;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::case::Mode;
use crate::device::cuda::CudaDevice;
use crate::record::launch::LaunchReport;
use crate::record::{ControlKind, MemoryReport};

/// Major and minor version. A worker of another major version is refused; minor versions only add, so that a coordinator
/// and workers of other commits understand each other.
pub const PROTOCOL_VERSION: (u32, u32) = (1, 1);

/// The first version whose workers know [`Prepare::slowdown`].
pub const SLOWDOWN_VERSION: (u32, u32) = (1, 1);

/// Longest line that either side accepts, in bytes.
pub const MAX_LINE_BYTES: usize = 16 << 20;

/// A request with its number.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Envelope {
    /// Number that the answer repeats.
    pub id: u64,
    /// What is asked.
    #[serde(flatten)]
    pub request: Request,
}

/// What the coordinator asks.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// Who are you? Answered by [`Hello`].
    Hello {
        /// The coordinator's [`PROTOCOL_VERSION`].
        protocol: (u32, u32),
    },
    /// Which kernels are there? Answered by [`KernelList`].
    Kernels,
    /// Would `prepare` accept this? Answered by [`Done`] or an `unsupported` error with the reason.
    Supports(CaseRequest),
    /// Make inputs and the plan of a case; an earlier case is released first. Answered by [`Prepared`].
    Prepare(Prepare),
    /// Run a batch of calls. Answered by [`Measured`].
    Measure(Measure),
    /// Write rows of the poisoned call's outputs to a file: little-endian elements of each tensor's own dtype, the rows
    /// of the first tensor in order, then those of the second. Answered by [`Written`].
    Outputs {
        /// Which rows.
        rows: Vec<SampledRows>,
        /// The file, in the case's scratch directory.
        path: String,
    },
    /// How much memory did the case take so far? Answered by [`MemoryReport`].
    Memory,
    /// Give everything of the case back. Answered by [`Done`].
    Release,
    /// Measure the device itself. Answered by [`ControlSamples`].
    Control(Control),
    /// Answer [`Done`] and exit.
    Shutdown,
}

/// A kernel and a problem.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct CaseRequest {
    /// The kernel's name within the provider.
    pub kernel: String,
    /// What it is to compute.
    pub problem: AttentionProblem,
    /// CPU threads; 0 for devices that are not CPUs.
    pub threads: usize,
}

/// Everything that a worker needs to get ready.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Prepare {
    /// Kernel, problem and threads.
    #[serde(flatten)]
    pub case: CaseRequest,
    /// Queries of each sequence, expanded for workers that do not draw lengths themselves.
    pub lengths_q: Vec<usize>,
    /// Keys of each sequence.
    pub lengths_kv: Vec<usize>,
    /// How inputs are generated.
    pub inputs: InputSpec,
    /// Input buffers to hold at once; set s lives in slot s mod slots and is overwritten in place when it changes.
    pub slots: u64,
    /// Host memory that inputs, outputs and workspaces may take, in bytes.
    pub available_bytes: u64,
    /// Share of each call's time that the worker spends busily on top, within what it times: 0.05 makes a kernel 5 %
    /// slower. Only calibrations ask for it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub slowdown: f64,
}

fn is_zero(share: &f64) -> bool {
    *share == 0.0
}

/// A batch of calls.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Measure {
    /// Cold or hot.
    pub mode: Mode,
    /// Calls at most: the length of `set_order`, or fewer when `max_ns` is spent.
    pub max_samples: u32,
    /// Wall-clock time after which no further call starts, in nanoseconds (flushes included).
    pub max_ns: u64,
    /// Number of the first call, counted over the case's life.
    pub first_call: u64,
    /// Input set of each call.
    pub set_order: Vec<u64>,
    /// The call whose outputs are poisoned before it and kept after it, as an index into `set_order`. The batch runs at
    /// least up to it.
    pub poison_call: Option<u32>,
}

/// An answer with the request's number.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// Number of the request.
    pub id: u64,
    /// The result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ok: Option<serde_json::Value>,
    /// Or why there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<WorkerError>,
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[error("{message}")]
pub struct WorkerError {
    /// The class.
    pub kind: ErrorKind,
    /// What happened, in a sentence.
    pub message: String,
}

/// Classes of errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The worker does not do this.
    Unsupported,
    /// It needs more memory than there is.
    OutOfMemory,
    /// The request makes no sense.
    Invalid,
    /// The kernel failed.
    KernelError,
    /// The worker failed.
    Internal,
}

/// Who the worker is.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Hello {
    /// Its protocol version.
    pub protocol: (u32, u32),
    /// Provider's name.
    pub provider: String,
    /// The device, in words.
    pub device: String,
    /// UUID of the GPU, or of the slice of one, that it uses (`GPU-...`, `MIG-...`): the coordinator watches it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_uuid: Option<String>,
    /// Versions of what computes, by name.
    pub versions: std::collections::BTreeMap<String, String>,
    /// Hash of the sources that time.
    pub timing_hash: String,
    /// [`attn_kernels::input::golden_hash`] of its generator.
    pub golden_hash: String,
    /// The GPU that it runs on, where it runs on one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<CudaDevice>,
}

/// The kernels of a provider.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct KernelList {
    /// In the provider's order.
    pub kernels: Vec<KernelInfo>,
}

/// One kernel.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct KernelInfo {
    /// Name in case ids.
    pub name: String,
    /// One line.
    pub summary: String,
}

/// A case is ready.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Prepared {
    /// Nanoseconds of planning.
    pub plan_ns: u64,
    /// Nanoseconds of compiling, where something was compiled.
    #[serde(default)]
    pub compile_ns: Option<u64>,
    /// Nanoseconds of making inputs.
    pub inputs_ns: u64,
    /// Bytes of inputs and outputs of one call.
    pub tensor_bytes: u64,
    /// What a call launches on a GPU, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub launches: Vec<LaunchReport>,
}

/// What a batch saw.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Measured {
    /// One a call, in order.
    pub samples: Vec<Sample>,
    /// Nanoseconds of overwriting, poisoning and checksumming tensors.
    pub inputs_ns: u64,
    /// Nanoseconds of emptying caches.
    pub flush_ns: u64,
    /// Findings about the whole batch: `mutated_input`, `late_work`, ...
    #[serde(default)]
    pub flags: Vec<String>,
}

/// One timed call.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Sample {
    /// On the device's clock.
    pub device_ns: f64,
    /// On the worker's wall clock, synchronisation included.
    pub wall_ns: f64,
    /// Device cycles, where readable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cycles: Option<f64>,
    /// Nanoseconds that the host took to enqueue the call on a device that computes by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ns: Option<f64>,
    /// Device clock, where readable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_mhz: Option<f64>,
    /// Input set.
    pub set: u64,
    /// Findings about this call.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub flags: Vec<String>,
}

/// A control to measure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Control {
    /// What.
    pub kind: ControlKind,
    /// Cold or hot.
    pub mode: Mode,
    /// CPU threads.
    pub threads: usize,
    /// Bytes of the working set; ignored by `fma`.
    pub working_set_bytes: u64,
    /// Samples.
    pub samples: u32,
    /// Type of the elements of `fma`, where there is more than one; f32 unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<Dtype>,
}

/// Samples of a control.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ControlSamples {
    /// Bytes or FLOPs of one sample.
    pub work: u64,
    /// Nanoseconds of each sample.
    pub device_ns: Vec<f64>,
}

/// Outputs are in their file.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Written {
    /// Findings: `late_work` where the outputs changed after the call had returned.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub flags: Vec<String>,
}

/// Nothing more to say.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Done {}

/// What [`Request::Memory`] is answered with.
pub type Memory = MemoryReport;
