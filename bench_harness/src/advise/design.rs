//! Candidate designs: what each layer's attention is, and how its cache is stored.

use attn_kernels::problem::id::{parse_mechanism, parse_pattern};
use attn_kernels::problem::{Mechanism, Pattern};
use serde::Serialize;

use super::scenario::ModelSpec;
use crate::kv::variants::{latent, linear, windowed};
use crate::kv::{CacheShape, Element};
use crate::suite::presets::LayerGroup;

/// What it takes to get a model with this attention. The order is that of effort.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Nothing: the model has it.
    AsTrained,
    /// Some more training: heads are pooled, or windows are laid on layers.
    Uptrain,
    /// Training anew.
    Train,
}

impl Change {
    /// In words.
    pub const fn name(self) -> &'static str {
        match self {
            Change::AsTrained => "as trained",
            Change::Uptrain => "uptrain",
            Change::Train => "train",
        }
    }
}

/// What a server needs for it. The order is that of machinery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Machinery {
    /// Full softmax layers of one kind: every server has them.
    Dense,
    /// Other softmax patterns, alone or among full layers: caches of two kinds.
    Patterns,
    /// Latents or states: kernels and caches of their own.
    Special,
}

impl Machinery {
    /// In words.
    pub const fn name(self) -> &'static str {
        match self {
            Machinery::Dense => "full softmax layers of one kind",
            Machinery::Patterns => "windows or other patterns, and caches of two kinds",
            Machinery::Special => "kernels and caches of their own",
        }
    }
}

/// A candidate.
#[derive(Clone, Debug, PartialEq)]
pub struct Design {
    /// Its name: `gqa:8`, `hybrid:1024:6`, ...
    pub name: String,
    /// What it is, in a sentence.
    pub summary: String,
    /// Its layers.
    pub groups: Vec<LayerGroup>,
    /// How its cache is stored.
    pub element: Element,
    /// What it takes.
    pub change: Change,
}

/// Forms of a design's name, for errors.
pub const FORMS: &str =
    "mha, gqa:HEADS, mqa, mla, window:KEYS, hybrid:KEYS:ONE_FULL_IN, linear, linear-hybrid:ONE_FULL_IN";

/// What `auto` stands for: every family once, at the sizes of published models (Mistral's window, Gemma 3's five windows of
/// 1,024 to one full layer, a full layer in four of linear ones).
pub const AUTO: [&str; 8] = ["mha", "gqa", "mqa", "mla", "window:4096", "hybrid:1024:6", "linear", "linear-hybrid:4"];

impl Design {
    /// The design of that name in a model.
    ///
    /// # Errors
    /// The name has no such form, or the model's heads do not allow it.
    pub fn parse(name: &str, model: &ModelSpec) -> Result<Design, String> {
        let mut words = name.split(':');
        let kind = words.next().unwrap_or_default();
        let numbers: Result<Vec<usize>, _> = words.map(str::parse).collect();
        let numbers = numbers.map_err(|_| format!("there is no design `{name}`; valid: {FORMS}"))?;
        let dense = |heads_kv: usize| LayerGroup::dense(model.layers, model.heads_q, heads_kv, model.head_dim);
        let shared = model.grouped_heads();
        let split = |one_full_in: usize, most: &dyn Fn(LayerGroup) -> LayerGroup| {
            let full = model.layers / u32::try_from(one_full_in).unwrap_or(u32::MAX).max(1);
            let others = LayerGroup { count: model.layers - full, ..dense(shared) };
            [LayerGroup { count: full, ..dense(shared) }, most(others)]
                .into_iter()
                .filter(|group| group.count > 0)
                .collect::<Vec<_>>()
        };
        let (name, summary, groups) = match (kind, numbers.as_slice()) {
            ("mha", []) => (
                name.to_owned(),
                "full attention, a KV head for each query head".to_owned(),
                vec![dense(model.heads_q)],
            ),
            ("gqa", []) => return Design::parse(&format!("gqa:{shared}"), model),
            ("gqa", &[heads]) => (
                name.to_owned(),
                format!("full attention, {heads} KV heads for {} query heads", model.heads_q),
                vec![dense(heads)],
            ),
            ("mqa", []) => {
                (name.to_owned(), "full attention, one KV head for all query heads".to_owned(), vec![dense(1)])
            }
            ("mla", []) => (
                name.to_owned(),
                "latent attention: one row of 512 + 64 elements a token for all heads".to_owned(),
                vec![latent(dense(model.heads_q))],
            ),
            ("window", &[keys]) if keys > 0 => (
                name.to_owned(),
                format!("every layer sees the last {keys} tokens, {shared} KV heads"),
                vec![windowed(dense(shared), keys)],
            ),
            ("hybrid", &[keys, one_full_in]) if keys > 0 && one_full_in > 0 => (
                name.to_owned(),
                format!("one full layer in {one_full_in}, the others see the last {keys} tokens, {shared} KV heads"),
                split(one_full_in, &|group| windowed(group, keys)),
            ),
            ("linear", []) => (
                name.to_owned(),
                "linear attention: a state instead of a cache".to_owned(),
                vec![linear(dense(model.heads_q))],
            ),
            ("linear-hybrid", &[one_full_in]) if one_full_in > 0 => (
                name.to_owned(),
                format!("one full layer in {one_full_in}, the others keep a linear state, {shared} KV heads"),
                split(one_full_in, &linear),
            ),
            _ => return Err(format!("there is no design `{name}`; valid: {FORMS}")),
        };
        Design::new(name, summary, groups, Element::F16, model)
    }

