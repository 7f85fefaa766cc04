//! The signed-rank sign-flip test of paired differences.
//!
//! When base and head do not differ and a fair coin chose who went first, each pair's log ratio is as likely to be x as
//! -x, whatever the noise looks like. So all 2^n sign flips are equally likely, and the p-value is the share of flips
//! whose rank sum is at least as large (Wilcoxon, 1945). Zeros keep their rank and add nothing (Pratt, 1959).

use rand::{Rng, RngExt};

use super::Alternative;
use super::normal;
use super::ranks::{doubled_ranks, sign_flip_distribution, tails};

/// Up to so many pairs all flips are counted, by a recursion over rank sums that stays cheaper than drawing them.
pub const EXACT_MAX: usize = 100;

/// The p-value of differences that are zero in truth. `draws` flips are drawn beyond [`EXACT_MAX`] pairs, with
/// p = (b + 1) / (draws + 1), which is never zero (Phipson and Smyth, 2010). 1 when there is nothing to test or a value
/// is not finite.
pub fn p_value(differences: &[f64], alternative: Alternative, draws: usize, rng: &mut impl Rng) -> f64 {
    let Some((ranks, observed)) = scores(differences, |rank| rank) else { return 1.0 };
    let (at_least, at_most) = if differences.len() <= EXACT_MAX {
        tails(&sign_flip_distribution(&ranks), observed)
    } else {
        drawn_tails(&ranks, observed, draws, rng)
    };
    alternative.p(at_least, at_most)
}

/// The scores of the differences that a flip would change, by their doubled ranks, and the sum of the positive ones'.
/// `None` where there are none or one is not finite.
fn scores(differences: &[f64], score: impl Fn(usize) -> usize) -> Option<(Vec<usize>, usize)> {
    if differences.is_empty() || !differences.iter().all(|value| value.is_finite()) {
        return None;
    }
    let magnitudes: Vec<f64> = differences.iter().map(|value| value.abs()).collect();
    let scores = doubled_ranks(&magnitudes).into_iter().map(score);
    let signed: Vec<(usize, f64)> =
        scores.zip(differences.iter().copied()).filter(|(_, value)| *value != 0.0).collect();
    let observed = signed.iter().filter(|(_, value)| *value > 0.0).map(|(score, _)| score).sum();
    Some((signed.into_iter().map(|(score, _)| score).collect(), observed))
}

fn drawn_tails(ranks: &[usize], observed: usize, draws: usize, rng: &mut impl Rng) -> (f64, f64) {
    let (mut above, mut below) = (1usize, 1usize);
    for _ in 0..draws {
        let sum: usize = ranks.iter().filter(|_| rng.random::<bool>()).sum();
        above += usize::from(sum >= observed);
        below += usize::from(sum <= observed);
    }
    let all = (draws + 1) as f64;
    (above as f64 / all, below as f64 / all)
}

/// The test with capped ranks: whatever is beyond the smaller [`CAPPED`] of the magnitudes counts as much as they do, so
/// that a second mode or a spike weighs little more than any other pair. As exact as with ranks, since the cap looks at
/// magnitudes alone; in normal noise it is a little less efficient than ranks are, in noise of two modes far more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CappedRanks {
    pairs: usize,
    cap: usize,
}

/// Share of the magnitudes, from the smallest on, whose ranks differ.
const CAPPED: f64 = 0.5;

impl CappedRanks {
    /// For so many pairs.
    pub fn new(pairs: usize) -> CappedRanks {
        // Doubled, as ranks are.
        CappedRanks { pairs, cap: 2 * (CAPPED * pairs as f64).ceil() as usize }
    }

    /// The p-value, as [`p_value`]'s. Up to [`EXACT_MAX`] pairs all flips are counted; the normal approximation beyond is
    /// closer than anybody needs.
    pub fn p_value(self, differences: &[f64], alternative: Alternative) -> f64 {
        let Some((scores, observed)) = scores(differences, |rank| rank.min(self.cap)) else { return 1.0 };
        if differences.len() <= EXACT_MAX {
            let (at_least, at_most) = tails(&sign_flip_distribution(&scores), observed);
            return alternative.p(at_least, at_most);
        }
        let mean = 0.5 * scores.iter().sum::<usize>() as f64;
        let deviation = self.deviation(&scores);
        let tail = |beyond: f64| normal::cdf(-beyond / deviation);
        alternative.p(tail(observed as f64 - mean), tail(mean - observed as f64))
    }

