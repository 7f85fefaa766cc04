//! Which CUDA devices there are.

use cudarc::driver::{result, sys};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::driver::is_present;

/// A device that the CUDA driver lists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CudaDevice {
    /// Its number.
    pub ordinal: i32,
    /// Its name.
    pub name: String,
    /// Its unique name: `GPU-...`, or `MIG-...` of a slice.
    #[serde(default)]
    pub uuid: String,
    /// Major and minor compute capability.
    pub compute_capability: (i32, i32),
    /// Streaming multiprocessors.
    pub multiprocessors: i32,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// L2 cache in bytes.
    pub l2_cache_bytes: i32,
    /// Shared memory that a block may ask for, in bytes.
    #[serde(default)]
    pub shared_bytes_per_block: i32,
    /// Threads that a multiprocessor holds at a time.
    #[serde(default)]
    pub threads_per_multiprocessor: i32,
    /// Whether memory errors are corrected.
    #[serde(default)]
    pub ecc: bool,
    /// The newest CUDA version that the driver speaks: 13000 is 13.0.
    #[serde(default)]
    pub driver_cuda_version: i32,
}

impl CudaDevice {
    /// What two devices must have in common for their times to be samples of one thing: all but number and name.
    pub fn is_like(&self, other: &CudaDevice) -> bool {
        let of_any = |device: &CudaDevice| CudaDevice { ordinal: 0, uuid: String::new(), ..device.clone() };
        of_any(self) == of_any(other)
    }
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
    if !is_present() {
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
    let mut driver_cuda_version = 0;
    // SAFETY: the number is valid for writes.
    unsafe { sys::cuDriverGetVersion(&mut driver_cuda_version) }.result()?;
    Ok(CudaDevice {
        ordinal,
        name: result::device::get_name(handle)?,
        uuid: uuid(handle)?,
        compute_capability: (
            attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        memory_bytes: memory as u64,
        l2_cache_bytes: attribute(CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
        shared_bytes_per_block: attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        threads_per_multiprocessor: attribute(CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR)?,
        ecc: attribute(CU_DEVICE_ATTRIBUTE_ECC_ENABLED)? != 0,
        driver_cuda_version,
    })
}

/// 8-4-4-4-12 hexadecimal digits, as `nvidia-smi -L` prints them.
fn uuid(handle: sys::CUdevice) -> Result<String, result::DriverError> {
    let mut uuid = sys::CUuuid { bytes: [0; 16] };
    // SAFETY: the structure is valid for writes, and the handle comes from `cuDeviceGet`. This version names a MIG slice.
    unsafe { sys::cuDeviceGetUuid_v2(&mut uuid, handle) }.result()?;
    let digits: String = uuid.bytes.iter().map(|&byte| format!("{:02x}", byte as u8)).collect();
    let [a, b, c, d, e] = [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]];
    Ok(format!("GPU-{a}-{b}-{c}-{d}-{e}"))
}
