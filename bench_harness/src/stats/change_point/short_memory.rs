//! Steps in white and first-order autoregressive noise, in a time that does not depend on the length of the series.
//!
//! Under y(t) = x(t) - r x(t-1) a level that starts at s becomes 1 at s and 1 - r from there on, so that every sum that
//! least squares needs follows from running sums of the values.

use super::noise::{Filter, Fit, solve};

/// Running sums of values, from which any part of the series is fitted.
pub(super) struct RunningSums {
    values: Vec<f64>,
    sums: Vec<f64>,
    squares: Vec<f64>,
    /// Of products of each value with the one before it.
    products: Vec<f64>,
}

impl RunningSums {
    pub(super) fn new(values: &[f64]) -> RunningSums {
        let n = values.len();
        let (mut sums, mut squares, mut products) =
            (Vec::with_capacity(n + 1), Vec::with_capacity(n + 1), Vec::with_capacity(n + 1));
        let (mut sum, mut square, mut product, mut last) = (0.0, 0.0, 0.0, 0.0);
        for (list, value) in [(&mut sums, 0.0), (&mut squares, 0.0), (&mut products, 0.0)] {
            list.push(value);
        }
        for &value in values {
            sum += value;
            square += value * value;
            product += value * last;
            last = value;
            sums.push(sum);
            squares.push(square);
            products.push(product);
        }
        RunningSums { values: values.to_vec(), sums, squares, products }
    }

    /// Fits levels that change at `changes` to the values from `start` to before `end`, in noise whose neighbours
    /// correlate by `correlation`. `None` where a level has no values.
    pub(super) fn fit(&self, start: usize, end: usize, changes: &[usize], correlation: f64) -> Option<Fit> {
        let rest = 1.0 - correlation;
        let steps = changes.len() + 1;
        let place = |step: usize| if step == 0 { start } else { changes[step - 1] };
        let mut normal = vec![0.0; steps * steps];
        let mut right = vec![0.0; steps];
        for j in 0..steps {
            let from = place(j);
            if from >= end || (j > 0 && from <= place(j - 1)) {
                return None;
            }
            let after = (end - from - 1) as f64;
            for i in 0..j {
                normal[i * steps + j] = rest + rest * rest * after;
                normal[j * steps + i] = normal[i * steps + j];
            }
            normal[j * steps + j] = 1.0 + rest * rest * after;
            let first = if from == start { 0.0 } else { self.values[from - 1] };
            let later = self.sums[end] - self.sums[from + 1] - correlation * (self.sums[end - 1] - self.sums[from]);
            right[j] = self.values[from] - correlation * first + rest * later;
        }
        let squares = self.squares[end] - self.squares[start];
        let products = self.products[end] - self.products[start + 1];
        let shifted = self.squares[end - 1] - self.squares[start];
        let total = squares - 2.0 * correlation * products + correlation * correlation * shifted;
        solve(normal, right, total, Filter { memory: correlation, gain: 1.0 })
    }
}
