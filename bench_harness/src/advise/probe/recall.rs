//! Associative recall: is a single fact found again L tokens later?
//!
//! Every token has a random key and a random value. The last token's query is one earlier token's key, made large: the
//! needle. It is recalled if the output is closer to the needle's value than to the values of [`CHOICES`] - 1 other tokens,
//! so that an output without information is right once in [`CHOICES`] (after Arora et al. 2023, Zoology, multi-query
//! associative recall; one layer, no training).

use attn_kernels::input::hash64;
use attn_kernels::problem::Mechanism;
use attn_kernels::tensor::TensorName;

use super::lab::{self, SEED};
use super::{Limit, Notebook, Probe, ProbeFinding};
use crate::advise::design::Design;
use crate::advise::scenario::Scenario;
use crate::suite::presets::LayerGroup;

/// Needles, at this many neighbouring distances.
pub const TRIALS: usize = 16;
/// Values among which the needle's has to be the closest.
pub const CHOICES: usize = 256;
/// q.k of the needle: large enough that softmax singles it out of a million random keys.
const LOGIT: f64 = 24.0;
/// The share of needles that counts as being able to.
pub const ENOUGH: f64 = 0.95;
/// Widest head that is tried: wider ones recall no worse.
const MAX_DIM: usize = 64;

/// The probe.
pub struct Recall;

impl Probe for Recall {
    fn name(&self) -> &'static str {
        "recall"
    }

    fn summary(&self) -> &'static str {
        "16 needles at a distance among random keys: the share whose value is closer to the output than 255 others (f64 \
         oracle, best layer kind of the design; chance is 0.004)"
    }

    fn findings(&self, design: &Design, scenario: &Scenario, notes: &mut Notebook) -> Vec<ProbeFinding> {
        let longest = scenario.workloads.iter().map(|workload| workload.context_max).max().unwrap_or(1);
        let dim = scenario.model.head_dim.min(MAX_DIM);
        let mut distances = vec![scenario.needs.local_detail];
        distances.extend(&scenario.needs.retrieval);
        distances.sort_unstable();
        distances.dedup();
        distances
            .into_iter()
            .map(|distance| {
                let (value, layers) = best(design, distance as usize, longest as usize, dim, notes);
                ProbeFinding {
                    probe: self.name(),
                    of: format!("recall {distance} tokens back"),
                    value,
                    how: format!(
                        "{layers} of {} layers can; {longest} keys, d{dim}, seed {SEED}",
                        design.shape().layers()
                    ),
                    limit: Some(Limit::AtLeast(ENOUGH)),
                }
            })
            .collect()
    }
}

/// The recall of the layers that recall best, and how many layers recall enough.
fn best(design: &Design, distance: usize, keys: usize, dim: usize, notes: &mut Notebook) -> (f64, u32) {
    let mut best: f64 = 0.0;
    let mut layers = 0;
    for group in &design.groups {
        let name = format!("recall {:?} {:?} {distance} {keys} {dim}", group.mechanism, group.pattern);
        let recalled = notes.result(name, || recall(group, distance, keys, dim));
        best = best.max(recalled);
        layers += if recalled >= ENOUGH { group.count } else { 0 };
    }
    (best, layers)
}

/// The share of needles that one layer recalls: they are `distance`, `distance - 1`, ... tokens back of `keys`.
pub fn recall(group: &LayerGroup, distance: usize, keys: usize, dim: usize) -> f64 {
    let keys = keys.max(distance + 1);
    let problem = lab::problem(group, TRIALS, 1, keys, dim);
    let (dim, dim_v) = (problem.head_dim_qk, problem.head_dim_v);
    let needle = |trial: usize| keys - 1 - distance.saturating_sub(trial);
    let unit = 1.0 / (dim as f64).sqrt();
    let is_latent = matches!(problem.mechanism, Mechanism::Mla { .. });
    // A latent row is a key, and its head is the value.
    let value_stream = |token: usize| (token as u64) << 1 | u64::from(!is_latent);
    let key_stream = |token: usize| (token as u64) << 1;
    let scale = problem.effective_scale();
    let is_linear = matches!(problem.mechanism, Mechanism::Linear { .. });
    let inputs = |name: TensorName, head: usize, token: usize, out: &mut [f32]| match name {
        TensorName::Q if is_linear => sparse_code(key_stream(needle(head)), out),
        TensorName::K if is_linear => sparse_code(key_stream(token), out),
        TensorName::V => lab::noise(SEED, value_stream(token), out),
        TensorName::Q => {
            // Keys have length sqrt(dim) and scores are scaled: the needle's score is LOGIT.
            lab::noise(SEED, key_stream(needle(head)), out);
            let factor = (LOGIT * unit * unit / scale) as f32;
            out.iter_mut().for_each(|x| *x *= factor);
        }
        _ => lab::noise(SEED, key_stream(token), out),
    };
    let asked: Vec<_> = (0..TRIALS).map(|trial| (0, trial, 0)).collect();
    let found = lab::rows(&problem, inputs, &asked);
    // What the other values have in common tells nothing: it is the mean of all, which random values have near zero.
    let value = |token: usize| match is_latent {
        true => lab::noise_f64(SEED, value_stream(token), dim)[..dim_v].to_vec(),
        false => lab::noise_f64(SEED, value_stream(token), dim_v),
    };
    let is_recalled = |trial: usize| {
        let own = needle(trial);
        let closeness = |token: usize| lab::dot(&found[trial].o, &value(token)) / lab::norm(&value(token));
        let others = (1..).map(|step| (own + step * stride(keys)) % keys).take((CHOICES - 1).min(keys - 1));
        let ours = closeness(own);
        // An output of zeros is close to nothing.
        lab::norm(&found[trial].o) > 0.0 && others.filter(|&other| other != own).all(|other| closeness(other) < ours)
    };
    (0..TRIALS).filter(|&trial| is_recalled(trial)).count() as f64 / TRIALS as f64
}

/// The best of keys for features that are never negative: a few large elements, and next to nothing elsewhere. Random keys of
/// the usual kind would all look alike to them.
fn sparse_code(stream: u64, out: &mut [f32]) {
    const ACTIVE: u64 = 4;
    const SIZE: f32 = 8.0;
    out.fill(-SIZE);
    for index in 0..ACTIVE {
        let place = hash64(hash64(SEED, stream), index) % out.len() as u64;
        out[place as usize] = SIZE;
    }
}

/// A step that visits other tokens of the whole sequence.
fn stride(keys: usize) -> usize {
    (keys / CHOICES).max(1) | 1
}
