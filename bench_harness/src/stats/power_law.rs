//! The exponent of a power law: how a time grows with a length.
//!
//! The slope of log y over log x by Theil and Sen: the median of the slopes of all pairs of points, which one disturbed
//! point does not move. Its interval inverts Kendall's test (Sen, 1968; Hollander and Wolfe, section 9.3).

use super::quantile::median_of_sorted;
use super::{Interval, sorted};

/// y grows as x to the `exponent`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PowerLaw {
    /// The exponent.
    pub exponent: f64,
    /// Its interval. Where the points are too few for the confidence asked for, it spans the slopes of all pairs, and its
    /// confidence says so.
    pub interval: Interval,
}

/// Fits a power law to points (x, y) of positive, finite numbers. `None` where there are none such or no two different x.
pub fn fit(points: &[(f64, f64)], confidence: f64) -> Option<PowerLaw> {
    let usable = |value: f64| value > 0.0 && value.is_finite();
    if !points.iter().all(|&(x, y)| usable(x) && usable(y)) {
        return None;
    }
    let logs: Vec<(f64, f64)> = points.iter().map(|(x, y)| (x.ln(), y.ln())).collect();
    let pairs = (0..logs.len()).flat_map(|i| (0..i).map(move |j| (j, i)));
    let slopes: Vec<f64> = pairs
        .filter(|&(j, i)| logs[i].0 != logs[j].0)
        .map(|(j, i)| (logs[i].1 - logs[j].1) / (logs[i].0 - logs[j].0))
        .collect();
    let slopes = sorted(&slopes)?;
    let last = slopes.len() - 1;
    // With k slopes left out at either end the interval misses when the number of discordant pairs is at most k.
    let discordant = discordant_distribution(logs.len());
    let mut attained = 1.0 - 2.0 * discordant[0];
    let mut skipped = 0;
    while 2 * (skipped + 1) <= last && attained - 2.0 * discordant[skipped + 1] >= confidence {
        skipped += 1;
        attained -= 2.0 * discordant[skipped];
    }
    let interval = Interval { low: slopes[skipped], high: slopes[last - skipped], confidence: attained.max(0.0) };
    Some(PowerLaw { exponent: median_of_sorted(&slopes), interval })
}

/// Probability of each number of discordant pairs (inversions) in a random order of `n` points.
fn discordant_distribution(n: usize) -> Vec<f64> {
    let mut mass = vec![1.0];
    for size in 2..=n {
        let mut next = vec![0.0; mass.len() + size - 1];
        for (count, &probability) in mass.iter().enumerate() {
            for more in 0..size {
                next[count + more] += probability / size as f64;
            }
        }
        mass = next;
    }
    mass
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_laws() {
        for exponent in [0.0, 1.0, 2.0, -0.5] {
            let points: Vec<(f64, f64)> =
                [64.0, 128.0, 256.0, 512.0, 1024.0].iter().map(|&x: &f64| (x, 3.0 * x.powf(exponent))).collect();
            let law = fit(&points, 0.95).unwrap();
            assert!((law.exponent - exponent).abs() < 1e-12);
            assert!((law.interval.confidence - (1.0 - 2.0 / 120.0)).abs() < 1e-12);
        }
    }

    #[test]
    fn one_disturbed_point_does_not_move_it() {
        let mut points: Vec<(f64, f64)> = (0..9).map(|i| f64::from(1 << i)).map(|x| (x, x * x)).collect();
        points[4].1 *= 10.0;
        let law = fit(&points, 0.95).unwrap();
        assert!((law.exponent - 2.0).abs() < 1e-9, "{law:?}");
        assert!(law.interval.low > 1.7 && law.interval.high < 2.3, "{law:?}");
    }

    #[test]
    fn too_little_is_said() {
        assert_eq!(fit(&[], 0.95), None);
        assert_eq!(fit(&[(1.0, 1.0)], 0.95), None);
        assert_eq!(fit(&[(2.0, 1.0), (2.0, 3.0)], 0.95), None);
        assert_eq!(fit(&[(1.0, 0.0), (2.0, 1.0)], 0.95), None);
        let two = fit(&[(1.0, 1.0), (2.0, 4.0)], 0.95).unwrap();
        assert_eq!((two.exponent, two.interval.confidence), (2.0, 0.0));
    }

    /// Kendall's statistic at n = 4 (Hollander and Wolfe, table A.30): no discordant pair has probability 1/24, one 3/24.
    #[test]
    fn inversions() {
        let mass: Vec<f64> = discordant_distribution(4).iter().map(|p| (p * 24.0).round()).collect();
        assert_eq!(mass, [1.0, 3.0, 5.0, 6.0, 5.0, 3.0, 1.0]);
    }
}
