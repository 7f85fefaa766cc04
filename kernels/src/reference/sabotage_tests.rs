//! The sampling plan and the tolerance together must see what goes wrong in attention kernels: a key block that is
//! dropped, a mask that is off by one, a rescale that is missing; at every length to 128k, in every dtype. And they must
//! not reject a kernel that does nothing wrong but compute in f32.

use super::forward::{PartScores, QueryRow, for_each_block};
use super::*;
use crate::input::{InputSpec, tensor_shape};
use crate::problem::{Bias, Lengths, Pattern, Phase};
use crate::tolerance::ErrorReport;

const LENGTHS: [usize; 8] = [1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15, 1 << 16, 1 << 17];
/// Keys of a kernel's block.
const TILE: usize = 64;

/// Dtypes of inputs, and what a kernel multiplies in.
const PRECISIONS: [(Dtype, Dtype); 4] =
    [(Dtype::F32, Dtype::F32), (Dtype::F16, Dtype::F16), (Dtype::Bf16, Dtype::Bf16), (Dtype::Bf16, Dtype::E4m3)];

fn causal(dtype: Dtype, length: usize) -> AttentionProblem {
    let mut problem = AttentionProblem::softmax(Phase::Prefill, dtype, 1, (4, 2), (length, length), 64);
    problem.causal = true;
    problem
}

/// Less than the default budget: fewer rows see less, and the tests stay quick.
fn budget(length: usize) -> f64 {
    if length < 1 << 16 { 0.05 * DEFAULT_BUDGET_FLOPS } else { 0.4 * DEFAULT_BUDGET_FLOPS }
}

fn plan(problem: &AttentionProblem, spec: &InputSpec, length: usize) -> SamplePlan {
    let plan = SamplePlan::for_problem(problem, spec, 0, budget(length));
    assert!(plan.cost_flops <= budget(length) && !plan.rows[0].rows.is_empty());
    plan
}

/// Judges rows as a kernel would write them.
fn judged(expected: &Expected, rows: &[RowReference]) -> ErrorReport {
    let actual: Vec<f64> = rows.iter().flat_map(|row| &row.o).map(|&x| round_to(expected.dtype, x)).collect();
    expected.judge(&actual)
}

/// The scores of one row's keys in one block, in ascending order of blocks.
type Spoil<'s> = &'s dyn Fn(&QueryRow, &[u32], &mut [f64], &mut f64);

/// Rows of O from scores that were tampered with. `spoil` gets a number a row to remember, at first negative infinity.
fn spoiled(oracle: &Oracle<'_>, rows: &[Row], spoils: &[Spoil<'_>]) -> Vec<Vec<RowReference>> {
    let mut outputs: Vec<Vec<(usize, RowReference)>> = vec![Vec::new(); spoils.len()];
    for head_kv in 0..oracle.problem.heads_kv {
        let inside: Vec<usize> =
            (0..rows.len()).filter(|&n| rows[n].1 / oracle.problem.group_size() == head_kv).collect();
        if inside.is_empty() {
            continue;
        }
        let places: Vec<(usize, usize)> = inside.iter().map(|&n| (rows[n].1, rows[n].2)).collect();
        let query_rows = oracle.query_rows(0, &places);
        let honest: Vec<PartScores> = oracle.scores(0, head_kv, &query_rows);
        for (spoil, outputs) in spoils.iter().zip(&mut outputs) {
            let mut parts_scores = honest.clone();
            let mut memory = vec![f64::NEG_INFINITY; query_rows.len()];
            for (blocks, part) in parts(oracle.key_blocks(0)).into_iter().zip(&mut parts_scores) {
                let mut remaining = part.scores.as_mut_slice();
                for_each_block(&query_rows, blocks, |block| {
                    for &(index, keys) in &block.cells {
                        let (scores, after) = std::mem::take(&mut remaining).split_at_mut(keys.len());
                        remaining = after;
                        // The oracle's blocks hold two of the kernel's.
                        let split = keys.partition_point(|&key| key as usize % (2 * TILE) < TILE);
                        let (low, high) = scores.split_at_mut(split);
                        spoil(&query_rows[index], &keys[..split], low, &mut memory[index]);
                        spoil(&query_rows[index], &keys[split..], high, &mut memory[index]);
                    }
                });
            }
            let rows = oracle.combine(0, head_kv, &query_rows, &parts_scores);
            outputs.extend(inside.iter().copied().zip(rows.into_iter().map(|row| row.reference)));
        }
    }
    outputs
        .into_iter()
        .map(|mut rows| {
            rows.sort_by_key(|(n, _)| *n);
            rows.into_iter().map(|(_, row)| row).collect()
        })
        .collect()
}

