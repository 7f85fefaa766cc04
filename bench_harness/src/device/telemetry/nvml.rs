//! The NVIDIA management library: the only file that touches it. It is loaded at run time, when somebody asks first.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use nvml_wrapper::enum_wrappers::device::{Clock, EccCounter, MemoryError, TemperatureSensor};
use nvml_wrapper::enums::device::{SampleValue, UsedGpuMemory};
use nvml_wrapper::enums::gpm::GpmMetricId;
use nvml_wrapper::error::{NvmlError, nvml_try};
use nvml_wrapper::gpm::{GpmSample, gpm_metrics_get};
use nvml_wrapper::structs::device::FieldId;
use nvml_wrapper::sys_exports::field_id;
use nvml_wrapper::{Device, Nvml};

use super::{Gpu, GpuState, Moment, NoTelemetry, Source};
use crate::record::telemetry::{Reading, Refusal};

/// What NVML's library is called. The plain name is a development link; the numbered one comes with every driver.
pub const NVML_LIBRARY: &str = if cfg!(windows) { "nvml.dll" } else { "libnvidia-ml.so.1" };

/// Time between two readings. Fast counters change every 20 to 100 ms, and a reading takes some milliseconds of a core.
const PERIOD: Duration = Duration::from_millis(50);

/// The counters of time in which heat or the power brake held clocks down.
const SLOWDOWN_COUNTERS: [u32; 3] = [
    field_id::NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN,
    field_id::NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN,
    field_id::NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN,
];

/// The library of this machine.
pub struct NvmlSource;

impl Source for NvmlSource {
    fn name(&self) -> String {
        library()
            .ok()
            .and_then(|nvml| nvml.sys_nvml_version().ok())
            .map_or("NVML".to_owned(), |version| format!("NVML {version}"))
    }

    fn gpus(&self) -> Result<Vec<Arc<dyn Gpu>>, NoTelemetry> {
        let nvml = library()?;
        let count = nvml.device_count().map_err(failed)?;
        (0..count)
            .map(|index| Ok(Arc::new(NvmlGpu::new(nvml, nvml.device_by_index(index).map_err(failed)?)) as Arc<dyn Gpu>))
            .collect()
    }

    fn gpu(&self, uuid: &str) -> Result<Arc<dyn Gpu>, NoTelemetry> {
        let nvml = library()?;
        let device = nvml.device_by_uuid(uuid).map_err(|error| NoTelemetry::NoGpu {
            origin: self.name(),
            uuid: uuid.to_owned(),
            reason: error.to_string(),
        })?;
        Ok(Arc::new(NvmlGpu::new(nvml, device)))
    }

    fn period(&self) -> Option<Duration> {
        Some(PERIOD)
    }
}

/// The library, loaded once and never unloaded.
fn library() -> Result<&'static Nvml, NoTelemetry> {
    static LIBRARY: OnceLock<Result<Nvml, NoTelemetry>> = OnceLock::new();
    LIBRARY
        .get_or_init(|| Nvml::builder().lib_path(NVML_LIBRARY.as_ref()).init().map_err(failed))
        .as_ref()
        .map_err(Clone::clone)
}

fn failed(error: NvmlError) -> NoTelemetry {
    match error {
        NvmlError::LibloadingError(_) => NoTelemetry::NoLibrary,
        error => NoTelemetry::Failed(error.to_string()),
    }
}

fn refusal(error: NvmlError) -> Refusal {
    match error {
        // A function that the driver's library lacks is a query that it does not support.
        NvmlError::NotSupported | NvmlError::FailedToLoadSymbol(_) | NvmlError::FunctionNotFound => {
            Refusal::NotSupported
        }
        NvmlError::NoPermission => Refusal::NoPermission,
        NvmlError::GpuLost | NvmlError::ResetRequired => Refusal::GpuLost,
        error => Refusal::Failed(error.to_string()),
    }
}

