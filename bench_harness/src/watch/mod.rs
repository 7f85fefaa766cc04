//! A run as somebody beside it sees it: what its journal says so far.
//!
//! [`tail`] reads the journal while it grows, [`View`] is what was understood of it, [`draw`] puts that on a screen. The
//! run knows nothing of who watches.

pub mod draw;
pub mod tail;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};

use crate::case::CaseKey;
use crate::measure::journal::{Entry, Header};
use crate::record::telemetry::Reading;
use crate::record::{CaseRound, Disposition};
use crate::report::{printable, units};
use crate::stats::quantile::median;

/// Lines of the log that are kept.
const MOST_LOG_LINES: usize = 200;
/// Readings that the telemetry's lines are drawn from.
const MOST_READINGS: usize = 512;

/// A case so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WatchedCase {
    /// Median nanoseconds of each round; head's where two builds are measured.
    pub round_ns: Vec<f64>,
    /// Head over base of each pair.
    pub ratios: Vec<f64>,
    /// What it came to in its worst round so far.
    pub disposition: Option<Disposition>,
}

/// What the telemetry's lines show.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Telemetry {
    /// Clock of the multiprocessors, in MHz.
    pub sm_clock_mhz: VecDeque<u64>,
    /// Power of the board, in milliwatts.
    pub power_milliwatts: VecDeque<u64>,
    /// Temperature of the GPU, in degrees Celsius.
    pub temperature_c: VecDeque<u64>,
}

/// Whether the run goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// Nothing says otherwise.
    #[default]
    Running,
    /// Its journal is gone, and so its record is whole.
    Finished,
    /// Its journal is there, and nobody writes it.
    Stopped,
}

/// What is known of a run.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// What it is.
    pub header: Option<Header>,
    /// Every case that was seen, by its key.
    pub cases: BTreeMap<CaseKey, WatchedCase>,
    /// Finished turns of cases.
    pub turns: u64,
    /// Highest round that was seen, from 0.
    pub round: u32,
    /// The latest events, oldest first.
    pub log: VecDeque<String>,
    /// What GPUs said.
    pub telemetry: Telemetry,
    /// Whether it goes on.
    pub state: State,
    /// First row of the table that is shown.
    pub scroll: usize,
}

impl View {
    /// Adds a line of the journal.
    pub fn add(&mut self, entry: Entry) {
        match entry {
            Entry::Header(header) => {
                self.note(format!("{} started at {}", printable(&header.suite), printable(&header.started_at)));
                self.header = Some(header);
            }
            Entry::Case { key, round, .. } => {
                self.turn(round.round);
                self.note(format!("round {}: {}  {}", round.round + 1, result(&round), printable(&key.case_id)));
                self.telemetry.add(&round);
                self.cases.entry(key).or_default().add(&round);
            }
            Entry::Pair(pair) => {
                self.turn(pair.round);
                let case = self.cases.entry(pair.key.clone()).or_default();
                case.add(&pair.head);
                let base = pair.base.as_ref().and_then(|base| median(&base.device_ns));
                let ratio = base.zip(median(&pair.head.device_ns)).map(|(base, head)| head / base);
                case.ratios.extend(ratio);
                let change = ratio.map_or(result(&pair.head), |ratio| units::signed_percent(ratio - 1.0));
                self.note(format!("pair {}: {change}  {}", pair.round + 1, printable(&pair.key.case_id)));
                pair.base.iter().chain([&pair.head]).for_each(|round| self.telemetry.add(round));
            }
            Entry::Controls { round, .. } => self.note(format!("round {}: ceilings", round + 1)),
            Entry::PairControls(controls) => self.note(format!("pair {}: controls", controls.round + 1)),
        }
    }

    /// Adds a line to the log.
    pub fn note(&mut self, line: String) {
        self.log.push_back(line);
        while self.log.len() > MOST_LOG_LINES {
            self.log.pop_front();
        }
    }

    /// Share of the run that is done, where its journal says how much there is.
    pub fn share_done(&self) -> Option<f64> {
        let turns = self.header.as_ref()?.turns_planned.filter(|&turns| turns > 0)?;
        Some((self.turns as f64 / turns as f64).min(1.0))
    }

    fn turn(&mut self, round: u32) {
        self.turns += 1;
        self.round = self.round.max(round);
    }
}

impl WatchedCase {
    fn add(&mut self, round: &CaseRound) {
        if round.disposition == Disposition::Measured {
            self.round_ns.extend(median(&round.device_ns));
            self.disposition.get_or_insert(Disposition::Measured);
        } else {
            self.disposition = Some(round.disposition);
        }
    }
}

impl Telemetry {
    fn add(&mut self, round: &CaseRound) {
        let readings = || round.telemetry.iter().flat_map(|telemetry| telemetry.readings());
        let push = |to: &mut VecDeque<u64>, value: fn(&Reading) -> Option<u32>| {
            to.extend(readings().filter_map(value).map(u64::from));
            while to.len() > MOST_READINGS {
                to.pop_front();
            }
        };
        push(&mut self.sm_clock_mhz, |reading| reading.sm_clock_mhz);
        push(&mut self.power_milliwatts, |reading| reading.power_milliwatts);
        push(&mut self.temperature_c, |reading| reading.temperature_c);
    }

    /// Whether no GPU said anything.
    pub fn is_empty(&self) -> bool {
        self.sm_clock_mhz.is_empty() && self.power_milliwatts.is_empty() && self.temperature_c.is_empty()
    }
}

/// What a round of a case came to, in a word or a time.
fn result(round: &CaseRound) -> String {
    match (round.disposition, median(&round.device_ns)) {
        (Disposition::Measured, Some(ns)) => units::nanoseconds(ns),
        (disposition, _) => match &round.reason {
            Some(reason) => format!("{}, {}", disposition.name(), printable(reason)),
            None => disposition.name().to_owned(),
        },
    }
}
