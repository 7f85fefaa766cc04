//! CSV: one series, a run a row.

use super::{Context, ImportError, point, run};
use crate::history::csv::{Columns, read as rows};
use crate::history::point::Run;

pub(super) fn read(bytes: &[u8], context: &Context) -> Result<Vec<Run>, ImportError> {
    let columns = Columns { value: context.column.clone(), time: None, commit: None };
    let rows = rows(bytes, &columns)?;
    let series =
        |value| point(&context.suite, &context.column, &context.column, &context.machine, context.better, value);
    let runs = rows.into_iter().enumerate().filter_map(|(number, row)| {
        // Rows without times are in their order: numbers of equal length sort as they count.
        let time = row.time.unwrap_or_else(|| format!("{number:010}"));
        Some(run(time, row.commit.or_else(|| context.commit.clone()), None, vec![series(row.value?)]))
    });
    Ok(runs.collect())
}
