//! What a latent keeps of keys and values.
//!
//! The keys and values of all heads together are rows of some rank. A latent of at least that rank holds them exactly; a
//! smaller one loses what lies outside it. Here rows of a given rank are made, cut to the latent, and attention over both is
//! compared (the idea of DeepSeek-V2, section 2.1, at an eighth of its sizes).

use attn_kernels::problem::{AttentionProblem, Dtype, Mechanism, Phase};
use attn_kernels::tensor::TensorName;

use super::lab::{self, SEED};
use super::{Notebook, Probe, ProbeFinding};
use crate::advise::design::Design;
use crate::advise::scenario::Scenario;

const LENGTH: usize = 128;
const HEADS: usize = 8;
const DIM: usize = 16;
/// An eighth of DeepSeek's 512.
const LATENT: usize = 64;

/// The probe.
pub struct Latent;

impl Probe for Latent {
    fn name(&self) -> &'static str {
        "latent rank"
    }

    fn summary(&self) -> &'static str {
        "error of attention when keys and values of a given joint rank are cut to a latent of 64 (all sizes an eighth of \
         DeepSeek's 512): nothing is lost up to the latent's rank"
    }

    fn findings(&self, design: &Design, _scenario: &Scenario, _notes: &mut Notebook) -> Vec<ProbeFinding> {
        if !design.groups.iter().any(|group| matches!(group.mechanism, Mechanism::Mla { .. })) {
            return Vec::new();
        }
        [(1.0, LATENT), (1.5, LATENT * 3 / 2)]
            .into_iter()
            .map(|(times, rank)| ProbeFinding {
                probe: self.name(),
                of: format!("error where the joint rank is {times} x the latent"),
                value: error(rank, LATENT),
                how: format!("{HEADS} heads, d{DIM}, {LENGTH} tokens, seed {SEED}"),
                limit: None,
            })
            .collect()
    }
}

/// The relative error of attention whose keys and values, of joint rank `rank`, are cut to `latent` of its directions.
pub fn error(rank: usize, latent: usize) -> f64 {
    let exact = attend(rank, rank);
    lab::relative_l2(&attend(rank, latent.min(rank)), &exact)
}

/// Every head's output where only the first `kept` of `rank` directions of keys and values remain.
fn attend(rank: usize, kept: usize) -> Vec<attn_kernels::reference::RowReference> {
    let problem = AttentionProblem::softmax(Phase::Prefill, Dtype::F32, 1, (HEADS, HEADS), (LENGTH, LENGTH), DIM);
    let up = |tensor: u64, head: usize, direction: usize| {
        lab::noise_f64(SEED, tensor << 40 | (head as u64) << 20 | direction as u64, DIM)
    };
    let ups: Vec<Vec<Vec<f64>>> = [8, 9]
        .into_iter()
        .flat_map(|tensor| (0..HEADS).map(move |head| (tensor, head)))
        .map(|(tensor, head)| (0..kept).map(|direction| up(tensor, head, direction)).collect())
        .collect();
    let unit = 1.0 / (rank as f64).sqrt();
    let inputs = |name: TensorName, head: usize, token: usize, out: &mut [f32]| {
        if name == TensorName::Q {
            lab::noise(SEED, 10 << 40 | (head as u64) << 20 | token as u64, out);
            return;
        }
        let row = lab::noise_f64(SEED, 11 << 40 | token as u64, rank);
        let ups = &ups[if name == TensorName::K { head } else { HEADS + head }];
        let mut sum = vec![0.0; out.len()];
        for (x, up) in row.iter().zip(ups) {
            sum.iter_mut().zip(up).for_each(|(sum, u)| *sum += unit * x * u);
        }
        out.iter_mut().zip(sum).for_each(|(out, x)| *out = x as f32);
    };
    let asked: Vec<_> = (0..HEADS).flat_map(|head| (0..LENGTH).map(move |token| (0, head, token))).collect();
    lab::rows(&problem, inputs, &asked)
}
