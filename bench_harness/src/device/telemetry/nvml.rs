//! The NVIDIA management library: the only file that touches it. It is loaded at run time.

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;
use serde::Serialize;

/// What NVML says of a GPU.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GpuState {
    /// Its number in NVML, which need not be CUDA's.
    pub index: u32,
    /// Its name.
    pub name: String,
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
    /// Processes that compute on it now.
    pub compute_processes: Option<usize>,
}

/// Why NVML tells nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoNvml {
    /// No library.
    #[error("no NVML: {} not found; it comes with the NVIDIA driver", NVML_LIBRARY)]
    NoLibrary,
    /// A library that does not start.
    #[error("NVML does not start: {0}")]
    Failed(String),
}

/// What NVML's library is called.
const NVML_LIBRARY: &str = if cfg!(windows) { "nvml.dll" } else { "libnvidia-ml.so.1" };

/// The GPUs that NVML lists, with what it says of each now.
///
/// # Errors
/// [`NoNvml`]: there is no library, or it does not start.
pub fn gpus() -> Result<Vec<GpuState>, NoNvml> {
    let failed = |error: NvmlError| match error {
        NvmlError::LibloadingError(_) => NoNvml::NoLibrary,
        error => NoNvml::Failed(error.to_string()),
    };
    // The plain name is a development link; the numbered one comes with every driver.
    let nvml = Nvml::builder().lib_path(NVML_LIBRARY.as_ref()).init().map_err(failed)?;
    let driver_version = nvml.sys_driver_version().ok();
    let count = nvml.device_count().map_err(failed)?;
    let gpu = |index| {
        let device = nvml.device_by_index(index)?;
        Ok(GpuState {
            index,
            name: device.name()?,
            driver_version: driver_version.clone(),
            vbios_version: device.vbios_version().ok(),
            power_limit_w: device.enforced_power_limit().ok().map(|milliwatts| f64::from(milliwatts) / 1000.0),
            temperature_c: device.temperature(nvml_wrapper::enum_wrappers::device::TemperatureSensor::Gpu).ok(),
            ecc: device.is_ecc_enabled().ok().map(|ecc| ecc.currently_enabled),
            compute_processes: device.running_compute_processes().ok().map(|processes| processes.len()),
        })
    };
    (0..count).map(gpu).collect::<Result<_, _>>().map_err(failed)
}
