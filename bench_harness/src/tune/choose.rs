//! From what was measured to a choice: pure, as the gate's decisions are, and by the same tests.

use std::collections::BTreeMap;

use attn_kernels::cuda::tiles::Tiles;
use serde::Serialize;

use super::Contest;
use crate::gate::policy::Policy;
use crate::metric::Estimate;
use crate::metric::latency::timed_rounds;
use crate::record::{CaseResult, Disposition, Record};
use crate::stats::quantile::median;
use crate::stats::signed_rank::{self, CappedRanks};
use crate::stats::{Alternative, fdr, hodges_lehmann};

/// What the screen saw of a candidate.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Screened {
    /// `rows64-keys64-warps4`.
    pub tiles: String,
    /// Why it is out, where some problem of the class was not measured with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Its time over that of what is taken, over the class's problems.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_ratio: Option<Estimate>,
}

/// What should be taken for a class of problems.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Choice {
    /// The kernel.
    pub kernel: String,
    /// The class.
    pub class: String,
    /// What it takes.
    pub taken: String,
    /// What it should take: the same, unless another one was shown to be faster.
    pub best: String,
    /// Why.
    pub reason: String,
    /// One-sided p of the contender's being faster, in the rounds that decide.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p_value: Option<f64>,
    /// Rounds that decided.
    pub rounds: usize,
    /// The problems' case ids.
    pub problems: Vec<String>,
    /// The contender's time over that of what is taken, in the rounds that decide.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_ratio: Option<Estimate>,
    /// Every other candidate, as the screen saw it, the fastest first.
    pub screened: Vec<Screened>,
}

/// The natural logarithm of a candidate's time over that of what is taken, a value a round: the mean over the problems, of
/// which each counts alike. Rounds in which one of them is missing are left out.
///
/// # Errors
/// Some problem was not measured with either of the two: which, and what became of it.
pub fn log_ratios(contest: &Contest, tiles: Tiles, record: &Record) -> Result<Vec<f64>, String> {
    let rounds_of = |tiles: Tiles| -> Result<Vec<BTreeMap<u32, f64>>, String> {
        let of_case = |case: &_| {
            let key = Contest::case_with(case, tiles).key();
            let found = record.cases.iter().find(|result| result.key == key);
            match found {
                Some(result) if result.disposition == Disposition::Measured => Ok(medians(result)),
                Some(result) => {
                    let reason = result.reason.as_deref().map_or(String::new(), |reason| format!(": {reason}"));
                    Err(format!("{}{reason}", result.disposition.name()))
                }
                None => Err("not in the record".to_owned()),
            }
        };
        contest.cases.iter().map(of_case).collect()
    };
    let (taken, candidate) =
        (rounds_of(contest.taken).map_err(|reason| format!("what is taken: {reason}"))?, rounds_of(tiles)?);
    let problems = taken.len() as f64;
    let of_round = |round: &u32| -> Option<f64> {
        let ratios = taken
            .iter()
            .zip(&candidate)
            .map(|(taken, candidate)| Some((candidate.get(round)? / taken.get(round)?).ln()));
        ratios.sum::<Option<f64>>().map(|sum| sum / problems)
    };
    Ok(taken.first().map_or_else(Vec::new, |first| first.keys().filter_map(of_round).collect()))
}

/// The median of each round.
fn medians(case: &CaseResult) -> BTreeMap<u32, f64> {
    timed_rounds(case).filter_map(|round| Some((round.round, median(&round.device_ns)?))).collect()
}

/// The other candidates, as the screen saw them: the fastest first, those that are out last.
pub fn screened(contest: &Contest, record: &Record) -> Vec<(Tiles, Screened)> {
    let mut all: Vec<(Tiles, Screened)> = contest
        .others
        .iter()
        .map(|&tiles| {
            let (time_ratio, reason) = match log_ratios(contest, tiles, record) {
                Ok(ratios) => match estimate(&ratios) {
                    Some(estimate) => (Some(estimate), None),
                    None => (None, Some("no round measured it and what is taken".to_owned())),
                },
                Err(reason) => (None, Some(reason)),
            };
            (tiles, Screened { tiles: tiles.to_string(), reason, time_ratio })
        })
        .collect();
    let place = |screened: &Screened| screened.time_ratio.map_or(f64::INFINITY, |ratio| ratio.value);
    all.sort_by(|(_, a), (_, b)| place(a).total_cmp(&place(b)));
    all
}

