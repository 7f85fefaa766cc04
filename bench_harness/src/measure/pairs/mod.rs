//! Base against head on one device: rounds of interleaved pairs.
//!
//! A round starts fresh workers of both sides, which live together. Each case is prepared, measured and released in one
//! and at once in the other, while the idle one holds no tensors. A fair coin a case and round, from the run's seed, says
//! who goes first: that coin is what makes a pair's log ratio as likely to be x as -x when nothing changed, whatever the
//! machine does meanwhile. The first turn of a case fixes how many samples every later turn takes, on both sides.
//!
//! Each finished pair is a synced line of the journal before the next begins.

mod sides;
mod state;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use attn_kernels::input::hash64;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

pub use sides::{Sides, WorkerSet};
pub use state::PairState;

use super::case::{CaseOutcome, measure_case};
use super::controls;
use super::journal::{Entry, Journal, JournalError, PairControls, PairEntry};
use super::run::{CONTROL_TIMEOUT, START_TIMEOUT};
use super::verify::Verifier;
use crate::clock::elapsed_ns;
use crate::device::telemetry::Source;
use crate::gate::drive::PairSource;
use crate::gate::plan::PairedCase;
use crate::gate::policy::Policy;
use crate::record::CaseRound;
use crate::suite::PlannedCase;
use crate::worker::client::{Failure, Surroundings, Worker, WorkerCommand};
use crate::worker::protocol::{ControlSamples, Request};

/// Places in a round at which the controls are measured beside both sides: one for so many cases,
const CASES_A_CONTROL_SLOT: usize = 8;
/// but no more than these.
const MAX_CONTROL_SLOTS: usize = 2;
/// The padding variable's length is drawn below this: a few pages, so that stacks start anywhere in one.
const MAX_PADDING_BYTES: usize = 8192;

/// Who wants to know how it goes. Every method has a default that does nothing.
pub trait PairObserver {
    /// A round begins, with so many cases.
    fn round_started(&mut self, _round: u32, _cases: usize) {}
    /// A pair was measured, or failed.
    fn pair_finished(&mut self, _case: &PlannedCase, _base: Option<&CaseRound>, _head: &CaseRound) {}
}

/// What a comparison in pairs needs besides its cases.
pub struct PairContext<'a> {
    /// How the workers of both sides are started.
    pub workers: Sides<&'a WorkerSet>,
    /// The coordinator's own worker, which measures the controls; none are without it.
    pub control_worker: Option<&'a WorkerCommand>,
    /// Whether both sides' own workers measure the controls too, since their timing sources differ.
    pub checks_timing: bool,
    /// A private folder for outputs.
    pub scratch: &'a Path,
    /// Becomes true when the user asks to stop.
    pub stop: Arc<AtomicBool>,
    /// Seed of inputs, orders and coins.
    pub seed: u64,
    /// Samples and seeds of a pair.
    pub policy: &'a Policy,
    /// Where the GPUs of workers are watched.
    pub telemetry: &'a dyn Source,
    /// When measuring ends.
    pub deadline: Instant,
}

/// A comparison that is being measured.
pub struct PairRun<'a> {
    context: &'a PairContext<'a>,
    /// What was measured so far.
    pub state: PairState,
    journal: Option<Journal>,
    observer: &'a mut dyn PairObserver,
    verifiers: Vec<Verifier>,
}

/// Why a comparison breaks off.
#[derive(Debug, thiserror::Error)]
pub enum PairError {
    /// The journal cannot be written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The user asked to stop.
    #[error("interrupted")]
    Interrupted,
}

