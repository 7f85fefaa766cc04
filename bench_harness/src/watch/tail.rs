//! A journal, read while somebody else writes it.

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::State;
use crate::measure::journal::{Entry, JournalError};

/// Bytes that are read at once; a longer journal is read in several steps.
const STEP_BYTES: u64 = 4 << 20;
/// A line that is longer is no journal's.
const MAX_LINE_BYTES: usize = 64 << 20;

/// An open journal, and what of it has been read.
pub struct Tail {
    path: PathBuf,
    file: File,
    offset: u64,
    /// The beginning of a line whose end is not written yet.
    rest: Vec<u8>,
}

impl Tail {
    /// Opens a journal at its beginning.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(path: &Path) -> Result<Tail, JournalError> {
        let file = File::open(path).map_err(|source| io(path, "opening", source))?;
        Ok(Tail { path: path.to_owned(), file, offset: 0, rest: Vec::new() })
    }

    /// The whole lines that were written since the last call, at most some megabytes of them.
    ///
    /// # Errors
    /// It cannot be read, or a line is no journal's.
    pub fn read(&mut self) -> Result<Vec<Entry>, JournalError> {
        let fail = |source| io(&self.path, "reading", source);
        // A run that goes on cuts off a line that was half written.
        let length = self.file.metadata().map_err(fail)?.len();
        if length < self.offset {
            self.offset = length;
            self.rest.clear();
        }
        self.file.seek(SeekFrom::Start(self.offset)).map_err(fail)?;
        let read = (&mut self.file).take(STEP_BYTES).read_to_end(&mut self.rest).map_err(fail)?;
        self.offset += read as u64;
        let mut entries = Vec::new();
        let whole = self.rest.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        let corrupt = |reason: String| JournalError::Corrupt { path: self.path.clone(), line: 1, reason };
        for line in self.rest[..whole].split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
            let entry = serde_json::from_slice(line);
            entries.push(entry.map_err(|error| corrupt(format!("this is no line of a journal: {error}")))?);
        }
        self.rest.drain(..whole);
        if self.rest.len() > MAX_LINE_BYTES {
            return Err(corrupt(format!("a line has more than {MAX_LINE_BYTES} bytes")));
        }
        Ok(entries)
    }

    /// Whether somebody still writes it.
    pub fn state(&self) -> State {
        if !self.path.exists() {
            return State::Finished;
        }
        // Held for an instant only, and only where the writer does not hold it: a run that is just being resumed would be
        // refused in that instant, which is why this is not asked all the time.
        match self.file.try_lock_shared() {
            Err(TryLockError::WouldBlock) => State::Running,
            Ok(()) => {
                let _ = self.file.unlock();
                State::Stopped
            }
            // A file system without locks does not say.
            Err(TryLockError::Error(_)) => State::Running,
        }
    }
}

fn io(path: &Path, action: &'static str, source: std::io::Error) -> JournalError {
    JournalError::Io { action, path: path.to_owned(), source }
}

/// The journal of a folder that was written last.
pub fn newest(folder: &Path) -> Option<PathBuf> {
    let journals = std::fs::read_dir(folder).ok()?.flatten().filter_map(|entry| {
        let path = entry.path();
        let is_journal = path.extension().is_some_and(|extension| extension == "journal");
        is_journal.then_some((entry.metadata().ok()?.modified().ok()?, path))
    });
    journals.max().map(|(_, path)| path)
}
