//! Neighbours in time are alike on a drifting machine, so n values carry the information of fewer.

/// Lag-1 autocorrelation of values in the order of time. Its bias of about -1/n is added back, without which short
/// series look independent (Kendall, 1954). `None` for fewer than 3 values, constant ones or ones that are not finite.
pub fn lag1(values: &[f64]) -> Option<f64> {
    pooled_lag1(&[values.to_vec()])
}

/// [`lag1`] over several series that share their dependence: products of neighbours and squares are summed over all.
pub fn pooled_lag1(series: &[Vec<f64>]) -> Option<f64> {
    let (mut products, mut squares, mut bias, mut used) = (0.0, 0.0, 0.0, 0.0);
    for values in series.iter().filter(|values| values.len() >= 3) {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let centred: Vec<f64> = values.iter().map(|value| value - mean).collect();
        products += centred.windows(2).map(|pair| pair[0] * pair[1]).sum::<f64>();
        squares += centred.iter().map(|value| value * value).sum::<f64>();
        bias += 1.0 / n;
        used += 1.0;
    }
    let correlation = products / squares + bias / used;
    correlation.is_finite().then(|| correlation.clamp(-0.99, 0.99))
}

/// How many independent values give a mean as precise as that of `n` values with lag-1 autocorrelation `correlation`:
/// n (1 - r) / (1 + r) for a first-order process, at least 1. Negative correlation earns nothing.
pub fn effective_n(n: usize, correlation: f64) -> f64 {
    let correlation = correlation.max(0.0);
    (n as f64 * (1.0 - correlation) / (1.0 + correlation)).max(1.0).min(n as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_pcg::Pcg64;

    #[test]
    fn by_hand() {
        // Mean 2.5; products -0.75 * ... : (-1.5)(-0.5) + (-0.5)(0.5) + (0.5)(1.5) = 1.25; squares 5; 1.25/5 + 1/4.
        assert!((lag1(&[1.0, 2.0, 3.0, 4.0]).unwrap() - 0.5).abs() < 1e-15);
        assert_eq!(lag1(&[1.0, 2.0]), None);
        assert_eq!(lag1(&[2.0; 9]), None);
        assert_eq!(lag1(&[1.0, f64::NAN, 2.0]), None);
        assert_eq!(effective_n(30, 0.5), 10.0);
        assert_eq!(effective_n(30, -0.5), 30.0);
        assert_eq!(effective_n(3, 0.99), 1.0);
        assert_eq!(effective_n(0, 0.0), 0.0);
    }

    #[test]
    fn short_series_pooled_find_the_truth() {
        let mut rng = Pcg64::seed_from_u64(11);
        for truth in [0.0, 0.5] {
            let series: Vec<Vec<f64>> = (0..4000)
                .map(|_| {
                    let mut state = 0.0;
                    let mut step = || {
                        state = truth * state + rng.random::<f64>() - 0.5;
                        state
                    };
                    (0..20).for_each(|_| _ = step());
                    (0..20).map(|_| step()).collect()
                })
                .collect();
            let found = pooled_lag1(&series).unwrap();
            // The bias of a series of 20 with r = 0.5 is about -(1 + 3 r) / n = -0.125, of which 0.05 is added back.
            assert!((found - truth).abs() < 0.09, "{truth}: {found}");
        }
    }
}
