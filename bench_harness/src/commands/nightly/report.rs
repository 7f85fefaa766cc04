//! What a night leaves to read, beside its record.

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::files::write_atomically;
use crate::record::Record;
use crate::report::nightly::{Nightly, changes_text};
use crate::report::{Style, table};

/// Columns of reports in files.
const STYLE: Style = Style { width: 100, colour: false };

/// Writes the report of a night into its folder, and answers what to open. The one place to add formats.
pub(super) fn write(folder: &Path, record: &Record, night: &Nightly) -> anyhow::Result<PathBuf> {
    let cases: Vec<_> = record.cases.iter().collect();
    let text = format!("{}\n{}", table::record_table(record, &cases, STYLE), changes_text(night, STYLE));
    let path = folder.join("report.txt");
    write_atomically(&path, text.as_bytes()).with_context(|| format!("writing report `{}`", path.display()))?;
    Ok(path)
}
