//! `attnbench watch` in a terminal of its own: it shows a run that goes on, quits cleanly, and leaves the run alone.

mod support;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::{attnbench, small_suite};

/// What a terminal is told when a program that took the whole screen gives it back.
const LEAVES_SCREEN: &str = "\x1b[?1049l";
const SHOWS_CURSOR: &str = "\x1b[?25h";

/// A terminal of 80x24 with a program in it.
struct Pty {
    child: Child,
    master: File,
    slave: File,
    before: libc::termios,
    seen: Arc<Mutex<Vec<u8>>>,
}

fn attributes(terminal: &File) -> libc::termios {
    use std::os::fd::AsRawFd;
    // SAFETY: a termios of zeros is a valid value of this plain C struct.
    let mut attributes = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open, and the pointer is to a termios that lives until the call returns.
    assert_eq!(unsafe { libc::tcgetattr(terminal.as_raw_fd(), &raw mut attributes) }, 0);
    attributes
}

impl Pty {
    fn start(folder: &Path, arguments: &[&str]) -> Pty {
        let size = libc::winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let (mut master, mut slave): (RawFd, RawFd) = (-1, -1);
        let null = std::ptr::null_mut();
        // SAFETY: the first two pointers are to integers that live until the call returns, the last to a size; no name and
        // no attributes are asked for.
        let code =
            unsafe { libc::openpty(&raw mut master, &raw mut slave, null, null.cast(), &raw const size as *mut _) };
        assert_eq!(code, 0, "a pseudo-terminal");
        // SAFETY: the call above made both descriptors, and nothing else owns them.
        let (master, terminal) = unsafe { (File::from_raw_fd(master), File::from_raw_fd(slave)) };
        let before = attributes(&terminal);
        let mut command = Command::new(env!("CARGO_BIN_EXE_attnbench"));
        command.current_dir(folder).args(arguments).env("TERM", "xterm-256color").stdin(Stdio::null());
        // SAFETY: between fork and exec only `login_tty` and `dup` are called, which are system calls.
        unsafe {
            command.pre_exec(move || {
                // `login_tty` closes what it is given.
                match libc::login_tty(libc::dup(slave)) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            });
        }
        let child = command.spawn().expect("the binary starts");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (mut reader, sink) = (master.try_clone().expect("a descriptor"), Arc::clone(&seen));
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                sink.lock().expect("nobody panics").extend_from_slice(&buffer[..count]);
            }
        });
        Pty { child, master, slave: terminal, before, seen }
    }

    fn output(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().expect("nobody panics")).into_owned()
    }

    fn wait_for(&self, what: &str) {
        let start = Instant::now();
        while !self.output().contains(what) {
            assert!(start.elapsed() < Duration::from_secs(120), "`{what}` was never shown: {:?}", self.output());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn press(&mut self, keys: &[u8]) {
        self.master.write_all(keys).expect("the terminal takes keys");
    }

    /// Waits for the end and checks that the terminal is as it was.
    fn ends_cleanly(mut self) {
        let status = self.child.wait().expect("it ends");
        assert!(status.success(), "{status}: {}", self.output());
        self.wait_for(LEAVES_SCREEN);
        self.wait_for(SHOWS_CURSOR);
        let after = attributes(&self.slave);
        assert_eq!(
            (after.c_lflag, after.c_iflag, after.c_oflag),
            (self.before.c_lflag, self.before.c_iflag, self.before.c_oflag)
        );
    }
}

/// A run that takes a while.
fn running(folder: &Path) -> Child {
    let measure = "rounds = 200\nmin_samples = 6\nmax_samples = 12\nbudget_ms = 20\ntimeout_s = 20";
    let suite = small_suite(folder, "cpu", &["flash", "naive"], measure);
    let run = Command::new(env!("CARGO_BIN_EXE_attnbench"))
        .args(["run", "--out"])
        .args([&folder.join("results/record.json"), &suite])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary starts");
    let journal = folder.join("results/record.json.journal");
    let start = Instant::now();
    while std::fs::read_to_string(&journal).unwrap_or_default().lines().count() < 2 {
        assert!(start.elapsed() < Duration::from_secs(120), "the run never started");
        std::thread::sleep(Duration::from_millis(5));
    }
    run
}

#[test]
fn a_run_is_watched_and_left_alone() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut run = running(folder.path());

    let mut by_key = Pty::start(folder.path(), &["watch"]);
    by_key.wait_for("running");
    by_key.wait_for("naive");
    by_key.press(b"\x1b[B");
    by_key.press(b"q");
    by_key.ends_cleanly();

    let mut by_interrupt = Pty::start(folder.path(), &["watch", "results/record.json"]);
    by_interrupt.wait_for("latency");
    by_interrupt.press(b"\x03");
    by_interrupt.ends_cleanly();

    let by_signal = Pty::start(folder.path(), &["watch", "results/record.json.journal"]);
    by_signal.wait_for("latency");
    kill(Pid::from_raw(by_signal.child.id() as i32), Signal::SIGTERM).expect("it is ours");
    by_signal.ends_cleanly();

    assert!(run.try_wait().expect("the run is ours").is_none(), "watching ends no run");
    let mut to_the_end = Pty::start(folder.path(), &["watch"]);
    to_the_end.wait_for("running");
    kill(Pid::from_raw(run.id() as i32), Signal::SIGKILL).expect("the run is ours");
    run.wait().expect("it is dead");
    to_the_end.wait_for("stopped");
    to_the_end.press(b"q");
    to_the_end.ends_cleanly();
}

#[test]
fn what_cannot_be_watched_is_said_on_a_whole_screen() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(folder.path().join("record.json"), "{}").expect("written");
    std::fs::write(folder.path().join("rubbish.journal"), "rubbish\n").expect("written");
    for (arguments, mentions) in [
        (&["watch"][..], "no run goes on there"),
        (&["watch", "."], "this is no line of a journal"),
        (&["watch", "record.json"], "that run is over; `attnbench show record.json` prints it"),
        (&["watch", "none.json"], "there is neither a journal nor a record"),
        (&["watch", "rubbish.journal"], "this is no line of a journal"),
    ] {
        let refused = attnbench().current_dir(folder.path()).args(arguments).assert().code(2);
        let said = String::from_utf8_lossy(&refused.get_output().stderr).into_owned();
        assert!(said.contains(mentions) && !said.contains(LEAVES_SCREEN), "{said}");
    }
    std::fs::remove_file(folder.path().join("rubbish.journal")).expect("removed");
    let mut run = running(folder.path());
    let piped = attnbench().current_dir(folder.path()).args(["watch"]).assert().code(2);
    assert!(String::from_utf8_lossy(&piped.get_output().stderr).contains("this needs a terminal"));
    kill(Pid::from_raw(run.id() as i32), Signal::SIGKILL).expect("the run is ours");
    run.wait().expect("it is dead");
}
