//! When a case has been sampled enough.

use super::quantile::{median, quantile_interval};

/// Confidence of the interval that sampling narrows.
const CONFIDENCE: f64 = 0.95;

/// Whether a round may stop sampling: never below `min` samples, always from `max` on, and in between when the 95 %
/// interval of the median reaches no further than `target_ci` of the median to either side.
pub fn enough(samples: &[f64], target_ci: f64, min: usize, max: usize) -> bool {
    if samples.len() >= max {
        return true;
    }
    if samples.len() < min {
        return false;
    }
    let (Some(median), Some(interval)) = (median(samples), quantile_interval(samples, 0.5, CONFIDENCE)) else {
        return false;
    };
    (interval.high - median).max(median - interval.low) <= target_ci * median
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_and_target() {
        let quiet = [100.0; 10];
        assert!(enough(&quiet, 0.005, 10, 1000));
        assert!(!enough(&quiet[..9], 0.005, 10, 1000));
        // Five samples have no 95 % interval of the median, however alike they are.
        assert!(!enough(&quiet[..5], 0.005, 1, 1000));
        let noisy: Vec<f64> = (0..20).map(|i| 100.0 + f64::from(i)).collect();
        assert!(!enough(&noisy, 0.005, 10, 1000));
        assert!(enough(&noisy, 0.005, 10, 20));
        assert!(enough(&noisy, 0.2, 10, 1000));
        assert!(!enough(&[f64::NAN; 12], 0.5, 10, 1000));
    }
}
