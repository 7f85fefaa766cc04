//! The decision and its reasons, every number with where it is from.

use serde::Serialize;

use super::Scenario;
use super::assess::{Assessment, assess_all, strictest_ms};
use super::cases::{Part, curve, kinds};
use super::choose::{Choice, HEADROOM, MIN_DIVERSITY, choose, diversity, is_too_shared};
use super::curve::Point;
use super::design::Change;
use super::latency::{Rates, layer_name, rates};
use super::probe::PROBES;
use super::scenario::{Needs, Workload};
use crate::kv::{Budget, Context};
use crate::record::Record;

/// A decision memo.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Memo {
    /// The scenario's name.
    pub scenario: String,
    /// The situation.
    pub description: String,
    /// The device's name.
    pub device: String,
    /// What it does in a second, and who says so.
    pub rates: Rates,
    /// Its memory.
    pub budget: Budget,
    /// What is served.
    pub workloads: Vec<Workload>,
    /// What is needed.
    pub needs: Needs,
    /// The one design.
    pub primary: Reason,
    /// Whether it meets every need.
    pub meets_every_need: bool,
    /// The one modification, where one helps.
    pub modification: Option<Reason>,
    /// Why.
    pub reasons: Vec<Reason>,
    /// What would have gone wrong with a cheaper choice.
    pub failure_mode_avoided: Option<Reason>,
    /// What is paid for it.
    pub trade_off: Reason,
    /// What to watch in production.
    pub monitor: Vec<Reason>,
    /// The next best design, and why it is not the first.
    pub runner_up: Option<Reason>,
    /// All candidates, in the scenario's order.
    pub candidates: Vec<Assessment>,
    /// What was measured on this machine, one layer and one sequence.
    pub measured: Vec<Measured>,
    /// Probes, with what each does.
    pub probes: Vec<(&'static str, &'static str)>,
    /// What all of this takes for granted.
    pub assumptions: Vec<String>,
}

/// A sentence and where its numbers are from.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Reason {
    /// The sentence.
    pub text: String,
    /// Formulas, experiments or case ids.
    pub from: String,
}

/// Measured times of one kind of layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measured {
    /// The kind.
    pub layer: String,
    /// `decode` or `prefill`.
    pub part: &'static str,
    /// By length.
    pub points: Vec<Point>,
}

fn reason(text: impl Into<String>, from: impl Into<String>) -> Reason {
    Reason { text: text.into(), from: from.into() }
}

fn gb(bytes: u64) -> String {
    crate::report::units::bytes(bytes)
}

/// `1 sequence`, `6 sequences`.
fn sequences(count: u64) -> String {
    format!("{count} sequence{}", if count == 1 { "" } else { "s" })
}

impl Memo {
    /// The memo of a scenario with these measurements.
    ///
    /// # Errors
    /// The scenario is about this machine, and there are no measurements of it.
    pub fn write(scenario: &Scenario, record: Option<&Record>) -> Result<Memo, String> {
        let rates = rates(scenario, record)?;
        let candidates = assess_all(scenario, record, &rates);
        let choice = choose(&candidates);
        let own = &candidates[choice.primary];
        let measured = kinds(scenario)
            .iter()
            .flat_map(|group| [(group, Part::Decode, "decode"), (group, Part::Prefill, "prefill")])
            .map(|(group, part, name)| {
                let points = curve(record, group, part).points().to_vec();
                Measured { layer: layer_name(group), part: name, points }
            })
            .filter(|measured| !measured.points.is_empty())
            .collect();
        Ok(Memo {
            scenario: scenario.name.clone(),
            description: scenario.description.clone(),
            device: scenario.device.name().to_owned(),
            budget: scenario.device.budget,
            workloads: scenario.workloads.clone(),
            needs: scenario.needs.clone(),
            primary: primary(own, choice.is_modified),
            meets_every_need: own.is_fit(),
            modification: modification(choice, &candidates),
            reasons: reasons(scenario, own),
            failure_mode_avoided: avoided(choice, &candidates),
            trade_off: trade_off(scenario, own, &candidates),
            monitor: monitor(scenario, own),
            runner_up: runner_up(choice, &candidates),
            measured,
            probes: PROBES.iter().map(|probe| (probe.name(), probe.summary())).collect(),
            assumptions: assumptions(&rates),
            rates,
            candidates,
        })
    }
}

