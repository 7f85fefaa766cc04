//! What sharing KV heads takes from the diversity of heads.
//!
//! Every query head has keys and values of its own; a shared KV head is their mean, as when a model is converted
//! (Ainslie et al. 2023, section 2.1). Heads whose outputs span the same subspace say the same: the overlap of two heads is
//! the mean squared cosine of the principal angles between their outputs' subspaces, and diversity is what is left of 1.

use attn_kernels::problem::{AttentionProblem, Dtype, Mechanism, Phase};
use attn_kernels::tensor::TensorName;

use super::lab::{self, SEED};
use super::{Limit, Probe, ProbeFinding};
use crate::advise::design::Design;
use crate::advise::scenario::Scenario;

/// Tokens.
const LENGTH: usize = 96;
const DIM: usize = 16;
/// Query heads at most.
const MAX_HEADS: usize = 32;

/// The probe.
pub struct Diversity;

impl Probe for Diversity {
    fn name(&self) -> &'static str {
        "head diversity"
    }

    fn summary(&self) -> &'static str {
        "1 - mean overlap of the subspaces that pairs of heads' outputs span, over that of MHA; shared KV heads are means of \
         independent ones, the worst case for sharing"
    }

    fn findings(&self, design: &Design, scenario: &Scenario) -> Vec<ProbeFinding> {
        // A latent is expanded to keys and values of each head's own: nothing is shared between them but the latent.
        let shared = design.groups.iter().filter(|group| !matches!(group.mechanism, Mechanism::Mla { .. }));
        let Some(share) = shared.map(|group| group.heads_q / group.heads_kv).max() else { return Vec::new() };
        let heads = scenario.model.heads_q.min(MAX_HEADS);
        let heads_kv = (heads / share.min(heads)).max(1);
        let limit = scenario.needs.head_diversity;
        vec![ProbeFinding {
            probe: self.name(),
            of: format!("head diversity, {share} query heads a KV head"),
            value: retained(heads, heads_kv),
            how: format!("{heads}:{heads_kv} heads over {LENGTH} tokens, d{DIM}, seed {SEED}"),
            limit: (limit > 0.0).then_some(Limit::AtLeast(limit)),
        }]
    }
}

/// Diversity with `heads_kv` KV heads over that with one a query head. `heads_kv` divides `heads`, or is rounded down to a
/// divisor.
pub fn retained(heads: usize, heads_kv: usize) -> f64 {
    let heads_kv = (1..=heads_kv).rev().find(|&kv| heads.is_multiple_of(kv)).unwrap_or(1);
    if heads < 2 { 1.0 } else { diversity(heads, heads_kv) / diversity(heads, heads) }
}

fn diversity(heads: usize, heads_kv: usize) -> f64 {
    let group = heads / heads_kv;
    let problem = AttentionProblem::softmax(Phase::Prefill, Dtype::F32, 1, (heads, heads_kv), (LENGTH, LENGTH), DIM);
    let stream = |tensor: u64, head: usize, token: usize| tensor << 40 | (head as u64) << 20 | token as u64;
    let inputs = |name: TensorName, head: usize, token: usize, out: &mut [f32]| {
        let tensor = match name {
            TensorName::Q => {
                lab::noise(SEED, stream(3, head, token), out);
                return;
            }
            TensorName::K => 4,
            _ => 5,
        };
        let mut own = vec![0.0; out.len()];
        out.fill(0.0);
        for member in head * group..(head + 1) * group {
            lab::noise(SEED, stream(tensor, member, token), &mut own);
            out.iter_mut().zip(&own).for_each(|(sum, x)| *sum += x / group as f32);
        }
    };
    let asked: Vec<_> = (0..heads).flat_map(|head| (0..LENGTH).map(move |token| (0, head, token))).collect();
    let outputs = lab::rows(&problem, inputs, &asked);
    let bases: Vec<Vec<Vec<f64>>> = outputs
        .chunks(LENGTH)
        .map(|tokens| {
            let column = |d: usize| tokens.iter().map(|row| row.o[d]).collect::<Vec<f64>>();
            lab::orthonormal(&(0..DIM).map(column).collect::<Vec<_>>())
        })
        .collect();
    let pairs: Vec<f64> =
        (0..heads).flat_map(|a| (0..a).map(move |b| (a, b))).map(|(a, b)| lab::overlap(&bases[a], &bases[b])).collect();
    1.0 - pairs.iter().sum::<f64>() / pairs.len() as f64
}
