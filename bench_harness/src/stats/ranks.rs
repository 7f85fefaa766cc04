//! Ranks, and how rank sums are distributed when chance alone assigns signs or sides.
//!
//! Ranks are doubled, so that tied values, which share the mean of their ranks, keep whole numbers and the counting
//! stays exact.

/// Twice the rank of each value among all, ties sharing their mean rank: 2, 4, 6, ... when all differ.
pub fn doubled_ranks(values: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_unstable_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0; values.len()];
    let mut start = 0;
    while start < order.len() {
        let mut end = start + 1;
        while end < order.len() && values[order[end]] == values[order[start]] {
            end += 1;
        }
        // The ranks start + 1 to end have the mean (start + 1 + end) / 2.
        for &index in &order[start..end] {
            ranks[index] = start + 1 + end;
        }
        start = end;
    }
    ranks
}

/// Probability of each sum of the doubled ranks of the positive values, when every sign is a fair coin: all 2^n flips,
/// counted by adding one rank at a time.
pub fn sign_flip_distribution(doubled_ranks: &[usize]) -> Vec<f64> {
    let total: usize = doubled_ranks.iter().sum();
    let mut mass = vec![0.0; total + 1];
    mass[0] = 1.0;
    let mut reached = 0;
    for &rank in doubled_ranks {
        reached += rank;
        for sum in (0..=reached).rev() {
            let with = if sum >= rank { mass[sum - rank] } else { 0.0 };
            mass[sum] = 0.5 * (mass[sum] + with);
        }
    }
    mass
}

/// Probability of each sum of the doubled ranks of `chosen` values, when every subset of that size is equally likely:
/// all C(n, chosen) subsets, counted by adding one value at a time.
pub fn subset_distribution(doubled_ranks: &[usize], chosen: usize) -> Vec<f64> {
    let total: usize = doubled_ranks.iter().sum();
    let mut counts = vec![vec![0.0; total + 1]; chosen + 1];
    counts[0][0] = 1.0;
    for &rank in doubled_ranks {
        for size in (1..=chosen).rev() {
            let (smaller, larger) = counts.split_at_mut(size);
            for sum in rank..=total {
                larger[0][sum] += smaller[size - 1][sum - rank];
            }
        }
    }
    let subsets: f64 = counts[chosen].iter().sum();
    counts.swap_remove(chosen).into_iter().map(|count| count / subsets).collect()
}

/// P(sum >= observed) and P(sum <= observed) of a distribution.
pub fn tails(mass: &[f64], observed: usize) -> (f64, f64) {
    (mass[observed..].iter().rev().sum(), mass[..=observed].iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_share_their_mean_rank() {
        assert_eq!(doubled_ranks(&[10.0, 30.0, 20.0]), [2, 6, 4]);
        assert_eq!(doubled_ranks(&[5.0, 5.0, 1.0, 5.0]), [6, 6, 2, 6]);
        assert_eq!(doubled_ranks(&[]), [0usize; 0]);
    }

    #[test]
    fn distributions_match_brute_force() {
        let ranks = doubled_ranks(&[1.0, 1.0, 2.0, 5.0, 5.0, 5.0, 9.0]);
        let flips = sign_flip_distribution(&ranks);
        let mut counted = vec![0u32; flips.len()];
        let mut chosen_three = vec![0u32; flips.len()];
        for bits in 0u32..1 << ranks.len() {
            let sum: usize = ranks.iter().enumerate().filter(|(i, _)| bits >> i & 1 == 1).map(|(_, r)| r).sum();
            counted[sum] += 1;
            chosen_three[sum] += u32::from(bits.count_ones() == 3);
        }
        let subsets = subset_distribution(&ranks, 3);
        for sum in 0..flips.len() {
            assert!((flips[sum] - f64::from(counted[sum]) / 128.0).abs() < 1e-15);
            assert!((subsets[sum] - f64::from(chosen_three[sum]) / 35.0).abs() < 1e-15);
        }
    }
}
