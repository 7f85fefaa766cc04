//! A scenario's file: TOML as it is written, then checked.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::ScenarioError;
use super::datasheet::{self, Datasheet};
use super::design::{AUTO, Design};
use crate::kv::size::{parse_bytes, parse_share_or_bytes};
use crate::kv::{Budget, CacheShape, Element};
use crate::suite::{presets, read_named};

/// Largest file, in bytes.
const MAX_BYTES: u64 = 1 << 18;
/// Longest context and distance.
const MAX_TOKENS: u64 = 1 << 24;
/// Most designs.
const MAX_DESIGNS: usize = 32;

/// What a team knows before it chooses.
#[derive(Clone, Debug, PartialEq)]
pub struct Scenario {
    /// Its name: the file's stem.
    pub name: String,
    /// The situation, in a sentence or two.
    pub description: String,
    /// The model, whatever its attention.
    pub model: ModelSpec,
    /// Where it runs.
    pub device: DeviceSpec,
    /// What it serves, all at the same time.
    pub workloads: Vec<Workload>,
    /// What it must be able to do.
    pub needs: Needs,
    /// The candidates.
    pub designs: Vec<Design>,
}

/// A model without its attention.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelSpec {
    /// Layers.
    pub layers: u32,
    /// Query heads.
    pub heads_q: usize,
    /// Elements of a head's row.
    pub head_dim: usize,
    /// All parameters.
    pub parameters: u64,
    /// Parameters that a token visits.
    pub active_parameters: u64,
    /// How weights are stored.
    pub weights: Element,
    /// The design that the weights were trained with; None where the model is yet to be trained.
    pub trained_as: Option<String>,
}

impl ModelSpec {
    /// Bytes of all weights.
    pub fn weight_bytes(&self) -> u64 {
        u64::try_from(self.weights.bytes(self.parameters)).unwrap_or(u64::MAX)
    }

    /// Bytes of the weights that this many tokens of a step visit: experts of different tokens differ, so at most the
    /// active ones of each, and never more than all.
    pub fn visited_bytes(&self, tokens: u64) -> u64 {
        let visited = self.weights.bytes(self.active_parameters).saturating_mul(u128::from(tokens));
        u64::try_from(visited).unwrap_or(u64::MAX).min(self.weight_bytes())
    }

    /// KV heads of designs that share them: those that the model was trained with, else eight, as most published models
    /// have, where they divide the query heads.
    pub fn grouped_heads(&self) -> usize {
        let trained = self.trained_as.as_deref().and_then(|name| name.strip_prefix("gqa:")?.parse().ok());
        let usual = if self.heads_q > 8 && self.heads_q.is_multiple_of(8) { 8 } else { 1 };
        trained.unwrap_or(usual)
    }
}

/// Where the model runs.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceSpec {
    /// Its datasheet; None for this machine.
    pub sheet: Option<&'static Datasheet>,
    /// What weights, reserve and caches share.
    pub budget: Budget,
}

impl DeviceSpec {
    /// Its name.
    pub fn name(&self) -> &str {
        self.sheet.map_or("this machine", |sheet| sheet.name)
    }
}

/// Requests of one kind.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Workload {
    /// Its name.
    pub name: String,
    /// Its share of the requests.
    pub share: f64,
    /// Shortest context, in tokens.
    pub context_min: u64,
    /// Longest context, for which capacity is planned.
    pub context_max: u64,
    /// Tokens that a turn adds before its first answer; earlier ones are in the cache.
    pub new_tokens: u64,
    /// Sequences at once.
    pub concurrency: u64,
    /// The most that a token may take, in milliseconds.
    pub time_per_token_ms: f64,
    /// The most that the first one may take, in seconds.
    pub time_to_first_token_s: f64,
}

impl Workload {
    /// The middle of its contexts: half-way on a logarithmic scale, as lengths in serving are spread.
    pub fn context_middle(&self) -> u64 {
        let logs = [self.context_min, self.context_max].map(|tokens| (tokens.max(1) as f64).ln());
        (0.5 * (logs[0] + logs[1])).exp().round() as u64
    }
}

