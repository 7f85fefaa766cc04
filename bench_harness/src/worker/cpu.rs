//! The CPU provider: plans and times kernels of `attn_kernels::cpu` in this process.

use std::collections::BTreeMap;
use std::time::Instant;

use attn_kernels::cpu;
use attn_kernels::input::{self, Generator, InputSpec};
use attn_kernels::kernel::{Kernel, Plan, PlanContext};
use attn_kernels::problem::{AttentionProblem, Phase};
use attn_kernels::reference::SampledRows;
use attn_kernels::tensor::{Tensor, TensorName, TensorSet};

use super::protocol::{
    CaseRequest, Control, ControlSamples, ErrorKind, Hello, KernelInfo, Measure, Measured, Memory, PROTOCOL_VERSION,
    Prepare, Prepared, Sample, WorkerError, Written,
};
use super::provider::{PreparedCase, Provider};
use crate::case::Mode;
use crate::clock::elapsed_ns;
use crate::device::cpu::activity::works_on;
use crate::device::cpu::allocator::{current_bytes, peak_during};
use crate::device::cpu::{cache::CacheSizes, ceiling, flush::CacheFlusher, memory, thread_pool, usable_cores};

/// Sources whose change makes two builds' timings incomparable: what runs between the two clock readings of a sample.
const TIMING_SOURCES: [&str; 2] = [include_str!("cpu.rs"), include_str!("../device/cpu/flush.rs")];

/// Threads of a case for each core, at most: more measures the scheduler.
const MAX_THREADS_PER_CORE: usize = 16;

/// Kernels in this process.
pub struct CpuProvider {
    name: &'static str,
    kernels: Vec<&'static dyn Kernel>,
}

impl CpuProvider {
    /// The kernels of `attn_kernels::cpu`.
    pub fn built_in() -> Self {
        CpuProvider { name: "cpu", kernels: cpu::KERNELS.to_vec() }
    }

    /// A provider of one's own: a binary that calls [`super::server::serve`] with it is a worker.
    pub fn custom(name: &'static str, kernels: Vec<&'static dyn Kernel>) -> Self {
        CpuProvider { name, kernels }
    }

    fn kernel(&self, name: &str) -> Result<&'static dyn Kernel, WorkerError> {
        self.kernels.iter().copied().find(|kernel| kernel.name() == name).ok_or_else(|| {
            let names: Vec<&str> = self.kernels.iter().map(|kernel| kernel.name()).collect();
            let message = format!("provider `{}` has no kernel `{name}`; it has {}", self.name, names.join(", "));
            WorkerError::new(ErrorKind::Unsupported, message)
        })
    }
}

