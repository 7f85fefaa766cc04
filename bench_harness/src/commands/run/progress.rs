//! What the terminal shows while a run goes on: a live line on a terminal, plain lines elsewhere.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::commands::terminal;
use crate::measure::run::{Observer, Silent};
use crate::record::{CaseRound, Disposition};
use crate::report::units;
use crate::stats::quantile;
use crate::suite::{PlannedCase, Suite};

/// The observer for where stderr goes.
pub(super) fn observer(suite: &Suite, quiet: bool) -> Box<dyn Observer> {
    if terminal::stderr_is_terminal() {
        let total: u64 = suite.cases.iter().map(|case| u64::from(case.settings.rounds)).sum();
        Box::new(Live::new(total))
    } else if quiet {
        Box::new(Silent)
    } else {
        Box::new(Plain { done: 0, total: 0, round: 0, rounds: 0 })
    }
}

/// The result of a case in a few words.
fn result(seen: &CaseRound) -> String {
    match (seen.disposition, quantile::median(&seen.device_ns)) {
        (Disposition::Measured, Some(median)) => {
            format!("{} ({} samples)", units::nanoseconds(median), seen.device_ns.len())
        }
        (disposition, _) => match &seen.reason {
            Some(reason) => format!("{}: {reason}", disposition.name()),
            None => disposition.name().to_owned(),
        },
    }
}

/// A bar with the case in flight, and a line above it for the latest result.
struct Live {
    bar: ProgressBar,
    latest: ProgressBar,
    _both: indicatif::MultiProgress,
}

impl Live {
    fn new(total: u64) -> Self {
        let both = indicatif::MultiProgress::new();
        let latest = both.add(ProgressBar::new_spinner());
        latest.set_style(ProgressStyle::with_template("{wide_msg}").expect("a fixed template"));
        let bar = both.add(ProgressBar::new(total));
        let template = "{spinner} {prefix} {bar:24} {pos}/{len}, {eta} left  {wide_msg}";
        bar.set_style(ProgressStyle::with_template(template).expect("a fixed template"));
        bar.enable_steady_tick(Duration::from_millis(200));
        Live { bar, latest, _both: both }
    }
}

impl Observer for Live {
    fn round_started(&mut self, round: u32, rounds: u32, _cases: usize) {
        self.bar.set_prefix(format!("round {}/{rounds}", round + 1));
    }

    fn controls_started(&mut self) {
        self.bar.set_message("measuring ceilings");
    }

    fn case_started(&mut self, case: &PlannedCase) {
        self.bar.set_message(case.case.id());
    }

    fn case_finished(&mut self, case: &PlannedCase, seen: &CaseRound) {
        self.latest.set_message(format!("{}  {}", result(seen), case.case.id()));
        self.bar.inc(1);
        if seen.disposition != Disposition::Measured {
            // A settled case is not tried in later rounds.
            self.bar.set_length(
                self.bar
                    .length()
                    .unwrap_or(0)
                    .saturating_sub(u64::from(case.settings.rounds.saturating_sub(seen.round + 1))),
            );
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.latest.finish_and_clear();
        self.bar.finish_and_clear();
    }
}

/// A line a case, for logs.
struct Plain {
    done: usize,
    total: usize,
    round: u32,
    rounds: u32,
}

impl Observer for Plain {
    fn round_started(&mut self, round: u32, rounds: u32, cases: usize) {
        (self.done, self.total, self.round, self.rounds) = (0, cases, round + 1, rounds);
    }

    fn case_finished(&mut self, case: &PlannedCase, seen: &CaseRound) {
        self.done += 1;
        eprintln!(
            "round {}/{} case {}/{}: {}  {}",
            self.round,
            self.rounds,
            self.done,
            self.total,
            case.case.id(),
            result(seen)
        );
    }
}