/// A GPU, or a slice of one.
struct NvmlGpu {
    nvml: &'static Nvml,
    /// What the worker uses: memory and activity are its own.
    device: Device<'static>,
    /// The board of a slice, which has the clocks and the temperature, and the slice's number on it.
    board: Option<(Device<'static>, Result<u32, Refusal>)>,
    started: Instant,
    /// The state of the activity counters at the beginning of the interval.
    activity: Mutex<Option<GpmSample<'static>>>,
}

impl NvmlGpu {
    fn new(nvml: &'static Nvml, device: Device<'static>) -> NvmlGpu {
        let is_slice = device.mig_is_mig_device_handle().unwrap_or(false);
        let board = if is_slice { device.mig_parent_device().ok() } else { None };
        let board = board.map(|board| (board, slice_number(nvml, &device).map_err(refusal)));
        NvmlGpu { nvml, device, board, started: Instant::now(), activity: Mutex::new(None) }
    }

    fn board(&self) -> &Device<'static> {
        self.board.as_ref().map_or(&self.device, |(board, _)| board)
    }

    /// Power and energy are the whole board's, which a slice shares with others.
    fn unless_shared<T>(&self, value: impl FnOnce(&Device<'static>) -> Result<T, Refusal>) -> Result<T, Refusal> {
        match &self.board {
            None => value(&self.device),
            Some(_) => Err(Refusal::Failed("a slice shares its board's power with others".to_owned())),
        }
    }

    fn activity_sample(&self) -> Result<GpmSample<'static>, Refusal> {
        match &self.board {
            None => self.device.gpm_sample().map_err(refusal),
            Some((board, slice)) => board.gpm_mig_sample(slice.clone()?).map_err(refusal),
        }
    }

    /// Percentages of the memory's bandwidth and of the tensor cores' time since the interval began.
    fn activity_since_begin(&self) -> [Result<f64, Refusal>; 2] {
        let begin = self.activity.lock().expect("no thread panics while it holds it").take();
        let metrics = begin.ok_or(Refusal::NotSupported).and_then(|begin| {
            let end = self.activity_sample()?;
            gpm_metrics_get(self.nvml, &begin, &end, &[GpmMetricId::DramBwUtil, GpmMetricId::AnyTensorUtil])
                .map_err(refusal)
        });
        match metrics {
            Err(refused) => [Err(refused.clone()), Err(refused)],
            Ok(metrics) => {
                let mut metrics = metrics.into_iter().map(|metric| metric.map(|it| it.value).map_err(refusal));
                [(); 2].map(|()| metrics.next().unwrap_or(Err(Refusal::NotSupported)))
            }
        }
    }
}

impl Gpu for NvmlGpu {
    fn state(&self) -> GpuState {
        let (device, board) = (&self.device, self.board());
        GpuState {
            index: board.index().unwrap_or(u32::MAX),
            name: device.name().or_else(|_| board.name()).unwrap_or_else(|_| "unknown".to_owned()),
            uuid: device.uuid().ok(),
            driver_version: self.nvml.sys_driver_version().ok(),
            vbios_version: board.vbios_version().ok(),
            power_limit_w: board.enforced_power_limit().ok().map(|milliwatts| f64::from(milliwatts) / 1000.0),
            temperature_c: board.temperature(TemperatureSensor::Gpu).ok(),
            ecc: board.is_ecc_enabled().ok().map(|ecc| ecc.currently_enabled),
            mig: board.mig_mode().ok().map(|mode| mode.current != 0),
            compute_processes: device.running_compute_processes().ok().map(|processes| processes.len()),
            set_clock_mhz: board.applications_clock(Clock::Graphics).ok(),
            sm_clock_max_mhz: board.max_clock_info(Clock::SM).ok(),
            memory_clock_max_mhz: board.max_clock_info(Clock::Memory).ok(),
            memory_bus_bits: board.memory_bus_width().ok(),
            activity: board.gpm_support().ok(),
        }
    }

