//! What was measured beside what was claimed.

use serde::Serialize;

use super::relation::Figure;
use super::{Claim, Evidence, Expectation};
use crate::metric::Estimate;

/// What a machine says to a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Every figure is inside what was claimed, with its whole interval.
    Confirmed,
    /// A figure's interval straddles a bound: more rounds or a quieter machine would tell.
    Inconclusive,
    /// This machine cannot tell.
    NotMeasurableHere,
    /// A figure is outside what was claimed, with its whole interval.
    Contradicted,
}

impl Verdict {
    /// As it is printed.
    pub const fn name(self) -> &'static str {
        match self {
            Verdict::Confirmed => "confirmed",
            Verdict::Inconclusive => "inconclusive",
            Verdict::NotMeasurableHere => "not measurable here",
            Verdict::Contradicted => "contradicted",
        }
    }

    /// Whether it is an answer with a figure behind it.
    pub const fn is_decided(self) -> bool {
        matches!(self, Verdict::Confirmed | Verdict::Contradicted)
    }
}

/// A claim and its answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Answer {
    /// The claim's name.
    pub name: String,
    /// What is claimed.
    pub statement: String,
    /// Who published it.
    pub source: String,
    /// What to know about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// The answer: the worst of the findings'.
    pub verdict: Verdict,
    /// Why nothing could be said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// One for each expectation.
    pub findings: Vec<Finding>,
}

/// An expectation and what was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// What should hold, in words.
    pub says: String,
    /// The least that is claimed; none where there is no such bound.
    pub at_least: Option<f64>,
    /// The most that is claimed.
    pub at_most: Option<f64>,
    /// The answer.
    pub verdict: Verdict,
    /// Why nothing could be said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What was measured or counted.
    pub figures: Vec<MeasuredFigure>,
}

/// A figure with its interval and what it is of.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MeasuredFigure {
    /// Case ids, or caches in words.
    pub of: Vec<String>,
    /// The figure.
    #[serde(flatten)]
    pub estimate: Estimate,
}

/// Judges a claim.
pub fn answer(claim: &Claim, evidence: &Evidence<'_>, cpu_model: Option<&str>) -> Answer {
    let refusal = claim.needs.as_ref().and_then(|needs| needs.refusal(evidence.gpu_model(), cpu_model));
    let findings: Vec<Finding> = match &refusal {
        Some(_) => {
            claim.expectations.iter().map(|expected| expected.finding(Verdict::NotMeasurableHere, None)).collect()
        }
        None => claim.expectations.iter().map(|expected| judge(claim, expected, evidence)).collect(),
    };
    let verdict = findings.iter().map(|finding| finding.verdict).max().unwrap_or(Verdict::NotMeasurableHere);
    let reason = refusal.or_else(|| {
        let told = findings.iter().filter(|finding| finding.verdict == verdict);
        told.filter_map(|finding| finding.reason.clone()).next()
    });
    Answer {
        name: claim.name.clone(),
        statement: claim.statement.clone(),
        source: claim.source.clone(),
        note: claim.note.clone(),
        verdict,
        reason,
        findings,
    }
}

impl Expectation {
    fn finding(&self, verdict: Verdict, reason: Option<String>) -> Finding {
        Finding {
            says: self.says.clone(),
            at_least: Some(self.at_least).filter(|bound| bound.is_finite()),
            at_most: Some(self.at_most).filter(|bound| bound.is_finite()),
            verdict,
            reason,
            figures: Vec::new(),
        }
    }

    /// What an estimate says to the claimed range.
    pub fn verdict(&self, estimate: &Estimate) -> Verdict {
        // Figures that were counted come out of divisions: the last bit of a bound decides nothing.
        let slack = 1e-9 * self.at_least.abs().min(self.at_most.abs()).min(1.0);
        if estimate.low >= self.at_least - slack && estimate.high <= self.at_most + slack {
            Verdict::Confirmed
        } else if estimate.high < self.at_least || estimate.low > self.at_most {
            Verdict::Contradicted
        } else {
            Verdict::Inconclusive
        }
    }
}

fn judge(claim: &Claim, expected: &Expectation, evidence: &Evidence<'_>) -> Finding {
    match expected.relation.figures(claim.suite.as_ref(), evidence) {
        Err(reason) => expected.finding(Verdict::NotMeasurableHere, Some(reason)),
        Ok(figures) => {
            let verdict = figures.iter().map(|figure| expected.verdict(&figure.estimate)).max();
            let verdict = verdict.unwrap_or(Verdict::NotMeasurableHere);
            let straddles = "an interval straddles a bound: more --rounds or a quieter machine would tell".to_owned();
            let reason = (verdict == Verdict::Inconclusive).then_some(straddles);
            let figures = figures.into_iter().map(|Figure { of, estimate }| MeasuredFigure { of, estimate }).collect();
            Finding { figures, ..expected.finding(verdict, reason) }
        }
    }
}
