//! What calibrations ask of a worker: slower kernels, on purpose and by a known share.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use attn_kernels::input::InputSpec;
use attn_kernels::problem::{AttentionProblem, Dtype, Phase};
use attnbench::case::Mode;
use attnbench::stats::quantile::median;
use attnbench::worker::client::{Worker, WorkerCommand};
use attnbench::worker::protocol::{CaseRequest, Measure, Measured, Prepare, Prepared, Request};

use crate::emulator::environment;

/// Nanoseconds of calls that a worker was asked to slow down by this share.
fn times(slowdown: f64, mode: Mode) -> Vec<f64> {
    let mut argv = vec!["env".to_owned()];
    argv.extend(environment().map(|(name, value)| format!("{name}={value}")));
    argv.extend([env!("CARGO_BIN_EXE_attnbench"), "worker", "--provider", "cuda"].map(str::to_owned));
    let command = WorkerCommand { provider: "cuda".to_owned(), argv };
    let patience = Duration::from_secs(300);
    let mut worker = Worker::spawn(&command, Arc::new(AtomicBool::new(false)), patience).expect("it starts");
    let problem = AttentionProblem::softmax(Phase::Prefill, Dtype::Bf16, 1, (2, 1), (40, 40), 64);
    let prepare = Prepare {
        inputs: InputSpec::new(&problem, 7),
        lengths_q: problem.lengths_q(),
        lengths_kv: problem.lengths_kv(),
        case: CaseRequest { kernel: "flash".to_owned(), problem, threads: 0 },
        slots: 2,
        available_bytes: 1 << 30,
        slowdown,
    };
    let _: Prepared = worker.ask(Request::Prepare(prepare), patience).expect("it prepares");
    let measure = |first_call, set_order: Vec<u64>| Measure {
        mode,
        max_samples: set_order.len() as u32,
        max_ns: u64::MAX,
        first_call,
        set_order,
        poison_call: None,
    };
    let _: Measured = worker.ask(Request::Measure(measure(0, vec![0, 1])), patience).expect("it warms up");
    let timed = Request::Measure(measure(2, vec![0, 1, 0, 1, 0]));
    let measured: Measured = worker.ask(timed, patience).expect("it measures");
    worker.shutdown();
    assert!(measured.samples.iter().all(|sample| sample.host_ns.is_some_and(|ns| ns > 0.0)), "{measured:?}");
    measured.samples.iter().map(|sample| sample.device_ns).collect()
}

/// A busy machine makes single calls slower by some factor: the share is far beyond any, and no kernel ends early.
#[test]
fn calls_are_as_much_slower_as_was_asked() {
    for mode in [Mode::Cold, Mode::Hot] {
        let plain = median(&times(0.0, mode)).expect("samples");
        let slowed = times(30.0, mode).into_iter().fold(f64::INFINITY, f64::min);
        assert!(slowed > 3.0 * plain, "{mode:?}: {slowed} ns beside {plain} ns");
    }
}
