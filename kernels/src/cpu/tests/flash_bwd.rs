use super::{assert_close, bound, dense, inputs, rows_of, run};
use crate::cpu::flash::Flash;
use crate::input::{self, Generator};
use crate::pattern::Visibility;
use crate::problem::{AttentionProblem, CausalAlignment, Dtype, Layout, Lengths, Pattern, Phase};
use crate::tensor::{ElementType, Rows, Tensor, TensorName, TensorSet};

fn problem(heads: (usize, usize), lengths: (usize, usize), dims: (usize, usize)) -> AttentionProblem {
    AttentionProblem {
        causal: true,
        head_dim_v: dims.1,
        ..AttentionProblem::softmax(Phase::Backward, Dtype::F32, 1, heads, lengths, dims.0)
    }
}

type Matrix = Vec<Vec<f64>>;

/// One query head: what it reads, and who sees whom.
struct Head<'a> {
    problem: &'a AttentionProblem,
    visibility: Visibility,
    head: usize,
    q: Matrix,
    k: Matrix,
    v: Matrix,
}

impl Head<'_> {
    /// Soft-capped score and weight of each visible key of a query, and the log-sum-exp.
    fn weights(&self, query: usize) -> (Vec<(usize, f64, f64)>, f64) {
        let scale = self.problem.effective_scale();
        let scores: Vec<(usize, f64)> = (0..self.k.len())
            .filter(|&key| self.visibility.sees(self.head, query, key))
            .map(|key| {
                let score = scale * dense::dot(&self.q[query], &self.k[key]);
                (key, self.problem.softcap.map_or(score, |cap| cap * (score / cap).tanh()))
            })
            .collect();
        let max = scores.iter().fold(f64::NEG_INFINITY, |max, (_, score)| max.max(*score));
        let lse = match max.is_finite() {
            true => max + scores.iter().map(|(_, score)| (score - max).exp()).sum::<f64>().ln(),
            false => max,
        };
        (scores.into_iter().map(|(key, score)| (key, score, (score - lse).exp())).collect(), lse)
    }

    fn output(&self, query: usize) -> Vec<f64> {
        let mut o = vec![0.0; self.problem.head_dim_v];
        for (key, _, weight) in self.weights(query).0 {
            o.iter_mut().zip(&self.v[key]).for_each(|(o, v)| *o += weight * v);
        }
        o
    }

    /// dQ, and what the head adds to dK and dV.
    fn gradients(&self, d_o: &Matrix) -> (Matrix, Matrix, Matrix) {
        let zeros = |rows: &Matrix| rows.iter().map(|row| vec![0.0; row.len()]).collect::<Matrix>();
        let (mut dq, mut dk, mut dv) = (zeros(&self.q), zeros(&self.k), zeros(&self.v));
        let scale = self.problem.effective_scale();
        for (query, d_o) in d_o.iter().enumerate() {
            let delta = dense::dot(&self.output(query), d_o);
            for (key, score, weight) in self.weights(query).0 {
                let slope = self.problem.softcap.map_or(1.0, |cap| 1.0 - (score / cap).powi(2));
                let d_score = scale * slope * weight * (dense::dot(d_o, &self.v[key]) - delta);
                dv[key].iter_mut().zip(d_o).for_each(|(dv, d_o)| *dv += weight * d_o);
                dk[key].iter_mut().zip(&self.q[query]).for_each(|(dk, q)| *dk += d_score * q);
                dq[query].iter_mut().zip(&self.k[key]).for_each(|(dq, k)| *dq += d_score * k);
            }
        }
        (dq, dk, dv)
    }
}

fn head<'a>(problem: &'a AttentionProblem, generator: &Generator<'_>, sequence: usize, head: usize) -> Head<'a> {
    let (len_q, len_kv) = (problem.lengths_q()[sequence], problem.lengths_kv()[sequence]);
    let rows = |name, head, length, dim| dense::head_rows(generator, name, (sequence, head), length, dim);
    let kv = head / problem.group_size();
    Head {
        problem,
        visibility: Visibility::new(problem, len_q, len_kv),
        head,
        q: rows(TensorName::Q, head, len_q, problem.head_dim_qk),
        k: rows(TensorName::K, kv, len_kv, problem.head_dim_qk),
        v: rows(TensorName::V, kv, len_kv, problem.head_dim_v),
    }
}

