//! A history on a PostgreSQL server, for a fleet of runners.
//!
//! The connection is not encrypted by this program: use a server on the same machine or private network, or a tunnel.

use postgres::{Client, Config, NoTls, Row};

use super::history::{Acceptance, GateEntry, HistoryError, HistoryStore, RunSummary, SeriesSummary, StoredPoint};
use super::{migrations, sql};
use crate::history::point::{Run, SeriesKey};

/// Of the lock under which tables are made and changed: the ASCII codes of `attnhist`.
const MIGRATION_LOCK: i64 = 0x6174_746e_6869_7374;
/// How long a server may take to answer a connection.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

/// A history on a server.
pub struct PostgresStore {
    client: Client,
    /// The URL without its password.
    name: String,
}

impl PostgresStore {
    /// Connects, and makes the tables where there are none.
    ///
    /// # Errors
    /// The URL is no such URL, the server does not answer, or its history is of a newer version.
    pub fn open(url: &str) -> Result<PostgresStore, HistoryError> {
        let name = without_password(url);
        let failed = |cause: String| HistoryError { doing: "opening", store: name.clone(), cause };
        let mut config: Config = url.parse().map_err(|error: postgres::Error| failed(said(&error)))?;
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(PATIENCE);
        }
        let mut client = config.connect(NoTls).map_err(|error| failed(said(&error)))?;
        let version = migrate(&mut client).map_err(|error| failed(said(&error)))?;
        if version > migrations::MIGRATIONS.len() {
            return Err(failed(migrations::newer(version)));
        }
        Ok(PostgresStore { client, name })
    }

    fn reading(&self) -> impl Fn(postgres::Error) -> HistoryError + use<> {
        let store = self.name.clone();
        move |error| HistoryError { doing: "reading", store: store.clone(), cause: said(&error) }
    }

    fn writing(&self) -> impl Fn(postgres::Error) -> HistoryError + use<> {
        let store = self.name.clone();
        move |error| HistoryError { doing: "writing", store: store.clone(), cause: said(&error) }
    }
}

/// The URL as it may be shown.
pub(super) fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let rest = rest.split('?').next().unwrap_or_default();
    match rest.rsplit_once('@') {
        Some((user, host)) => format!("{scheme}://{}@{host}", user.split(':').next().unwrap_or_default()),
        None => format!("{scheme}://{rest}"),
    }
}

/// An error with the server's words, which the error itself leaves to its cause.
fn said(error: &postgres::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) if !error.to_string().contains(&cause.to_string()) => format!("{error}: {cause}"),
        _ => error.to_string(),
    }
}

/// Takes the steps that the server has not taken, and answers how many it has then.
fn migrate(client: &mut Client) -> Result<usize, postgres::Error> {
    let mut transaction = client.transaction()?;
    transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&MIGRATION_LOCK])?;
    transaction.batch_execute("CREATE TABLE IF NOT EXISTS attnbench_migrations (step BIGINT PRIMARY KEY)")?;
    let taken: i64 = transaction.query_one("SELECT COUNT(*) FROM attnbench_migrations", &[])?.get(0);
    let taken = usize::try_from(taken).unwrap_or(0);
    for (step, text) in migrations::MIGRATIONS.iter().enumerate().skip(taken) {
        transaction.batch_execute(text)?;
        transaction.execute("INSERT INTO attnbench_migrations VALUES ($1)", &[&(step as i64)])?;
    }
    transaction.commit()?;
    Ok(taken.max(migrations::MIGRATIONS.len()))
}

impl HistoryStore for PostgresStore {
    fn push(&mut self, runs: &[Run]) -> Result<usize, HistoryError> {
        let writing = self.writing();
        let mut push = || -> Result<usize, postgres::Error> {
            let mut transaction = self.client.transaction()?;
            let insert_run = transaction.prepare(sql::INSERT_RUN)?;
            let insert_point = transaction.prepare(sql::INSERT_POINT)?;
            let mut new = 0;
            for run in runs {
                let fingerprint = serde_json::to_string(&run.fingerprint).expect("strings serialise");
                let added = transaction.execute(
                    &insert_run,
                    &[&run.id, &run.time, &run.commit, &run.committed_at, &run.branch, &fingerprint],
                )?;
                if added == 0 {
                    continue;
                }
                new += 1;
                for point in &run.points {
                    let key = &point.series;
                    transaction.execute(
                        &insert_point,
                        &[
                            &run.id,
                            &key.suite,
                            &key.case,
                            &key.metric,
                            &key.machine,
                            &sql::better_name(point.better),
                            &point.value,
                            &point.low,
                            &point.high,
                        ],
                    )?;
                }
            }
            transaction.commit()?;
            Ok(new)
        };
        push().map_err(writing)
    }