#[test]
fn dropped_blocks_and_missing_rescales_fail_at_every_length() {
    for length in LENGTHS {
        for (dtype, multiplied_in) in PRECISIONS {
            let problem = causal(dtype, length);
            let spec = InputSpec::new(&problem, 1);
            let plan = plan(&problem, &spec, length);
            let source = GeneratedRows::new(&problem, &spec, 0);
            let oracle = Oracle::new(&problem, &source).multiplied_in(multiplied_in);
            let expected = &oracle.expected(&plan)[0];
            let drop_at = |tile: usize| {
                move |_: &QueryRow, keys: &[u32], scores: &mut [f64], _: &mut f64| {
                    if keys.first().is_some_and(|&key| key as usize / TILE == tile) {
                        scores.fill(f64::NEG_INFINITY);
                    }
                }
            };
            let middle = drop_at(length / TILE / 2);
            let early = drop_at(length / TILE / 5);
            // Each block is weighed by the maximum so far, and what came before is not brought to the new one.
            let no_rescale = |_: &QueryRow, _: &[u32], scores: &mut [f64], max: &mut f64| {
                *max = scores.iter().copied().fold(*max, f64::max);
                scores.iter_mut().for_each(|score| *score -= *max);
            };
            let strict = |row: &QueryRow, keys: &[u32], scores: &mut [f64], _: &mut f64| {
                if row.query > 0 && keys.last().is_some_and(|&key| key as usize == row.query) {
                    *scores.last_mut().expect("there is a last key") = f64::NEG_INFINITY;
                }
            };
            let honest = |_: &QueryRow, _: &[u32], _: &mut [f64], _: &mut f64| {};
            let spoils: [(&str, Spoil<'_>); 5] = [
                ("nothing", &honest),
                ("a block in the middle is dropped", &middle),
                ("an early block is dropped", &early),
                ("no rescale", &no_rescale),
                ("j < p for j <= p", &strict),
            ];
            let outputs = spoiled(&oracle, &plan.rows[0].rows, &spoils.map(|(_, spoil)| spoil));
            for ((what, _), rows) in spoils.iter().zip(outputs) {
                let report = judged(expected, &rows);
                // A flat row of so many keys hides a block from e4m3: see below.
                if multiplied_in == Dtype::E4m3 && length > 1 << 12 && what.ends_with("dropped") {
                    continue;
                }
                assert_eq!(report.pass, *what == "nothing", "{what}, {multiplied_in:?}, {length} keys: {report:?}");
            }
        }
    }
}

#[test]
fn masks_that_are_off_by_one_fail_at_every_length() {
    for length in LENGTHS {
        for (dtype, multiplied_in) in PRECISIONS {
            let window = |left, right| Pattern::Window { left, right };
            let wrong_masks = [
                (Pattern::Full, true, vec![window(length, 1)]),
                (window(300, 0), false, vec![window(301, 0), window(299, 0), window(300, 1)]),
                (window(100, 70), false, vec![window(100, 71), window(100, 69), window(99, 70), window(101, 70)]),
            ];
            for (pattern, is_causal, wrong) in wrong_masks {
                let mut problem = causal(dtype, length);
                (problem.pattern, problem.causal) = (pattern, is_causal);
                let spec = InputSpec::new(&problem, 1);
                let plan = plan(&problem, &spec, length);
                let source = GeneratedRows::new(&problem, &spec, 0);
                let expected = &Oracle::new(&problem, &source).multiplied_in(multiplied_in).expected(&plan)[0];
                for wrong in wrong {
                    let mut wrong_problem = problem.clone();
                    (wrong_problem.pattern, wrong_problem.causal) = (wrong, false);
                    let rows = Oracle::new(&wrong_problem, &source).forward_rows(&plan.rows[0].rows);
                    let report = judged(expected, &rows);
                    assert!(!report.pass, "{wrong:?} for {pattern:?}, {multiplied_in:?}, {length} keys: {report:?}");
                }
            }
        }
    }
}

/// Hides a range of keys.
struct Hidden<'a> {
    source: &'a GeneratedRows<'a>,
    keys: std::ops::Range<usize>,
}

