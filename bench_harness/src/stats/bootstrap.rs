//! The percentile bootstrap, for statistics that have no rank distribution (Efron and Tibshirani, An Introduction to the
//! Bootstrap, chapter 13).

use rand::{Rng, RngExt};

use super::{Interval, sorted};

/// A two-sided interval of a statistic: the central `confidence` of its values over `resamples` samples drawn from
/// `values` with replacement. `None` for fewer than two values, values or statistics that are not finite, or no
/// resamples.
pub fn interval(
    values: &[f64],
    statistic: impl Fn(&[f64]) -> f64,
    resamples: usize,
    confidence: f64,
    rng: &mut impl Rng,
) -> Option<Interval> {
    if values.len() < 2 || !values.iter().all(|value| value.is_finite()) {
        return None;
    }
    let mut drawn = vec![0.0; values.len()];
    let statistics: Vec<f64> = (0..resamples)
        .map(|_| {
            drawn.fill_with(|| values[rng.random_range(0..values.len())]);
            statistic(&drawn)
        })
        .collect();
    let statistics = sorted(&statistics)?;
    let cut = (0.5 * (1.0 - confidence) * resamples as f64).floor() as usize;
    let cut = cut.min((resamples - 1) / 2);
    Some(Interval { low: statistics[cut], high: statistics[resamples - 1 - cut], confidence })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_pcg::Pcg64;

    fn mean(values: &[f64]) -> f64 {
        values.iter().sum::<f64>() / values.len() as f64
    }

    #[test]
    fn the_mean_of_many_values() {
        let values: Vec<f64> = (0..400).map(|i| f64::from(i % 20)).collect();
        let interval = interval(&values, mean, 2000, 0.95, &mut Pcg64::seed_from_u64(1)).unwrap();
        // The standard error is sqrt(33.25 / 400) = 0.288.
        assert!((interval.low - (9.5 - 1.96 * 0.288)).abs() < 0.06, "{interval:?}");
        assert!((interval.high - (9.5 + 1.96 * 0.288)).abs() < 0.06, "{interval:?}");
    }

    #[test]
    fn one_seed_one_answer_and_no_answer_from_nothing() {
        let run = |seed| interval(&[1.0, 2.0, 4.0, 8.0], mean, 100, 0.9, &mut Pcg64::seed_from_u64(seed));
        assert_eq!(run(3), run(3));
        assert_ne!(run(3), run(4));
        let mut rng = Pcg64::seed_from_u64(0);
        assert_eq!(interval(&[1.0], mean, 100, 0.9, &mut rng), None);
        assert_eq!(interval(&[1.0, f64::NAN], mean, 100, 0.9, &mut rng), None);
        assert_eq!(interval(&[1.0, 2.0], mean, 0, 0.9, &mut rng), None);
    }
}