/// The formulas that the kernel is held against are themselves the derivative of the forward pass.
#[test]
fn reference_gradients_are_finite_differences() {
    let mut problem = problem((1, 1), (5, 7), (4, 3));
    problem.softcap = Some(1.5);
    let (spec, _) = inputs(&problem);
    let generator = Generator::new(&problem, &spec, 0);
    let mut head = head(&problem, &generator, 0, 0);
    let d_o = dense::head_rows(&generator, TensorName::DO, (0, 0), 5, 3);
    let (dq, dk, dv) = head.gradients(&d_o);
    let loss = |head: &Head<'_>| -> f64 { (0..5).map(|query| dense::dot(&head.output(query), &d_o[query])).sum() };
    type Pick = for<'a, 'b> fn(&'a mut Head<'b>) -> &'a mut Matrix;
    let picks: [(Pick, &Matrix); 3] = [(|h| &mut h.q, &dq), (|h| &mut h.k, &dk), (|h| &mut h.v, &dv)];
    for (pick, gradient) in picks {
        for (row, values) in gradient.iter().enumerate() {
            for (column, &expected) in values.iter().enumerate() {
                let step = 1e-5;
                pick(&mut head)[row][column] += step;
                let above = loss(&head);
                pick(&mut head)[row][column] -= 2.0 * step;
                let below = loss(&head);
                pick(&mut head)[row][column] += step;
                let slope = (above - below) / (2.0 * step);
                assert!((slope - expected).abs() < 1e-7, "{slope} instead of {expected} at {row}, {column}");
            }
        }
    }
}

/// Adds O and LSE of the f64 evaluation to the inputs, and returns the expected gradients.
fn complete(problem: &AttentionProblem) -> (TensorSet, [Vec<f64>; 3]) {
    let (spec, mut inputs) = inputs(problem);
    let generator = Generator::new(problem, &spec, 0);
    let (lengths_q, lengths_kv) = (problem.lengths_q(), problem.lengths_kv());
    let longest = lengths_q.iter().copied().max().unwrap_or(0);
    let rows_o = Rows::of_queries(problem, problem.head_dim_v);
    let mut o = Tensor::zeros(problem.dtype.into(), &rows_o.dims);
    let mut lse = Tensor::zeros(ElementType::F32, &[problem.batch, problem.heads_q, longest]);
    let mut expected = [Vec::new(), Vec::new(), Vec::new()];
    for sequence in 0..problem.batch {
        for kv in 0..problem.heads_kv {
            let zeros = |dim: usize| vec![vec![0.0; dim]; lengths_kv[sequence]];
            let (mut dk, mut dv) = (zeros(problem.head_dim_qk), zeros(problem.head_dim_v));
            for in_group in 0..problem.group_size() {
                let number = kv * problem.group_size() + in_group;
                let head = head(problem, &generator, sequence, number);
                let d_o = dense::head_rows(
                    &generator,
                    TensorName::DO,
                    (sequence, number),
                    lengths_q[sequence],
                    problem.head_dim_v,
                );
                for query in 0..lengths_q[sequence] {
                    lse.as_mut_slice::<f32>()[(sequence * problem.heads_q + number) * longest + query] =
                        head.weights(query).1 as f32;
                    let offset = rows_o.offset(sequence, number, query);
                    for (index, x) in head.output(query).into_iter().enumerate() {
                        match problem.dtype {
                            Dtype::F32 => o.as_mut_slice::<f32>()[offset + index] = x as f32,
                            Dtype::F16 => o.as_mut_slice::<half::f16>()[offset + index] = half::f16::from_f64(x),
                            Dtype::Bf16 => o.as_mut_slice::<half::bf16>()[offset + index] = half::bf16::from_f64(x),
                        }
                    }
                }
                let gradients = head.gradients(&d_o);
                expected[0].extend(gradients.0.into_iter().flatten());
                for (sum, part) in [(&mut dk, gradients.1), (&mut dv, gradients.2)] {
                    for (sum, part) in sum.iter_mut().flatten().zip(part.into_iter().flatten()) {
                        *sum += part;
                    }
                }
            }
            expected[1].extend(dk.into_iter().flatten());
            expected[2].extend(dv.into_iter().flatten());
        }
    }
    inputs.insert(TensorName::O, o);
    inputs.insert(TensorName::Lse, lse);
    (inputs, expected)
}

