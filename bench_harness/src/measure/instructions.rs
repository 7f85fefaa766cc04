//! Instructions of one call of a kernel, counted by valgrind's callgrind: a figure that no neighbour, clock or temperature
//! changes.
//!
//! The worker runs under callgrind with one thread and at fixed addresses. Counting is on inside the function that a
//! worker times, [`COUNTED_FUNCTION`], and nowhere else, so that making inputs costs nothing but time.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use attn_kernels::input::InputSpec;

use crate::case::Mode;
use crate::suite::PlannedCase;
use crate::worker::client::{Failure, Surroundings, Worker, WorkerCommand};
use crate::worker::protocol::{CaseRequest, Done, Measure, Measured, Memory, Prepare, Prepared, Request};

/// What the functions around a timed call are named in workers; valgrind knows them by this pattern.
pub const COUNTED_FUNCTION: &str = "*timed_call*";
/// Callgrind makes a program some fifty times slower.
const TIMEOUT: Duration = Duration::from_secs(900);
/// Host memory that a case may take.
const AVAILABLE_BYTES: u64 = 8 << 30;

/// What one call came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    /// Instructions of the call.
    pub instructions: u64,
    /// High-water mark of the allocator above the tensors, where the worker counts it.
    pub extra_peak_bytes: Option<u64>,
    /// The instruction set that the worker says it uses, which under valgrind may not be the machine's widest.
    pub isa: Option<String>,
}

/// Whether valgrind and setarch can be started; the error says what to install.
///
/// # Errors
/// One of them is not there.
pub fn check_tools() -> Result<(), String> {
    for (tool, package) in [("valgrind", "valgrind"), ("setarch", "util-linux")] {
        let found = std::process::Command::new(tool).arg("--version").output();
        if !found.is_ok_and(|output| output.status.success()) {
            return Err(format!(
                "counting instructions: `{tool}` cannot be started; install it (apt-get install {package})"
            ));
        }
    }
    Ok(())
}

/// Counts one call of a case in a fresh worker, with inputs from `seed`.
///
/// # Errors
/// Why the call was not counted, in words.
pub fn count(
    command: &WorkerCommand,
    planned: &PlannedCase,
    seed: u64,
    scratch: &Path,
    stop: Arc<AtomicBool>,
) -> Result<Counted, String> {
    let folder = tempfile::tempdir_in(scratch).map_err(|error| format!("making a scratch folder: {error}"))?;
    let out = folder.path().join("callgrind.%p");
    let mut argv: Vec<String> = ["setarch", "-R", "valgrind", "--tool=callgrind", "--collect-atstart=no"]
        .into_iter()
        .map(str::to_owned)
        .collect();
    argv.push(format!("--toggle-collect={COUNTED_FUNCTION}"));
    // A worker may be a script that starts another program.
    argv.extend(["--trace-children=yes".to_owned(), format!("--callgrind-out-file={}", out.display())]);
    argv.extend(command.argv.iter().cloned());
    let command = WorkerCommand { argv, ..command.clone() };
    let surroundings = Surroundings { is_untrusted: true, ..Surroundings::default() };
    let said = |failure: Failure| failure.to_string();
    let mut worker = Worker::spawn_in(&command, &surroundings, stop, TIMEOUT).map_err(said)?;
    let isa = worker.hello.versions.get("isa").cloned();
    let problem = &planned.case.problem;
    let prepare = Prepare {
        case: CaseRequest { kernel: planned.case.kernel.clone(), problem: problem.clone(), threads: 1 },
        lengths_q: problem.lengths_q(),
        lengths_kv: problem.lengths_kv(),
        inputs: InputSpec { seed, peak_offsets: Vec::new(), sparse_grads: Vec::new() },
        slots: 1,
        available_bytes: AVAILABLE_BYTES,
        slowdown: 0.0,
    };
    worker.ask::<Prepared>(Request::Prepare(prepare), TIMEOUT).map_err(said)?;
    let measure = Measure {
        mode: Mode::Hot,
        max_samples: 1,
        max_ns: u64::MAX,
        first_call: 0,
        set_order: vec![0],
        poison_call: None,
    };
    worker.ask::<Measured>(Request::Measure(measure), TIMEOUT).map_err(said)?;
    let memory = worker.ask::<Memory>(Request::Memory, TIMEOUT).ok();
    worker.ask::<Done>(Request::Release, TIMEOUT).map_err(said)?;
    worker.shutdown();
    let instructions = total(folder.path())?;
    Ok(Counted { instructions, extra_peak_bytes: memory.and_then(|memory| memory.extra_peak_bytes), isa })
}

/// The instructions of all programs that wrote a file there.
fn total(folder: &Path) -> Result<u64, String> {
    let fail = |error: std::io::Error| format!("reading callgrind's counts: {error}");
    let mut sum = 0;
    for entry in std::fs::read_dir(folder).map_err(fail)? {
        let text = std::fs::read_to_string(entry.map_err(fail)?.path()).map_err(fail)?;
        sum += total_of(&text).unwrap_or(0);
    }
    if sum == 0 {
        return Err(
            "callgrind counted nothing: this build's worker has no function that says where a call begins".into()
        );
    }
    Ok(sum)
}

fn total_of(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("totals:").or(line.strip_prefix("summary:")))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_read_from_callgrinds_files() {
        assert_eq!(total_of("# callgrind format\nversion: 1\nsummary: 12\nfn=(1)\ntotals: 34\n"), Some(12));
        assert_eq!(total_of("events: Ir\n\ntotals: 34 5\n"), Some(34));
        assert_eq!(total_of("totals: many"), None);
        let folder = tempfile::tempdir().unwrap();
        assert!(total(folder.path()).unwrap_err().contains("counted nothing"));
        std::fs::write(folder.path().join("callgrind.1"), "totals: 0\n").unwrap();
        std::fs::write(folder.path().join("callgrind.2"), "totals: 40\n").unwrap();
        assert_eq!(total(folder.path()), Ok(40));
    }
}
