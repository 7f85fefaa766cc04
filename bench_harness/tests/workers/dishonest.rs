//! A worker whose kernels cheat or fail, each in one way: every one of them must be caught.
//!
//! `dishonest --provider test [--slowdown 0.10] [--spin-ns 5000000] [--old] [--without KERNEL]`. All kernels start from
//! `cpu/flash`. Some are honest:
//! `slowed` takes longer by the given share and `spins` for the given time at least, for testing that slowdowns are found
//! and times are right; `slow_plan` takes a while to plan, which must not count.

use std::io::{BufReader, Write};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use attn_kernels::cpu;
use attn_kernels::kernel::{Kernel, KernelError, Plan, PlanContext};
use attn_kernels::problem::{AttentionProblem, Phase};
use attn_kernels::tensor::{Tensor, TensorName, TensorSet};
use attnbench::device::cpu::allocator::CountingAllocator;
use attnbench::worker::cpu::CpuProvider;
use attnbench::worker::protocol::{
    CaseRequest, Control, ControlSamples, Hello, KernelInfo, Prepare, Prepared, WorkerError,
};
use attnbench::worker::provider::{PreparedCase, Provider};
use attnbench::worker::server::serve;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// What a kernel does besides, or instead of, its work.
#[derive(Clone, Copy, Debug)]
enum Trick {
    /// Nothing.
    Honest,
    /// Takes longer by this share.
    Slowed(f64),
    /// Takes at least this long.
    Spins(Duration),
    /// Plans for a while.
    SlowPlan,
    /// Gives the first call's output again.
    CachedOutput,
    /// Gives the output again that it computed for these buffers.
    CachedByAddress,
    /// Uses the K that it saw first in these buffers.
    StaleKeys,
    /// Does nothing.
    SkippedWork,
    /// Writes all rows but the last.
    SkippedRow,
    /// Lets another thread do the work, and returns.
    SideThread,
    /// As above, but the thread starts only after a pause.
    LateLaunch,
    /// Computes a call's output during the next call.
    Lazy,
    /// Scales Q in place by a hair.
    MutatedInput,
    /// Burns a core after it has returned.
    BusyAfterwards,
    /// Writes NaN.
    Nan,
    /// Panics.
    Panics,
    /// Dies by a signal.
    Crashes,
    /// Exits.
    Exits,
    /// Starts another process and never returns.
    Hangs,
    /// Asks for more memory than there is.
    OutOfMemory,
    /// Dies of an allocation that fails in the middle of a call.
    AllocationFails,
    /// Prints a line of its own to stdout.
    Rubbish,
}

/// How long `slow_plan` plans.
const SLOW_PLAN: Duration = Duration::from_millis(300);

struct Trickster {
    name: &'static str,
    trick: Trick,
}

impl Kernel for Trickster {
    fn name(&self) -> &'static str {
        self.name
    }

    fn summary(&self) -> &'static str {
        "a kernel that must be caught"
    }

    fn supports(&self, problem: &AttentionProblem) -> Result<(), KernelError> {
        if problem.phase == Phase::Backward {
            return Err(KernelError::Unsupported("only forward".to_owned()));
        }
        flash().supports(problem)
    }

    fn plan(&self, context: &PlanContext<'_>) -> Result<Box<dyn Plan>, KernelError> {
        if matches!(self.trick, Trick::SlowPlan) {
            std::thread::sleep(SLOW_PLAN);
        }
        if matches!(self.trick, Trick::OutOfMemory) {
            context.check_workspace(1 << 50)?;
        }
        let inner = flash().plan(context)?;
        Ok(Box::new(TrickPlan { trick: self.trick, shared: Arc::new(Mutex::new(State::new(inner))), pending: None }))
    }
}

fn flash() -> &'static dyn Kernel {
    cpu::find("flash").expect("flash is built in")
}

struct State {
    inner: Box<dyn Plan>,
    cached: Vec<(usize, Tensor)>,
}

impl State {
    fn new(inner: Box<dyn Plan>) -> Self {
        State { inner, cached: Vec::new() }
    }
}

struct TrickPlan {
    trick: Trick,
    shared: Arc<Mutex<State>>,
    pending: Option<JoinHandle<()>>,
}

/// Lets a thread write where the caller no longer expects it: this is the point of these kernels.
struct Smuggled<T>(*mut T);
// SAFETY: the worker keeps its tensors for as long as the plan lives, and the plan joins its threads.
unsafe impl<T> Send for Smuggled<T> {}

