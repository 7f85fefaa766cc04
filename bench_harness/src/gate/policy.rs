//! Every constant of a decision, in one place.
//!
//! Comparisons, the gate, its simulator and the documentation read them from here; a project changes them in a file for
//! `--policy`, which names only what differs.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How a comparison decides. Effects are relative: 0.02 is 2 %.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Seed of every random choice of the decision.
    pub seed: u64,
    /// A change smaller than this is no regression, however significant.
    pub floor: f64,
    /// Nor is one below so many standard errors of the difference between two builds of one commit.
    pub floor_standard_errors: f64,
    /// A case whose slowdown is below this with 95 % confidence is `unchanged`.
    pub margin: f64,
    /// Share of the cases called regressed that may be wrong (Benjamini-Hochberg).
    pub false_discovery_rate: f64,

    /// A/B: pairs that every case gets first, or twice as many where it is noisy.
    pub screen_pairs: usize,
    /// A/B: one-sided p at which a case goes on to confirmation.
    pub screen_p: f64,
    /// A/B: the same for a case that seems faster, which fails no gate.
    pub screen_p_faster: f64,
    /// A/B: new pairs, in fresh processes, for the cases that go on, and more where noise asks for it.
    pub confirm_pairs: usize,
    /// A/B: after so many of them,
    pub look_pairs: usize,
    /// a case whose one-sided p is above this is given up: nothing would come of the rest.
    pub look_p: f64,
    /// A/B: pairs of each further try to show that a case is unchanged.
    pub extra_pairs: usize,
    /// A/B: pairs of a case at most.
    pub max_pairs: usize,

    /// A/B: share of the families called regressed that may be wrong.
    pub family_false_discovery_rate: f64,
    /// A/B: one-sided p at which a family goes on to confirmation.
    pub family_screen_p: f64,
    /// A/B: a change of a family's mean smaller than this is no regression.
    pub family_floor: f64,
    /// A/B: two-sided p at which the controls beside base and head differ,
    pub control_alpha: f64,
    /// A/B: provided that they do so by more than this.
    pub control_floor: f64,
    /// A/B: seconds of measuring, after which no further pairs start.
    pub budget_s: u64,
    /// A/B: samples of a case in a pair, on either side, at most.
    pub pair_samples: u32,
    /// A/B: input seeds that rounds rotate over, for the accuracy.
    pub input_seeds: u32,

    /// Stored baselines: sessions on either side from which sessions are tested against sessions.
    pub min_sessions: usize,
    /// Stored baselines: an effect beyond this is judged with fewer sessions too.
    pub gross_threshold: f64,
    /// Stored baselines: standard errors that such an effect must stand clear of `margin`.
    pub gross_standard_errors: f64,
    /// Stored baselines: rounds of a session at least.
    pub min_rounds: usize,
    /// Stored baselines: where the controls of two sides differ by more, the machine was another one in effect.
    pub max_drift: f64,

    /// Instructions of a call may grow by this share, where they are counted.
    pub instructions_floor: f64,
    /// Extra memory may grow by this share,
    pub memory_share: f64,
    /// or by so many bytes, whichever is more.
    pub memory_slack_bytes: u64,
    /// The relative L2 error may grow by this factor,
    pub accuracy_ratio: f64,
    /// or by this share of the tolerance, whichever is more.
    pub accuracy_rise: f64,
    /// A GPU whose batches are throttled more often on one side, by this share of them, leaves a case inconclusive.
    pub throttle_difference: f64,

    /// A gate that decides a smaller share of its cases is undecided.
    pub min_decided: f64,
    /// A gate whose median smallest detectable effect is larger is undecided.
    pub max_mde: f64,
    /// Power at which the smallest detectable effect is stated.
    pub power: f64,
    /// Comparisons that are simulated for each effect size when the smallest detectable one is sought; 0
    /// states none for A/B.
    pub simulations: usize,
    /// Cases of the base that head no longer has are no regression.
    pub accept_removed: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            seed: 0,
            floor: 0.01,
            floor_standard_errors: 2.33,
            margin: 0.02,
            false_discovery_rate: 0.01,
            screen_pairs: 8,
            screen_p: 0.10,
            screen_p_faster: 0.02,
            confirm_pairs: 24,
            look_pairs: 8,
            look_p: 0.2,
            extra_pairs: 8,
            max_pairs: 56,
            family_false_discovery_rate: 0.005,
            family_screen_p: 0.02,
            family_floor: 0.005,
            control_alpha: 0.005,
            control_floor: 0.005,
            budget_s: 1800,
            pair_samples: 20,
            input_seeds: 8,
            min_sessions: 5,
            gross_threshold: 0.08,
            gross_standard_errors: 5.0,
            min_rounds: 3,
            max_drift: 0.10,
            instructions_floor: 0.01,
            memory_share: 0.01,
            memory_slack_bytes: 64 << 10,
            accuracy_ratio: 1.5,
            accuracy_rise: 0.05,
            throttle_difference: 0.10,
            min_decided: 0.90,
            max_mde: 0.05,
            power: 0.80,
            simulations: 200,
            accept_removed: false,
        }
    }
}

