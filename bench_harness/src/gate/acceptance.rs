//! Regressions that somebody decided to live with: a reviewed file, read from the base of a comparison.
//!
//! An acceptance that a change brings itself does not count, since nobody may move their own goalposts: it is merged
//! first. It names what it covers, up to which size, why, by whom and until when, and reports show it before anything
//! else.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::compare::verdict::percent;
use crate::compare::{Comparison, Finding, Verdict};
use crate::suite::CaseGlob;

/// Where acceptances are, from the root of the repository.
pub const ACCEPTANCES_FILE: &str = "ci/acceptances.toml";

/// Largest file, in bytes.
pub const MAX_ACCEPTANCES_BYTES: usize = 1 << 20;

/// The metric of cases that head no longer measures.
pub const DISPOSITION: &str = "disposition";

/// Metrics that can regress, and so be accepted.
pub const METRICS: [&str; 5] =
    ["latency_ns_median", "extra_peak_bytes", "relative_l2", super::deterministic::INSTRUCTIONS, DISPOSITION];

/// The file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Acceptances {
    /// One a decision, oldest first.
    #[serde(default)]
    pub accept: Vec<Acceptance>,
}

/// A decision to live with something.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Acceptance {
    /// Glob on case ids; `*` crosses slashes.
    pub case: String,
    /// One of [`METRICS`].
    pub metric: String,
    /// Largest relative growth that is accepted, 0.05 being 5 %. `disposition` has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_most: Option<f64>,
    /// Why.
    pub reason: String,
    /// Who decided.
    pub by: String,
    /// Last day on which it counts, as `2026-12-31`.
    pub expires: String,
    /// The change that it is for: it counts only where head has this commit and base has not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
}

/// Why acceptances cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("reading acceptances `{file}`: {reason}")]
pub struct AcceptanceError {
    /// The file, as it was named.
    pub file: String,
    /// Which entry and what is wrong with it.
    pub reason: String,
}

/// An acceptance that a comparison made use of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Accepted {
    /// The decision.
    #[serde(flatten)]
    pub acceptance: Acceptance,
    /// The cases that it let through.
    pub cases: Vec<String>,
}

impl Acceptances {
    /// Reads and checks a file's text; `file` is named in errors.
    ///
    /// # Errors
    /// No TOML, unknown keys, globs, metrics, bounds or dates that make no sense.
    pub fn from_toml(text: &str, file: &str) -> Result<Acceptances, AcceptanceError> {
        let error = |reason: String| AcceptanceError { file: file.to_owned(), reason };
        let read: Acceptances = toml::from_str(text).map_err(|cause| error(cause.to_string()))?;
        for (number, acceptance) in read.accept.iter().enumerate() {
            acceptance.check().map_err(|reason| error(format!("entry {}: {reason}", number + 1)))?;
        }
        Ok(read)
    }

    /// The file's text.
    pub fn to_toml(&self) -> String {
        let entries = toml::to_string(self).expect("acceptances are tables of texts and numbers");
        format!(
            "# Regressions that were accepted. They count where this file is merged into the base of a comparison;\n\
             # `attnbench accept` adds entries.\n\n{entries}"
        )
    }
}

impl Acceptance {
    /// Whether it makes sense.
    ///
    /// # Errors
    /// What does not, in words.
    pub fn check(&self) -> Result<(), String> {
        CaseGlob::parse(&self.case)?;
        if !METRICS.contains(&self.metric.as_str()) {
            return Err(format!("metric `{}` is not one that regresses: {}", self.metric, METRICS.join(", ")));
        }
        match self.at_most {
            Some(_) if self.metric == DISPOSITION => {
                return Err("`disposition` has no size, so `at_most` says nothing".to_owned());
            }
            None if self.metric != DISPOSITION => {
                return Err("`at_most` is missing: the largest relative growth that is accepted".to_owned());
            }
            Some(bound) if !(bound > 0.0 && bound <= 1000.0) => {
                return Err(format!("`at_most` is {bound}, but must be above 0 and at most 1000"));
            }
            _ => {}
        }
        for (name, text) in [("reason", &self.reason), ("by", &self.by)] {
            if text.trim().is_empty() {
                return Err(format!("`{name}` is empty"));
            }
        }
        let date: Option<jiff::civil::Date> = self.expires.parse().ok();
        match date {
            Some(date) if date.to_string() == self.expires => Ok(()),
            _ => Err(format!("`expires` is `{}`, not a date as 2026-12-31", self.expires)),
        }
    }

    /// Whether it still counts on a day, written as `2026-12-31`.
    pub fn is_valid_on(&self, today: &str) -> bool {
        // Dates of this form sort as they follow each other.
        self.expires.as_str() >= today
    }