impl TrickPlan {
    fn later(&mut self, inputs: &TensorSet, outputs: &mut TensorSet, pause: Duration) {
        self.join();
        let state = Arc::clone(&self.shared);
        let inputs = Smuggled(std::ptr::from_ref(inputs).cast_mut());
        let outputs = Smuggled(std::ptr::from_mut(outputs));
        self.pending = Some(std::thread::spawn(move || {
            let (inputs, outputs) = (inputs, outputs);
            std::thread::sleep(pause);
            // SAFETY: see `Smuggled`.
            let (inputs, outputs) = unsafe { (&*inputs.0, &mut *outputs.0) };
            state.lock().expect("no thread panics").inner.run(inputs, outputs);
        }));
    }

    fn join(&mut self) {
        if let Some(thread) = self.pending.take() {
            thread.join().expect("the thread ends");
        }
    }
}

impl Drop for TrickPlan {
    fn drop(&mut self) {
        self.join();
    }
}

impl Plan for TrickPlan {
    fn run(&mut self, inputs: &TensorSet, outputs: &mut TensorSet) {
        let shared = Arc::clone(&self.shared);
        let honest = |outputs: &mut TensorSet| shared.lock().expect("no thread panics").inner.run(inputs, outputs);
        let address = inputs.get(TensorName::Q).bytes().as_ptr() as usize;
        match self.trick {
            Trick::Honest | Trick::OutOfMemory | Trick::SlowPlan => honest(outputs),
            Trick::Spins(time) => {
                let start = Instant::now();
                honest(outputs);
                while start.elapsed() < time {
                    std::hint::spin_loop();
                }
            }
            Trick::Slowed(share) => {
                let start = Instant::now();
                honest(outputs);
                let target = start.elapsed().mul_f64(1.0 + share);
                while start.elapsed() < target {
                    std::hint::spin_loop();
                }
            }
            Trick::CachedOutput | Trick::CachedByAddress => {
                let key = if matches!(self.trick, Trick::CachedOutput) { 0 } else { address };
                let found = shared.lock().expect("no thread panics").cached.iter().position(|(at, _)| *at == key);
                match found {
                    Some(index) => {
                        let cached = &shared.lock().expect("no thread panics").cached[index].1;
                        outputs.get_mut(TensorName::O).bytes_mut().copy_from_slice(cached.bytes());
                    }
                    None => {
                        honest(outputs);
                        let output = outputs.get(TensorName::O).clone();
                        shared.lock().expect("no thread panics").cached.push((key, output));
                    }
                }
            }
            Trick::StaleKeys => {
                let mut state = shared.lock().expect("no thread panics");
                if !state.cached.iter().any(|(at, _)| *at == address) {
                    let keys = inputs.get(TensorName::K).clone();
                    state.cached.push((address, keys));
                }
                let keys = state.cached.iter().find(|(at, _)| *at == address).expect("just put there").1.clone();
                let mut stale = inputs.clone();
                stale.insert(TensorName::K, keys);
                state.inner.run(&stale, outputs);
            }
            Trick::SkippedWork => {}
            Trick::SkippedRow => {
                honest(outputs);
                let output = outputs.get_mut(TensorName::O);
                let row = *output.dims().last().expect("O has dimensions");
                let length = output.len();
                output.as_mut_slice::<f32>()[length - row..].fill(0.0);
            }
            Trick::SideThread => self.later(inputs, outputs, Duration::ZERO),
            Trick::LateLaunch => self.later(inputs, outputs, Duration::from_millis(1)),
            Trick::Lazy => {
                self.join();
                self.later(inputs, outputs, Duration::from_millis(200));
            }
            Trick::MutatedInput => {
                honest(outputs);
                let queries = inputs.get(TensorName::Q).as_slice::<f32>();
                let smuggled = Smuggled(queries.as_ptr().cast_mut());
                // SAFETY: nobody else reads Q at this moment; writing through a shared borrow is the cheat under test.
                unsafe { *smuggled.0 *= 1.0001 };
            }
            Trick::BusyAfterwards => {
                honest(outputs);
                std::thread::spawn(|| {
                    let start = Instant::now();
                    while start.elapsed() < Duration::from_millis(300) {
                        std::hint::spin_loop();
                    }
                });
            }
            Trick::Nan => {
                honest(outputs);
                outputs.get_mut(TensorName::O).as_mut_slice::<f32>()[0] = f32::NAN;
            }
            Trick::Panics => panic!("index out of range in a kernel"),
            Trick::Crashes => std::process::abort(),
            Trick::Exits => std::process::exit(3),
            Trick::Hangs => {
                // A helper process that must not survive the worker.
                let _helper = std::process::Command::new("sleep").arg("86399").spawn();
                loop {
                    std::thread::sleep(Duration::from_secs(1));
                }
            }
            Trick::AllocationFails => {
                let layout = std::alloc::Layout::from_size_align(1 << 46, 64).expect("a layout");
                // SAFETY: the size is not zero.
                let pointer = unsafe { std::alloc::alloc(layout) };
                if pointer.is_null() {
                    std::alloc::handle_alloc_error(layout);
                }
                std::hint::black_box(pointer);
                std::process::abort();
            }
            Trick::Rubbish => {
                honest(outputs);
                // The protocol's own stream, as a forgotten debugging print would use it.
                let mut stdout = std::io::stdout();
                let _ = writeln!(stdout, "here is a debugging print");
                let _ = stdout.flush();
            }
        }
    }
}

