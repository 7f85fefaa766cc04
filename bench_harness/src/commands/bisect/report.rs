//! What a bisection came to.

use std::fmt::Write;

use serde::Serialize;

use crate::bisect::journal::{Journal, Test};
use crate::bisect::search::{Next, Seen};
use crate::report::printable;
use crate::stats::hodges_lehmann::one_sample_estimate;
use crate::vcs::range::RangeCommit;

/// The result of a search.
#[derive(Debug, Serialize)]
pub(super) struct Report<'a> {
    case: &'a str,
    good: &'a str,
    bad: &'a str,
    /// How much slower bad is than good; 0.05 is 5 %.
    slowdown: f64,
    /// The first slow commit.
    culprit: Option<Commit<'a>>,
    /// How much slower it is than its parent, where that was confirmed.
    confirmed_slowdown: Option<f64>,
    /// Why it was not confirmed.
    unconfirmed: Option<String>,
    /// Where commits could not be tested: the culprit is one of these.
    candidates: Vec<Commit<'a>>,
    tests: &'a [Test],
    #[serde(skip)]
    range: &'a [RangeCommit],
}

#[derive(Debug, Serialize)]
struct Commit<'a> {
    commit: &'a str,
    author: &'a str,
    committed_at: &'a str,
    subject: &'a str,
}

impl<'a> Commit<'a> {
    fn of(commit: &'a RangeCommit) -> Commit<'a> {
        Commit {
            commit: &commit.id,
            author: &commit.author,
            committed_at: &commit.committed_at,
            subject: &commit.subject,
        }
    }
}

impl<'a> Report<'a> {
    pub(super) fn new(
        journal: &'a Journal,
        range: &'a [RangeCommit],
        end: &Next,
        confirmation: Option<Result<f64, String>>,
    ) -> Report<'a> {
        let (culprit, candidates) = match end {
            Next::Culprit(commit) => (Some(Commit::of(&range[*commit])), Vec::new()),
            Next::OneOf(several) => (None, several.iter().map(|&commit| Commit::of(&range[commit])).collect()),
            Next::Test(_) => (None, Vec::new()),
        };
        let (confirmed_slowdown, unconfirmed) = match confirmation {
            Some(Ok(slowdown)) => (Some(slowdown), None),
            Some(Err(why)) => (None, Some(why)),
            None => (None, None),
        };
        Report {
            case: &journal.question.case,
            good: &journal.question.good,
            bad: &journal.question.bad,
            slowdown: journal.effect.as_ref().map_or(0.0, |effect| effect.log_ratio.exp_m1()),
            culprit,
            confirmed_slowdown,
            unconfirmed,
            candidates,
            tests: &journal.tests,
            range,
        }
    }

    pub(super) fn is_confirmed(&self) -> bool {
        self.confirmed_slowdown.is_some()
    }

    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        let line = |commit: &Commit<'_>| {
            let (subject, author) = (printable(commit.subject), printable(commit.author));
            format!("{} {subject}\n  {author}, {}\n", &commit.commit[..12], commit.committed_at)
        };
        match (&self.culprit, self.confirmed_slowdown) {
            (Some(culprit), Some(slowdown)) => {
                let _ = write!(text, "{:.1} % slower than its parent: {}", 100.0 * slowdown, line(culprit));
            }
            (Some(culprit), None) => {
                let why = self.unconfirmed.as_deref().unwrap_or_default();
                let _ = write!(text, "the first slow commit, but not confirmed against its parent: {}", line(culprit));
                let _ = writeln!(text, "  {}", printable(why));
            }
            (None, _) => {
                text.push_str("one of these, of which all but the last cannot be tested:\n");
                self.candidates.iter().for_each(|commit| text.push_str(&line(commit)));
            }
        }
        let _ = writeln!(text, "\n{}: bad is {:.1} % slower than good", self.case, 100.0 * self.slowdown);
        for test in self.tests {
            if let Some(commit) = self.range.iter().find(|commit| commit.id == test.commit) {
                text.push_str(&test_line(commit, test));
                text.push('\n');
            }
        }
        text
    }
}

/// A tested commit in a line.
pub(super) fn test_line(commit: &RangeCommit, test: &Test) -> String {
    let seen = match test.seen {
        Some(Seen::Good) => "fast",
        Some(Seen::Bad) => "slow",
        Some(Seen::Untestable) => "passed over",
        None => "open",
    };
    let estimate = one_sample_estimate(&test.log_ratios).map_or(String::new(), |ratio| {
        format!(" {:+.1} % over {} pairs", 100.0 * ratio.exp_m1(), test.log_ratios.len())
    });
    let reason = test.reason.as_deref().and_then(|reason| reason.lines().next());
    let reason = reason.map_or(String::new(), |reason| format!(" ({})", printable(reason)));
    format!("  {} {seen:11}{estimate}{reason} {}", &commit.id[..12], printable(&commit.subject))
}
