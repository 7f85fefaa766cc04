//! The seeded inputs: their bits, their distribution, their layouts, and agreement with another language.

use std::process::Command;

use attn_kernels::e4m3::e4m3;
use attn_kernels::input::{
    Generator, InputSpec, SparseGrad, checksum, golden_hash, input_names, is_static, peak_offsets,
};
use attn_kernels::problem::{
    AttentionProblem, Bias, Dtype, KvLayout, Layout, LengthDistribution, Lengths, Mechanism, Pattern, Phase,
};
use attn_kernels::tensor::{ElementType, Tensor, TensorName, TensorSet};
use half::{bf16, f16};

fn problem(dtype: Dtype) -> AttentionProblem {
    AttentionProblem::softmax(Phase::Prefill, dtype, 2, (4, 2), (9, 13), 24)
}

fn row(generator: &Generator<'_>, name: TensorName, place: (usize, usize, usize), dim: usize) -> Vec<f32> {
    let mut row = vec![0.0; dim];
    generator.row(name, place.0, place.1, place.2, &mut row);
    row
}

#[test]
fn the_golden_hash_is_pinned() {
    // A change of this value makes every stored record incomparable: it needs a new GENERATOR_VERSION.
    assert_eq!(golden_hash(), "a76e915bbcbb477b");
}

#[test]
fn elements_are_bell_shaped_and_never_constant() {
    let mut problem = problem(Dtype::F32);
    problem.seqlen_kv = Lengths::Same(2000);
    let spec = InputSpec::new(&problem, 7);
    let inputs = Generator::new(&problem, &spec, 0).inputs();
    for name in [TensorName::K, TensorName::V] {
        let values = inputs.get(name).as_slice::<f32>();
        let n = values.len() as f64;
        let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
        let variance = values.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n;
        let kurtosis = values.iter().map(|&x| (f64::from(x) - mean).powi(4)).sum::<f64>() / n / variance.powi(2);
        // Four uniform fields: standard deviation 2^16 / sqrt(3) * 2^-15 = 1.1547, kurtosis 3 - 1.2/4 = 2.7.
        assert!(mean.abs() < 5.0 * 1.1547 / n.sqrt(), "{name:?}: mean {mean}");
        assert!((variance.sqrt() - 1.1547).abs() < 0.02, "{name:?}: standard deviation {}", variance.sqrt());
        assert!((kurtosis - 2.7).abs() < 0.1, "{name:?}: kurtosis {kurtosis}");
        assert!(values.iter().all(|x| x.abs() <= 4.0));
        for row in values.chunks(24) {
            assert!(row.iter().any(|&x| x != row[0]), "a row is constant");
        }
    }
    assert_ne!(inputs.get(TensorName::K).bytes(), inputs.get(TensorName::V).bytes());
}

#[test]
fn narrow_dtypes_are_the_exact_value_rounded_once() {
    let exact_problem = problem(Dtype::F32);
    let spec = InputSpec::new(&exact_problem, 99);
    let exact = Generator::new(&exact_problem, &spec, 1).inputs();
    for dtype in [Dtype::F16, Dtype::Bf16] {
        let problem = problem(dtype);
        let inputs = Generator::new(&problem, &spec, 1).inputs();
        for name in [TensorName::Q, TensorName::K, TensorName::V] {
            let exact = exact.get(name).as_slice::<f32>();
            match dtype {
                Dtype::F16 => {
                    let expected: Vec<u16> = exact.iter().map(|&x| f16::from_f32(x).to_bits()).collect();
                    let actual: Vec<u16> = inputs.get(name).as_slice::<f16>().iter().map(|x| x.to_bits()).collect();
                    assert_eq!(actual, expected, "{name:?}");
                }
                _ => {
                    let expected: Vec<u16> = exact.iter().map(|&x| bf16::from_f32(x).to_bits()).collect();
                    let actual: Vec<u16> = inputs.get(name).as_slice::<bf16>().iter().map(|x| x.to_bits()).collect();
                    assert_eq!(actual, expected, "{name:?}");
                }
            }
        }
    }
}

