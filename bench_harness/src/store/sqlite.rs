//! A history in one SQLite file.
//!
//! The write-ahead log lets readers read while somebody writes, and each push takes the write lock at its start and waits
//! for it: runners that push at once take turns, and nothing is lost.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, TransactionBehavior, params};

use super::history::{Acceptance, GateEntry, HistoryError, HistoryStore, RunSummary, SeriesSummary, StoredPoint};
use super::{migrations, sql};
use crate::history::point::{Run, SeriesKey};

/// How long a writer waits for its turn.
const PATIENCE: Duration = Duration::from_secs(60);
/// Marks a file as a history: the ASCII codes of `attn`.
const APPLICATION_ID: i64 = 0x6174_746e;

/// A history in a file.
pub struct SqliteStore {
    connection: Connection,
    path: String,
}

impl SqliteStore {
    /// Opens the file, and makes it where there is none.
    ///
    /// # Errors
    /// It is no history, of a newer version, or cannot be written.
    pub fn open(path: &Path) -> Result<SqliteStore, HistoryError> {
        let name = path.display().to_string();
        let failed = |cause: String| HistoryError { doing: "opening", store: name.clone(), cause };
        if path.is_dir() {
            return Err(failed("this is a directory; name a file in it, such as `history.db`".into()));
        }
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|error| failed(error.to_string()))?;
        }
        let mut connection = Connection::open(path).map_err(|error| failed(said(&error)))?;
        connection.busy_timeout(PATIENCE).map_err(|error| failed(said(&error)))?;
        let number = |query: &str| -> Result<i64, HistoryError> {
            connection.query_row(query, [], |row| row.get(0)).map_err(|error| failed(said(&error)))
        };
        // In this order: another process that makes the file now commits its tables and the id at once, so that whoever
        // sees the tables sees the id.
        let tables = number("SELECT COUNT(*) FROM sqlite_schema")?;
        let application = number("PRAGMA application_id")?;
        if application != APPLICATION_ID && tables > 0 {
            return Err(failed("this is a database of another program; name another file".into()));
        }
        let version = migrate(&mut connection).map_err(|error| failed(said(&error)))?;
        if version > migrations::MIGRATIONS.len() {
            return Err(failed(migrations::newer(version)));
        }
        Ok(SqliteStore { connection, path: name })
    }

    fn reading(&self) -> impl Fn(rusqlite::Error) -> HistoryError + use<> {
        let store = self.path.clone();
        move |error| HistoryError { doing: "reading", store: store.clone(), cause: said(&error) }
    }

    fn writing(&self) -> impl Fn(rusqlite::Error) -> HistoryError + use<> {
        let store = self.path.clone();
        move |error| HistoryError { doing: "writing", store: store.clone(), cause: said(&error) }
    }
}

/// Takes the steps that the file has not taken, and answers how many it has then.
fn migrate(connection: &mut Connection) -> rusqlite::Result<usize> {
    // Two processes may make one file at once: the log's mode is set under a lock, and the steps are counted under one.
    let mode: String = connection.query_row("PRAGMA journal_mode", [], |row| row.get(0))?;
    if mode != "wal" {
        set_wal(connection)?;
    }
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    let version = |connection: &Connection| -> rusqlite::Result<usize> {
        connection
            .query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0))
            .map(|v| usize::try_from(v).unwrap_or(0))
    };
    if version(connection)? >= migrations::MIGRATIONS.len() {
        return version(connection);
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let taken = version(&transaction)?;
    for step in migrations::MIGRATIONS.iter().skip(taken) {
        transaction.execute_batch(step)?;
    }
    let now = taken.max(migrations::MIGRATIONS.len());
    transaction.pragma_update(None, "user_version", i64::try_from(now).unwrap_or(i64::MAX))?;
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.commit()?;
    Ok(now)
}

/// Turns the write-ahead log on. Changing the mode does not wait for other processes by itself.
fn set_wal(connection: &Connection) -> rusqlite::Result<()> {
    const TRIES: u32 = 600;
    for attempt in 1.. {
        match connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get::<_, String>(0)) {
            Err(error) if attempt < TRIES && error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy) => {
                std::thread::sleep(PATIENCE / TRIES);
            }
            result => return result.map(drop),
        }
    }
    Ok(())
}

/// An error in words that say the way out.
fn said(error: &rusqlite::Error) -> String {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::NotADatabase) => "this is no SQLite file; name another".into(),
        Some(rusqlite::ErrorCode::DatabaseBusy) => {
            format!("another process kept it locked for {} s; try again", PATIENCE.as_secs())
        }
        _ => error.to_string(),
    }
}

