//! Shards of one run -> one record.
//!
//! What must agree is checked first, and each refusal names what differs: times of different machines, suites or commits
//! in one record would look like one run's. A shard that is missing leaves its cases `skipped`: what the others measured
//! stays usable.

use std::collections::BTreeMap;

use super::{CaseResult, ControlResult, Disposition, Record, RunInfo, TimeSpent};
use crate::compare::baseline::{Difference, differences};
use crate::suite::shard::MAX_SHARDS;

/// A record with the name that messages call it by.
pub type Named = (String, Record);

/// Why records do not make one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    /// Nothing to merge.
    #[error("merging shards: no record was given")]
    NoRecord,
    /// A record that is whole, or claims what cannot be.
    #[error("merging `{name}`: it is no shard of a run; `attnbench run SUITE --shard 1/2` makes one")]
    NoShard {
        /// The record.
        name: String,
    },
    /// The same shard twice: its samples would count twice.
    #[error("merging `{name}`: shard {shard} is already there as `{first}`; name each shard once")]
    Duplicate {
        /// The record.
        name: String,
        /// Which shard.
        shard: String,
        /// The record that came first.
        first: String,
    },
    /// Times of different machines.
    #[error(
        "merging `{name}` with `{first}`: the fingerprint differs in {fields}; times of different machines cannot share \
         a record: measure these shards again on one kind of machine, or keep two runs"
    )]
    OtherFingerprint {
        /// The record.
        name: String,
        /// The first record.
        first: String,
        /// The fields, with both values.
        fields: String,
    },
    /// Parts of different runs.
    #[error("merging `{name}` with `{first}`: {what}; shards of one run have the same command line but for the number")]
    OtherRun {
        /// The record.
        name: String,
        /// The first record.
        first: String,
        /// What differs, with both values.
        what: String,
    },
}

/// A merged record and what it lacks.
#[derive(Clone, Debug, PartialEq)]
pub struct Merged {
    /// The record, with a row for every planned case.
    pub record: Record,
    /// Shards that were not there, from 1.
    pub missing: Vec<u32>,
    /// How many there should have been.
    pub count: u32,
}

/// Joins shards into the record that one run would have made; `command` is what the new record says made it.
///
/// # Errors
/// [`MergeError`], which names the record, what differs, and the way out.
pub fn merge(mut shards: Vec<Named>, command: Vec<String>) -> Result<Merged, MergeError> {
    for (name, record) in &shards {
        is_shard(record).then_some(()).ok_or_else(|| MergeError::NoShard { name: name.clone() })?;
    }
    let index = |record: &Record| record.run.shard.map_or(0, |shard| shard.index);
    shards.sort_by_key(|(_, record)| index(record));
    let (first, others) = shards.split_first().ok_or(MergeError::NoRecord)?;
    others.iter().try_for_each(|other| check(first, other))?;
    for pair in shards.windows(2) {
        let [(first, a), (name, b)] = pair else { continue };
        if index(a) == index(b) {
            let shard = a.run.shard.map(|shard| shard.to_string()).unwrap_or_default();
            return Err(MergeError::Duplicate { name: name.clone(), shard, first: first.clone() });
        }
    }
    let count = shards[0].1.run.shard.map_or(0, |shard| shard.count);
    let records: Vec<Record> = shards.into_iter().map(|(_, record)| record).collect();
    let missing: Vec<u32> = (1..=count).filter(|&shard| records.iter().all(|record| index(record) != shard)).collect();
    let record = Record {
        record_version: records[0].record_version,
        run: run_info(&records, command, missing.is_empty()),
        fingerprint: records[0].fingerprint.clone(),
        provenance: provenance(&records),
        git: records
            .iter()
            .find(|record| record.git.as_ref().is_some_and(|git| git.dirty))
            .unwrap_or(&records[0])
            .git
            .clone(),
        controls: controls(&records),
        cases: cases(&records, count),
    };
    Ok(Merged { record, missing, count })
}

/// Whether a record is a shard, and one that can be: records are anybody's.
fn is_shard(record: &Record) -> bool {
    let Some(shard) = record.run.shard else { return false };
    let is_one = |index: u32| (1..=shard.count).contains(&index);
    shard.count <= MAX_SHARDS && is_one(shard.index) && record.cases.iter().all(|case| case.shard.is_some_and(is_one))
}

/// Whether two shards are of one run.
fn check((first, a): &Named, (name, b): &Named) -> Result<(), MergeError> {
    let differing = differences(&a.fingerprint, &b.fingerprint);
    if !differing.is_empty() {
        let fields = differing.iter().map(Difference::to_string).collect::<Vec<_>>().join(", ");
        return Err(MergeError::OtherFingerprint { name: name.clone(), first: first.clone(), fields });
    }
    let commit = |record: &Record| record.git.as_ref().map_or("none".to_owned(), |git| git.commit.clone());
    let shards = |record: &Record| record.run.shard.map_or(0, |shard| shard.count).to_string();
    let facts: [(&str, [String; 2]); 6] = [
        ("suite", [a, b].map(|record| record.run.suite.clone())),
        ("suite file's hash", [a, b].map(|record| record.run.suite_hash.clone())),
        ("seed", [a, b].map(|record| record.run.seed.to_string())),
        ("number of shards", [a, b].map(shards)),
        ("commit", [a, b].map(commit)),
        ("version of attnbench", [a, b].map(|record| record.run.attnbench_version.clone())),
    ];
    let other = |what: String| MergeError::OtherRun { name: name.clone(), first: first.clone(), what };
    if let Some((what, [one, two])) = facts.iter().find(|(_, [one, two])| one != two) {
        return Err(other(format!("the {what} differs (`{two}` against `{one}`)")));
    }
    let plan = |case: &CaseResult| (case.key.clone(), case.matrix.clone(), case.settings.clone(), case.shard);
    if a.cases.len() != b.cases.len() {
        return Err(other(format!("the plans differ ({} cases against {})", b.cases.len(), a.cases.len())));
    }
    match a.cases.iter().zip(&b.cases).find(|(a, b)| plan(a) != plan(b)) {
        None => Ok(()),
        Some((a, b)) if a.key == b.key && a.shard != b.shard => {
            Err(other(format!("case `{}` belongs to different shards; name the same --shard-times for all", a.key)))
        }
        Some((a, b)) if a.key == b.key => Err(other(format!("case `{}` has other settings", a.key))),
        Some((a, b)) => Err(other(format!("the plans differ (case `{}` against `{}`)", b.key, a.key))),
    }
}