fn primary(own: &Assessment, is_modified: bool) -> Reason {
    let fit = match own.failures.len() {
        0 if is_modified => "meets every need with the modification below".to_owned(),
        0 => "meets every need".to_owned(),
        1 => "comes closest, and misses one need".to_owned(),
        misses => format!("comes closest, and misses {misses} needs"),
    };
    let effort = own.change.name();
    reason(format!("`{}`: {}. It {fit}. Training: {effort}.", own.design, own.summary), "the rule of choice, below")
}

/// The eight-bit cache, and what it buys.
fn modification(choice: Choice, candidates: &[Assessment]) -> Option<Reason> {
    let own = &candidates[choice.primary];
    let plain = candidates.iter().find(|other| other.design == own.design && other.dtype != own.dtype)?;
    if !choice.is_modified {
        return None;
    }
    let change = own.probes.iter().find(|finding| finding.probe == "precision");
    let cost = change.map(|finding| format!(" It changes attention's output by {:.1} %.", 100.0 * finding.value));
    let before = match plain.failures.first() {
        Some(failure) => format!("without it, {}", failure.text),
        None => format!("without it, {} has a headroom of {:.2}", plain.tightest, plain.headroom),
    };
    Some(reason(
        format!(
            "Store the cache in {}: {before}; with it, {} has a headroom of {:.2}.{}",
            own.dtype,
            own.tightest,
            own.headroom,
            cost.unwrap_or_default()
        ),
        format!("bytes and times of `{}` and `{}`; probe precision", plain.name(), own.name()),
    ))
}

fn reasons(scenario: &Scenario, own: &Assessment) -> Vec<Reason> {
    let count: u64 = scenario.workloads.iter().map(|workload| workload.concurrency).sum();
    let planned = own.planned_bytes.unwrap_or(u64::MAX);
    let mut reasons = vec![reason(
        format!(
            "Memory: {} at the longest context: {} of the {} that weights and reserve leave ({} a token); \
             at the middle of the contexts, {}.",
            sequences(count),
            gb(planned),
            gb(own.available_bytes),
            crate::report::units::bytes(own.token_bytes),
            own.middle_bytes.map_or("more than 64 bits".to_owned(), gb)
        ),
        format!(
            "{} - {} weights - {} reserve; concurrency x bytes at the longest context",
            gb(scenario.device.budget.memory_bytes),
            gb(scenario.device.budget.weight_bytes),
            gb(scenario.device.budget.reserve_bytes)
        ),
    )];
    let strictest = strictest_ms(scenario);
    let parts: Vec<String> = own
        .step
        .parts
        .iter()
        .map(|part| format!("{} {:.2} ms ({})", part.what, part.ns * 1e-6, part.basis.name()))
        .collect();
    reasons.push(reason(
        format!(
            "Time a token: {:.1} ms with everything running at its longest, {:.1} ms at the middle; the strictest target is \
             {strictest} ms. Attention is {:.0} % of it.",
            own.step_ms(),
            own.step_middle.ns() * 1e-6,
            100.0 * own.step.attention_share()
        ),
        parts.join(" + "),
    ));
    for (workload, result) in scenario.workloads.iter().zip(&own.workloads) {
        let from: Vec<String> = result
            .first_token
            .parts
            .iter()
            .map(|part| format!("{} {:.3} s ({})", part.what, part.ns * 1e-9, part.basis.name()))
            .collect();
        reasons.push(reason(
            format!(
                "{}: the first token of {} new ones is {:.2} s of work and comes after {:.2} s ({} s are allowed){}; then {:.0} \
                 tokens a second from {}.",
                workload.name,
                workload.new_tokens,
                result.first_token.ns() * 1e-9,
                result.first_token_s,
                workload.time_to_first_token_s,
                if count > 1 { format!(", in chunks that keep every step within {strictest} ms") } else { String::new() },
                result.tokens_per_s,
                sequences(workload.concurrency)
            ),
            from.join(" + "),
        ));
    }
    for finding in own.probes.iter().filter(|finding| finding.limit.is_some()) {
        reasons.push(reason(
            format!("Quality: {} is {:.3}.", finding.of, finding.value),
            format!("probe {}: {}", finding.probe, finding.how),
        ));
    }
    reasons
        .extend(own.failures.iter().map(|failure| reason(format!("Not met: {}.", failure.text), failure.from.clone())));
    reasons
}

