//! The loop of a run: rounds, shuffled cases, fresh workers, a journal line after each case.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use attn_kernels::input::hash64;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_pcg::Pcg64;

use super::builder::RecordBuilder;
use super::case::{CaseOutcome, disposition_of, measure_case};
use super::controls;
use super::journal::{Entry, Journal, JournalError};
use super::verify::Verifier;
use crate::clock::elapsed_ns;
use crate::record::{CaseRound, Disposition, TimeSpent};
use crate::suite::{PlannedCase, Suite};
use crate::worker::adapters;
use crate::worker::client::{Failure, Worker, WorkerCommand};
use crate::worker::protocol::{ControlSamples, ErrorKind, Request, WorkerError};

/// How long a worker may take to start.
pub(super) const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a control may take.
pub(super) const CONTROL_TIMEOUT: Duration = Duration::from_secs(60);
/// Starts of one provider's worker that may fail in a row before its cases are given up.
pub(super) const MAX_FAILED_STARTS: u32 = 2;

/// Who wants to know how the run goes. Every method has a default that does nothing.
pub trait Observer {
    /// A round begins, with this many cases to measure.
    fn round_started(&mut self, _round: u32, _rounds: u32, _cases: usize) {}
    /// The controls of the round are being measured.
    fn controls_started(&mut self) {}
    /// A case begins.
    fn case_started(&mut self, _case: &PlannedCase) {}
    /// A case ended.
    fn case_finished(&mut self, _case: &PlannedCase, _seen: &CaseRound) {}
}

/// An observer that does not care.
pub struct Silent;
impl Observer for Silent {}

/// What a run needs besides its suite.
pub struct RunContext<'a> {
    /// How the worker of each provider is started.
    pub workers: &'a BTreeMap<String, WorkerCommand>,
    /// The coordinator's own worker, which measures the controls.
    pub control_worker: &'a WorkerCommand,
    /// A private folder for outputs.
    pub scratch: &'a Path,
    /// Becomes true when the user asks to stop.
    pub stop: Arc<AtomicBool>,
}

/// Measures everything of the suite that the builder does not hold yet. Returns when all is done or the user stops; what
/// was measured is in the builder and in the journal either way.
pub fn run(
    suite: &Suite,
    context: &RunContext<'_>,
    builder: &mut RecordBuilder,
    journal: &mut Journal,
    observer: &mut dyn Observer,
) -> Result<(), JournalError> {
    let mut verifier = Verifier::new(suite.seed, context.scratch);
    let rounds = suite.cases.iter().map(|case| case.settings.rounds).max().unwrap_or(0);
    for round in 0..rounds {
        let mut order: Vec<usize> = (0..suite.cases.len())
            .filter(|&case| round < suite.cases[case].settings.rounds)
            .filter(|&case| !builder.is_settled(case))
            .filter(|&case| builder.rounds(case).iter().all(|seen| seen.round != round))
            .collect();
        if order.is_empty() {
            continue;
        }
        let mut rng = Pcg64::seed_from_u64(hash64(suite.seed, u64::from(round)));
        order.shuffle(&mut rng);
        observer.round_started(round, rounds, order.len());
        let mut pass = Pass { suite, context, round, workers: BTreeMap::new(), failed_starts: BTreeMap::new() };
        if let Err(Failure::Interrupted) = pass.controls(builder, journal, observer)? {
            return Ok(());
        }
        for (position, &case) in order.iter().enumerate() {
            let planned = &suite.cases[case];
            observer.case_started(planned);
            match pass.case(planned, position as u32, &mut verifier, &mut rng) {
                Ok(outcome) => {
                    let entry = Entry::Case { key: planned.key(), round: outcome.round, time: outcome.time };
                    builder.add(&entry);
                    journal.append(&entry)?;
                    if let Entry::Case { round, .. } = &entry {
                        observer.case_finished(planned, round);
                    }
                }
                Err(_) => return Ok(()),
            }
        }
        pass.workers.into_values().for_each(Worker::shutdown);
    }
    Ok(())
}

/// One pass over the matrix.
struct Pass<'a> {
    suite: &'a Suite,
    context: &'a RunContext<'a>,
    round: u32,
    workers: BTreeMap<String, Worker>,
    failed_starts: BTreeMap<String, u32>,
}

