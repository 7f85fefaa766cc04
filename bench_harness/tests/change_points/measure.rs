//! What the detector does with simulated series.

use std::ops::Range;

use attnbench::stats::change_point::{Settings, change_points};

use crate::series::{Noise, generator, with_step};
use crate::simulated::Share;

/// Values of a series.
pub(crate) const LENGTH: usize = 300;
/// A change this near to the step has found it.
pub(crate) const NEAR: usize = 5;

/// Clean series with a change that is not provisional.
pub(crate) fn false_alarms(noise: Noise, series: Range<u64>) -> Share {
    let of = series.end - series.start;
    let alarms = series.filter(|&number| {
        let values = noise.series(LENGTH, &mut generator(1, number));
        change_points(&values, &Settings::default()).iter().any(|change| !change.provisional)
    });
    Share { of, count: alarms.count() as u64 }
}

/// What was made of series with one step.
pub(crate) struct Found {
    /// A change within [`NEAR`] values of the step.
    pub(crate) near: Share,
    /// More changes than the one step.
    pub(crate) extra: Share,
    /// The step's place is in the interval of a change.
    pub(crate) covered: Share,
}

/// Series of this noise with a step of this relative size.
pub(crate) fn power(noise: Noise, size: f64, series: Range<u64>) -> Found {
    let of = series.end - series.start;
    let (mut near, mut extra, mut covered) = (0, 0, 0);
    for number in series {
        let (values, index) = with_step(noise, LENGTH, size, &mut generator(2, number));
        let mut changes = change_points(&values, &Settings::default());
        changes.retain(|change| !change.provisional);
        near += u64::from(changes.iter().any(|change| change.index.abs_diff(index) <= NEAR));
        extra += u64::from(changes.len() > 1);
        covered += u64::from(changes.iter().any(|change| (change.index_low..=change.index_high).contains(&index)));
    }
    let share = |count| Share { of, count };
    Found { near: share(near), extra: share(extra), covered: share(covered) }
}
