//! The best piecewise constant fit for a price a level: candidates for change points.
//!
//! Optimal partitioning (Jackson et al., 2005) with the pruning of PELT (Killick, Fearnhead and Eckley, 2012), exact for
//! the sum of squares.

/// The first indices of all levels but the first, ascending, that minimise the sum of squares around the levels' means
/// plus `price` a change; every level has at least `shortest` values.
pub(super) fn partition(values: &[f64], price: f64, shortest: usize) -> Vec<usize> {
    let n = values.len();
    if shortest == 0 || n < 2 * shortest {
        return Vec::new();
    }
    // Sums from the start, around the first value, which keeps squares of small noise on a high level exact.
    let (mut sums, mut squares) = (vec![0.0; n + 1], vec![0.0; n + 1]);
    for (t, value) in values.iter().map(|value| value - values[0]).enumerate() {
        sums[t + 1] = sums[t] + value;
        squares[t + 1] = squares[t] + value * value;
    }
    let inverses: Vec<f64> = (0..=n).map(|length| 1.0 / length.max(1) as f64).collect();
    let cost = |start: usize, end: usize| {
        let sum = sums[end] - sums[start];
        squares[end] - squares[start] - sum * sum * inverses[end - start]
    };
    let mut best = vec![f64::INFINITY; n + 1];
    let mut last = vec![0; n + 1];
    best[0] = -price;
    let mut starts = vec![0];
    let mut totals = Vec::new();
    for end in shortest..=n {
        if end >= 2 * shortest {
            starts.push(end - shortest);
        }
        totals.clear();
        totals.extend(starts.iter().map(|&start| best[start] + cost(start, end)));
        for (&start, &total) in starts.iter().zip(&totals) {
            if total + price < best[end] {
                best[end] = total + price;
                last[end] = start;
            }
        }
        // A start that is worse by more than a price can never be the best for any later end.
        let mut index = 0;
        starts.retain(|_| {
            index += 1;
            totals[index - 1] <= best[end]
        });
    }
    let mut changes = Vec::new();
    let mut end = last[n];
    while end > 0 {
        changes.push(end);
        end = last[end];
    }
    changes.reverse();
    changes
}
