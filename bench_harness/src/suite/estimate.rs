//! What a planned case will take, before anything runs: its exact work and its memory.

use attn_kernels::cuda;
use attn_kernels::input::{Generator, InputSpec, input_names, is_static, tensor_bytes, tensor_shape};
use attn_kernels::kernel::{Kernel, KernelError, PlanContext};
use attn_kernels::problem::AttentionProblem;
use attn_kernels::work::Work;
use serde::Serialize;

use super::{Environment, PlannedCase};
use crate::case::Mode;

/// Static inputs that an estimate may make, in bytes: page tables and projections.
const MAX_STATIC_BYTES: u64 = 1 << 28;
/// Tokens up to which a kernel is asked: block lists grow with them.
const MAX_TOKENS: usize = 1 << 20;

/// A planned case with what it takes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// Case id.
    pub case_id: String,
    /// The matrix that it came from.
    pub matrix: String,
    /// Cold or hot.
    pub mode: Mode,
    /// CPU threads; 0 for devices that are not CPUs.
    pub threads: usize,
    /// Rounds that measure it.
    pub rounds: u32,
    /// Exact work of one call.
    pub work: Work,
    /// Bytes of the inputs and outputs of one call.
    pub tensor_bytes: u64,
    /// Bytes of the kernel's workspace; none where only running it would tell.
    pub workspace_bytes: Option<u64>,
    /// Why the kernel will not compute it, where that is known.
    pub unsupported: Option<String>,
}

impl Estimate {
    /// What a case takes, asking the built-in kernels.
    pub fn of(planned: &PlannedCase, environment: &Environment<'_>) -> Estimate {
        let problem = &planned.case.problem;
        let kernel = (planned.case.provider == "cpu")
            .then(|| environment.kernels.iter().find(|kernel| kernel.name() == planned.case.kernel))
            .flatten();
        let refusal = match planned.case.provider.as_str() {
            "cuda" => cuda::find(&planned.case.kernel).and_then(|kernel| kernel.supports(problem).err()),
            _ => kernel.and_then(|kernel| kernel.supports(problem).err()),
        };
        let unsupported = refusal.map(|error| error.to_string());
        let workspace_bytes = match (kernel, &unsupported) {
            (Some(kernel), None) => workspace_bytes(*kernel, problem, planned.threads),
            _ => None,
        };
        Estimate {
            case_id: planned.case.id(),
            matrix: planned.matrix.clone(),
            mode: planned.settings.mode,
            threads: planned.threads,
            rounds: planned.settings.rounds,
            work: Work::of(problem),
            tensor_bytes: tensor_bytes(problem),
            workspace_bytes,
            unsupported,
        }
    }
}

/// A kernel that may use no memory at all says how much it needs.
fn workspace_bytes(kernel: &dyn Kernel, problem: &AttentionProblem, threads: usize) -> Option<u64> {
    let static_bytes = input_names(problem).into_iter().filter(|&name| is_static(name)).map(|name| {
        let (element, dims) = tensor_shape(problem, name);
        dims.iter().fold(element.bytes() as u64, |bytes, &dim| bytes.saturating_mul(dim as u64))
    });
    let tokens: usize = problem.lengths_q().iter().chain(&problem.lengths_kv()).sum();
    if static_bytes.sum::<u64>() > MAX_STATIC_BYTES || tokens > MAX_TOKENS {
        return None;
    }
    let spec = InputSpec::new(problem, 0);
    let static_tensors = Generator::new(problem, &spec, 0).static_inputs();
    let context = PlanContext { problem, static_tensors: &static_tensors, threads, available_bytes: 0 };
    match kernel.plan(&context) {
        Ok(_) => Some(0),
        Err(KernelError::OutOfMemory { needed_bytes, .. }) => Some(needed_bytes),
        Err(_) => None,
    }
}
