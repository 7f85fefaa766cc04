//! How far values scatter.

use super::quantile::median;

/// The factor that makes the median absolute deviation of normal noise its standard deviation: 1 / Phi^-1(3/4).
const NORMAL_MAD: f64 = 1.482_602_218_505_602;

/// The robust scatter: the median absolute deviation from the median, scaled to a standard deviation of normal noise. Up
/// to half of the values may be arbitrarily wrong. `None` when empty or not finite.
pub fn robust_deviation(values: &[f64]) -> Option<f64> {
    let centre = median(values)?;
    let distances: Vec<f64> = values.iter().map(|value| (value - centre).abs()).collect();
    Some(NORMAL_MAD * median(&distances)?)
}

/// The standard deviation of the population that the values were drawn from. `None` for fewer than two, or where one is
/// not finite.
pub fn standard_deviation(values: &[f64]) -> Option<f64> {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (values.len() >= 2 && squares.is_finite()).then(|| (squares / (n - 1.0)).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        assert_eq!(robust_deviation(&[1.0, 2.0, 3.0, 4.0, 1000.0]), Some(NORMAL_MAD));
        assert_eq!(robust_deviation(&[5.0]), Some(0.0));
        assert_eq!(robust_deviation(&[]), None);
        assert_eq!(
            standard_deviation(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]).map(|s| (s * s * 7.0).round()),
            Some(32.0)
        );
        assert_eq!(standard_deviation(&[1.0]), None);
        assert_eq!(standard_deviation(&[1.0, f64::NAN]), None);
    }
}
