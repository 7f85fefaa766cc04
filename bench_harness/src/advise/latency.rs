//! How long a token takes: attention, and the rest of the layers, each part with how it was come by.
//!
//! A step of decode gives every running sequence one token. Its weights are read once for all of them:
//! `max(bytes of visited weights / bandwidth, 2 x active parameters x sequences / FLOPs a second)`. Its attention reads each
//! sequence's cache: on this machine from measured curves, elsewhere `max(cache bytes / bandwidth, FLOPs / FLOPs a second)`.
//! The first token of a turn takes the same for its new tokens, which look back over their whole context. Queues, networks
//! and sampling are not in it.

use attn_kernels::problem::{AttentionProblem, Dtype, Lengths, Mechanism, Phase};
use attn_kernels::work::Work;
use serde::Serialize;

use super::cases::{Part, curve, problem};
use super::curve::Basis;
use super::datasheet::ATTAINABLE;
use super::design::Design;
use super::scenario::{Scenario, Workload};
use crate::kv::Element;
use crate::metric::limits::rate_per_s;
use crate::record::{ControlKind, Record};
use crate::suite::presets::LayerGroup;

/// What a device does in a second, and who says so.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rates {
    /// Bytes of weights.
    pub weight_bytes_per_s: f64,
    /// FLOPs of large products.
    pub weight_flops_per_s: f64,
    /// Bytes of a cache in decode, where it is not measured.
    pub attention_bytes_per_s: f64,
    /// FLOPs of attention, where it is not measured.
    pub attention_flops_per_s: f64,
    /// Where they are from.
    pub source: String,
    /// Whether attention is measured on this very device.
    pub is_here: bool,
}

/// A part of a time.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TimePart {
    /// What takes it.
    pub what: String,
    /// Nanoseconds.
    pub ns: f64,
    /// How it was come by.
    pub basis: Basis,
    /// The formula, or the case ids.
    pub from: String,
}

/// A time and its parts.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Time {
    /// Its parts; they follow one another.
    pub parts: Vec<TimePart>,
}

impl Time {
    /// All of it, in nanoseconds.
    pub fn ns(&self) -> f64 {
        self.parts.iter().map(|part| part.ns).sum()
    }

    /// The share of attention.
    pub fn attention_share(&self) -> f64 {
        let attention: f64 = self.parts.iter().filter(|part| part.what != WEIGHTS).map(|part| part.ns).sum();
        attention / self.ns()
    }
}

/// The part that is not attention.
pub const WEIGHTS: &str = "weights";

/// The rates of a scenario's device.
///
/// # Errors
/// The device is this machine, and the record has no ceilings.
pub fn rates(scenario: &Scenario, record: Option<&Record>) -> Result<Rates, String> {
    let here = record.and_then(|record| {
        let best = |is_it: fn(ControlKind) -> bool| {
            let own = record.controls.iter().filter(|control| is_it(control.kind));
            own.filter_map(rate_per_s).max_by(f64::total_cmp)
        };
        let read = best(|kind| matches!(kind, ControlKind::Read | ControlKind::Copy))?;
        let flops = best(|kind| kind == ControlKind::Fma)?;
        let model = record.device_model().unwrap_or("this machine").to_owned();
        Some((read, flops, model))
    });
    let is_that_device = |model: &str| scenario.device.sheet.is_none_or(|sheet| model.contains(sheet.model));
    if let Some((read, flops, model)) = here.filter(|(_, _, model)| is_that_device(model)) {
        return Ok(Rates {
            weight_bytes_per_s: read,
            weight_flops_per_s: flops,
            attention_bytes_per_s: read,
            attention_flops_per_s: flops,
            source: format!("ceilings measured in the same run on `{model}`: controls read and fma"),
            is_here: true,
        });
    }
    let sheet = scenario.device.sheet.ok_or(
        "the scenario's device is this machine, and the record holds no ceilings; measure without --record, or give one \
         that `attnbench advise` wrote",
    )?;
    Ok(Rates {
        weight_bytes_per_s: ATTAINABLE.weight_bytes * sheet.bytes_per_s,
        weight_flops_per_s: ATTAINABLE.weight_flops * sheet.flops_per_s,
        attention_bytes_per_s: ATTAINABLE.attention_bytes * sheet.bytes_per_s,
        attention_flops_per_s: ATTAINABLE.attention_flops * sheet.flops_per_s,
        source: format!(
            "{}; times {} and {} for weights, {} and {} for attention",
            sheet.source,
            ATTAINABLE.weight_bytes,
            ATTAINABLE.weight_flops,
            ATTAINABLE.attention_bytes,
            ATTAINABLE.attention_flops
        ),
        is_here: false,
    })
}

/// The time of one step of decode in which every workload has all its sequences running, each at `context` of its workload.
pub fn step(
    design: &Design,
    scenario: &Scenario,
    record: Option<&Record>,
    rates: &Rates,
    context: impl Fn(&Workload) -> u64,
) -> Time {
    let sequences: u64 = scenario.workloads.iter().map(|workload| workload.concurrency).sum();
    let mut parts = vec![weights(scenario, rates, sequences)];
    for workload in &scenario.workloads {
        for group in &design.groups {
            parts.push(decode(design, group, workload.concurrency, context(workload), record, rates));
        }
    }
    Time { parts: merged(parts) }
}

/// The time until a turn's first token: its new tokens, at the end of the longest context.
pub fn first_token(
    design: &Design,
    scenario: &Scenario,
    workload: &Workload,
    record: Option<&Record>,
    rates: &Rates,
) -> Time {
    let mut parts = vec![weights(scenario, rates, workload.new_tokens)];
    for group in &design.groups {
        parts.push(prefill(group, workload, record, rates));
    }
    Time { parts: merged(parts) }
}