fn check(problem: &AttentionProblem) {
    let (inputs, expected) = complete(problem);
    for threads in [1, 2, 3] {
        let mut outputs = input::outputs(problem);
        run(&Flash { isa: None }, problem, &inputs, &mut outputs, threads);
        let shapes = [
            (TensorName::DQ, Rows::of_queries(problem, problem.head_dim_qk)),
            (TensorName::DK, Rows::of_keys(problem, problem.head_dim_qk, None)),
            (TensorName::DV, Rows::of_keys(problem, problem.head_dim_v, None)),
        ];
        for ((name, rows), expected) in shapes.into_iter().zip(&expected) {
            let got = rows_of(outputs.get(name), &rows);
            let tolerance = 3.0 * bound(problem.dtype);
            if expected.iter().all(|x| x.abs() < 1e-12) {
                // A row with one key has no gradient but in V: what is left is the rounding of dP - D.
                let largest = got.iter().fold(0f64, |m, x| m.max(x.abs()));
                assert!(largest <= 20.0 * tolerance, "{name:?}: {largest:e} instead of 0 of {problem:?}");
                continue;
            }
            assert_close(&format!("{name:?}"), problem, &got, expected, tolerance);
        }
        let mut again = input::outputs(problem);
        run(&Flash { isa: None }, problem, &inputs, &mut again, threads);
        for name in [TensorName::DQ, TensorName::DK, TensorName::DV] {
            assert_eq!(outputs.get(name).bytes(), again.get(name).bytes(), "{name:?} differs between two runs");
        }
    }
}

#[test]
fn agrees_with_the_derivative() {
    for (index, length) in [1, 17, 63, 64, 65, 127, 200].into_iter().enumerate() {
        for dtype in Dtype::ALL {
            let mut problem = problem([(4, 2), (3, 3), (3, 1)][index % 3], (length, length), (20, 17));
            (problem.dtype, problem.dtype_kv) = (dtype, dtype);
            problem.batch = 1 + index % 2;
            problem.causal = index % 4 != 1;
            problem.layout = [Layout::Bshd, Layout::Bhsd, Layout::Thd][index % 3];
            problem.deterministic = index % 2 == 0;
            check(&problem);
        }
    }
}

#[test]
fn windows_softcap_and_lengths_that_differ() {
    for alignment in [CausalAlignment::BottomRight, CausalAlignment::TopLeft] {
        for lengths in [(150, 150), (40, 200), (200, 40), (3, 0)] {
            for pattern in [
                Pattern::Full,
                Pattern::Window { left: 10, right: 0 },
                Pattern::Window { left: 70, right: 5 },
                Pattern::Window { left: 0, right: 0 },
            ] {
                for causal in [false, true] {
                    let mut problem = problem((2, 1), lengths, (16, 24));
                    problem.causal = causal;
                    problem.causal_alignment = alignment;
                    problem.pattern = pattern;
                    problem.softcap = (lengths.0 != 40).then_some(3.0);
                    check(&problem);
                }
            }
        }
    }
}

#[test]
fn ragged_batches() {
    for layout in [Layout::Bshd, Layout::Thd] {
        let mut problem = problem((4, 2), (0, 0), (16, 8));
        problem.batch = 3;
        problem.layout = layout;
        problem.seqlen_q = Lengths::List(vec![70, 1, 130]);
        problem.seqlen_kv = Lengths::List(vec![70, 40, 65]);
        check(&problem);
    }
}
