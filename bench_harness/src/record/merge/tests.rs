use super::*;
use crate::record::sample;
use crate::suite::shard::Shard;

/// The sample record as the shard of that number: the others' cases are not measured.
fn shard(index: u32, count: u32) -> Named {
    let mut record = sample::record();
    record.run.id = format!("2026010{index}T030405Z-{index:08x}");
    record.run.started_at = format!("2026-01-0{index}T03:04:05Z");
    record.run.shard = Some(Shard { index, count });
    record.provenance.insert("host".into(), format!("bench-{index}"));
    for (position, case) in record.cases.iter_mut().enumerate() {
        let owner = position as u32 % count + 1;
        case.shard = Some(owner);
        if owner != index {
            case.disposition = Disposition::Skipped;
            case.reason = Some(format!("shard {owner}/{count} measures it"));
            case.rounds.clear();
        }
    }
    (format!("{index}.json"), record)
}

fn merged(shards: impl IntoIterator<Item = Named>) -> Result<Merged, MergeError> {
    merge(shards.into_iter().collect(), vec!["attnbench".into(), "merge".into()])
}

fn refusal(shards: impl IntoIterator<Item = Named>) -> String {
    merged(shards).expect_err("refused").to_string()
}

#[test]
fn all_shards_in_any_order_make_the_whole_record() {
    let whole = sample::record();
    let joined = merged([shard(2, 3), shard(3, 3), shard(1, 3)]).expect("merged");
    assert_eq!(joined, merged([shard(1, 3), shard(2, 3), shard(3, 3)]).expect("merged"));
    assert_eq!((joined.missing.len(), joined.count), (0, 3));
    let record = joined.record;
    assert!(record.run.complete && record.run.shard.is_none());
    let without_shard = record.cases.iter().map(|case| CaseResult { shard: None, ..case.clone() });
    assert_eq!(without_shard.collect::<Vec<_>>(), whole.cases);
    assert_eq!(record.provenance["host"], "bench-1; bench-2; bench-3");
    assert_eq!(record.run.time.total_ns, 3 * whole.run.time.total_ns);
    assert_eq!(record.controls[0].rounds.len(), 3 * whole.controls[0].rounds.len());
    assert_eq!(record.run.started_at, "2026-01-01T03:04:05Z");
    assert!(record.run.id.starts_with("20260101T030405Z-"), "{}", record.run.id);
}

#[test]
fn a_lost_shard_is_said_and_its_cases_keep_their_rows() {
    let joined = merged([shard(1, 3), shard(3, 3)]).expect("merged");
    assert_eq!(joined.missing, [2]);
    assert!(!joined.record.run.complete);
    let rows = &joined.record.cases;
    assert_eq!(rows.len(), sample::record().cases.len());
    for row in rows.iter().filter(|row| row.shard == Some(2)) {
        assert_eq!(row.reason.as_deref(), Some("shard 2/3 is missing"));
        assert_eq!(row.disposition, Disposition::Skipped);
    }
    assert_ne!(joined.record.run.id, merged([shard(1, 3), shard(2, 3), shard(3, 3)]).expect("merged").record.run.id);
}

#[test]
fn controls_of_more_work_keep_their_rates() {
    let (name, mut faster) = shard(2, 2);
    for control in &mut faster.controls {
        control.work *= 4;
        control.rounds.iter_mut().flatten().for_each(|ns| *ns *= 4.0);
    }
    let joined = merged([shard(1, 2), (name, faster)]).expect("merged").record;
    let control = &joined.controls[0];
    assert_eq!(control.rounds[0], control.rounds[control.rounds.len() / 2]);
}

#[test]
fn what_does_not_belong_together_is_refused_by_name() {
    assert!(refusal([]).contains("no record was given"));
    assert!(refusal([("whole.json".to_owned(), sample::record())]).contains("`whole.json`: it is no shard"));
    let twice = refusal([shard(1, 2), ("again.json".to_owned(), shard(1, 2).1)]);
    assert_eq!(twice, "merging `again.json`: shard 1/2 is already there as `1.json`; name each shard once");
    type Change = fn(&mut Record);
    let cases: [(&str, Change); 9] = [
        ("differs in `cpu_model` (`Example CPU 9000` against `Other`)", |record| {
            record.fingerprint.insert("cpu_model".into(), "Other".into());
        }),
        ("the suite differs (`other` against `quickstart`)", |record| record.run.suite = "other".into()),
        ("the suite file's hash differs", |record| record.run.suite_hash = "11".into()),
        ("the seed differs (`7` against", |record| record.run.seed = 7),
        ("the number of shards differs (`4` against `2`)", |record| {
            record.run.shard = Some(Shard { index: 2, count: 4 });
        }),
        ("the commit differs (`none` against", |record| record.git = None),
        ("the plans differ (5 cases against 6)", |record| drop(record.cases.pop())),
        ("has other settings", |record| record.cases[0].settings.rounds += 1),
        ("belongs to different shards", |record| record.cases[0].shard = Some(2)),
    ];
    for (said, change) in cases {
        let (name, mut other) = shard(2, 2);
        change(&mut other);
        let refused = refusal([shard(1, 2), (name, other)]);
        assert!(refused.contains(said) && refused.contains("`2.json`"), "{refused}");
    }
}

#[test]
fn shards_that_cannot_be_are_refused() {
    for hostile in [Shard { index: 0, count: 2 }, Shard { index: 3, count: 2 }, Shard { index: 1, count: u32::MAX }] {
        let (name, mut record) = shard(1, 2);
        record.run.shard = Some(hostile);
        assert!(refusal([(name, record)]).contains("it is no shard"), "{hostile}");
    }
    let (name, mut record) = shard(1, 2);
    record.cases[0].shard = Some(9);
    assert!(refusal([(name, record)]).contains("it is no shard"));
}
