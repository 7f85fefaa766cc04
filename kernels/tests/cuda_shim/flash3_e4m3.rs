//! `flash3_e4m3`: what `flash3` is tested on, under e4m3's tolerance; magnitudes; and how accurate it is, by block and by tensor.

use std::path::Path;

use attn_kernels::cuda::CudaKernel;
use attn_kernels::cuda::flash3_e4m3::Flash3E4m3;
use attn_kernels::input::{self, Generator, InputSpec};
use attn_kernels::problem::{AttentionProblem, CausalAlignment, Dtype, Pattern, Phase};
use attn_kernels::reference::{Oracle, Row, SamplePlan, SampledRows, TensorRows};
use attn_kernels::tensor::{TensorName, TensorSet};
use attn_kernels::tolerance::ErrorReport;
use half::bf16;

use super::flash::{irregular_lengths, problem};
use super::sabotage::{text_of, with_file};
use super::{DEVICE, check, flash3, shim};

#[test]
fn irregular() {
    irregular_lengths(&Flash3E4m3);
}

#[test]
fn windows() {
    flash3::windows_of(&Flash3E4m3);
}

#[test]
fn head_dimensions() {
    flash3::head_dimensions_of(&Flash3E4m3);
}

#[test]
fn shared_heads_ragged_batches_and_sinks() {
    // A scale that is larger than 1 / sqrt(d) makes scores less certain than the tolerance allows.
    flash3::ragged_batches_of(&Flash3E4m3, 0.1);
}

#[test]
fn sequences_do_not_touch_each_other() {
    flash3::isolated_sequences_of(&Flash3E4m3);
}

#[test]
fn packed_heads() {
    flash3::packed_heads_of(&Flash3E4m3);
}

/// More tiles than blocks, so that blocks compute several.
#[test]
fn blocks_stay_for_many_tiles() {
    let mut problem = problem(Dtype::Bf16, (6, 2), (450, 450), 128);
    problem.batch = 2;
    problem.causal = true;
    let plan = Flash3E4m3.plan(&problem, &DEVICE).expect("a plan");
    assert_eq!(plan.launches[1].grid, [DEVICE.multiprocessors, 1, 1]);
    check(&Flash3E4m3, &problem);
}

/// Scores of which none decides: those that rounding moves by more than a few hundredths are beyond e4m3.
#[test]
fn small_scores() {
    for (index, scale) in [1e-30, 1e-4, 0.1].into_iter().enumerate() {
        let mut problem = problem([Dtype::F16, Dtype::Bf16][index % 2], (1, 1), (130, 700), 64);
        problem.scale = Some(scale);
        problem.causal = index % 2 == 1;
        check(&Flash3E4m3, &problem);
    }
}

/// Inputs with some rows multiplied by a power of two, each tensor's: `change(tensor, token)` is the exponent.
fn inputs(problem: &AttentionProblem, change: impl Fn(TensorName, usize) -> i32) -> TensorSet {
    let mut inputs = Generator::new(problem, &InputSpec::new(problem, 7), 0).inputs();
    for (name, tensor) in inputs.iter_mut() {
        let (heads, dim) = match name {
            TensorName::Q => (problem.heads_q, problem.head_dim_qk),
            TensorName::K => (problem.heads_kv, problem.head_dim_qk),
            _ => (problem.heads_kv, problem.head_dim_v),
        };
        for (index, x) in tensor.as_mut_slice::<bf16>().iter_mut().enumerate() {
            let exponent = change(name, index / (heads * dim));
            // No number is the same as 0 times it.
            *x = if exponent == i32::MIN { bf16::ZERO } else { bf16::from_f32(x.to_f32() * 2f32.powi(exponent)) };
        }
    }
    inputs
}

/// How an output differs from the oracle's.
#[derive(Clone, Debug, PartialEq)]
struct Errors {
    /// Relative L2 over the rows, by their sizes.
    all: f64,
    /// The same of the worst row.
    worst: f64,
    /// What e4m3's tolerance says.
    report: ErrorReport,
}

/// The errors of some queries of a batch of one, with the sources of a folder.
fn errors(problem: &AttentionProblem, inputs: &TensorSet, folder: &Path, queries: std::ops::Range<usize>) -> Errors {
    let plan = Flash3E4m3.plan(problem, &DEVICE).expect("a plan");
    let mut outputs = input::outputs(problem);
    shim::run(folder, &plan, inputs, &mut outputs).expect("sound");
    let rows: Vec<Row> = (0..problem.heads_q).flat_map(|h| queries.clone().map(move |query| (0, h, query))).collect();
    let source = TensorRows::new(problem, inputs);
    let sampled = SamplePlan {
        is_whole: false,
        cost_flops: 0.0,
        rows: vec![SampledRows { tensor: TensorName::O, rows }],
        sparse_grad_rows: None,
    };
    let expected = Oracle::new(problem, &source).multiplied_in(Dtype::E4m3).expected(&sampled).pop().expect("O");
    let bytes = expected.rows.gather(problem, &outputs).expect("the rows exist");
    let actual: Vec<f64> = bytes.chunks(2).map(|two| bf16::from_le_bytes([two[0], two[1]]).to_f64()).collect();
    let worst =
        actual.chunks(problem.head_dim_v).zip(expected.reference.chunks(problem.head_dim_v)).zip(&expected.row_scales);
    let worst = worst.map(|((o, exact), &scale)| {
        let error: f64 = o.iter().zip(exact).map(|(a, b)| (a - b).powi(2)).sum();
        let size = exact.iter().map(|x| x * x).sum::<f64>().max(scale * scale);
        if error == 0.0 { 0.0 } else { (error / size).sqrt() }
    });
    let worst = worst.fold(0.0, f64::max);
    let report = expected.judge(&actual);
    Errors { all: report.relative_l2.unwrap_or(f64::INFINITY), worst, report }
}

