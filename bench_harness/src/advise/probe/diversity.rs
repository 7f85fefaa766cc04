//! What sharing KV heads takes from the diversity of heads.
//!
//! Every query head has keys and values of its own; a shared KV head pools them, as when a model is converted
//! (Ainslie et al. 2023, section 2.1), and queries learn to single out the same token as before among the pooled keys. What a
//! head keeps is how much the subspace of its outputs then overlaps that of its outputs with its own keys and values, as the
//! mean squared cosine of the principal angles, above what two random subspaces share: 1 where nothing is shared, about one in
//! g where g independent heads are pooled. Heads of trained models resemble each other, and keep more.

use attn_kernels::problem::{AttentionProblem, Dtype, Mechanism, Phase};
use attn_kernels::tensor::TensorName;

use super::lab::{self, SEED};
use super::{Limit, Notebook, Probe, ProbeFinding};
use crate::advise::design::Design;
use crate::advise::scenario::Scenario;

/// Tokens.
const LENGTH: usize = 128;
const DIM: usize = 16;
/// q.k of the key that a query singles out, in its own head.
const LOGIT: f64 = 16.0;
/// Query heads at most, unless one group has more.
const MAX_HEADS: usize = 32;

/// The probe.
pub struct Diversity;

impl Probe for Diversity {
    fn name(&self) -> &'static str {
        "head diversity"
    }

    fn summary(&self) -> &'static str {
        "overlap of the subspace of a head's outputs under shared KV heads with that under its own, above chance: 1 for MHA; \
         pooled heads are independent here, the worst case for sharing"
    }

    fn findings(&self, design: &Design, scenario: &Scenario, notes: &mut Notebook) -> Vec<ProbeFinding> {
        // A latent is expanded to keys and values of each head's own: nothing is shared between them but the latent.
        let shared = design.groups.iter().filter(|group| !matches!(group.mechanism, Mechanism::Mla { .. }));
        let Some(share) = shared.map(|group| group.heads_q / group.heads_kv).max() else { return Vec::new() };
        // Whole groups of the design's size, as many as there is room for.
        let heads_kv = (scenario.model.heads_q.min(MAX_HEADS) / share).max(1);
        let heads = heads_kv * share;
        let limit = scenario.needs.head_diversity;
        vec![ProbeFinding {
            probe: self.name(),
            of: "head diversity".to_owned(),
            value: notes.result(format!("diversity {heads}:{heads_kv}"), || retained(heads, heads_kv)),
            how: format!("{heads}:{heads_kv} independent heads over {LENGTH} tokens, d{DIM}, seed {SEED}"),
            limit: (limit > 0.0).then_some(Limit::AtLeast(limit)),
        }]
    }
}

/// What heads keep with `heads_kv` KV heads, which divide `heads` or are rounded down to a divisor.
pub fn retained(heads: usize, heads_kv: usize) -> f64 {
    let heads_kv = (1..=heads_kv).rev().find(|&kv| heads.is_multiple_of(kv)).unwrap_or(1);
    let (own, shared) = (bases(heads, heads), bases(heads, heads_kv));
    let overlaps: f64 = own.iter().zip(&shared).map(|(own, shared)| lab::overlap(own, shared)).sum();
    let chance = DIM as f64 / LENGTH as f64;
    (overlaps / heads as f64 - chance) / (1.0 - chance)
}

/// An orthonormal basis of the space that each head's outputs span, as columns over tokens.
fn bases(heads: usize, heads_kv: usize) -> Vec<Vec<Vec<f64>>> {
    let group = heads / heads_kv;
    let problem = AttentionProblem::softmax(Phase::Prefill, Dtype::F32, 1, (heads, heads_kv), (LENGTH, LENGTH), DIM);
    let stream = |tensor: u64, head: usize, token: usize| tensor << 40 | (head as u64) << 20 | token as u64;
    let factor = (LOGIT / (DIM as f64 * problem.effective_scale())) as f32;
    let inputs = |name: TensorName, head: usize, token: usize, out: &mut [f32]| {
        let (tensor, head_kv, token) = match name {
            // The token that a query singles out lies elsewhere for each token and head.
            TensorName::Q => (4, head / group, (token * 37 + head * 11 + 5) % LENGTH),
            TensorName::K => (4, head, token),
            _ => (5, head, token),
        };
        // Pooled, with the size that a head's own have.
        let size = if name == TensorName::Q { factor } else { 1.0 } / (group as f32).sqrt();
        let mut own = vec![0.0; out.len()];
        out.fill(0.0);
        for member in head_kv * group..(head_kv + 1) * group {
            lab::noise(SEED, stream(tensor, member, token), &mut own);
            out.iter_mut().zip(&own).for_each(|(sum, x)| *sum += size * x);
        }
    };
    let asked: Vec<_> = (0..heads).flat_map(|head| (0..LENGTH).map(move |token| (0, head, token))).collect();
    let outputs = lab::rows(&problem, inputs, &asked);
    outputs
        .chunks(LENGTH)
        .map(|tokens| {
            let column = |d: usize| tokens.iter().map(|row| row.o[d]).collect::<Vec<f64>>();
            lab::orthonormal(&(0..DIM).map(column).collect::<Vec<_>>())
        })
        .collect()
}