    fn series(&mut self) -> Result<Vec<SeriesSummary>, HistoryError> {
        let rows = self.client.query(sql::SERIES, &[]).map_err(self.reading())?;
        let summary = |row: &Row| SeriesSummary {
            key: SeriesKey { suite: row.get(0), case: row.get(1), metric: row.get(2), machine: row.get(3) },
            better: sql::better(row.get(4)),
            points: row.get::<_, i64>(5).unsigned_abs(),
        };
        Ok(rows.iter().map(summary).collect())
    }

    fn points(&mut self, key: &SeriesKey) -> Result<Vec<StoredPoint>, HistoryError> {
        let SeriesKey { suite, case, metric, machine } = key;
        let rows = self.client.query(sql::POINTS, &[suite, case, metric, machine]).map_err(self.reading())?;
        let point = |row: &Row| StoredPoint {
            run: row.get(0),
            time: row.get(1),
            commit: row.get(2),
            value: row.get(3),
            low: row.get(4),
            high: row.get(5),
        };
        Ok(rows.iter().map(point).collect())
    }

    fn runs(&mut self, most: usize) -> Result<Vec<RunSummary>, HistoryError> {
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let rows = self.client.query(sql::RUNS, &[&most]).map_err(self.reading())?;
        let summary = |row: &Row| RunSummary {
            id: row.get(0),
            time: row.get(1),
            commit: row.get(2),
            branch: row.get(3),
            points: row.get::<_, i64>(4).unsigned_abs(),
        };
        Ok(rows.iter().map(summary).collect())
    }

    fn accept(&mut self, acceptance: &Acceptance) -> Result<(), HistoryError> {
        let Acceptance { case, metric, commit, at_most, reason, time } = acceptance;
        self.client
            .execute(sql::INSERT_ACCEPTANCE, &[case, metric, commit, at_most, reason, time])
            .map(drop)
            .map_err(self.writing())
    }

    fn acceptances(&mut self) -> Result<Vec<Acceptance>, HistoryError> {
        let rows = self.client.query(sql::ACCEPTANCES, &[]).map_err(self.reading())?;
        let acceptance = |row: &Row| Acceptance {
            case: row.get(0),
            metric: row.get(1),
            commit: row.get(2),
            at_most: row.get(3),
            reason: row.get(4),
            time: row.get(5),
        };
        Ok(rows.iter().map(acceptance).collect())
    }

    fn push_gate(&mut self, gate: &GateEntry) -> Result<(), HistoryError> {
        let GateEntry { id, time, head, base, exit_code, headline, overridden } = gate;
        self.client
            .execute(sql::INSERT_GATE, &[id, time, head, base, &i64::from(*exit_code), headline, overridden])
            .map(drop)
            .map_err(self.writing())
    }

    fn gates(&mut self) -> Result<Vec<GateEntry>, HistoryError> {
        let rows = self.client.query(sql::GATES, &[]).map_err(self.reading())?;
        let entry = |row: &Row| GateEntry {
            id: row.get(0),
            time: row.get(1),
            head: row.get(2),
            base: row.get(3),
            exit_code: row.get::<_, i64>(4).clamp(0, 255) as u8,
            headline: row.get(5),
            overridden: row.get(6),
        };
        Ok(rows.iter().map(entry).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_not_shown() {
        assert_eq!(
            without_password("postgresql://me:secret@host:5432/db?password=secret"),
            "postgresql://me@host:5432/db"
        );
        assert_eq!(without_password("postgresql://me:a@b@host/db"), "postgresql://me@host/db");
        assert_eq!(without_password("postgres://host/db"), "postgres://host/db");
    }
}