    /// The standard deviation of the sum of scores whose signs are fair coins.
    fn deviation(self, scores: &[usize]) -> f64 {
        0.5 * scores.iter().map(|&score| (score * score) as f64).sum::<f64>().sqrt().max(f64::MIN_POSITIVE)
    }

    /// The smallest sum of the positive differences' capped, doubled ranks whose one-sided p is at most `p`; `None` where
    /// none is. Counted up to [`EXACT_MAX`] pairs, by the normal approximation beyond.
    pub fn critical_sum(self, p: f64) -> Option<usize> {
        let scores: Vec<usize> = (1..=self.pairs).map(|rank| (2 * rank).min(self.cap)).collect();
        let largest: usize = scores.iter().sum();
        if smallest_p(self.pairs) > p {
            return None;
        }
        if self.pairs > EXACT_MAX {
            let sum = 0.5 * largest as f64 + normal::quantile(1.0 - p)? * self.deviation(&scores);
            return Some((sum.ceil().max(0.0) as usize).min(largest));
        }
        let mut tail = 0.0;
        let reached = |&(_, mass): &(usize, f64)| {
            tail += mass;
            tail <= p
        };
        let within = sign_flip_distribution(&scores).into_iter().enumerate().rev().take_while(reached).last();
        within.map(|(sum, _)| sum)
    }

    /// Whether the differences, each with `shift` added, reach that sum. The more is added, the rather they do.
    pub fn reaches(self, differences: &[f64], shift: f64, critical_sum: usize) -> bool {
        let mut order: Vec<f64> = differences.iter().map(|difference| difference + shift).collect();
        order.sort_unstable_by(|a, b| a.abs().total_cmp(&b.abs()));
        let positive = order.iter().enumerate().filter(|(_, value)| **value > 0.0);
        positive.map(|(place, _)| (2 * (place + 1)).min(self.cap)).sum::<usize>() >= critical_sum
    }
}

/// The smallest one-sided p that `pairs` pairs can give: 2^-pairs.
pub fn smallest_p(pairs: usize) -> f64 {
    0.5f64.powi(pairs.min(1100) as i32)
}