fn weights(scenario: &Scenario, rates: &Rates, tokens: u64) -> TimePart {
    let model = &scenario.model;
    let bytes = model.visited_bytes(tokens);
    let flops = 2.0 * model.active_parameters as f64 * tokens as f64;
    let by_bytes = 1e9 * bytes as f64 / rates.weight_bytes_per_s;
    let by_flops = 1e9 * flops / rates.weight_flops_per_s;
    let from = format!("max({bytes} B / bandwidth, 2 x {} x {tokens} FLOPs / rate)", model.active_parameters);
    let basis = if rates.is_here { Basis::Modelled } else { Basis::Predicted };
    TimePart { what: WEIGHTS.to_owned(), ns: by_bytes.max(by_flops), basis, from }
}

/// Bytes that a step of decode moves for one layer and one sequence: its cache once, and its state written back.
fn decode_bytes(group: &LayerGroup, element: Element, context: u64) -> f64 {
    let shape = crate::kv::CacheShape::new(vec![LayerGroup { count: 1, ..*group }]).expect("a design was checked");
    let kept = shape.kept().next().expect("one group");
    kept.layer_bytes(element, context).unwrap_or(u128::MAX) as f64 + kept.state_bytes as f64
}

fn decode(
    design: &Design,
    group: &LayerGroup,
    sequences: u64,
    context: u64,
    record: Option<&Record>,
    rates: &Rates,
) -> TimePart {
    let calls = f64::from(group.count) * sequences as f64;
    let name = format!("attention {}", layer_name(group));
    let measured = curve(record.filter(|_| rates.is_here), group, Part::Decode);
    let work = |length: u64| decode_bytes(group, Element::F16, length);
    if let Some((ns, basis, cases)) = measured.at(context, work) {
        // No kernel reads eight bits here: such a cache is taken to be read in proportion to its bytes.
        let narrower = decode_bytes(group, design.element, context) / work(context);
        let basis = if narrower < 1.0 { Basis::Extrapolated } else { basis };
        let from = format!("{calls} x {}", cases.join(", "));
        return TimePart { what: name, ns: ns * narrower * calls, basis, from };
    }
    let bytes = decode_bytes(group, design.element, context);
    let flops = Work::of(&problem(group, Part::Decode, context.max(1))).flops as f64;
    let ns = 1e9 * (bytes / rates.attention_bytes_per_s).max(flops / rates.attention_flops_per_s);
    let from = format!("{calls} x max({bytes:.0} B / bandwidth, {flops:.0} FLOPs / rate)");
    let basis = if rates.is_here { Basis::Modelled } else { Basis::Predicted };
    TimePart { what: name, ns: ns * calls, basis, from }
}

fn prefill(group: &LayerGroup, workload: &Workload, record: Option<&Record>, rates: &Rates) -> TimePart {
    let calls = f64::from(group.count);
    let name = format!("attention {}", layer_name(group));
    let flops = append_flops(group, workload.new_tokens, workload.context_max);
    let measured = curve(record.filter(|_| rates.is_here), group, Part::Prefill);
    if let Some(point) = measured.points().last() {
        let done = append_flops(group, point.length, point.length);
        let from = format!("{calls} x {flops:.0} FLOPs at the rate of {}", point.case_id);
        return TimePart { what: name, ns: point.ns * flops / done * calls, basis: Basis::Extrapolated, from };
    }
    let ns = 1e9 * flops / rates.attention_flops_per_s;
    let from = format!("{calls} x {flops:.0} FLOPs / rate");
    let basis = if rates.is_here { Basis::Modelled } else { Basis::Predicted };
    TimePart { what: name, ns: ns * calls, basis, from }
}

/// Exact FLOPs of one layer for `new` tokens at the end of a context.
fn append_flops(group: &LayerGroup, new: u64, context: u64) -> f64 {
    let mut problem = AttentionProblem::softmax(Phase::Prefill, Dtype::F16, 1, (1, 1), (1, 1), 1);
    group.apply(&mut problem);
    problem.causal = true;
    let keys = if matches!(group.mechanism, Mechanism::Linear { .. }) { new } else { context };
    (problem.seqlen_q, problem.seqlen_kv) = (Lengths::Same(new as usize), Lengths::Same(keys as usize));
    Work::of(&problem).flops as f64
}

/// Parts of the same name as one: layers of a kind in several workloads.
fn merged(parts: Vec<TimePart>) -> Vec<TimePart> {
    let mut merged: Vec<TimePart> = Vec::new();
    for part in parts {
        match merged.iter_mut().find(|known| known.what == part.what) {
            None => merged.push(part),
            Some(known) => {
                known.ns += part.ns;
                known.basis = known.basis.max(part.basis);
                known.from = format!("{} + {}", known.from, part.from);
            }
        }
    }
    merged
}

/// A kind of layer in a few words: `full 32:8`, `window:4096 32:8`, `mla 32`, `linear 32:32`.
pub fn layer_name(group: &LayerGroup) -> String {
    use attn_kernels::problem::Pattern;
    let heads = format!("{}:{}", group.heads_q, group.heads_kv);
    match (group.mechanism, group.pattern) {
        (Mechanism::Mla { .. }, _) => format!("mla {}", group.heads_q),
        (Mechanism::Softmax, Pattern::Window { left, .. }) if left != usize::MAX => {
            format!("window:{} {heads}", left + 1)
        }
        (Mechanism::Softmax, pattern) => format!("{} {heads}", pattern.name()),
        (mechanism, _) => format!("{} {heads}", mechanism.name()),
    }
}
