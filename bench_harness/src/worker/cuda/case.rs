//! One case on a CUDA device: inputs made on the host and copied, a plan, timed calls, outputs copied back.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Instant;

use attn_kernels::cuda::CudaKernel;
use attn_kernels::cuda::flash::Flash;
use attn_kernels::input::{self, Generator, InputSpec};
use attn_kernels::problem::{AttentionProblem, Phase};
use attn_kernels::reference::SampledRows;
use attn_kernels::tensor::{Tensor, TensorName, TensorSet};

use super::Session;
use super::memory::{foresee_memory, poison_of, read_names, tensor_buffer};
use super::slowdown::spin_of;
use crate::case::Mode;
use crate::clock::elapsed_ns;
use crate::device::cpu::memory::rss_peak_bytes;
use crate::device::cuda::context::Buffer;
use crate::device::cuda::driver::Fault;
use crate::device::cuda::graph::Graph;
use crate::device::cuda::launch::{Code, LoadedPlan};
use crate::device::cuda::timer::{How, Timing};
use crate::worker::protocol::{Measure, Measured, Memory, Prepare, Prepared, Sample, WorkerError, Written};
use crate::worker::provider::PreparedCase;

/// A hot sample lasts about this long, so that its events do not count.
const HOT_SAMPLE_NS: f64 = 200_000.0;
/// Most calls of a hot sample.
const MAX_REPEAT: usize = 100;
/// Work that outlives the stream by this and half of its own time in every sample of a batch was started elsewhere.
const LATE_NS: f64 = 100_000.0;
/// Samples of a batch from which that is concluded: one may have been disturbed.
const LATE_SAMPLES: usize = 3;

/// One of the input buffers that calls rotate over.
struct Slot {
    set: Option<u64>,
    inputs: BTreeMap<TensorName, Buffer>,
    checksum: u64,
}

pub(super) struct CudaCase {
    session: Rc<Session>,
    problem: AttentionProblem,
    spec: InputSpec,
    plan: LoadedPlan,
    /// Computes O and LSE, which backward reads; its cost is never timed.
    forward: Option<LoadedPlan>,
    /// Where a set's values are made before they are copied.
    staging: TensorSet,
    slots: Vec<Slot>,
    outputs: BTreeMap<TensorName, Buffer>,
    poisoned: BTreeMap<TensorName, Buffer>,
    /// Of the poisoned outputs when their call's stream had ended: outputs that change later were not there in time.
    returned_checksum: u64,
    /// Calls so far. The first may load code, and is not held.
    calls: u64,
    /// Calls of a hot sample, once the first call has told how long one is.
    repeat: usize,
    /// Recorded calls, by slot and by whether they write the poisoned outputs.
    graphs: BTreeMap<(usize, bool), Graph>,
    /// Bytes that were allocated before the plan was loaded.
    base_bytes: u64,
    /// What a calibration adds to each call, as a share of it.
    slowdown: f64,
    /// How long a kernel that adds this is, once calls without it have told.
    spin_ns: Option<u64>,
}

impl CudaCase {
    pub(super) fn new(
        session: &Rc<Session>,
        kernel: &dyn CudaKernel,
        code: &Code<'_>,
        prepare: &Prepare,
    ) -> Result<(CudaCase, Prepared), WorkerError> {
        let problem = prepare.case.problem.clone();
        let context = &session.context;
        let start = Instant::now();
        let plan = kernel.plan(&problem, &context.facts())?;
        let mut plan_ns = elapsed_ns(start);
        let slot_count = foresee_memory(session, &problem, plan.device_bytes(), prepare)?;

        let start = Instant::now();
        let spec = prepare.inputs.clone();
        let failed = |fault| session.failed(fault);
        let forward = load_forward(session, &problem)?;
        let names = input::input_names(&problem);
        let statics = Generator::new(&problem, &spec, 0).static_inputs();
        let mut staging = TensorSet::new();
        for &name in &names {
            let (element, dims) = input::tensor_shape(&problem, name);
            staging.insert(name, statics.find(name).cloned().unwrap_or_else(|| Tensor::zeros(element, &dims)));
        }
        let allocate = |names: &[TensorName]| -> Result<BTreeMap<TensorName, Buffer>, Fault> {
            names.iter().map(|&name| Ok((name, tensor_buffer(context, &problem, name)?))).collect()
        };
        let (mut slots, read) = (Vec::new(), read_names(&problem));
        for _ in 0..slot_count {
            slots.push(Slot { set: None, inputs: allocate(&read).map_err(failed)?, checksum: 0 });
        }
        let output_names = input::output_names(&problem);
        let outputs = allocate(&output_names).map_err(failed)?;
        let poisoned = allocate(&output_names).map_err(failed)?;
        let mut inputs_ns = elapsed_ns(start);

        let start = Instant::now();
        let base_bytes = context.current_bytes();
        context.reset_peak();
        let plan = LoadedPlan::load(context, code, plan).map_err(|error| session.failed_to_load(&error))?;
        let compile_ns = plan.compile_ns();
        plan_ns += elapsed_ns(start).saturating_sub(compile_ns.unwrap_or(0));
        let mut case = CudaCase {
            session: Rc::clone(session),
            problem,
            spec,
            plan,
            forward,
            staging,
            slots,
            outputs,
            poisoned,
            returned_checksum: 0,
            calls: 0,
            repeat: 1,
            graphs: BTreeMap::new(),
            base_bytes,
            slowdown: prepare.slowdown.clamp(0.0, 100.0),
            spin_ns: None,
        };
        let start = Instant::now();
        for set in 0..slot_count {
            case.fill_slot(set)?;
        }
        inputs_ns += elapsed_ns(start);
        let tensor_bytes = input::tensor_bytes(&case.problem);
        let launches = case.plan.reports().to_vec();
        Ok((case, Prepared { plan_ns, compile_ns, inputs_ns, tensor_bytes, launches }))
    }