#[test]
fn every_layout_holds_the_same_logical_values() {
    let mut base = problem(Dtype::F16);
    base.dtype_kv = Dtype::E4m3;
    base.batch = 3;
    base.seqlen_q = Lengths::List(vec![5, 1, 9]);
    base.seqlen_kv = Lengths::Varlen { distribution: LengthDistribution::Loguniform, min: 3, max: 40, seed: 5 };
    let spec = InputSpec::new(&base, 3);
    let layouts = [
        (Layout::Bshd, KvLayout::Contiguous),
        (Layout::Bhsd, KvLayout::Contiguous),
        (Layout::Thd, KvLayout::Contiguous),
        (Layout::Bshd, KvLayout::Paged { page_size: 16 }),
        (Layout::Bshd, KvLayout::Paged { page_size: 7 }),
    ];
    for (layout, kv_layout) in layouts {
        let mut problem = base.clone();
        (problem.layout, problem.kv_layout) = (layout, kv_layout);
        let generator = Generator::new(&problem, &spec, 2);
        let inputs = generator.inputs();
        for name in [TensorName::Q, TensorName::K, TensorName::V] {
            let tensor = inputs.get(name);
            let rows = generator.rows(name, inputs.find(TensorName::PageTable));
            let mut finite = 0;
            for (sequence, &length) in rows.lengths.iter().enumerate() {
                for head in 0..rows.heads {
                    for token in 0..length {
                        let first = rows.offset(sequence, head, token);
                        let expected = row(&Generator::new(&base, &spec, 2), name, (sequence, head, token), rows.dim);
                        for (d, &x) in expected.iter().enumerate() {
                            assert_eq!(tensor.get_f64(first + d), f64::from(x), "{layout:?} {kv_layout:?} {name:?}");
                            finite += 1;
                        }
                    }
                }
            }
            let all_finite = (0..tensor.len()).filter(|&index| tensor.get_f64(index).is_finite()).count();
            assert_eq!(all_finite, finite, "what belongs to no token is NaN");
        }
    }
}

#[test]
fn page_tables_are_permutations_without_repetition() {
    let mut problem = problem(Dtype::F32);
    problem.kv_layout = KvLayout::Paged { page_size: 4 };
    problem.batch = 5;
    problem.seqlen_kv = Lengths::List(vec![1, 4, 5, 33, 8]);
    let spec = InputSpec::new(&problem, 11);
    let inputs = Generator::new(&problem, &spec, 0).inputs();
    let table = inputs.get(TensorName::PageTable).as_slice::<i32>();
    let mut pages: Vec<i32> = table.iter().copied().filter(|&page| page >= 0).collect();
    assert_eq!(pages.len(), 1 + 1 + 2 + 9 + 2);
    let in_order = pages.clone();
    pages.sort_unstable();
    assert_ne!(in_order, pages, "pages are scattered");
    pages.dedup();
    assert_eq!(pages.len(), 15);
    assert!(pages.iter().all(|&page| (page as usize) < problem.page_pool_size()));
}

#[test]
fn peaked_rows_dominate_their_softmax_at_128k() {
    for (dim, dtype) in [(64, Dtype::F16), (128, Dtype::Bf16)] {
        let mut problem = AttentionProblem::softmax(Phase::Prefill, dtype, 1, (8, 2), (131_072, 131_072), dim);
        problem.causal = true;
        let spec = InputSpec::new(&problem, 5);
        let generator = Generator::new(&problem, &spec, 0);
        let late = 130_000..131_072;
        let is_peaked = |query: &usize| generator.peak(0, 3, *query).is_some_and(|key| key <= *query);
        let query = late.clone().find(is_peaked).expect("one row in four is peaked");
        let peak = generator.peak(0, 3, query).expect("it is peaked");
        let q = row(&generator, TensorName::Q, (0, 3, query), dim);
        let scale = problem.effective_scale();
        let mut key = vec![0.0; dim];
        let mut others = 0.0;
        let mut own = 0.0;
        for j in 0..=query {
            generator.row(TensorName::K, 0, 0, j, &mut key);
            let score: f64 = q.iter().zip(&key).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>() * scale;
            *(if j == peak { &mut own } else { &mut others }) += score.exp();
        }
        assert!(own > 9.0 * others, "d = {dim}: the peak weighs {own:e}, all others {others:e}");
        let share =
            (late.clone().filter(|&query| generator.peak(0, 3, query).is_some()).count() as f64) / late.len() as f64;
        // A fifth of the peaks aims past the last key or at a causal row's future and may fall away at the end.
        assert!((0.15..0.35).contains(&share), "{share} of the rows are peaked");
    }
}

