use super::{assert_close, bound, check, dense, inputs, run};
use crate::cpu::linear::Linear;
use crate::input::{self, Generator};
use crate::problem::{AttentionProblem, CausalAlignment, Dtype, FeatureMap, Layout, Lengths, Mechanism, Phase};
use crate::tensor::{Rows, TensorName};

fn problem(phase: Phase, heads: (usize, usize), lengths: (usize, usize), dims: (usize, usize)) -> AttentionProblem {
    AttentionProblem {
        mechanism: Mechanism::LINEAR,
        head_dim_v: dims.1,
        ..AttentionProblem::softmax(phase, Dtype::F32, 2, heads, lengths, dims.0)
    }
}

const LENGTHS: [usize; 8] = [1, 17, 63, 64, 65, 127, 200, 333];

#[test]
fn prefill_agrees_with_the_quadratic_form() {
    for (index, length) in LENGTHS.into_iter().enumerate() {
        for causal in [false, true] {
            for dtype in Dtype::ALL {
                let mut problem =
                    problem(Phase::Prefill, [(4, 2), (3, 3), (4, 1)][index % 3], (length, length), (24, 17));
                problem.causal = causal;
                problem.dtype = dtype;
                problem.dtype_kv = if index % 2 == 0 { dtype } else { Dtype::Bf16 };
                problem.layout = [Layout::Bshd, Layout::Bhsd, Layout::Thd][index % 3];
                check(&Linear, &problem, false);
            }
        }
    }
}

#[test]
fn every_feature_map_and_scaling() {
    for feature_map in FeatureMap::ALL {
        for normalised in [true, false] {
            // Identity features give denominators of any sign and size, for which no bound holds.
            if normalised && feature_map == FeatureMap::Identity {
                continue;
            }
            let mut problem = problem(Phase::Prefill, (2, 1), (150, 150), (33, 16));
            problem.mechanism = Mechanism::Linear { feature_map, normalised };
            problem.causal = true;
            check(&Linear, &problem, false);
        }
    }
}

#[test]
fn queries_and_keys_of_different_lengths() {
    for (len_q, len_kv) in [(1, 200), (70, 333), (200, 65), (65, 1), (5, 0), (130, 131)] {
        for alignment in [CausalAlignment::BottomRight, CausalAlignment::TopLeft] {
            for causal in [false, true] {
                for batch in [1, 3] {
                    let mut problem = problem(Phase::Prefill, (2, 1), (len_q, len_kv), (16, 32));
                    problem.batch = batch;
                    problem.causal = causal;
                    problem.causal_alignment = alignment;
                    check(&Linear, &problem, false);
                }
            }
        }
    }
}

#[test]
fn ragged_batches() {
    for layout in [Layout::Bshd, Layout::Thd] {
        for causal in [false, true] {
            let mut problem = problem(Phase::Prefill, (4, 2), (0, 0), (8, 12));
            problem.batch = 3;
            problem.causal = causal;
            problem.layout = layout;
            problem.seqlen_q = Lengths::List(vec![130, 1, 64]);
            problem.seqlen_kv = Lengths::List(vec![130, 5, 200]);
            check(&Linear, &problem, false);
        }
    }
}

/// The state of a long causal sequence does not drift: its last rows are as exact as its first.
#[test]
fn long_sequences_do_not_drift() {
    let length = 20_000;
    let mut problem = problem(Phase::Prefill, (1, 1), (length, length), (16, 16));
    problem.batch = 1;
    problem.causal = true;
    let (spec, inputs) = inputs(&problem);
    let mut outputs = input::outputs(&problem);
    run(&Linear, &problem, &inputs, &mut outputs, 2);
    // The recurrence in f64.
    let generator = Generator::new(&problem, &spec, 0);
    let [q, k, v] = [TensorName::Q, TensorName::K, TensorName::V]
        .map(|name| dense::head_rows(&generator, name, (0, 0), length, 16));
    let (mut state, mut normaliser) = (vec![0.0; 16 * 16], vec![0.0; 16]);
    let mut expected = Vec::new();
    for token in 0..length {
        for row in 0..16 {
            let key = dense::phi(FeatureMap::Elu1, k[token][row]);
            normaliser[row] += key;
            (0..16).for_each(|column| state[row * 16 + column] += key * v[token][column]);
        }
        let query: Vec<f64> = q[token].iter().map(|&x| dense::phi(FeatureMap::Elu1, x)).collect();
        let denominator = dense::dot(&query, &normaliser) + 1e-6;
        expected.extend(
            (0..16).map(|column| (0..16).map(|row| query[row] * state[row * 16 + column]).sum::<f64>() / denominator),
        );
    }
    let got: Vec<f64> = outputs.get(TensorName::O).as_slice::<f32>().iter().map(|&x| f64::from(x)).collect();
    for part in [0..1000, length * 8..length * 8 + 1000, length * 16 - 1000..length * 16] {
        assert_close("O", &problem, &got[part.clone()], &expected[part], 1e-5);
    }
}