/// The candidate that is worth more rounds: the fastest, if it seems faster at all.
pub fn contender(screened: &[(Tiles, Screened)]) -> Option<Tiles> {
    let (tiles, first) = screened.first()?;
    first.time_ratio.filter(|ratio| ratio.value < 1.0).map(|_| *tiles)
}

/// A contender and the logarithms of its ratios in the rounds that decide, or why there are none.
type Confirmed = (Tiles, Result<Vec<f64>, String>);

/// The choices, from the screen and from the rounds that decide. Contenders are confirmed by Benjamini and Hochberg's rule
/// over all of them, at the policy's rate, and must be faster by more than its floor.
pub fn decide(contests: &[Contest], screen: &Record, confirm: Option<&Record>, policy: &Policy) -> Vec<Choice> {
    let screens: Vec<_> = contests.iter().map(|contest| screened(contest, screen)).collect();
    let seen: Vec<Option<Confirmed>> = contests
        .iter()
        .zip(&screens)
        .map(|(contest, screened)| {
            let (tiles, record) = (contender(screened)?, confirm?);
            Some((tiles, log_ratios(contest, tiles, record)))
        })
        .collect();
    let p_of = |seen: &Option<Confirmed>| match seen {
        Some((_, Ok(ratios))) => Some(CappedRanks::new(ratios.len()).p_value(ratios, Alternative::Less)),
        _ => None,
    };
    let p_values: Vec<f64> = seen.iter().filter_map(p_of).collect();
    let mut found = fdr::discoveries(&p_values, policy.false_discovery_rate).into_iter();
    let needed = signed_rank::pairs_needed(policy.false_discovery_rate / p_values.len().max(1) as f64);
    let mut choices = Vec::new();
    for ((contest, screened), seen) in contests.iter().zip(screens).zip(seen) {
        let p_value = p_of(&seen);
        let is_confirmed = p_value.is_some() && found.next().unwrap_or(false);
        let mut choice = Choice {
            kernel: contest.kernel.clone(),
            class: contest.class.clone(),
            taken: contest.taken.to_string(),
            best: contest.taken.to_string(),
            reason: "no other candidate seemed faster".to_owned(),
            p_value,
            rounds: 0,
            problems: contest.cases.iter().map(|case| case.case.id()).collect(),
            time_ratio: None,
            screened: screened.into_iter().map(|(_, screened)| screened).collect(),
        };
        match seen {
            Some((tiles, Ok(ratios))) => {
                choice.rounds = ratios.len();
                choice.time_ratio = estimate(&ratios);
                let is_enough = choice.time_ratio.is_some_and(|ratio| -ratio.value.ln() > policy.floor.ln_1p());
                choice.reason = match (is_confirmed, is_enough, needed) {
                    (true, true, _) => {
                        choice.best = tiles.to_string();
                        format!("{tiles} is faster")
                    }
                    (true, false, _) => format!("{tiles} is faster, by less than the floor"),
                    (false, _, Some(needed)) if ratios.len() < needed => {
                        format!("{tiles}: too few rounds to confirm it: {} (needs {needed})", ratios.len())
                    }
                    (false, ..) => format!("{tiles} seemed faster and was not confirmed"),
                };
            }
            Some((tiles, Err(reason))) => choice.reason = format!("{tiles} seemed faster, then {reason}"),
            None => {}
        }
        choices.push(choice);
    }
    choices
}