/// The smallest number of pairs whose [`smallest_p`] is at most `p`; `None` when no number is (p is not positive).
pub fn pairs_needed(p: f64) -> Option<usize> {
    (1..=1074).find(|&pairs| smallest_p(pairs) <= p && smallest_p(pairs) > 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_pcg::Pcg64;

    fn p(differences: &[f64], alternative: Alternative) -> f64 {
        p_value(differences, alternative, 20_000, &mut Pcg64::seed_from_u64(7))
    }

    /// Charles Darwin's maize heights, crossed minus self-fertilised, in eighths of an inch (Fisher, The Design of
    /// Experiments, section 17): R's `wilcox.test(exact = TRUE)` has W = 96 without its tie, p = 0.0413 two-sided. The
    /// values here are moved apart by a hair, which keeps W.
    #[test]
    fn darwin() {
        let maize = [49.0, -67.0, 8.0, 16.0, 6.0, 23.0, 28.0, 41.0, 14.001, 29.0, 56.0, 24.0, 75.0, 60.0, -48.0];
        assert!((p(&maize, Alternative::TwoSided) - 0.041260).abs() < 1e-5, "{}", p(&maize, Alternative::TwoSided));
    }

    /// Tail probabilities of W for n = 5 and n = 10 (Hollander and Wolfe, Nonparametric Statistical Methods, table A.4):
    /// P(W >= 15 | 5) = 1/32, P(W >= 13 | 5) = 3/32, P(W >= 44 | 10) = 0.053 - of 1024 flips 54 or fewer.
    #[test]
    fn published_tails() {
        assert_eq!(p(&[1.0, 2.0, 3.0, 4.0, 5.0], Alternative::Greater), 1.0 / 32.0);
        assert_eq!(p(&[-1.0, -2.0, -3.0, -4.0, -5.0], Alternative::Less), 1.0 / 32.0);
        assert_eq!(p(&[1.0, -2.0, 3.0, 4.0, 5.0], Alternative::Greater), 3.0 / 32.0);
        // W = 55 - 11 = 44: the negative ranks are 1 and 10.
        let ten = [-1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, -10.0];
        assert!((p(&ten, Alternative::Greater) - 0.0527).abs() < 5e-4, "{}", p(&ten, Alternative::Greater));
    }

    #[test]
    fn nothing_is_no_evidence() {
        assert_eq!(p(&[], Alternative::Greater), 1.0);
        assert_eq!(p(&[0.0; 8], Alternative::TwoSided), 1.0);
        assert_eq!(p(&[f64::NAN; 8], Alternative::Greater), 1.0);
        assert_eq!(p(&[1.0], Alternative::Greater), 0.5);
    }

    #[test]
    fn drawing_agrees_with_counting_and_is_never_zero() {
        let values: Vec<f64> = (1..=110).map(|i| if i % 2 == 0 { -f64::from(i) } else { f64::from(i) + 0.5 }).collect();
        let magnitudes: Vec<f64> = values.iter().map(|v| v.abs()).collect();
        let ranks = doubled_ranks(&magnitudes);
        let observed = ranks.iter().zip(&values).filter(|(_, v)| **v > 0.0).map(|(r, _)| r).sum();
        let (exact, _) = tails(&sign_flip_distribution(&ranks), observed);
        assert!((p(&values, Alternative::Greater) - exact).abs() < 0.004, "{exact}");
        let all_positive: Vec<f64> = (1..=110).map(f64::from).collect();
        assert_eq!(p(&all_positive, Alternative::Greater), 1.0 / 20_001.0);
    }

    #[test]
    fn capped_ranks_reach_their_critical_sum_where_the_p_value_crosses() {
        let mut rng = Pcg64::seed_from_u64(2);
        for pairs in [5, 8, 16, 31] {
            for level in [0.1, 0.3] {
                let values: Vec<f64> = (0..pairs).map(|_| rng.random::<f64>() - 0.4).collect();
                let ranks = CappedRanks::new(pairs);
                let sum = ranks.critical_sum(level).expect("so many pairs can");
                for shift in (-20..20).map(|step| 0.05 * f64::from(step)) {
                    let shifted: Vec<f64> = values.iter().map(|value| value + shift).collect();
                    let p = ranks.p_value(&shifted, Alternative::Greater);
                    assert_eq!(ranks.reaches(&values, shift, sum), p <= level, "{pairs} at {level}: {shift}, {p}");
                }
            }
        }
        // Of the sums that occur, all even, only the largest is as rare; 23 is the least that asks for it.
        assert_eq!(CappedRanks::new(5).critical_sum(1.0 / 32.0), Some(2 + 4 + 6 + 6 + 5));
        assert_eq!(CappedRanks::new(5).critical_sum(0.031), None);
    }

    /// By hand: scores 2, 4, 6, 6, 6 of 1, 2, -3, 4, 50, of which 18 of 24 are positive; as much is left where at most a
    /// 2, a 4, both of these, or one of the sixes is flipped.
    #[test]
    fn capped_ranks_by_hand() {
        let p = |values: &[f64]| CappedRanks::new(values.len()).p_value(values, Alternative::Greater);
        assert_eq!(p(&[1.0, 2.0, -3.0, 4.0, 50.0]), 7.0 / 32.0);
        // A spike against weighs no more than the next.
        assert_eq!(p(&[1.0, 2.0, 3.0, 4.0, -50.0]), p(&[1.0, 2.0, 3.0, -4.0, 50.0]));
    }

    #[test]
    fn how_many_pairs() {
        assert_eq!(pairs_needed(0.1), Some(4));
        assert_eq!(pairs_needed(0.5), Some(1));
        assert_eq!(pairs_needed(1e-4), Some(14));
        assert_eq!(pairs_needed(0.0), None);
    }
}