impl<'a> PairRun<'a> {
    /// A comparison that goes on from a state, which is new or comes from a journal.
    pub fn new(
        context: &'a PairContext<'a>,
        state: PairState,
        journal: Option<Journal>,
        observer: &'a mut dyn PairObserver,
    ) -> PairRun<'a> {
        // The seed of a round's inputs comes round again, so that the oracle's work is done once for each.
        let seeds = 0..u64::from(context.policy.input_seeds);
        let verifiers =
            seeds.map(|number| Verifier::new(hash64(context.seed, number), context.scratch, number as usize)).collect();
        PairRun { context, state, journal, observer, verifiers }
    }

    /// The journal, and what was measured.
    pub fn into_parts(self) -> (PairState, Option<Journal>) {
        (self.state, self.journal)
    }

    fn keep(&mut self, entry: Entry) -> Result<(), PairError> {
        if let Some(journal) = &mut self.journal {
            journal.append(&entry)?;
        }
        self.state.add(&entry);
        Ok(())
    }

    /// One round of these cases.
    pub fn round(&mut self, cases: &[usize]) -> Result<(), PairError> {
        let round = self.state.next_round();
        let mut rng = Pcg64::seed_from_u64(hash64(self.context.seed ^ 0x7061_6972, u64::from(round)));
        let mut order = cases.to_vec();
        order.shuffle(&mut rng);
        let padding = "x".repeat(rng.random_range(0..MAX_PADDING_BYTES));
        let surroundings =
            Surroundings { variables: vec![("ATTNBENCH_PADDING".to_owned(), padding)], is_untrusted: true };
        self.observer.round_started(round, order.len());
        let mut workers = self
            .context
            .workers
            .map(|set| set.round(surroundings.clone(), self.context.telemetry, self.context.stop.clone()));
        let mut control_worker = self.control_worker()?;
        let count = order.len().div_ceil(CASES_A_CONTROL_SLOT).min(MAX_CONTROL_SLOTS);
        let slots: Vec<usize> = (0..count).map(|slot| slot * order.len() / count).collect();
        for (position, &case) in order.iter().enumerate() {
            if self.is_over() {
                break;
            }
            let start = Instant::now();
            let head_first = rng.random::<bool>();
            let worker_seed = rng.random::<u64>();
            let takes_controls = slots.contains(&position);
            let mut seen: Sides<Option<CaseOutcome>> = Sides { base: None, head: None };
            let mut controls: Sides<Controls> = Sides::default();
            for is_head in [head_first, !head_first] {
                // Whichever side it is, the same choices are made inside a turn.
                let mut turn_rng = Pcg64::seed_from_u64(worker_seed);
                let outcome = self.turn(case, (round, position as u32), workers.of_mut(is_head), &mut turn_rng)?;
                if let Some(outcome) = &outcome {
                    self.state.fix_samples(case, &outcome.round);
                }
                *seen.of_mut(is_head) = outcome;
                if takes_controls {
                    let own = workers.of_mut(is_head);
                    *controls.of_mut(is_head) = self.controls(control_worker.as_mut(), own)?;
                }
            }
            let planned = self.state.planned(case).clone();
            let head = seen.head.expect("head takes part in every pair");
            let mut time = head.time;
            time.total_ns = elapsed_ns(start);
            let entry = PairEntry {
                key: planned.key(),
                slowdown: planned.slowdown,
                round,
                head_first,
                base: seen.base.map(|base| base.round),
                head: head.round,
                time,
            };
            self.observer.pair_finished(&planned, entry.base.as_ref(), &entry.head);
            self.keep(Entry::Pair(entry))?;
            if takes_controls {
                self.keep_controls(round, controls)?;
            }
        }
        workers.map(sides::RoundWorkers::shutdown);
        if let Some(worker) = control_worker {
            worker.shutdown();
        }
        Ok(())
    }

    /// One side's turn at a case; nothing where that side does not have it.
    fn turn(
        &mut self,
        case: usize,
        place: (u32, u32),
        workers: &mut sides::RoundWorkers<'_>,
        rng: &mut Pcg64,
    ) -> Result<Option<CaseOutcome>, PairError> {
        if !workers.is_head && !self.state.base_has(case) {
            return Ok(None);
        }
        let mut planned = self.state.planned_turn(case, self.context.policy);
        if !workers.is_head {
            planned.slowdown = 0.0;
        }
        let seed = place.0 as usize % self.verifiers.len();
        let measured = workers.with_worker(&planned.case.provider, place, |worker| {
            measure_case(worker, &planned, place, &mut self.verifiers[seed], rng)
        });
        measured.map(Some).map_err(|_| PairError::Interrupted)
    }

    fn control_worker(&self) -> Result<Option<Worker>, PairError> {
        let command = self.context.control_worker.filter(|_| !self.state.controls().is_empty());
        match command.map(|command| Worker::spawn(command, self.context.stop.clone(), START_TIMEOUT)) {
            Some(Err(Failure::Interrupted)) => Err(PairError::Interrupted),
            // A machine whose controls fail still measures its cases.
            started => Ok(started.and_then(Result::ok)),
        }
    }

    fn controls(&self, worker: Option<&mut Worker>, own: &mut sides::RoundWorkers<'_>) -> Result<Controls, PairError> {
        let measure = |worker: &mut Worker| -> Result<Vec<(u64, Vec<f64>)>, Failure> {
            let one = |control| {
                let request = Request::Control(controls::request(control));
                let seen: ControlSamples = worker.ask(request, CONTROL_TIMEOUT)?;
                Ok((seen.work, seen.device_ns))
            };
            self.state.controls().iter().map(one).collect()
        };
        let settled = |result: Option<Result<_, Failure>>| match result {
            Some(Err(Failure::Interrupted)) => Err(PairError::Interrupted),
            result => Ok(result.and_then(Result::ok).unwrap_or_default()),
        };
        let coordinator = settled(worker.map(measure))?;
        let own = if self.context.checks_timing { settled(own.any().map(measure))? } else { Vec::new() };
        Ok(Controls { coordinator, own })
    }

    fn keep_controls(&mut self, round: u32, seen: Sides<Controls>) -> Result<(), PairError> {
        let Sides { base, head } = seen;
        for (by_own_workers, base, head) in [(false, base.coordinator, head.coordinator), (true, base.own, head.own)] {
            if !base.is_empty() && base.len() == head.len() {
                self.keep(Entry::PairControls(PairControls { round, by_own_workers, base, head }))?;
            }
        }
        Ok(())
    }

    /// Whether time is up, or the user asked to stop.
    pub fn is_over(&self) -> bool {
        self.context.stop.load(Ordering::Relaxed) || Instant::now() >= self.context.deadline
    }
}

/// Work of a sample and samples of each control.
#[derive(Default)]
struct Controls {
    coordinator: Vec<(u64, Vec<f64>)>,
    own: Vec<(u64, Vec<f64>)>,
}

impl PairSource for PairRun<'_> {
    type Error = PairError;

    fn cases(&self) -> &[PairedCase] {
        self.state.pairs()
    }

    fn may_measure(&self) -> bool {
        !self.is_over()
    }

    fn measure(&mut self, cases: &[usize], pairs: usize) -> Result<(), PairError> {
        for _ in 0..pairs {
            let open: Vec<usize> = cases.iter().copied().filter(|&case| !self.state.pairs()[case].is_closed).collect();
            if open.is_empty() || self.is_over() {
                break;
            }
            // What base does not have is measured once, on head alone, beside the first pairs.
            let alone = if self.state.next_round() == 0 { self.state.only_on_head() } else { Vec::new() };
            self.round(&[open, alone].concat())?;
        }
        Ok(())
    }
}
