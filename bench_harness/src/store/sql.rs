//! The statements that SQLite and PostgreSQL share; both number their parameters from `$1`.

pub(super) const INSERT_RUN: &str = "INSERT INTO runs (id, time, commit_hash, committed_at, branch, fingerprint)
    VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (id) DO NOTHING";

pub(super) const INSERT_POINT: &str =
    "INSERT INTO points (run, suite, case_name, metric, machine, better, value, low, high)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT DO NOTHING";

pub(super) const SERIES: &str = "SELECT suite, case_name, metric, machine, MIN(better), COUNT(*) FROM points
    GROUP BY suite, case_name, metric, machine ORDER BY suite, case_name, metric, machine";

pub(super) const POINTS: &str = "SELECT runs.id, runs.time, commit_hash, value, low, high
    FROM points JOIN runs ON runs.id = points.run
    WHERE suite = $1 AND case_name = $2 AND metric = $3 AND machine = $4
    ORDER BY COALESCE(committed_at, time), time, runs.id";

pub(super) const RUNS: &str = "SELECT id, time, commit_hash, branch,
    (SELECT COUNT(*) FROM points WHERE points.run = runs.id) FROM runs ORDER BY time DESC, id LIMIT $1";

pub(super) const INSERT_ACCEPTANCE: &str =
    "INSERT INTO acceptances (case_name, metric, commit_hash, at_most, reason, time) VALUES ($1, $2, $3, $4, $5, $6)";

pub(super) const ACCEPTANCES: &str =
    "SELECT case_name, metric, commit_hash, at_most, reason, time FROM acceptances ORDER BY time, case_name";

pub(super) const INSERT_GATE: &str = "INSERT INTO gates (id, time, head, base, exit_code, headline, overridden)
    VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (id) DO UPDATE SET overridden = excluded.overridden";

pub(super) const GATES: &str =
    "SELECT id, time, head, base, exit_code, headline, overridden FROM gates ORDER BY time, id";

/// A direction as it is stored.
pub(super) fn better_name(better: crate::metric::Better) -> &'static str {
    match better {
        crate::metric::Better::Lower => "lower",
        crate::metric::Better::Higher => "higher",
        crate::metric::Better::None => "none",
    }
}

/// A stored direction; what a newer version wrote has none.
pub(super) fn better(name: &str) -> crate::metric::Better {
    match name {
        "lower" => crate::metric::Better::Lower,
        "higher" => crate::metric::Better::Higher,
        _ => crate::metric::Better::None,
    }
}
