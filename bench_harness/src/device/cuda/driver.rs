//! Calls of the CUDA driver, and what their errors mean.

use cudarc::driver::sys::{self, CUresult};

/// A call of the driver that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{doing}: {code:?}")]
pub struct Fault {
    /// What was being done: `allocating 4096 bytes`, `launching`.
    pub doing: &'static str,
    code: CUresult,
}

impl Fault {
    /// Whether the device has too little memory left.
    pub fn is_out_of_memory(&self) -> bool {
        self.code == CUresult::CUDA_ERROR_OUT_OF_MEMORY
    }

    /// Whether the context can go on. After an illegal address, a trap or a timeout every later call fails too, and only a
    /// new process helps: so only the errors of which this is certain are forgiven.
    pub fn is_recoverable(&self) -> bool {
        use CUresult::*;
        matches!(
            self.code,
            CUDA_ERROR_OUT_OF_MEMORY
                | CUDA_ERROR_INVALID_VALUE
                | CUDA_ERROR_INVALID_IMAGE
                | CUDA_ERROR_INVALID_PTX
                | CUDA_ERROR_NO_BINARY_FOR_GPU
                | CUDA_ERROR_UNSUPPORTED_PTX_VERSION
                | CUDA_ERROR_JIT_COMPILER_NOT_FOUND
                | CUDA_ERROR_NOT_FOUND
                | CUDA_ERROR_NOT_SUPPORTED
                | CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES
        )
    }
}

/// The result of a call.
pub(super) fn check(doing: &'static str, code: CUresult) -> Result<(), Fault> {
    if code == CUresult::CUDA_SUCCESS { Ok(()) } else { Err(Fault { doing, code }) }
}

/// Whether the driver's library can be loaded.
pub(super) fn is_present() -> bool {
    // SAFETY: the function loads the driver's library, if there is one, and calls nothing in it. Its initialisers are the
    // vendor's, as for any program that links it.
    unsafe { sys::is_culib_present() }
}
