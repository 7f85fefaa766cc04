//! What every sample must obey, whatever it is.

use attnbench::stats::sequential::SequentialTest;
use attnbench::stats::signed_rank::{CappedRanks, p_value};
use attnbench::stats::{Alternative, fdr, hodges_lehmann, quantile};
use proptest::prelude::*;
use rand::SeedableRng;
use rand_pcg::Pcg64;

fn signed_rank(values: &[f64], alternative: Alternative) -> f64 {
    p_value(values, alternative, 1000, &mut Pcg64::seed_from_u64(1))
}

fn capped(values: &[f64], alternative: Alternative) -> f64 {
    CappedRanks::new(values.len()).p_value(values, alternative)
}

/// Finite values of which many are tied, since their ties and zeros are where ranks go wrong.
fn sample(most: usize) -> impl Strategy<Value = Vec<f64>> {
    let value = prop_oneof![(-8i32..8).prop_map(f64::from), -10.0..10.0f64];
    prop::collection::vec(value, 1..most)
}

proptest! {
    /// Both tests, on all flips of some magnitudes: a level is never exceeded. This is what exact means.
    #[test]
    fn sign_flip_tests_are_exact(magnitudes in sample(9), level in 0.01..0.5f64) {
        for test in [signed_rank, capped] {
            let flips = 1usize << magnitudes.len();
            let rejected = (0..flips).filter(|flip| {
                let flipped: Vec<f64> = magnitudes.iter().enumerate().map(|(i, magnitude)| {
                    if flip >> i & 1 == 1 { -magnitude } else { *magnitude }
                }).collect();
                test(&flipped, Alternative::Greater) <= level
            });
            prop_assert!(rejected.count() as f64 <= level * flips as f64 + 1e-9);
        }
    }

    #[test]
    fn tests_do_not_care_for_units_or_sides(values in sample(40), scale in 1e-6..1e6f64) {
        for test in [signed_rank, capped] {
            let p = test(&values, Alternative::Greater);
            prop_assert!((0.0..=1.0).contains(&p));
            let mirrored: Vec<f64> = values.iter().map(|value| -value).collect();
            prop_assert!((test(&mirrored, Alternative::Less) - p).abs() < 1e-12);
            let powers: Vec<f64> = values.iter().map(|value| value * 2f64.powi(scale.log2() as i32)).collect();
            prop_assert_eq!(test(&powers, Alternative::Greater), p);
            prop_assert!(p + test(&values, Alternative::Less) >= 1.0 - 1e-12);
        }
    }

    /// Slower values are never weaker evidence of a slowdown.
    #[test]
    fn evidence_grows_with_the_effect(values in prop::collection::vec(-10.0..10.0f64, 1..30), shift in 0.0..5.0f64) {
        let slower: Vec<f64> = values.iter().map(|value| value + shift).collect();
        for test in [signed_rank, capped] {
            prop_assert!(test(&slower, Alternative::Greater) <= test(&values, Alternative::Greater) + 1e-12);
        }
    }

    #[test]
    fn shifts_are_equivariant(values in sample(40), by in -5.0..5.0f64) {
        let shift = hodges_lehmann::one_sample(&values, 0.95).unwrap();
        prop_assert!(shift.interval.low <= shift.estimate && shift.estimate <= shift.interval.high);
        let moved: Vec<f64> = values.iter().map(|value| value + by).collect();
        let estimate = hodges_lehmann::one_sample_estimate(&moved).unwrap();
        prop_assert!((estimate - shift.estimate - by).abs() < 1e-9);
        let median = quantile::median(&values).unwrap();
        prop_assert!((quantile::median(&moved).unwrap() - median - by).abs() < 1e-9);
        prop_assert!(values.iter().any(|value| *value <= median) && values.iter().any(|value| *value >= median));
    }

    #[test]
    fn discoveries_are_the_smallest_and_grow_with_q(p in prop::collection::vec(0.0..1.0f64, 0..40), q in 0.001..0.5f64) {
        let adjusted = fdr::adjusted(&p);
        prop_assert!(p.iter().zip(&adjusted).all(|(p, adjusted)| *adjusted >= p - 1e-12 && *adjusted <= 1.0));
        let (few, many) = (fdr::discoveries(&p, q), fdr::discoveries(&p, 2.0 * q));
        prop_assert!(few.iter().zip(&many).all(|(few, many)| !few || *many));
        let largest = p.iter().zip(&few).filter(|(_, found)| **found).map(|(p, _)| *p).fold(0.0, f64::max);
        prop_assert!(p.iter().zip(&few).all(|(p, found)| *found || *p >= largest - 1e-12));
    }

    #[test]
    fn a_sequential_test_has_no_preferred_direction(values in sample(60), effect in 0.01..1.0f64, noise in 0.0..2.0f64) {
        let forward = SequentialTest::new(effect, noise, 0.001).unwrap().answer(&values);
        let mirrored: Vec<f64> = values.iter().map(|value| -value).collect();
        prop_assert_eq!(SequentialTest::new(-effect, noise, 0.001).unwrap().answer(&mirrored), forward);
    }
}