impl RowSource for Hidden<'_> {
    fn row(&self, name: TensorName, sequence: usize, head: usize, token: usize, out: &mut [f32]) {
        self.source.row(name, sequence, head, token, out);
    }
    fn bias(&self, _: usize, _: usize, _: usize, key: usize) -> f64 {
        if self.keys.contains(&key) { f64::NEG_INFINITY } else { 0.0 }
    }
    fn values(&self, name: TensorName, first: usize, out: &mut [f32]) {
        self.source.values(name, first, out);
    }
}

/// What e4m3's tolerance leaves to rows that single out a key: in 32 flat rows, a dropped block of 64 keys is found up to 8192 keys, and
/// no longer from 32,768 on. A row that singles out one of its keys shows it at any length.
#[test]
fn flat_rows_hide_a_dropped_block_from_e4m3() {
    for (length, is_found) in [(1 << 10, true), (1 << 12, true), (1 << 13, true), (1 << 15, false), (1 << 17, false)] {
        let mut problem = causal(Dtype::Bf16, length);
        problem.causal = false;
        let spec = InputSpec::new(&problem, 1);
        let source = GeneratedRows::new(&problem, &spec, 0);
        let generator = crate::input::Generator::new(&problem, &spec, 0);
        let flat: Vec<Row> =
            (0..length).filter(|&i| generator.peak(0, 0, i).is_none()).map(|i| (0, 0, i)).take(32).collect();
        let plan = SamplePlan {
            is_whole: false,
            cost_flops: 0.0,
            rows: vec![SampledRows { tensor: TensorName::O, rows: flat.clone() }],
            sparse_grad_rows: None,
        };
        let oracle = Oracle::new(&problem, &source).multiplied_in(Dtype::E4m3);
        let expected = &oracle.expected(&plan)[0];
        let drop = |_: &QueryRow, keys: &[u32], scores: &mut [f64], _: &mut f64| {
            if keys.first().is_some_and(|&key| key as usize / TILE == length / TILE / 2) {
                scores.fill(f64::NEG_INFINITY);
            }
        };
        let rows = spoiled(&oracle, &flat, &[&drop]).pop().expect("one output");
        let report = judged(expected, &rows);
        assert_eq!(!report.pass, is_found, "{length} keys: {report:?}");
        let last = (0..length)
            .find(|&i| generator.peak(0, 0, i) == Some(length - 1))
            .expect("a row that singles out the last key");
        let plan = SamplePlan { rows: vec![SampledRows { tensor: TensorName::O, rows: vec![(0, 0, last)] }], ..plan };
        let drop_last = |_: &QueryRow, keys: &[u32], scores: &mut [f64], _: &mut f64| {
            if keys.first().is_some_and(|&key| key as usize / TILE == length / TILE - 1) {
                scores.fill(f64::NEG_INFINITY);
            }
        };
        let rows = spoiled(&oracle, &plan.rows[0].rows, &[&drop_last]).pop().expect("one output");
        assert!(!judged(&oracle.expected(&plan)[0], &rows).pass, "{length} keys");
    }
}

