//! What gates do on simulated machines, over many of them: one of each seed.

use std::ops::Range;

use attnbench::gate::exit::Exit;
use attnbench::gate::policy::Policy;
use rayon::prelude::*;

use crate::gate::{CASES, Outcome, gate};
use crate::noise::Noise;
use crate::simulated::Share;

/// Gates of two builds that do not differ.
pub(crate) struct Unchanged {
    /// Exits that are not zero, for any reason,
    pub(crate) alarms: Share,
    /// and for one each: a case, a family, the controls, undecided, memory or accuracy.
    pub(crate) by_cause: [Share; 5],
    /// Mean pairs a case, and its standard error.
    pub(crate) pairs: (f64, f64),
    /// Mean over gates of the median smallest detectable slowdown.
    pub(crate) mde: f64,
}

pub(crate) fn unchanged(noise: Noise, policy: &Policy, seeds: Range<u64>) -> Unchanged {
    let gates = seeds.end - seeds.start;
    let all: Vec<Outcome> = seeds.into_par_iter().map(|seed| gate(noise, &[0.0; CASES], policy, seed)).collect();
    let share = |is: &dyn Fn(&Outcome) -> bool| Share { of: gates, count: all.iter().filter(|o| is(o)).count() as u64 };
    let pairs: Vec<f64> = all.iter().map(|outcome| outcome.pairs as f64 / CASES as f64).collect();
    let mean = pairs.iter().sum::<f64>() / gates as f64;
    let variance = pairs.iter().map(|pairs| (pairs - mean).powi(2)).sum::<f64>() / (gates as f64 - 1.0).max(1.0);
    Unchanged {
        alarms: share(&|outcome| outcome.exit != Exit::Pass),
        by_cause: [
            share(&|outcome| !outcome.slower.is_empty()),
            share(&|outcome| outcome.family_regressed),
            share(&|outcome| outcome.controls_differ),
            share(&|outcome| outcome.undecided),
            share(&|outcome| outcome.other_metric),
        ],
        pairs: (mean, (variance / gates as f64).sqrt()),
        mde: all.iter().map(|outcome| outcome.median_mde.unwrap_or(f64::INFINITY)).sum::<f64>() / gates as f64,
    }
}

/// How often one case in [`CASES`] that is slower is called regressed.
pub(crate) fn power(noise: Noise, slowdown: f64, policy: &Policy, seeds: Range<u64>) -> Share {
    let policy = Policy { simulations: 0, ..policy.clone() };
    let found = |seed: &u64| {
        let mut slowdowns = [0.0; CASES];
        let case = *seed as usize % CASES;
        slowdowns[case] = slowdown.ln_1p();
        // Seeds of their own: the machines of the gates without a change are others.
        gate(noise, &slowdowns, &policy, seed + 1_000_000).slower.contains(&case)
    };
    Share { of: seeds.end - seeds.start, count: seeds.into_par_iter().filter(found).count() as u64 }
}

/// How often a family of 20 cases, each slower by too little for any case's floor, fails the gate.
pub(crate) fn family_power(noise: Noise, slowdown: f64, policy: &Policy, seeds: Range<u64>) -> Share {
    let policy = Policy { simulations: 0, ..policy.clone() };
    let found = |seed: &u64| {
        let mut slowdowns = [0.0; CASES];
        slowdowns.iter_mut().skip(9).step_by(10).for_each(|one| *one = slowdown.ln_1p());
        gate(noise, &slowdowns, &policy, seed + 2_000_000).family_regressed
    };
    Share { of: seeds.end - seeds.start, count: seeds.into_par_iter().filter(found).count() as u64 }
}
