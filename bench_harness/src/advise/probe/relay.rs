//! How far information can travel through stacked windows.
//!
//! A layer whose window is w hands on what lies up to w - 1 tokens back. Through a stack of S such layers, a value travels
//! S (w - 1) tokens if every layer forwards it, and not one more (Beltagy et al. 2020, section 3.1; Jiang et al. 2023,
//! section 2). That is an upper bound: a layer forwards what it singled out, before anybody asked for it.

use attn_kernels::problem::{Mechanism, Pattern};
use attn_kernels::tensor::TensorName;

use super::lab::{self, SEED};
use super::{Notebook, Probe, ProbeFinding};
use crate::advise::design::Design;
use crate::advise::scenario::Scenario;
use crate::kv::variants::windowed;
use crate::suite::presets::LayerGroup;

/// The probe.
pub struct Relay;

impl Probe for Relay {
    fn name(&self) -> &'static str {
        "relay"
    }

    fn summary(&self) -> &'static str {
        "how far a value can be handed on through all layers, layers x (window - 1): an upper bound, for what is forwarded \
         before anybody asks for it"
    }

    fn findings(&self, design: &Design, _scenario: &Scenario, _notes: &mut Notebook) -> Vec<ProbeFinding> {
        let is_windowed = |pattern: Pattern| matches!(pattern, Pattern::Window { left, .. } if left != usize::MAX);
        if !design.groups.iter().all(|group| group.mechanism == Mechanism::Softmax && is_windowed(group.pattern)) {
            return Vec::new();
        }
        let reach: usize = design.groups.iter().map(|group| group.count as usize * reach_of(group.pattern)).sum();
        let carried = relayed(3, 16, 3 * 15);
        vec![ProbeFinding {
            probe: self.name(),
            of: "tokens that stacked windows can relay".to_owned(),
            value: reach as f64,
            how: format!(
                "layers x (window - 1); 3 layers of 16 keys carry {carried:.3} of a value 45 tokens, seed {SEED}"
            ),
            limit: None,
        }]
    }
}

fn reach_of(pattern: Pattern) -> usize {
    match pattern {
        Pattern::Window { left, .. } => left,
        _ => 0,
    }
}

/// What arrives at the last token, as the cosine with what was sent `distance` tokens before, through `layers` layers that
/// each look back as far as their `window` allows, but not beyond the sender.
pub fn relayed(layers: usize, window: usize, distance: usize) -> f64 {
    const DIM: usize = 64;
    /// Score of the token that a layer copies.
    const LOGIT: f64 = 40.0;
    let length = distance + 1;
    let group = windowed(LayerGroup::dense(1, 1, 1, DIM), window);
    let problem = lab::problem(&group, 1, length, length, DIM);
    let sent = lab::noise_f64(SEED, 1, DIM);
    let mut values: Vec<Vec<f64>> = (0..length)
        .map(|token| if token == 0 { sent.clone() } else { lab::noise_f64(SEED, 1000 + token as u64, DIM) })
        .collect();
    let everything: Vec<_> = (0..length).map(|token| (0, 0, token)).collect();
    for layer in 0..layers {
        let hop = (window - 1).min(distance.saturating_sub(layer * (window - 1)));
        let factor = (LOGIT / (DIM as f64 * problem.effective_scale())) as f32;
        let inputs = |name: TensorName, _: usize, token: usize, out: &mut [f32]| match name {
            TensorName::V => out.iter_mut().zip(&values[token]).for_each(|(out, &x)| *out = x as f32),
            // A query is the positional code of the token to copy.
            TensorName::Q => {
                lab::noise(SEED, 2_000_000 + token.saturating_sub(hop) as u64, out);
                out.iter_mut().for_each(|x| *x *= factor);
            }
            _ => lab::noise(SEED, 2_000_000 + token as u64, out),
        };
        values = lab::rows(&problem, inputs, &everything).into_iter().map(|row| row.o).collect();
    }
    let arrived = &values[length - 1];
    lab::dot(arrived, &sent) / (lab::norm(arrived) * lab::norm(&sent))
}