fn run_info(records: &[Record], command: Vec<String>, is_whole: bool) -> RunInfo {
    let first = &records[0].run;
    let mut hasher = blake3::Hasher::new();
    for record in records {
        hasher.update(&(record.run.id.len() as u64).to_le_bytes());
        hasher.update(record.run.id.as_bytes());
    }
    let runs = || records.iter().map(|record| &record.run);
    let started = runs().min_by_key(|run| &run.started_at).unwrap_or(first);
    // The time of the earliest shard, as in the ids of runs, and what tells these shards from others: merging the same
    // ones again gives the same run.
    let time = started.id.split('-').next().unwrap_or_default();
    RunInfo {
        id: format!("{time}-{}", &hasher.finalize().to_hex()[..16]),
        started_at: started.started_at.clone(),
        finished_at: runs().map(|run| &run.finished_at).max().unwrap_or(&first.finished_at).clone(),
        command,
        rounds_planned: runs().map(|run| run.rounds_planned).max().unwrap_or(0),
        rounds_done: runs().map(|run| run.rounds_done).max().unwrap_or(0),
        complete: is_whole && runs().all(|run| run.complete),
        device_shared: runs().any(|run| run.device_shared),
        time: runs().map(|run| run.time).fold(TimeSpent::default(), sum),
        shard: None,
        ..first.clone()
    }
}

fn sum(a: TimeSpent, b: TimeSpent) -> TimeSpent {
    TimeSpent {
        total_ns: a.total_ns.saturating_add(b.total_ns),
        calls_ns: a.calls_ns.saturating_add(b.calls_ns),
        flush_ns: a.flush_ns.saturating_add(b.flush_ns),
        inputs_ns: a.inputs_ns.saturating_add(b.inputs_ns),
        oracle_ns: a.oracle_ns.saturating_add(b.oracle_ns),
        start_ns: a.start_ns.saturating_add(b.start_ns),
        controls_ns: a.controls_ns.saturating_add(b.controls_ns),
    }
}

/// Every field; where machines differ, every value once, in the order of shards.
fn provenance(records: &[Record]) -> BTreeMap<String, String> {
    let mut values: BTreeMap<&String, Vec<&String>> = BTreeMap::new();
    for (field, value) in records.iter().flat_map(|record| &record.provenance) {
        let seen = values.entry(field).or_default();
        if !seen.contains(&value) {
            seen.push(value);
        }
    }
    let joined = |values: Vec<&String>| values.into_iter().map(String::as_str).collect::<Vec<_>>().join("; ");
    values.into_iter().map(|(field, values)| (field.clone(), joined(values))).collect()
}

/// Every control with the rounds of all shards. Shards whose samples did more work are scaled to the first one's, which
/// keeps their rates.
fn controls(records: &[Record]) -> Vec<ControlResult> {
    let is_same = |a: &ControlResult, b: &ControlResult| {
        let key = |c: &ControlResult| (c.kind, c.mode, c.threads, c.working_set_bytes, c.dtype);
        a.name == b.name && a.provider == b.provider && key(a) == key(b)
    };
    let mut merged: Vec<ControlResult> = Vec::new();
    for control in records.iter().flat_map(|record| &record.controls) {
        match merged.iter_mut().find(|seen| is_same(seen, control)) {
            Some(seen) if seen.work == 0 => *seen = control.clone(),
            Some(_) if control.work == 0 => {}
            Some(seen) => {
                let scale = seen.work as f64 / control.work as f64;
                seen.rounds.extend(control.rounds.iter().map(|ns| ns.iter().map(|ns| ns * scale).collect()));
            }
            None => merged.push(control.clone()),
        }
    }
    merged
}

/// The row of each case from the shard that measured it, in the plan's order.
fn cases(records: &[Record], count: u32) -> Vec<CaseResult> {
    let owner = |shard: Option<u32>| records.iter().find(|record| record.run.shard.map(|own| own.index) == shard);
    let row = |(position, planned): (usize, &CaseResult)| match owner(planned.shard) {
        Some(record) => record.cases[position].clone(),
        None => CaseResult {
            disposition: Disposition::Skipped,
            reason: Some(format!("shard {}/{count} is missing", planned.shard.unwrap_or(0))),
            ..planned.clone()
        },
    };
    records[0].cases.iter().enumerate().map(row).collect()
}

#[cfg(test)]
mod tests;
