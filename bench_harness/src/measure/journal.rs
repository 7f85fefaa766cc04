//! What was measured is on disk before the next case starts: JSON lines, each synced.
//!
//! After a kill, `--resume` reads the journal, drops a last line that was cut off, and goes on: at most the case in
//! flight is lost.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::case::CaseKey;
use crate::record::{CaseRound, TimeSpent};

/// Version of the journal's lines.
const JOURNAL_VERSION: u32 = 1;

/// Longest line, in bytes: what is longer is no journal, or one made to fill the memory.
const MAX_LINE_BYTES: u64 = 64 << 20;

/// What the run is: a journal is resumed only by the same run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// [`JOURNAL_VERSION`] of the writer.
    pub journal_version: u32,
    /// The run's id.
    pub run_id: String,
    /// RFC 3339, UTC.
    pub started_at: String,
    /// The suite's name.
    pub suite: String,
    /// blake3 over the suite's hash, the seed and every planned case with its settings.
    pub plan_hash: String,
    /// Turns of cases that are planned, over all rounds, for whoever watches; not known of a gate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turns_planned: Option<u64>,
}

impl Header {
    /// The header of a new run.
    pub fn new(run_id: String, started_at: String, suite: String, plan_hash: String) -> Self {
        Header { journal_version: JOURNAL_VERSION, run_id, started_at, suite, plan_hash, turns_planned: None }
    }
}

/// One finished thing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Entry {
    /// The first line.
    Header(Header),
    /// A case in a round.
    Case {
        /// Which case.
        key: CaseKey,
        /// What was seen.
        round: CaseRound,
        /// Where the time went since the entry before.
        time: TimeSpent,
    },
    /// The controls of a round, in the order of [`super::controls::controls_for`].
    Controls {
        /// The round.
        round: u32,
        /// Work of a sample and samples, one a control.
        samples: Vec<(u64, Vec<f64>)>,
        /// Where the time went.
        time: TimeSpent,
    },
    /// A case in a round of base against head.
    Pair(PairEntry),
    /// The controls right after base's turn and after head's.
    PairControls(PairControls),
}

/// What one round of base against head saw of a case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PairEntry {
    /// Which case.
    pub key: CaseKey,
    /// Share of time that a calibration added on head.
    #[serde(default)]
    pub slowdown: f64,
    /// The round.
    pub round: u32,
    /// What the coin said.
    pub head_first: bool,
    /// What was seen of base; nothing of a case that it does not have.
    pub base: Option<CaseRound>,
    /// What was seen of head.
    pub head: CaseRound,
    /// Where the time went.
    pub time: TimeSpent,
}

/// What one round of base against head saw of the controls.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PairControls {
    /// The round.
    pub round: u32,
    /// Measured by base's and head's own workers, because their timing sources differ, instead of the coordinator's.
    #[serde(default)]
    pub by_own_workers: bool,
    /// Work of a sample and samples, one a control, after base's turn.
    pub base: Vec<(u64, Vec<f64>)>,
    /// After head's.
    pub head: Vec<(u64, Vec<f64>)>,
}

/// Why a journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file system refused.
    #[error("{action} journal `{path}`: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Another run left its journal there.
    #[error(
        "creating journal `{path}`: it is there already, with what an unfinished run measured; go on with --resume {path}, \
         choose another --out, or delete it"
    )]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The run that writes it is not over.
    #[error("opening journal `{path}`: the run that writes it is still going; wait for it, or stop it first")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The file is no journal.
    #[error("reading journal `{path}`, line {line}: {reason}; start anew without --resume")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// Another run's journal.
    #[error(
        "resuming journal `{path}`: it belongs to another plan (suite `{suite}`): the suite file, the filters, the seed or \
         the settings differ; repeat the original command line, or start anew without --resume"
    )]
    OtherRun {
        /// The file.
        path: PathBuf,
        /// The suite that it was written for.
        suite: String,
    },
}

