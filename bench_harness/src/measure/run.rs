//! The loop of a run: rounds, shuffled cases, fresh workers, a journal line after each case.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry::{Occupied, Vacant};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
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
use crate::device::telemetry::{Source, watch::Telemetry};
use crate::record::telemetry::Refusal;
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
    /// The workers of provider `cuda`, one a GPU, all alike; none where the suite's cases need none.
    pub gpu_workers: &'a [WorkerCommand],
    /// The coordinator's own worker, which measures the controls.
    pub control_worker: &'a WorkerCommand,
    /// Where the GPUs of workers are watched.
    pub telemetry: &'a dyn Source,
    /// A private folder for outputs.
    pub scratch: &'a Path,
    /// Becomes true when the user asks to stop.
    pub stop: Arc<AtomicBool>,
}

/// Measures everything of the suite that the builder does not hold yet. Returns when all is done or the user stops; what
/// was measured is in the builder and in the journal either way.
///
/// Cases of several GPUs are measured at the same time, each always on the same one; everything else is measured beside
/// those of the first, one after another.
pub fn run(
    suite: &Suite,
    context: &RunContext<'_>,
    builder: &mut RecordBuilder,
    journal: &mut Journal,
    observer: &mut dyn Observer,
) -> Result<(), JournalError> {
    let lanes = lanes_of(suite, context.gpu_workers.len());
    let lane_count = lanes.iter().max().map_or(1, |lane| lane + 1);
    let mut verifiers: Vec<Verifier> =
        (0..lane_count).map(|lane| Verifier::new(suite.seed, context.scratch, lane)).collect();
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
        let seed = hash64(suite.seed, u64::from(round));
        let mut rng = Pcg64::seed_from_u64(seed);
        order.shuffle(&mut rng);
        observer.round_started(round, rounds, order.len());
        if let Err(Failure::Interrupted) = controls(context, round, builder, journal, observer)? {
            return Ok(());
        }
        let passes = verifiers.iter_mut().enumerate().map(|(lane, verifier)| {
            let is_own = |&(_, case): &(usize, usize)| lanes[case] == lane;
            let share: Vec<(usize, usize)> = order.iter().copied().enumerate().filter(is_own).collect();
            let rng = if lane == 0 { rng.clone() } else { Pcg64::seed_from_u64(hash64(seed, lane as u64)) };
            let pass = Pass {
                suite,
                context,
                lane,
                round,
                workers: BTreeMap::new(),
                failed_starts: BTreeMap::new(),
                unhealthy: BTreeMap::new(),
            };
            (pass, share, verifier, rng)
        });
        let mut is_interrupted = false;
        let mut journaled = Ok(());
        std::thread::scope(|scope| {
            let (sender, news) = channel();
            for (pass, share, verifier, rng) in passes {
                let sender = sender.clone();
                scope.spawn(move || pass.run(&share, verifier, rng, &sender));
            }
            drop(sender);
            for (case, news) in news {
                let planned = &suite.cases[case];
                match news {
                    News::Started => observer.case_started(planned),
                    News::Interrupted => is_interrupted = true,
                    News::Finished(outcome) => {
                        let entry = Entry::Case { key: planned.key(), round: outcome.round, time: outcome.time };
                        builder.add(&entry);
                        journaled = journal.append(&entry);
                        if let Entry::Case { round, .. } = &entry {
                            observer.case_finished(planned, round);
                        }
                        if journaled.is_err() {
                            // Nobody listens any more, and so the passes end with the cases that they are at.
                            break;
                        }
                    }
                }
            }
        });
        journaled?;
        if is_interrupted {
            return Ok(());
        }
    }
    Ok(())
}

/// The lane of each case: those of provider `cuda` in turn, all others the first.
fn lanes_of(suite: &Suite, gpus: usize) -> Vec<usize> {
    let mut next = 0;
    let mut lane = |provider: &str| {
        if provider != "cuda" {
            return 0;
        }
        next += 1;
        (next - 1) % gpus.max(1)
    };
    suite.cases.iter().map(|case| lane(&case.case.provider)).collect()
}

/// What a pass tells of a case.
enum News {
    Started,
    Finished(CaseOutcome),
    Interrupted,
}

