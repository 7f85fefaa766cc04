//! The standard normal distribution.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

/// P(Z <= x).
pub fn cdf(x: f64) -> f64 {
    0.5 * erfc(-x * FRAC_1_SQRT_2)
}

/// The x for which P(Z <= x) = p. `None` outside the open interval from 0 to 1.
pub fn quantile(p: f64) -> Option<f64> {
    if !(p > 0.0 && p < 1.0) {
        return None;
    }
    // The lower tail keeps its digits where 1 - p would lose them, so the upper half mirrors it.
    if p > 0.5 {
        return quantile(1.0 - p).map(|x| -x);
    }
    let (mut low, mut high) = (-40.0, 0.0);
    for _ in 0..100 {
        let middle = 0.5 * (low + high);
        if cdf(middle) < p {
            low = middle;
        } else {
            high = middle;
        }
    }
    Some(0.5 * (low + high))
}

/// 1 - erf(x): the power series near zero, the continued fraction in the tail (Abramowitz and Stegun, 7.1.6 and 7.1.14).
fn erfc(x: f64) -> f64 {
    if x < 0.0 {
        return 2.0 - erfc(-x);
    }
    if x < 2.5 {
        let mut term = x;
        let mut sum = x;
        let mut n = 0.0;
        while term > sum * 1e-17 {
            n += 1.0;
            term *= 2.0 * x * x / (2.0 * n + 1.0);
            sum += term;
        }
        return 1.0 - 2.0 / PI.sqrt() * (-x * x).exp() * sum;
    }
    // From the innermost fraction out; 60 levels are more than double precision needs from 2.5 on.
    let fraction = (1..=60).rev().fold(x, |inner, k| x + 0.5 * f64::from(k) / inner);
    (-x * x).exp() / (PI.sqrt() * fraction)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of Abramowitz and Stegun, table 26.1 and 26.2, and of R's `pnorm`.
    #[test]
    fn published_values() {
        for (x, p) in [
            (0.0, 0.5),
            (1.0, 0.8413447460685429),
            (1.96, 0.9750021048517795),
            (3.0, 0.9986501019683699),
            (-4.0, 3.167124183311986e-5),
            (-10.0, 7.61985302416047e-24),
        ] {
            assert!((cdf(x) / p - 1.0).abs() < 1e-11, "cdf({x}) = {}", cdf(x));
        }
        for (p, x) in [(0.975, 1.959963984540054), (0.95, 1.6448536269514722), (0.99, 2.3263478740408408), (0.5, 0.0)] {
            assert!((quantile(p).unwrap() - x).abs() < 1e-9, "quantile({p})");
        }
        assert_eq!(quantile(0.0), None);
        assert_eq!(quantile(1.0), None);
        assert_eq!(quantile(f64::NAN), None);
    }

    #[test]
    fn the_two_formulas_meet() {
        assert!((erfc(2.5 - 1e-12) / erfc(2.5) - 1.0).abs() < 1e-10);
        for i in 1..200 {
            let p = f64::from(i) / 200.0;
            assert!((cdf(quantile(p).unwrap()) - p).abs() < 1e-13);
        }
    }
}
