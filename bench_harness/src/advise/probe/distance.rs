//! How far a design's output is from full softmax attention on the same inputs.

use attn_kernels::input::{Generator, InputSpec};
use attn_kernels::problem::{Mechanism, Pattern};
use attn_kernels::tensor::TensorName;

use super::lab::{self, SEED};
use super::{Limit, Notebook, Probe, ProbeFinding};
use crate::advise::design::Design;
use crate::advise::scenario::Scenario;
use crate::suite::presets::LayerGroup;

/// Tokens: more than the windows of hybrids, so that something is hidden.
const LENGTH: usize = 8192;
/// Rows that are compared: the last ones, which see most.
const ROWS: usize = 64;
const DIM: usize = 64;

/// The probe.
pub struct Distance;

impl Probe for Distance {
    fn name(&self) -> &'static str {
        "distance"
    }

    fn summary(&self) -> &'static str {
        "relative L2 distance of a layer's output from full softmax attention on the same seeded inputs, peaked rows \
         included (worst layer kind of the design)"
    }

    fn findings(&self, design: &Design, scenario: &Scenario, notes: &mut Notebook) -> Vec<ProbeFinding> {
        let mut noted = |group: &LayerGroup| {
            notes.result(format!("distance {:?} {:?}", group.mechanism, group.pattern), || distance(group))
        };
        let value = design.groups.iter().map(&mut noted).fold(0.0, f64::max);
        let limit = scenario.needs.max_distance;
        vec![ProbeFinding {
            probe: self.name(),
            of: "distance from full attention".to_owned(),
            value,
            how: format!("{ROWS} last rows of {LENGTH} tokens, d{DIM}, seed {SEED}"),
            limit: (limit < 1.0).then_some(Limit::AtMost(limit)),
        }]
    }
}

/// The distance of one layer's attention; 0 for full softmax and for latent attention, which is softmax over all tokens.
pub fn distance(group: &LayerGroup) -> f64 {
    let is_softmax = !matches!(group.mechanism, Mechanism::Linear { .. });
    if (is_softmax && group.pattern == Pattern::Full) || matches!(group.mechanism, Mechanism::Mla { .. }) {
        return 0.0;
    }
    let full = lab::problem(&LayerGroup::dense(1, 1, 1, DIM), 1, LENGTH, LENGTH, DIM);
    let own = lab::problem(group, 1, LENGTH, LENGTH, DIM);
    let spec = InputSpec::new(&full, SEED);
    let generator = Generator::new(&full, &spec, 0);
    let inputs =
        |name: TensorName, head: usize, token: usize, out: &mut [f32]| generator.row(name, 0, head, token, out);
    let asked: Vec<_> = (LENGTH - ROWS..LENGTH).map(|token| (0, 0, token)).collect();
    lab::relative_l2(&lab::rows(&own, inputs, &asked), &lab::rows(&full, inputs, &asked))
}
