//! What is measured for a scenario: each kind of attention among the candidates, one layer, at a few lengths.

use attn_kernels::cpu::KERNELS;
use attn_kernels::problem::{AttentionProblem, Dtype, Lengths, Mechanism, Phase};

use super::Scenario;
use super::curve::{Curve, Point};
use crate::case::{Case, Mode};
use crate::metric::Metric;
use crate::metric::latency::LatencyMedian;
use crate::record::Record;
use crate::suite::presets::LayerGroup;
use crate::suite::{MeasureSettings, PlannedCase, Suite};

/// Cache lengths at which decode is measured, on any machine.
const DECODE_LENGTHS: [u64; 2] = [1024, 4096];
/// One more where the machine is the scenario's.
const LONG_DECODE: u64 = 16_384;
/// Prompt lengths.
const PREFILL_LENGTHS: [u64; 1] = [256];
/// One more where the machine is the scenario's.
const LONG_PREFILL: u64 = 1024;
/// Kernels in the order of preference: the specialised before the general.
const PREFERRED: [&str; 6] = ["split_kv", "mla", "linear", "flash", "block_sparse", "naive"];

/// The part of a model that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// One new token over a cache.
    Decode,
    /// A prompt.
    Prefill,
}

/// One layer's problem of a group.
pub fn problem(group: &LayerGroup, part: Part, length: u64) -> AttentionProblem {
    let (phase, queries) = match part {
        Part::Decode => (Phase::Decode, 1),
        Part::Prefill => (Phase::Prefill, length as usize),
    };
    let mut problem = AttentionProblem::softmax(phase, Dtype::F16, 1, (1, 1), (queries, length as usize), 1);
    group.apply(&mut problem);
    problem.causal = true;
    problem
}

/// The case that measures it, where a kernel here computes it.
fn case(group: &LayerGroup, part: Part, length: u64) -> Option<Case> {
    let mut problem = problem(group, part, length);
    if problem.validate().is_err() {
        return None;
    }
    let fits = |problem: &AttentionProblem| {
        PREFERRED.into_iter().find(|name| {
            let kernel = KERNELS.iter().find(|kernel| kernel.name() == *name);
            kernel.is_some_and(|kernel| kernel.supports(problem).is_ok())
        })
    };
    let kernel = fits(&problem).or_else(|| {
        (problem.dtype, problem.dtype_kv) = (Dtype::F32, Dtype::F32);
        fits(&problem)
    })?;
    Some(Case { provider: "cpu".to_owned(), kernel: kernel.to_owned(), problem })
}

/// Everything that a scenario needs measured, each case once.
pub fn suite(scenario: &Scenario, threads: usize) -> Suite {
    let is_here = scenario.device.sheet.is_none();
    let settings = MeasureSettings {
        mode: Mode::Cold,
        rounds: 2,
        min_samples: 3,
        max_samples: 30,
        budget_ms: 100,
        target_ci: 0.02,
        oracle_flops: 5_000_000,
        ..MeasureSettings::default()
    };
    let mut cases: Vec<PlannedCase> = Vec::new();
    for group in kinds(scenario) {
        for part in [Part::Decode, Part::Prefill] {
            for length in lengths(part, is_here) {
                let Some(case) = case(&group, part, length) else { continue };
                let matrix = if part == Part::Decode { "decode" } else { "prefill" }.to_owned();
                let planned = PlannedCase { case, matrix, threads, settings: settings.clone(), slowdown: 0.0 };
                if cases.iter().all(|known| known.key() != planned.key()) {
                    cases.push(planned);
                }
            }
        }
    }
    let names: Vec<String> = cases.iter().map(|case| case.key().to_string()).collect();
    Suite {
        name: format!("advise-{}", scenario.name),
        description: "One layer of each candidate's attention at a few lengths".to_owned(),
        hash: blake3::hash(names.join("\n").as_bytes()).to_hex().to_string(),
        seed: 42,
        matrices: Vec::new(),
        cases,
    }
}

fn lengths(part: Part, is_here: bool) -> Vec<u64> {
    let (lengths, long) = match part {
        Part::Decode => (DECODE_LENGTHS.to_vec(), LONG_DECODE),
        Part::Prefill => (PREFILL_LENGTHS.to_vec(), LONG_PREFILL),
    };
    lengths.into_iter().chain(is_here.then_some(long)).collect()
}

/// The different kinds of layers among the candidates, one layer each.
pub fn kinds(scenario: &Scenario) -> Vec<LayerGroup> {
    let mut kinds: Vec<LayerGroup> = Vec::new();
    for group in scenario.designs.iter().flat_map(|design| &design.groups) {
        let one = LayerGroup { count: 1, ..*group };
        if !kinds.contains(&one) {
            kinds.push(one);
        }
    }
    kinds
}

/// The measured curve of one layer of a group; empty where the record has nothing of it.
pub fn curve(record: Option<&Record>, group: &LayerGroup, part: Part) -> Curve {
    let Some(record) = record else { return Curve::default() };
    let points = record.cases.iter().filter_map(|result| {
        let case: Case = result.key.case_id.parse().ok()?;
        let Lengths::Same(length) = case.problem.seqlen_kv else { return None };
        let mut own = problem(group, part, length as u64);
        // A kernel without f16 measured in f32; a GPU is another provider.
        (own.dtype, own.dtype_kv) = (case.problem.dtype, case.problem.dtype_kv);
        let is_it = own.normalise() == case.problem;
        let ns = is_it.then(|| LatencyMedian.value(result, record))??.value;
        Some(Point { length: length as u64, ns, case_id: result.key.case_id.clone() })
    });
    Curve::new(points.collect())
}

/// Whether a group's attention grows no further than this many tokens back.
pub fn is_recurrent(group: &LayerGroup) -> bool {
    matches!(group.mechanism, Mechanism::Linear { .. })
}