#[test]
fn peaks_hit_both_sides_of_every_edge_of_a_pattern() {
    let mut problem = AttentionProblem::softmax(Phase::Prefill, Dtype::F32, 1, (2, 1), (4096, 4096), 8);
    problem.pattern = Pattern::Window { left: 100, right: 50 };
    let spec = InputSpec::new(&problem, 1);
    assert_eq!(spec.peak_offsets, [-101, -100, 50, 51]);
    let generator = Generator::new(&problem, &spec, 0);
    for offset in peak_offsets(&problem) {
        let hits = (200..3000)
            .filter(|&query| generator.peak(0, 1, query) == usize::try_from(query as i64 + offset).ok())
            .count();
        assert!(hits > 20, "{hits} rows single out the key at {offset}");
    }
}

#[test]
fn sets_differ_but_for_what_is_static() {
    let mut paged = problem(Dtype::F16);
    paged.phase = Phase::Decode;
    paged.seqlen_q = Lengths::Same(1);
    paged.kv_layout = KvLayout::Paged { page_size: 4 };
    paged.sinks = true;
    let mut linformer = problem(Dtype::F32);
    linformer.mechanism = Mechanism::Linformer { rank: 4 };
    linformer.seqlen_kv = linformer.seqlen_q.clone();
    let mut biased = problem(Dtype::Bf16);
    biased.bias = Bias::Additive;
    let mut recurrent = problem(Dtype::F32);
    recurrent.mechanism = Mechanism::LINEAR;
    recurrent.phase = Phase::Decode;
    recurrent.seqlen_q = Lengths::Same(1);
    for problem in [paged, linformer, biased, recurrent] {
        let spec = InputSpec::new(&problem, 21);
        let (first, second) = (Generator::new(&problem, &spec, 0), Generator::new(&problem, &spec, 1));
        let mut inputs = first.inputs();
        let other_seed = InputSpec::new(&problem, 22);
        let other = Generator::new(&problem, &other_seed, 0).inputs();
        let before: TensorSet = inputs.clone();
        for name in input_names(&problem) {
            if name != TensorName::PageTable {
                assert_ne!(before.get(name).bytes(), other.get(name).bytes(), "{name:?} follows the seed");
            }
        }
        second.overwrite(&mut inputs, false);
        let fresh = second.inputs();
        for name in input_names(&problem) {
            let same = before.get(name).bytes() == inputs.get(name).bytes();
            assert_eq!(same, is_static(name), "{name:?} of {:?}", problem.mechanism);
            assert_eq!(inputs.get(name).bytes(), fresh.get(name).bytes(), "{name:?} in place and anew");
            assert_eq!(checksum(before.get(name)) == checksum(inputs.get(name)), same, "{name:?}");
        }
        for (name, tensor) in first.static_inputs().iter() {
            assert_eq!(tensor.bytes(), before.get(name).bytes(), "{name:?} alone");
        }
    }
}

