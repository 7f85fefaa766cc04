//! The change-point detector on simulated series: a small version of the example `change_points`, whose bounds are far
//! from what a correct detector does with these seeds, and awkward series.

#[allow(dead_code, reason = "the table prints more than the tests compare")]
mod measure;
mod series;
#[allow(dead_code, reason = "the table prints more than the tests compare")]
#[path = "../support/simulated.rs"]
mod simulated;

use attnbench::stats::change_point::{PROVISIONAL, Settings, change_points};
use measure::{false_alarms, power};
use proptest::prelude::*;
use series::{Noise, generator, with_step};

/// Indices of the changes of a series.
fn indices(values: &[f64]) -> Vec<usize> {
    change_points(values, &Settings::default()).iter().map(|change| change.index).collect()
}

#[test]
fn clean_series_are_clean_in_every_noise() {
    for noise in Noise::ALL {
        let most = match noise {
            // A random walk has levels that stay: stated, not promised.
            Noise::Walk => 60,
            // A series may end within an excursion, and few of them last longer than any that is recognised.
            Noise::LongExcursions => 14,
            _ => 10,
        };
        let alarms = false_alarms(noise, 0..200);
        assert!(alarms.count <= most, "{}: {alarms:?}", noise.name());
    }
}

#[test]
fn steps_are_found_where_they_are() {
    // A step that is missed is not covered either: the last is as large as the noise, and some are.
    for (noise, size, least, least_covered) in [
        (Noise::White, 0.03, 198, 170),
        (Noise::White, -0.03, 198, 170),
        (Noise::Autoregressive, 0.03, 192, 170),
        (Noise::Spiky, 0.03, 198, 170),
        (Noise::HeavyTailed, 0.03, 198, 170),
        (Noise::White, 0.01, 136, 155),
    ] {
        let found = power(noise, size, 0..200);
        assert!(found.near.count >= least, "{size} in {}: {:?}", noise.name(), found.near);
        assert!(found.extra.count <= 8, "{size} in {}: {:?}", noise.name(), found.extra);
        assert!(found.covered.count >= least_covered, "{size} in {}: {:?}", noise.name(), found.covered);
    }
}

#[test]
fn awkward_series_have_no_changes() {
    assert!(indices(&[]).is_empty());
    assert!(indices(&[1.0]).is_empty());
    assert!(indices(&[f64::NAN; 50]).is_empty());
    assert!(indices(&[f64::INFINITY, 1.0, f64::NEG_INFINITY]).is_empty());
    assert!(indices(&[0.0; 100]).is_empty());
    assert!(indices(&[7.5; 1000]).is_empty());
    assert!(indices(&[f64::MIN_POSITIVE; 40]).is_empty());
    assert!(indices(&[f64::MAX; 40]).is_empty());
    // Two values in turns are a bimodal series.
    let alternating: Vec<f64> = (0..200).map(|t| if t % 2 == 0 { 1.0 } else { 1.1 }).collect();
    assert!(indices(&alternating).is_empty());
    // A single spike, a short excursion, and a first value like no other.
    for spikes in [50..51, 50..58, 0..1, 199..200] {
        let mut values = Noise::White.series(200, &mut generator(5, 0));
        values[spikes].iter_mut().for_each(|value| *value *= 2.0);
        assert!(indices(&values).is_empty());
    }
}

#[test]
fn exact_levels_have_exact_changes() {
    // Counted quantities have no noise at all.
    let values: Vec<f64> = (0..100).map(|t| if t < 37 { 4096.0 } else { 8192.0 }).collect();
    let changes = change_points(&values, &Settings::default());
    assert_eq!(changes.len(), 1);
    let change = changes[0];
    assert_eq!((change.index, change.index_low, change.index_high), (37, 37, 37));
    assert!((change.size - 1.0).abs() < 1e-6 && (change.before - 4096.0).abs() < 1e-2, "{change:?}");
    let small: Vec<f64> = (0..60).map(|t| f64::from(1_000_000 + i32::from(t >= 30))).collect();
    assert_eq!(indices(&small), [30]);
    let negative: Vec<f64> = (0..60).map(|t| if t < 30 { -1.0 } else { 1.0 }).collect();
    assert_eq!(indices(&negative), [30]);
}

#[test]
fn several_steps_up_and_down() {
    let mut values = Noise::White.series(400, &mut generator(6, 1));
    for (t, value) in values.iter_mut().enumerate() {
        *value *= match t {
            0..100 => 1.0,
            100..180 => 1.06,
            180..300 => 1.02,
            _ => 0.9,
        };
    }
    let found = indices(&values);
    assert_eq!(found.len(), 3, "{found:?}");
    for (found, truth) in found.iter().zip([100usize, 180, 300]) {
        assert!(found.abs_diff(truth) <= 2, "{found} {truth}");
    }
}

