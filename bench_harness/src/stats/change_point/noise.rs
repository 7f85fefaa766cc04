//! Steps in noise that remembers: least squares after a filter that makes the noise white.
//!
//! The family of noise is that of exponential smoothing: the next value is predicted as p <- memory * (p + gain * a), a
//! being what the last prediction missed. gain = 0 is white noise, gain = 1 a first-order autoregression with coefficient
//! `memory`, memory = 1 a random walk under white noise, and everything between is first-order noise seen through white
//! noise (Harvey, Forecasting, Structural Time Series Models and the Kalman Filter, 1989, sections 2.4 and 4.1). Levels
//! are filtered like the values, so their sizes are generalised least squares (Chen and Liu, 1993, for level shifts).

/// How noise is predicted from its past.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Filter {
    /// From one value to the next.
    pub memory: f64,
    /// How much of a surprise is remembered.
    pub gain: f64,
}

/// Correlations of neighbours in the noise of a stable machine: white noise and first-order autoregressions.
pub(super) fn correlations() -> impl Iterator<Item = f64> {
    (0..=16).map(|step| 0.05 * f64::from(step))
}

/// Noise that wanders for long: drifting machines.
pub(super) fn long_memory() -> Vec<Filter> {
    let mut filters = Vec::new();
    for memory in [0.9, 0.95, 0.98, 1.0] {
        for gain in [0.03, 0.06, 0.1, 0.15, 0.22, 0.3, 0.4, 0.55, 0.75, 1.0] {
            filters.push(Filter { memory, gain });
        }
    }
    filters
}

impl Filter {
    /// What the predictions miss.
    fn innovations(self, values: impl Iterator<Item = f64>) -> Vec<f64> {
        let mut prediction = 0.0;
        values
            .map(|value| {
                let missed = value - prediction;
                prediction = self.memory * (prediction + self.gain * missed);
                missed
            })
            .collect()
    }
}

/// The fit of steps under one filter.
#[derive(Clone, Debug)]
pub(super) struct Fit {
    /// Sum of squared innovations.
    pub squares: f64,
    /// The first level, the size of each step and the weight of each polynomial.
    pub sizes: Vec<f64>,
    /// Standard error of each over the standard deviation of the innovations.
    pub errors: Vec<f64>,
    /// The noise.
    pub filter: Filter,
}

/// Fits levels that change at `changes` (ascending, below the number of values), and a polynomial of that degree through
/// all of them.
pub(super) fn fit(values: &[f64], changes: &[usize], degree: usize, filter: Filter) -> Option<Fit> {
    let n = values.len();
    let y = filter.innovations(values.iter().copied());
    let response = filter.innovations(std::iter::repeat_n(1.0, n));
    let curves: Vec<Vec<f64>> = (1..=degree).map(|k| filter.innovations((0..n).map(|t| legendre(k, n, t)))).collect();
    let steps = changes.len() + 1;
    let size = steps + degree;
    let start = |column: usize| if column == 0 { 0 } else { changes[column - 1] };
    let mut normal = vec![0.0; size * size];
    let mut right = vec![0.0; size];
    for j in 0..steps {
        for k in j..steps {
            let shift = start(k) - start(j);
            let sum: f64 = response[shift..n - start(j)].iter().zip(&response).map(|(a, b)| a * b).sum();
            normal[j * size + k] = sum;
            normal[k * size + j] = sum;
        }
        right[j] = y[start(j)..].iter().zip(&response).map(|(a, b)| a * b).sum();
        for (k, curve) in curves.iter().enumerate() {
            let sum: f64 = curve[start(j)..].iter().zip(&response).map(|(a, b)| a * b).sum();
            normal[j * size + steps + k] = sum;
            normal[(steps + k) * size + j] = sum;
        }
    }
    for (j, curve) in curves.iter().enumerate() {
        for (k, other) in curves.iter().enumerate() {
            normal[(steps + j) * size + steps + k] = curve.iter().zip(other).map(|(a, b)| a * b).sum();
        }
        right[steps + j] = curve.iter().zip(&y).map(|(a, b)| a * b).sum();
    }
    let total: f64 = y.iter().map(|a| a * a).sum();
    solve(normal, right, total, filter)
}

/// Solves the normal equations of values whose squares sum to `total`; `None` where they are singular.
pub(super) fn solve(normal: Vec<f64>, right: Vec<f64>, total: f64, filter: Filter) -> Option<Fit> {
    let size = right.len();
    let inverse = inverse(normal, size)?;
    let sizes: Vec<f64> = (0..size).map(|j| (0..size).map(|k| inverse[j * size + k] * right[k]).sum()).collect();
    let explained: f64 = sizes.iter().zip(&right).map(|(a, b)| a * b).sum();
    let errors = (0..size).map(|j| inverse[j * size + j].max(0.0).sqrt()).collect();
    Some(Fit { squares: (total - explained).max(0.0), sizes, errors, filter })
}

/// The Legendre polynomial of degree k over the series.
fn legendre(degree: usize, n: usize, t: usize) -> f64 {
    let x = (2 * t + 1) as f64 / n as f64 - 1.0;
    let (mut last, mut now) = (1.0, x);
    for k in 1..degree {
        let k = k as f64;
        (last, now) = (now, ((2.0 * k + 1.0) * x * now - k * last) / (k + 1.0));
    }
    now
}

/// The inverse of a symmetric positive definite matrix by Gauss and Jordan; `None` where it is singular.
fn inverse(mut matrix: Vec<f64>, size: usize) -> Option<Vec<f64>> {
    let mut inverse = vec![0.0; size * size];
    for j in 0..size {
        inverse[j * size + j] = 1.0;
    }
    let largest = (0..size).map(|j| matrix[j * size + j]).fold(0.0, f64::max);
    for column in 0..size {
        let pivot = matrix[column * size + column];
        if pivot.is_nan() || pivot <= 1e-12 * largest {
            return None;
        }
        for k in 0..size {
            matrix[column * size + k] /= pivot;
            inverse[column * size + k] /= pivot;
        }
        for row in (0..size).filter(|&row| row != column) {
            let factor = matrix[row * size + column];
            if factor != 0.0 {
                for k in 0..size {
                    matrix[row * size + k] -= factor * matrix[column * size + k];
                    inverse[row * size + k] -= factor * inverse[column * size + k];
                }
            }
        }
    }
    Some(inverse)
}

/// The fit under the likeliest of the filters.
pub(super) fn best_fit(values: &[f64], changes: &[usize], degree: usize, filters: &[Filter]) -> Option<Fit> {
    filters
        .iter()
        .filter_map(|&filter| fit(values, changes, degree, filter))
        .min_by(|a, b| a.squares.total_cmp(&b.squares))
}
