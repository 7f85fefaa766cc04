//! Where the level of a series changes for good.
//!
//! Series of benchmarks have spikes, two modes, excursions that go away, noise that remembers, and machines that drift; a
//! detector that takes independent normal noise for granted finds steps in all of them. This one
//!
//! 1. sets aside values that belong neither to the level before nor to the one after ([`outliers`]);
//! 2. takes candidates from the best piecewise constant fit at a low price ([`partition`]);
//! 3. drops candidates one by one, the least convincing first, until each that is left passes three tests in the presence
//!    of all others, with the noise estimated anew on either side of each comparison ([`settle`]):
//!    - it must explain more than chance does anywhere in a series of this length, in white or autoregressive noise
//!      ([`short_memory`]; the asymptotic law of the largest of all splits: Csörgő and Horváth, Limit Theorems in
//!      Change-Point Analysis, 1997, eq. 1.3.26);
//!    - it must be large beside the scatter of the values on its own two sides, where the machine became noisier;
//!    - it must explain the series better than noise that wanders, or a curve, does without it ([`noise`]): a drift is no
//!      step. Costs of parameters are those of Akaike (1974), the margins are calibrated by simulation;
//! 4. drops what went away again ([`gone`]), and starts over without those values;
//! 5. places each change where its error is expected to be least, by the normalised profile of the likelihood, from which
//!    its interval comes too.
//!
//! `cargo run --release -p attnbench --example change_points` measures false alarms and power in every kind of noise.
//!
//! Everything is deterministic. Positive series are judged by their logarithms, since noise and changes of times are
//! relative.

mod describe;
mod gone;
mod long;
mod noise;
mod outliers;
mod partition;
mod series;
mod settle;
mod short_memory;

use serde::{Deserialize, Serialize};

use super::Interval;
use describe::Scale;
use gone::Lengths;
use series::Series;

/// Fewest values of a level.
pub const SHORTEST_LEVEL: usize = 5;
/// A change with at most so many values after it may yet go away: it is provisional.
pub const PROVISIONAL: usize = 8;
/// Longest series that is searched value by value: the search takes up to the square of the length. Longer ones are searched
/// by the medians of blocks first ([`long`]).
pub const LONGEST_SERIES: usize = 5_000;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Chance of a change in a series that has none, of short-memory noise.
    pub false_alarm: f64,
    /// By how much twice the log likelihood of a change exceeds that of wandering noise without it: less finds smaller
    /// changes, and more drift.
    pub drift_margin: f64,
    /// The same for a trend instead of a lone change, and of each further change over drift.
    pub trend_margin: f64,
    /// Confidence of intervals.
    pub confidence: f64,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { false_alarm: 0.003, drift_margin: 1.5, trend_margin: 7.8, confidence: 0.95 }
    }
}

/// A change of level.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChangePoint {
    /// Index of the first value of the new level.
    pub index: usize,
    /// Smallest index of the interval that holds the true one.
    pub index_low: usize,
    /// Largest index of that interval.
    pub index_high: usize,
    /// Level before, in the values' unit.
    pub before: f64,
    /// Level after, in the values' unit.
    pub after: f64,
    /// Relative change: 0.03 is 3 % more.
    pub size: f64,
    /// Where the true size lies.
    pub size_interval: Interval,
    /// One minus the chance of a change as convincing in a series of this length without one.
    pub confidence: f64,
    /// Whether it may yet go away: it is within the last [`PROVISIONAL`] values, or lasts no longer than such a level of
    /// this series did before that went away ([`gone`]).
    pub provisional: bool,
}

/// The changes of level of a series in the order of time, ascending by index. Values that are not finite are passed over
/// like outliers.
pub fn change_points(values: &[f64], settings: &Settings) -> Vec<ChangePoint> {
    if values.len() > LONGEST_SERIES {
        return long::change_points_of_long(values, settings);
    }
    let mut places: Vec<usize> = (0..values.len()).filter(|&t| values[t].is_finite()).collect();
    let Some(&last) = places.last() else { return Vec::new() };
    let is_positive = places.iter().all(|&t| values[t] > 0.0);
    let scaled: Vec<f64> = places.iter().map(|&t| if is_positive { values[t].ln() } else { values[t] }).collect();
    let quantum = quantum(&scaled);
    let kept = outliers::inliers(&scaled, 0.5 * quantum);
    let mut is_kept = vec![false; scaled.len()];
    kept.iter().for_each(|&t| is_kept[t] = true);
    let aside: Vec<(usize, f64)> = (0..scaled.len()).filter(|&t| !is_kept[t]).map(|t| (places[t], scaled[t])).collect();
    places = kept.iter().map(|&t| places[t]).collect();
    let mut series = Series::new(kept.iter().map(|&t| scaled[t]).collect(), places, quantum);
    series.aside = aside.into_iter().map(|(place, value)| (place, value - series.centre)).collect();
    let lengths = Lengths::of(last + 1);
    let mut changes = series.candidates();
    loop {
        changes = series.settle(changes, settings);
        let Some(gone) = series.gone(&changes, lengths) else { break };
        changes = series.without(gone, &changes);
    }
    let scale = Scale { is_positive, end: values.len() };
    series.describe(&changes, settings, scale)
}

/// The smallest step between different values, below which nothing is known: large for coarse clocks and counts.
/// 0 where all values are equal.
fn quantum(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let gaps = sorted.windows(2).map(|pair| pair[1] - pair[0]).filter(|&gap| gap > 0.0);
    let smallest = gaps.fold(f64::INFINITY, f64::min);
    if smallest.is_finite() { smallest } else { 0.0 }
}