/// Why a policy cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// No policy at all.
    #[error("reading gate policy `{file}`: {reason}")]
    Syntax {
        /// The file, as it was named.
        file: String,
        /// Line, field and what is wrong.
        reason: String,
    },
    /// A number that makes no sense.
    #[error("checking gate policy: `{field}` is {value}, but must be {expected}")]
    OutOfRange {
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        expected: &'static str,
    },
}

impl Policy {
    /// Reads the constants that differ from the defaults; `file` is named in errors.
    ///
    /// # Errors
    /// Text that is no TOML, fields that do not exist, numbers out of range.
    pub fn from_toml(text: &str, file: &str) -> Result<Policy, PolicyError> {
        let policy: Policy = toml::from_str(text)
            .map_err(|error| PolicyError::Syntax { file: file.to_owned(), reason: error.to_string() })?;
        policy.check()?;
        Ok(policy)
    }

    /// Whether every constant makes sense.
    ///
    /// # Errors
    /// The first that does not.
    pub fn check(&self) -> Result<(), PolicyError> {
        let effects = [
            ("floor", self.floor),
            ("family_floor", self.family_floor),
            ("control_floor", self.control_floor),
            ("margin", self.margin),
            ("gross_threshold", self.gross_threshold),
            ("max_drift", self.max_drift),
            ("instructions_floor", self.instructions_floor),
            ("memory_share", self.memory_share),
            ("accuracy_rise", self.accuracy_rise),
            ("max_mde", self.max_mde),
            ("floor_standard_errors", self.floor_standard_errors),
            ("gross_standard_errors", self.gross_standard_errors),
        ];
        let shares = [
            ("false_discovery_rate", self.false_discovery_rate),
            ("screen_p", self.screen_p),
            ("screen_p_faster", self.screen_p_faster),
            ("look_p", self.look_p),
            ("family_false_discovery_rate", self.family_false_discovery_rate),
            ("family_screen_p", self.family_screen_p),
            ("control_alpha", self.control_alpha),
            ("throttle_difference", self.throttle_difference),
            ("power", self.power),
        ];
        let counts = [
            ("screen_pairs", self.screen_pairs),
            ("confirm_pairs", self.confirm_pairs),
            ("look_pairs", self.look_pairs),
            ("extra_pairs", self.extra_pairs),
            ("max_pairs", self.max_pairs),
            ("min_sessions", self.min_sessions),
            ("pair_samples", self.pair_samples as usize),
            ("input_seeds", self.input_seeds as usize),
        ];
        let bad = |field, value: String, expected| Err(PolicyError::OutOfRange { field, value, expected });
        for (field, value) in effects {
            if !(0.0..=1000.0).contains(&value) {
                return bad(field, value.to_string(), "between 0 and 1000");
            }
        }
        for (field, value) in shares {
            if !(value > 0.0 && value < 1.0) {
                return bad(field, value.to_string(), "above 0 and below 1");
            }
        }
        for (field, value) in counts {
            if !(1..=10_000).contains(&value) {
                return bad(field, value.to_string(), "between 1 and 10000");
            }
        }
        if !(1..=1_000_000).contains(&self.budget_s) {
            return bad("budget_s", self.budget_s.to_string(), "between 1 and 1000000");
        }
        if self.pair_samples < 4 {
            return bad("pair_samples", self.pair_samples.to_string(), "between 4 and 10000");
        }
        if self.simulations > 10_000 {
            return bad("simulations", self.simulations.to_string(), "at most 10000");
        }
        if !(2..=10_000).contains(&self.min_rounds) {
            return bad("min_rounds", self.min_rounds.to_string(), "between 2 and 10000");
        }
        if !(0.0..=1.0).contains(&self.min_decided) {
            return bad("min_decided", self.min_decided.to_string(), "between 0 and 1");
        }
        if !(1.0..=1000.0).contains(&self.accuracy_ratio) {
            return bad("accuracy_ratio", self.accuracy_ratio.to_string(), "between 1 and 1000");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_named() {
        let policy = Policy::from_toml("floor = 0.03\nmin_sessions = 7\n", "gate.toml").unwrap();
        assert_eq!(policy, Policy { floor: 0.03, min_sessions: 7, ..Policy::default() });
        assert_eq!(Policy::from_toml("", "gate.toml").unwrap(), Policy::default());
    }

    #[test]
    fn mistakes_are_named() {
        for (text, part) in [
            ("flor = 0.03", "flor"),
            ("floor = \"a\"", "floor"),
            ("floor = -1.0", "`floor` is -1"),
            ("floor = nan", "`floor` is NaN"),
            ("power = 1.0", "`power` is 1"),
            ("screen_pairs = 0", "`screen_pairs` is 0"),
            ("min_rounds = 1", "`min_rounds` is 1"),
            ("=", "gate.toml"),
        ] {
            let error = Policy::from_toml(text, "gate.toml").unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