    fn read(&self, pid: u32, moment: Moment) -> Reading {
        let board = self.board();
        let mut reading = Reading { at_ns: self.started.elapsed().as_nanos() as u64, ..Reading::default() };
        let refused = &mut reading.refused;
        let mut keep = |name: &str, refusal: Refusal| {
            refused.insert(name.to_owned(), refusal);
        };
        macro_rules! ask {
            ($field:ident, $answer:expr) => {
                match $answer {
                    Ok(value) => reading.$field = Some(value),
                    Err(refusal) => keep(stringify!($field), refusal),
                }
            };
        }
        ask!(sm_clock_mhz, board.clock_info(Clock::SM).map_err(refusal));
        ask!(memory_clock_mhz, board.clock_info(Clock::Memory).map_err(refusal));
        ask!(power_milliwatts, self.unless_shared(power_milliwatts));
        ask!(energy_millijoules, self.unless_shared(|device| device.total_energy_consumption().map_err(refusal)));
        ask!(temperature_c, board.temperature(TemperatureSensor::Gpu).map_err(refusal));
        ask!(memory_temperature_c, field(board, field_id::NVML_FI_DEV_MEMORY_TEMP).map(|degrees| degrees as u32));
        ask!(throttle_reasons, board.current_throttle_reasons().map(|mask| mask.bits()).map_err(refusal));
        ask!(slowdown_ns, SLOWDOWN_COUNTERS.iter().map(|&counter| field(board, counter)).sum::<Result<u64, _>>());
        ask!(process_memory_bytes, process_memory_bytes(&self.device, pid));
        ask!(
            ecc_uncorrected_errors,
            board.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile).map_err(refusal)
        );
        match moment {
            Moment::Begin => {
                *self.activity.lock().expect("no thread panics while it holds it") = self.activity_sample().ok();
            }
            Moment::During => {}
            Moment::End => {
                let [memory, tensor] = self.activity_since_begin();
                ask!(memory_activity_percent, memory);
                ask!(tensor_activity_percent, tensor);
            }
        }
        reading
    }
}

/// Power now where the GPU tells: what `nvmlDeviceGetPowerUsage` gives since Ampere is an average over a second.
fn power_milliwatts(device: &Device<'static>) -> Result<u32, Refusal> {
    field(device, field_id::NVML_FI_DEV_POWER_INSTANT)
        .map(|milliwatts| milliwatts as u32)
        .or_else(|_| device.power_usage().map_err(refusal))
}

/// A field value that is a number of at least 0.
fn field(device: &Device<'static>, id: u32) -> Result<u64, Refusal> {
    let mut values = device.field_values_for(&[FieldId(id)]).map_err(refusal)?;
    let sample = values.pop().ok_or(Refusal::NotSupported)?.map_err(refusal)?;
    match sample.value.map_err(refusal)? {
        SampleValue::U32(value) => Ok(value.into()),
        SampleValue::U64(value) => Ok(value),
        SampleValue::I64(value) => u64::try_from(value).map_err(|_| Refusal::Failed(format!("{value} is negative"))),
        SampleValue::F64(value) => Ok(value as u64),
    }
}

fn process_memory_bytes(device: &Device<'static>, pid: u32) -> Result<u64, Refusal> {
    let processes = device.running_compute_processes().map_err(refusal)?;
    match processes.iter().find(|process| process.pid == pid).map(|process| &process.used_gpu_memory) {
        Some(UsedGpuMemory::Used(bytes)) => Ok(*bytes),
        Some(UsedGpuMemory::Unavailable) => Err(Refusal::NotSupported),
        None => Err(Refusal::Failed(
            "the driver lists no process of this number: it uses no memory, or counts processes in another container"
                .to_owned(),
        )),
    }
}

/// A slice's number on its board, for which the wrapper has no function.
fn slice_number(nvml: &'static Nvml, device: &Device<'static>) -> Result<u32, NvmlError> {
    let function = nvml.lib().nvmlDeviceGetGpuInstanceId.as_ref();
    let function = function.map_err(|error| NvmlError::FailedToLoadSymbol(error.to_string()))?;
    let mut number = 0;
    // SAFETY: the handle is a live device's, since the library is never unloaded, and the number is valid for writes.
    nvml_try(unsafe { function(device.handle(), &mut number) })?;
    Ok(number)
}
