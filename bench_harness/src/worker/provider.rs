//! What a provider's worker must be able to do; the server turns protocol messages into these calls.

use attn_kernels::kernel::KernelError;
use attn_kernels::reference::SampledRows;

use super::protocol::{
    CaseRequest, Control, ControlSamples, ErrorKind, Hello, KernelInfo, Measure, Measured, Memory, Prepare, Prepared,
    WorkerError, Written,
};

/// Where kernels come from.
pub trait Provider {
    /// Who it is; an error where it lacks what it computes with.
    fn hello(&self) -> Result<Hello, WorkerError>;
    /// Its kernels.
    fn kernels(&self) -> Vec<KernelInfo>;
    /// Whether `prepare` would accept the case.
    fn supports(&self, case: &CaseRequest) -> Result<(), WorkerError>;
    /// Makes inputs and a plan.
    fn prepare(&mut self, prepare: &Prepare) -> Result<(Box<dyn PreparedCase>, Prepared), WorkerError>;
    /// Measures the device itself.
    fn control(&mut self, control: &Control) -> Result<ControlSamples, WorkerError>;
    /// Whether it can go on: a provider that cannot answers once more and is restarted.
    fn is_usable(&self) -> bool {
        true
    }
}

/// A case that is ready to be called.
pub trait PreparedCase {
    /// Runs a batch of calls.
    fn measure(&mut self, measure: &Measure) -> Result<Measured, WorkerError>;
    /// Elements of rows of the last poisoned call's outputs, little-endian, in the order asked, with findings.
    fn outputs(&mut self, rows: &[SampledRows]) -> Result<(Vec<u8>, Written), WorkerError>;
    /// Memory so far.
    fn memory(&mut self) -> Memory;
}

impl WorkerError {
    /// An error of a class.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        WorkerError { kind, message: message.into() }
    }

    /// A request that makes no sense.
    pub fn invalid(message: impl Into<String>) -> Self {
        WorkerError::new(ErrorKind::Invalid, message)
    }
}

impl From<KernelError> for WorkerError {
    fn from(error: KernelError) -> Self {
        match error {
            KernelError::Unsupported(reason) => WorkerError::new(ErrorKind::Unsupported, reason),
            KernelError::OutOfMemory { .. } => WorkerError::new(ErrorKind::OutOfMemory, error.to_string()),
            KernelError::Failed(reason) => WorkerError::new(ErrorKind::KernelError, reason),
        }
    }
}
