//! What storing a cache in eight bits changes in the output.

use attn_kernels::e4m3::e4m3;
use attn_kernels::input::{Generator, InputSpec};
use attn_kernels::tensor::TensorName;

use super::lab::{self, SEED};
use super::{Limit, Notebook, Probe, ProbeFinding};
use crate::advise::design::Design;
use crate::advise::scenario::Scenario;
use crate::suite::presets::LayerGroup;

const LENGTH: usize = 2048;
const ROWS: usize = 64;
const DIM: usize = 64;

/// The probe.
pub struct Precision;

impl Probe for Precision {
    fn name(&self) -> &'static str {
        "precision"
    }

    fn summary(&self) -> &'static str {
        "relative L2 change of full attention's output when keys and values are rounded to e4m3 (3 bits of mantissa)"
    }

    fn findings(&self, design: &Design, scenario: &Scenario, notes: &mut Notebook) -> Vec<ProbeFinding> {
        if design.element.bits() > 8 {
            return Vec::new();
        }
        let limit = scenario.needs.max_distance;
        vec![ProbeFinding {
            probe: self.name(),
            of: "change by an 8-bit cache".to_owned(),
            value: notes.result("precision".to_owned(), change),
            how: format!("{ROWS} last rows of {LENGTH} tokens, d{DIM}, e4m3, seed {SEED}"),
            limit: (limit < 1.0).then_some(Limit::AtMost(limit)),
        }]
    }
}

/// The change of the last rows.
pub fn change() -> f64 {
    let problem = lab::problem(&LayerGroup::dense(1, 1, 1, DIM), 1, LENGTH, LENGTH, DIM);
    let spec = InputSpec::new(&problem, SEED);
    let generator = Generator::new(&problem, &spec, 0);
    let exact = |name: TensorName, head: usize, token: usize, out: &mut [f32]| generator.row(name, 0, head, token, out);
    let rounded = |name: TensorName, head: usize, token: usize, out: &mut [f32]| {
        generator.row(name, 0, head, token, out);
        if name != TensorName::Q {
            out.iter_mut().for_each(|x| *x = e4m3::from_f32(*x).to_f32());
        }
    };
    let asked: Vec<_> = (LENGTH - ROWS..LENGTH).map(|token| (0, 0, token)).collect();
    lab::relative_l2(&lab::rows(&problem, rounded, &asked), &lab::rows(&problem, exact, &asked))
}