#[test]
fn a_dropped_block_and_a_mask_off_by_one_fail_in_the_gradients() {
    for length in [1 << 10, 1 << 14] {
        for dtype in Dtype::ALL {
            let mut problem = causal(dtype, length);
            problem.phase = Phase::Backward;
            let mut spec = InputSpec::new(&problem, 1);
            let plan = SamplePlan::for_problem(&problem, &spec, 0, 0.1 * DEFAULT_BUDGET_FLOPS);
            spec.sparse_grads.extend(plan.sparse_grad(0));
            let source = GeneratedRows::new(&problem, &spec, 0);
            let expected = Oracle::new(&problem, &source).expected(&plan);
            let mut masked = problem.clone();
            masked.bias = Bias::Bool;
            let start = length / 2;
            let hidden = Hidden { source: &source, keys: start..start + TILE };
            let mut shifted = problem.clone();
            (shifted.pattern, shifted.causal) = (Pattern::Window { left: length, right: 1 }, false);
            for (what, wrong) in [
                ("nothing", Oracle::new(&problem, &source).expected(&plan)),
                ("dropped", Oracle::new(&masked, &hidden).expected(&plan)),
                ("off by one", Oracle::new(&shifted, &source).expected(&plan)),
            ] {
                for (expected, wrong) in expected.iter().zip(wrong) {
                    let actual: Vec<f64> = wrong.reference.iter().map(|&x| round_to(dtype, x)).collect();
                    let report = expected.judge(&actual);
                    let name = expected.rows.tensor;
                    assert_eq!(report.pass, what == "nothing", "{what}, {name:?}, {dtype:?}, {length}: {report:?}");
                }
            }
        }
    }
}

/// FlashAttention 2 as plainly as can be, with f32 sums and P rounded to the dtype: a correct kernel.
fn f32_flash(problem: &AttentionProblem, source: &dyn RowSource, (b, head, query): Row) -> Vec<f64> {
    let (dk, dv, kv) = (problem.head_dim_qk, problem.head_dim_v, head / problem.group_size());
    let (mut q, mut k, mut v) = (vec![0f32; dk], vec![0f32; dk], vec![0f32; dv]);
    source.row(TensorName::Q, b, head, query, &mut q);
    let scale = problem.effective_scale() as f32;
    let (mut max, mut sum, mut o) = (f32::NEG_INFINITY, 0f32, vec![0f32; dv]);
    for first in (0..=query).step_by(TILE) {
        let keys = first..(first + TILE).min(query + 1);
        let scores: Vec<f32> = keys
            .clone()
            .map(|key| {
                source.row(TensorName::K, b, kv, key, &mut k);
                scale * q.iter().zip(&k).fold(0f32, |sum, (a, b)| sum + a * b)
            })
            .collect();
        let new_max = scores.iter().copied().fold(max, f32::max);
        let rescale = (max - new_max).exp();
        sum *= rescale;
        o.iter_mut().for_each(|x| *x *= rescale);
        max = new_max;
        // A tile is summed by itself, as a matrix product does: one long f32 sum would lose its smallest terms.
        let (mut tile_sum, mut tile_o) = (0f32, vec![0f32; dv]);
        for (key, score) in keys.zip(scores) {
            let p = (score - max).exp();
            tile_sum += p;
            let p = round_to(problem.dtype, f64::from(p)) as f32;
            source.row(TensorName::V, b, kv, key, &mut v);
            tile_o.iter_mut().zip(&v).for_each(|(o, v)| *o += p * v);
        }
        sum += tile_sum;
        o.iter_mut().zip(&tile_o).for_each(|(o, x)| *o += x);
    }
    o.iter().map(|x| round_to(problem.dtype, f64::from(x / sum))).collect()
}

