//! One case in one round: prepare, verify, sample in batches, verify again, report memory, release.
//!
//! Input sets 0 and 1 serve the first half of the samples; later batches use sets 2 and 3, which overwrite the same
//! buffers in place, so that whatever a kernel kept from an earlier call has gone stale. One call before timing and one
//! timed call chosen at random write into poisoned outputs, and both are compared with the oracle.
//!
//! Where the worker's GPU is watched, a batch during which heat, the hardware's slowdown or the power brake held its clocks
//! down is repeated as a whole after a pause; a case whose every try came to that is `throttled`.

use std::time::{Duration, Instant};

use attn_kernels::input::hash64;
use rand::RngExt;
use rand_pcg::Pcg64;

use super::verify::Verifier;
use crate::case::Mode;
use crate::clock::elapsed_ns;
use crate::device::cpu::memory::available_bytes;
use crate::device::telemetry::watch::Telemetry;
use crate::record::telemetry::{HotLoop, Interval, Refusal};
use crate::record::{CaseRound, Disposition, MemoryReport, TimeSpent, Verification};
use crate::stats::stopping;
use crate::suite::PlannedCase;
use crate::worker::client::{Failure, Worker};
use crate::worker::protocol::{
    CaseRequest, Done, ErrorKind, Measure, Measured, Prepare, Prepared, Request, SLOWDOWN_VERSION, Sample, WorkerError,
};

/// Input buffers that calls rotate over, where memory allows.
const SLOTS: u64 = 2;
/// The share of the available memory that a second input buffer may take.
const SECOND_SLOT_SHARE: u64 = 4;
/// Sampling goes on past the budget to reach the minimum, up to this many budgets.
const BUDGET_OVERRUN: u64 = 4;
/// Times that a batch is tried while the GPU is throttled.
const THROTTLED_TRIES: u32 = 3;
/// How long the loop runs that energy is taken from: the energy counter moves some ten times a second, and two seconds are
/// the least that a figure is derived from.
const HOT_LOOP_NS: u64 = 2_200_000_000;
/// Calls of that loop at most, each of which is a sample in the worker's answer.
const HOT_LOOP_CALLS: f64 = 100_000.0;
/// Batches that the budget is cut into, so that the stopping rule is asked now and then.
const BATCHES_A_BUDGET: f64 = 5.0;

/// What a round saw of a case, and what it cost.
pub struct CaseOutcome {
    /// What was seen.
    pub round: CaseRound,
    /// Where the time went (`total_ns` is the whole case).
    pub time: TimeSpent,
    /// Whether the worker can go on.
    pub worker_survives: bool,
}

/// Measures a case. Only an interrupt is an error: everything else is a disposition.
pub fn measure_case(
    worker: &mut Worker,
    planned: &PlannedCase,
    (round, order): (u32, u32),
    verifier: &mut Verifier,
    rng: &mut Pcg64,
) -> Result<CaseOutcome, Failure> {
    let start = Instant::now();
    let mut attempt = Attempt::new(worker, planned, verifier, rng);
    let result = attempt.run();
    let Attempt { mut seen, mut time, .. } = attempt;
    (seen.round, seen.order) = (round, order);
    let is_lost = worker.telemetry.as_ref().is_some_and(Telemetry::is_lost);
    let worker_survives = match result {
        Err(Stop::Failed(Failure::Interrupted)) => return Err(Failure::Interrupted),
        // Whatever else went wrong, and even if nothing seems to have.
        result if is_lost => {
            let also = match result {
                Err(Stop::Failed(failure)) => format!("; {failure}"),
                _ => String::new(),
            };
            settle(&mut seen, Disposition::Crashed, format!("{}{also}", Refusal::GpuLost));
            false
        }
        Ok(()) => true,
        Err(Stop::Throttled(reasons)) => {
            let reason =
                format!("in each of {THROTTLED_TRIES} tries, the GPU was slowed down by {}", reasons.join(", "));
            if let Some(telemetry) = &mut seen.telemetry {
                telemetry.throttled_device_ns.extend(&seen.device_ns);
            }
            settle(&mut seen, Disposition::Throttled, reason);
            true
        }
        Err(Stop::Incorrect { reason, taints_worker }) => {
            settle(&mut seen, Disposition::Incorrect, reason);
            !taints_worker
        }
        Err(Stop::Failed(failure)) => {
            settle(&mut seen, disposition_of(&failure), failure.to_string());
            failure.worker_survives()
        }
    };
    if worker_survives {
        // A worker that cannot even release is replaced, and the case keeps what it came to.
        let releasing = Instant::now();
        let released = worker.ask::<Done>(Request::Release, timeout(planned));
        time.inputs_ns += elapsed_ns(releasing);
        if matches!(released, Err(Failure::Interrupted)) {
            return Err(Failure::Interrupted);
        }
        time.total_ns = elapsed_ns(start);
        return Ok(CaseOutcome { round: seen, time, worker_survives: released.is_ok() });
    }
    time.total_ns = elapsed_ns(start);
    Ok(CaseOutcome { round: seen, time, worker_survives })
}

