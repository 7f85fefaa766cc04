//! Where the level of a series changes for good.
//!
//! Series of benchmarks have spikes, two modes, excursions that go away, noise that remembers, and machines that drift; a
//! detector that takes independent normal noise for granted finds steps in all of them. This one
//!
//! 1. sets aside values that belong neither to the level before nor to the one after ([`outliers`]);
//! 2. takes candidates from the best piecewise constant fit at a low price ([`partition`]);
//! 3. drops candidates one by one, the least convincing first, until each that is left passes two likelihood ratio tests
//!    in the presence of all others, with the noise estimated anew on either side of the comparison:
//!    - it must explain more than chance does anywhere in a series of this length, in white or autoregressive noise
//!      ([`short_memory`]; the asymptotic law of the largest of all splits: Csörgő and Horváth, Limit Theorems in
//!      Change-Point Analysis, 1997, eq. 1.3.26);
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

mod gone;
mod long;
mod noise;
mod outliers;
mod partition;
mod short_memory;

use std::cell::OnceCell;

use serde::{Deserialize, Serialize};

use super::{Interval, normal};
use gone::Lengths;
use noise::{Filter, Fit, best_fit, correlations, legendre, long_memory};
use short_memory::RunningSums;

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
        Settings { false_alarm: 0.003, drift_margin: 1.5, trend_margin: 8.2, confidence: 0.95 }
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

/// How values were scaled, and where the series ends.
#[derive(Clone, Copy)]
struct Scale {
    is_positive: bool,
    end: usize,
}

/// Values that belong to levels, and where they come from.
struct Series {
    values: Vec<f64>,
    places: Vec<usize>,
    /// Values that belong to no level that stayed, by their places.
    aside: Vec<(usize, f64)>,
    /// What was subtracted from the values.
    centre: f64,
    /// Smallest sum of squared innovations that is taken for possible, by the values' resolution.
    least_squares: f64,
    sums: RunningSums,
    /// How likely the values are without any change, once that was asked for.
    drift: OnceCell<Drift>,
}

/// Twice the log likelihood of values without a change.
#[derive(Clone, Copy)]
struct Drift {
    /// In noise that may wander.
    no_change: f64,
    /// Around a line.
    trend: f64,
    /// In the likeliest of wandering noise and curves.
    any: f64,
}

impl Drift {
    fn of(series: &Series) -> Drift {
        let no_change = series.in_any_noise(&[]);
        let trend = series.with_curve(&[], 1);
        Drift { no_change, trend, any: no_change.max(series.with_curve(&[], 3)).max(series.with_curve(&[], 5)) }
    }
}

impl Series {
    fn new(values: Vec<f64>, places: Vec<usize>, quantum: f64) -> Series {
        let mut sorted = values.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let centre = sorted.get(sorted.len() / 2).copied().unwrap_or(0.0);
        let values: Vec<f64> = values.iter().map(|value| value - centre).collect();
        // Rounding to a quantum adds noise of a twelfth of its square; nothing is more regular than that, nor than a
        // billionth of what there is.
        let largest = values.iter().fold(f64::MIN_POSITIVE, |most, value| most.max(value.abs()));
        let resolution = quantum.max(1e-9 * largest);
        let least_squares = (values.len() as f64 * resolution * resolution / 12.0).max(f64::MIN_POSITIVE);
        let sums = RunningSums::new(&values);
        Series { values, places, aside: Vec::new(), centre, least_squares, sums, drift: OnceCell::new() }
    }

    /// Where changes may be: the best piecewise constant fit at a price that clean series of the same noise often pay.
    fn candidates(&self) -> Vec<usize> {
        let Some(variance) = long_run_variance(&self.values) else { return Vec::new() };
        let floor = self.least_squares / self.values.len() as f64;
        partition::partition(&self.values, CANDIDATE_PRICE * variance.max(floor), SHORTEST_LEVEL)
    }

    /// Twice the log likelihood, but for a constant.
    fn likelihood(&self, fit: Option<&Fit>) -> f64 {
        let n = self.values.len() as f64;
        fit.map_or(f64::NEG_INFINITY, |fit| -n * ((fit.squares + self.least_squares) / n).ln())
    }

    /// Levels that change there, in the likeliest noise of a stable machine.
    fn levels(&self, changes: &[usize]) -> Option<Fit> {
        let n = self.values.len();
        correlations()
            .filter_map(|correlation| self.sums.fit(0, n, changes, correlation))
            .min_by(|a, b| a.squares.total_cmp(&b.squares))
    }

    fn in_stable_noise(&self, changes: &[usize]) -> f64 {
        self.likelihood(self.levels(changes).as_ref())
    }

    /// Twice the log likelihood of levels that change there in noise that may wander, less the cost of its second weight.
    fn in_any_noise(&self, changes: &[usize]) -> f64 {
        let wandering = best_fit(&self.values, changes, &[], &long_memory());
        self.in_stable_noise(changes).max(self.likelihood(wandering.as_ref()) - 2.0)
    }

