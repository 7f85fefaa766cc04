//! Whether this device's times can be believed: kernels of a known length, measured like any other.

use schemars::JsonSchema;
use serde::Serialize;

use super::compile::Compiler;
use super::context::Context;
use super::launch::LoadError;
use super::list::CudaDevice;
use super::timer::{How, Timer};
use crate::stats::quantile::median;

/// Lengths that are measured, in nanoseconds. Shorter ones would measure the steps of the device's timer and the microsecond
/// or two that a kernel takes to start and to end.
const SPINS_NS: [u64; 3] = [500_000, 1_000_000, 5_000_000];
/// Samples of each.
const SAMPLES: usize = 11;
/// How far the median may be off.
pub const TOLERANCE: f64 = 0.01;

/// What a device's self-test came to.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct SelfTest {
    /// The device.
    pub device: String,
    /// Requested and measured nanoseconds of each spin kernel.
    pub spins_ns: Vec<(u64, f64)>,
    /// Median of an empty interval: what the events themselves take.
    pub empty_ns: f64,
    /// Clock of the multiprocessors meanwhile, in MHz.
    pub clock_mhz: Option<f64>,
    /// Samples whose hold gave up.
    pub unheld: usize,
    /// Whether every median is within [`TOLERANCE`].
    pub pass: bool,
}

/// Measures them.
pub fn run(device: &CudaDevice) -> Result<SelfTest, LoadError> {
    let failed = |fault| LoadError::Driver { what: "the self-test".into(), fault };
    let context = Context::open(device).map_err(failed)?;
    let compiler = Compiler::new(device.compute_capability);
    let timer = Timer::new(&context, &compiler)?;
    let mut unheld = 0;
    let mut clocks = Vec::new();
    let mut measure = |duration_ns: Option<u64>| -> Result<f64, LoadError> {
        let mut work = || duration_ns.map_or(Ok(()), |duration_ns| timer.enqueue_spin(&context, duration_ns));
        // The first launch loads code.
        timer.time(&context, How { flush: false, hold: false }, &mut work, &mut || Ok(())).map_err(failed)?;
        let mut samples = Vec::new();
        for _ in 0..SAMPLES {
            let timing =
                timer.time(&context, How { flush: true, hold: true }, &mut work, &mut || Ok(())).map_err(failed)?;
            unheld += usize::from(!timing.is_held);
            clocks.extend(timing.clock_mhz);
            samples.push(timing.device_ns);
        }
        Ok(median(&samples).expect("there are samples"))
    };
    let empty_ns = measure(None)?;
    let mut spins_ns = Vec::new();
    for requested in SPINS_NS {
        spins_ns.push((requested, measure(Some(requested))?));
    }
    let pass = spins_ns.iter().all(|&(asked, measured)| (measured / asked as f64 - 1.0).abs() <= TOLERANCE);
    Ok(SelfTest { device: device.name.clone(), spins_ns, empty_ns, clock_mhz: median(&clocks), unheld, pass })
}