/// A journal that is being written.
pub struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// Starts a journal. A file of that name that is there already is an error: it may hold measurements.
    pub fn create(path: &Path, header: Header) -> Result<Journal, JournalError> {
        let io = |action, source| JournalError::Io { action, path: path.to_owned(), source };
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            std::fs::create_dir_all(parent).map_err(|error| io("creating the folder of", error))?;
        }
        let file = OpenOptions::new().write(true).create_new(true).open(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists if is_in_use(path) => JournalError::InUse { path: path.to_owned() },
            std::io::ErrorKind::AlreadyExists => JournalError::Exists { path: path.to_owned() },
            _ => io("creating", error),
        })?;
        // Nobody else can hold the lock of a file that is new; a file system without locks does without.
        let _ = file.try_lock();
        let mut journal = Journal { path: path.to_owned(), file };
        if let Err(error) = journal.append(&Entry::Header(header)) {
            // An empty journal would only be in the way of the next run.
            let _ = std::fs::remove_file(path);
            return Err(error);
        }
        Ok(journal)
    }

    /// Opens a journal to go on, and returns what is in it. A last line without its end is cut off.
    pub fn resume(path: &Path, plan_hash: &str) -> Result<(Journal, Header, Vec<Entry>), JournalError> {
        let io = |action, source| JournalError::Io { action, path: path.to_owned(), source };
        let mut file = OpenOptions::new().read(true).write(true).open(path).map_err(|error| io("opening", error))?;
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            return Err(JournalError::InUse { path: path.to_owned() });
        }
        let mut entries = Vec::new();
        let mut header = None;
        let mut kept_bytes = 0u64;
        let mut reader = BufReader::new(&file);
        let mut text = Vec::new();
        for line in 1.. {
            let corrupt = |reason: String| JournalError::Corrupt { path: path.to_owned(), line, reason };
            text.clear();
            let mut limited = (&mut reader).take(MAX_LINE_BYTES);
            let length = limited.read_until(b'\n', &mut text).map_err(|error| io("reading", error))?;
            if length as u64 == MAX_LINE_BYTES {
                return Err(corrupt(format!("the line has {MAX_LINE_BYTES} bytes or more")));
            }
            if length == 0 || text.last() != Some(&b'\n') {
                break;
            }
            let parsed = serde_json::from_slice(&text);
            match parsed.map_err(|error| corrupt(format!("this is no line of a journal: {error}")))? {
                Entry::Header(found) if line == 1 => {
                    if found.journal_version > JOURNAL_VERSION {
                        return Err(corrupt(format!("written by a newer version ({})", found.journal_version)));
                    }
                    if found.plan_hash != plan_hash {
                        return Err(JournalError::OtherRun { path: path.to_owned(), suite: found.suite });
                    }
                    header = Some(found);
                }
                Entry::Header(_) => return Err(corrupt("a second header".to_owned())),
                _ if line == 1 => return Err(corrupt("the first line is no header".to_owned())),
                entry => entries.push(entry),
            }
            kept_bytes += length as u64;
        }
        let header = header.ok_or_else(|| JournalError::Corrupt {
            path: path.to_owned(),
            line: 1,
            reason: "it is empty or its header was cut off".to_owned(),
        })?;
        file.set_len(kept_bytes).map_err(|error| io("truncating", error))?;
        file.seek(SeekFrom::End(0)).map_err(|error| io("reading", error))?;
        Ok((Journal { path: path.to_owned(), file }, header, entries))
    }

    /// Writes an entry and syncs it.
    pub fn append(&mut self, entry: &Entry) -> Result<(), JournalError> {
        let mut line = serde_json::to_vec(entry).expect("entries serialise");
        line.push(b'\n');
        self.file.write_all(&line).and_then(|()| self.file.sync_data()).map_err(|source| JournalError::Io {
            action: "writing",
            path: self.path.clone(),
            source,
        })
    }

    /// Removes the journal: its record is saved.
    pub fn remove(self) -> Result<(), JournalError> {
        std::fs::remove_file(&self.path).map_err(|source| JournalError::Io {
            action: "removing",
            path: self.path.clone(),
            source,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Whether a run that is not over writes this journal.
fn is_in_use(path: &Path) -> bool {
    File::open(path).is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header::new("r1".into(), "2026-01-01T00:00:00Z".into(), "ci".into(), "abc".into())
    }

    fn controls(round: u32) -> Entry {
        Entry::Controls { round, samples: vec![(64, vec![1.5, 2.5])], time: TimeSpent::default() }
    }

    #[test]
    fn a_cut_off_line_is_dropped_and_the_rest_goes_on() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("deep/run.journal");
        let mut journal = Journal::create(&path, header()).expect("created");
        journal.append(&controls(0)).expect("written");
        journal.append(&controls(1)).expect("written");
        drop(journal);
        let whole = std::fs::read(&path).expect("read");
        std::fs::write(&path, &whole[..whole.len() - 9]).expect("cut");

        let (mut journal, found, entries) = Journal::resume(&path, "abc").expect("resumed");
        assert_eq!(found, header());
        assert_eq!(entries, [controls(0)]);
        journal.append(&controls(1)).expect("written");
        drop(journal);
        assert_eq!(std::fs::read(&path).expect("read"), whole, "the journal is as if nothing had happened");
    }

    #[test]
    fn a_journal_that_is_being_written_is_left_alone() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("run.journal");
        let still_there = "the run that writes it is still going";
        let journal = Journal::create(&path, header()).expect("created");
        let resumed = Journal::resume(&path, "abc").map(|_| ()).expect_err("refused").to_string();
        assert!(resumed.contains(still_there), "{resumed}");
        let created = Journal::create(&path, header()).map(|_| ()).expect_err("refused").to_string();
        assert!(created.contains(still_there), "{created}");
        drop(journal);
        let (resumed, ..) = Journal::resume(&path, "abc").expect("its run is over");
        assert!(Journal::resume(&path, "abc").is_err());
        drop(resumed);
        let created = Journal::create(&path, header()).map(|_| ()).expect_err("refused").to_string();
        assert!(created.contains("go on with --resume"), "{created}");
    }

    #[test]
    fn other_files_are_refused() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("run.journal");
        Journal::create(&path, header()).expect("created");
        let error = |hash: &str| Journal::resume(&path, hash).map(|_| ()).expect_err("refused").to_string();
        assert!(error("other").contains("another plan"), "{}", error("other"));
        assert!(Journal::create(&path, header()).is_err(), "an existing journal is never overwritten");
        std::fs::write(&path, "{\"header\": 3}\n").expect("written");
        assert!(error("abc").contains("line 1"));
        std::fs::write(&path, "").expect("written");
        assert!(error("abc").contains("empty"));
        std::fs::remove_file(&path).expect("removed");
        assert!(error("abc").contains("opening journal"));
    }
}