fn estimate(log_ratios: &[f64]) -> Option<Estimate> {
    let shift = hodges_lehmann::one_sample(log_ratios, 0.95)?;
    Some(Estimate {
        value: shift.estimate.exp(),
        low: shift.interval.low.exp(),
        high: shift.interval.high.exp(),
        confidence: shift.interval.confidence,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{CaseRound, sample};
    use crate::tune::tests::{IDS, suite};
    use crate::tune::{contests, suite_of};

    /// A record in which each candidate takes `ns(tiles)`, with noise of a machine that slows down, and a little of its own.
    fn record(contests: &[Contest], rounds: u32, ns: impl Fn(&str) -> Option<f64>) -> Record {
        let suite = suite(&IDS);
        let all: Vec<_> = contests.iter().map(|contest| (contest, contest.candidates().collect())).collect();
        let cases = suite_of(&suite, "screen", &all, rounds).cases.into_iter().enumerate().map(|(index, planned)| {
            let (_, tiles) = planned.case.kernel.split_once('+').expect("a candidate");
            let mut case = CaseResult { key: planned.key(), rounds: vec![], ..sample::measured("flash", 64, 1.0) };
            match ns(tiles) {
                None => {
                    (case.disposition, case.reason) = (Disposition::Unsupported, Some("no room".into()));
                }
                Some(ns) => {
                    case.rounds.extend((0..rounds).map(|round| {
                        let drift = 1.0 + 0.05 * f64::from(round);
                        let own = 1.0 + 0.001 * f64::from((round * 31 + index as u32 * 17) % 7);
                        let device_ns = vec![ns * drift * own; 3];
                        CaseRound { device_ns, ..CaseRound::without_samples(round, 0, Disposition::Measured, None) }
                    }));
                }
            }
            case
        });
        Record { cases: cases.collect(), ..sample::record() }
    }

    fn few() -> Vec<Contest> {
        let globs = ["rows64-keys64-*", "rows128-keys64-warps8"].map(|glob| glob.parse().unwrap());
        contests(&suite(&IDS), &[], &globs).unwrap()
    }

    #[test]
    fn the_faster_candidate_is_named_and_an_impossible_one_is_out() {
        let contests = few();
        let times = |tiles: &str| match tiles {
            "rows64-keys64-warps4" => Some(900.0),
            "rows128-keys64-warps8" => None,
            _ => Some(1000.0),
        };
        let choices =
            decide(&contests, &record(&contests, 3, times), Some(&record(&contests, 16, times)), &Policy::default());
        assert_eq!(choices.len(), 2);
        for choice in &choices {
            assert_eq!((choice.best.as_str(), choice.rounds), ("rows64-keys64-warps4", 16), "{choice:?}");
            let ratio = choice.time_ratio.unwrap();
            assert!((ratio.value - 0.9).abs() < 0.005 && ratio.low <= ratio.value && ratio.value <= ratio.high);
            let out = choice.screened.last().unwrap();
            assert_eq!(
                (out.tiles.as_str(), out.reason.as_deref()),
                ("rows128-keys64-warps8", Some("unsupported: no room"))
            );
        }
    }

    #[test]
    fn nothing_is_taken_for_faster_that_is_not() {
        let contests = contests(&suite(&IDS), &[], &["rows64-keys64-*".parse().unwrap()]).unwrap();
        let decided = |screen: f64, confirm: f64, rounds: u32| {
            let times = |ns: f64| move |tiles: &str| Some(if tiles.starts_with("rows64") { ns } else { 1000.0 });
            let confirm = record(&contests, rounds, times(confirm));
            decide(&contests, &record(&contests, 3, times(screen)), Some(&confirm), &Policy::default()).remove(0)
        };
        for (choice, reason) in [
            (decided(900.0, 1000.0, 16), "not confirmed"),
            (decided(900.0, 995.0, 16), "less than the floor"),
            (decided(900.0, 900.0, 4), "too few rounds"),
            (decided(1100.0, 900.0, 16), "no other candidate"),
        ] {
            assert_eq!(choice.best, choice.taken);
            assert!(choice.reason.contains(reason), "{reason}: {choice:?}");
        }
        // Rounds that decide may be missing altogether.
        let slow = record(&contests, 3, |_| Some(1000.0));
        assert!(decide(&contests, &slow, None, &Policy::default()).iter().all(|choice| choice.best == choice.taken));
    }

    #[test]
    fn a_choice_is_written_as_toml() {
        let contests = few();
        let times = |tiles: &str| Some(if tiles.starts_with("rows64") { 900.0 } else { 1000.0 });
        let record = record(&contests, 16, times);
        let choices = decide(&contests, &record, Some(&record), &Policy::default());
        let text = toml::to_string_pretty(&BTreeMap::from([("choice", choices)])).unwrap();
        let read: toml::Table = toml::from_str(&text).unwrap();
        assert_eq!(read["choice"][0]["best"].as_str(), Some("rows64-keys64-warps4"), "{text}");
    }
}