/// The disposition that a failed request means.
pub fn disposition_of(failure: &Failure) -> Disposition {
    match failure {
        Failure::Refused(error) => match error.kind {
            ErrorKind::Unsupported => Disposition::Unsupported,
            ErrorKind::OutOfMemory => Disposition::OutOfMemory,
            ErrorKind::Invalid | ErrorKind::KernelError | ErrorKind::Internal => Disposition::Crashed,
        },
        Failure::TimedOut { .. } => Disposition::TimedOut,
        Failure::Crashed { .. } | Failure::Rubbish { .. } => Disposition::Crashed,
        Failure::Interrupted => Disposition::Skipped,
    }
}

/// A case that did not come through has no latency: its samples are not kept beside it.
fn settle(seen: &mut CaseRound, disposition: Disposition, reason: String) {
    seen.disposition = disposition;
    seen.reason = Some(reason);
    seen.device_ns.clear();
    seen.wall_ns.clear();
    seen.cycles.clear();
    seen.host_ns.clear();
    seen.sets.clear();
    seen.sample_flags.clear();
}

enum Stop {
    Failed(Failure),
    /// The GPU was slowed down by these in every try.
    Throttled(Vec<String>),
    Incorrect {
        reason: String,
        /// Whether what the kernel left behind would disturb the cases after it.
        taints_worker: bool,
    },
}

impl Stop {
    fn incorrect(reason: String) -> Self {
        Stop::Incorrect { reason, taints_worker: false }
    }
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Stop::Failed(failure)
    }
}

fn timeout(planned: &PlannedCase) -> Duration {
    Duration::from_secs(planned.settings.timeout_s)
}

struct Attempt<'a> {
    worker: &'a mut Worker,
    planned: &'a PlannedCase,
    verifier: &'a mut Verifier,
    rng: &'a mut Pcg64,
    seen: CaseRound,
    time: TimeSpent,
    calls: u64,
    slots: u64,
}

impl<'a> Attempt<'a> {
    fn new(worker: &'a mut Worker, planned: &'a PlannedCase, verifier: &'a mut Verifier, rng: &'a mut Pcg64) -> Self {
        let mut seen = CaseRound::without_samples(0, 0, Disposition::Measured, None);
        seen.telemetry = worker.telemetry.as_ref().map(Telemetry::case);
        Attempt { worker, planned, verifier, rng, seen, time: TimeSpent::default(), calls: 0, slots: SLOTS }
    }

    fn run(&mut self) -> Result<(), Stop> {
        let settings = &self.planned.settings;
        self.prepare()?;
        let warm_up = self.batch(vec![0, 1], Some(0), u64::MAX)?;
        self.verify("before", self.verified_sets()[0])?;

        let call_ns = warm_up.samples.last().map_or(1.0, |sample| sample.wall_ns).max(1.0);
        let flush_ns = warm_up.flush_ns as f64 / warm_up.samples.len().max(1) as f64;
        let budget_ns = settings.budget_ms.saturating_mul(1_000_000);
        let a_batch = (budget_ns as f64 / BATCHES_A_BUDGET / (call_ns + flush_ns)).max(1.0) as u32;
        let min_samples = settings.min_samples.max(2);
        let max_samples = settings.max_samples.max(min_samples);

        let start = Instant::now();
        let first = min_samples.div_ceil(2).max(a_batch.min(max_samples / 2));
        let samples =
            self.batch((0..u64::from(first)).map(|call| call % SLOTS).collect(), None, budget_ns / 2)?.samples;
        self.keep(samples);

        let verified_set = self.verified_sets()[1];
        let mut is_verified = false;
        loop {
            let have = self.seen.device_ns.len() as u32;
            let spent_ns = elapsed_ns(start);
            let is_spent = spent_ns >= budget_ns && (have >= min_samples || spent_ns >= BUDGET_OVERRUN * budget_ns);
            let is_enough =
                stopping::enough(&self.seen.device_ns, settings.target_ci, min_samples as usize, max_samples as usize);
            if is_verified && (is_spent || is_enough) {
                break;
            }
            let missing = min_samples.saturating_sub(have);
            let calls = a_batch.max(missing).min(max_samples.saturating_sub(have)).max(2);
            let order: Vec<u64> = (0..u64::from(calls)).map(|call| SLOTS + call % SLOTS).collect();
            let poison_call = (!is_verified).then(|| {
                let candidates = order.iter().filter(|&&set| set == verified_set).count() as u32;
                self.rng.random_range(0..candidates) * SLOTS as u32 + (verified_set - SLOTS) as u32
            });
            let left_ns = budget_ns.saturating_sub(spent_ns).max(budget_ns / 10);
            let max_ns = if have < min_samples { left_ns.max(budget_ns) } else { left_ns };
            let samples = self.batch(order, poison_call, max_ns)?.samples;
            self.keep(samples);
            if !is_verified {
                self.verify("after", verified_set)?;
                is_verified = true;
            }
        }
        let count = self.seen.device_ns.len();
        for figures in [&mut self.seen.cycles, &mut self.seen.host_ns] {
            if figures.len() != count {
                // A worker that tells of some calls only leaves no way to say of which.
                figures.clear();
            }
        }
        if settings.energy {
            self.hot_loop(call_ns)?;
        }
        let memory: MemoryReport = self.worker.ask(Request::Memory, timeout(self.planned))?;
        self.seen.memory = Some(memory);
        Ok(())
    }