/// Measures the controls in workers of their own.
fn controls(
    context: &RunContext<'_>,
    round: u32,
    builder: &mut RecordBuilder,
    journal: &mut Journal,
    observer: &mut dyn Observer,
) -> Result<Result<(), Failure>, JournalError> {
    let is_done = builder.controls().iter().all(|control| control.rounds.len() > round as usize);
    if is_done {
        return Ok(Ok(()));
    }
    observer.controls_started();
    let start = Instant::now();
    let mut workers: BTreeMap<&str, Option<Worker>> = BTreeMap::new();
    let mut samples = Vec::new();
    for control in builder.controls() {
        let worker = match workers.entry(control.provider.as_str()) {
            Occupied(entry) => entry.into_mut(),
            Vacant(entry) => {
                let command = match control.provider.as_str() {
                    "cuda" => context.gpu_workers.first().unwrap_or(context.control_worker),
                    _ => context.control_worker,
                };
                match Worker::spawn(command, Arc::clone(&context.stop), START_TIMEOUT) {
                    Err(Failure::Interrupted) => return Ok(Err(Failure::Interrupted)),
                    spawned => entry.insert(spawned.ok()),
                }
            }
        };
        let request = Request::Control(controls::request(control));
        let seen = worker.as_mut().map(|worker| worker.ask::<ControlSamples>(request, CONTROL_TIMEOUT));
        // A machine whose controls fail still measures its cases; their share of the limit is unknown.
        samples.push(match seen {
            Some(Ok(seen)) => (seen.work, seen.device_ns),
            Some(Err(Failure::Interrupted)) => return Ok(Err(Failure::Interrupted)),
            Some(Err(failure)) => {
                if !failure.worker_survives() {
                    *worker = None;
                }
                (0, Vec::new())
            }
            None => (0, Vec::new()),
        });
    }
    workers.into_values().flatten().for_each(Worker::shutdown);
    let spent = elapsed_ns(start);
    let time = TimeSpent { total_ns: spent, controls_ns: spent, ..TimeSpent::default() };
    let entry = Entry::Controls { round, samples, time };
    builder.add(&entry);
    journal.append(&entry)?;
    Ok(Ok(()))
}

/// One pass over the cases of a lane.
struct Pass<'a> {
    suite: &'a Suite,
    context: &'a RunContext<'a>,
    lane: usize,
    round: u32,
    workers: BTreeMap<String, Worker>,
    failed_starts: BTreeMap<String, u32>,
    /// Providers whose GPU is gone, and what said so.
    unhealthy: BTreeMap<String, String>,
}

impl Pass<'_> {
    /// Measures its cases, given with their positions in the round, and tells of each. Ends early where nobody listens.
    fn run(mut self, share: &[(usize, usize)], verifier: &mut Verifier, mut rng: Pcg64, news: &Sender<(usize, News)>) {
        for &(position, case) in share {
            let planned = &self.suite.cases[case];
            if news.send((case, News::Started)).is_err() {
                return;
            }
            let told = match self.case(planned, position as u32, verifier, &mut rng) {
                Ok(outcome) => news.send((case, News::Finished(outcome))),
                Err(_) => {
                    let _ = news.send((case, News::Interrupted));
                    return;
                }
            };
            if told.is_err() {
                return;
            }
        }
        self.workers.into_values().for_each(Worker::shutdown);
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
        if let Some(reason) = self.unhealthy.get(provider) {
            let reason = format!("device unhealthy: {reason}");
            let seen = CaseRound::without_samples(self.round, order, Disposition::Skipped, Some(reason));
            return Ok(CaseOutcome { round: seen, time: TimeSpent::default(), worker_survives: false });
        }
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
        if worker.telemetry.as_ref().is_some_and(Telemetry::is_lost) {
            self.unhealthy.insert(provider.clone(), Refusal::GpuLost.to_string());
        } else if outcome.worker_survives {
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
        let own = if provider == "cuda" { self.context.gpu_workers.get(self.lane) } else { None };
        let Some(command) = own.or_else(|| self.context.workers.get(provider)) else {
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
        let mut spawned = Worker::spawn(command, Arc::clone(&self.context.stop), START_TIMEOUT);
        if let Ok(worker) = &mut spawned {
            worker.watch(self.context.telemetry);
        }
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
