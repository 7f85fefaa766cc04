//! What a night leaves to read, beside its record.

use std::path::{Path, PathBuf};
use std::slice;

use anyhow::Context;

use crate::commands::report::write_pages;
use crate::files::write_atomically;
use crate::history::search::FoundSeries;
use crate::record::Record;
use crate::report::html::Site;
use crate::report::nightly::{Nightly, changes_text};
use crate::report::{Style, table};

/// Columns of reports in files.
const STYLE: Style = Style { width: 100, colour: false };

/// Writes the reports of a night into its folder, text and pages, and answers what to open. The one place to add formats.
pub(super) fn write(
    folder: &Path,
    record: &Record,
    night: &Nightly,
    history: &[FoundSeries],
) -> anyhow::Result<PathBuf> {
    let cases: Vec<_> = record.cases.iter().collect();
    let text = format!("{}\n{}", table::record_table(record, &cases, STYLE), changes_text(night, STYLE));
    let path = folder.join("report.txt");
    write_atomically(&path, text.as_bytes()).with_context(|| format!("writing report `{}`", path.display()))?;
    write_pages(&folder.join("report"), &Site { runs: slice::from_ref(record), gate: None, devices: None, history })
}
