//! The two-sample rank-sum permutation test.
//!
//! When base and head do not differ, every split of the pooled values into two groups of these sizes is equally likely,
//! and the p-value is the share of splits whose rank sum is at least as large (Wilcoxon, 1945; Mann and Whitney, 1947).

use rand::{Rng, RngExt};

use super::Alternative;
use super::ranks::{doubled_ranks, subset_distribution, tails};

/// Up to so many values in both samples together all splits are counted.
pub const EXACT_MAX: usize = 40;

/// The p-value of two samples of one distribution; [`Alternative::Greater`] is evidence that head is greater. `draws`
/// splits are drawn beyond [`EXACT_MAX`] values. 1 when a sample is empty or not finite.
pub fn p_value(base: &[f64], head: &[f64], alternative: Alternative, draws: usize, rng: &mut impl Rng) -> f64 {
    let pooled: Vec<f64> = head.iter().chain(base).copied().collect();
    if base.is_empty() || head.is_empty() || !pooled.iter().all(|value| value.is_finite()) {
        return 1.0;
    }
    let mut ranks = doubled_ranks(&pooled);
    let observed: usize = ranks[..head.len()].iter().sum();
    let (at_least, at_most) = if pooled.len() <= EXACT_MAX {
        tails(&subset_distribution(&ranks, head.len()), observed)
    } else {
        drawn_tails(&mut ranks, head.len(), observed, draws, rng)
    };
    alternative.p(at_least, at_most)
}

fn drawn_tails(ranks: &mut [usize], chosen: usize, observed: usize, draws: usize, rng: &mut impl Rng) -> (f64, f64) {
    let (mut above, mut below) = (1usize, 1usize);
    for _ in 0..draws {
        // The first `chosen` places of a Fisher-Yates shuffle are a random subset.
        for place in 0..chosen {
            let other = rng.random_range(place..ranks.len());
            ranks.swap(place, other);
        }
        let sum: usize = ranks[..chosen].iter().sum();
        above += usize::from(sum >= observed);
        below += usize::from(sum <= observed);
    }
    let all = (draws + 1) as f64;
    (above as f64 / all, below as f64 / all)
}

/// The smallest one-sided p that samples of these sizes can give: 1 / C(base + head, head).
pub fn smallest_p(base: usize, head: usize) -> f64 {
    (1..=head).map(|i| i as f64 / (base + i) as f64).product()
}

/// The smallest number of head values that, against `base` values, can give a p of at most `p`.
/// `None` when a thousand do not.
pub fn heads_needed(base: usize, p: f64) -> Option<usize> {
    (1..=1000).find(|&head| smallest_p(base, head) <= p)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_pcg::Pcg64;

    fn p(base: &[f64], head: &[f64], alternative: Alternative) -> f64 {
        p_value(base, head, alternative, 20_000, &mut Pcg64::seed_from_u64(3))
    }

    /// Permeability of the human chorioamnion (Hollander and Wolfe, table 4.1; R's `wilcox.test` example): W = 35,
    /// one-sided p = 0.1272.
    #[test]
    fn chorioamnion() {
        let at_term = [0.80, 0.83, 1.89, 1.04, 1.45, 1.38, 1.91, 1.64, 0.73, 1.46];
        let earlier = [1.15, 0.88, 0.90, 0.74, 1.21];
        assert!((p(&earlier, &at_term, Alternative::Greater) - 0.127206).abs() < 1e-5);
    }

    #[test]
    fn separated_samples_reach_the_floor() {
        let base = [1.0, 2.0, 3.0, 4.0, 5.0];
        let head = [6.0, 7.0, 8.0, 9.0, 10.0];
        assert!((p(&base, &head, Alternative::Greater) - 1.0 / 252.0).abs() < 1e-15);
        assert!((p(&base, &head, Alternative::TwoSided) - 2.0 / 252.0).abs() < 1e-15);
        assert!((p(&base, &head, Alternative::Less) - 1.0).abs() < 1e-12);
        assert!((smallest_p(5, 5) - 1.0 / 252.0).abs() < 1e-15);
        assert_eq!(heads_needed(5, 1.0 / 252.0 + 1e-12), Some(5));
        assert_eq!(heads_needed(1, 1e-9), None);
    }

    #[test]
    fn nothing_is_no_evidence() {
        assert_eq!(p(&[], &[1.0], Alternative::Greater), 1.0);
        assert_eq!(p(&[1.0], &[], Alternative::Greater), 1.0);
        assert_eq!(p(&[1.0, 1.0], &[1.0, 1.0], Alternative::TwoSided), 1.0);
        assert_eq!(p(&[1.0], &[f64::NAN], Alternative::Greater), 1.0);
    }

    #[test]
    fn drawing_agrees_with_counting() {
        let base: Vec<f64> = (0..25).map(|i| f64::from(i) + 0.25).collect();
        let head: Vec<f64> = (0..25).map(|i| f64::from(i) + 2.5).collect();
        let pooled: Vec<f64> = head.iter().chain(&base).copied().collect();
        let ranks = doubled_ranks(&pooled);
        let (exact, _) = tails(&subset_distribution(&ranks, 25), ranks[..25].iter().sum());
        assert!((p(&base, &head, Alternative::Greater) - exact).abs() < 0.01, "{exact}");
    }
}
