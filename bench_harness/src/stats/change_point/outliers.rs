//! Which values belong to no level: spikes, second modes and short excursions.
//!
//! A value belongs to the level that was or to the one that comes. So it is an outlier when it is far from the median of
//! the values up to it and from that of the values from it on: a spike is far from both, the first value of a new level
//! is near the second. Running medians of either side keep edges (Gallagher and Wise, 1981), and whatever is shorter than
//! half a window goes away with the window.

/// Values of a one-sided window, its own included: excursions of up to half of it are recognised.
const WINDOW: usize = 25;
/// The longest excursion that is recognised by itself.
pub(super) const LONGEST_EXCURSION: usize = WINDOW / 2;
/// Near an end the window that looks beyond it has so many values: fewer cannot tell an excursion from a level.
const END_WINDOW: usize = 9;
/// Farther than so many standard deviations from both medians is an outlier.
const CUTOFF: f64 = 4.0;
/// The factor that makes the median absolute deviation of normal noise its standard deviation.
const NORMAL_MAD: f64 = 1.482_602_218_505_602;

/// The indices of the values that belong to a level, ascending; `values` are finite. `least_scale` bounds the scale of
/// the noise from below, so that coarse clocks, whose values are often equal, have one.
pub(super) fn inliers(values: &[f64], least_scale: f64) -> Vec<usize> {
    let n = values.len();
    if n < END_WINDOW {
        return (0..n).collect();
    }
    let before = backward_medians(values);
    let mut mirrored: Vec<f64> = values.to_vec();
    mirrored.reverse();
    let mut after = backward_medians(&mirrored);
    after.reverse();
    let distances: Vec<f64> = (0..n).map(|t| (values[t] - before[t]).abs().min((values[t] - after[t]).abs())).collect();
    // The scale is that of distances to one median: the smaller of two distances would be too small a scale.
    let mut single: Vec<f64> = (0..n).map(|t| (values[t] - before[t]).abs()).collect();
    let middle = single.len() / 2;
    let scale = NORMAL_MAD * *single.select_nth_unstable_by(middle, f64::total_cmp).1;
    let limit = CUTOFF * scale.max(least_scale);
    (0..n).filter(|&t| distances[t] <= limit).collect()
}

/// The median of the [`WINDOW`] values up to each, its own included; of the first [`END_WINDOW`] values near the start.
fn backward_medians(values: &[f64]) -> Vec<f64> {
    let mut window: Vec<f64> = values[..END_WINDOW.min(values.len())].to_vec();
    window.sort_unstable_by(f64::total_cmp);
    let mut medians = Vec::with_capacity(values.len());
    for t in 0..values.len() {
        if t >= END_WINDOW {
            let place = window.partition_point(|value| value.total_cmp(&values[t]).is_lt());
            window.insert(place, values[t]);
            if window.len() > WINDOW {
                let old = values[t - WINDOW];
                let place = window.partition_point(|value| value.total_cmp(&old).is_lt());
                window.remove(place);
            }
        }
        let middle = window.len() / 2;
        medians.push(if window.len() % 2 == 1 { window[middle] } else { 0.5 * (window[middle - 1] + window[middle]) });
    }
    medians
}
