//! The workers of the two sides.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use crate::clock::elapsed_ns;
use crate::device::telemetry::Source;
use crate::measure::case::{CaseOutcome, disposition_of};
use crate::measure::run::{MAX_FAILED_STARTS, START_TIMEOUT};
use crate::record::{CaseRound, TimeSpent};
use crate::worker::client::{Failure, Surroundings, Worker, WorkerCommand};
use crate::worker::protocol::{ErrorKind, WorkerError};

/// Something that base and head each have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sides<T> {
    /// What is compared with.
    pub base: T,
    /// What is judged.
    pub head: T,
}

impl<T> Sides<T> {
    /// The same of each side.
    pub fn map<U>(self, mut of: impl FnMut(T) -> U) -> Sides<U> {
        Sides { base: of(self.base), head: of(self.head) }
    }

    /// One side.
    pub fn of_mut(&mut self, is_head: bool) -> &mut T {
        if is_head { &mut self.head } else { &mut self.base }
    }
}

/// How the workers of one side are started, by provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerSet {
    /// By provider.
    pub commands: BTreeMap<String, WorkerCommand>,
    /// Whether this is head.
    pub is_head: bool,
}

impl WorkerSet {
    /// The workers of a round, none of them started yet.
    pub(super) fn round<'a>(
        &'a self,
        surroundings: Surroundings,
        telemetry: &'a dyn Source,
        stop: Arc<AtomicBool>,
    ) -> RoundWorkers<'a> {
        RoundWorkers {
            set: self,
            is_head: self.is_head,
            surroundings,
            telemetry,
            stop,
            running: BTreeMap::new(),
            failed_starts: BTreeMap::new(),
        }
    }
}

/// The workers of one side in one round.
pub(super) struct RoundWorkers<'a> {
    set: &'a WorkerSet,
    pub(super) is_head: bool,
    surroundings: Surroundings,
    telemetry: &'a dyn Source,
    stop: Arc<AtomicBool>,
    running: BTreeMap<String, Worker>,
    failed_starts: BTreeMap<String, u32>,
}

impl RoundWorkers<'_> {
    /// Measures with the provider's worker, which is started where there is none. A worker that cannot be started gives
    /// the case its disposition; only an interrupt is an error.
    pub(super) fn with_worker(
        &mut self,
        provider: &str,
        (round, order): (u32, u32),
        measure: impl FnOnce(&mut Worker) -> Result<CaseOutcome, Failure>,
    ) -> Result<CaseOutcome, Failure> {
        let start = Instant::now();
        let mut worker = match self.start(provider) {
            Ok(worker) => worker,
            Err(Failure::Interrupted) => return Err(Failure::Interrupted),
            Err(failure) => {
                let seen =
                    CaseRound::without_samples(round, order, disposition_of(&failure), Some(failure.to_string()));
                return Ok(CaseOutcome { round: seen, time: TimeSpent::default(), worker_survives: false });
            }
        };
        let start_ns = elapsed_ns(start);
        let mut outcome = measure(&mut worker)?;
        outcome.time.start_ns += start_ns;
        if outcome.worker_survives {
            self.running.insert(provider.to_owned(), worker);
        }
        Ok(outcome)
    }

    /// A worker that runs already, whichever.
    pub(super) fn any(&mut self) -> Option<&mut Worker> {
        self.running.values_mut().next()
    }

    fn start(&mut self, provider: &str) -> Result<Worker, Failure> {
        if let Some(worker) = self.running.remove(provider) {
            return Ok(worker);
        }
        let Some(command) = self.set.commands.get(provider) else {
            let message = format!(
                "provider `{provider}` is not built in and was not named on the command line: --provider \
                 {provider}='COMMAND ARGS', with {{worker}} for the built worker of each side"
            );
            return Err(WorkerError::new(ErrorKind::Unsupported, message).into());
        };
        let failed = self.failed_starts.entry(provider.to_owned()).or_default();
        if *failed >= MAX_FAILED_STARTS {
            let how = format!("could not be started {failed} times in a row in this round");
            return Err(Failure::Crashed { provider: provider.to_owned(), how, stderr: String::new() });
        }
        let mut spawned = Worker::spawn_in(command, &self.surroundings, Arc::clone(&self.stop), START_TIMEOUT);
        spawned.iter_mut().for_each(|worker| worker.watch(self.telemetry));
        *failed = if spawned.is_ok() { 0 } else { *failed + 1 };
        spawned
    }

    pub(super) fn shutdown(self) {
        self.running.into_values().for_each(Worker::shutdown);
    }
}