#[test]
fn decode_agrees_with_the_recurrence() {
    for (index, (len_q, heads, dims)) in
        [(1, (4, 2), (24, 17)), (1, (1, 1), (16, 100)), (5, (4, 1), (33, 64)), (1, (6, 6), (1, 1))]
            .into_iter()
            .enumerate()
    {
        for feature_map in [FeatureMap::Elu1, FeatureMap::Relu] {
            for normalised in [true, false] {
                for dtype in Dtype::ALL {
                    let mut problem = problem(Phase::Decode, heads, (len_q, 1000), dims);
                    problem.batch = 1 + index % 3;
                    problem.mechanism = Mechanism::Linear { feature_map, normalised };
                    (problem.dtype, problem.dtype_kv) = (dtype, dtype);
                    if index == 2 {
                        problem.seqlen_q = Lengths::List((0..problem.batch).map(|sequence| 5 - 2 * sequence).collect());
                    }
                    check_decode(&problem);
                }
            }
        }
    }
}

fn check_decode(problem: &AttentionProblem) {
    let Mechanism::Linear { feature_map, normalised } = problem.mechanism else { unreachable!() };
    let (dk, dv, group) = (problem.head_dim_qk, problem.head_dim_v, problem.group_size());
    let (spec, inputs) = inputs(problem);
    let generator = Generator::new(problem, &spec, 0);
    let lengths = problem.lengths_q();
    let map = |row: &[f64]| row.iter().map(|&x| dense::phi(feature_map, x)).collect::<Vec<_>>();
    let widened = |name| -> Vec<f64> { inputs.get(name).as_slice::<f32>().iter().map(|&x| f64::from(x)).collect() };
    let mut state = widened(TensorName::StateIn);
    let mut normaliser =
        if normalised { widened(TensorName::NormaliserIn) } else { vec![0.0; problem.batch * problem.heads_kv * dk] };
    let rows = Rows::of_queries(problem, dv);
    let mut expected: Vec<f64> = Vec::new();
    for sequence in 0..problem.batch {
        for head in 0..problem.heads_kv {
            let index = sequence * problem.heads_kv + head;
            let mut outputs = vec![Vec::new(); group];
            let k = dense::head_rows(&generator, TensorName::K, (sequence, head), lengths[sequence], dk);
            let v = dense::head_rows(&generator, TensorName::V, (sequence, head), lengths[sequence], dv);
            for (token, key) in k.iter().enumerate() {
                let key = map(key);
                for row in 0..dk {
                    normaliser[index * dk + row] += key[row];
                    for column in 0..dv {
                        state[(index * dk + row) * dv + column] += key[row] * v[token][column];
                    }
                }
                for (in_group, outputs) in outputs.iter_mut().enumerate() {
                    let at = (sequence, head * group + in_group);
                    let query = map(&dense::head_rows(&generator, TensorName::Q, at, token + 1, dk)[token]);
                    let denominator = dense::dot(&query, &normaliser[index * dk..][..dk]) + 1e-6;
                    let factor = if normalised { 1.0 / denominator } else { problem.effective_scale() };
                    outputs.extend((0..dv).map(|column| {
                        factor * (0..dk).map(|row| query[row] * state[(index * dk + row) * dv + column]).sum::<f64>()
                    }));
                }
            }
            expected.extend(outputs.into_iter().flatten());
        }
    }
    for threads in [1, 2] {
        let mut outputs = input::outputs(problem);
        run(&Linear, problem, &inputs, &mut outputs, threads);
        let got = super::rows_of(outputs.get(TensorName::O), &rows);
        assert_close("O", problem, &got, &expected, bound(problem.dtype));
        let values = |name| -> Vec<f64> { outputs.get(name).as_slice::<f32>().iter().map(|&x| f64::from(x)).collect() };
        assert_close("state", problem, &values(TensorName::StateOut), &state, 1e-5);
        if normalised {
            assert_close("normaliser", problem, &values(TensorName::NormaliserOut), &normaliser, 1e-5);
        }
    }
}
