//! What is said of each change that stayed: where, by how much, and how sure.

use super::series::Series;
use super::settle::{tail_of_largest_split, without};
use super::{ChangePoint, PROVISIONAL, Settings};
use crate::stats::{Interval, normal};

/// How values were scaled, and where the series ends.
#[derive(Clone, Copy)]
pub(super) struct Scale {
    pub(super) is_positive: bool,
    pub(super) end: usize,
}

impl Series {
    pub(super) fn describe(&self, changes: &[usize], settings: &Settings, scale: Scale) -> Vec<ChangePoint> {
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
