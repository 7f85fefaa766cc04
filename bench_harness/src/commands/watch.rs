//! `attnbench watch`: a run that goes on elsewhere, live in this terminal.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::Exit;
use super::run::journal_path;
use crate::watch::draw::draw;
use crate::watch::tail::{Tail, newest};
use crate::watch::{State, View};

/// Where runs write unless told otherwise.
const DEFAULT_FOLDER: &str = "results";
/// How long a key press may take to be seen, and new lines to be shown.
const TICK: Duration = Duration::from_millis(200);
/// How long a journal must be still before anybody asks whether it is still written.
const STILL: Duration = Duration::from_secs(2);

/// Watch a run or a gate that goes on in another terminal, or on a machine that you are logged in to
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  attnbench watch                                  the latest run in results/
  attnbench watch results/ci-20260102T030405Z.json the run that will write this record
  attnbench watch gate.json.journal

Reads the run's journal and nothing else: the run is not disturbed, and quitting does not stop it.
Keys: q or Ctrl-C quits, up, down, page up and page down scroll.")]
pub struct Args {
    /// Journal, record that the run will write, or folder of runs [default: results]
    run: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<Exit> {
    let path = journal_of(args.run.as_deref())?;
    let mut tail = Tail::open(&path)?;
    let mut view = View::default();
    // What is no journal is said before the screen is taken.
    tail.read()?.into_iter().for_each(|entry| view.add(entry));
    if !std::io::stdout().is_terminal() {
        bail!("watching `{}`: this needs a terminal; `attnbench show` prints a record", path.display());
    }
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&stop)).context("watching for signals")?;
    }
    let mut terminal = ratatui::try_init().context("taking over the terminal")?;
    let watched = watch(&mut terminal, &mut tail, &mut view, &stop);
    let restored = ratatui::try_restore().context("giving the terminal back");
    watched?;
    restored?;
    Ok(Exit::Pass)
}

fn watch(terminal: &mut DefaultTerminal, tail: &mut Tail, view: &mut View, stop: &AtomicBool) -> anyhow::Result<()> {
    let mut grew = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let entries = tail.read()?;
        if !entries.is_empty() {
            grew = Instant::now();
            view.state = State::Running;
            entries.into_iter().for_each(|entry| view.add(entry));
        } else if view.state != State::Finished && grew.elapsed() >= STILL {
            view.state = tail.state();
            grew = Instant::now();
        }
        terminal.draw(|frame| draw(frame, view)).context("drawing")?;
        if event::poll(TICK).context("reading keys")? && !handle(&event::read().context("reading keys")?, view) {
            break;
        }
    }
    Ok(())
}

/// Does what a key asks for; false to quit.
fn handle(event: &Event, view: &mut View) -> bool {
    let Event::Key(key) = event else { return true };
    if key.kind == KeyEventKind::Release {
        return true;
    }
    let is_interrupt = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc => return false,
        _ if is_interrupt => return false,
        KeyCode::Up | KeyCode::Char('k') => view.scroll = view.scroll.saturating_sub(1),
        KeyCode::Down | KeyCode::Char('j') => view.scroll = view.scroll.saturating_add(1),
        KeyCode::PageUp => view.scroll = view.scroll.saturating_sub(10),
        KeyCode::PageDown => view.scroll = view.scroll.saturating_add(10),
        KeyCode::Home => view.scroll = 0,
        KeyCode::End => view.scroll = usize::MAX,
        _ => {}
    }
    true
}

/// The journal that is meant.
fn journal_of(run: Option<&Path>) -> anyhow::Result<PathBuf> {
    let path = run.unwrap_or(Path::new(DEFAULT_FOLDER));
    if run.is_none() || path.is_dir() {
        return newest(path).with_context(|| {
            format!("watching `{}`: no run goes on there; name a run's record or journal", path.display())
        });
    }
    let of_record = journal_path(path);
    match (of_record.exists(), path.exists()) {
        (true, _) => Ok(of_record),
        (false, true) if path.extension().is_some_and(|extension| extension == "json") => {
            bail!("watching `{0}`: that run is over; `attnbench show {0}` prints it", path.display())
        }
        (false, true) => Ok(path.to_owned()),
        (false, false) => bail!("watching `{}`: there is neither a journal nor a record", path.display()),
    }
}