impl Provider for CpuProvider {
    fn hello(&self) -> Result<Hello, WorkerError> {
        let mut hasher = blake3::Hasher::new();
        TIMING_SOURCES.iter().for_each(|source| {
            hasher.update(source.as_bytes());
        });
        Ok(Hello {
            protocol: PROTOCOL_VERSION,
            provider: self.name.to_owned(),
            device: "cpu".to_owned(),
            gpu_uuid: None,
            versions: BTreeMap::from([
                ("attnbench".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
                ("isa".to_owned(), cpu::simd::Isa::best().name().to_owned()),
            ]),
            timing_hash: hasher.finalize().to_hex()[..16].to_owned(),
            golden_hash: input::golden_hash(),
            gpu: None,
        })
    }

    fn kernels(&self) -> Vec<KernelInfo> {
        let info =
            |kernel: &&dyn Kernel| KernelInfo { name: kernel.name().to_owned(), summary: kernel.summary().to_owned() };
        self.kernels.iter().map(info).collect()
    }

    fn supports(&self, case: &CaseRequest) -> Result<(), WorkerError> {
        case.problem.validate().map_err(|error| WorkerError::invalid(error.to_string()))?;
        Ok(self.kernel(&case.kernel)?.supports(&case.problem)?)
    }

    fn prepare(&mut self, prepare: &Prepare) -> Result<(Box<dyn PreparedCase>, Prepared), WorkerError> {
        self.supports(&prepare.case)?;
        let kernel = self.kernel(&prepare.case.kernel)?;
        let (case, prepared) = CpuCase::new(kernel, prepare)?;
        Ok((Box::new(case), prepared))
    }

    fn control(&mut self, control: &Control) -> Result<ControlSamples, WorkerError> {
        ceiling::measure(control).map_err(WorkerError::invalid)
    }
}

/// One of the input buffers that calls rotate over.
struct Slot {
    set: Option<u64>,
    inputs: TensorSet,
    checksum: u64,
}

struct CpuCase {
    problem: AttentionProblem,
    spec: InputSpec,
    pool: rayon::ThreadPool,
    plan: Box<dyn Plan>,
    /// Computes O and LSE, which backward reads; its cost is never timed.
    forward: Option<(AttentionProblem, Box<dyn Plan>)>,
    slots: Vec<Slot>,
    outputs: TensorSet,
    poisoned: TensorSet,
    /// Of the poisoned outputs when their call returned: outputs that change later were not there in time.
    returned_checksum: u64,
    flusher: Option<CacheFlusher>,
    /// Live bytes of tensors before planning, and the highest mark seen in planning and in calls.
    base_bytes: Option<usize>,
    peak_bytes: Option<usize>,
    /// What a calibration adds to each call, as a share of it.
    slowdown: f64,
}

impl CpuCase {
    fn new(kernel: &dyn Kernel, prepare: &Prepare) -> Result<(CpuCase, Prepared), WorkerError> {
        let problem = prepare.case.problem.clone();
        let threads = prepare.case.threads.max(1);
        if threads > MAX_THREADS_PER_CORE * usable_cores() {
            let message = format!(
                "{threads} threads on {} cores: more than {MAX_THREADS_PER_CORE} a core would measure the scheduler",
                usable_cores()
            );
            return Err(WorkerError::new(ErrorKind::Unsupported, message));
        }
        let pool = thread_pool(threads).map_err(|message| WorkerError::new(ErrorKind::Internal, message))?;
        let slot_count = prepare.slots.clamp(1, 16);
        let tensor_bytes = input::tensor_bytes(&problem);
        // Foreseen, not met: touching more than there is would end in a kill by the system.
        let needed_bytes = tensor_bytes.saturating_mul(slot_count + 1);
        if needed_bytes > prepare.available_bytes {
            let message =
                format!("needs {needed_bytes} bytes for inputs and outputs, {} are available", prepare.available_bytes);
            return Err(WorkerError::new(ErrorKind::OutOfMemory, message));
        }
        memory::reset_rss_peak();
        let start = Instant::now();
        let spec = prepare.inputs.clone();
        let statics = pool.install(|| Generator::new(&problem, &spec, 0).static_inputs());
        let forward = match problem.phase {
            Phase::Backward => Some(plan_forward(&problem, &pool, threads, prepare.available_bytes)?),
            _ => None,
        };
        let mut slots = Vec::new();
        for _ in 0..slot_count {
            let mut inputs = TensorSet::new();
            let computed = if forward.is_some() { &[TensorName::O, TensorName::Lse][..] } else { &[] };
            for name in input::input_names(&problem).into_iter().chain(computed.iter().copied()) {
                let (element, dims) = input::tensor_shape(&problem, name);
                inputs.insert(name, statics.find(name).cloned().unwrap_or_else(|| Tensor::zeros(element, &dims)));
            }
            slots.push(Slot { set: None, inputs, checksum: 0 });
        }
        let (outputs, poisoned) = (input::outputs(&problem), input::outputs(&problem));
        let inputs_ns = elapsed_ns(start);

        let base_bytes = current_bytes();
        let start = Instant::now();
        let context = PlanContext {
            problem: &problem,
            static_tensors: &statics,
            threads,
            available_bytes: prepare.available_bytes - needed_bytes,
        };
        let (plan, peak_bytes) = peak_during(|| pool.install(|| kernel.plan(&context)));
        let plan = plan?;
        let prepared = Prepared { plan_ns: elapsed_ns(start), inputs_ns, tensor_bytes, ..Prepared::default() };
        let mut case = CpuCase {
            problem,
            spec,
            pool,
            plan,
            forward,
            slots,
            outputs,
            poisoned,
            returned_checksum: 0,
            flusher: None,
            base_bytes,
            peak_bytes,
            slowdown: prepare.slowdown.clamp(0.0, 100.0),
        };
        let start = Instant::now();
        for set in 0..slot_count {
            case.fill_slot(set);
        }
        Ok((case, Prepared { inputs_ns: prepared.inputs_ns + elapsed_ns(start), ..prepared }))
    }

