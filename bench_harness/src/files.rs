//! JSON documents on disk: read with limits, written whole or not at all.
//!
//! Records and baselines share this file so that both fail the same way: every error names the operation, the file and,
//! where there is one, the line or the field, and says what to do about it.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};

/// A kind of document: what it is called, how it is recognised, what this program can read of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DocumentKind {
    /// `record`, `baseline`.
    pub name: &'static str,
    /// The field that holds the format's major version and marks the kind.
    pub version_field: &'static str,
    /// Newest major version that this program reads.
    pub version: u32,
    /// Largest file that is read, in bytes: larger ones are taken for a mistake or an attack.
    pub max_bytes: u64,
    /// What makes such a document, for messages.
    pub made_by: &'static str,
}

/// Why a document could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{} {} `{}`: {problem}", .action.name(), .kind, .path.display())]
pub struct FileError {
    /// What was tried.
    pub action: Action,
    /// The kind of document.
    pub kind: &'static str,
    /// The file.
    pub path: PathBuf,
    /// What went wrong.
    #[source]
    pub problem: Problem,
}

/// What was tried with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Reading it.
    Read,
    /// Writing it.
    Write,
}

impl Action {
    const fn name(self) -> &'static str {
        match self {
            Action::Read => "reading",
            Action::Write => "writing",
        }
    }
}