/// The sources with one power of two for all of Q, K and V each, as if another pass had found their largest numbers.
fn one_scale_a_tensor(label: &str, exponents: [i32; 3]) -> std::path::PathBuf {
    let text = text_of("e4m3.cuh");
    let [rows, values] = [
        "scale_exponent(is_each_row ? largest_of_lanes<LANES>(largest[step]) : all)",
        "= scale_exponent(largest_of_block",
    ];
    assert!(text.matches(rows).count() == 1 && text.matches(values).count() == 1);
    let [q, k, v] = exponents;
    let text = text
        .replace(rows, &format!("(is_each_row ? {q} : {k})"))
        .replace(values, &format!("= ({v}) + 0 * scale_exponent(largest_of_block"));
    with_file(label, "e4m3.cuh", &text)
}

/// The exponent of the smallest power of two by which numbers up to the tensor's largest are at most 448.
fn exponent_of(tensor: TensorName, inputs: &TensorSet) -> i32 {
    let largest = inputs.get(tensor).as_slice::<bf16>().iter().map(|x| x.to_f32().abs()).fold(0.0, f32::max);
    (largest / 448.0).log2().ceil() as i32
}

fn exponents(inputs: &TensorSet) -> [i32; 3] {
    [TensorName::Q, TensorName::K, TensorName::V].map(|tensor| exponent_of(tensor, inputs))
}

/// Powers of two of whole tensors change nothing: scores are scaled back, and so is what comes out.
#[test]
fn huge_and_tiny_magnitudes() {
    let plain = problem(Dtype::Bf16, (2, 1), (150, 300), 64);
    let honest = errors(&plain, &inputs(&plain, |_, _| 0), &shim::cuda_folder(), 0..150);
    for (q, k, v) in [(100, -100, 60), (-100, 100, -90), (40, 40, 100), (-60, 0, 0)] {
        let scale = 0.125 * 2f64.powi(-q - k);
        let problem = AttentionProblem { scale: Some(scale), ..plain.clone() };
        let inputs = inputs(&problem, |name, _| match name {
            TensorName::Q => q,
            TensorName::K => k,
            _ => v,
        });
        let scaled = errors(&problem, &inputs, &shim::cuda_folder(), 0..150);
        assert!(scaled.report.pass, "2^{q}, 2^{k}, 2^{v}: {scaled:?}");
        // The same up to the last bits of exponents in f32.
        for (a, b) in [(scaled.all, honest.all), (scaled.worst, honest.worst)] {
            assert!((a / b - 1.0).abs() < 1e-3, "2^{q}, 2^{k}, 2^{v}: {scaled:?}, not {honest:?}");
        }
    }
}

/// Zeros where a power of two is sought: no key, no value, no query, a tile or the whole tensor, before and behind others.
#[test]
fn zeros() {
    let mut problem = problem(Dtype::Bf16, (2, 1), (150, 400), 64);
    problem.causal = true;
    for zeros in [TensorName::Q, TensorName::K, TensorName::V] {
        for range in [0..128, 128..256, 256..400, 0..400, 7..9] {
            let inputs =
                inputs(&problem, |name, token| if name == zeros && range.contains(&token) { i32::MIN } else { 0 });
            let errors = errors(&problem, &inputs, &shim::cuda_folder(), 0..150);
            assert!(errors.report.pass, "{zeros:?} of {range:?}: {errors:?}");
        }
    }
}

/// Tiles of values of very different sizes, each of which some row sees alone or with others: in ascending, descending and mixed order.
#[test]
fn values_of_every_size_in_one_sequence() {
    let mut problem = problem(Dtype::Bf16, (2, 1), (640, 640), 64);
    problem.causal = true;
    for exponents in [[0, 20, 40, 60, 80], [80, 60, 40, 20, 0], [0, 100, -100, 30, 0], [-90, -90, 7, -90, 7]] {
        let inputs = inputs(&problem, |name, token| if name == TensorName::V { exponents[token / 128] } else { 0 });
        let errors = errors(&problem, &inputs, &shim::cuda_folder(), 0..640);
        assert!(errors.report.pass, "{exponents:?}: {errors:?}");
    }
}

