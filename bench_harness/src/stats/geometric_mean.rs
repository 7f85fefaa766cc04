//! The mean of ratios: half as fast and twice as fast cancel.

/// The geometric mean. `None` when empty or where a value is not positive and finite.
pub fn geometric_mean(values: &[f64]) -> Option<f64> {
    if values.is_empty() || !values.iter().all(|&value| value > 0.0 && value.is_finite()) {
        return None;
    }
    let mean_log = values.iter().map(|value| value.ln()).sum::<f64>() / values.len() as f64;
    Some(mean_log.exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        assert!((geometric_mean(&[0.5, 2.0]).unwrap() - 1.0).abs() < 1e-15);
        assert!((geometric_mean(&[1.0, 10.0, 100.0]).unwrap() - 10.0).abs() < 1e-12);
        assert!((geometric_mean(&[1e300, 1e300, 1e300]).unwrap() / 1e300 - 1.0).abs() < 1e-12);
        for bad in [&[][..], &[1.0, 0.0], &[1.0, -1.0], &[f64::NAN], &[f64::INFINITY]] {
            assert_eq!(geometric_mean(bad), None);
        }
    }
}