    /// Makes sure that a set's values are in its slot; they overwrite the slot's earlier set in place.
    fn fill_slot(&mut self, set: u64) -> usize {
        let index = (set % self.slots.len() as u64) as usize;
        if self.slots[index].set == Some(set) {
            return index;
        }
        let CpuCase { problem, spec, pool, forward, slots, .. } = self;
        let inputs = &mut slots[index].inputs;
        pool.install(|| {
            Generator::new(problem, spec, set).overwrite(inputs, false);
            if let Some((_, forward)) = forward {
                let mut computed = TensorSet::new();
                for name in [TensorName::O, TensorName::Lse] {
                    computed.insert(name, inputs.remove(name).expect("made with the slot"));
                }
                forward.run(inputs, &mut computed);
                for name in [TensorName::O, TensorName::Lse] {
                    inputs.insert(name, computed.remove(name).expect("just put there"));
                }
            }
        });
        slots[index].set = Some(set);
        slots[index].checksum = checksum(pool, &slots[index].inputs);
        index
    }
}

/// One call, apart, so that tools that count instructions find where it begins and ends.
#[inline(never)]
fn timed_call(plan: &mut dyn Plan, inputs: &TensorSet, outputs: &mut TensorSet) {
    plan.run(inputs, outputs);
    // Without this the function could become a jump, which no tool sees the end of.
    std::hint::black_box(outputs);
}

/// The forward of a backward problem, whose O and LSE are backward's inputs.
fn plan_forward(
    problem: &AttentionProblem,
    pool: &rayon::ThreadPool,
    threads: usize,
    available_bytes: u64,
) -> Result<(AttentionProblem, Box<dyn Plan>), WorkerError> {
    let forward = AttentionProblem { phase: Phase::Prefill, ..problem.clone() };
    let kernel = ["flash", "naive"]
        .into_iter()
        .filter_map(cpu::find)
        .find(|kernel| kernel.supports(&forward).is_ok())
        .ok_or_else(|| {
            WorkerError::new(ErrorKind::Unsupported, "no kernel computes the forward pass that backward starts from")
        })?;
    let context = PlanContext { problem: &forward, static_tensors: &TensorSet::new(), threads, available_bytes };
    let plan = pool.install(|| kernel.plan(&context))?;
    Ok((forward, plan))
}

impl PreparedCase for CpuCase {
    fn measure(&mut self, measure: &Measure) -> Result<Measured, WorkerError> {
        if let Some(call) = measure.poison_call
            && call as usize >= measure.set_order.len()
        {
            return Err(WorkerError::invalid(format!(
                "poison_call {call} is not one of {} calls",
                measure.set_order.len()
            )));
        }
        let batch_start = Instant::now();
        let mut measured = Measured::default();
        let mut touched = vec![false; self.slots.len()];
        for (call, &set) in measure.set_order.iter().take(measure.max_samples as usize).enumerate() {
            let is_owed = measure.poison_call.is_some_and(|poison| call <= poison as usize);
            if call > 0 && !is_owed && elapsed_ns(batch_start) > measure.max_ns {
                break;
            }
            let start = Instant::now();
            let slot = self.fill_slot(set);
            measured.inputs_ns += elapsed_ns(start);
            touched[slot] = true;

            let is_poisoned = measure.poison_call == Some(call as u32);
            if is_poisoned {
                let start = Instant::now();
                self.poisoned.iter_mut().for_each(|(_, tensor)| tensor.poison());
                measured.inputs_ns += elapsed_ns(start);
            }
            let CpuCase { pool, plan, slots, outputs, poisoned, flusher, slowdown, .. } = self;
            let inputs = &slots[slot].inputs;
            let outputs = if is_poisoned { poisoned } else { outputs };
            if measure.mode == Mode::Cold {
                let start = Instant::now();
                let flusher =
                    flusher.get_or_insert_with(|| CacheFlusher::new(CacheSizes::read(), pool.current_num_threads()));
                pool.install(|| flusher.flush(&[inputs, outputs]));
                measured.flush_ns += elapsed_ns(start);
            }
            let wall_start = Instant::now();
            let (elapsed, peak) = peak_during(|| {
                pool.install(|| {
                    let start = Instant::now();
                    timed_call(plan.as_mut(), inputs, outputs);
                    if *slowdown > 0.0 {
                        let until = start.elapsed().mul_f64(1.0 + *slowdown);
                        while start.elapsed() < until {
                            std::hint::spin_loop();
                        }
                    }
                    start.elapsed()
                })
            });
            let wall_ns = wall_start.elapsed().as_nanos() as f64;
            measured.samples.push(Sample {
                device_ns: elapsed.as_nanos() as f64,
                // Waking the pool's threads included, which is no part of a kernel.
                wall_ns,
                cycles: None,
                host_ns: None,
                clock_mhz: None,
                set,
                flags: Vec::new(),
            });
            if is_poisoned {
                let start = Instant::now();
                self.returned_checksum = checksum(&self.pool, &self.poisoned);
                measured.inputs_ns += elapsed_ns(start);
                // A case's first calls warm up: watching the timed ones is enough.
                if measure.first_call > 0 && works_on() {
                    measured.flags.push("late_work".to_owned());
                }
            }
            // The flusher's sweep and the watch above are ours, not the kernel's: only the call itself counts.
            self.peak_bytes = self.peak_bytes.max(peak.map(|peak| peak - self.flusher_bytes()));
        }
        let start = Instant::now();
        for slot in self.slots.iter().zip(touched).filter(|(_, touched)| *touched).map(|(slot, _)| slot) {
            if checksum(&self.pool, &slot.inputs) != slot.checksum {
                measured.flags.push("mutated_input".to_owned());
            }
        }
        measured.inputs_ns += elapsed_ns(start);
        Ok(measured)
    }

