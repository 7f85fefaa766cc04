//! The coordinator's end of the protocol: spawns a worker, talks to it with deadlines, and never outlives or is outlived
//! by it.
//!
//! A worker leads its own process group, which is killed as a whole: a hung kernel's helpers go with it. On Linux it is
//! also told to die with the thread that spawned it, so a killed coordinator leaves nothing behind.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::de::DeserializeOwned;

use super::protocol::{Answer, Envelope, ErrorKind, Hello, MAX_LINE_BYTES, PROTOCOL_VERSION, Request, WorkerError};

/// How a worker of a provider is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerCommand {
    /// The provider that it must say it is.
    pub provider: String,
    /// Program and arguments; nothing of it passes through a shell.
    pub argv: Vec<String>,
}

/// What is set around a worker beside its command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Environment variables.
    pub variables: Vec<(String, String)>,
    /// Whether it is somebody else's code, which gets no variable that looks like a secret.
    pub is_untrusted: bool,
}

/// Why a request has no result.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The worker answered with an error and lives on.
    #[error(transparent)]
    Refused(#[from] WorkerError),
    /// It died.
    #[error("worker `{provider}` {how}{}", quoted_tail(.stderr))]
    Crashed {
        /// Its provider.
        provider: String,
        /// Exit status or signal, in words.
        how: String,
        /// The end of what it wrote to stderr.
        stderr: String,
    },
    /// It did not answer before the deadline and was killed.
    #[error("worker `{provider}` did not answer `{request}` within {} s and was killed", .timeout.as_secs_f64())]
    TimedOut {
        /// Its provider.
        provider: String,
        /// What was asked.
        request: &'static str,
        /// The deadline.
        timeout: Duration,
    },
    /// It wrote something that is no answer, and was killed.
    #[error(
        "worker `{provider}` wrote a line that is no protocol message: `{line}`; its stdout is for the protocol alone"
    )]
    Rubbish {
        /// Its provider.
        provider: String,
        /// The line's beginning.
        line: String,
    },
    /// The user asked to stop.
    #[error("interrupted")]
    Interrupted,
}

impl Failure {
    /// Whether the worker is still there.
    pub fn worker_survives(&self) -> bool {
        matches!(self, Failure::Refused(_))
    }
}

fn quoted_tail(stderr: &str) -> String {
    let text = stderr.trim();
    if text.is_empty() { String::new() } else { format!("; its last words: {text}") }
}

enum Event {
    Line(String),
    TooLong(String),
    End,
}

/// Bytes that are kept of the beginning and of the end of what a worker writes to stderr during a request.
const STDERR_KEPT_BYTES: usize = 600;
/// How often a waiting coordinator looks at the stop flag.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// How long a worker gets to exit after `shutdown`.
const SHUTDOWN_TIME: Duration = Duration::from_secs(5);

/// What a worker wrote to stderr during a request: the beginning, which has the message, and the end, behind a backtrace
/// or whatever else came between.
#[derive(Default)]
struct LastWords {
    head: Vec<u8>,
    tail: VecDeque<u8>,
    is_cut: bool,
}

impl LastWords {
    fn hear(&mut self, bytes: &[u8]) {
        let room = (STDERR_KEPT_BYTES - self.head.len()).min(bytes.len());
        self.head.extend(&bytes[..room]);
        self.tail.extend(&bytes[room..]);
        let excess = self.tail.len().saturating_sub(STDERR_KEPT_BYTES);
        self.tail.drain(..excess);
        self.is_cut |= excess > 0;
    }

    fn clear(&mut self) {
        *self = LastWords::default();
    }

    fn text(&self) -> String {
        let tail: Vec<u8> = self.tail.iter().copied().collect();
        let gap = if self.is_cut { " [...] " } else { "" };
        format!("{}{gap}{}", String::from_utf8_lossy(&self.head), String::from_utf8_lossy(&tail))
    }
}

/// A running worker.
pub struct Worker {
    provider: String,
    child: Child,
    stdin: Option<ChildStdin>,
    events: Receiver<Event>,
    stderr: Arc<Mutex<LastWords>>,
    next_id: u64,
    stop: Arc<AtomicBool>,
    /// What it said of itself.
    pub hello: Hello,
}

