//! What each layer of a model keeps of a sequence.

use attn_kernels::problem::{AttentionProblem, Dtype, Mechanism, Phase};
use attn_kernels::work::KvCache;

use super::{Element, KvError, counted};
use crate::suite::presets::{LayerGroup, Model};

/// Most layers of a model: ten times the deepest published one.
pub const MAX_LAYERS: u32 = 10_000;

/// The layers of a model, grouped by what their attention keeps.
#[derive(Clone, Debug, PartialEq)]
pub struct CacheShape {
    groups: Vec<LayerGroup>,
}

/// What one layer of a group keeps, in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Layers like it.
    pub layers: u32,
    /// Elements a token.
    pub token_elements: u64,
    /// Tokens that are kept at most; None where all are.
    pub max_tokens: Option<u64>,
    /// Bytes that do not grow with the context: states are f32 whatever the cache is.
    pub state_bytes: u64,
}

impl Kept {
    /// Bytes that one token takes in one layer.
    pub fn row_bytes(&self, element: Element) -> u128 {
        element.bytes(self.token_elements)
    }

    /// Bytes that one layer keeps of a sequence of `context` tokens.
    pub fn layer_bytes(&self, element: Element, context: u64) -> Option<u128> {
        let tokens = self.max_tokens.map_or(context, |most| most.min(context));
        self.row_bytes(element).checked_mul(u128::from(tokens))?.checked_add(u128::from(self.state_bytes))
    }
}

impl CacheShape {
    /// The shape of these layers. Errors: a group whose attention does not exist or keeps no cache.
    pub fn new(groups: Vec<LayerGroup>) -> Result<CacheShape, KvError> {
        let layers: u64 = groups.iter().map(|group| u64::from(group.count)).sum();
        if layers == 0 || layers > u64::from(MAX_LAYERS) {
            return Err(KvError::Shape(format!("a model has 1 to {MAX_LAYERS} layers, not {layers}")));
        }
        for group in &groups {
            check(group)?;
        }
        Ok(CacheShape { groups })
    }

    /// The shape of a preset. Errors: encoders keep no cache.
    pub fn of_model(model: &Model) -> Result<CacheShape, KvError> {
        if !model.causal {
            let message =
                format!("model `{}` is an encoder: it sees all tokens at once and keeps no cache", model.name);
            return Err(KvError::Shape(message));
        }
        CacheShape::new(model.layers.to_vec())
    }

    /// Equal softmax layers with square heads.
    pub fn uniform(layers: u32, heads_q: usize, heads_kv: usize, head_dim: usize) -> Result<CacheShape, KvError> {
        CacheShape::new(vec![LayerGroup::dense(layers, heads_q, heads_kv, head_dim)])
    }

    /// Its layer groups.
    pub fn groups(&self) -> &[LayerGroup] {
        &self.groups
    }

    /// Its layers.
    pub fn layers(&self) -> u32 {
        self.groups.iter().map(|group| group.count).sum()
    }

    /// What a layer of each group keeps.
    pub fn kept(&self) -> impl Iterator<Item = Kept> {
        self.groups.iter().map(kept)
    }

    /// Bytes that one more token adds to the cache while every window still has room.
    pub fn token_bytes(&self, element: Element) -> Result<u64, KvError> {
        counted("the bytes of a token", self.sum(|kept| Some(kept.row_bytes(element))))
    }

    /// Bytes of one sequence of `context` tokens.
    pub fn sequence_bytes(&self, element: Element, context: u64) -> Result<u64, KvError> {
        counted("the bytes of a sequence", self.wide_sequence_bytes(element, context))
    }

    /// Bytes of `batch` sequences of `context` tokens each.
    pub fn batch_bytes(&self, element: Element, context: u64, batch: u64) -> Result<u64, KvError> {
        let bytes = self.wide_sequence_bytes(element, context);
        counted("the bytes of a batch", bytes.and_then(|bytes| bytes.checked_mul(u128::from(batch))))
    }

    /// Bytes of the scores of one query head of one sequence, as the materialised form writes them.
    pub fn score_bytes_of_a_head(element: Element, context: u64) -> Result<u64, KvError> {
        let bits = u128::from(context).pow(2).checked_mul(u128::from(element.bits()));
        counted("the bytes of a head's scores", bits.map(|bits| bits.div_ceil(8)))
    }

    /// Bytes of the scores of the widest layer for a batch: materialised layers follow one another in the same memory.
    pub fn score_bytes_of_a_layer(&self, element: Element, context: u64, batch: u64) -> Result<u64, KvError> {
        let heads = self.groups.iter().map(|group| group.heads_q as u128).max().unwrap_or(0);
        let head = u128::from(CacheShape::score_bytes_of_a_head(element, context)?);
        counted("the bytes of a layer's scores", head.checked_mul(heads * u128::from(batch)))
    }

    pub(super) fn wide_sequence_bytes(&self, element: Element, context: u64) -> Option<u128> {
        self.sum(|kept| kept.layer_bytes(element, context))
    }

    fn sum(&self, bytes_of_a_layer: impl Fn(&Kept) -> Option<u128>) -> Option<u128> {
        self.kept().try_fold(0u128, |sum, kept| {
            sum.checked_add(bytes_of_a_layer(&kept)?.checked_mul(u128::from(kept.layers))?)
        })
    }
}

/// One token of decode of a group: the smallest problem that says what is kept.
fn decode(group: &LayerGroup) -> AttentionProblem {
    let mut problem = AttentionProblem::softmax(Phase::Decode, Dtype::F16, 1, (1, 1), (1, 1), 1);
    group.apply(&mut problem);
    problem.causal = true;
    problem
}

fn check(group: &LayerGroup) -> Result<(), KvError> {
    if matches!(group.mechanism, Mechanism::Linformer { .. }) {
        let message = "Linformer projects a whole sequence at once: it does not decode and keeps no cache".to_owned();
        return Err(KvError::Shape(message));
    }
    decode(group).validate().map_err(|error| KvError::Shape(error.to_string()))
}

fn kept(group: &LayerGroup) -> Kept {
    let problem = decode(group);
    let cache = KvCache::of(&problem);
    Kept {
        layers: group.count,
        token_elements: cache.token_bytes / Dtype::F16.bytes() as u64,
        max_tokens: cache.max_tokens,
        state_bytes: cache.state_bytes,
    }
}