fn avoided(choice: Choice, candidates: &[Assessment]) -> Option<Reason> {
    let own = &candidates[choice.primary];
    let bytes = |other: &Assessment| other.planned_bytes.unwrap_or(u64::MAX);
    if let Some(tempting) = choice.tempting.map(|index| &candidates[index]) {
        let failure = tempting.failures.iter().find(|failure| failure.is_quality)?;
        return Some(reason(
            format!(
                "`{}` would keep {} instead of {}, and fail silently: {}.",
                tempting.name(),
                gb(bytes(tempting)),
                gb(bytes(own)),
                failure.text
            ),
            failure.from.clone(),
        ));
    }
    let failing = candidates.iter().filter(|other| !other.is_fit() && other.design != own.design);
    let worst = failing.min_by(|a, b| a.headroom.total_cmp(&b.headroom))?;
    let failure = worst.failures.first()?;
    Some(reason(format!("`{}` would not serve this: {}.", worst.name(), failure.text), failure.from.clone()))
}

fn trade_off(scenario: &Scenario, own: &Assessment, candidates: &[Assessment]) -> Reason {
    let bytes = |other: &Assessment| other.planned_bytes.unwrap_or(u64::MAX);
    let is_option = |other: &&Assessment| other.is_fit() && !is_too_shared(other);
    let cheapest = candidates.iter().filter(is_option).min_by_key(|other| bytes(other));
    let mut text = match cheapest {
        Some(cheapest) if cheapest.design != own.design => format!(
            "`{}` also meets every need with {} of cache instead of {}; it is not taken because {}.",
            cheapest.name(),
            gb(bytes(cheapest)),
            gb(bytes(own)),
            difference(own, cheapest)
        ),
        _ => "No other candidate meets every need with less cache.".to_owned(),
    };
    if own.full_share < 1.0 {
        let layers = (own.full_share * f64::from(scenario.model.layers)).round();
        text += &format!(
            " What lies beyond the windows or states hangs on {layers:.0} of {} layers.",
            scenario.model.layers
        );
    } else if own.token_bytes > 0 {
        text += &format!(
            " Every layer keeps every token: {} more for each token of each sequence, and one sequence alone ends at {} tokens.",
            crate::report::units::bytes(own.token_bytes),
            own.largest_context
        );
    }
    let kept = diversity(own);
    if kept < 0.999 {
        text += &format!(
            " Of what independent heads would say, shared KV heads keep {:.0} %: the worst case, trained heads resemble each other.",
            100.0 * kept
        );
    }
    reason(text, "bytes of the candidates; share of full layers; probe head diversity")
}

fn runner_up(choice: Choice, candidates: &[Assessment]) -> Option<Reason> {
    let own = &candidates[choice.primary];
    let other = &candidates[choice.runner_up?];
    Some(reason(
        format!("`{}`: {}. It is second because {}.", other.name(), other.summary, difference(own, other)),
        "the rule of choice, below",
    ))
}

/// The first comparison in which the chosen design is better.
fn difference(own: &Assessment, other: &Assessment) -> String {
    let quality = |own: &Assessment| own.failures.iter().filter(|failure| failure.is_quality).count();
    if (quality(own), own.failures.len()) != (quality(other), other.failures.len())
        && let Some(failure) = other.failures.iter().max_by_key(|failure| failure.is_quality)
    {
        return failure.text.clone();
    }
    if is_too_shared(own) != is_too_shared(other) {
        let percent = 100.0 * diversity(other);
        return format!(
            "its KV heads keep {percent:.0} % of what independent heads would say, less than {MIN_DIVERSITY}"
        );
    }
    if own.change != other.change {
        return format!("it takes more training ({} instead of {})", other.change.name(), own.change.name());
    }
    if (own.headroom < HEADROOM) != (other.headroom < HEADROOM) {
        return format!("{} leaves a headroom of {:.2}, less than {HEADROOM}", other.tightest, other.headroom);
    }
    if (own.dtype.bits() <= 8) != (other.dtype.bits() <= 8) {
        return format!("its cache is in {}, which nothing here asks for", other.dtype);
    }
    if own.machinery != other.machinery {
        return format!("it needs {}", other.machinery.name());
    }
    if (own.full_share - other.full_share).abs() > 1e-9 {
        let [theirs, ours] = [other.full_share, own.full_share].map(|share| 100.0 * share);
        return format!("{theirs:.0} % of its layers see every token instead of {ours:.0} %");
    }
    format!(
        "it keeps {} instead of {}",
        gb(other.planned_bytes.unwrap_or(u64::MAX)),
        gb(own.planned_bytes.unwrap_or(u64::MAX))
    )
}

