//! A design held against every need of a scenario.

use serde::Serialize;

use super::design::{Change, Design, Machinery};
use super::latency::{Rates, Time, first_token, step};
use super::probe::precision::Precision;
use super::probe::{Limit, Notebook, Probe, ProbeFinding, findings};
use super::scenario::{Scenario, Workload};
use crate::kv::capacity::{largest_batch, largest_context};
use crate::kv::{Context, Element};
use crate::record::Record;

/// What a design comes to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Assessment {
    /// The design's name.
    pub design: String,
    /// What it is.
    pub summary: String,
    /// How its cache is stored.
    pub dtype: Element,
    /// What it takes to get it.
    pub change: Change,
    /// What a server needs for it.
    pub machinery: Machinery,
    /// Share of layers that see every token with softmax attention.
    pub full_share: f64,
    /// Bytes a token while every window has room.
    pub token_bytes: u64,
    /// Bytes of all planned sequences at their longest; None where they exceed 64 bits.
    pub planned_bytes: Option<u64>,
    /// The same at their middle.
    pub middle_bytes: Option<u64>,
    /// Bytes for caches.
    pub available_bytes: u64,
    /// The longest context that one sequence alone can have.
    pub largest_context: Context,
    /// One step of decode with everything running at its longest.
    pub step: Time,
    /// The same at the middle of every workload's contexts.
    pub step_middle: Time,
    /// By workload.
    pub workloads: Vec<WorkloadResult>,
    /// What the probes found.
    pub probes: Vec<ProbeFinding>,
    /// The least factor between what a limit allows and what the design takes, of memory and times.
    pub headroom: f64,
    /// Which limit that is.
    pub tightest: String,
    /// Needs that it does not meet.
    pub failures: Vec<Failure>,
}

/// What a workload gets.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WorkloadResult {
    /// The workload.
    pub name: String,
    /// Sequences of its longest context that would fit alone.
    pub largest_batch: u64,
    /// Tokens a second of all its sequences, at the longest contexts.
    pub tokens_per_s: f64,
    /// The first token of a turn, with the device for itself.
    pub first_token: Time,
    /// The same while others run, in seconds: its work cut into chunks, one a step, so small that every step stays within
    /// the strictest target of a token. Alone on the device it is the time above.
    pub first_token_s: f64,
}

/// A need that is not met.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Failure {
    /// The need and the number that shows it, in a sentence.
    pub text: String,
    /// Where the number is from.
    pub from: String,
    /// Whether it is about what the design can recall or compute, and not about its cost.
    pub is_quality: bool,
}

impl Assessment {
    /// A step, in milliseconds.
    pub fn step_ms(&self) -> f64 {
        self.step.ns() * 1e-6
    }

    /// Whether it does all that is needed.
    pub fn is_fit(&self) -> bool {
        self.failures.is_empty()
    }

    /// Design and storage type: `gqa:8 in fp8`.
    pub fn name(&self) -> String {
        format!("{} in {}", self.design, self.dtype)
    }
}

/// Probes a design once: they do not depend on anything that is measured.
pub fn assess(
    design: &Design,
    scenario: &Scenario,
    record: Option<&Record>,
    rates: &Rates,
    probes: Vec<ProbeFinding>,
) -> Assessment {
    let shape = design.shape();
    let available_bytes = scenario.device.budget.available_bytes().unwrap_or(0);
    let planned = |context: &dyn Fn(&Workload) -> u64| {
        scenario.workloads.iter().try_fold(0u64, |sum, workload| {
            let bytes = shape.batch_bytes(design.element, context(workload), workload.concurrency).ok()?;
            sum.checked_add(bytes)
        })
    };
    let (longest, middle) = (|workload: &Workload| workload.context_max, Workload::context_middle);
    let planned_bytes = planned(&longest);
    let step_longest = step(design, scenario, record, rates, longest);
    let workloads: Vec<WorkloadResult> = scenario
        .workloads
        .iter()
        .map(|workload| {
            let alone = first_token(design, scenario, workload, record, rates);
            WorkloadResult {
                name: workload.name.clone(),
                largest_batch: largest_batch(&shape, design.element, workload.context_max, available_bytes),
                tokens_per_s: workload.concurrency as f64 * 1e9 / step_longest.ns(),
                first_token_s: in_chunks(scenario, step_longest.ns(), alone.ns()),
                first_token: alone,
            }
        })
        .collect();
    let mut assessment = Assessment {
        design: design.name.clone(),
        summary: design.summary.clone(),
        dtype: design.element,
        change: design.change,
        machinery: design.machinery(),
        full_share: design.full_share(),
        token_bytes: shape.token_bytes(design.element).unwrap_or(u64::MAX),
        planned_bytes,
        middle_bytes: planned(&middle),
        available_bytes,
        largest_context: largest_context(&shape, design.element, 1, available_bytes),
        step: step_longest,
        step_middle: step(design, scenario, record, rates, middle),
        workloads,
        probes,
        headroom: f64::INFINITY,
        tightest: String::new(),
        failures: Vec::new(),
    };
    hold_against_limits(&mut assessment, scenario);
    assessment
}

