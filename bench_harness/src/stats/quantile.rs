//! Quantiles with distribution-free intervals from order statistics.
//!
//! The number of samples below the true p-quantile is binomial(n, p) whatever the distribution is, so two order
//! statistics enclose it with a known probability (David and Nagaraja, Order Statistics, 3rd ed., section 7.1).

use super::{Interval, sorted};

/// The median; of an even number of values the mean of the middle two. `None` when empty or not finite.
pub fn median(values: &[f64]) -> Option<f64> {
    let values = sorted(values)?;
    Some(median_of_sorted(&values))
}

/// The median of values in order, of which there is at least one.
pub(crate) fn median_of_sorted(values: &[f64]) -> f64 {
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { 0.5 * (values[middle - 1] + values[middle]) }
}

/// Whether `n` samples say anything about the p-quantile: at least one is to be expected beyond it on either side, so the
/// median needs 2 samples, p99 needs 100 and p999 needs 1000.
pub fn supports(n: usize, p: f64) -> bool {
    let tail = p.min(1.0 - p);
    // The margin keeps 100 * (1 - 0.99) from falling below one by rounding.
    tail > 0.0 && n as f64 * tail >= 1.0 - 1e-9
}

/// The p-quantile, linearly interpolated between order statistics (Hyndman and Fan, 1996, type 7).
/// `None` when the sample does not [`supports`] it, is empty or is not finite.
pub fn quantile(values: &[f64], p: f64) -> Option<f64> {
    if !supports(values.len(), p) {
        return None;
    }
    let values = sorted(values)?;
    let position = p * (values.len() - 1) as f64;
    let below = position.floor() as usize;
    let above = (below + 1).min(values.len() - 1);
    Some(values[below] + (position - below as f64) * (values[above] - values[below]))
}

/// The narrowest pair of order statistics that encloses the p-quantile with at least `confidence`, an equal share of the
/// risk on either side. `None` when no pair does: below 6 samples for the median at 95 %.
pub fn quantile_interval(values: &[f64], p: f64, confidence: f64) -> Option<Interval> {
    attainable_interval(values, p, confidence).filter(|interval| interval.confidence >= confidence)
}

/// The [`quantile_interval`], or, where the sample is too small for it on a side, one that reaches to the smallest or
/// largest value there and states the confidence that it has. `None` when empty or not finite.
pub fn attainable_interval(values: &[f64], p: f64, confidence: f64) -> Option<Interval> {
    let values = sorted(values)?;
    let last = values.len() - 1;
    let risk = 0.5 * (1.0 - confidence);
    let cumulative = binomial_cumulative(values.len(), p);
    // With ends at the samples number `low` and `high`, counted from zero, the interval misses when at most `low`
    // samples, or more than `high`, lie below the quantile.
    let low = cumulative.iter().take_while(|&&at_most| at_most <= risk).count().saturating_sub(1).min(last);
    let high = (low + 1..last).find(|&high| 1.0 - cumulative[high] <= risk).unwrap_or(last);
    let attained = (cumulative[high] - cumulative[low]).max(0.0);
    Some(Interval { low: values[low], high: values[high], confidence: attained })
}

/// The [`attainable_interval`] of the median.
pub fn median_interval(values: &[f64], confidence: f64) -> Option<Interval> {
    attainable_interval(values, 0.5, confidence)
}

/// P(X <= k) of X ~ binomial(n, p) for k = 0 to n.
fn binomial_cumulative(n: usize, p: f64) -> Vec<f64> {
    let log_odds = p.ln() - (1.0 - p).ln();
    let mut log_mass = n as f64 * (1.0 - p).ln();
    let mut total = 0.0;
    (0..=n)
        .map(|k| {
            total += log_mass.exp();
            log_mass += ((n - k) as f64).ln() - ((k + 1) as f64).ln() + log_odds;
            total.min(1.0)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_pcg::Pcg64;

    #[test]
    fn medians() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[4.0, 1.0]), Some(2.5));
        assert_eq!(median(&[9.0, 1.0, 5.0]), Some(5.0));
        assert_eq!(median(&[1.0, f64::NAN]), None);
        assert_eq!(median(&[1.0, f64::INFINITY]), None);
    }

    #[test]
    fn percentiles_need_their_samples() {
        let values: Vec<f64> = (0..100).map(f64::from).collect();
        assert_eq!(quantile(&values[..99], 0.99), None);
        assert!((quantile(&values, 0.99).unwrap() - 98.01).abs() < 1e-9);
        assert_eq!(quantile(&values, 0.999), None);
        assert_eq!(quantile(&values, 0.0), None);
        assert_eq!(quantile(&values, 1.0), None);
        assert!((quantile(&values, 0.5).unwrap() - 49.5).abs() < 1e-12);
    }

    /// Table of the ranks that enclose a median with 95 % confidence (Conover, Practical Nonparametric Statistics, 3rd
    /// ed., section 3.2; counted from one): n = 6: 1 and 6; 10: 2 and 9; 20: 6 and 15; 100: 40 and 61.
    #[test]
    fn median_interval_ranks() {
        for (n, low, high, confidence) in
            [(6, 1, 6, 0.96875), (10, 2, 9, 0.978515625), (20, 6, 15, 0.958610535), (100, 40, 61, 0.9647998)]
        {
            let values: Vec<f64> = (1..=n).map(f64::from).collect();
            let interval = quantile_interval(&values, 0.5, 0.95).unwrap();
            assert_eq!((interval.low, interval.high), (f64::from(low), f64::from(high)), "n = {n}");
            assert!((interval.confidence - confidence).abs() < 1e-6, "n = {n}: {}", interval.confidence);
        }
        assert_eq!(quantile_interval(&[1.0, 2.0, 3.0, 4.0, 5.0], 0.5, 0.95), None);
    }

    #[test]
    fn small_samples_state_what_they_attain() {
        let interval = median_interval(&[3.0, 1.0, 2.0, 5.0, 4.0], 0.95).unwrap();
        assert_eq!((interval.low, interval.high), (1.0, 5.0));
        assert!((interval.confidence - 0.9375).abs() < 1e-12);
        assert!(median_interval(&[7.0], 0.95).unwrap().confidence < 1e-12);
    }

    #[test]
    fn many_samples_do_not_underflow() {
        let values: Vec<f64> = (0..100_000).map(f64::from).collect();
        let interval = quantile_interval(&values, 0.5, 0.95).unwrap();
        assert!((interval.high - interval.low - 620.0).abs() < 4.0, "{interval:?}");
        assert!(quantile_interval(&values, 0.99, 0.95).is_some());
    }

    #[test]
    fn the_interval_covers_whatever_the_distribution() {
        let mut rng = Pcg64::seed_from_u64(1);
        let covered = (0..4000)
            .filter(|_| {
                // A skewed distribution whose median is ln 2.
                let values: Vec<f64> = (0..25).map(|_| -f64::ln(1.0 - rng.random::<f64>())).collect();
                let interval = quantile_interval(&values, 0.5, 0.95).unwrap();
                interval.low <= std::f64::consts::LN_2 && std::f64::consts::LN_2 <= interval.high
            })
            .count();
        assert!((3780..=3920).contains(&covered), "{covered} of 4000");
    }
}
