//! Whether this process still computes after a call has returned: work that a clock around the call did not see.

use std::fs;
use std::time::{Duration, Instant};

use nix::time::ClockId;

/// How often the threads are looked at.
const LOOK_INTERVAL: Duration = Duration::from_micros(100);
/// CPU time after which work is late: a pool's threads use far less before they fall asleep.
const LATE_CPU_TIME: Duration = Duration::from_millis(5);
/// How long a thread that wants to run but gets no CPU is waited for.
const MAX_WATCH: Duration = Duration::from_millis(100);

/// Waits until no other thread of this process wants to run. True where one uses too much CPU time for an idle one, which
/// a machine that is busy with others' work does not change.
pub fn works_on() -> bool {
    let (start, cpu_before) = (Instant::now(), others_cpu_time());
    loop {
        std::thread::sleep(LOOK_INTERVAL);
        if !others_are_runnable() {
            return false;
        }
        if others_cpu_time().saturating_sub(cpu_before) >= LATE_CPU_TIME {
            return true;
        }
        if start.elapsed() >= MAX_WATCH {
            return false;
        }
    }
}

/// Whether a thread besides the one that asks is running or waiting for a CPU. False where the system does not tell.
fn others_are_runnable() -> bool {
    let own = fs::read_link("/proc/thread-self").ok();
    let own = own.as_deref().and_then(|path| path.file_name());
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    threads.filter(|thread| Some(thread.file_name().as_os_str()) != own).any(|thread| {
        // The state follows the name, which is in parentheses and may hold anything.
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('R'))
    })
}

/// CPU time of all threads of this process but the one that asks: looking costs time too.
fn others_cpu_time() -> Duration {
    let time = |clock| nix::time::clock_gettime(clock).map(Duration::from).unwrap_or_default();
    time(ClockId::CLOCK_PROCESS_CPUTIME_ID).saturating_sub(time(ClockId::CLOCK_THREAD_CPUTIME_ID))
}
