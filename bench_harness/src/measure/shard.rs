//! A run of one shard: it measures its own cases, and its record has a row for each case of the whole plan, so that any
//! one shard tells what the others were to measure.

use super::builder::unreached;
use crate::metric::Metric;
use crate::metric::latency::LatencyMedian;
use crate::record::{CaseResult, Record};
use crate::suite::Suite;
use crate::suite::shard::{KnownLatencies, Shard, assign};

/// A shard and the rows of the whole plan.
pub struct Sharding {
    shard: Shard,
    rows: Vec<CaseResult>,
}

impl Sharding {
    /// Leaves the cases of this shard in the suite.
    pub fn of(suite: &mut Suite, shard: Shard, known: &KnownLatencies) -> Sharding {
        let shards = assign(&suite.cases, shard.count, known);
        let row = |(planned, &owner)| {
            let mut row = unreached(planned);
            row.shard = Some(owner);
            row.reason = Some(format!("shard {owner}/{} measures it", shard.count));
            row
        };
        let rows = suite.cases.iter().zip(&shards).map(row).collect();
        let mut owner = shards.iter();
        suite.cases.retain(|_| owner.next() == Some(&shard.index));
        Sharding { shard, rows }
    }

    /// Puts the rows of this shard's record among those of the whole plan.
    pub fn complete(self, record: &mut Record) {
        record.run.shard = Some(self.shard);
        let mut own = std::mem::take(&mut record.cases).into_iter();
        let mut next = own.next();
        for planned in self.rows {
            let seen = next.take_if(|seen| seen.key == planned.key);
            record.cases.push(match seen {
                Some(seen) => {
                    next = own.next();
                    CaseResult { shard: planned.shard, ..seen }
                }
                None => planned,
            });
        }
        debug_assert!(next.is_none(), "every case of the shard is planned");
    }
}

/// The latencies of an earlier record's cases, in nanoseconds.
pub fn known_latencies(record: &Record) -> KnownLatencies {
    let latency = |case: &CaseResult| Some((case.key.case_id.clone(), LatencyMedian.value(case, record)?.value));
    record.cases.iter().filter_map(latency).collect()
}
