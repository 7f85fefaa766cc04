//! CUDA devices. The driver is loaded at run time: a machine without one is told so and goes on.

use cudarc::driver::{result, sys};
use serde::Serialize;

/// A device that the CUDA driver lists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CudaDevice {
    /// Its number.
    pub ordinal: i32,
    /// Its name.
    pub name: String,
    /// Major and minor compute capability.
    pub compute_capability: (i32, i32),
    /// Streaming multiprocessors.
    pub multiprocessors: i32,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// L2 cache in bytes.
    pub l2_cache_bytes: i32,
}

/// Why there is no CUDA device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoCuda {
    /// No library.
    #[error("no CUDA driver: {} not found; install the NVIDIA driver to measure GPUs", DRIVER_LIBRARY)]
    NoLibrary,
    /// A library that does not start.
    #[error("the CUDA driver does not start: {0}")]
    Driver(String),
    /// A driver without devices.
    #[error("the CUDA driver lists no device; CUDA_VISIBLE_DEVICES or the container may hide them")]
    NoDevice,
}

/// What the driver's library is called.
const DRIVER_LIBRARY: &str = if cfg!(windows) { "nvcuda.dll" } else { "libcuda.so" };

/// The devices that the CUDA driver lists, in its order.
///
/// # Errors
/// [`NoCuda`]: there is no driver, it does not start, or it lists none.
pub fn devices() -> Result<Vec<CudaDevice>, NoCuda> {
    // SAFETY: the function loads the driver's library, if there is one, and calls nothing in it. Its initialisers are the
    // vendor's, as for any program that links it.
    if !unsafe { sys::is_culib_present() } {
        return Err(NoCuda::NoLibrary);
    }
    let failed = |error: result::DriverError| NoCuda::Driver(format!("{:?}", error.0));
    result::init().map_err(failed)?;
    let count = result::device::get_count().map_err(failed)?;
    if count == 0 {
        return Err(NoCuda::NoDevice);
    }
    (0..count).map(|ordinal| device(ordinal).map_err(failed)).collect()
}

fn device(ordinal: i32) -> Result<CudaDevice, result::DriverError> {
    use sys::CUdevice_attribute::*;
    let handle = result::device::get(ordinal)?;
    // SAFETY: `handle` comes from `cuDeviceGet`.
    let attribute = |attribute| unsafe { result::device::get_attribute(handle, attribute) };
    // SAFETY: as above.
    let memory = unsafe { result::device::total_mem(handle) }?;
    Ok(CudaDevice {
        ordinal,
        name: result::device::get_name(handle)?,
        compute_capability: (
            attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        memory_bytes: memory as u64,
        l2_cache_bytes: attribute(CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
    })
}