/// Seconds until a first token whose work alone takes `alone_ns`, between steps of `step_ns`.
fn in_chunks(scenario: &Scenario, step_ns: f64, alone_ns: f64) -> f64 {
    let sequences: u64 = scenario.workloads.iter().map(|workload| workload.concurrency).sum();
    let target_ns = 1e6 * strictest_ms(scenario);
    // Where a step is too long by itself, that is the failure, and chunks change nothing.
    if sequences <= 1 || step_ns >= target_ns {
        return 1e-9 * alone_ns;
    }
    1e-9 * target_ns * (alone_ns / (target_ns - step_ns)).ceil()
}

/// The strictest target of a token, in milliseconds.
pub fn strictest_ms(scenario: &Scenario) -> f64 {
    scenario.workloads.iter().map(|workload| workload.time_per_token_ms).fold(f64::INFINITY, f64::min)
}

fn hold_against_limits(assessment: &mut Assessment, scenario: &Scenario) {
    let mut limit = |what: String, allowed: f64, taken: f64, text: String, from: String| {
        let headroom = allowed / taken;
        if headroom < assessment.headroom {
            (assessment.headroom, assessment.tightest) = (headroom, what);
        }
        if taken > allowed {
            assessment.failures.push(Failure { text, from, is_quality: false });
        }
    };
    let available = assessment.available_bytes as f64;
    let planned = assessment.planned_bytes.map_or(f64::INFINITY, |bytes| bytes as f64);
    limit(
        "cache memory".to_owned(),
        available,
        planned,
        format!("the planned sequences take {:.1} GB of cache and {:.1} GB are there", planned / 1e9, available / 1e9),
        "sum over workloads of concurrency x bytes at the longest context".to_owned(),
    );
    let step_ms = assessment.step.ns() * 1e-6;
    for (workload, result) in scenario.workloads.iter().zip(&assessment.workloads) {
        let name = &workload.name;
        let target = workload.time_per_token_ms;
        limit(
            format!("time a token of {name}"),
            target,
            step_ms,
            format!("{name}: a token takes {step_ms:.1} ms with everything running, {target} ms are allowed"),
            "step = weights + attention, see its parts".to_owned(),
        );
        let (seconds, target) = (result.first_token_s, workload.time_to_first_token_s);
        limit(
            format!("time to the first token of {name}"),
            target,
            seconds,
            format!("{name}: the first token takes {seconds:.2} s in chunks between steps, {target} s are allowed"),
            format!(
                "{} new tokens at the end of {} tokens: {:.2} s of work in chunks that keep a step within the strictest target",
                workload.new_tokens,
                workload.context_max,
                result.first_token.ns() * 1e-9
            ),
        );
    }
    for finding in assessment.probes.iter().filter(|finding| !finding.is_met()) {
        let needed = match finding.limit {
            Some(Limit::AtLeast(limit)) => format!("at least {limit} is needed"),
            Some(Limit::AtMost(limit)) => format!("at most {limit} is allowed"),
            None => continue,
        };
        assessment.failures.push(Failure {
            text: format!("{} is {:.3}, {needed}", finding.of, finding.value),
            from: format!("probe {}: {}", finding.probe, finding.how),
            is_quality: true,
        });
    }
}

/// Every design, as it is and with an eight-bit cache.
pub fn assess_all(scenario: &Scenario, record: Option<&Record>, rates: &Rates) -> Vec<Assessment> {
    let mut assessments = Vec::new();
    let mut notes = Notebook::default();
    for design in &scenario.designs {
        let probes = findings(design, scenario, &mut notes);
        assessments.push(assess(design, scenario, record, rates, probes.clone()));
        let narrow = Design { element: Element::FP8, ..design.clone() };
        // A state is not stored in the cache's type: nothing would change.
        if narrow.shape().token_bytes(Element::FP8).is_ok_and(|bytes| bytes > 0) && design.element.bits() > 8 {
            let own = Precision.findings(&narrow, scenario, &mut notes);
            assessments.push(assess(&narrow, scenario, record, rates, probes.into_iter().chain(own).collect()));
        }
    }
    assessments
}