    /// Twice the log likelihood of levels and a polynomial through all of them, less the cost of its weights.
    fn with_curve(&self, changes: &[usize], degree: usize) -> f64 {
        let filters: Vec<Filter> = correlations().step_by(3).map(|memory| Filter { memory, gain: 1.0 }).collect();
        let curves = legendre(degree, self.values.len());
        self.likelihood(best_fit(&self.values, changes, &curves, &filters).as_ref()) - 2.0 * degree as f64
    }

    /// Drops candidates until each that is left is convincing, and moves those that are to their best places.
    fn settle(&self, mut changes: Vec<usize>, settings: &Settings) -> Vec<usize> {
        loop {
            changes = self.moved(&changes, 0.0);
            if let Some(fit) = self.levels(&changes) {
                changes = self.moved(&changes, fit.filter.memory);
            }
            let Some(weakest) =
                self.weakest_by_chance(&changes, settings).or_else(|| self.weakest_by_drift(&changes, settings))
            else {
                return changes;
            };
            changes.remove(weakest);
        }
    }

    /// The change that stable noise makes most easily, unless that is too rare for all of them.
    fn weakest_by_chance(&self, changes: &[usize], settings: &Settings) -> Option<usize> {
        let with = self.in_stable_noise(changes);
        let gains = (0..changes.len()).map(|which| with - self.in_stable_noise(&without(changes, which)));
        let (weakest, gain) = gains.enumerate().min_by(|a, b| a.1.total_cmp(&b.1))?;
        let length = self.neighbourhood(changes, weakest).len();
        (tail_of_largest_split(gain, length) > settings.false_alarm).then_some(weakest)
    }

    /// The change that drift replaces most easily, unless drift is worse than each of them and than all together.
    fn weakest_by_drift(&self, changes: &[usize], settings: &Settings) -> Option<usize> {
        if changes.is_empty() {
            return None;
        }
        let count = changes.len() as f64;
        let with = self.in_any_noise(changes);
        let Drift { no_change, trend, any } = *self.drift.get_or_init(|| Drift::of(self));
        let gains = (0..changes.len()).map(|which| {
            let others = without(changes, which);
            let drift = if others.is_empty() {
                no_change
            } else {
                self.in_any_noise(&others).max(self.with_curve(&others, 1)).max(self.with_curve(&others, 3))
            };
            with - drift - COST_OF_A_STEP
        });
        let (weakest, gain) = gains.enumerate().min_by(|a, b| a.1.total_cmp(&b.1))?;
        let all = with - COST_OF_A_STEP * count;
        let is_convincing = gain >= settings.drift_margin
            && all - trend >= settings.trend_margin * count
            && all - any >= settings.drift_margin + settings.trend_margin * (count - 1.0);
        (!is_convincing).then_some(weakest)
    }

    /// From the change before to the one after.
    fn neighbourhood(&self, changes: &[usize], which: usize) -> std::ops::Range<usize> {
        let start = if which == 0 { 0 } else { changes[which - 1] };
        start..changes.get(which + 1).copied().unwrap_or(self.values.len())
    }

    /// Each change where the sum of squares is least between its neighbours, in noise of that correlation.
    fn moved(&self, changes: &[usize], correlation: f64) -> Vec<usize> {
        let mut changes = changes.to_vec();
        for _ in 0..2 {
            for which in 0..changes.len() {
                let profile = self.profile(&changes, which, correlation);
                if let Some((place, _)) = profile.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1)) {
                    changes[which] = place;
                }
            }
        }
        changes
    }

    /// The sum of squares for each place of one change, around where it is. Its neighbours' levels are fitted with it, and
    /// nothing beyond them depends on its place.
    fn profile(&self, changes: &[usize], which: usize, correlation: f64) -> Vec<(usize, f64)> {
        let now = changes[which];
        let range = self.neighbourhood(changes, which);
        let low = (range.start + SHORTEST_LEVEL).max(now.saturating_sub(REACH));
        let high = range.end.saturating_sub(SHORTEST_LEVEL).min(now + REACH);
        (low..=high)
            .filter_map(|place| Some((place, self.sums.fit(range.start, range.end, &[place], correlation)?.squares)))
            .collect()
    }

    fn describe(&self, changes: &[usize], settings: &Settings, scale: Scale) -> Vec<ChangePoint> {
        let Some(fit) = self.levels(changes) else { return Vec::new() };
        let n = self.values.len() as f64;
        let deviation = ((fit.squares + self.least_squares) / n).sqrt();
        let z = normal::quantile(0.5 * (1.0 + settings.confidence)).unwrap_or(f64::INFINITY);
        let with = self.likelihood(Some(&fit));
        let mut level = self.centre + fit.sizes[0];
        (0..changes.len())
            .map(|which| {
                let profile = self.profile(changes, which, fit.filter.memory);
                let place = place(&profile, deviation * deviation, settings.confidence).unwrap_or(Place {
                    best: changes[which],
                    low: changes[which],
                    high: changes[which],
                });
                let (step, error) = (fit.sizes[which + 1], z * deviation * fit.errors[which + 1]);
                let before = level;
                level += step;
                let unscaled = |value: f64| if scale.is_positive { value.exp() } else { value };
                let relative = |step: f64| if scale.is_positive { step.exp_m1() } else { step / before.abs() };
                let gain = with - self.in_stable_noise(&without(changes, which));
                let index = self.places[place.best];
                let is_last = which + 1 == changes.len();
                ChangePoint {
                    index,
                    // Values that were set aside in between may be of either level.
                    index_low: self.places[place.low.max(1) - 1] + 1,
                    index_high: self.places[place.high],
                    before: unscaled(before),
                    after: unscaled(level),
                    size: relative(step),
                    size_interval: Interval {
                        low: relative(step - error),
                        high: relative(step + error),
                        confidence: settings.confidence,
                    },
                    confidence: 1.0 - tail_of_largest_split(gain, self.neighbourhood(changes, which).len()),
                    provisional: scale.end - index <= PROVISIONAL
                        || is_last && self.may_go_away(changes[which], level - self.centre, step),
                }
            })
            .collect()
    }
}

