//! Baselines in a directory, one file a device and suite: `<device slug>/<suite>.json`.
//!
//! The layout is the name: `baseline:h200/prefill` is `baselines/h200/prefill.json`, and `baseline:prefill` is that of
//! this machine's device. Files are small and laid out over lines, so that a change of a baseline is reviewed like code.

use std::fs;
use std::path::{Path, PathBuf};

use crate::compare::baseline::BASELINE_VERSION;
use crate::compare::{Baseline, BaselineError};
use crate::files::{self, Action, DocumentKind, FileError};
use crate::record::Record;

/// What a baseline file is.
pub const BASELINE: DocumentKind = DocumentKind {
    name: "baseline",
    version_field: "baseline_version",
    version: BASELINE_VERSION,
    max_bytes: 64 << 20,
    made_by: "`attnbench baseline save RECORD` makes a baseline",
};

/// The directory that baselines are kept in unless another one is named, relative to the repository's root.
pub const DEFAULT_DIRECTORY: &str = "baselines";

/// What references to baselines begin with on the command line.
pub const REFERENCE_PREFIX: &str = "baseline:";

/// Why a baseline could not be found, read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Its file.
    #[error(transparent)]
    File(#[from] FileError),
    /// Its contents.
    #[error(transparent)]
    Contents(#[from] BaselineError),
    /// Its name.
    #[error("`{name}` names no baseline: a name is `SUITE` or `DEVICE/SUITE`, each of a-z, 0-9, `_` and `-`")]
    Name {
        /// The name.
        name: String,
    },
    /// None of that name.
    #[error("there is no baseline `{name}` in `{}`; {there}", .directory.display())]
    NotFound {
        /// The name.
        name: String,
        /// The store.
        directory: PathBuf,
        /// What there is instead.
        there: String,
    },
    /// The directory.
    #[error("listing baselines in `{}`: {cause}", .directory.display())]
    Listing {
        /// The directory.
        directory: PathBuf,
        /// What the system says.
        #[source]
        cause: std::io::Error,
    },
}

/// The name of a baseline: device and suite.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BaselineName {
    /// Slug of the device: see [`crate::device::cpu::info::slug`].
    pub device: String,
    /// Name of the suite.
    pub suite: String,
}

impl std::fmt::Display for BaselineName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.device, self.suite)
    }
}

impl BaselineName {
    /// Parses `DEVICE/SUITE`, or `SUITE` on the given device; `baseline:` in front is allowed.
    ///
    /// # Errors
    /// [`StoreError::Name`] for anything that could leave the directory or that no device or suite is called.
    pub fn parse(text: &str, this_device: &str) -> Result<BaselineName, StoreError> {
        let name = text.strip_prefix(REFERENCE_PREFIX).unwrap_or(text);
        let (device, suite) = name.split_once('/').unwrap_or((this_device, name));
        if !is_safe(device) || !is_safe(suite) {
            return Err(StoreError::Name { name: name.to_owned() });
        }
        Ok(BaselineName { device: device.to_owned(), suite: suite.to_owned() })
    }
}

/// Whether a word may be a file's or a directory's name: no dots, slashes or spaces.
fn is_safe(word: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
    (1..=64).contains(&word.len()) && word.chars().all(allowed) && !word.starts_with('-')
}

/// A directory of baselines.
#[derive(Clone, Debug)]
pub struct BaselineStore {
    directory: PathBuf,
}

/// What saving did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedBaseline {
    /// The file.
    pub path: PathBuf,
    /// Sessions that were there before and still are.
    pub sessions_before: usize,
    /// Sessions that are there now.
    pub sessions: usize,
}

