//! The smallest slowdown that a case would not have hidden.

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

use super::plan::{PairedCase, floor};
use super::policy::Policy;
use super::stages::{confirm_pairs, look_pairs, most_confirm_pairs, screen_pairs};
use crate::stats::hodges_lehmann;
use crate::stats::signed_rank::CappedRanks;

/// Slowdowns above a factor of e are not sought.
const LARGEST: f64 = 1.0;

/// The smallest true slowdown that screen, confirmation and floor would have found with the policy's power: the same
/// stages are simulated on the case's own noise, which is its pairs less their centre with random signs. `survivors` is
/// the size of the family that it would be confirmed in. `None` where there are too few pairs, where no effect below a
/// factor of e would be found, or where the policy asks for no simulations.
pub fn mde(policy: &Policy, case: &PairedCase, survivors: usize) -> Option<f64> {
    Simulation::new(policy, survivors)?.mde(case)
}

/// The stages of a gate as they are simulated, for all of its cases.
///
/// Each stage is passed from some effect on, whatever the draw. So each simulation answers with the smallest effect that
/// it finds, and the smallest detectable one is their quantile at the wanted power.
pub(super) struct Simulation<'a> {
    policy: &'a Policy,
    /// Of a screen, and of one of twice its length.
    screen_sums: [usize; 2],
    look_sum: usize,
    /// By the number of pairs of the confirmation; `None` where no result of so many is significant.
    confirm_sums: Vec<Option<usize>>,
}

impl<'a> Simulation<'a> {
    /// `None` where there are to be no simulations, or where the first stages cannot be passed.
    pub(super) fn new(policy: &'a Policy, survivors: usize) -> Option<Simulation<'a>> {
        if policy.simulations == 0 {
            return None;
        }
        let alone = policy.false_discovery_rate / survivors.max(1) as f64;
        let sums =
            |pairs| if pairs < policy.confirm_pairs { None } else { CappedRanks::new(pairs).critical_sum(alone) };
        let screen = |times| CappedRanks::new(times * policy.screen_pairs).critical_sum(policy.screen_p);
        Some(Simulation {
            policy,
            screen_sums: [screen(1)?, screen(2)?],
            look_sum: CappedRanks::new(look_pairs(policy)).critical_sum(policy.look_p)?,
            confirm_sums: (0..=most_confirm_pairs(policy)).map(sums).collect(),
        })
    }

    pub(super) fn mde(&self, case: &PairedCase) -> Option<f64> {
        let policy = self.policy;
        if case.log_ratios.len() < policy.screen_pairs {
            return None;
        }
        let centre = hodges_lehmann::one_sample_estimate(&case.log_ratios)?;
        let noise: Vec<f64> = case.log_ratios.iter().map(|ratio| ratio - centre).collect();
        let mut rng = Pcg64::seed_from_u64(policy.seed ^ 0x006d_6465);
        let mut draw = |pairs: usize| -> Vec<f64> {
            let mut one = || if rng.random::<bool>() { 1.0 } else { -1.0 } * noise[rng.random_range(0..noise.len())];
            (0..pairs).map(|_| one()).collect()
        };
        let mut effects: Vec<f64> = (0..policy.simulations)
            .map(|_| {
                let mut screen = draw(policy.screen_pairs);
                screen.extend(draw(screen_pairs(&screen, policy) - policy.screen_pairs));
                let confirm = draw(confirm_pairs(&screen, policy));
                self.smallest(&screen, &confirm, case.calibrated_error).unwrap_or(f64::INFINITY)
            })
            .collect();
        let enough = ((policy.power * effects.len() as f64).ceil() as usize).clamp(1, effects.len()) - 1;
        let effect = *effects.select_nth_unstable_by(enough, f64::total_cmp).1;
        (effect <= LARGEST).then(|| effect.max(0.0).exp_m1())
    }

    /// The smallest effect that would have been found in this noise.
    fn smallest(&self, screen: &[f64], confirm: &[f64], calibrated_error: Option<f64>) -> Option<f64> {
        let confirm_sum = (*self.confirm_sums.get(confirm.len())?)?;
        let above_floor = floor(self.policy.floor, self.policy, confirm, calibrated_error)
            - hodges_lehmann::one_sample_estimate(confirm)?;
        let look = look_pairs(self.policy);
        let mut effect = raised(above_floor, confirm, confirm_sum);
        effect = raised(effect, screen, self.screen_sums[usize::from(screen.len() > self.policy.screen_pairs)]);
        Some(if look < confirm.len() { raised(effect, &confirm[..look], self.look_sum) } else { effect })
    }
}

/// The smallest effect from this one on with which the noise reaches that rank sum, to a hundredth of a percent.
fn raised(effect: f64, noise: &[f64], critical_sum: usize) -> f64 {
    let ranks = CappedRanks::new(noise.len());
    if ranks.reaches(noise, effect, critical_sum) {
        return effect;
    }
    // With every pair positive the sum is the largest.
    let (mut missed, mut reached) = (effect, -noise.iter().copied().fold(f64::INFINITY, f64::min) + 1e-9);
    while reached - missed > 1e-4 {
        let middle = 0.5 * (missed + reached);
        if ranks.reaches(noise, middle, critical_sum) { reached = middle } else { missed = middle }
    }
    reached
}
