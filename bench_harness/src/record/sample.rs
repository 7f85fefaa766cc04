//! A small record with one case of each kind, for tests.

use std::collections::BTreeMap;

use attn_kernels::tensor::TensorName;
use attn_kernels::tolerance::ErrorReport;
use attn_kernels::work::Work;

use super::*;
use crate::case::{Case, Mode};

/// A case id of the grammar.
pub(crate) fn case_id(kernel: &str, keys: usize) -> String {
    format!("cpu/{kernel}/softmax/prefill/full+causal/f32/b1/h8:2/q{keys}/k{keys}/d64")
}

/// A case that was measured in two rounds around a time, in nanoseconds.
pub(crate) fn measured(kernel: &str, keys: usize, ns: f64) -> CaseResult {
    let round = |round: u32| {
        // Tenths of a nanosecond, so that a file keeps them exactly.
        let jitter = |i: u32| 1.0 + 0.001 * f64::from((i * 7 + round * 3) % 11);
        let device_ns: Vec<f64> = (0..20).map(|i| (ns * jitter(i) * 10.0).round() / 10.0).collect();
        CaseRound {
            round,
            order: round,
            disposition: Disposition::Measured,
            reason: None,
            wall_ns: device_ns.iter().map(|ns| ns + 500.0).collect(),
            sets: (0..20).map(|i| i % 4).collect(),
            device_ns,
            sample_flags: BTreeMap::new(),
            plan_ns: Some(12_345),
            compile_ns: None,
            cycles: Vec::new(),
            host_ns: Vec::new(),
            launches: Vec::new(),
            device: None,
            memory: Some(MemoryReport {
                tensor_bytes: 1 << 20,
                extra_peak_bytes: Some(3 << 20),
                rss_peak_bytes: Some(64 << 20),
                device_used_bytes: None,
            }),
            verification: vec![Verification {
                stage: "before".into(),
                set: 0,
                tensor: TensorName::O,
                rows: 64,
                error: ErrorReport {
                    max_abs: Some(3.5e-7),
                    max_abs_lp: 2.5e-7,
                    relative_l2: Some(1.25e-7),
                    worst_row_ratio: Some(0.25),
                    allowed_max_abs: 1.5e-6,
                    allowed_relative_l2: 1e-5,
                    pass: true,
                    worst: None,
                    reason: None,
                },
            }],
            telemetry: None,
        }
    };
    let case: Case = case_id(kernel, keys).parse().expect("the id is of the grammar");
    CaseResult {
        key: CaseKey { case_id: case.id(), mode: Mode::Cold, threads: 2 },
        matrix: "prefill".into(),
        settings: MeasureSettings::default(),
        disposition: Disposition::Measured,
        reason: None,
        shard: None,
        lengths_q: None,
        lengths_kv: None,
        multiplied_in: None,
        work: Work::of(&case.problem),
        flags: vec![],
        rounds: vec![round(0), round(1)],
    }
}

/// A case that came to something else.
pub(crate) fn failed(kernel: &str, keys: usize, disposition: Disposition, reason: &str) -> CaseResult {
    let mut case = measured(kernel, keys, 1.0);
    for round in &mut case.rounds {
        (round.disposition, round.reason) = (disposition, Some(reason.to_owned()));
        (round.device_ns, round.wall_ns, round.sets) = (vec![], vec![], vec![]);
        (round.memory, round.verification) = (None, vec![]);
    }
    CaseResult { disposition, reason: Some(reason.to_owned()), ..case }
}

/// A control.
fn control(name: &str, kind: ControlKind, work: u64, ns: f64) -> ControlResult {
    ControlResult {
        name: name.into(),
        kind,
        provider: "cpu".into(),
        dtype: None,
        mode: Mode::Cold,
        threads: 2,
        working_set_bytes: 1 << 30,
        work,
        rounds: vec![vec![ns, ns * 1.01, ns * 1.02]; 2],
    }
}

/// The record.
pub(crate) fn record() -> Record {
    Record {
        record_version: RECORD_VERSION,
        run: RunInfo {
            id: "20260102T030405-0123456789abcdef".into(),
            started_at: "2026-01-02T03:04:05Z".into(),
            finished_at: "2026-01-02T03:04:45Z".into(),
            command: vec!["attnbench".into(), "run".into(), "suites/quickstart.toml".into()],
            attnbench_version: "0.1.0".into(),
            suite: "quickstart".into(),
            suite_hash: "00".repeat(32),
            seed: u64::MAX,
            rounds_planned: 2,
            rounds_done: 2,
            complete: true,
            device_shared: false,
            time: TimeSpent {
                total_ns: 40_000_000_000,
                calls_ns: 20_000_000_000,
                flush_ns: 10_000_000_000,
                inputs_ns: 1_000_000_000,
                oracle_ns: 5_000_000_000,
                start_ns: 1_000_000_000,
                controls_ns: 2_000_000_000,
            },
            shard: None,
        },
        fingerprint: BTreeMap::from([("cpu_model".into(), "Example CPU 9000".into())]),
        provenance: BTreeMap::from([("os".into(), "Linux".into()), ("host".into(), "bench-1".into())]),
        git: Some(GitState {
            commit: "0123456789abcdef0123456789abcdef01234567".into(),
            branch: Some("main".into()),
            dirty: true,
            merge_base: None,
            committed_at: "2026-01-01T00:00:00Z".into(),
        }),
        controls: vec![
            control("copy", ControlKind::Copy, 2 << 30, 1e8),
            control("read", ControlKind::Read, 1 << 30, 5e7),
            control("fma/f32", ControlKind::Fma, 1_000_000_000, 1e7),
        ],
        cases: vec![
            measured("flash", 256, 1_234_567.8),
            measured("flash", 1024, 19_876_543.2),
            measured("naive", 1024, 45_678_901.2),
            failed("flash1", 1024, Disposition::Incorrect, "o: max |error| 0.12 at (0, 3, 17) is above 2.1e-6"),
            failed("naive", 65536, Disposition::OutOfMemory, "needs 137438953472 bytes of workspace"),
            failed("linear", 1024, Disposition::Unsupported, "softmax is not linear attention"),
        ],
    }
}
