//! Suite files on disk: found by name, listed, read with limits.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::SuiteError;
use super::error::line_of;
use crate::case::check_name;

/// Where suites are looked for when none is named by its path.
pub const SUITES_DIR: &str = "suites";

/// Largest suite file, in bytes.
pub(super) const MAX_SUITE_BYTES: u64 = 1 << 20;

/// The file of a suite that is named by its path (`suites/ci.toml`) or its name (`ci`), which is looked for in `dirs`.
pub fn find(name: &str, dirs: &[PathBuf]) -> Result<PathBuf, SuiteError> {
    let path = Path::new(name);
    if path.is_file() || path.components().count() != 1 || path.extension().is_some_and(|extension| extension == "toml")
    {
        return Ok(path.to_owned());
    }
    if let Some(path) = dirs.iter().map(|dir| dir.join(format!("{name}.toml"))).find(|path| path.is_file()) {
        return Ok(path);
    }
    let mut known: Vec<String> = Vec::new();
    for path in dirs.iter().flat_map(|dir| list(dir).unwrap_or_default()) {
        known.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
    }
    let dirs: Vec<String> = dirs.iter().map(|dir| format!("`{}`", dir.display())).collect();
    let message = if known.is_empty() {
        format!("there is no such file, and no suite in {}; give a path to a .toml file", dirs.join(", "))
    } else {
        let hint = super::error::suggest(name, known.iter().map(String::as_str));
        format!("there is no such file, and no suite of that name in {}{hint}", dirs.join(", "))
    };
    Err(problem(name, message))
}

/// The suite files of a folder, by name.
pub fn list(dir: &Path) -> Result<Vec<PathBuf>, SuiteError> {
    let name = dir.display().to_string();
    let entries = std::fs::read_dir(dir).map_err(|error| problem(&name, format!("listing the folder: {error}")))?;
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| problem(&name, format!("listing the folder: {error}")))?.path();
        if path.extension().is_some_and(|extension| extension == "toml") && path.is_file() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// The suite's name and the file's bytes.
pub(super) fn read(path: &Path) -> Result<(String, Vec<u8>), SuiteError> {
    read_named(path, MAX_SUITE_BYTES).map_err(|reason| problem(&path.display().to_string(), reason))
}

/// The name that a file gives to what it holds, and its bytes: at most one more than `most_bytes`, which is one too many.
pub(crate) fn read_named(path: &Path, most_bytes: u64) -> Result<(String, Vec<u8>), String> {
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    check_name(&stem).map_err(|reason| format!("the file's {reason}; rename it"))?;
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(most_bytes + 1).read_to_end(&mut bytes))
        .map_err(|error| error.to_string())?;
    Ok((stem, bytes))
}

/// The bytes as text.
pub(super) fn text<'b>(file: &str, bytes: &'b [u8]) -> Result<&'b str, SuiteError> {
    if bytes.len() as u64 > MAX_SUITE_BYTES {
        return Err(problem(file, format!("the file is larger than {MAX_SUITE_BYTES} bytes; split the suite")));
    }
    std::str::from_utf8(bytes).map_err(|error| SuiteError {
        line: Some(line_of(bytes, error.valid_up_to())),
        ..problem(file, "the line is not UTF-8; suites are TOML files".to_owned())
    })
}

/// What the TOML parser says, on one line.
pub(super) fn syntax_error(file: &str, text: &str, error: &toml::de::Error) -> SuiteError {
    let message = error.message().split('\n').map(str::trim).collect::<Vec<_>>().join(", ");
    SuiteError {
        line: error.span().map(|span| line_of(text.as_bytes(), span.start)),
        ..problem(file, format!("no valid TOML: {message}"))
    }
}

fn problem(file: &str, message: String) -> SuiteError {
    SuiteError { file: file.to_owned(), line: None, matrix: None, message }
}