/// What went wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// There is none.
    #[error("there is no such file; {made_by}")]
    Missing {
        /// What makes such a document.
        made_by: &'static str,
    },
    /// It is a directory.
    #[error("this is a directory; name a file in it")]
    Directory,
    /// It has no bytes, or only spaces.
    #[error("the file is empty: whatever wrote it did not finish; {made_by}")]
    Empty {
        /// What makes such a document.
        made_by: &'static str,
    },
    /// It is larger than any honest document.
    #[error("the file is larger than the limit of {max_bytes} bytes; split the run into smaller suites")]
    TooLarge {
        /// The limit.
        max_bytes: u64,
    },
    /// Its bytes are no text.
    #[error("byte {offset} is not UTF-8: this is no JSON text")]
    NotText {
        /// Number of the first bad byte, from 0.
        offset: usize,
    },
    /// It ends in the middle.
    #[error("the file ends in the middle, at line {line} column {column}: it was cut off; restore it or {made_by}")]
    Truncated {
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
        /// What makes such a document.
        made_by: &'static str,
    },
    /// It is no JSON.
    #[error("line {line} column {column} is not valid JSON: {cause}")]
    NotJson {
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
        /// The parser's words.
        cause: String,
    },
    /// It is JSON of another kind.
    #[error("this is {found}, not an attnbench {expected} (which has a field `{version_field}`); {made_by}")]
    WrongKind {
        /// What it seems to be.
        found: &'static str,
        /// What was wanted.
        expected: &'static str,
        /// The field that marks the kind.
        version_field: &'static str,
        /// What makes such a document.
        made_by: &'static str,
    },
    /// A newer program wrote it.
    #[error(
        "it has format version {found}, and this attnbench reads versions up to {supported}; use a newer attnbench"
    )]
    NewerVersion {
        /// The file's version.
        found: u64,
        /// The newest that is read.
        supported: u32,
    },
    /// A field does not hold what it should.
    #[error("field `{field}` at line {line} column {column}: {cause}")]
    Field {
        /// Its path, as `cases[3].rounds[0].device_ns[7]`.
        field: String,
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
        /// What is wrong with it.
        cause: String,
    },
    /// The place cannot be written to.
    #[error("the place is not writable ({0}); choose another path or make the directory writable")]
    NotWritable(#[source] io::Error),
    /// The disk is full.
    #[error("the disk is full ({0}); free some space or choose another disk")]
    DiskFull(#[source] io::Error),
    /// The value has no JSON form.
    #[error("it has no JSON form: {0}")]
    NoJson(#[source] serde_json::Error),
    /// Anything else that the system says.
    #[error("{0}")]
    System(#[source] io::Error),
}

impl Problem {
    /// What the system's error means for somebody who wanted to write.
    fn of_writing(error: io::Error) -> Problem {
        use io::ErrorKind::*;
        match error.kind() {
            StorageFull | QuotaExceeded => Problem::DiskFull(error),
            PermissionDenied | ReadOnlyFilesystem | NotADirectory | NotFound => Problem::NotWritable(error),
            IsADirectory => Problem::Directory,
            _ => Problem::System(error),
        }
    }
}

/// Reads a document of a kind.
///
/// # Errors
/// [`FileError`] for everything that is not a whole document of this kind and of a version that is understood. Fields
/// that are not known are ignored.
pub fn read_document<T: DeserializeOwned>(kind: &DocumentKind, path: &Path) -> Result<T, FileError> {
    let fail = |problem| FileError { action: Action::Read, kind: kind.name, path: path.to_owned(), problem };
    let bytes = read_limited(path, kind.max_bytes).map_err(|problem| {
        fail(match problem {
            Problem::Missing { .. } => Problem::Missing { made_by: kind.made_by },
            other => other,
        })
    })?;
    parse_document(kind, &bytes).map_err(fail)
}

/// Parses the bytes of a document of a kind: [`read_document`] without the file.
pub fn parse_document<T: DeserializeOwned>(kind: &DocumentKind, bytes: &[u8]) -> Result<T, Problem> {
    let text = std::str::from_utf8(bytes).map_err(|error| Problem::NotText { offset: error.valid_up_to() })?;
    if text.trim().is_empty() {
        return Err(Problem::Empty { made_by: kind.made_by });
    }
    check_head(kind, text)?;

    let mut reader = serde_json::Deserializer::from_str(text);
    serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let field = error.path().to_string();
        let inner = error.into_inner();
        Problem::Field { field, line: inner.line(), column: inner.column(), cause: words_of(&inner) }
    })
}

/// Checks syntax, kind and version before any field is looked at, so that a document of a newer version is not reported
/// as one with a broken field.
fn check_head(kind: &DocumentKind, text: &str) -> Result<(), Problem> {
    let wrong_kind = |found| Problem::WrongKind {
        found,
        expected: kind.name,
        version_field: kind.version_field,
        made_by: kind.made_by,
    };
    serde_json::from_str::<IgnoredAny>(text).map_err(|error| match error.is_eof() || is_at_end(text, &error) {
        true => Problem::Truncated { line: error.line(), column: error.column(), made_by: kind.made_by },
        false => Problem::NotJson { line: error.line(), column: error.column(), cause: words_of(&error) },
    })?;
    let Ok(Head(versions)) = serde_json::from_str::<Head>(text) else {
        return Err(wrong_kind("JSON, but no object"));
    };
    match versions.iter().find(|(name, _)| name == kind.version_field) {
        Some((_, Some(found))) if *found > u64::from(kind.version) => {
            Err(Problem::NewerVersion { found: *found, supported: kind.version })
        }
        // A version that is no number is the business of the field checks, which name its line.
        Some(_) => Ok(()),
        None => Err(match versions.first().map(|(name, _)| name.as_str()) {
            Some("record_version") => wrong_kind("a record"),
            Some("baseline_version") => wrong_kind("a baseline"),
            _ => wrong_kind("some other JSON object"),
        }),
    }
}

/// Whether the parser stumbled over the last byte, as it does where a text was cut off inside a number.
fn is_at_end(text: &str, error: &serde_json::Error) -> bool {
    let (lines, last) = text.split('\n').fold((0, ""), |(lines, _), line| (lines + 1, line));
    error.line() == lines && error.column() >= last.len() && !text.trim_end().ends_with('}')
}

/// The top-level fields whose names end in `_version`, with their values where they are numbers; nothing else is kept.
struct Head(Vec<(String, Option<u64>)>);

impl<'de> serde::Deserialize<'de> for Head {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Head;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Head, A::Error> {
                let mut versions = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name.ends_with("_version") {
                        versions.push((name, map.next_value::<serde_json::Value>()?.as_u64()));
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(Head(versions))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

/// serde_json's message without its position, which our messages give themselves.
fn words_of(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rfind(" at line ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

/// The bytes of a regular file, a pipe or a device, up to a limit.
fn read_limited(path: &Path, max_bytes: u64) -> Result<Vec<u8>, Problem> {
    let file = File::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Problem::Missing { made_by: "" },
        io::ErrorKind::IsADirectory => Problem::Directory,
        _ => Problem::System(error),
    })?;
    let metadata = file.metadata().map_err(Problem::System)?;
    if metadata.is_dir() {
        return Err(Problem::Directory);
    }
    if metadata.len() > max_bytes {
        return Err(Problem::TooLarge { max_bytes });
    }
    let mut bytes = Vec::with_capacity(metadata.len() as usize);
    file.take(max_bytes + 1).read_to_end(&mut bytes).map_err(Problem::System)?;
    if bytes.len() as u64 > max_bytes {
        return Err(Problem::TooLarge { max_bytes });
    }
    Ok(bytes)
}

/// Writes a document: missing directories are made, and the old file stays until the new one is whole and on disk.
///
/// # Errors
/// [`FileError`]; the old file is then untouched, and no temporary file is left.
pub fn write_document<T: Serialize>(kind: &DocumentKind, path: &Path, document: &T) -> Result<(), FileError> {
    let fail = |problem| FileError { action: Action::Write, kind: kind.name, path: path.to_owned(), problem };
    let text = crate::report::json::reviewable(document).map_err(|error| fail(Problem::NoJson(error)))?;
    write_atomically(path, text.as_bytes()).map_err(|error| fail(Problem::of_writing(error)))
}

/// Writes bytes to a temporary name in the same directory, syncs them, renames them over the path and syncs the
/// directory. What is no regular file (`/dev/stdout`, a pipe) is written to in place, since renaming would replace it.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace(path, |file| file.write_all(bytes))
}

/// The file that a path means. A symbolic link stays one: the file that it points to is replaced, or made.
fn resolve(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| match fs::read_link(path) {
        Ok(target) => path.parent().unwrap_or(Path::new("")).join(target),
        Err(_) => path.to_owned(),
    })
}

/// [`write_atomically`] with the writing passed in, so that tests can make it fail half-way.
fn replace(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let path = resolve(path);
    if let Ok(metadata) = fs::metadata(&path) {
        if metadata.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        if !metadata.is_file() {
            return write(&mut File::options().write(true).open(&path)?);
        }
    }
    if path.file_name().is_none() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the path names no file"));
    }
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(directory)?;

    let mut builder = tempfile::Builder::new();
    builder.prefix(".attnbench-").suffix(".tmp");
    #[cfg(unix)]
    {
        // Like any file that a program makes: readable by all, less the umask. tempfile's own choice is 0600.
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    let mut temporary = builder.tempfile_in(directory)?;
    write(temporary.as_file_mut())?;
    temporary.as_file().sync_all()?;
    temporary.persist(&path).map_err(|error| error.error)?;
    // The rename itself is durable only once the directory is.
    if let Ok(directory) = File::open(directory) {
        let _ = directory.sync_all();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        write_atomically(&path, b"old").unwrap();
        let error = replace(&path, |file| {
            file.write_all(b"ne")?;
            Err(io::ErrorKind::StorageFull.into())
        })
        .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn links_stay_links_and_devices_stay_devices() {
        let dir = tempfile::tempdir().unwrap();
        let (target, link) = (dir.path().join("target"), dir.path().join("link"));
        fs::write(&target, "old").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        write_atomically(&link, b"new").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(&target).unwrap(), b"new");

        write_atomically(Path::new("/dev/null"), b"gone").unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_and_an_unwritable_place_are_told_apart() {
        let full = Problem::of_writing(write_atomically(Path::new("/dev/full"), b"x").unwrap_err());
        assert!(matches!(full, Problem::DiskFull(_)), "{full}");
        let place = Problem::of_writing(write_atomically(Path::new("/proc/nowhere/x.json"), b"x").unwrap_err());
        assert!(matches!(place, Problem::NotWritable(_)), "{place}");
        let directory = Problem::of_writing(write_atomically(Path::new("/tmp"), b"x").unwrap_err());
        assert!(matches!(directory, Problem::Directory), "{directory}");
    }

    #[cfg(unix)]
    #[test]
    fn files_are_readable_by_others_as_the_umask_allows() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let (ours, plain) = (dir.path().join("ours"), dir.path().join("plain"));
        write_atomically(&ours, b"x").unwrap();
        fs::write(&plain, "x").unwrap();
        let mode = |path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&ours), mode(&plain));
    }
}
