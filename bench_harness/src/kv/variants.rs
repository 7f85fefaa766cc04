//! The same layers with another attention: what a design decision changes in the cache.

use attn_kernels::problem::{Mechanism, Pattern};

use super::CacheShape;
use crate::suite::presets::LayerGroup;

/// KV heads of the grouped variants, beside one a query head and one in all.
const GROUPED: [usize; 2] = [8, 4];
/// Keys of the windowed variant: Mistral's.
const WINDOW: usize = 4096;

/// A design and what it keeps.
#[derive(Clone, Debug, PartialEq)]
pub struct Variant {
    /// Its name in tables.
    pub name: String,
    /// Its layers.
    pub shape: CacheShape,
}

/// The shape itself, then with other KV heads, a latent, a window or a state, as far as its heads allow.
pub fn variants(shape: &CacheShape) -> Vec<Variant> {
    let heads_q = shape.groups().iter().map(|group| group.heads_q).max().unwrap_or(0);
    let mut variants = vec![Variant { name: "as given".to_owned(), shape: shape.clone() }];
    let mut add = |name: String, change: &dyn Fn(LayerGroup) -> LayerGroup| {
        // Heads that do not divide have no such variant.
        if let Ok(shape) = CacheShape::new(shape.groups().iter().copied().map(change).collect()) {
            variants.push(Variant { name, shape });
        }
    };
    add(format!("MHA {heads_q}:{heads_q}"), &|group| with_heads(group, group.heads_q));
    for heads_kv in GROUPED.into_iter().filter(|&heads_kv| heads_kv < heads_q) {
        add(format!("GQA {heads_q}:{heads_kv}"), &|group| with_heads(group, heads_kv));
    }
    add(format!("MQA {heads_q}:1"), &|group| with_heads(group, 1));
    add("MLA 512 + 64".to_owned(), &|group| latent(group));
    add(format!("window {WINDOW}"), &|group| windowed(group, WINDOW));
    add("linear state".to_owned(), &|group| linear(group));
    variants
}

/// Full softmax attention with this many KV heads; a latent group gets square heads of its values' width.
pub fn with_heads(group: LayerGroup, heads_kv: usize) -> LayerGroup {
    LayerGroup {
        mechanism: Mechanism::Softmax,
        pattern: Pattern::Full,
        heads_kv,
        head_dim_qk: if is_latent(group) { group.head_dim_v } else { group.head_dim_qk },
        ..group
    }
}

/// Latent attention of DeepSeek's sizes in the group's number of heads.
pub fn latent(group: LayerGroup) -> LayerGroup {
    LayerGroup {
        mechanism: Mechanism::MLA,
        pattern: Pattern::Full,
        heads_kv: group.heads_q,
        head_dim_qk: 192,
        head_dim_v: 128,
        softcap: None,
        scale: None,
        sinks: false,
        ..group
    }
}

/// The last `keys` keys, the query's own included; a latent group becomes softmax with a KV head each.
pub fn windowed(group: LayerGroup, keys: usize) -> LayerGroup {
    let group = if is_latent(group) { with_heads(group, group.heads_q) } else { group };
    LayerGroup { mechanism: Mechanism::Softmax, pattern: Pattern::Window { left: keys - 1, right: 0 }, ..group }
}

/// Linear attention with the group's KV heads.
pub fn linear(group: LayerGroup) -> LayerGroup {
    let group = with_heads(group, group.heads_kv);
    LayerGroup { mechanism: Mechanism::LINEAR, softcap: None, scale: None, sinks: false, ..group }
}

fn is_latent(group: LayerGroup) -> bool {
    matches!(group.mechanism, Mechanism::Mla { .. })
}