#[test]
fn recent_steps_are_provisional() {
    for (after, is_provisional) in [(PROVISIONAL, true), (PROVISIONAL + 1, false)] {
        let mut values = Noise::White.series(200, &mut generator(7, 3));
        values[200 - after..].iter_mut().for_each(|value| *value *= 1.1);
        let changes = change_points(&values, &Settings::default());
        assert_eq!(changes.len(), 1, "{after}: {changes:?}");
        assert_eq!((changes[0].index, changes[0].provisional), (200 - after, is_provisional));
    }
}

#[test]
fn what_went_away_is_no_change_however_it_came_and_went() {
    let found = |levels: &[(std::ops::Range<usize>, f64)]| {
        let mut values = Noise::White.series(300, &mut generator(11, 0));
        for (range, factor) in levels {
            values[range.clone()].iter_mut().for_each(|value| *value *= factor);
        }
        change_points(&values, &Settings::default())
    };
    // A plateau, one that comes and goes in two steps each, and one that is over since two values.
    assert!(found(&[(100..140, 1.05)]).is_empty());
    assert!(found(&[(100..145, 1.05), (112..130, 1.05)]).is_empty());
    assert!(found(&[(262..298, 1.1)]).is_empty());
    // One that lasts longer is two changes, and a second step is none that goes away.
    assert_eq!(found(&[(100..160, 1.05)]).len(), 2);
    assert_eq!(found(&[(100..300, 1.05), (140..300, 1.05)]).len(), 2);
    // What went away before may go away again: provisional, until it lasts twice as long.
    let again = |length: usize| found(&[(100..112, 1.05), (300 - length..300, 1.05)]);
    for (length, is_provisional) in [(20, true), (40, false)] {
        let changes = again(length);
        assert_eq!(changes.len(), 1, "{length}: {changes:?}");
        assert_eq!(changes[0].provisional, is_provisional, "{length}: {changes:?}");
    }
    assert!(!found(&[(280..300, 1.05)])[0].provisional, "nothing like it went away before");
}

#[test]
fn scale_offset_and_gaps_do_not_matter() {
    let (values, index) = with_step(Noise::White, 300, 0.05, &mut generator(8, 2));
    let found = indices(&values);
    assert!(found.len() == 1 && found[0].abs_diff(index) <= 2, "{found:?}");
    for factor in [1e-9, 1e12] {
        assert_eq!(indices(&values.iter().map(|value| value * factor).collect::<Vec<_>>()), found);
    }
    assert_eq!(indices(&values.iter().map(|value| -value).collect::<Vec<_>>()), found);
    let mut gaps = values.clone();
    gaps.iter_mut().step_by(7).for_each(|value| *value = f64::NAN);
    let with_gaps = indices(&gaps);
    assert!(with_gaps.len() == 1 && with_gaps[0].abs_diff(index) <= 3, "{with_gaps:?}");
    assert_eq!(indices(&values), found, "the same series has the same changes");
}

#[test]
fn a_long_series_is_searched() {
    let mut values = Noise::White.series(8000, &mut generator(9, 0));
    values[5000..].iter_mut().for_each(|value| *value *= 1.03);
    let found = indices(&values);
    assert!(found.len() == 1 && found[0].abs_diff(5000) <= 3, "{found:?}");
    // Beyond what is searched value by value, wherever the step is, with spikes and gaps in it.
    let mut values = Noise::Spiky.series(200_000, &mut generator(9, 1));
    values[60_001..].iter_mut().for_each(|value| *value *= 1.05);
    values.iter_mut().skip(59_990).step_by(7).for_each(|value| *value = f64::NAN);
    let changes = change_points(&values, &Settings::default());
    assert_eq!(changes.len(), 1, "{changes:?}");
    assert!(changes[0].index.abs_diff(60_001) <= 5, "{changes:?}");
    assert!((changes[0].index_low..=changes[0].index_high).contains(&60_001), "{changes:?}");
    assert!(indices(&vec![f64::NAN; 20_000]).is_empty());
    assert!(indices(&vec![3.0; 20_000]).is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    /// Whatever the values are, changes are ascending, inside their intervals, and inside the series.
    #[test]
    fn any_series_is_survived(
        blocks in prop::collection::vec((1usize..40, prop::num::f64::ANY, 0.0f64..2.0), 0..12),
        seed in any::<u64>(),
    ) {
        let mut rng = generator(10, seed);
        let mut values = Vec::new();
        for (length, level, spread) in blocks {
            values.extend(Noise::Spiky.series(length.max(20), &mut rng)[..length].iter().map(|noise| level * (1.0 + spread * (noise - 1.0))));
        }
        let changes = change_points(&values, &Settings::default());
        prop_assert!(changes.windows(2).all(|pair| pair[0].index < pair[1].index));
        for change in changes {
            prop_assert!(change.index_low <= change.index && change.index <= change.index_high, "{change:?}");
            prop_assert!(change.index_high < values.len() && values[change.index].is_finite());
            prop_assert!((0.0..=1.0).contains(&change.confidence), "{change:?}");
        }
    }
}
