//! The two stages that a series of pairs goes through before it may be called slower or faster: screen and confirmation.
//!
//! Cases and families share them. All that is asked of a stage is decided by the pairs of that stage alone, so a series
//! that was selected by chance has earned nothing for the next. The look in the middle of the confirmation only gives up:
//! it can turn a discovery into none, never the other way round, so it needs no share of the false alarms.

use super::policy::Policy;
use crate::stats::Alternative;
use crate::stats::noise::standard_deviation;
use crate::stats::signed_rank::CappedRanks;

/// What the first pairs say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Screen {
    Incomplete,
    Slower,
    Faster,
    Passed,
}

impl Screen {
    /// Of the pairs of a case. Improvements fail no gate, so fewer of them are worth a confirmation.
    pub(super) fn of(pairs: &[f64], policy: &Policy) -> Screen {
        let Some(pairs) = pairs.get(..screen_pairs(pairs, policy)) else { return Screen::Incomplete };
        if p_value(pairs, Alternative::Greater) <= policy.screen_p {
            Screen::Slower
        } else if p_value(pairs, Alternative::Less) <= policy.screen_p_faster {
            Screen::Faster
        } else {
            Screen::Passed
        }
    }

    /// The direction that the confirmation looks in.
    pub(super) fn alternative(self) -> Option<Alternative> {
        match self {
            Screen::Slower => Some(Alternative::Greater),
            Screen::Faster => Some(Alternative::Less),
            Screen::Incomplete | Screen::Passed => None,
        }
    }

    /// How many pairs a series should have by now.
    pub(super) fn wanted(self, pairs: &[f64], policy: &Policy) -> usize {
        match self {
            Screen::Incomplete => screen_pairs(pairs, policy),
            Screen::Passed => 0,
            Screen::Slower | Screen::Faster => {
                let screen = screen_pairs(pairs, policy);
                let look = screen + look_pairs(policy);
                if pairs.len() < look || self.is_futile(pairs, policy) {
                    look
                } else {
                    screen + confirm_pairs(pairs, policy)
                }
            }
        }
    }

    /// The pairs of the confirmation, as far as they were measured. Those of a series that never was to be confirmed are
    /// extra ones.
    pub(super) fn confirmation<'a>(self, pairs: &'a [f64], policy: &Policy) -> &'a [f64] {
        let screen = screen_pairs(pairs, policy);
        let end = pairs.len().min(screen + confirm_pairs(pairs, policy));
        match self {
            Screen::Slower | Screen::Faster => &pairs[screen..end],
            Screen::Incomplete | Screen::Passed => &[],
        }
    }

    /// Whether the first part of the confirmation shows so little that the rest is not worth measuring.
    pub(super) fn is_futile(self, pairs: &[f64], policy: &Policy) -> bool {
        let (Some(alternative), Some(look)) =
            (self.alternative(), self.confirmation(pairs, policy).get(..look_pairs(policy)))
        else {
            return false;
        };
        look.len() < policy.confirm_pairs && p_value(look, alternative) > policy.look_p
    }

    /// One-sided p of the confirmation; 1 where there is none or it was given up.
    pub(super) fn confirmed_p(self, pairs: &[f64], policy: &Policy) -> f64 {
        match self.alternative() {
            Some(alternative) if !self.is_futile(pairs, policy) => {
                p_value(self.confirmation(pairs, policy), alternative)
            }
            _ => 1.0,
        }
    }
}

/// Pairs of the screen, given the first of them: twice as many where noise asks for a longer confirmation.
pub(super) fn screen_pairs(pairs: &[f64], policy: &Policy) -> usize {
    let is_noisy = confirm_pairs(pairs, policy) > policy.confirm_pairs;
    if is_noisy { 2 * policy.screen_pairs } else { policy.screen_pairs }
}

/// Pairs of the confirmation, given the first of the screen: as many as bring the floor that noise sets near the one that
/// the policy sets, within its bounds. The screen's scatter says nothing about the signs of what comes after it.
pub(super) fn confirm_pairs(pairs: &[f64], policy: &Policy) -> usize {
    let scatter = standard_deviation(&pairs[..policy.screen_pairs.min(pairs.len())]).unwrap_or(0.0);
    let least = (policy.floor_standard_errors * scatter / (NEAR_THE_FLOOR * policy.floor.ln_1p())).powi(2);
    let most = most_confirm_pairs(policy);
    // A policy without a floor asks for the most.
    if least.is_nan() { policy.confirm_pairs } else { (least.ceil() as usize).clamp(policy.confirm_pairs, most) }
}

/// Pairs of the longest confirmation.
pub(super) fn most_confirm_pairs(policy: &Policy) -> usize {
    policy.max_pairs.saturating_sub(2 * policy.screen_pairs).max(policy.confirm_pairs)
}

/// The noise's floor over the policy's that is near enough.
const NEAR_THE_FLOOR: f64 = 1.25;

/// Pairs of the confirmation after which it may be given up.
pub(super) fn look_pairs(policy: &Policy) -> usize {
    policy.look_pairs.min(policy.confirm_pairs)
}

/// The p-value of some pairs.
pub(super) fn p_value(pairs: &[f64], alternative: Alternative) -> f64 {
    CappedRanks::new(pairs.len()).p_value(pairs, alternative)
}
