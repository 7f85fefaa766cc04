//! What a comparison says of a case.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::metric::Estimate;

/// What became of a case between base and head, most important first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Confirmed to be worse.
    Regressed,
    /// The two sides cannot be compared.
    NotComparable,
    /// Neither a change nor its absence is shown.
    Inconclusive,
    /// Confirmed to be better.
    Improved,
    /// Shown not to be worse by more than the margin.
    Unchanged,
}

impl Verdict {
    /// The name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Verdict::Regressed => "regressed",
            Verdict::NotComparable => "not_comparable",
            Verdict::Inconclusive => "inconclusive",
            Verdict::Improved => "improved",
            Verdict::Unchanged => "unchanged",
        }
    }

    /// Whether it answers the question.
    pub const fn is_decided(self) -> bool {
        matches!(self, Verdict::Regressed | Verdict::Improved | Verdict::Unchanged)
    }
}

/// A verdict and what it rests on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Finding {
    /// The verdict.
    pub verdict: Verdict,
    /// Why, in a sentence.
    pub reason: String,
    /// Head over base, where both have a value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ratio: Option<Estimate>,
    /// One-sided p of a regression, where one was tested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p_value: Option<f64>,
    /// Smallest true slowdown that this comparison would have found with 80 % power; 0.02 is 2 %.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mde: Option<f64>,
}

impl Finding {
    /// A verdict with nothing but a reason.
    pub fn bare(verdict: Verdict, reason: impl Into<String>) -> Finding {
        Finding { verdict, reason: reason.into(), ratio: None, p_value: None, mde: None }
    }
}

/// A log ratio as a sentence's part: `4.2 % slower`, `0.31 % faster`.
pub(crate) fn change(log_ratio: f64) -> String {
    let percent = 100.0 * log_ratio.exp_m1();
    format!("{} % {}", significant(percent.abs()), if percent < 0.0 { "faster" } else { "slower" })
}

/// A share as percent: `8 %`, `0.52 %`.
pub(crate) fn percent(share: f64) -> String {
    format!("{} %", significant(100.0 * share))
}

/// About two significant digits, without exponents.
fn significant(value: f64) -> String {
    let digits = if value >= 9.95 {
        0
    } else if value >= 0.995 {
        1
    } else {
        2
    };
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}
