//! Why a suite cannot be used: one clear error with its place and the way out.

use std::fmt;
use std::ops::Range;

/// Why a suite cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SuiteError {
    /// The file, as it was named.
    pub file: String,
    /// The line, from 1, where the error has one.
    pub line: Option<usize>,
    /// The matrix, where the error is inside one.
    pub matrix: Option<String>,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl fmt::Display for SuiteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "reading suite `{}`", self.file)?;
        if let Some(line) = self.line {
            write!(f, ", line {line}")?;
        }
        if let Some(matrix) = &self.matrix {
            write!(f, ", matrix `{matrix}`")?;
        }
        write!(f, ": {}", self.message)
    }
}

impl std::error::Error for SuiteError {}

/// A [`SuiteError`] before its place is turned into a file and a line.
#[derive(Debug, Clone)]
pub(super) struct Fault {
    /// Bytes of the file.
    pub(super) span: Option<Range<usize>>,
    /// The matrix.
    pub(super) matrix: Option<String>,
    /// What is wrong.
    pub(super) message: String,
}

impl Fault {
    /// A fault at these bytes.
    pub(super) fn at(span: Range<usize>, message: impl Into<String>) -> Self {
        Fault { span: Some(span), matrix: None, message: message.into() }
    }

    /// The same, inside a matrix.
    pub(super) fn in_matrix(mut self, name: &str) -> Self {
        self.matrix.get_or_insert_with(|| name.to_owned());
        self
    }

    /// With its place in the file.
    pub(super) fn place(self, file: &str, text: &str) -> SuiteError {
        let line = self.span.map(|span| line_of(text.as_bytes(), span.start));
        SuiteError { file: file.to_owned(), line, matrix: self.matrix, message: self.message }
    }
}

/// The line, from 1, that holds a byte.
pub(super) fn line_of(text: &[u8], byte: usize) -> usize {
    1 + text[..byte.min(text.len())].iter().filter(|&&byte| byte == b'\n').count()
}

/// Longest text of a file that an error repeats, in characters.
const QUOTE_CHARS: usize = 80;

/// A text of the file in back quotes, without control characters and no longer than a line.
pub(super) fn quote(text: &str) -> String {
    let mut quoted: String = text.chars().take(QUOTE_CHARS).flat_map(char::escape_debug).collect();
    if text.chars().nth(QUOTE_CHARS).is_some() {
        quoted.push_str("...");
    }
    format!("`{quoted}`")
}

/// Names in back quotes, in their own order: `a`, `b` or `c`.
pub(super) fn choices<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<String> = names.into_iter().map(|name| format!("`{name}`")).collect();
    match names.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => names.concat(),
    }
}

/// "; did you mean ...?" where one of the names is close, and the list of all of them.
pub(super) fn suggest<'a>(unknown: &str, names: impl IntoIterator<Item = &'a str> + Clone) -> String {
    /// Similarity (Jaro-Winkler) from which a typing mistake is likely.
    const CLOSE: f64 = 0.8;
    let unknown: String = unknown.chars().take(QUOTE_CHARS).collect();
    let closest = names
        .clone()
        .into_iter()
        .map(|name| (strsim::jaro_winkler(&unknown, name), name))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match closest {
        Some((likeness, name)) if likeness >= CLOSE => format!("; did you mean `{name}`? Valid: {}", choices(names)),
        _ => format!("; valid: {}", choices(names)),
    }
}
