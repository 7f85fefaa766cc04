//! The oracle against second derivations: dense matrices, finite differences, recurrences, projected keys, and cases that
//! are worked out by hand.

use proptest::prelude::*;

use super::*;
use crate::input::{Generator, InputSpec, SparseGrad, tensor_shape};
use crate::pattern::Visibility;
use crate::problem::{Bias, CausalAlignment, KvLayout, Layout, LengthDistribution, Lengths, Pattern, Phase};
use crate::tensor::{Rows, Tensor, TensorSet};

const PATTERNS: [Pattern; 8] = [
    Pattern::Full,
    Pattern::Window { left: 3, right: 0 },
    Pattern::Window { left: 0, right: 5 },
    Pattern::Dilated { window: 2, step: 3 },
    Pattern::Longformer { window: 2, global: 2, dilation: 2 },
    Pattern::Bigbird { block: 4, window: 3, global: 2, random: 2, seed: 9 },
    Pattern::Strided { stride: 5 },
    Pattern::Fixed { block: 6, summary: 2 },
];

fn small(phase: Phase, dtype: Dtype) -> AttentionProblem {
    let mut problem = AttentionProblem::softmax(phase, dtype, 2, (4, 2), (11, 14), 6);
    problem.head_dim_v = 5;
    problem
}

fn all_rows(problem: &AttentionProblem) -> Vec<Row> {
    let rows = |(b, len): (usize, usize)| {
        (0..problem.heads_q).flat_map(move |head| (0..len).map(move |query| (b, head, query)))
    };
    problem.lengths_q().into_iter().enumerate().flat_map(rows).collect()
}

fn close(actual: f64, expected: f64, tolerance: f64) -> bool {
    actual == expected || (actual - expected).abs() <= tolerance * expected.abs().max(1.0)
}

#[track_caller]
fn assert_close(actual: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    for (n, (&actual, &expected)) in actual.iter().zip(expected).enumerate() {
        assert!(close(actual, expected, tolerance), "{what}, element {n}: {actual} is not {expected}");
    }
}

/// The matrices of one (sequence, query head), in f64.
struct Matrices {
    q: Vec<Vec<f64>>,
    k: Vec<Vec<f64>>,
    v: Vec<Vec<f64>>,
    d_o: Vec<Vec<f64>>,
    /// Negative infinity hides.
    bias: Vec<Vec<f64>>,
    sink: Option<f64>,
}

fn matrix(tensor: &Tensor, rows: &Rows, sequence: usize, head: usize) -> Vec<Vec<f64>> {
    (0..rows.lengths[sequence])
        .map(|token| {
            let first = rows.offset(sequence, head, token);
            (first..first + rows.dim).map(|index| tensor.get_f64(index)).collect()
        })
        .collect()
}

impl Matrices {
    fn new(problem: &AttentionProblem, tensors: &TensorSet, sequence: usize, head: usize) -> Self {
        let kv = head / problem.group_size();
        let table = tensors.find(TensorName::PageTable);
        let (dk, dv) = (problem.head_dim_qk, problem.head_dim_v);
        let q = matrix(tensors.get(TensorName::Q), &Rows::of_queries(problem, dk), sequence, head);
        let k = matrix(tensors.get(TensorName::K), &Rows::of_keys(problem, dk, table), sequence, kv);
        let v = match tensors.find(TensorName::V) {
            Some(v) => matrix(v, &Rows::of_keys(problem, dv, table), sequence, kv),
            None => k.iter().map(|row| row[..dv].to_vec()).collect(),
        };
        let d_o = tensors
            .find(TensorName::DO)
            .map(|d_o| matrix(d_o, &Rows::of_queries(problem, dv), sequence, head))
            .unwrap_or_default();
        let visibility = Visibility::new(problem, q.len(), k.len());
        let pair = |i: usize, j: usize| {
            if !visibility.sees(head, i, j) {
                return f64::NEG_INFINITY;
            }
            match problem.bias {
                Bias::None => 0.0,
                Bias::Alibi => {
                    let p = i as f64 + visibility.query_offset as f64;
                    -problem.alibi_slope(head) * (p - j as f64).abs()
                }
                Bias::Bool | Bias::Additive => {
                    let bias = tensors.get(TensorName::Bias);
                    let value = bias.get_f64(i * bias.dims()[3] + j);
                    match problem.bias {
                        Bias::Bool if value == 0.0 => f64::NEG_INFINITY,
                        Bias::Bool => 0.0,
                        _ => value,
                    }
                }
            }
        };
        let bias = (0..q.len()).map(|i| (0..k.len()).map(|j| pair(i, j)).collect()).collect();
        let sink = problem.sinks.then(|| tensors.get(TensorName::Sinks).get_f64(head));
        Matrices { q, k, v, d_o, bias, sink }
    }