impl HistoryStore for SqliteStore {
    fn push(&mut self, runs: &[Run]) -> Result<usize, HistoryError> {
        let writing = self.writing();
        let mut push = || -> rusqlite::Result<usize> {
            let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let mut new = 0;
            for run in runs {
                let fingerprint = serde_json::to_string(&run.fingerprint).expect("strings serialise");
                let added = transaction.prepare_cached(sql::INSERT_RUN)?.execute(params![
                    run.id,
                    run.time,
                    run.commit,
                    run.committed_at,
                    run.branch,
                    fingerprint
                ])?;
                if added == 0 {
                    continue;
                }
                new += 1;
                let mut insert = transaction.prepare_cached(sql::INSERT_POINT)?;
                for point in &run.points {
                    let key = &point.series;
                    insert.execute(params![
                        run.id,
                        key.suite,
                        key.case,
                        key.metric,
                        key.machine,
                        sql::better_name(point.better),
                        point.value,
                        point.low,
                        point.high
                    ])?;
                }
            }
            transaction.commit()?;
            Ok(new)
        };
        push().map_err(writing)
    }

    fn series(&mut self) -> Result<Vec<SeriesSummary>, HistoryError> {
        let read = || -> rusqlite::Result<Vec<SeriesSummary>> {
            self.connection
                .prepare(sql::SERIES)?
                .query_map([], |row| {
                    Ok(SeriesSummary {
                        key: SeriesKey {
                            suite: row.get(0)?,
                            case: row.get(1)?,
                            metric: row.get(2)?,
                            machine: row.get(3)?,
                        },
                        better: sql::better(&row.get::<_, String>(4)?),
                        points: row.get::<_, i64>(5)?.unsigned_abs(),
                    })
                })?
                .collect()
        };
        read().map_err(self.reading())
    }

    fn points(&mut self, key: &SeriesKey) -> Result<Vec<StoredPoint>, HistoryError> {
        let read = || -> rusqlite::Result<Vec<StoredPoint>> {
            self.connection
                .prepare_cached(sql::POINTS)?
                .query_map(params![key.suite, key.case, key.metric, key.machine], |row| {
                    Ok(StoredPoint {
                        run: row.get(0)?,
                        time: row.get(1)?,
                        commit: row.get(2)?,
                        value: row.get(3)?,
                        low: row.get(4)?,
                        high: row.get(5)?,
                    })
                })?
                .collect()
        };
        read().map_err(self.reading())
    }

    fn runs(&mut self, most: usize) -> Result<Vec<RunSummary>, HistoryError> {
        let read = || -> rusqlite::Result<Vec<RunSummary>> {
            self.connection
                .prepare(sql::RUNS)?
                .query_map([i64::try_from(most).unwrap_or(i64::MAX)], |row| {
                    Ok(RunSummary {
                        id: row.get(0)?,
                        time: row.get(1)?,
                        commit: row.get(2)?,
                        branch: row.get(3)?,
                        points: row.get::<_, i64>(4)?.unsigned_abs(),
                    })
                })?
                .collect()
        };
        read().map_err(self.reading())
    }

    fn accept(&mut self, acceptance: &Acceptance) -> Result<(), HistoryError> {
        let Acceptance { case, metric, commit, at_most, reason, time } = acceptance;
        self.connection
            .execute(sql::INSERT_ACCEPTANCE, params![case, metric, commit, at_most, reason, time])
            .map(drop)
            .map_err(self.writing())
    }

    fn acceptances(&mut self) -> Result<Vec<Acceptance>, HistoryError> {
        let read = || -> rusqlite::Result<Vec<Acceptance>> {
            self.connection
                .prepare(sql::ACCEPTANCES)?
                .query_map([], |row| {
                    Ok(Acceptance {
                        case: row.get(0)?,
                        metric: row.get(1)?,
                        commit: row.get(2)?,
                        at_most: row.get(3)?,
                        reason: row.get(4)?,
                        time: row.get(5)?,
                    })
                })?
                .collect()
        };
        read().map_err(self.reading())
    }

    fn push_gate(&mut self, gate: &GateEntry) -> Result<(), HistoryError> {
        let GateEntry { id, time, head, base, exit_code, headline, overridden } = gate;
        self.connection
            .execute(sql::INSERT_GATE, params![id, time, head, base, i64::from(*exit_code), headline, overridden])
            .map(drop)
            .map_err(self.writing())
    }

    fn gates(&mut self) -> Result<Vec<GateEntry>, HistoryError> {
        let read = || -> rusqlite::Result<Vec<GateEntry>> {
            self.connection
                .prepare(sql::GATES)?
                .query_map([], |row| {
                    Ok(GateEntry {
                        id: row.get(0)?,
                        time: row.get(1)?,
                        head: row.get(2)?,
                        base: row.get(3)?,
                        exit_code: row.get::<_, i64>(4)?.clamp(0, 255) as u8,
                        headline: row.get(5)?,
                        overridden: row.get(6)?,
                    })
                })?
                .collect()
        };
        read().map_err(self.reading())
    }
}