impl Pass<'_> {
    /// Measures the controls in the coordinator's own worker.
    fn controls(
        &mut self,
        builder: &mut RecordBuilder,
        journal: &mut Journal,
        observer: &mut dyn Observer,
    ) -> Result<Result<(), Failure>, JournalError> {
        let is_done = builder.controls().iter().all(|control| control.rounds.len() > self.round as usize);
        if is_done {
            return Ok(Ok(()));
        }
        observer.controls_started();
        let start = Instant::now();
        let measure = || -> Result<Vec<(u64, Vec<f64>)>, Failure> {
            let mut worker = Worker::spawn(self.context.control_worker, self.stop(), START_TIMEOUT)?;
            let samples = builder
                .controls()
                .iter()
                .map(|control| {
                    let request = Request::Control(controls::request(control));
                    let seen: ControlSamples = worker.ask(request, CONTROL_TIMEOUT)?;
                    Ok((seen.work, seen.device_ns))
                })
                .collect::<Result<_, Failure>>()?;
            worker.shutdown();
            Ok(samples)
        };
        let samples = match measure() {
            Ok(samples) => samples,
            Err(Failure::Interrupted) => return Ok(Err(Failure::Interrupted)),
            // A machine whose controls fail still measures its cases; their share of the limit is unknown.
            Err(_) => builder.controls().iter().map(|_| (0, Vec::new())).collect(),
        };
        let spent = elapsed_ns(start);
        let time = TimeSpent { total_ns: spent, controls_ns: spent, ..TimeSpent::default() };
        let entry = Entry::Controls { round: self.round, samples, time };
        builder.add(&entry);
        journal.append(&entry)?;
        Ok(Ok(()))
    }

    fn stop(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.context.stop)
    }

    fn case(
        &mut self,
        planned: &PlannedCase,
        order: u32,
        verifier: &mut Verifier,
        rng: &mut Pcg64,
    ) -> Result<CaseOutcome, Failure> {
        if self.context.stop.load(Ordering::Relaxed) {
            return Err(Failure::Interrupted);
        }
        let start = Instant::now();
        let provider = &planned.case.provider;
        let mut worker = match self.worker(provider) {
            Ok(worker) => worker,
            Err(Failure::Interrupted) => return Err(Failure::Interrupted),
            Err(failure) => {
                let seen =
                    CaseRound::without_samples(self.round, order, disposition_of(&failure), Some(failure.to_string()));
                let spent = elapsed_ns(start);
                let time = TimeSpent { total_ns: spent, start_ns: spent, ..TimeSpent::default() };
                return Ok(CaseOutcome { round: seen, time, worker_survives: false });
            }
        };
        let start_ns = elapsed_ns(start);
        let mut outcome = measure_case(&mut worker, planned, (self.round, order), verifier, rng)?;
        if outcome.worker_survives {
            self.workers.insert(provider.clone(), worker);
        }
        outcome.time.start_ns += start_ns;
        outcome.time.total_ns = elapsed_ns(start);
        Ok(outcome)
    }

    /// The provider's worker of this round, started where there is none. It is handed out, and put back if it survives.
    fn worker(&mut self, provider: &str) -> Result<Worker, Failure> {
        if let Some(worker) = self.workers.remove(provider) {
            return Ok(worker);
        }
        let failed = self.failed_starts.entry(provider.to_owned()).or_default();
        let crashed = |how: String| Failure::Crashed { provider: provider.to_owned(), how, stderr: String::new() };
        let Some(command) = self.context.workers.get(provider) else {
            let way_out = match adapters::names().any(|name| name == provider) {
                true => format!("--provider {provider}"),
                false => format!("--provider {provider}='COMMAND ARGS'"),
            };
            let message =
                format!("provider `{provider}` is not built in and was not named on the command line: {way_out}");
            return Err(WorkerError::new(ErrorKind::Unsupported, message).into());
        };
        if *failed >= MAX_FAILED_STARTS {
            return Err(crashed(format!("could not be started {failed} times in a row in this round")));
        }
        let spawned = Worker::spawn(command, Arc::clone(&self.context.stop), START_TIMEOUT);
        match &spawned {
            Ok(_) => *failed = 0,
            // It can say that it lacks something: that is an answer, and each of its cases gets it.
            Err(failure) if disposition_of(failure) == Disposition::Unsupported => {}
            Err(_) => *failed += 1,
        }
        debug_assert!(self.suite.cases.iter().any(|case| case.case.provider == provider));
        spawned
    }
}