    /// P, with the log-sum-exps: exponentials of all scores at once, no maximum subtracted.
    fn softmax(&self, problem: &AttentionProblem) -> (Vec<Vec<f64>>, Vec<f64>) {
        let scale = problem.effective_scale();
        let row = |q: &Vec<f64>, bias: &Vec<f64>| {
            let mut weights: Vec<f64> = self
                .k
                .iter()
                .zip(bias)
                .map(|(k, bias)| {
                    let s = scale * q.iter().zip(k).map(|(a, b)| a * b).sum::<f64>();
                    (problem.softcap.map_or(s, |cap| cap * (s / cap).tanh()) + bias).exp()
                })
                .collect();
            let sum: f64 = weights.iter().sum();
            let all = sum + self.sink.map_or(0.0, f64::exp);
            if sum > 0.0 {
                weights.iter_mut().for_each(|w| *w /= all);
            }
            (weights, sum.ln())
        };
        self.q.iter().zip(&self.bias).map(|(q, bias)| row(q, bias)).unzip()
    }

    fn output(&self, problem: &AttentionProblem) -> Vec<Vec<f64>> {
        self.softmax(problem).0.iter().map(|p| weighted(p, &self.v, problem.head_dim_v)).collect()
    }

    /// sum of dO . O: what finite differences differentiate.
    fn loss(&self, problem: &AttentionProblem) -> f64 {
        self.output(problem).iter().flatten().zip(self.d_o.iter().flatten()).map(|(o, d)| o * d).sum()
    }
}

fn weighted(weights: &[f64], rows: &[Vec<f64>], dim: usize) -> Vec<f64> {
    (0..dim).map(|d| weights.iter().zip(rows).map(|(w, row)| w * row[d]).sum()).collect()
}

fn check_forward(problem: &AttentionProblem) {
    let spec = InputSpec::new(problem, 17);
    let tensors = Generator::new(problem, &spec, 1).inputs();
    let (generated, given) = (GeneratedRows::new(problem, &spec, 1), TensorRows::new(problem, &tensors));
    let rows = all_rows(problem);
    let from_generator = Oracle::new(problem, &generated).forward_rows(&rows);
    let from_tensors = Oracle::new(problem, &given).forward_rows(&rows);
    let what = format!("{problem:?}");
    for (index, &(b, h, i)) in rows.iter().enumerate() {
        let matrices = Matrices::new(problem, &tensors, b, h);
        let (weights, lse) = matrices.softmax(problem);
        let expected = weighted(&weights[i], &matrices.v, problem.head_dim_v);
        let row = &from_generator[index];
        assert_close(&row.o, &expected, 1e-11, &what);
        assert!(close(row.lse, lse[i], 1e-11), "{what}: LSE {} is not {}", row.lse, lse[i]);
        assert_eq!(row.o, from_tensors[index].o, "{what}: both sources hold the same rows");
        let terms: f64 = weights[i].iter().zip(&matrices.v).map(|(p, v)| p * p * sum_of_squares(v)).sum();
        assert!(close(row.scale, terms.sqrt(), 1e-11), "{what}: scale");
        let distance = row.o.iter().zip(&row.o_lp).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
        assert!(distance <= 3.0 * problem.dtype.ulp() * row.scale.max(sum_of_squares(&row.o).sqrt()), "{what}: lp");
    }
}

