//! Records on disk: written whole or not at all, read with limits, and never lost because a place is not writable.

use std::path::{Path, PathBuf};

use super::{RECORD_VERSION, Record};
use crate::files::{self, DocumentKind, FileError};

/// What a record file is.
pub const RECORD: DocumentKind = DocumentKind {
    name: "record",
    version_field: "record_version",
    version: RECORD_VERSION,
    max_bytes: 512 << 20,
    made_by: "`attnbench run SUITE --out FILE` makes a record",
};

/// Why a record could not be read or written.
pub type RecordError = FileError;

/// Reads a record.
///
/// # Errors
/// [`RecordError`] for everything that is not a whole record of a version that is understood.
pub fn load(path: &Path) -> Result<Record, RecordError> {
    files::read_document(&RECORD, path)
}

/// Writes a record, its numbers rounded to nine digits. Until the new file is whole and on disk, an old one of that name
/// stays; missing directories are made.
///
/// # Errors
/// [`RecordError`]; see [`save_or_rescue`] for a record that must not be lost.
pub fn save(path: &Path, record: &Record) -> Result<(), RecordError> {
    files::write_document(&RECORD, path, record)
}

/// Where a record went.
#[derive(Debug)]
pub enum Saved {
    /// To the place that was asked for.
    AsAsked,
    /// To a file in the system's directory for temporary files.
    Rescued {
        /// That file.
        path: PathBuf,
        /// Why it is not where it should be.
        cause: RecordError,
    },
}

/// Writes a record, elsewhere if need be: what was measured is not lost because a disk is full or read-only.
///
/// # Errors
/// The first [`RecordError`] if the directory for temporary files takes it no more than the path did.
pub fn save_or_rescue(path: &Path, record: &Record) -> Result<Saved, RecordError> {
    save_or_rescue_in(&std::env::temp_dir(), path, record)
}

/// [`save_or_rescue`] with the directory to fall back to.
fn save_or_rescue_in(directory: &Path, path: &Path, record: &Record) -> Result<Saved, RecordError> {
    let Err(cause) = save(path, record) else { return Ok(Saved::AsAsked) };
    match rescue(directory, record) {
        Some(path) => Ok(Saved::Rescued { path, cause }),
        None => Err(cause),
    }
}