/// What the model must be able to do.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Needs {
    /// Tokens back that it must see in detail.
    pub local_detail: u64,
    /// Distances at which it must find a single fact.
    pub retrieval: Vec<u64>,
    /// Most that any layer's output may differ from full softmax attention, relative; 1 where that does not matter.
    pub max_distance: f64,
    /// Least share of its heads' diversity that sharing KV heads may leave.
    pub head_diversity: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawScenario {
    description: String,
    model: RawModel,
    device: RawDevice,
    workload: Vec<RawWorkload>,
    needs: RawNeeds,
    candidates: Option<RawCandidates>,
    candidate: Option<Vec<RawCandidate>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawModel {
    preset: Option<String>,
    layers: Option<u32>,
    heads_q: Option<usize>,
    head_dim: Option<usize>,
    parameters: Option<f64>,
    active_parameters: Option<f64>,
    weights: String,
    trained_as: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDevice {
    name: String,
    memory: Option<String>,
    reserve: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawWorkload {
    name: String,
    share: Option<f64>,
    context: (u64, u64),
    new_tokens: Option<u64>,
    concurrency: u64,
    time_per_token_ms: f64,
    time_to_first_token_s: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNeeds {
    local_detail: u64,
    #[serde(default)]
    retrieval: Vec<u64>,
    max_distance: Option<f64>,
    head_diversity: Option<f64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawCandidates {
    Auto(String),
    Names(Vec<String>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCandidate {
    name: String,
    mechanism: Option<String>,
    pattern: Option<String>,
    heads_kv: Option<usize>,
    full_every: Option<u32>,
    dtype: Option<String>,
}

impl Scenario {
    /// Reads and checks a scenario's file.
    ///
    /// # Errors
    /// It cannot be read, is too large, is no TOML, or makes no sense.
    pub fn load(path: &Path) -> Result<Scenario, ScenarioError> {
        let file = path.display().to_string();
        let fail = |message: String| ScenarioError { file: file.clone(), message };
        let (name, bytes) = read_named(path, MAX_BYTES).map_err(fail)?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(fail(format!("the file is larger than {MAX_BYTES} bytes")));
        }
        Scenario::parse(&name, &file, &bytes)
    }

    /// Checks the bytes of a scenario's file.
    ///
    /// # Errors
    /// As for [`Scenario::load`].
    pub fn parse(name: &str, file: &str, bytes: &[u8]) -> Result<Scenario, ScenarioError> {
        let fail = |message: String| ScenarioError { file: file.to_owned(), message };
        let text = std::str::from_utf8(bytes).map_err(|error| fail(error.to_string()))?;
        let raw: RawScenario = toml::from_str(text).map_err(|error| fail(error.to_string().trim_end().to_owned()))?;
        raw.check(name).map_err(fail)
    }
}

impl RawScenario {
    fn check(self, name: &str) -> Result<Scenario, String> {
        let model = self.model.check().map_err(|error| format!("[model]: {error}"))?;
        let device = self.device.check(&model).map_err(|error| format!("[device]: {error}"))?;
        if self.workload.is_empty() {
            return Err("it serves nothing; add a `[[workload]]`".to_owned());
        }
        let workloads: Vec<Workload> = self
            .workload
            .into_iter()
            .map(|raw| {
                let name = raw.name.clone();
                raw.check().map_err(|error| format!("workload `{name}`: {error}"))
            })
            .collect::<Result<_, _>>()?;
        let needs = self.needs.check(&workloads).map_err(|error| format!("[needs]: {error}"))?;
        let mut designs: Vec<Design> = match self.candidates {
            None => AUTO.iter().filter_map(|name| Design::parse(name, &model).ok()).collect(),
            Some(RawCandidates::Auto(word)) if word == "auto" => {
                AUTO.iter().filter_map(|name| Design::parse(name, &model).ok()).collect()
            }
            Some(RawCandidates::Auto(word)) => {
                return Err(format!("candidates are \"auto\" or a list, not \"{word}\""));
            }
            Some(RawCandidates::Names(names)) => {
                names.iter().map(|name| Design::parse(name, &model)).collect::<Result<_, _>>()?
            }
        };
        for raw in self.candidate.unwrap_or_default() {
            let element: Element = raw.dtype.as_deref().unwrap_or("f16").parse()?;
            let parts = (raw.mechanism.as_deref(), raw.pattern.as_deref());
            designs.push(Design::custom(&raw.name, parts, raw.heads_kv, raw.full_every, element, &model)?);
        }
        if let Some(trained) = &model.trained_as
            && !designs.iter().any(|design| design.name == *trained)
        {
            designs.insert(0, Design::parse(trained, &model)?);
        }
        let mut seen = std::collections::BTreeSet::new();
        designs.retain(|design| seen.insert(design.name.clone()));
        if designs.is_empty() || designs.len() > MAX_DESIGNS {
            return Err(format!("there are {} candidates; valid are 1 to {MAX_DESIGNS}", designs.len()));
        }
        Ok(Scenario { name: name.to_owned(), description: self.description, model, device, workloads, needs, designs })
    }
}

impl RawModel {
    fn check(self) -> Result<ModelSpec, String> {
        let preset = match &self.preset {
            None => None,
            Some(name) => Some(presets::find(name).ok_or_else(|| format!("there is no model preset `{name}`"))?),
        };
        let group = preset.map(|preset| preset.layers[0]);
        let missing = |key: &str| format!("`{key}` is missing; give it, or a `preset`");
        let count = |value: f64, key: &str| match value.is_finite() && (1.0..1e15).contains(&value) {
            true => Ok(value as u64),
            false => Err(format!("`{key}` is {value}; write a number of parameters such as 8.03e9")),
        };
        let parameters = match (self.parameters, preset) {
            (Some(value), _) => count(value, "parameters")?,
            (None, Some(preset)) => preset.parameters,
            (None, None) => return Err(missing("parameters")),
        };
        let active_parameters = match (self.active_parameters, preset) {
            (Some(value), _) => count(value, "active_parameters")?,
            (None, Some(preset)) if self.parameters.is_none() => preset.active_parameters(),
            _ => parameters,
        };
        if active_parameters > parameters {
            return Err("`active_parameters` are more than `parameters`".to_owned());
        }
        let model = ModelSpec {
            layers: self.layers.or(preset.map(presets::Model::layer_count)).ok_or_else(|| missing("layers"))?,
            heads_q: self.heads_q.or(group.map(|group| group.heads_q)).ok_or_else(|| missing("heads_q"))?,
            head_dim: self.head_dim.or(group.map(|group| group.head_dim_v)).ok_or_else(|| missing("head_dim"))?,
            parameters,
            active_parameters,
            weights: self.weights.parse()?,
            trained_as: self.trained_as,
        };
        CacheShape::uniform(model.layers, model.heads_q, model.heads_q, model.head_dim).map_err(|e| e.to_string())?;
        if let Some(trained) = &model.trained_as {
            Design::parse(trained, &model).map_err(|error| format!("`trained_as`: {error}"))?;
        }
        Ok(model)
    }
}

impl RawDevice {
    fn check(self, model: &ModelSpec) -> Result<DeviceSpec, String> {
        let sheet = match self.name.as_str() {
            "this" => None,
            name => Some(datasheet::find(name).ok_or_else(|| {
                let known: Vec<&str> = datasheet::DATASHEETS.iter().map(|sheet| sheet.name).collect();
                format!("there is no device `{name}`; valid: this, {}", known.join(", "))
            })?),
        };
        let memory_bytes = match (self.memory.as_deref(), sheet) {
            (Some(text), _) => parse_bytes(text)?,
            (None, Some(sheet)) => sheet.memory_bytes,
            (None, None) => {
                return Err("`memory` is missing; say how much of this machine's the model may take".to_owned());
            }
        };
        let reserve_bytes = parse_share_or_bytes(self.reserve.as_deref().unwrap_or("10%"), memory_bytes)?;
        let budget = Budget { memory_bytes, weight_bytes: model.weight_bytes(), reserve_bytes };
        budget.available_bytes().map_err(|error| error.to_string())?;
        Ok(DeviceSpec { sheet, budget })
    }
}

impl RawWorkload {
    fn check(self) -> Result<Workload, String> {
        let (context_min, context_max) = self.context;
        if context_min == 0 || context_min > context_max || context_max > MAX_TOKENS {
            return Err(format!("`context` is [shortest, longest], 1 to {MAX_TOKENS} tokens"));
        }
        let new_tokens = self.new_tokens.unwrap_or(context_max);
        if new_tokens == 0 || new_tokens > context_max {
            return Err("`new_tokens` lie between 1 and the longest context".to_owned());
        }
        if !(1..=1 << 16).contains(&self.concurrency) {
            return Err("`concurrency` is 1 to 65536 sequences".to_owned());
        }
        let share = self.share.unwrap_or(1.0);
        let is_positive = |value: f64| value.is_finite() && value > 0.0;
        if !is_positive(share) || !is_positive(self.time_per_token_ms) || !is_positive(self.time_to_first_token_s) {
            return Err("`share` and both times are numbers above 0".to_owned());
        }
        Ok(Workload {
            name: self.name,
            share,
            context_min,
            context_max,
            new_tokens,
            concurrency: self.concurrency,
            time_per_token_ms: self.time_per_token_ms,
            time_to_first_token_s: self.time_to_first_token_s,
        })
    }
}

impl RawNeeds {
    fn check(self, workloads: &[Workload]) -> Result<Needs, String> {
        let longest = workloads.iter().map(|workload| workload.context_max).max().unwrap_or(0);
        let is_outside = |distance: &u64| *distance >= longest || *distance == 0;
        let far = self.retrieval.iter().chain([&self.local_detail]).copied().find(is_outside);
        if let Some(far) = far {
            return Err(format!("a distance of {far} tokens lies outside every context; the longest is {longest}"));
        }
        let share = |value: Option<f64>, otherwise: f64, key: &str| match value {
            None => Ok(otherwise),
            Some(value) if (0.0..=1.0).contains(&value) => Ok(value),
            Some(value) => Err(format!("`{key}` is {value}; it is a share from 0 to 1")),
        };
        Ok(Needs {
            local_detail: self.local_detail,
            retrieval: self.retrieval,
            max_distance: share(self.max_distance, 1.0, "max_distance")?,
            head_diversity: share(self.head_diversity, 0.0, "head_diversity")?,
        })
    }
}
