use super::{add_lse, check, run};
use crate::cpu::flash::Flash;
use crate::cpu::simd::Isa;
use crate::input::{self, Generator, InputSpec};
use crate::problem::{AttentionProblem, CausalAlignment, Dtype, Layout, Lengths, Pattern, Phase};
use crate::reference::{Oracle, TensorRows};
use crate::tensor::{TensorName, TensorSet};

const FLASH: Flash = Flash { isa: None };

fn problem(heads: (usize, usize), lengths: (usize, usize), dims: (usize, usize)) -> AttentionProblem {
    AttentionProblem {
        causal: true,
        head_dim_v: dims.1,
        ..AttentionProblem::softmax(Phase::Backward, Dtype::F32, 1, heads, lengths, dims.0)
    }
}

/// sum(O * dO) of the oracle's forward pass.
fn loss(problem: &AttentionProblem, tensors: &TensorSet) -> f64 {
    let forward = AttentionProblem { phase: Phase::Prefill, ..problem.clone() };
    let source = TensorRows::new(&forward, tensors);
    let oracle = Oracle::new(&forward, &source);
    let d_o = tensors.get(TensorName::DO).as_slice::<f32>();
    let (len_q, heads) = (problem.lengths_q()[0], problem.heads_q);
    d_o.chunks_exact(problem.head_dim_v)
        .enumerate()
        .map(|(row, d_o)| {
            let (token, head) = (row / heads % len_q, row % heads);
            let o = oracle.forward_row(row / heads / len_q, head, token).o;
            o.iter().zip(d_o).map(|(o, &d_o)| o * f64::from(d_o)).sum::<f64>()
        })
        .sum()
}

#[test]
fn gradients_are_finite_differences_of_the_forward_pass() {
    let mut problem = problem((2, 1), (5, 7), (4, 3));
    problem.softcap = Some(1.5);
    let spec = InputSpec::new(&problem, 3);
    let mut tensors = {
        let source = crate::reference::GeneratedRows::new(&problem, &spec, 0);
        super::inputs(&problem, &spec, &Oracle::new(&problem, &source))
    };
    let mut outputs = input::outputs(&problem);
    run(&FLASH, &problem, &tensors, &mut outputs, 2);
    for (name, gradient) in
        [(TensorName::Q, TensorName::DQ), (TensorName::K, TensorName::DK), (TensorName::V, TensorName::DV)]
    {
        for index in 0..tensors.get(name).len() {
            // A power of two, so that the shifted elements are nearly exact in f32.
            let step = 1.0 / 1024.0;
            let value = tensors.get(name).as_slice::<f32>()[index];
            let mut at = |x: f32| {
                tensors.get_mut(name).as_mut_slice::<f32>()[index] = x;
                loss(&problem, &tensors)
            };
            let slope = (at(value + step) - at(value - step)) / f64::from((value + step) - (value - step));
            at(value);
            let got = f64::from(outputs.get(gradient).as_slice::<f32>()[index]);
            assert!((got - slope).abs() < 1e-4, "{gradient:?} {got} instead of {slope} at {index}");
        }
    }
}

/// No two threads add to one number, so two runs agree bit for bit.
#[test]
fn two_runs_agree_bit_for_bit() {
    let problem = problem((2, 1), (200, 300), (16, 16));
    let spec = InputSpec::new(&problem, 3);
    let mut inputs = Generator::new(&problem, &spec, 0).inputs();
    let (element, dims) = input::tensor_shape(&problem, TensorName::O);
    inputs.insert(TensorName::O, crate::tensor::Tensor::zeros(element, &dims));
    add_lse(&problem, &mut inputs);
    for threads in [2, 3] {
        let results = [(); 2].map(|()| {
            let mut outputs = input::outputs(&problem);
            run(&FLASH, &problem, &inputs, &mut outputs, threads);
            outputs
        });
        for name in [TensorName::DQ, TensorName::DK, TensorName::DV] {
            assert_eq!(results[0].get(name).bytes(), results[1].get(name).bytes(), "{name:?}");
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
            check(|isa| Flash { isa }, &problem, false);
        }
    }
}

/// Lengths that no block, slice or tile divides, beside head dims that no vector does or that are deeper than a panel.
#[test]
fn head_dims_and_groups() {
    for dims in [(1, 1), (17, 17), (64, 64), (80, 80), (128, 128), (192, 128), (256, 256)] {
        check(|isa| Flash { isa }, &problem((2, 1), (100, 290), dims), false);
    }
    for heads in [(6, 2), (5, 1), (7, 7)] {
        for lengths in [(270, 270), (1, 300), (130, 1)] {
            let mut problem = problem(heads, lengths, (32, 48));
            problem.causal_alignment = CausalAlignment::TopLeft;
            check(|isa| Flash { isa }, &problem, false);
        }
    }
}

/// Rows whose weight is nearly all on one key.
#[test]
fn large_scores() {
    for softcap in [None, Some(50.0)] {
        for causal in [false, true] {
            let mut problem = problem((2, 1), (140, 300), (64, 64));
            (problem.scale, problem.softcap, problem.causal) = (Some(1.0), softcap, causal);
            check(|isa| Flash { isa }, &problem, false);
        }
    }
}

/// Scores of many thousands lose their fraction in f32, never their sign or their sums.
#[test]
fn enormous_scores_give_finite_gradients() {
    for isa in Isa::available() {
        let problem = AttentionProblem { scale: Some(1e4), ..problem((2, 1), (140, 300), (64, 64)) };
        let spec = InputSpec::new(&problem, 3);
        let source = crate::reference::GeneratedRows::new(&problem, &spec, 0);
        let inputs = super::inputs(&problem, &spec, &Oracle::new(&problem, &source));
        let mut outputs = input::outputs(&problem);
        run(&Flash { isa: Some(isa) }, &problem, &inputs, &mut outputs, 2);
        for name in [TensorName::DQ, TensorName::DK, TensorName::DV] {
            let gradients = outputs.get(name).as_slice::<f32>();
            assert!(gradients.iter().all(|x| x.is_finite()), "{name:?} on {}", isa.name());
        }
    }
}

#[test]
fn windows_softcap_and_lengths_that_differ() {
    for alignment in [CausalAlignment::BottomRight, CausalAlignment::TopLeft] {
        for lengths in [(150, 150), (40, 200), (200, 40), (3, 0), (300, 420)] {
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
                    check(|isa| Flash { isa }, &problem, false);
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
        check(|isa| Flash { isa }, &problem, false);
    }
}
