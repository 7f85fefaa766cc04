//! Simulated histories: the noise of real machines, with and without a step.

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

use crate::simulated::normal;

/// Noise around a level of 1, of 1 % where nothing else is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Noise {
    /// Independent normal noise.
    White,
    /// Student's t with 3 degrees of freedom, scaled to a standard deviation of 1 %.
    HeavyTailed,
    /// White noise; every twentieth value on average is 10 to 50 % slower.
    Spiky,
    /// First-order autoregression with coefficient 0.5, marginal standard deviation 1 %.
    Autoregressive,
    /// White noise; 15 % of the values are 10 % slower.
    Bimodal,
    /// White noise; three times in a series 3 to 12 values in a row are 5 % slower.
    Excursions,
    /// White noise on a line that rises by 3 % over the series.
    Trend,
    /// White noise on a slow wave of 1 % amplitude, one period a series.
    Wave,
    /// White noise on a random walk with steps of 0.1 %.
    Walk,
    /// White noise on a line that rises by 1 %.
    GentleTrend,
    /// White noise; three times in a series values are 5 % slower in a row, 8 on average, without a limit.
    LongExcursions,
    /// White noise on waves of 1 % amplitude, half a period to four a series.
    Waves,
    /// White noise of 0.5 % in the first half of a series and of 2 % in the second.
    Noisier,
}

impl Noise {
    /// Every kind, in the order of tables.
    pub(crate) const ALL: [Noise; 13] = [
        Noise::White,
        Noise::HeavyTailed,
        Noise::Spiky,
        Noise::Autoregressive,
        Noise::Bimodal,
        Noise::Excursions,
        Noise::Trend,
        Noise::Wave,
        Noise::Walk,
        Noise::GentleTrend,
        Noise::LongExcursions,
        Noise::Waves,
        Noise::Noisier,
    ];

    /// What it is, in a table.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Noise::White => "white, 1 %",
            Noise::HeavyTailed => "Student's t with 3 degrees of freedom",
            Noise::Spiky => "spikes of 10 to 50 % in 5 % of values",
            Noise::Autoregressive => "AR(1) 0.5, marginal 1 %",
            Noise::Bimodal => "15 % of values at +10 %",
            Noise::Excursions => "3 excursions of +5 % over 3 to 12 values",
            Noise::Trend => "trend of 3 % over the series",
            Noise::Wave => "wave of 1 % amplitude",
            Noise::Walk => "random walk, 0.1 % a value",
            Noise::GentleTrend => "trend of 1 % over the series",
            Noise::LongExcursions => "3 excursions of +5 %, geometric, mean 8",
            Noise::Waves => "up to 4 waves of 1 % amplitude",
            Noise::Noisier => "white, 0.5 %, then 2 %",
        }
    }

    /// `n` values of noise.
    pub(crate) fn series(self, n: usize, rng: &mut Pcg64) -> Vec<f64> {
        let mut values: Vec<f64> = (0..n).map(|_| 1.0 + 0.01 * normal(rng)).collect();
        match self {
            Noise::White => {}
            Noise::HeavyTailed => {
                for value in &mut values {
                    let squares: f64 = (0..3).map(|_| normal(rng).powi(2)).sum();
                    // The variance of Student's t with 3 degrees of freedom is 3.
                    *value = 1.0 + 0.01 * normal(rng) / (squares / 3.0).sqrt() / 3f64.sqrt();
                }
            }
            Noise::Spiky => {
                for value in &mut values {
                    if rng.random::<f64>() < 0.05 {
                        *value += 0.1 + 0.4 * rng.random::<f64>();
                    }
                }
            }
            Noise::Autoregressive => {
                let mut state = normal(rng);
                for value in &mut values {
                    *value = 1.0 + 0.01 * state;
                    state = 0.5 * state + 0.75f64.sqrt() * normal(rng);
                }
            }
            Noise::Bimodal => {
                for value in &mut values {
                    if rng.random::<f64>() < 0.15 {
                        *value += 0.1;
                    }
                }
            }
            Noise::Excursions => {
                for _ in 0..3 {
                    let length = rng.random_range(3..=12);
                    let start = rng.random_range(0..n - length);
                    values[start..start + length].iter_mut().for_each(|value| *value += 0.05);
                }
            }
            Noise::LongExcursions => {
                for _ in 0..3 {
                    let start = rng.random_range(0..n);
                    let mut t = start;
                    while t < n && rng.random::<f64>() > 1.0 / 8.0 {
                        values[t] += 0.05;
                        t += 1;
                    }
                }
            }
            Noise::Trend => add(&mut values, |x| 0.03 * x),
            Noise::GentleTrend => add(&mut values, |x| 0.01 * x),
            Noise::Wave => {
                let phase = rng.random::<f64>();
                add(&mut values, |x| 0.01 * (std::f64::consts::TAU * (x + phase)).sin());
            }
            Noise::Waves => {
                let (periods, phase) = (0.5 + 3.5 * rng.random::<f64>(), rng.random::<f64>());
                add(&mut values, |x| 0.01 * (std::f64::consts::TAU * (periods * x + phase)).sin());
            }
            Noise::Noisier => {
                for (t, value) in values.iter_mut().enumerate() {
                    *value = 1.0 + (*value - 1.0) * if t < n / 2 { 0.5 } else { 2.0 };
                }
            }
            Noise::Walk => {
                let mut level = 0.0;
                for value in &mut values {
                    level += 0.001 * normal(rng);
                    *value += level;
                }
            }
        }
        values
    }
}

fn add(values: &mut [f64], shape: impl Fn(f64) -> f64) {
    let n = values.len() as f64;
    for (t, value) in values.iter_mut().enumerate() {
        *value += shape(t as f64 / n);
    }
}

/// A series that is `size` higher, relatively, from some index between 10 % and 90 % on, and that index.
pub(crate) fn with_step(noise: Noise, n: usize, size: f64, rng: &mut Pcg64) -> (Vec<f64>, usize) {
    let mut values = noise.series(n, rng);
    let index = rng.random_range(n / 10..=n * 9 / 10);
    values[index..].iter_mut().for_each(|value| *value *= 1.0 + size);
    (values, index)
}

/// The generator of one simulated series: each has its own, so that figures do not depend on threads or order.
pub(crate) fn generator(seed: u64, number: u64) -> Pcg64 {
    Pcg64::seed_from_u64(seed.wrapping_mul(1_000_003).wrapping_add(number))
}