/// All changes but one.
fn without(changes: &[usize], which: usize) -> Vec<usize> {
    let mut others = changes.to_vec();
    others.remove(which);
    others
}

/// Where a change is, and where it may be.
#[derive(Clone, Copy)]
struct Place {
    best: usize,
    low: usize,
    high: usize,
}

/// The place of least expected error where each place is as likely as its share of the likelihood says, errors beyond
/// [`FAR`] counting alike; and the shortest run of places around the likeliest that holds the change with that confidence.
fn place(profile: &[(usize, f64)], variance: f64, confidence: f64) -> Option<Place> {
    let least = profile.iter().map(|&(_, squares)| squares).fold(f64::INFINITY, f64::min);
    let weights: Vec<f64> = profile.iter().map(|&(_, squares)| (-0.5 * (squares - least) / variance).exp()).collect();
    let total: f64 = weights.iter().sum();
    let loss = |at: usize| -> f64 {
        weights.iter().enumerate().map(|(other, weight)| weight * other.abs_diff(at).min(FAR) as f64).sum()
    };
    let best = (0..profile.len()).map(|at| (at, loss(at))).min_by(|a, b| a.1.total_cmp(&b.1))?.0;
    let (mut low, mut high) = (best, best);
    let mut held = weights[best];
    while held < confidence * total && (low > 0 || high + 1 < weights.len()) {
        let left = if low > 0 { weights[low - 1] } else { -1.0 };
        let right = weights.get(high + 1).copied().unwrap_or(-1.0);
        if left >= right {
            low -= 1;
            held += left;
        } else {
            high += 1;
            held += right;
        }
    }
    Some(Place { best: profile[best].0, low: profile[low].0, high: profile[high].0 })
}

/// An error in place beyond which all are alike: the wrong commits are looked at.
const FAR: usize = 6;
/// Price of a candidate, in long-run variances.
const CANDIDATE_PRICE: f64 = 9.0;
/// What a step may gain for nothing, as two parameters do (Akaike, 1974).
const COST_OF_A_STEP: f64 = 4.0;
/// How far a change is moved from its candidate's place.
const REACH: usize = 40;

/// Chance that the best split of n values of noise gains at least `gain` in twice the log likelihood (Csörgő and Horváth,
/// 1997, eq. 1.3.26, for one parameter, with [`SHORTEST_LEVEL`] values left at either end).
fn tail_of_largest_split(gain: f64, n: usize) -> f64 {
    if gain <= 1.0 {
        return 1.0;
    }
    let trimmed = (SHORTEST_LEVEL as f64 / n as f64).min(0.4);
    let span = ((1.0 - trimmed).powi(2) / trimmed.powi(2)).ln();
    let x = gain.sqrt();
    let density = x * (-0.5 * gain).exp() / (2.0 * std::f64::consts::PI).sqrt();
    (density * (span * (1.0 - 1.0 / gain) + 4.0 / gain)).clamp(0.0, 1.0)
}

/// The variance of means, times their length, of a series that may have steps: from differences of neighbours and of next
/// neighbours, which steps hardly touch (Chakar et al., 2017, section 2, for first-order noise). Extreme differences are
/// those of steps and are cut off.
fn long_run_variance(values: &[f64]) -> Option<f64> {
    let one = difference_variance(values, 1)?;
    let two = difference_variance(values, 2)?;
    if one <= 0.0 {
        return Some(two.max(0.0));
    }
    let correlation = (two / one - 1.0 - 0.1).clamp(0.0, 0.8);
    Some(0.5 * one / (1.0 - correlation) * (1.0 + correlation) / (1.0 - correlation))
}

fn difference_variance(values: &[f64], lag: usize) -> Option<f64> {
    let mut differences: Vec<f64> = values.iter().skip(lag).zip(values).map(|(a, b)| (a - b).abs()).collect();
    if differences.len() < 2 {
        return None;
    }
    differences.sort_unstable_by(f64::total_cmp);
    let limit = 4.0 * 1.4826 * differences[differences.len() / 2];
    let n = differences.len() as f64;
    Some(differences.iter().map(|d| if limit > 0.0 { d.min(limit) } else { *d }).map(|d| d * d).sum::<f64>() / n)
}