#[test]
fn values_by_run_are_the_tensor() {
    let mut masked = problem(Dtype::F16);
    masked.bias = Bias::Bool;
    let mut biased = problem(Dtype::F16);
    biased.bias = Bias::Additive;
    biased.sinks = true;
    let mut linformer = problem(Dtype::F16);
    linformer.mechanism = Mechanism::Linformer { rank: 5 };
    linformer.seqlen_kv = linformer.seqlen_q.clone();
    let mut recurrent = problem(Dtype::F16);
    recurrent.mechanism = Mechanism::LINEAR;
    recurrent.phase = Phase::Decode;
    let mut ones = 0;
    for problem in [masked, biased, linformer, recurrent] {
        let spec = InputSpec::new(&problem, 8);
        let generator = Generator::new(&problem, &spec, 4);
        let inputs = generator.inputs();
        for (name, tensor) in inputs.iter() {
            if matches!(name, TensorName::Q | TensorName::K | TensorName::V) {
                continue;
            }
            let mut values = vec![0.0; tensor.len() - 1];
            generator.values(name, 1, &mut values);
            for (index, &value) in values.iter().enumerate() {
                assert_eq!(f64::from(value), tensor.get_f64(index + 1), "{name:?}");
            }
            if tensor.element() == ElementType::Bool {
                ones = values.iter().filter(|&&value| value == 1.0).count() * 100 / values.len();
            }
        }
    }
    assert!((60..90).contains(&ones), "three of four pairs are visible, not {ones} %");
}

#[test]
fn a_sparse_gradient_is_zero_but_in_its_rows() {
    let mut problem = problem(Dtype::F32);
    problem.phase = Phase::Backward;
    let mut spec = InputSpec::new(&problem, 4);
    let dense = Generator::new(&problem, &spec, 0).inputs();
    spec.sparse_grads.push(SparseGrad { set: 0, rows: vec![(1, 2, 3), (0, 0, 8)] });
    let generator = Generator::new(&problem, &spec, 0);
    let sparse = generator.inputs();
    let rows = generator.rows(TensorName::DO, None);
    for (b, h, i) in (0..2).flat_map(|b| (0..4).flat_map(move |h| (0..9).map(move |i| (b, h, i)))) {
        let first = rows.offset(b, h, i);
        let range = first..first + rows.dim;
        let values = &sparse.get(TensorName::DO).as_slice::<f32>()[range.clone()];
        if [(1, 2, 3), (0, 0, 8)].contains(&(b, h, i)) {
            assert_eq!(values, &dense.get(TensorName::DO).as_slice::<f32>()[range]);
        } else {
            assert!(values.iter().all(|&x| x == 0.0));
        }
    }
    assert_eq!(sparse.get(TensorName::Q).bytes(), dense.get(TensorName::Q).bytes());
}

#[test]
fn another_language_agrees_bit_for_bit() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden_inputs.py");
    let (seed, set) = (0xFEED_5EED_u64, 3);
    let words = [seed, set, 2, 13, 2, 24].map(|number| number.to_string());
    let Ok(output) = Command::new("python3").arg(script).args(words).output() else {
        eprintln!("skipped: python3 is not installed");
        return;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("the script prints ASCII");
    let mut lines = 0;
    for line in text.lines() {
        let mut words = line.split(' ');
        let name = if words.next() == Some("k") { TensorName::K } else { TensorName::V };
        let dtype = words.next().and_then(Dtype::parse).expect("the second word is the dtype");
        let problem = AttentionProblem { dtype_kv: dtype, ..problem(Dtype::F32) };
        let spec = InputSpec::new(&problem, seed);
        let inputs = Generator::new(&problem, &spec, set).inputs();
        assert_eq!(words.map(str::to_string).collect::<Vec<_>>(), hexadecimal(inputs.get(name)), "{name:?} {dtype:?}");
        lines += 1;
    }
    assert_eq!(lines, 8);
}

fn hexadecimal(tensor: &Tensor) -> Vec<String> {
    match tensor.element() {
        ElementType::F32 => tensor.as_slice::<f32>().iter().map(|x| format!("{:x}", x.to_bits())).collect(),
        ElementType::F16 => tensor.as_slice::<f16>().iter().map(|x| format!("{:x}", x.to_bits())).collect(),
        ElementType::E4m3 => tensor.as_slice::<e4m3>().iter().map(|x| format!("{:x}", x.to_bits())).collect(),
        _ => tensor.as_slice::<bf16>().iter().map(|x| format!("{:x}", x.to_bits())).collect(),
    }
}
