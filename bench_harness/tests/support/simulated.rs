//! What simulations share: normal noise, and shares with their intervals.

use rand::RngExt;
use rand_pcg::Pcg64;

/// How many of so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) of: u64,
    pub(crate) count: u64,
}

impl Share {
    pub(crate) fn percent(self) -> f64 {
        100.0 * self.count as f64 / self.of as f64
    }

    /// The 95 % interval of Wilson (1927), in percent.
    pub(crate) fn interval(self) -> (f64, f64) {
        const Z: f64 = 1.959_964;
        let (n, p) = (self.of as f64, self.count as f64 / self.of as f64);
        let centre = (p + Z * Z / (2.0 * n)) / (1.0 + Z * Z / n);
        let half = Z / (1.0 + Z * Z / n) * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
        (100.0 * (centre - half).max(0.0), 100.0 * (centre + half).min(1.0))
    }
}

/// A standard normal value (Box and Muller, 1958).
pub(crate) fn normal(rng: &mut Pcg64) -> f64 {
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()
}