impl BaselineStore {
    /// The store in a directory, which need not exist yet.
    pub fn new(directory: impl Into<PathBuf>) -> BaselineStore {
        BaselineStore { directory: directory.into() }
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The file of a baseline.
    pub fn path(&self, name: &BaselineName) -> PathBuf {
        self.directory.join(&name.device).join(format!("{}.json", name.suite))
    }

    /// Reads a baseline.
    ///
    /// # Errors
    /// There is none (the error lists those that there are), or its file is broken.
    pub fn load(&self, name: &BaselineName) -> Result<Baseline, StoreError> {
        let path = self.path(name);
        if !path.exists() {
            let there = match self.list() {
                Ok(names) if !names.is_empty() => {
                    format!("there are {}", names.iter().map(BaselineName::to_string).collect::<Vec<_>>().join(", "))
                }
                _ => "there are none yet: `attnbench baseline save RECORD` makes one".to_owned(),
            };
            return Err(StoreError::NotFound { name: name.to_string(), directory: self.directory.clone(), there });
        }
        load_file(&path).map_err(StoreError::from)
    }

    /// Finds `baseline:NAME`, `DEVICE/SUITE`, or `SUITE` on the given device, and reads it.
    ///
    /// # Errors
    /// As [`BaselineName::parse`] and [`BaselineStore::load`].
    pub fn find(&self, reference: &str, this_device: &str) -> Result<Baseline, StoreError> {
        self.load(&BaselineName::parse(reference, this_device)?)
    }

    /// Adds records to a baseline as further sessions.
    ///
    /// # Errors
    /// The records do not fit to each other or to the baseline's fingerprint, or a file cannot be read or written. The
    /// baseline is then as it was.
    pub fn append(&self, name: &BaselineName, records: &[Record]) -> Result<SavedBaseline, StoreError> {
        let path = self.path(name);
        let old = if path.exists() { Some(load_file(&path)?) } else { None };
        let sessions_before = old.as_ref().map_or(0, |baseline| baseline.sessions.len());
        let new = match old {
            Some(old) => records.iter().try_fold(old, Baseline::with_session)?,
            None => Baseline::from_records(&name.device, records)?,
        };
        files::write_document(&BASELINE, &path, &new)?;
        Ok(SavedBaseline { path, sessions_before, sessions: new.sessions.len() })
    }

    /// Puts records in a baseline's place, whatever it held.
    ///
    /// # Errors
    /// The records do not fit to each other, or the file cannot be written. The baseline is then as it was.
    pub fn replace(&self, name: &BaselineName, records: &[Record]) -> Result<SavedBaseline, StoreError> {
        let path = self.path(name);
        let new = Baseline::from_records(&name.device, records)?;
        files::write_document(&BASELINE, &path, &new)?;
        Ok(SavedBaseline { path, sessions_before: 0, sessions: new.sessions.len() })
    }

    /// The names of all baselines, sorted. Files of other names are not baselines.
    ///
    /// # Errors
    /// The directory exists and cannot be listed.
    pub fn list(&self) -> Result<Vec<BaselineName>, StoreError> {
        let listing = |cause| StoreError::Listing { directory: self.directory.clone(), cause };
        let devices = match fs::read_dir(&self.directory) {
            Ok(devices) => devices,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(listing(error)),
        };
        let mut names = Vec::new();
        for device in devices {
            let device = device.map_err(listing)?;
            if !device.path().is_dir() {
                continue;
            }
            for file in fs::read_dir(device.path()).map_err(listing)? {
                let (device, file) = (device.file_name(), file.map_err(listing)?.file_name());
                let (Some(device), Some(file)) = (device.to_str(), file.to_str()) else { continue };
                let Some(suite) = file.strip_suffix(".json") else { continue };
                if is_safe(device) && is_safe(suite) {
                    names.push(BaselineName { device: device.to_owned(), suite: suite.to_owned() });
                }
            }
        }
        names.sort();
        Ok(names)
    }
}

/// Reads the baseline of a file's bytes, which `path` names in errors.
///
/// # Errors
/// As [`load_file`].
pub fn parse(bytes: &[u8], path: &Path) -> Result<Baseline, FileError> {
    files::parse_document(&BASELINE, bytes).map_err(|problem| FileError {
        action: Action::Read,
        kind: BASELINE.name,
        path: path.to_owned(),
        problem,
    })
}

/// Reads the baseline of a file.
///
/// # Errors
/// [`FileError`] for everything that is not a whole baseline of a version that is understood.
pub fn load_file(path: &Path) -> Result<Baseline, FileError> {
    files::read_document(&BASELINE, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::sample;

    fn store() -> (tempfile::TempDir, BaselineStore) {
        let dir = tempfile::tempdir().unwrap();
        let store = BaselineStore::new(dir.path().join("baselines"));
        (dir, store)
    }

    fn run(id: &str) -> Record {
        let mut record = sample::record();
        record.run.id = id.to_owned();
        record
    }

    #[test]
    fn names() {
        let parse = |text: &str| BaselineName::parse(text, "here").map(|name| name.to_string());
        assert_eq!(parse("baseline:h200/prefill").unwrap(), "h200/prefill");
        assert_eq!(parse("baseline:prefill").unwrap(), "here/prefill");
        assert_eq!(parse("ci").unwrap(), "here/ci");
        for hostile in ["", "..", "../ci", "a/../b", "a//b", "/etc/x", "a/b/c", "A/b", "a/b.json", "a\0", "-rf", "a/ b"]
        {
            let error = parse(hostile).unwrap_err().to_string();
            assert!(error.contains("names no baseline"), "{hostile:?}: {error}");
        }
        assert!(parse(&"a".repeat(65)).is_err());
    }

    #[test]
    fn sessions_are_appended_listed_found_and_replaced() {
        let (_dir, store) = store();
        assert_eq!(store.list().unwrap(), []);
        let name = BaselineName::parse("quickstart", "box").unwrap();
        let missing = store.load(&name).unwrap_err().to_string();
        assert!(missing.contains("there are none yet"), "{missing}");

        assert_eq!(store.append(&name, &[run("a"), run("b")]).unwrap().sessions, 2);
        let saved = store.append(&name, &[run("c")]).unwrap();
        assert_eq!((saved.sessions_before, saved.sessions), (2, 3));
        assert!(saved.path.ends_with("baselines/box/quickstart.json"));
        assert_eq!(store.list().unwrap(), std::slice::from_ref(&name));
        let found = store.find("baseline:quickstart", "box").unwrap();
        assert_eq!(found, Baseline::from_records("box", &[run("a"), run("b"), run("c")]).unwrap());
        let elsewhere = store.find("quickstart", "elsewhere").unwrap_err().to_string();
        assert!(elsewhere.contains("there is no baseline `elsewhere/quickstart`"), "{elsewhere}");
        assert!(elsewhere.ends_with("there are box/quickstart"), "{elsewhere}");

        assert_eq!(store.replace(&name, &[run("d")]).unwrap().sessions, 1);
        assert_eq!(store.load(&name).unwrap().sessions[0].run_id, "d");
    }

    #[test]
    fn a_refused_session_changes_nothing() {
        let (_dir, store) = store();
        let name = BaselineName::parse("quickstart", "box").unwrap();
        store.append(&name, &[run("a")]).unwrap();
        let before = fs::read(store.path(&name)).unwrap();
        let mut other = run("b");
        other.fingerprint.insert("cpu_model".into(), "Another".into());
        for refused in [vec![run("b"), run("a")], vec![other], vec![run("c"), run("c")]] {
            assert!(matches!(store.append(&name, &refused), Err(StoreError::Contents(_))));
            assert_eq!(fs::read(store.path(&name)).unwrap(), before);
        }
        assert!(matches!(store.replace(&name, &[]), Err(StoreError::Contents(BaselineError::NoRecord))));
    }

    #[test]
    fn broken_files_are_errors_that_name_them_and_are_not_overwritten() {
        let (_dir, store) = store();
        let name = BaselineName::parse("ci", "box").unwrap();
        store.append(&name, &[run("a")]).unwrap();
        let path = store.path(&name);
        let text = fs::read_to_string(&path).unwrap();
        let record = crate::report::json::reviewable(&sample::record()).unwrap();
        for (broken, expected) in [
            (text[..text.len() - 20].to_owned(), "the file ends in the middle"),
            (String::new(), "the file is empty"),
            (record, "this is a record, not an attnbench baseline"),
            (text.replace("\"baseline_version\": 1", "\"baseline_version\": 2"), "it has format version 2"),
            (text.replace("\"mode\":\"cold\"", "\"mode\":\"cool\""), "unknown variant `cool`"),
        ] {
            fs::write(&path, &broken).unwrap();
            for error in [store.load(&name).unwrap_err(), store.append(&name, &[run("b")]).unwrap_err()] {
                let error = error.to_string();
                assert!(error.starts_with(&format!("reading baseline `{}`: ", path.display())), "{error}");
                assert!(error.contains(expected), "{error}");
            }
            assert_eq!(fs::read_to_string(&path).unwrap(), broken);
        }
    }

    #[test]
    fn a_case_is_a_line_of_the_file() {
        let (_dir, store) = store();
        let name = BaselineName::parse("quickstart", "box").unwrap();
        store.append(&name, &[run("a")]).unwrap();
        let text = fs::read_to_string(store.path(&name)).unwrap();
        let lines = text.lines().filter(|line| line.trim_start().starts_with("{\"case_id\":")).count();
        assert_eq!(lines, sample::record().cases.len());
    }

    #[test]
    fn other_files_are_not_listed() {
        let (_dir, store) = store();
        fs::create_dir_all(store.directory().join("box")).unwrap();
        fs::create_dir_all(store.directory().join("Not a slug")).unwrap();
        for file in ["README.md", "box/notes.txt", "box/A.json", "box/.hidden.json", "Not a slug/ci.json"] {
            fs::write(store.directory().join(file), "").unwrap();
        }
        assert_eq!(store.list().unwrap(), []);
    }
}