#[test]
fn a_plain_f32_kernel_passes() {
    for length in [1, 2, 65, 1 << 10, 1 << 14, 1 << 17] {
        for dtype in Dtype::ALL {
            for seed in [1, 2] {
                for dim in [8, 128] {
                    let mut problem = causal(dtype, length);
                    (problem.head_dim_qk, problem.head_dim_v) = (dim, dim);
                    let spec = InputSpec::new(&problem, seed);
                    let mut plan = SamplePlan::for_problem(&problem, &spec, 0, 1e8);
                    plan.rows[0].rows.truncate(if length > 1 << 16 { 2 } else { 24 });
                    let source = GeneratedRows::new(&problem, &spec, 0);
                    let expected = &Oracle::new(&problem, &source).expected(&plan)[0];
                    let actual: Vec<f64> =
                        plan.rows[0].rows.par_iter().flat_map(|&row| f32_flash(&problem, &source, row)).collect();
                    let report = expected.judge(&actual);
                    assert!(report.pass, "{dtype:?}, {length} keys, seed {seed}, d {dim}: {report:?}");
                }
            }
        }
    }
}

#[test]
fn plans_keep_their_budget_and_hold_edges_and_peaks() {
    let mut problem = causal(Dtype::Bf16, 1 << 14);
    problem.batch = 3;
    problem.seqlen_q = Lengths::List(vec![1 << 14, 0, 77]);
    problem.seqlen_kv = Lengths::List(vec![1 << 14, 5, 300]);
    let spec = InputSpec::new(&problem, 3);
    for budget in [0.0, 1e6, 1e8, 2e9] {
        let plan = SamplePlan::for_problem(&problem, &spec, 0, budget);
        assert_eq!(plan, SamplePlan::for_problem(&problem, &spec, 0, budget), "the same seed, the same plan");
        assert!(!plan.is_whole && plan.sparse_grad_rows.is_none());
        let rows = &plan.rows[0].rows;
        assert!(plan.cost_flops <= budget || rows.len() == 1, "{budget}: {}", plan.cost_flops);
        let mut unique = rows.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), rows.len(), "no row twice");
        assert!(rows.iter().all(|&(b, h, i)| b != 1 && h < 4 && i < problem.lengths_q()[b]));
        let json = serde_json::to_string(&plan).expect("a plan is JSON");
        assert_eq!(serde_json::from_str::<SamplePlan>(&json).expect("and back"), plan);
    }
    let plan = SamplePlan::for_problem(&problem, &spec, 0, DEFAULT_BUDGET_FLOPS);
    let rows = &plan.rows[0].rows;
    for edge in [(0, 0, 0), (0, 1, (1 << 14) - 1), (2, 3, 76), (2, 2, 0)] {
        assert!(rows.contains(&edge), "{edge:?} is an edge");
    }
    let generator = crate::input::Generator::new(&problem, &spec, 0);
    for offset in [0, 1] {
        let hits = rows.iter().filter(|&&(b, h, i)| b == 0 && generator.peak(b, h, i) == Some(i + offset)).count();
        assert!(hits > 0, "a row singles out the key at {offset}");
    }
    assert!(rows.iter().any(|&(b, _, i)| b == 0 && i == 63) && rows.iter().any(|&(b, _, i)| b == 0 && i == 64));

    let tiny = causal(Dtype::F32, 5);
    let spec = InputSpec::new(&tiny, 3);
    let whole = SamplePlan::for_problem(&tiny, &spec, 0, DEFAULT_BUDGET_FLOPS).with_lse();
    assert!(whole.is_whole && whole.rows.len() == 2 && whole.rows[1].rows.len() == 4 * 5);
    assert_eq!(tensor_shape(&tiny, TensorName::Lse).1, [1, 4, 5]);
    let source = GeneratedRows::new(&tiny, &spec, 0);
    let expected = Oracle::new(&tiny, &source).expected(&whole);
    assert!(expected[1].judge(&expected[1].reference).pass);
    let empty = causal(Dtype::F32, 0);
    let spec = InputSpec::new(&empty, 3);
    let plan = SamplePlan::for_problem(&empty, &spec, 0, DEFAULT_BUDGET_FLOPS);
    assert!(plan.rows.iter().all(|sampled| sampled.rows.is_empty()));
}