    /// The sets that are compared with the oracle before and after timing: the same in every round, so that the oracle's
    /// work is done once, and not foreseeable from the protocol.
    fn verified_sets(&self) -> [u64; 2] {
        [0, SLOTS + hash64(self.verifier.seed(), self.planned.threads as u64) % SLOTS]
    }

    fn prepare(&mut self) -> Result<(), Stop> {
        if self.planned.slowdown != 0.0 && self.worker.hello.protocol < SLOWDOWN_VERSION {
            let reason = "the worker is of a build that cannot slow kernels down for a calibration";
            return Err(Failure::from(WorkerError::new(ErrorKind::Unsupported, reason)).into());
        }
        let problem = &self.planned.case.problem;
        let available_bytes = available_bytes();
        let tensor_bytes = attn_kernels::input::tensor_bytes(problem);
        let slots = if tensor_bytes > available_bytes / SECOND_SLOT_SHARE { 1 } else { SLOTS };
        self.slots = slots;
        let start = Instant::now();
        let inputs = self.verifier.input_spec(self.planned, &self.verified_sets());
        self.time.oracle_ns += elapsed_ns(start);
        let start = Instant::now();
        let prepared: Prepared = self.worker.ask(
            Request::Prepare(Prepare {
                case: CaseRequest {
                    kernel: self.planned.case.kernel.clone(),
                    problem: problem.clone(),
                    threads: self.planned.threads,
                },
                lengths_q: problem.lengths_q(),
                lengths_kv: problem.lengths_kv(),
                inputs,
                slots,
                available_bytes,
                slowdown: self.planned.slowdown,
            }),
            timeout(self.planned),
        )?;
        self.time.inputs_ns += prepared.inputs_ns;
        self.time.start_ns += elapsed_ns(start).saturating_sub(prepared.inputs_ns);
        self.seen.plan_ns = Some(prepared.plan_ns);
        self.seen.compile_ns = prepared.compile_ns;
        self.seen.launches = prepared.launches;
        self.seen.device = self.worker.hello.gpu.as_ref().map(|_| self.worker.hello.device.clone());
        Ok(())
    }

    /// Runs calls over these sets, again where the GPU was throttled meanwhile.
    fn batch(&mut self, set_order: Vec<u64>, poison_call: Option<u32>, max_ns: u64) -> Result<Measured, Stop> {
        let mode = self.planned.settings.mode;
        let mut tries = 0;
        loop {
            let (measured, interval) = self.watched(mode, set_order.clone(), poison_call, max_ns)?;
            let (Some(interval), Some(seen)) = (interval, &mut self.seen.telemetry) else { return Ok(measured) };
            let throttled_by = interval.throttled_by.clone();
            seen.intervals.push(interval);
            if throttled_by.is_empty() {
                return Ok(measured);
            }
            seen.throttled_device_ns.extend(measured.samples.iter().map(|sample| sample.device_ns));
            tries += 1;
            if tries == THROTTLED_TRIES {
                return Err(Stop::Throttled(throttled_by));
            }
            self.worker.telemetry.iter().for_each(Telemetry::cool_down);
        }
    }

    /// Calls back to back on inputs that do not change, for as long as the energy counter needs. Their times are evidence:
    /// the latency comes from the samples.
    fn hot_loop(&mut self, call_ns: f64) -> Result<(), Stop> {
        if !self.worker.telemetry.as_ref().is_some_and(Telemetry::is_watching) {
            return Ok(());
        }
        let calls = (1.5 * HOT_LOOP_NS as f64 / call_ns).clamp(2.0, HOT_LOOP_CALLS) as u64;
        let order = (0..calls).map(|call| SLOTS + call % self.slots).collect();
        let (measured, interval) = self.watched(Mode::Hot, order, None, HOT_LOOP_NS)?;
        if let (Some(interval), Some(seen)) = (interval, &mut self.seen.telemetry) {
            let device_ns = measured.samples.iter().map(|sample| sample.device_ns).sum();
            seen.hot_loop = Some(HotLoop { calls: measured.samples.len() as u64, device_ns, interval });
        }
        Ok(())
    }