    /// Makes sure that a set's values are in its slot; they overwrite the slot's earlier set in place.
    fn fill_slot(&mut self, set: u64) -> Result<usize, WorkerError> {
        let index = (set % self.slots.len() as u64) as usize;
        if self.slots[index].set == Some(set) {
            return Ok(index);
        }
        let CudaCase { session, problem, spec, forward, staging, slots, .. } = self;
        Generator::new(problem, spec, set).overwrite(staging, false);
        let slot = &mut slots[index];
        for (name, tensor) in staging.iter() {
            session.context.upload(tensor.bytes(), &slot.inputs[&name]).map_err(|fault| session.failed(fault))?;
        }
        if let Some(forward) = forward {
            let address_of = |name| slot.inputs.get(&name).map(Buffer::address);
            let context = &session.context;
            let done = forward.enqueue(context, &address_of).and_then(|()| context.wait());
            done.map_err(|fault| session.failed(fault))?;
        }
        slot.checksum = checksum(session, &slot.inputs)?;
        slot.set = Some(set);
        Ok(index)
    }

    /// Runs a call and takes its time.
    fn call(&mut self, slot: usize, is_poisoned: bool, mode: Mode) -> Result<Timing, WorkerError> {
        let session = Rc::clone(&self.session);
        let failed = |fault| session.failed(fault);
        let is_first = self.calls == 0;
        if self.slowdown > 0.0 && !is_first && self.spin_ns.is_none() {
            let share = self.slowdown;
            let sample = &mut |spin| Ok(self.sample(slot, false, mode, spin).map_err(failed)?.device_ns);
            self.spin_ns = Some(spin_of(share, sample)?);
        }
        let timing = self.sample(slot, is_poisoned, mode, self.spin_ns).map_err(failed)?;
        let calls = if mode == Mode::Hot && !is_first { self.repeat as f64 } else { 1.0 };
        Ok(Timing {
            device_ns: timing.device_ns / calls,
            wall_ns: timing.wall_ns / calls,
            host_ns: timing.host_ns / calls,
            ..timing
        })
    }

    /// Takes a sample: a call, or several of them in hot mode, and then a kernel that does nothing for so long.
    fn sample(&mut self, slot: usize, is_poisoned: bool, mode: Mode, spin: Option<u64>) -> Result<Timing, Fault> {
        let session = Rc::clone(&self.session);
        let context = &session.context;
        let is_first = self.calls == 0;
        let is_graph = mode == Mode::Hot && !is_first;
        if is_graph && !self.graphs.contains_key(&(slot, is_poisoned)) {
            let graph =
                Graph::record(context, &mut || (0..self.repeat).try_for_each(|_| self.enqueue(slot, is_poisoned)))?;
            self.graphs.insert((slot, is_poisoned), graph);
        }
        let how = How { flush: mode == Mode::Cold, hold: !is_first };
        let mut returned = None;
        let timing = session.timer.time(
            context,
            how,
            &mut || {
                match self.graphs.get(&(slot, is_poisoned)) {
                    Some(graph) if is_graph => graph.launch(context)?,
                    _ => self.enqueue(slot, is_poisoned)?,
                }
                spin.map_or(Ok(()), |spin_ns| session.timer.enqueue_spin(context, spin_ns))
            },
            // As soon as its stream has ended, whatever else the device still does.
            &mut || {
                if is_poisoned {
                    returned = Some(session.checksummer.of(context, self.poisoned.values())?);
                }
                Ok(())
            },
        )?;
        self.returned_checksum = returned.unwrap_or(self.returned_checksum);
        self.calls += 1;
        if is_first {
            self.repeat = ((HOT_SAMPLE_NS / timing.device_ns) as usize).clamp(1, MAX_REPEAT);
        }
        Ok(timing)
    }

    fn enqueue(&self, slot: usize, is_poisoned: bool) -> Result<(), Fault> {
        let outputs = if is_poisoned { &self.poisoned } else { &self.outputs };
        let inputs = &self.slots[slot].inputs;
        let address_of = |name| inputs.get(&name).or_else(|| outputs.get(&name)).map(Buffer::address);
        self.plan.enqueue(&self.session.context, &address_of)
    }
}