impl Worker {
    /// Starts a worker and shakes hands. `stop` makes a waiting request return [`Failure::Interrupted`].
    pub fn spawn(command: &WorkerCommand, stop: Arc<AtomicBool>, timeout: Duration) -> Result<Worker, Failure> {
        Worker::spawn_in(command, &Surroundings::default(), stop, timeout)
    }

    /// [`Worker::spawn`] with what is set around it.
    pub fn spawn_in(
        command: &WorkerCommand,
        surroundings: &Surroundings,
        stop: Arc<AtomicBool>,
        timeout: Duration,
    ) -> Result<Worker, Failure> {
        let provider = command.provider.clone();
        let crashed = |how: String| Failure::Crashed { provider: provider.clone(), how, stderr: String::new() };
        let (program, arguments) =
            command.argv.split_first().ok_or_else(|| crashed("has an empty command".to_owned()))?;
        let mut builder = Command::new(program);
        builder.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        if surroundings.is_untrusted {
            super::environment::without_secrets(&mut builder);
        }
        builder.envs(surroundings.variables.iter().map(|(name, value)| (name, value)));
        #[cfg(target_os = "linux")]
        // SAFETY: prctl is async-signal-safe and touches no memory of the parent.
        unsafe {
            builder.pre_exec(|| nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(std::io::Error::from));
        }
        let mut child =
            builder.spawn().map_err(|error| crashed(format!("could not be started as `{program}`: {error}")))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().expect("stdout is piped");
        let mut stderr = child.stderr.take().expect("stderr is piped");

        let (sender, events) = channel();
        std::thread::spawn(move || {
            let mut reader = BufReader::new(stdout);
            loop {
                let mut line = Vec::new();
                let event = match reader.by_ref().take(MAX_LINE_BYTES as u64).read_until(b'\n', &mut line) {
                    Ok(0) | Err(_) => Event::End,
                    Ok(length) if length == MAX_LINE_BYTES && line.last() != Some(&b'\n') => {
                        Event::TooLong(String::from_utf8_lossy(&line[..80]).into_owned())
                    }
                    Ok(_) => Event::Line(String::from_utf8_lossy(&line).trim_end().to_owned()),
                };
                let is_last = !matches!(event, Event::Line(_));
                if sender.send(event).is_err() || is_last {
                    return;
                }
            }
        });
        let words = Arc::new(Mutex::new(LastWords::default()));
        let heard = Arc::clone(&words);
        std::thread::spawn(move || {
            let mut chunk = [0u8; 4096];
            while let Ok(length @ 1..) = stderr.read(&mut chunk) {
                heard.lock().expect("no thread panics while it holds them").hear(&chunk[..length]);
            }
        });

        let hello = Hello {
            protocol: (0, 0),
            provider: String::new(),
            device: String::new(),
            versions: Default::default(),
            timing_hash: String::new(),
            golden_hash: String::new(),
        };
        let mut worker = Worker { provider, child, stdin, events, stderr: words, next_id: 0, stop, hello };
        worker.hello = worker.ask(Request::Hello { protocol: PROTOCOL_VERSION }, timeout)?;
        worker.check_hello()?;
        Ok(worker)
    }