#[test]
fn forward_rows_are_the_dense_softmax_for_every_pattern_and_alignment() {
    for pattern in PATTERNS {
        for causal in [false, true] {
            for (len_q, len_kv) in [(11, 14), (14, 11), (1, 9), (9, 1), (13, 13)] {
                for causal_alignment in [CausalAlignment::BottomRight, CausalAlignment::TopLeft] {
                    let mut problem = small(Phase::Prefill, Dtype::F32);
                    (problem.pattern, problem.causal) = (pattern, causal);
                    problem.causal_alignment = causal_alignment;
                    (problem.seqlen_q, problem.seqlen_kv) = (Lengths::Same(len_q), Lengths::Same(len_kv));
                    check_forward(&problem);
                }
            }
        }
    }
}

#[test]
fn forward_rows_know_every_option() {
    for dtype in Dtype::ALL {
        for bias in [Bias::None, Bias::Bool, Bias::Additive, Bias::Alibi] {
            for (sinks, softcap) in [(false, None), (true, Some(2.5))] {
                let mut problem = small(Phase::Prefill, dtype);
                (problem.bias, problem.sinks, problem.softcap, problem.causal) = (bias, sinks, softcap, true);
                problem.scale = Some(0.7);
                check_forward(&problem);
            }
        }
        let mut ragged = small(Phase::Append, dtype);
        ragged.batch = 3;
        ragged.layout = Layout::Thd;
        ragged.seqlen_q = Lengths::List(vec![1, 150, 0]);
        ragged.seqlen_kv = Lengths::Varlen { distribution: LengthDistribution::Uniform, min: 1, max: 300, seed: 3 };
        ragged.causal = true;
        check_forward(&ragged);
        let mut paged = small(Phase::Decode, dtype);
        paged.seqlen_q = Lengths::Same(1);
        paged.seqlen_kv = Lengths::List(vec![37, 5]);
        paged.kv_layout = KvLayout::Paged { page_size: 16 };
        check_forward(&paged);
        let mut latent = AttentionProblem::softmax(Phase::Decode, dtype, 2, (4, 1), (2, 33), 12);
        latent.mechanism = Mechanism::Mla { latent: 8, rope: 4, nope: 6 };
        latent.head_dim_v = 8;
        latent.causal = true;
        assert!((latent.effective_scale() - 0.1f64.sqrt()).abs() < 1e-15);
        check_forward(&latent);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn visible_keys_agree_with_the_kernels_visibility(
        pattern in 0..PATTERNS.len(), causal: bool, top_left: bool, len_q in 1..70usize, len_kv in 1..70usize,
    ) {
        let mut problem = small(Phase::Prefill, Dtype::F32);
        (problem.pattern, problem.causal) = (PATTERNS[pattern], causal);
        problem.causal_alignment = if top_left { CausalAlignment::TopLeft } else { CausalAlignment::BottomRight };
        let definition = Definition::new(&problem, len_q, len_kv);
        let visibility = Visibility::new(&problem, len_q, len_kv);
        for head in [0, 3] {
            for query in 0..len_q {
                let keys = definition.keys(head, query);
                let expected: Vec<u32> =
                    (0..len_kv).filter(|&key| visibility.sees(head, query, key)).map(|key| key as u32).collect();
                prop_assert_eq!(&keys, &expected, "query {}", query);
                prop_assert!(keys.len() <= definition.keys_bound(query));
            }
        }
    }
}

/// A problem whose Q, K and V are given as f32 numbers, one head and one sequence.
fn by_hand(q: &[f32], k: &[f32], v: &[f32], dim: usize) -> (AttentionProblem, TensorSet) {
    let lengths = (q.len() / dim, k.len() / dim);
    let mut problem = AttentionProblem::softmax(Phase::Prefill, Dtype::F32, 1, (1, 1), lengths, dim);
    problem.head_dim_v = v.len() / lengths.1.max(1);
    problem.scale = Some(1.0);
    let mut tensors = TensorSet::new();
    tensors.insert(TensorName::Q, Tensor::from_slice(&[1, lengths.0, 1, dim], q));
    tensors.insert(TensorName::K, Tensor::from_slice(&[1, lengths.1, 1, dim], k));
    tensors.insert(TensorName::V, Tensor::from_slice(&[1, lengths.1, 1, problem.head_dim_v], v));
    (problem, tensors)
}

#[test]
fn one_key_is_its_value() {
    let (problem, tensors) = by_hand(&[3.0, -2.0], &[0.5, 1.0], &[7.0, -8.0], 2);
    let row = Oracle::new(&problem, &TensorRows::new(&problem, &tensors)).forward_row(0, 0, 0);
    assert_eq!((row.o.as_slice(), row.o_lp.as_slice()), ([7.0, -8.0].as_slice(), [7.0, -8.0].as_slice()));
    assert_eq!(row.lse, -0.5);
}

#[test]
fn two_equal_scores_are_the_mean() {
    let (problem, tensors) = by_hand(&[1.0, 1.0], &[2.0, 1.0, 1.0, 2.0], &[10.0, 20.0], 2);
    let row = Oracle::new(&problem, &TensorRows::new(&problem, &tensors)).forward_row(0, 0, 0);
    assert_eq!(row.o, [15.0]);
    assert!((row.lse - (3.0 + 2f64.ln())).abs() < 1e-15);
    assert!((row.scale - (25.0f64 + 100.0).sqrt()).abs() < 1e-12);
}

#[test]
fn weights_three_to_one() {
    let ln3 = 3f32.ln();
    let (problem, tensors) = by_hand(&[1.0], &[ln3, 0.0], &[4.0, 8.0], 1);
    let row = Oracle::new(&problem, &TensorRows::new(&problem, &tensors)).forward_row(0, 0, 0);
    assert!((row.o[0] - 5.0).abs() < 1e-6);
    // A sink of ln 4 doubles the denominator and leaves the LSE.
    let (mut problem, mut tensors) = by_hand(&[1.0], &[ln3, 0.0], &[4.0, 8.0], 1);
    problem.sinks = true;
    tensors.insert(TensorName::Sinks, Tensor::from_slice(&[1], &[4f32.ln()]));
    let row = Oracle::new(&problem, &TensorRows::new(&problem, &tensors)).forward_row(0, 0, 0);
    assert!((row.o[0] - 2.5).abs() < 1e-6 && (row.lse - 4f64.ln()).abs() < 1e-6);
}

#[test]
fn a_row_that_sees_nothing_is_zero_in_both_directions() {
    // Bottom-right: of three queries over one key the first two see nothing.
    let (mut problem, mut tensors) = by_hand(&[1.0, 2.0, 3.0], &[1.0], &[5.0], 1);
    (problem.causal, problem.phase) = (true, Phase::Backward);
    tensors.insert(TensorName::DO, Tensor::from_slice(&[1, 3, 1, 1], &[1f32, 1.0, 1.0]));
    let source = TensorRows::new(&problem, &tensors);
    let oracle = Oracle::new(&problem, &source);
    for query in 0..2 {
        let row = oracle.forward_row(0, 0, query);
        assert_eq!((row.o[0], row.o_lp[0], row.lse, row.scale), (0.0, 0.0, f64::NEG_INFINITY, 0.0));
    }
    let rows = [(0, 0, 0), (0, 0, 1), (0, 0, 2)];
    let gradients = oracle.backward(None, &rows, &[(0, 0, 0)]);
    assert!(gradients.dq.iter().all(|row| row.o == [0.0] && row.o_lp == [0.0]));
    assert_eq!(gradients.dv[0].o, [1.0]);
    assert_eq!(gradients.dk[0].o, [0.0]);
}

#[test]
fn masks_and_biases_of_fewer_dimensions_broadcast_and_short_ones_hide() {
    let (mut problem, mut tensors) = by_hand(&[0.0, 0.0], &[1.0, 2.0, 3.0], &[1.0, 2.0, 4.0], 1);
    problem.bias = Bias::Bool;
    tensors.insert(TensorName::Bias, Tensor::from_slice(&[2, 3], &[1u8, 0, 1, 0, 0, 0]));
    let outputs = |problem: &AttentionProblem, tensors: &TensorSet| -> Vec<f64> {
        let source = TensorRows::new(problem, tensors);
        Oracle::new(problem, &source).forward_rows(&[(0, 0, 0), (0, 0, 1)]).iter().map(|row| row.o[0]).collect()
    };
    assert_eq!(outputs(&problem, &tensors), [2.5, 0.0]);
    tensors.insert(TensorName::Bias, Tensor::from_slice(&[1, 1, 1, 2], &[1u8, 1]));
    assert_eq!(outputs(&problem, &tensors), [1.5, 1.5]);
    problem.bias = Bias::Additive;
    let hidden = f32::NEG_INFINITY;
    tensors.insert(TensorName::Bias, Tensor::from_slice(&[1, 2, 3], &[0f32, hidden, 0.0, hidden, hidden, hidden]));
    assert_eq!(outputs(&problem, &tensors), [2.5, 0.0]);
    tensors.insert(TensorName::Bias, Tensor::from_slice(&[2, 1], &[0f32, 100.0]));
    assert_close(&outputs(&problem, &tensors), &[7.0 / 3.0; 2], 1e-12, "a bias for all keys changes nothing");
}

#[test]
fn gradients_are_finite_differences_of_the_dense_softmax() {
    let mut problems = Vec::new();
    for pattern in PATTERNS {
        let mut problem = small(Phase::Backward, Dtype::F32);
        (problem.pattern, problem.causal) = (pattern, true);
        problems.push(problem);
    }
    for (bias, sinks, softcap) in [
        (Bias::None, true, None),
        (Bias::Additive, false, Some(3.0)),
        (Bias::Alibi, true, Some(2.0)),
        (Bias::Bool, false, None),
    ] {
        let mut problem = small(Phase::Backward, Dtype::F32);
        (problem.bias, problem.sinks, problem.softcap, problem.scale) = (bias, sinks, softcap, Some(0.3));
        (problem.seqlen_q, problem.seqlen_kv) = (Lengths::List(vec![12, 3]), Lengths::List(vec![9, 7]));
        problems.push(problem);
    }
    for problem in problems {
        let spec = InputSpec::new(&problem, 5);
        let tensors = Generator::new(&problem, &spec, 0).inputs();
        let source = GeneratedRows::new(&problem, &spec, 0);
        let oracle = Oracle::new(&problem, &source);
        let (b, h, step) = (1, 2, 1e-5);
        let kv = h / problem.group_size();
        let matrices: Vec<Matrices> = (2..4).map(|head| Matrices::new(&problem, &tensors, b, head)).collect();
        let loss = |matrices: &[Matrices]| matrices.iter().map(|m| m.loss(&problem)).sum::<f64>();
        let derivative = |poke: &dyn Fn(&mut [Matrices], f64)| {
            let at = |delta: f64| {
                let mut moved: Vec<Matrices> = (2..4).map(|head| Matrices::new(&problem, &tensors, b, head)).collect();
                poke(&mut moved, delta);
                loss(&moved)
            };
            (at(step) - at(-step)) / (2.0 * step)
        };
        let (len_q, len_k) = (matrices[0].q.len(), matrices[0].k.len());
        let what = format!("{problem:?}");
        for (i, j) in [(0, 0), (len_q - 1, len_k - 1), (len_q / 2, len_k / 2)] {
            let gradients = oracle.backward(None, &[(b, h, i)], &[(b, kv, j)]);
            let dq: Vec<f64> =
                (0..problem.head_dim_qk).map(|d| derivative(&|m, delta| m[0].q[i][d] += delta)).collect();
            assert_close(&gradients.dq[0].o, &dq, 1e-7, &format!("dQ of {what}"));
            let dk: Vec<f64> = (0..problem.head_dim_qk)
                .map(|d| derivative(&|m, delta| m.iter_mut().for_each(|m| m.k[j][d] += delta)))
                .collect();
            assert_close(&gradients.dk[0].o, &dk, 1e-7, &format!("dK of {what}"));
            let dv: Vec<f64> = (0..problem.head_dim_v)
                .map(|d| derivative(&|m, delta| m.iter_mut().for_each(|m| m.v[j][d] += delta)))
                .collect();
            assert_close(&gradients.dv[0].o, &dv, 1e-7, &format!("dV of {what}"));
        }
    }
}

#[test]
fn a_sparse_gradient_gives_what_the_whole_backward_gives() {
    let mut problem = small(Phase::Backward, Dtype::Bf16);
    (problem.causal, problem.seqlen_q, problem.seqlen_kv) = (true, Lengths::Same(300), Lengths::Same(300));
    let mut spec = InputSpec::new(&problem, 5);
    let rows = vec![(0, 1, 299), (0, 0, 17), (1, 3, 150)];
    spec.sparse_grads.push(SparseGrad { set: 0, rows: rows.clone() });
    let source = GeneratedRows::new(&problem, &spec, 0);
    let oracle = Oracle::new(&problem, &source);
    let keys: Vec<Row> = (0..300).step_by(7).flat_map(|key| [(0, 0, key), (1, 1, key), (1, 0, key)]).collect();
    let queries = [(0, 1, 299), (1, 3, 150), (1, 3, 151)];
    let (sampled, whole) = (oracle.backward(Some(&rows), &queries, &keys), oracle.backward(None, &queries, &keys));
    for (sampled, whole) in [(&sampled.dq, &whole.dq), (&sampled.dk, &whole.dk), (&sampled.dv, &whole.dv)] {
        assert_eq!(sampled.len(), whole.len());
        for (sampled, whole) in sampled.iter().zip(whole) {
            assert!(sampled.o == whole.o && sampled.o_lp == whole.o_lp && sampled.scale == whole.scale);
        }
    }
    assert!(sampled.dq[2].o.iter().all(|&x| x == 0.0), "no gradient comes from a row whose dO is zero");
    assert!(keys.iter().zip(&sampled.dk).all(|(key, row)| (key.0, key.1) != (1, 0) || row.o.iter().all(|&x| x == 0.0)));
}

#[test]
fn linear_rows_are_the_recurrence() {
    for (dtype, feature_map) in Dtype::ALL.into_iter().zip(FeatureMap::ALL) {
        for (causal, normalised) in [(false, true), (true, true), (true, false), (false, false)] {
            // The identity's denominator may be anything, next to zero included.
            if feature_map == FeatureMap::Identity && normalised {
                continue;
            }
            let mut problem = small(Phase::Prefill, dtype);
            problem.mechanism = Mechanism::Linear { feature_map, normalised };
            (problem.causal, problem.scale) = (causal, Some(0.25));
            (problem.seqlen_q, problem.seqlen_kv) = (Lengths::Same(140), Lengths::Same(140));
            let spec = InputSpec::new(&problem, 2);
            let tensors = Generator::new(&problem, &spec, 0).inputs();
            let source = GeneratedRows::new(&problem, &spec, 0);
            let oracle = Oracle::new(&problem, &source);
            let matrices = Matrices::new(&problem, &tensors, 1, 3);
            let (dk, dv) = (problem.head_dim_qk, problem.head_dim_v);
            let (mut state, mut normaliser) = (vec![vec![0.0; dv]; dk], vec![0.0; dk]);
            let phi = |row: &[f64]| {
                row.iter()
                    .map(|&x| match feature_map {
                        FeatureMap::Elu1 => {
                            if x > 0.0 {
                                x + 1.0
                            } else {
                                x.exp()
                            }
                        }
                        FeatureMap::Relu => {
                            if x > 0.0 {
                                x
                            } else {
                                0.0
                            }
                        }
                        FeatureMap::Identity => x,
                    })
                    .collect::<Vec<f64>>()
            };
            let mut add = |state: &mut Vec<Vec<f64>>, t: usize| {
                for (d, k) in phi(&matrices.k[t]).into_iter().enumerate() {
                    normaliser[d] += k;
                    state[d].iter_mut().zip(&matrices.v[t]).for_each(|(s, v)| *s += k * v);
                }
                normaliser.clone()
            };
            let mut z = vec![0.0; dk];
            if !causal {
                (0..140).for_each(|t| z = add(&mut state, t));
            }
            for t in 0..140 {
                if causal {
                    z = add(&mut state, t);
                }
                let q = phi(&matrices.q[t]);
                let divisor: f64 = q.iter().zip(&z).map(|(q, z)| q * z).sum::<f64>() + 1e-6;
                let factor = if normalised { 1.0 / divisor } else { 0.25 };
                let expected: Vec<f64> = weighted(&q, &state, dv).iter().map(|x| factor * x).collect();
                let row = oracle.forward_row(1, 3, t);
                assert_close(&row.o, &expected, 1e-9, &format!("{feature_map:?} {causal} {normalised} row {t}"));
                assert!(row.scale > 0.0 || row.o.iter().all(|&x| x == 0.0));
            }
        }
    }
}

#[test]
fn recurrent_decode_updates_the_state_and_reads_it() {
    for (tokens, normalised) in [(1, true), (3, true), (2, false)] {
        let mut problem = small(Phase::Decode, Dtype::F16);
        problem.mechanism = Mechanism::Linear { feature_map: FeatureMap::Elu1, normalised };
        (problem.seqlen_q, problem.causal) = (Lengths::Same(tokens), true);
        let spec = InputSpec::new(&problem, 6);
        let tensors = Generator::new(&problem, &spec, 0).inputs();
        let (dk, dv) = (problem.head_dim_qk, problem.head_dim_v);
        let (b, h, kv) = (1, 2, 1);
        let rows = |dim| Rows::contiguous(problem.layout, &problem.lengths_q(), 2, dim);
        let k = matrix(tensors.get(TensorName::K), &rows(dk), b, kv);
        let v = matrix(tensors.get(TensorName::V), &rows(dv), b, kv);
        let q = matrix(tensors.get(TensorName::Q), &Rows::of_queries(&problem, dk), b, h);
        let phi = |x: f64| if x > 0.0 { x + 1.0 } else { x.exp() };
        let state_in = tensors.get(TensorName::StateIn);
        let mut state: Vec<Vec<f64>> =
            (0..dk).map(|d| (0..dv).map(|e| state_in.get_f64(((b * 2 + kv) * dk + d) * dv + e)).collect()).collect();
        let mut z: Vec<f64> = (0..dk)
            .map(|d| tensors.find(TensorName::NormaliserIn).map_or(0.0, |z| z.get_f64((b * 2 + kv) * dk + d)))
            .collect();
        for source in [&GeneratedRows::new(&problem, &spec, 0) as &dyn RowSource, &TensorRows::new(&problem, &tensors)]
        {
            let oracle = Oracle::new(&problem, source);
            let (mut state, mut z) = (state.clone(), z.clone());
            for t in 0..tokens {
                for d in 0..dk {
                    z[d] += phi(k[t][d]);
                    (0..dv).for_each(|e| state[d][e] += phi(k[t][d]) * v[t][e]);
                }
                let q: Vec<f64> = q[t].iter().map(|&x| phi(x)).collect();
                let divisor = q.iter().zip(&z).map(|(q, z)| q * z).sum::<f64>() + 1e-6;
                let factor = if normalised { 1.0 / divisor } else { problem.effective_scale() };
                let expected: Vec<f64> = weighted(&q, &state, dv).iter().map(|x| x * factor).collect();
                assert_close(&oracle.forward_row(b, h, t).o, &expected, 1e-12, "O");
            }
            for d in 0..dk {
                assert_close(&oracle.state_row((b, kv, d)).o, &state[d], 1e-12, "state");
            }
            if normalised {
                assert_close(&oracle.normaliser_row((b, kv, 0)).o, &z, 1e-12, "normaliser");
            }
        }
        state.clear();
        z.clear();
        let plan = SamplePlan::for_problem(&problem, &spec, 0, DEFAULT_BUDGET_FLOPS);
        assert!(plan.is_whole && plan.rows.len() == 2 + usize::from(normalised));
    }
}

#[test]
fn linformer_rows_are_attention_over_projected_keys() {
    for dtype in Dtype::ALL {
        let mut problem = small(Phase::Prefill, dtype);
        problem.mechanism = Mechanism::Linformer { rank: 7 };
        (problem.seqlen_q, problem.seqlen_kv) = (Lengths::Same(300), Lengths::Same(300));
        let spec = InputSpec::new(&problem, 2);
        let tensors = Generator::new(&problem, &spec, 0).inputs();
        let (generated, given) = (GeneratedRows::new(&problem, &spec, 0), TensorRows::new(&problem, &tensors));
        let matrices = Matrices::new(&problem, &tensors, 1, 3);
        let project = |name, rows: &Vec<Vec<f64>>, dim: usize| -> Vec<Vec<f64>> {
            let e = tensors.get(name);
            (0..7).map(|r| weighted(&(0..300).map(|j| e.get_f64(j * 7 + r)).collect::<Vec<_>>(), rows, dim)).collect()
        };
        let (k, v) =
            (project(TensorName::ProjectionK, &matrices.k, 6), project(TensorName::ProjectionV, &matrices.v, 5));
        for i in [0, 1, 150, 299] {
            let scores: Vec<f64> = k
                .iter()
                .map(|k| {
                    (problem.effective_scale() * matrices.q[i].iter().zip(k).map(|(a, b)| a * b).sum::<f64>()).exp()
                })
                .collect();
            let sum: f64 = scores.iter().sum();
            let expected: Vec<f64> = weighted(&scores, &v, 5).iter().map(|x| x / sum).collect();
            let row = Oracle::new(&problem, &generated).forward_row(1, 3, i);
            assert_close(&row.o, &expected, 1e-11, "O");
            assert!(close(row.lse, sum.ln(), 1e-11));
            assert_eq!(row, Oracle::new(&problem, &given).forward_row(1, 3, i));
        }
    }
}

#[test]
fn gathered_rows_come_back_from_any_layout_and_are_judged() {
    for (layout, dtype) in [Layout::Bshd, Layout::Bhsd, Layout::Thd].into_iter().zip(Dtype::ALL) {
        let mut problem = small(Phase::Backward, dtype);
        (problem.layout, problem.causal) = (layout, true);
        (problem.seqlen_q, problem.seqlen_kv) = (Lengths::List(vec![7, 12]), Lengths::List(vec![9, 12]));
        let spec = InputSpec::new(&problem, 13);
        let source = GeneratedRows::new(&problem, &spec, 0);
        let oracle = Oracle::new(&problem, &source);
        let plan = SamplePlan::for_problem(&problem, &spec, 0, DEFAULT_BUDGET_FLOPS);
        assert!(plan.is_whole);
        for expected in oracle.expected(&plan) {
            let name = expected.rows.tensor;
            let (element, dims) = tensor_shape(&problem, name);
            let mut outputs = TensorSet::new();
            outputs.insert(name, Tensor::zeros(element, &dims));
            outputs.get_mut(name).poison();
            let rows = match name {
                TensorName::DQ => Rows::of_queries(&problem, 6),
                TensorName::DK => Rows::of_keys(&problem, 6, None),
                _ => Rows::of_keys(&problem, 5, None),
            };
            for (row, values) in expected.rows.rows.iter().zip(expected.reference.chunks(rows.dim)) {
                let first = rows.offset(row.0, row.1, row.2);
                let tensor = outputs.get_mut(name);
                for (d, &x) in values.iter().enumerate() {
                    match dtype {
                        Dtype::F32 => tensor.as_mut_slice::<f32>()[first + d] = x as f32,
                        Dtype::F16 => tensor.as_mut_slice::<f16>()[first + d] = f16::from_f64(x),
                        Dtype::Bf16 => tensor.as_mut_slice::<bf16>()[first + d] = bf16::from_f64(x),
                        Dtype::E4m3 => unreachable!("gradients have the dtype of the queries"),
                    }
                }
            }
            let bytes = expected.rows.gather(&problem, &outputs).expect("the rows exist");
            let report = expected.judge_bytes(&bytes).expect("the length fits");
            assert!(report.pass, "{name:?} {dtype:?}: {report:?}");
            assert!(expected.judge_bytes(&bytes[1..]).is_err());
            // One row in the place of its neighbour.
            let mut swapped = bytes.clone();
            swapped.rotate_left(rows.dim * dtype.bytes());
            assert!(!expected.judge_bytes(&swapped).expect("the length fits").pass, "{name:?} {dtype:?}");
            for bad in [(2, 0, 0), (0, 9, 0), (0, 0, 9), (0, 0, usize::MAX)] {
                let rows = SampledRows { tensor: name, rows: vec![bad] };
                let error = rows.gather(&problem, &outputs).expect_err("there is no such row");
                assert!(error.to_string().contains("no row"), "{error}");
            }
        }
        let rows = SampledRows { tensor: TensorName::StateOut, rows: vec![] };
        assert_eq!(rows.gather(&problem, &TensorSet::new()), Err(SampleError::NoSuchTensor(TensorName::StateOut)));
    }
}