/// The forward of a backward problem, whose O and LSE are backward's inputs.
fn load_forward(session: &Session, problem: &AttentionProblem) -> Result<Option<LoadedPlan>, WorkerError> {
    if problem.phase != Phase::Backward {
        return Ok(None);
    }
    let forward = AttentionProblem { phase: Phase::Prefill, deterministic: false, ..problem.clone() };
    let plan = Flash.plan(&forward, &session.context.facts())?;
    let loaded = LoadedPlan::load(&session.context, &Code::Source(&session.compiler), plan);
    loaded.map(Some).map_err(|error| session.failed_to_load(&error))
}

fn checksum(session: &Session, tensors: &BTreeMap<TensorName, Buffer>) -> Result<u64, WorkerError> {
    session.checksummer.of(&session.context, tensors.values()).map_err(|fault| session.failed(fault))
}

impl PreparedCase for CudaCase {
    fn measure(&mut self, measure: &Measure) -> Result<Measured, WorkerError> {
        if measure.poison_call.is_some_and(|call| call as usize >= measure.set_order.len()) {
            return Err(WorkerError::invalid("poison_call is not one of the calls"));
        }
        let session = Rc::clone(&self.session);
        let batch_start = Instant::now();
        let mut measured = Measured::default();
        let mut touched = vec![false; self.slots.len()];
        let mut is_late = true;
        for (call, &set) in measure.set_order.iter().take(measure.max_samples as usize).enumerate() {
            let is_owed = measure.poison_call.is_some_and(|poison| call <= poison as usize);
            if call > 0 && !is_owed && elapsed_ns(batch_start) > measure.max_ns {
                break;
            }
            let start = Instant::now();
            let slot = self.fill_slot(set)?;
            touched[slot] = true;
            let is_poisoned = measure.poison_call == Some(call as u32);
            if is_poisoned {
                for (&name, buffer) in &self.poisoned {
                    let pattern = poison_of(input::tensor_shape(&self.problem, name).0);
                    session.context.fill(buffer, pattern).map_err(|fault| session.failed(fault))?;
                }
                session.context.wait().map_err(|fault| session.failed(fault))?;
            }
            measured.inputs_ns += elapsed_ns(start);
            let is_first = self.calls == 0;
            let timing = self.call(slot, is_poisoned, measure.mode)?;
            measured.flush_ns += timing.flush_ns as u64;
            is_late &= timing.drain_ns > LATE_NS + 0.5 * timing.device_ns;
            let flags = if timing.is_held || is_first { Vec::new() } else { vec!["unheld".to_owned()] };
            measured.samples.push(Sample {
                device_ns: timing.device_ns,
                wall_ns: timing.wall_ns,
                cycles: timing.clock_mhz.map(|mhz| timing.device_ns * mhz / 1e3),
                host_ns: Some(timing.host_ns),
                clock_mhz: timing.clock_mhz,
                set,
                flags,
            });
        }
        if is_late && measured.samples.len() >= LATE_SAMPLES {
            measured.flags.push("late_work".to_owned());
        }
        let start = Instant::now();
        for slot in self.slots.iter().zip(touched).filter(|(_, touched)| *touched).map(|(slot, _)| slot) {
            if checksum(&session, &slot.inputs)? != slot.checksum {
                measured.flags.push("mutated_input".to_owned());
            }
        }
        measured.inputs_ns += elapsed_ns(start);
        Ok(measured)
    }

    fn outputs(&mut self, rows: &[SampledRows]) -> Result<(Vec<u8>, Written), WorkerError> {
        let session = Rc::clone(&self.session);
        let is_late = checksum(&session, &self.poisoned)? != self.returned_checksum;
        let mut host = input::outputs(&self.problem);
        for (name, tensor) in host.iter_mut() {
            let buffer = &self.poisoned[&name];
            session.context.download(buffer, tensor.bytes_mut()).map_err(|fault| session.failed(fault))?;
        }
        let mut bytes = Vec::new();
        for sampled in rows {
            let gathered = sampled.gather(&self.problem, &host);
            bytes.extend(gathered.map_err(|error| WorkerError::invalid(error.to_string()))?);
        }
        let flags = if is_late { vec!["late_work".to_owned()] } else { Vec::new() };
        Ok((bytes, Written { flags }))
    }

    fn memory(&mut self) -> Memory {
        let context = &self.session.context;
        let free_bytes = context.free_bytes().ok();
        Memory {
            tensor_bytes: input::tensor_bytes(&self.problem),
            extra_peak_bytes: Some(context.peak_bytes().saturating_sub(self.base_bytes)),
            rss_peak_bytes: rss_peak_bytes(),
            device_used_bytes: free_bytes.map(|free| context.device().memory_bytes.saturating_sub(free)),
        }
    }
}