/// Writes a record to a new file of a directory that others may write to as well, so that its name must not be foreseen.
fn rescue(directory: &Path, record: &Record) -> Option<PathBuf> {
    let file = tempfile::Builder::new().prefix("attnbench-rescued-").suffix(".json").tempfile_in(directory).ok()?;
    save(file.path(), record).ok()?;
    // `save` has renamed a new file over the reserved name: there is nothing left for the guard to delete.
    let (_, path) = file.keep().ok()?;
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::sample;
    use std::fs;

    #[test]
    fn a_saved_record_is_loaded_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/dir/record.json");
        let record = sample::record();
        save(&path, &record).unwrap();
        assert!(load(&path).unwrap() == record, "the record changed");
        save(&path, &record).unwrap();
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn the_committed_example_is_what_is_written() {
        // Whoever changes the layout sees it in a diff, and the tests of commands have a record to read.
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/record.json");
        if std::env::var_os("ATTNBENCH_UPDATE_SCHEMAS").is_some() {
            save(&path, &sample::record()).unwrap();
        }
        let text = crate::report::json::reviewable(&sample::record()).unwrap();
        assert!(fs::read_to_string(&path).unwrap() == text, "set ATTNBENCH_UPDATE_SCHEMAS=1 to write it anew");
        assert!(load(&path).unwrap() == sample::record());
    }

    #[test]
    fn a_case_round_is_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record.json");
        let record = sample::record();
        save(&path, &record).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let lines = text.lines().filter(|line| line.trim_start().starts_with(r#"{"round":"#)).count();
        assert_eq!(lines, record.cases.iter().map(|case| case.rounds.len()).sum::<usize>());
    }

    /// The error of loading these bytes.
    fn error_of(bytes: &[u8]) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.json");
        fs::write(&path, bytes).unwrap();
        let error = load(&path).unwrap_err();
        assert_eq!((error.path.as_path(), error.kind), (path.as_path(), "record"));
        error.to_string().replace(dir.path().to_str().unwrap(), "DIR")
    }

    #[test]
    fn every_broken_file_has_its_own_clear_error() {
        let text = crate::report::json::reviewable(&sample::record()).unwrap();
        let start = "reading record `DIR/r.json`: ";
        let cases: Vec<(Vec<u8>, &str)> = vec![
            (b"".to_vec(), "the file is empty"),
            (b" \n".to_vec(), "the file is empty"),
            (text.as_bytes()[..text.len() / 2].to_vec(), "the file ends in the middle, at line "),
            (b"{\"record_version\": 1,\n x}".to_vec(), "line 2 column 2 is not valid JSON: key must be a string"),
            (
                b"[1, 2]".to_vec(),
                "this is JSON, but no object, not an attnbench record (which has a field `record_version`)",
            ),
            (b"{\"a\": 1}".to_vec(), "this is some other JSON object, not an attnbench record"),
            (b"{\"baseline_version\": 1}".to_vec(), "this is a baseline, not an attnbench record"),
            (
                b"{\"record_version\": 7}".to_vec(),
                "it has format version 7, and this attnbench reads versions up to 1; use a newer",
            ),
            (b"{\"record_version\": 1}".to_vec(), "field `.` at line 1 column 21: missing field `run`"),
            (b"{\"record_version\": \"1\"}".to_vec(), "field `record_version` at line 1 column 22: invalid type"),
            (b"{\"record_version\": -1}".to_vec(), "field `record_version` at line 1 column 21: invalid value"),
            (b"\xff\xfe".to_vec(), "byte 0 is not UTF-8"),
            (
                format!("{{\"record_version\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000)).into_bytes(),
                "not an attnbench record",
            ),
            (
                text.replacen("\"device_ns\":[", "\"device_ns\":[\"x\",", 1).into_bytes(),
                "field `cases[0].rounds[0].device_ns[0]` at line ",
            ),
            (
                text.replacen("\"measured\"", "\"mesured\"", 1).into_bytes(),
                "unknown variant `mesured`, expected one of",
            ),
        ];
        for (bytes, expected) in cases {
            let error = error_of(&bytes);
            assert!(error.starts_with(start) && error.contains(expected), "{error}\nlacks {expected}");
        }
    }

    #[test]
    fn a_file_that_is_cut_anywhere_is_called_cut_off() {
        let text = crate::report::json::reviewable(&sample::record()).unwrap();
        for end in (1..text.trim_end().len()).step_by(37) {
            let problem = files::parse_document::<Record>(&RECORD, &text.as_bytes()[..end]).unwrap_err();
            assert!(matches!(problem, files::Problem::Truncated { .. }), "cut at {end}: {problem}");
        }
    }

    #[test]
    fn what_is_no_file_or_too_large_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let missing = load(&dir.path().join("no.json")).unwrap_err().to_string();
        assert!(missing.contains("there is no such file; `attnbench run"), "{missing}");
        let directory = load(dir.path()).unwrap_err().to_string();
        assert!(directory.ends_with("this is a directory; name a file in it"), "{directory}");

        // A sparse file takes no space.
        let large = dir.path().join("large.json");
        fs::File::create(&large).unwrap().set_len(RECORD.max_bytes + 1).unwrap();
        let large = load(&large).unwrap_err().to_string();
        assert!(large.contains("larger than the limit of 536870912 bytes"), "{large}");
    }

    #[test]
    fn fields_of_later_minor_versions_are_ignored() {
        let mut value = serde_json::to_value(sample::record()).unwrap();
        value["novelty"] = serde_json::json!({"deep": [1]});
        value["run"]["novelty"] = serde_json::json!(null);
        let bytes = serde_json::to_vec(&value).unwrap();
        assert!(files::parse_document::<Record>(&RECORD, &bytes).unwrap() == sample::record());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_record_is_rescued_when_its_place_cannot_be_written() {
        let dir = tempfile::tempdir().unwrap();
        let record = sample::record();
        let nowhere = Path::new("/proc/nowhere/record.json");
        let Saved::Rescued { path, cause } = save_or_rescue_in(dir.path(), nowhere, &record).unwrap() else {
            panic!("/proc took a file")
        };
        assert!(cause.to_string().starts_with("writing record `/proc/nowhere/record.json`: the place is not writable"));
        assert_eq!(path.parent(), Some(dir.path()));
        assert!(load(&path).unwrap() == record, "the record changed");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);

        let full = save_or_rescue_in(dir.path(), Path::new("/dev/full"), &record).unwrap();
        let Saved::Rescued { cause, .. } = full else { panic!("a full disk took a file") };
        assert!(cause.to_string().contains("the disk is full"), "{cause}");

        let both = save_or_rescue_in(Path::new("/proc"), nowhere, &record).unwrap_err();
        assert_eq!(both.path, nowhere);
        assert!(matches!(save_or_rescue_in(dir.path(), &dir.path().join("r.json"), &record).unwrap(), Saved::AsAsked));
    }
}