fn monitor(scenario: &Scenario, own: &Assessment) -> Vec<Reason> {
    let alarm = (own.available_bytes as f64 / HEADROOM) as u64;
    let mut monitor = vec![reason(
        format!(
            "Cache occupancy: alarm at {} ({:.0} % of {}); the plan reaches {}.",
            gb(alarm),
            100.0 / HEADROOM,
            gb(own.available_bytes),
            gb(own.planned_bytes.unwrap_or(u64::MAX))
        ),
        format!("available bytes / {HEADROOM}"),
    )];
    for (workload, result) in scenario.workloads.iter().zip(&own.workloads) {
        monitor.push(reason(
            format!(
                "{}: p99 time a token against {} ms (the model says {:.1}), p95 time to the first token against {} s (the model \
                 says {:.2}), and contexts beyond {} tokens, for which nothing is planned.",
                workload.name,
                workload.time_per_token_ms,
                own.step_ms(),
                workload.time_to_first_token_s,
                result.first_token_s,
                workload.context_max
            ),
            "targets of the scenario; times of this memo",
        ));
    }
    let distances: Vec<String> = scenario.needs.retrieval.iter().map(u64::to_string).collect();
    if !distances.is_empty() {
        monitor.push(reason(
            format!(
                "Planted facts at {} tokens back in real prompts, answered by the trained model: the probes say that the \
                 attention can, only this says that the model does.",
                distances.join(" and ")
            ),
            "needs of the scenario",
        ));
    }
    if let Some(finding) = own.probes.iter().find(|finding| finding.probe == "precision") {
        monitor.push(reason(
            format!(
                "A sample of requests served again with a 16-bit cache: outputs should differ by about {:.1} %, and task scores \
                 not at all.",
                100.0 * finding.value
            ),
            "probe precision",
        ));
    }
    if own.largest_context != Context::Unbounded {
        monitor.push(reason(
            format!(
                "The share of attention in a step, {:.0} % in the plan: it grows first when contexts do.",
                100.0 * own.step.attention_share()
            ),
            "parts of the step",
        ));
    }
    monitor
}

fn assumptions(rates: &Rates) -> Vec<String> {
    let mut assumptions = vec![
        "Every sequence at the end of its longest context at the same time: the worst case of the plan.".to_owned(),
        "A step reads the weights once for all sequences; prompts are processed in chunks between steps, one at a time; queues, batching delays, sampling, networks and activations beyond \
         the reserve are not modelled."
            .to_owned(),
        "Probes use ideal keys and queries and no training: what they show to be impossible is; what they show to be possible \
         still has to be learned."
            .to_owned(),
        "Shared and latent designs are held to need the same number of parameters.".to_owned(),
    ];
    assumptions.push(match rates.is_here {
        true => "Attention is measured for one layer and one sequence and multiplied; the rest is modelled from ceilings.".into(),
        false => "The device is not here: every time is predicted from its datasheet and marked so. What was measured on this \
                  machine stands beside it as evidence of how the designs compare."
            .to_owned(),
    });
    if rates.is_here {
        assumptions.push("No kernel here reads an 8-bit cache: its time is taken to follow its bytes.".to_owned());
    }
    assumptions
}

/// The rule of choice, for readers.
pub const RULE: &str = "a design that meets every need comes first; then one whose KV heads keep 0.08 of what independent \
                        heads would say, or that the model was trained with; then the least training (as trained, uptrain, \
                        train); then one that leaves a headroom of 1.2 in memory and times; then one without an 8-bit cache; \
                        then the least machinery (full softmax layers, windows and other patterns, latents and states); then \
                        the share of layers that see every token; then the fewest bytes.";

/// Training as people say it, for tables.
pub fn effort(own: &Assessment) -> &'static str {
    match own.change {
        Change::AsTrained => "none",
        Change::Uptrain => "uptrain",
        Change::Train => "train",
    }
}