    /// A design from a mechanism, a pattern and KV heads.
    ///
    /// # Errors
    /// One of them does not exist, or not together.
    pub fn custom(
        name: &str,
        (mechanism, pattern): (Option<&str>, Option<&str>),
        heads_kv: Option<usize>,
        full_every: Option<u32>,
        element: Element,
        model: &ModelSpec,
    ) -> Result<Design, String> {
        let heads_kv = heads_kv.unwrap_or_else(|| model.grouped_heads());
        let full = LayerGroup::dense(model.layers, model.heads_q, heads_kv, model.head_dim);
        let mut group = full;
        group.mechanism = mechanism.map_or(Ok(Mechanism::Softmax), parse_mechanism).map_err(|e| e.to_string())?;
        group.pattern = pattern.map_or(Ok(Pattern::Full), parse_pattern).map_err(|e| e.to_string())?;
        if let Mechanism::Mla { rope, nope, .. } = group.mechanism {
            (group.heads_kv, group.head_dim_qk, group.head_dim_v) = (model.heads_q, nope.saturating_add(rope), nope);
        }
        let mut groups = vec![group];
        if let Some(every) = full_every.filter(|&every| every > 0) {
            let count = model.layers / every;
            groups = vec![LayerGroup { count, ..full }, LayerGroup { count: model.layers - count, ..group }];
            groups.retain(|group| group.count > 0);
        }
        let summary = format!(
            "{} {}, {heads_kv} KV heads{}",
            mechanism.unwrap_or("softmax"),
            pattern.unwrap_or("full"),
            full_every.map(|every| format!(", one full layer in {every}")).unwrap_or_default()
        );
        Design::new(name.to_owned(), summary, groups, element, model)
    }

    fn new(
        name: String,
        summary: String,
        groups: Vec<LayerGroup>,
        element: Element,
        model: &ModelSpec,
    ) -> Result<Design, String> {
        CacheShape::new(groups.clone()).map_err(|error| format!("design `{name}`: {error}"))?;
        let change = match &model.trained_as {
            None => Change::Train,
            Some(trained) if *trained == name => Change::AsTrained,
            Some(_) => effort(&groups),
        };
        Ok(Design { name, summary, groups, element, change })
    }

    /// Its cache.
    pub fn shape(&self) -> CacheShape {
        CacheShape::new(self.groups.clone()).expect("a design's groups were checked")
    }

    /// What a server needs for it.
    pub fn machinery(&self) -> Machinery {
        let of_group = |group: &LayerGroup| match (group.mechanism, group.pattern) {
            (Mechanism::Softmax, Pattern::Full) => Machinery::Dense,
            (Mechanism::Softmax, _) => Machinery::Patterns,
            _ => Machinery::Special,
        };
        self.groups.iter().map(of_group).max().unwrap_or(Machinery::Dense)
    }

    /// The share of its layers that see every token with softmax attention.
    pub fn full_share(&self) -> f64 {
        let is_full = |group: &&LayerGroup| {
            group.pattern == Pattern::Full && !matches!(group.mechanism, Mechanism::Linear { .. })
        };
        let full: u32 = self.groups.iter().filter(is_full).map(|group| group.count).sum();
        f64::from(full) / f64::from(self.shape().layers())
    }
}

/// Pooled heads and windows are trained into a model that has more; states and latents are another model.
fn effort(groups: &[LayerGroup]) -> Change {
    let is_softmax = groups.iter().all(|group| group.mechanism == Mechanism::Softmax);
    if is_softmax { Change::Uptrain } else { Change::Train }
}
