//! The smallest slowdown that a case would not have hidden.

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

use super::plan::{PairedCase, floor};
use super::policy::Policy;
use super::stages::look_pairs;
use crate::stats::signed_rank::{critical_rank_sum, shift_to_reject};
use crate::stats::hodges_lehmann;

/// Slowdowns above a factor of e are not sought.
const LARGEST: f64 = 1.0;

/// The smallest true slowdown that screen, confirmation and floor would have found with the policy's power: the same
/// stages are simulated on the case's own noise, which is its pairs less their centre with random signs. `survivors` is
/// the size of the family that it would be confirmed in. `None` where there are too few pairs, where no effect below a
/// factor of e would be found, or where the policy asks for no simulations.
///
/// Each stage is passed from some effect on, whatever the draw: a rank test from the effect at which enough averages of
/// two pairs turn positive, a floor from the effect that lifts the estimate over it. So each simulation answers with the
/// smallest effect that it finds, and their quantile at the wanted power is exact.
pub fn mde(policy: &Policy, case: &PairedCase, survivors: usize) -> Option<f64> {
    if policy.simulations == 0 || case.log_ratios.len() < policy.screen_pairs {
        return None;
    }
    let centre = hodges_lehmann::one_sample_estimate(&case.log_ratios)?;
    let noise: Vec<f64> = case.log_ratios.iter().map(|ratio| ratio - centre).collect();
    let alone = policy.false_discovery_rate / survivors.max(1) as f64;
    let look = look_pairs(policy);
    let screen_sum = critical_rank_sum(policy.screen_pairs, policy.screen_p)?;
    let confirm_sum = critical_rank_sum(policy.confirm_pairs, alone)?;
    let look_sum = critical_rank_sum(look, policy.look_p)?;

    let mut rng = Pcg64::seed_from_u64(policy.seed ^ 0x006d_6465);
    let mut draw = |pairs: usize| -> Vec<f64> {
        let mut one = || if rng.random::<bool>() { 1.0 } else { -1.0 } * noise[rng.random_range(0..noise.len())];
        (0..pairs).map(|_| one()).collect()
    };
    let smallest = |_| {
        let (screen, confirm) = (draw(policy.screen_pairs), draw(policy.confirm_pairs));
        let passes = shift_to_reject(&screen, screen_sum)
            .max(shift_to_reject(&confirm, confirm_sum))
            .max(floor(policy, &confirm, case.calibrated_error) - hodges_lehmann::one_sample_estimate(&confirm)?);
        Some(if look < policy.confirm_pairs { passes.max(shift_to_reject(&confirm[..look], look_sum)) } else { passes })
    };
    let mut effects = (0..policy.simulations).map(smallest).collect::<Option<Vec<f64>>>()?;
    let enough = ((policy.power * effects.len() as f64).ceil() as usize).clamp(1, effects.len()) - 1;
    let effect = *effects.select_nth_unstable_by(enough, f64::total_cmp).1;
    (effect <= LARGEST).then(|| effect.max(0.0).exp_m1())
}

