//! Simulated bisections: the effect is confirmed and estimated by a gate, then commits are searched as the command does.

use std::ops::Range;

use attnbench::bisect::MAX_PAIRS;
use attnbench::bisect::journal::Effect;
use attnbench::bisect::search::{Graph, Next, Seen};
use attnbench::gate::policy::Policy;
use attnbench::stats::sequential::Answer;
use rand::RngExt;
use rayon::prelude::*;

use crate::gate::one_case;
use crate::noise::{Machine, Noise};
use crate::simulated::Share;

/// Commits between good and bad.
pub(crate) const COMMITS: usize = 1000;

/// What became of searches.
pub(crate) struct Searches {
    /// The right culprit was named.
    pub(crate) right: Share,
    /// Pairs of a search, the confirmation of bad against good included.
    pub(crate) mean_pairs: f64,
}

/// Searches over commits of which one, at random, is slower by `slowdown`.
pub(crate) fn searches(noise: Noise, slowdown: f64, seeds: Range<u64>) -> Searches {
    let count = seeds.end - seeds.start;
    let graph = Graph::new((0..COMMITS).map(|i| if i == 0 { vec![] } else { vec![i - 1] }).collect());
    let all: Vec<(bool, usize)> =
        seeds.into_par_iter().map(|seed| search(&graph, noise, slowdown.ln_1p(), seed)).collect();
    Searches {
        right: Share { of: count, count: all.iter().filter(|(is_right, _)| *is_right).count() as u64 },
        mean_pairs: all.iter().map(|(_, pairs)| *pairs).sum::<usize>() as f64 / count as f64,
    }
}

fn search(graph: &Graph, noise: Noise, slowdown: f64, seed: u64) -> (bool, usize) {
    let mut machine = Machine::new(noise, 1, seed + 3_000_000);
    let culprit = machine.rng().random_range(0..COMMITS);
    let policy = Policy { simulations: 0, ..Policy::default() };
    let (finding, log_ratios) = one_case(&mut machine, slowdown, &policy);
    let mut pairs = log_ratios.len();
    let Some(test) = Effect::of(&finding, log_ratios).and_then(|effect| effect.test(graph)) else {
        return (false, pairs);
    };
    let mut found = Vec::new();
    loop {
        match graph.next(&found) {
            Next::Test(commit) => {
                let truth = if commit >= culprit { slowdown } else { 0.0 };
                let mut values = Vec::new();
                while values.len() < MAX_PAIRS && test.answer(&values) == Answer::Open {
                    machine.start_round();
                    values.push(truth + machine.pair(0));
                }
                pairs += values.len();
                found.push((
                    commit,
                    match test.answer(&values) {
                        Answer::Effect => Seen::Bad,
                        Answer::NoEffect => Seen::Good,
                        Answer::Open => Seen::Untestable,
                    },
                ));
            }
            end => return (end == Next::Culprit(culprit), pairs),
        }
    }
}
