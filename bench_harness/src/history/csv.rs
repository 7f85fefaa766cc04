//! A series in a CSV file with a header: one column of values, and columns of times and commits where there are any.

use std::io::Read;

/// Most rows of a file: more are taken for a mistake.
const MAX_ROWS: usize = 10_000_000;

/// Which columns to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Columns {
    /// Of the values.
    pub value: String,
    /// Of the times; `time` is used where it exists, another must.
    pub time: Option<String>,
    /// Of the commits; `commit` is used where it exists, another must.
    pub commit: Option<String>,
}

/// A row of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The value; `None` where the field is empty or `NaN`.
    pub value: Option<f64>,
    /// The time, as it is written.
    pub time: Option<String>,
    /// The commit, as it is written.
    pub commit: Option<String>,
}

/// Why a file is no series.
#[derive(Debug, thiserror::Error)]
pub enum CsvError {
    /// There is no header, or nothing below it.
    #[error("the file has no rows below its header: a series is a header and one row a value, as in `time,value`")]
    Empty,
    /// A column is missing.
    #[error("there is no column `{wanted}`; the header has {found}")]
    NoColumn {
        /// What was asked for.
        wanted: String,
        /// What there is.
        found: String,
    },
    /// A name is in the header twice.
    #[error("column `{name}` is in the header {times} times; give each a name of its own")]
    Ambiguous {
        /// The name.
        name: String,
        /// How often.
        times: usize,
    },
    /// A value is no number.
    #[error("line {line}, column `{column}`: `{found}` is no finite number; leave a missing value empty")]
    NotANumber {
        /// From 1, the header included.
        line: u64,
        /// The column.
        column: String,
        /// The field.
        found: String,
    },
    /// A file without an end.
    #[error("there are more than {MAX_ROWS} rows; keep the latest")]
    TooLong,
    /// Unequal rows, text that is not UTF-8, or a file that cannot be read.
    #[error("{0}")]
    Broken(String),
}

/// Reads the rows of a file.
///
/// # Errors
/// [`CsvError`] for anything but a header that has the columns, and rows as long as it whose values are numbers.
pub fn read(source: impl Read, columns: &Columns) -> Result<Vec<Row>, CsvError> {
    let mut reader = ::csv::ReaderBuilder::new().trim(::csv::Trim::All).from_reader(source);
    let header = reader.headers().map_err(broken)?.clone();
    // Spreadsheets begin their files with a byte order mark.
    let names: Vec<&str> = header.iter().map(|name| name.trim_start_matches('\u{feff}')).collect();
    let value_at = find(&names, &columns.value)?.ok_or_else(|| missing(&names, &columns.value))?;
    let optional = |asked: &Option<String>, usual: &str| match asked {
        Some(name) => find(&names, name)?.ok_or_else(|| missing(&names, name)).map(Some),
        None => find(&names, usual),
    };
    let (time_at, commit_at) = (optional(&columns.time, "time")?, optional(&columns.commit, "commit")?);
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(broken)?;
        if rows.len() == MAX_ROWS {
            return Err(CsvError::TooLong);
        }
        let field = |at: usize| record.get(at).unwrap_or_default();
        let text = |at: Option<usize>| at.map(field).filter(|text| !text.is_empty()).map(str::to_owned);
        let value = match field(value_at) {
            "" => None,
            nan if nan.eq_ignore_ascii_case("nan") => None,
            number => Some(number.parse().ok().filter(|value: &f64| value.is_finite()).ok_or_else(|| {
                let line = record.position().map_or(0, ::csv::Position::line);
                CsvError::NotANumber { line, column: columns.value.clone(), found: shortened(number) }
            })?),
        };
        rows.push(Row { value, time: text(time_at), commit: text(commit_at) });
    }
    if rows.is_empty() { Err(CsvError::Empty) } else { Ok(rows) }
}

/// Where a column is, if it is there; its name must be the only one.
fn find(names: &[&str], wanted: &str) -> Result<Option<usize>, CsvError> {
    let mut places = names.iter().enumerate().filter(|(_, name)| **name == wanted).map(|(at, _)| at);
    let first = places.next();
    match places.count() {
        0 => Ok(first),
        more => Err(CsvError::Ambiguous { name: wanted.to_owned(), times: more + 1 }),
    }
}

fn missing(names: &[&str], wanted: &str) -> CsvError {
    let found = match names {
        [] | [""] => "no columns".to_owned(),
        _ => names.iter().take(20).map(|name| format!("`{}`", shortened(name))).collect::<Vec<_>>().join(", "),
    };
    CsvError::NoColumn { wanted: wanted.to_owned(), found }
}

fn broken(error: ::csv::Error) -> CsvError {
    let line = error.position().map(|position| format!("line {}: ", position.line())).unwrap_or_default();
    CsvError::Broken(match error.kind() {
        ::csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            format!("{line}{len} fields where the header has {expected_len}")
        }
        ::csv::ErrorKind::Utf8 { .. } => format!("{line}the text is not UTF-8"),
        _ => format!("{line}{error}"),
    })
}

/// A field for a message.
fn shortened(text: &str) -> String {
    const MOST: usize = 40;
    if text.chars().count() <= MOST { text.to_owned() } else { text.chars().take(MOST).chain("...".chars()).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(text: &[u8]) -> Result<Vec<Row>, String> {
        read(text, &Columns { value: "value".into(), time: None, commit: None }).map_err(|error| error.to_string())
    }

    #[test]
    fn values_times_and_commits() {
        let text = "\u{feff}time, value,commit\n2026-01-01,1.5,abc\n,,\n\"a,b\",NaN,d\n4,-2e3,\n";
        let read = rows(text.as_bytes()).unwrap();
        let values: Vec<Option<f64>> = read.iter().map(|row| row.value).collect();
        assert_eq!(values, [Some(1.5), None, None, Some(-2000.0)]);
        assert_eq!(read[0].time.as_deref(), Some("2026-01-01"));
        assert_eq!(read[0].commit.as_deref(), Some("abc"));
        assert_eq!((read[1].time.as_deref(), read[2].time.as_deref()), (None, Some("a,b")));
        assert_eq!(rows(b"value\r\n1\r\n2\r\n").unwrap().len(), 2);
    }

    #[test]
    fn every_broken_file_has_its_own_clear_error() {
        let error = |text: &[u8]| rows(text).unwrap_err();
        assert!(error(b"value\n").contains("no rows below its header"));
        assert!(error(b"").contains("no column `value`; the header has no columns"));
        assert!(error(b"time,latency\n1,2\n").contains("no column `value`; the header has `time`, `latency`"));
        assert!(error(b"value,value\n1,2\n").contains("in the header 2 times"));
        assert!(error(b"value\n1\nfast\n").contains("line 3, column `value`: `fast` is no finite number"));
        assert!(error(b"value\ninf\n").contains("`inf` is no finite number"));
        assert!(error(b"a,value\n1,2\n3\n").contains("line 3: 1 fields where the header has 2"));
        assert!(error(b"value\n\xff\n").contains("not UTF-8"));
        let columns = Columns { value: "value".into(), time: Some("when".into()), commit: None };
        assert!(read(&b"value\n1\n"[..], &columns).unwrap_err().to_string().contains("no column `when`"));
    }
}
