//! What every store of histories does, whether a file or a server.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::sqlite::SqliteStore;
use crate::history::point::{Run, SeriesKey};
use crate::metric::Better;

/// A store of runs over time. Each call is one transaction: it is there whole or not at all, whoever else writes.
pub trait HistoryStore {
    /// Adds runs; those that are there already, by their id, are left as they are. Answers how many were new.
    ///
    /// # Errors
    /// The store cannot be written.
    fn push(&mut self, runs: &[Run]) -> Result<usize, HistoryError>;

    /// All series, by their key.
    ///
    /// # Errors
    /// The store cannot be read.
    fn series(&mut self) -> Result<Vec<SeriesSummary>, HistoryError>;

    /// The points of a series: by the time of the commit where it is known, then by that of the run.
    ///
    /// # Errors
    /// The store cannot be read.
    fn points(&mut self, key: &SeriesKey) -> Result<Vec<StoredPoint>, HistoryError>;

    /// The latest runs, newest first.
    ///
    /// # Errors
    /// The store cannot be read.
    fn runs(&mut self, most: usize) -> Result<Vec<RunSummary>, HistoryError>;

    /// Adds an acceptance.
    ///
    /// # Errors
    /// The store cannot be written.
    fn accept(&mut self, acceptance: &Acceptance) -> Result<(), HistoryError>;

    /// All acceptances, oldest first.
    ///
    /// # Errors
    /// The store cannot be read.
    fn acceptances(&mut self) -> Result<Vec<Acceptance>, HistoryError>;

    /// Adds the outcome of a gate.
    ///
    /// # Errors
    /// The store cannot be written.
    fn push_gate(&mut self, gate: &GateEntry) -> Result<(), HistoryError>;

    /// All outcomes of gates, oldest first.
    ///
    /// # Errors
    /// The store cannot be read.
    fn gates(&mut self) -> Result<Vec<GateEntry>, HistoryError>;
}

/// A series in a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SeriesSummary {
    /// Which one.
    #[serde(flatten)]
    pub key: SeriesKey,
    /// Which direction is good.
    pub better: Better,
    /// Values that it has.
    pub points: u64,
}

/// A value of a series with its run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StoredPoint {
    /// The run's id.
    pub run: String,
    /// When it ran.
    pub time: String,
    /// What it measured.
    pub commit: Option<String>,
    /// The value.
    pub value: f64,
    /// Lower end of its interval.
    pub low: Option<f64>,
    /// Upper end of its interval.
    pub high: Option<f64>,
}

/// A run in a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RunSummary {
    /// Its id.
    pub id: String,
    /// When it ran.
    pub time: String,
    /// What it measured.
    pub commit: Option<String>,
    /// The branch.
    pub branch: Option<String>,
    /// Values that it has.
    pub points: u64,
}

/// A regression that somebody decided to live with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Acceptance {
    /// Glob on the case.
    pub case: String,
    /// The metric.
    pub metric: String,
    /// The commit of the change; its interval of commits must hold it. Any start of the hash will do.
    pub commit: String,
    /// Largest relative size that is accepted: 0.05 is 5 %.
    pub at_most: f64,
    /// Why.
    pub reason: String,
    /// When it was accepted, RFC 3339, UTC.
    pub time: String,
}

/// The outcome of a gate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GateEntry {
    /// Unique.
    pub id: String,
    /// When, RFC 3339, UTC.
    pub time: String,
    /// What was gated.
    pub head: Option<String>,
    /// What it was compared with.
    pub base: Option<String>,
    /// Its exit code.
    pub exit_code: u8,
    /// Its first line.
    pub headline: String,
    /// Why somebody merged in spite of it.
    pub overridden: Option<String>,
}

/// Why a store could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
#[error("{doing} history `{store}`: {cause}")]
pub struct HistoryError {
    /// `opening`, `reading`, `writing`.
    pub doing: &'static str,
    /// The path or URL, without a password.
    pub store: String,
    /// What went wrong, and the way out.
    pub cause: String,
}

/// Opens a store; a file that is not there is made.
///
/// # Errors
/// It is no store of histories, of a newer version, or cannot be reached.
pub fn open(place: &str) -> Result<Box<dyn HistoryStore>, HistoryError> {
    if place.starts_with("postgres://") || place.starts_with("postgresql://") {
        return Ok(Box::new(super::postgres::PostgresStore::open(place)?));
    }
    if let Some((scheme, _)) = place.split_once("://") {
        return Err(HistoryError {
            doing: "opening",
            store: place.to_owned(),
            cause: format!(
                "scheme `{scheme}` is not known; name a file, or a server as postgresql://USER@HOST/DATABASE"
            ),
        });
    }
    Ok(Box::new(SqliteStore::open(std::path::Path::new(place))?))
}

/// A store's place as it may be shown: without a password.
pub fn shown(place: &str) -> String {
    if place.contains("://") { super::postgres::without_password(place) } else { place.to_owned() }
}
