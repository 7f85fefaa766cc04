//! What a calibration adds to calls on a GPU: a kernel that does nothing for a share of the call's own time.
//!
//! It is launched like any other, which costs the device something of its own; that is measured and taken off, so that what
//! is added is what was asked for.

use crate::stats::quantile::median;
use crate::worker::protocol::{ErrorKind, WorkerError};

/// Samples of each kind: medians of so many tell well enough how long a kernel is to be.
const SAMPLES: usize = 9;

/// How long a kernel after each sample is to do nothing, in nanoseconds, so that the sample takes this share longer.
/// `sample` takes the time of one: with no such kernel, or with one of a length.
///
/// # Errors
/// Of `sample`; and `unsupported` where an empty kernel alone adds more than the share.
pub(super) fn spin_of(
    share: f64,
    sample: &mut dyn FnMut(Option<u64>) -> Result<f64, WorkerError>,
) -> Result<u64, WorkerError> {
    let (mut plain, mut with_empty) = (Vec::new(), Vec::new());
    for _ in 0..SAMPLES {
        // In turns, so that clocks that rise or fall meanwhile do so for both.
        plain.push(sample(None)?);
        with_empty.push(sample(Some(0))?);
    }
    let middle = |samples: &[f64]| median(samples).expect("there are samples");
    let call_ns = middle(&plain);
    let launch_ns = (middle(&with_empty) - call_ns).max(0.0);
    let wanted_ns = share * call_ns;
    if wanted_ns < launch_ns {
        let message = format!(
            "slowing a sample of {call_ns:.0} ns down by {:.1} % takes less than the {launch_ns:.0} ns of another launch: \
             calibrate with longer problems",
            100.0 * share
        );
        return Err(WorkerError::new(ErrorKind::Unsupported, message));
    }
    Ok((wanted_ns - launch_ns) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device on which a call takes so long, and a further launch so much.
    fn device(call_ns: f64, launch_ns: f64) -> impl FnMut(Option<u64>) -> Result<f64, WorkerError> {
        let mut count = 0;
        move |spin| {
            count += 1;
            // Clocks rise meanwhile, and one sample is disturbed.
            let drift = 1.0 - 0.001 * f64::from(count) + if count == 4 { 5.0 } else { 0.0 };
            Ok(drift * (call_ns + spin.map_or(0.0, |spin_ns| launch_ns + spin_ns as f64)))
        }
    }

    #[test]
    fn a_share_is_added_whatever_a_launch_costs() {
        for (call_ns, launch_ns, share) in [(1e6, 2000.0, 0.05), (40_000.0, 1500.0, 0.1), (1e6, 0.0, 1.0)] {
            let spin_ns = spin_of(share, &mut device(call_ns, launch_ns)).expect("long enough");
            let slowed = call_ns + launch_ns + spin_ns as f64;
            let added = slowed / call_ns - 1.0;
            assert!((added / share - 1.0).abs() < 0.05, "{added} and not {share}");
        }
    }

    #[test]
    fn short_calls_are_refused_and_faults_passed_on() {
        let error = spin_of(0.02, &mut device(10_000.0, 2000.0)).expect_err("200 ns are less than a launch");
        assert_eq!(error.kind, ErrorKind::Unsupported);
        assert!(error.message.contains("down by 2.0 %"), "{}", error.message);
        let fault = WorkerError::new(ErrorKind::KernelError, "gone");
        assert_eq!(spin_of(0.1, &mut |_| Err(fault.clone())), Err(fault));
    }
}
