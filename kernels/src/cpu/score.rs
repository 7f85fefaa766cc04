//! What happens to scaled scores before the softmax: soft-capping, bias and boolean masks.

use std::ops::Range;

use half::{bf16, f16};

use super::rows::Row;
use super::simd::exp::{load_padded, store_padded, tanh};
use super::simd::{Isa, Simd, Task};
use crate::problem::{AttentionProblem, Bias};
use crate::tensor::{ElementType, Float, Tensor, TensorName, TensorSet};

/// score -> softcap(score) + bias, -inf where a mask hides the pair.
pub(crate) struct ScoreRules<'a> {
    softcap: Option<f32>,
    slopes: Option<&'a [f32]>,
    bias: Option<BiasView<'a>>,
}

/// A bias tensor whose dimensions of size 1 are broadcast.
struct BiasView<'a> {
    tensor: &'a Tensor,
    strides: [usize; 3],
    /// Keys from here on are hidden.
    keys: usize,
    is_one_for_all_keys: bool,
}

impl<'a> ScoreRules<'a> {
    /// The rules of a problem; `slopes` are its [`alibi_slopes`].
    pub(crate) fn new(problem: &AttentionProblem, slopes: &'a [f32], inputs: &'a TensorSet) -> Self {
        let bias = matches!(problem.bias, Bias::Bool | Bias::Additive).then(|| {
            let tensor = inputs.get(TensorName::Bias);
            let &[batch, heads, queries, keys] = tensor.dims() else { panic!("a bias has four dimensions") };
            let stride = |dim, elements| if dim == 1 { 0 } else { elements };
            BiasView {
                tensor,
                strides: [stride(batch, heads * queries * keys), stride(heads, queries * keys), stride(queries, keys)],
                keys: if keys == 1 { usize::MAX } else { keys },
                is_one_for_all_keys: keys == 1,
            }
        });
        ScoreRules {
            softcap: problem.softcap.map(|cap| cap as f32),
            slopes: (problem.bias == Bias::Alibi).then_some(slopes),
            bias,
        }
    }

    /// The part of a row's keys that a short mask does not hide.
    pub(crate) fn cut(&self, keys: &Range<usize>) -> Range<usize> {
        let limit = self.bias.as_ref().map_or(usize::MAX, |bias| bias.keys);
        keys.start.min(limit)..keys.end.min(limit)
    }

    /// Whether [`ScoreRules::apply`] does anything.
    pub(crate) fn change_scores(&self) -> bool {
        self.softcap.is_some() || self.slopes.is_some() || self.bias.is_some()
    }

    /// Applies the rules to the scores of keys `first_key..`, which [`ScoreRules::cut`] left.
    pub(crate) fn apply(&self, isa: Isa, sequence: usize, row: &Row, first_key: usize, scores: &mut [f32]) {
        if let Some(cap) = self.softcap {
            isa.run(Softcap { scores, cap });
        }
        if let Some(slopes) = self.slopes {
            let slope = slopes[row.head];
            for (key, score) in scores.iter_mut().enumerate() {
                *score -= slope * (row.position - (first_key + key) as i64).unsigned_abs() as f32;
            }
        }
        if let Some(bias) = &self.bias {
            bias.apply([sequence, row.head, row.query], first_key, scores);
        }
    }
}

impl BiasView<'_> {
    fn apply(&self, index: [usize; 3], first_key: usize, scores: &mut [f32]) {
        let start: usize = index.iter().zip(self.strides).map(|(index, stride)| index * stride).sum();
        match self.tensor.element() {
            ElementType::F32 => self.add(self.tensor.as_slice::<f32>(), start, first_key, scores),
            ElementType::F16 => self.add(self.tensor.as_slice::<f16>(), start, first_key, scores),
            ElementType::Bf16 => self.add(self.tensor.as_slice::<bf16>(), start, first_key, scores),
            ElementType::Bool => {
                let mask = self.tensor.as_slice::<u8>();
                self.each(mask, start, first_key, scores, |score, seen| {
                    if seen == 0 {
                        *score = f32::NEG_INFINITY;
                    }
                });
            }
            ElementType::E4m3 | ElementType::I32 => unreachable!("a bias is additive or boolean"),
        }
    }

    fn add<T: Float>(&self, bias: &[T], start: usize, first_key: usize, scores: &mut [f32]) {
        self.each(bias, start, first_key, scores, |score, bias| *score += bias.to_f32());
    }

    #[inline(always)]
    fn each<T: Copy>(&self, bias: &[T], start: usize, first: usize, scores: &mut [f32], then: impl Fn(&mut f32, T)) {
        if self.is_one_for_all_keys {
            scores.iter_mut().for_each(|score| then(score, bias[start]));
        } else {
            let bias = &bias[start + first..start + first + scores.len()];
            scores.iter_mut().zip(bias).for_each(|(score, &bias)| then(score, bias));
        }
    }
}

/// The ALiBi slope of every query head.
pub(crate) fn alibi_slopes(problem: &AttentionProblem) -> Vec<f32> {
    (0..problem.heads_q).map(|head| problem.alibi_slope(head) as f32).collect()
}

struct Softcap<'a> {
    scores: &'a mut [f32],
    cap: f32,
}

impl Task for Softcap<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let (cap, inverse) = (S::splat(self.cap), S::splat(1.0 / self.cap));
        for start in (0..self.scores.len()).step_by(S::LANES) {
            let chunk = &mut self.scores[start..];
            let count = chunk.len().min(S::LANES);
            let x = load_padded::<S>(chunk);
            store_padded::<S>(S::mul(cap, tanh::<S>(S::mul(x, inverse))), &mut chunk[..count]);
        }
    }
}