    fn check_hello(&self) -> Result<(), Failure> {
        let refuse = |message: String| Err(WorkerError::new(ErrorKind::Invalid, message).into());
        let (hello, provider) = (&self.hello, &self.provider);
        if hello.protocol.0 != PROTOCOL_VERSION.0 {
            return refuse(format!(
                "worker `{provider}` speaks protocol {}.{}, this coordinator {}.{}: use builds of one major version",
                hello.protocol.0, hello.protocol.1, PROTOCOL_VERSION.0, PROTOCOL_VERSION.1
            ));
        }
        if hello.provider != *provider {
            return refuse(format!("the worker started as provider `{provider}` says it is `{}`", hello.provider));
        }
        let golden = attn_kernels::input::golden_hash();
        if hello.golden_hash != golden {
            return refuse(format!(
                "worker `{provider}` generates other inputs (golden hash {}, expected {golden}): its numbers would not \
                 be comparable",
                hello.golden_hash
            ));
        }
        Ok(())
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a request and waits for its answer.
    pub fn ask<T: DeserializeOwned>(&mut self, request: Request, timeout: Duration) -> Result<T, Failure> {
        let name = request_name(&request);
        self.next_id += 1;
        let id = self.next_id;
        let mut line = serde_json::to_vec(&Envelope { id, request }).expect("requests serialise");
        line.push(b'\n');
        self.stderr.lock().expect("no thread panics while it holds it").clear();
        // Where nobody reads any more, what the worker said before it went tells more than the broken pipe.
        if let Some(stdin) = &mut self.stdin {
            let _ = stdin.write_all(&line).and_then(|()| stdin.flush());
        }
        let deadline = Instant::now() + timeout;
        let line = loop {
            let wait = deadline.saturating_duration_since(Instant::now()).min(POLL_INTERVAL);
            match self.events.recv_timeout(wait) {
                Ok(Event::Line(line)) => break line,
                Ok(Event::TooLong(line)) => return Err(self.rubbish(&line)),
                Ok(Event::End) | Err(RecvTimeoutError::Disconnected) => return Err(self.crash()),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if self.stop.load(Ordering::Relaxed) {
                self.kill();
                return Err(Failure::Interrupted);
            }
            if Instant::now() >= deadline {
                self.kill();
                return Err(Failure::TimedOut { provider: self.provider.clone(), request: name, timeout });
            }
        };
        let answer: Answer = match serde_json::from_str(&line) {
            Ok(answer) => answer,
            Err(_) => return Err(self.rubbish(&line)),
        };
        match answer {
            Answer { error: Some(error), .. } => Err(error.into()),
            Answer { id: answered, ok: Some(value), .. } if answered == id => {
                serde_json::from_value(value).map_err(|_| self.rubbish(&line))
            }
            _ => Err(self.rubbish(&line)),
        }
    }

    fn rubbish(&mut self, line: &str) -> Failure {
        self.kill();
        let mut shown: String = line.chars().take(120).collect();
        if shown.len() < line.len() {
            shown.push_str("...");
        }
        Failure::Rubbish { provider: self.provider.clone(), line: shown.escape_debug().to_string() }
    }

    fn crash(&mut self) -> Failure {
        // A closed pipe usually means a death; one that only closed its stdout is not worth keeping either.
        let status = wait_bounded(&mut self.child, Duration::from_millis(500));
        self.kill();
        let how = match status {
            Some(status) => describe(status),
            None => "closed its stdout and was killed".to_owned(),
        };
        let stderr = self.stderr.lock().expect("no thread panics while it holds them").text();
        Failure::Crashed { provider: self.provider.clone(), how, stderr }
    }

    fn kill(&mut self) {
        // The group outlives its leader where the leader left children: it is killed whatever the leader's state.
        let _ = killpg(Pid::from_raw(self.child.id() as i32), Signal::SIGKILL);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks it to exit, and kills it where it does not.
    pub fn shutdown(mut self) {
        let _ = self.ask::<super::protocol::Done>(Request::Shutdown, SHUTDOWN_TIME);
        self.stdin = None;
        wait_bounded(&mut self.child, SHUTDOWN_TIME);
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.kill();
    }
}

fn wait_bounded(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let start = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if start.elapsed() < limit => std::thread::sleep(Duration::from_millis(1)),
            _ => return None,
        }
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with code {code}"),
        (None, Some(number)) => match Signal::try_from(number) {
            Ok(Signal::SIGKILL) => "was killed by SIGKILL (out of memory?)".to_owned(),
            Ok(signal) => format!("was killed by {signal}"),
            Err(_) => format!("was killed by signal {number}"),
        },
        _ => "ended".to_owned(),
    }
}

const fn request_name(request: &Request) -> &'static str {
    match request {
        Request::Hello { .. } => "hello",
        Request::Kernels => "kernels",
        Request::Supports(_) => "supports",
        Request::Prepare(_) => "prepare",
        Request::Measure(_) => "measure",
        Request::Outputs { .. } => "outputs",
        Request::Memory => "memory",
        Request::Release => "release",
        Request::Control(_) => "control",
        Request::Shutdown => "shutdown",
    }
}
