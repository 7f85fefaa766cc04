//! What a kernel is: a name, the problems it can compute, and a plan that computes one of them again and again.

use crate::problem::AttentionProblem;
use crate::tensor::TensorSet;

/// Why a kernel does not compute a problem, or failed to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// The kernel does not do this; the text says which property of the problem and what it does instead.
    #[error("unsupported: {0}")]
    Unsupported(String),
    /// The memory that the plan needs is more than there is.
    #[error("out of memory: needs {needed_bytes} bytes of workspace, {available_bytes} are available")]
    OutOfMemory {
        /// Bytes of workspace.
        needed_bytes: u64,
        /// Bytes available when asked.
        available_bytes: u64,
    },
    /// The kernel started and could not finish.
    #[error("kernel failed: {0}")]
    Failed(String),
}

/// What a plan is made from: everything but the values of Q, K, V and dO, which are timed.
pub struct PlanContext<'a> {
    /// What to compute.
    pub problem: &'a AttentionProblem,
    /// Tensors that a model holds fixed or a server knows before the call: page table, Linformer's projections, sinks.
    pub static_tensors: &'a TensorSet,
    /// Threads to use; the plan runs inside a rayon pool of this size (`rayon::current_num_threads()`).
    pub threads: usize,
    /// Bytes that workspaces may take.
    pub available_bytes: u64,
}

impl PlanContext<'_> {
    /// Refuses a workspace that does not fit, before it is touched.
    pub fn check_workspace(&self, needed_bytes: u64) -> Result<(), KernelError> {
        if needed_bytes > self.available_bytes {
            return Err(KernelError::OutOfMemory { needed_bytes, available_bytes: self.available_bytes });
        }
        Ok(())
    }
}

/// One implementation of attention on the CPU.
pub trait Kernel: Sync {
    /// Its name in case ids.
    fn name(&self) -> &'static str;
    /// One line: the algorithm and where it comes from.
    fn summary(&self) -> &'static str;
    /// Whether it computes this valid problem; the error says which property it does not support.
    fn supports(&self, problem: &AttentionProblem) -> Result<(), KernelError>;
    /// Allocates what a call needs. Calls of the plan allocate nothing that grows with the problem.
    fn plan(&self, context: &PlanContext<'_>) -> Result<Box<dyn Plan>, KernelError>;
}

/// A kernel ready for one problem.
///
/// `inputs` and `outputs` hold the tensors of [`crate::input::input_names`] and [`crate::input::output_names`]. Input
/// values may change between calls. `run` is called inside a rayon pool of the context's size.
pub trait Plan: Send {
    /// Computes the problem once and returns when every output is written.
    fn run(&mut self, inputs: &TensorSet, outputs: &mut TensorSet);
}
