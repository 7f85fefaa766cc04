//! How much of softmax's attention one relevant token gets as the context grows.
//!
//! The weight of a token whose score stands out by a fixed margin falls as the others become more: weight = exp(score - lse),
//! with lse growing as the logarithm of the length. Beside it the entropy, in units of the logarithm of the length: 1 is
//! attention spread evenly over all tokens.

use attn_kernels::problem::Mechanism;
use attn_kernels::tensor::TensorName;

use super::lab::{self, SEED};
use super::{Notebook, Probe, ProbeFinding};
use crate::advise::design::Design;
use crate::advise::scenario::Scenario;
use crate::suite::presets::LayerGroup;

/// How far the relevant token's score stands out: enough to get most of the attention among a few hundred tokens.
const MARGIN: f64 = 10.0;
const DIM: usize = 64;

/// The probe.
pub struct Concentration;

impl Probe for Concentration {
    fn name(&self) -> &'static str {
        "concentration"
    }

    fn summary(&self) -> &'static str {
        "softmax weight of one token whose score is 10 among random ones, and the entropy as a share of ln(length), at the \
         shortest and the longest context (layers that see most)"
    }

    fn findings(&self, design: &Design, scenario: &Scenario, _notes: &mut Notebook) -> Vec<ProbeFinding> {
        let is_softmax = |group: &&LayerGroup| group.mechanism == Mechanism::Softmax;
        let Some(group) = design.groups.iter().filter(is_softmax).max_by_key(|group| visible(group, usize::MAX)) else {
            return Vec::new();
        };
        let contexts = scenario.workloads.iter().flat_map(|workload| [workload.context_min, workload.context_max]);
        let (shortest, longest) = contexts.fold((u64::MAX, 0), |(a, b), tokens| (a.min(tokens), b.max(tokens)));
        let mut found = Vec::new();
        for length in [shortest, longest] {
            let (weight, entropy) = concentration(group, length as usize);
            let how = format!("entropy {entropy:.2} of ln(n); d{DIM}, seed {SEED}");
            let of = format!("weight of one relevant token in {length}");
            found.push(ProbeFinding { probe: self.name(), of, value: weight, how, limit: None });
        }
        found
    }
}

fn visible(group: &LayerGroup, length: usize) -> usize {
    match group.pattern {
        attn_kernels::problem::Pattern::Window { left, .. } => left.saturating_add(1).min(length),
        _ => length,
    }
}

/// The weight of the relevant token, the last one, and the entropy over ln(visible tokens).
pub fn concentration(group: &LayerGroup, length: usize) -> (f64, f64) {
    let problem = lab::problem(group, 1, 1, length, DIM);
    let scale = problem.effective_scale();
    let mut query = vec![0.0; DIM];
    lab::noise(SEED, 7, &mut query);
    let size = query.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>();
    let is_relevant = |token: usize| token + 1 == length;
    let key = |token: usize, out: &mut [f32]| match is_relevant(token) {
        // Along the query, with the length that gives the margin.
        true => out.iter_mut().zip(&query).for_each(|(out, &q)| *out = (f64::from(q) * MARGIN / (size * scale)) as f32),
        false => lab::noise(SEED, 100 + token as u64, out),
    };
    let inputs = |name: TensorName, _: usize, token: usize, out: &mut [f32]| match name {
        TensorName::Q => out.copy_from_slice(&query),
        TensorName::V => {
            // The first element of a value is its key's score, so that the output's is the mean score.
            let mut own = vec![0.0; DIM];
            key(token, &mut own);
            out.fill(0.0);
            out[0] = (own.iter().zip(&query).map(|(k, q)| f64::from(*k) * f64::from(*q)).sum::<f64>() * scale) as f32;
            out[1] = if is_relevant(token) { 1.0 } else { 0.0 };
        }
        _ => key(token, out),
    };
    let row = lab::rows(&problem, inputs, &[(0, 0, 0)]).remove(0);
    // -sum p ln p = lse - mean score; and the relevant token alone has a second element.
    let most = (visible(group, length) as f64).ln();
    (row.o[1], if most > 0.0 { ((row.lse - row.o[0]) / most).max(0.0) } else { 0.0 })
}
