//! The tables of a history, in the steps in which they came to be: SQL that SQLite and PostgreSQL both understand.
//!
//! A step that was published is never changed; a new one is added. A store knows how many it has taken.

/// Every step. Numbers are 64 bits wide and floating-point numbers double in both.
pub(super) const MIGRATIONS: &[&str] = &["
CREATE TABLE runs (
    id TEXT PRIMARY KEY,
    time TEXT NOT NULL,
    commit_hash TEXT,
    committed_at TEXT,
    branch TEXT,
    fingerprint TEXT NOT NULL
);
CREATE TABLE points (
    run TEXT NOT NULL REFERENCES runs(id),
    suite TEXT NOT NULL,
    case_name TEXT NOT NULL,
    metric TEXT NOT NULL,
    machine TEXT NOT NULL,
    better TEXT NOT NULL,
    value DOUBLE PRECISION NOT NULL,
    low DOUBLE PRECISION,
    high DOUBLE PRECISION,
    PRIMARY KEY (suite, case_name, metric, machine, run)
);
CREATE TABLE acceptances (
    case_name TEXT NOT NULL,
    metric TEXT NOT NULL,
    commit_hash TEXT NOT NULL,
    at_most DOUBLE PRECISION NOT NULL,
    reason TEXT NOT NULL,
    time TEXT NOT NULL
);
CREATE TABLE gates (
    id TEXT PRIMARY KEY,
    time TEXT NOT NULL,
    head TEXT,
    base TEXT,
    exit_code BIGINT NOT NULL,
    headline TEXT NOT NULL,
    overridden TEXT
);
"];

/// Why a store of a newer version is not touched.
pub(super) fn newer(found: usize) -> String {
    format!(
        "it has version {found}, this program knows versions up to {}; use the attnbench that wrote it or a newer one",
        MIGRATIONS.len()
    )
}