    /// Runs calls while the GPU is watched, where it can be.
    fn watched(
        &mut self,
        mode: Mode,
        set_order: Vec<u64>,
        poison_call: Option<u32>,
        max_ns: u64,
    ) -> Result<(Measured, Option<Interval>), Stop> {
        let watch = self.worker.telemetry.as_ref().and_then(Telemetry::begin);
        let measured = self.calls(mode, set_order, poison_call, max_ns);
        let interval = watch.zip(self.seen.telemetry.as_mut()).map(|(watch, seen)| watch.end(seen));
        Ok((measured?, interval))
    }

    /// Runs calls over these sets, and refuses what gives a dishonest kernel away.
    fn calls(
        &mut self,
        mode: Mode,
        set_order: Vec<u64>,
        poison_call: Option<u32>,
        max_ns: u64,
    ) -> Result<Measured, Stop> {
        let max_samples = set_order.len() as u32;
        let start = Instant::now();
        let measured: Measured = self.worker.ask(
            Request::Measure(Measure { mode, max_samples, max_ns, first_call: self.calls, set_order, poison_call }),
            timeout(self.planned),
        )?;
        let wall_ns = elapsed_ns(start) as f64;
        let count = measured.samples.len() as u32;
        self.calls += u64::from(count);
        self.time.flush_ns += measured.flush_ns;
        self.time.inputs_ns += measured.inputs_ns;
        let timed_ns: f64 = measured.samples.iter().map(|sample| sample.wall_ns).sum();
        self.time.calls_ns += timed_ns.max(0.0) as u64;

        let incorrect = |reason: String| Err(Stop::incorrect(reason));
        if count == 0 || count > max_samples || poison_call.is_some_and(|call| call >= count) {
            return incorrect(format!("the worker returned {count} samples for {max_samples} calls"));
        }
        if measured.samples.iter().any(|sample| !is_positive(sample.device_ns) || !is_positive(sample.wall_ns)) {
            return incorrect("the worker reported a time that is not positive".to_owned());
        }
        // The coordinator's own clock bounds what a worker may claim, on both sides.
        if timed_ns > wall_ns * 1.02 {
            return incorrect(format!(
                "the worker reported {timed_ns:.0} ns of calls within {wall_ns:.0} ns of the coordinator's clock"
            ));
        }
        refuse_findings(&measured.flags)?;
        Ok(measured)
    }

    fn keep(&mut self, samples: Vec<Sample>) {
        for sample in samples {
            if !sample.flags.is_empty() {
                self.seen.sample_flags.insert(self.seen.device_ns.len() as u32, sample.flags);
            }
            self.seen.cycles.extend(sample.cycles);
            self.seen.host_ns.extend(sample.host_ns);
            self.seen.device_ns.push(sample.device_ns);
            self.seen.wall_ns.push(sample.wall_ns);
            self.seen.sets.push(sample.set);
        }
    }

    fn verify(&mut self, stage: &str, set: u64) -> Result<(), Stop> {
        let start = Instant::now();
        let result = self.verifier.verify(self.worker, self.planned, set, timeout(self.planned));
        self.time.oracle_ns += elapsed_ns(start);
        let verified = result?;
        for (tensor, rows, error) in verified.reports {
            let failed = (!error.pass).then(|| {
                let reason = error.reason.clone().unwrap_or_else(|| "outside the tolerance".to_owned());
                format!("{tensor:?} of a call {stage} timing: {reason}")
            });
            self.seen.verification.push(Verification { stage: stage.to_owned(), set, tensor, rows, error });
            if let Some(reason) = failed {
                return Err(Stop::incorrect(reason));
            }
        }
        refuse_findings(&verified.flags)
    }
}

/// What a worker found out about its kernel makes the case incorrect.
fn refuse_findings(flags: &[String]) -> Result<(), Stop> {
    Err(match flags.first().map(String::as_str) {
        None => return Ok(()),
        Some("mutated_input") => Stop::incorrect("the kernel changed its inputs".to_owned()),
        Some("late_work") => Stop::Incorrect {
            reason: "work went on after the call had returned: the time is not the work's".to_owned(),
            taints_worker: true,
        },
        Some(flag) => Stop::incorrect(format!("the worker reported `{flag}`")),
    })
}

fn is_positive(nanoseconds: f64) -> bool {
    nanoseconds.is_finite() && nanoseconds > 0.0
}