    fn outputs(&mut self, rows: &[SampledRows]) -> Result<(Vec<u8>, Written), WorkerError> {
        let is_late = checksum(&self.pool, &self.poisoned) != self.returned_checksum;
        let mut bytes = Vec::new();
        for sampled in rows {
            let gathered = sampled.gather(&self.problem, &self.poisoned);
            bytes.extend(gathered.map_err(|error| WorkerError::invalid(error.to_string()))?);
        }
        let flags = if is_late { vec!["late_work".to_owned()] } else { Vec::new() };
        Ok((bytes, Written { flags }))
    }

    fn memory(&mut self) -> Memory {
        Memory {
            tensor_bytes: input::tensor_bytes(&self.problem),
            extra_peak_bytes: self.peak_bytes.zip(self.base_bytes).map(|(peak, base)| peak.saturating_sub(base) as u64),
            rss_peak_bytes: memory::rss_peak_bytes(),
            device_used_bytes: None,
        }
    }
}

impl CpuCase {
    fn flusher_bytes(&self) -> usize {
        self.flusher.as_ref().map_or(0, CacheFlusher::bytes)
    }
}

fn checksum(pool: &rayon::ThreadPool, tensors: &TensorSet) -> u64 {
    pool.install(|| tensors.iter().fold(0, |sum, (_, tensor)| input::hash64(sum, input::checksum(tensor))))
}