/// A tile of keys and values that is larger than the others by a power of two: rows that do not see it are as exact as without it.
/// One scale a tensor does that for an outlier of a hundred, since e4m3 is floating point, and loses them where its exponents end.
#[test]
fn an_outlier_tile_leaves_others_alone() {
    let mut problem = problem(Dtype::Bf16, (2, 1), (384, 384), 64);
    problem.causal = true;
    let with = |exponent: i32| inputs(&problem, |name, t| if name != TensorName::Q && t >= 256 { exponent } else { 0 });
    let rows = 0..256;
    let honest = errors(&problem, &with(0), &shim::cuda_folder(), rows.clone());
    for exponent in [7, 13, 20, 40] {
        let inputs = with(exponent);
        assert_eq!(errors(&problem, &inputs, &shim::cuda_folder(), rows.clone()), honest, "2^{exponent}");
        let folder = one_scale_a_tensor(&format!("outlier{exponent}"), exponents(&inputs));
        let errors = errors(&problem, &inputs, &folder, rows.clone());
        assert_eq!(!errors.report.pass, exponent >= 13, "one scale a tensor, 2^{exponent}: {errors:?}");
    }
}

/// The table of `kernels/cuda/README.md`: relative L2 of 128 queries, and of the worst of them. The outlier is a tile of keys and values
/// behind those that the queries see.
#[test]
fn accuracy() {
    println!("| d | keys | a scale a tile | a scale a tensor | beside 2^7 | beside 2^13 | beside 2^20 |");
    println!("|---|---|---|---|---|---|---|");
    for (dim, lengths) in [(64, &[128, 1024, 4096, 16_384][..]), (128, &[128, 1024, 4096]), (256, &[128, 1024])] {
        for &keys in lengths {
            let mut problem = AttentionProblem::softmax(Phase::Append, Dtype::Bf16, 1, (1, 1), (128, keys + 128), dim);
            problem.causal_alignment = CausalAlignment::TopLeft;
            problem.pattern = Pattern::Window { left: usize::MAX, right: keys - 128 };
            let with = |exponent: i32| {
                inputs(&problem, |name, token| if name != TensorName::Q && token >= keys { exponent } else { 0 })
            };
            let honest = errors(&problem, &with(0), &shim::cuda_folder(), 0..128);
            assert!(honest.report.pass, "{dim}, {keys}: {honest:?}");
            let mut cells = vec![format!("{:.3}, {:.3}", honest.all, honest.worst)];
            for exponent in [0, 7, 13, 20] {
                let inputs = with(exponent);
                let by_tile = errors(&problem, &inputs, &shim::cuda_folder(), 0..128);
                assert_eq!(by_tile, honest, "{dim}, {keys}: an outlier of 2^{exponent} that nobody sees");
                let folder = one_scale_a_tensor(&format!("accuracy-{dim}-{exponent}"), exponents(&inputs));
                let found = errors(&problem, &inputs, &folder, 0..128);
                let mark = if found.report.pass { "" } else { " (fails)" };
                cells.push(format!("{:.3}, {:.3}{mark}", found.all, found.worst));
                // At 2^13 it depends on the rows.
                let is_open = exponent == 13;
                assert!(is_open || found.report.pass == (exponent < 13), "{dim}, {keys}, 2^{exponent}: {found:?}");
            }
            println!("| {dim} | {keys} | {} |", cells.join(" | "));
        }
    }
}

/// Sums of so many keys leave accumulators on the way; where they do not, what the tensor cores cut off shows.
#[test]
fn long_sums_leave_the_accumulators() {
    let problem = AttentionProblem::softmax(Phase::Append, Dtype::Bf16, 1, (1, 1), (64, 20_000), 64);
    let inputs = inputs(&problem, |_, _| 0);
    let kept = errors(&problem, &inputs, &shim::cuda_folder(), 0..64);
    assert!(kept.report.pass, "{kept:?}");
    let text = text_of("flash3_e4m3.cu");
    let (right, wrong) = ("PROMOTED = 8192 / KEYS", "PROMOTED = 1 << 30");
    assert_eq!(text.matches(right).count(), 1);
    let folder = with_file("promoted", "flash3_e4m3.cu", &text.replace(right, wrong));
    let lost = errors(&problem, &inputs, &folder, 0..64);
    println!("{:.4}, {:.4} with memory, {:.4}, {:.4} without", kept.all, kept.worst, lost.all, lost.worst);
    assert!(kept.all < lost.all, "{} is to be below {}", kept.all, lost.all);
    // What is kept is in the unit of then: with it forgotten, rows that were scaled since are wrong.
    let unit = "- softmax.unit[half]);";
    assert_eq!(text.matches(unit).count(), 1);
    let folder = with_file("promoted_unit", "flash3_e4m3.cu", &text.replace(unit, "* 0.0f);"));
    let wrong = errors(&problem, &inputs, &folder, 0..64);
    assert!(!wrong.report.pass, "{wrong:?}");
}
