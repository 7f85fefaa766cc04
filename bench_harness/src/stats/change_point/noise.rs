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

/// Filters that are run side by side: each is a chain of dependent operations, which only company keeps a core busy with.
const LANES: usize = 8;
type Lanes = [f64; LANES];

/// What the predictions of some filters miss.
fn innovations(filters: &[Filter; LANES], values: impl Iterator<Item = f64>) -> Vec<Lanes> {
    let mut prediction = [0.0; LANES];
    let (memory, gain) = (filters.map(|filter| filter.memory), filters.map(|filter| filter.gain));
    values
        .map(|value| {
            let mut missed = [0.0; LANES];
            for lane in 0..LANES {
                missed[lane] = value - prediction[lane];
                prediction[lane] = memory[lane] * (prediction[lane] + gain[lane] * missed[lane]);
            }
            missed
        })
        .collect()
}

/// The sums of products of two series, as long as the shorter.
fn products(a: &[Lanes], b: &[Lanes]) -> Lanes {
    let mut sums = [0.0; LANES];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums
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

/// Fits levels that change at `changes` (ascending, below the number of values), and a polynomial through all of them
/// whose Legendre polynomials are `curves`, under each of the filters.
fn fits(values: &[f64], changes: &[usize], curves: &[Vec<f64>], filters: &[Filter; LANES]) -> [Option<Fit>; LANES] {
    let n = values.len();
    let y = innovations(filters, values.iter().copied());
    let response = innovations(filters, std::iter::repeat_n(1.0, n));
    let curves: Vec<Vec<Lanes>> = curves.iter().map(|curve| innovations(filters, curve.iter().copied())).collect();
    let steps = changes.len() + 1;
    let size = steps + curves.len();
    let start = |column: usize| if column == 0 { 0 } else { changes[column - 1] };
    let mut normal = vec![[0.0; LANES]; size * size];
    let mut right = vec![[0.0; LANES]; size];
    for j in 0..steps {
        for k in j..steps {
            let sum = products(&response[start(k) - start(j)..n - start(j)], &response);
            normal[j * size + k] = sum;
            normal[k * size + j] = sum;
        }
        right[j] = products(&y[start(j)..], &response);
        for (k, curve) in curves.iter().enumerate() {
            let sum = products(&curve[start(j)..], &response);
            normal[j * size + steps + k] = sum;
            normal[(steps + k) * size + j] = sum;
        }
    }
    for (j, curve) in curves.iter().enumerate() {
        for (k, other) in curves.iter().enumerate().skip(j) {
            let sum = products(curve, other);
            normal[(steps + j) * size + steps + k] = sum;
            normal[(steps + k) * size + steps + j] = sum;
        }
        right[steps + j] = products(curve, &y);
    }
    let total = products(&y, &y);
    std::array::from_fn(|lane| {
        let of_lane = |values: &[Lanes]| values.iter().map(|lanes| lanes[lane]).collect();
        solve(of_lane(&normal), of_lane(&right), total[lane], filters[lane])
    })
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

/// The Legendre polynomials of degrees 1 to `degree` over a series of `n` values.
pub(super) fn legendre(degree: usize, n: usize) -> Vec<Vec<f64>> {
    let at: Vec<f64> = (0..n).map(|t| (2 * t + 1) as f64 / n as f64 - 1.0).collect();
    let mut curves: Vec<Vec<f64>> = Vec::with_capacity(degree);
    for k in 0..degree {
        let (a, b) = ((2 * k + 1) as f64 / (k + 1) as f64, k as f64 / (k + 1) as f64);
        let value = |t: usize| match k {
            0 => at[t],
            1 => a * at[t] * curves[0][t] - b,
            _ => a * at[t] * curves[k - 1][t] - b * curves[k - 2][t],
        };
        curves.push((0..n).map(value).collect());
    }
    curves
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
pub(super) fn best_fit(values: &[f64], changes: &[usize], curves: &[Vec<f64>], filters: &[Filter]) -> Option<Fit> {
    let of_chunk = |chunk: &[Filter]| {
        let lanes = std::array::from_fn(|lane| chunk[lane.min(chunk.len() - 1)]);
        fits(values, changes, curves, &lanes)
    };
    filters.chunks(LANES).flat_map(of_chunk).flatten().min_by(|a, b| a.squares.total_cmp(&b.squares))
}