fn main() -> std::io::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let option = |name: &str| {
        arguments.iter().position(|argument| argument == name).and_then(|index| arguments.get(index + 1)).cloned()
    };
    let slowdown = option("--slowdown").and_then(|text| text.parse().ok()).unwrap_or(0.0);
    let spin_ns = option("--spin-ns").and_then(|text| text.parse().ok()).unwrap_or(0);
    let provider: &'static str = option("--provider").unwrap_or_else(|| "test".to_owned()).leak();
    let tricks: &[(&'static str, Trick)] = &[
        ("honest", Trick::Honest),
        ("slowed", Trick::Slowed(slowdown)),
        ("spins", Trick::Spins(Duration::from_nanos(spin_ns))),
        ("slow_plan", Trick::SlowPlan),
        ("cached_output", Trick::CachedOutput),
        ("cached_by_address", Trick::CachedByAddress),
        ("stale_keys", Trick::StaleKeys),
        ("skipped_work", Trick::SkippedWork),
        ("skipped_row", Trick::SkippedRow),
        ("side_thread", Trick::SideThread),
        ("late_launch", Trick::LateLaunch),
        ("lazy", Trick::Lazy),
        ("mutated_input", Trick::MutatedInput),
        ("busy_afterwards", Trick::BusyAfterwards),
        ("nan", Trick::Nan),
        ("panics", Trick::Panics),
        ("crashes", Trick::Crashes),
        ("exits", Trick::Exits),
        ("hangs", Trick::Hangs),
        ("out_of_memory", Trick::OutOfMemory),
        ("allocation_fails", Trick::AllocationFails),
        ("rubbish", Trick::Rubbish),
    ];
    let mut kernels: Vec<&'static dyn Kernel> = Vec::new();
    let without = option("--without").unwrap_or_default();
    for &(name, trick) in tricks.iter().filter(|(name, _)| *name != without) {
        kernels.push(Box::leak(Box::new(Trickster { name, trick })));
    }
    let provider = CpuProvider::custom(provider, kernels);
    let input = BufReader::new(std::io::stdin().lock());
    match arguments.iter().any(|argument| argument == "--old") {
        true => serve(&mut Old(provider), input, std::io::stdout()),
        false => serve(&mut { provider }, input, std::io::stdout()),
    }
}

/// A worker as the first version of the protocol knew it.
struct Old(CpuProvider);

impl Provider for Old {
    fn hello(&self) -> Hello {
        Hello { protocol: (1, 0), ..self.0.hello() }
    }

    fn kernels(&self) -> Vec<KernelInfo> {
        self.0.kernels()
    }

    fn supports(&self, case: &CaseRequest) -> Result<(), WorkerError> {
        self.0.supports(case)
    }

    fn prepare(&mut self, prepare: &Prepare) -> Result<(Box<dyn PreparedCase>, Prepared), WorkerError> {
        // It does not know of what came later, and ignores it.
        self.0.prepare(&Prepare { slowdown: 0.0, ..prepare.clone() })
    }

    fn control(&mut self, control: &Control) -> Result<ControlSamples, WorkerError> {
        self.0.control(control)
    }
}