    fn covers(&self, case_id: &str, metric: &str, growth: Option<f64>) -> bool {
        self.metric == metric
            && CaseGlob::parse(&self.case).is_ok_and(|glob| glob.matches(case_id))
            && match (self.at_most, growth) {
                (Some(bound), Some(growth)) => growth <= bound,
                (Some(_), None) => false,
                (None, _) => true,
            }
    }

    fn sentence(&self) -> String {
        let size = self.at_most.map_or(String::new(), |bound| format!(" up to {}", percent(bound)));
        format!("accepted{size} by {} until {}: {}", self.by, self.expires, self.reason)
    }
}

/// Lets the regressions through that are accepted: their verdict becomes `unchanged`, with the reason of both. Returns
/// what was used.
pub fn apply(comparison: &mut Comparison, acceptances: &[Acceptance]) -> Vec<Accepted> {
    let mut used: Vec<Accepted> = Vec::new();
    let mut note = |acceptance: &Acceptance, case: String| match used.iter_mut().find(|u| u.acceptance == *acceptance) {
        Some(accepted) => accepted.cases.push(case),
        None => used.push(Accepted { acceptance: acceptance.clone(), cases: vec![case] }),
    };
    for case in &mut comparison.cases {
        let name = case.key.to_string();
        let id = case.key.case_id.clone();
        let mut changed = false;
        for metric in &mut case.metrics {
            let Finding { verdict: Verdict::Regressed, ratio, .. } = &metric.finding else { continue };
            let growth = ratio.map(|ratio| ratio.value - 1.0);
            let Some(acceptance) = acceptances.iter().find(|a| a.covers(&id, &metric.metric, growth)) else { continue };
            metric.finding.verdict = Verdict::Unchanged;
            metric.finding.reason = format!("{}; {}", acceptance.sentence(), metric.finding.reason);
            note(acceptance, name.clone());
            changed = true;
        }
        if case.metrics.is_empty() && case.verdict == Verdict::Regressed {
            if let Some(acceptance) = acceptances.iter().find(|a| a.covers(&id, DISPOSITION, None)) {
                case.verdict = Verdict::Unchanged;
                case.reason = format!("{}; {}", acceptance.sentence(), case.reason);
                note(acceptance, name.clone());
            }
        } else if changed {
            case.conclude();
        }
    }
    used
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(change: &str, to: &str) -> String {
        let text = "[[accept]]\ncase = \"cpu/flash/*\"\nmetric = \"latency_ns_median\"\nat_most = 0.05\nreason = \"NaN \
                    rows\"\nby = \"a\"\nexpires = \"2026-12-31\"\n";
        assert!(text.contains(change), "{change}");
        text.replace(change, to)
    }

    #[test]
    fn what_is_written_is_read() {
        let read = Acceptances::from_toml(&entry("\"a\"", "\"a\\nb\""), "x").unwrap();
        assert_eq!(Acceptances::from_toml(&read.to_toml(), "x").unwrap(), read);
        assert_eq!(Acceptances::from_toml("", "x").unwrap(), Acceptances::default());
        let [acceptance] = &read.accept[..] else { panic!("{read:?}") };
        assert!(acceptance.is_valid_on("2026-12-31") && !acceptance.is_valid_on("2027-01-01"));
        assert!(acceptance.covers("cpu/flash/a", "latency_ns_median", Some(0.05)));
        for (id, metric, growth) in [
            ("cpu/flash/a", "latency_ns_median", Some(0.051)),
            ("cpu/flash/a", "latency_ns_median", None),
            ("cpu/naive/a", "latency_ns_median", Some(0.01)),
            ("cpu/flash/a", "relative_l2", Some(0.01)),
        ] {
            assert!(!acceptance.covers(id, metric, growth), "{id} {metric} {growth:?}");
        }
    }

    #[test]
    fn mistakes_name_the_entry_and_what_is_wrong() {
        for (change, to, part) in [
            ("\"latency_ns_median\"", "\"speed\"", "metric `speed`"),
            ("0.05", "0.0", "`at_most` is 0"),
            ("at_most = 0.05\n", "", "`at_most` is missing"),
            ("\"NaN rows\"", "\" \"", "`reason` is empty"),
            ("2026-12-31", "soon", "`expires` is `soon`"),
            ("by = \"a\"\n", "", "by"),
            ("at_most", "atmost", "atmost"),
            ("cpu/flash/*", "[", "glob `[`"),
        ] {
            let error = Acceptances::from_toml(&entry(change, to), "ci/acceptances.toml").unwrap_err().to_string();
            assert!(error.contains(part) && error.contains("ci/acceptances.toml"), "{to}: {error}");
        }
    }
}
