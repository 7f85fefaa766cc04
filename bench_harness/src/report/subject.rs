//! What a report is of: a judgement, or a run alone.

use crate::gate::outcome::GateReport;
use crate::record::Record;

/// What every format of [`super::FORMATS`] can show.
#[derive(Clone, Copy, Debug)]
pub enum Subject<'a> {
    /// Head against base, with verdicts.
    Gate(&'a GateReport),
    /// One run, which nothing is said of but what became of its cases.
    Run(&'a Record),
}
