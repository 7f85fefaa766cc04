//! When an output is correct.
//!
//! | dtype | ulp | relative L2 of a tensor | relative L2 of a row | log-sum-exp |
//! |---|---|---|---|---|
//! | f32 | 2^-23 | 1e-5 | 1e-4 | 1e-4 + 1e-5 times its size |
//! | f16 | 2^-10 | 1e-3 | 2e-3 | the same |
//! | bf16 | 2^-7 | 8e-3 | 1e-2 | the same |
//! | e4m3 | 2^-3 | 9e-2 | 5e-2 | 1e-2 + 1e-3 times its size + twice what rounding makes of it |
//!
//! The dtype is what a kernel multiplies in: the problem's own, unless a kernel says that it rounds to a narrower one
//! ([`crate::cuda::CudaKernel::multiplies_in`]), and then a table of the judge's own says it, never the answer that is judged.
//!
//! An output passes where every number is finite and all three hold; `ref` is the exact result, `lp` the exact result of
//! weights rounded to the dtype (and of inputs, where theirs is wider), and a row's *size* is max(|ref|, scale) of [`crate::reference::RowReference::scale`]:
//!
//! 1. max|o - ref| <= 2 max|lp - ref| + (2 ulp + 1e-5) M, where M is the largest of |ref| and of the rows' root mean
//!    square sizes (gradients: three times that);
//! 2. |o - ref|_2 over all rows <= the tensor's tolerance times the root of the sum of the squared sizes (gradients:
//!    three times that);
//! 3. for each row, |o - ref|_2 <= the row's tolerance times its size + 2 |lp - ref|_2 + two of the dtype's smallest
//!    numbers an element.
//!
//! The first two are FlashAttention's criterion and a bound on the sum. They cannot see everything alone, so:
//!
//! - *Rows are judged one by one.* A flat softmax over n keys has a row of norm about 1/sqrt(n) of a peaked one. At
//!   131,072 keys a dropped block of 64 keys changes a flat row by some 2 %, which is 1e-4 of a tensor whose norm is that
//!   of its peaked rows: neither maximum nor tensor norm shows it, the row's own norm does. A row's tolerance is wider
//!   than the tensor's in f16 and f32, since a single row may be an unlucky one, and stays below those 2 %.
//! - *The size of a row is that of its terms.* dQ of a peaked row is a difference of large equal numbers: what is left
//!   is tiny, and rounding errors of the terms are large beside it though nothing is wrong. |ref| alone would reject
//!   correct kernels there.
//! - *1e-5 in the first.* Kernels sum q.k in f32. A score of 30 carries an error of some 2e-6, and so does its weight;
//!   in f32 that is more than 2 ulp, and in the others it is nothing. A plain f32 kernel that sums tile by tile is off by
//!   about 1e-6 at 131,072 keys. One that adds every key to a single f32 sum loses its smallest terms there, is off by
//!   1e-5 to 1e-4, and fails: that is a defect worth finding.
//!
//! - *e4m3 is wide.* Its relative rounding error is 2.5 % in the mean square. One of Q and of K each makes the scores of inputs like the
//!   generator's uncertain by 0.05, and so each weight by 5 %; rounding the weight and its value adds 2.5 % each. That is 6 % of
//!   the size of a flat row, 2.5 % of one that singles out a key, and more where scores are larger. A simulation of 360 tensors of
//!   eight flat rows had up to 7.9 %: 6e-2 would reject correct kernels. Rows differ so much that each is judged by what rounding alone
//!   makes of it, and little more.
//! - *What passes, then.* A mask that is off by one and a missing rescale are found at every length to 128k. A dropped block of 64
//!   keys changes a flat row of n keys by a root of 64/n, while 5 % and twice 6 % are allowed: tests find it at every length up
//!   to 4,096 keys, up to 8,192 where rows are flat, and beyond only by a row that singles out one of its keys, which a
//!   sample of a few dozen rows need not hold. Whoever changes the loop of such a kernel compares it with its sister of 16 bits.
//!
//! A row without visible keys has size 0: nothing but zeros pass. These numbers live here and nowhere else.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::problem::Dtype;

/// The bounds of a dtype: the table above.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Tolerance {
    /// Relative L2 over all rows.
    pub relative_l2: f64,
    /// Relative L2 of each row.
    pub row_relative_l2: f64,
    /// The distance from 1 to the next number of the dtype that is multiplied in.
    pub ulp: f64,
    /// The smallest positive number of the dtype that is stored.
    pub tiny: f64,
    /// What the first two criteria are multiplied by: 1, and 3 for gradients.
    pub factor: f64,
}

/// What f32 accumulation of scores may cost, relative to the largest element.
const ACCUMULATION: f64 = 1e-5;
/// Gradients pass through two more products than outputs.
const GRADIENT_FACTOR: f64 = 3.0;

impl Tolerance {
    /// The bounds of an output or a gradient of a kernel that multiplies in one dtype and stores in another.
    pub fn of(precision: Precision, is_gradient: bool) -> Tolerance {
        let (relative_l2, row_relative_l2) = match precision.multiplied_in {
            Dtype::F32 => (1e-5, 1e-4),
            Dtype::F16 => (1e-3, 2e-3),
            Dtype::Bf16 => (8e-3, 1e-2),
            Dtype::E4m3 => (9e-2, 5e-2),
        };
        let tiny = match precision.stored_in {
            Dtype::F32 | Dtype::Bf16 => f64::from(f32::MIN_POSITIVE),
            Dtype::F16 => f64::from(half::f16::MIN_POSITIVE_SUBNORMAL),
            Dtype::E4m3 => crate::e4m3::e4m3::MIN_POSITIVE_SUBNORMAL.to_f64(),
        };
        let factor = if is_gradient { GRADIENT_FACTOR } else { 1.0 };
        Tolerance { relative_l2, row_relative_l2, ulp: precision.multiplied_in.ulp(), tiny, factor }
    }
}

/// What rounds an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Precision {
    /// The dtype of what is multiplied.
    pub multiplied_in: Dtype,
    /// The dtype of the output's elements.
    pub stored_in: Dtype,
}

/// Where an output is worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WorstElement {
    /// Which of the compared rows.
    pub row: usize,
    /// Which element of it.
    pub element: usize,
}

/// How far an output is from the oracle's, and whether that is near enough.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorReport {
    /// Largest |o - ref|; None where an element is not finite.
    pub max_abs: Option<f64>,
    /// Largest |lp - ref|: what rounding to the dtype alone costs.
    pub max_abs_lp: f64,
    /// |o - ref|_2 over the root of the sum of squared row sizes; None where an element is not finite.
    pub relative_l2: Option<f64>,
    /// Largest |o - ref|_2 of a row over what that row is allowed: above 1 fails. None where an element is not finite.
    pub worst_row_ratio: Option<f64>,
    /// Bound of `max_abs`.
    pub allowed_max_abs: f64,
    /// Bound of `relative_l2`.
    pub allowed_relative_l2: f64,
    /// Whether every criterion holds.
    pub pass: bool,
    /// The element with the largest |o - ref|, or the first that is not finite; None where nothing was compared.
    pub worst: Option<WorstElement>,
    /// Why it does not pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What an output is judged by.
#[derive(Clone, Copy, Debug)]
pub struct Reference<'a> {
    /// The exact rows, one after another.
    pub exact: &'a [f64],
    /// The exact result of weights rounded to the dtype, itself rounded.
    pub lp: &'a [f64],
    /// [`crate::reference::RowReference::scale`] of each row; its length is the number of rows.
    pub row_scales: &'a [f64],
}

/// Judges rows of an output. Panics where the lengths differ: the caller has checked what came over the wire.
pub fn judge(precision: Precision, is_gradient: bool, actual: &[f64], reference: Reference<'_>) -> ErrorReport {
    let Reference { exact, lp, row_scales } = reference;
    assert_eq!((actual.len(), lp.len()), (exact.len(), exact.len()), "every element has its reference");
    let tolerance = Tolerance::of(precision, is_gradient);
    let dim = exact.len().checked_div(row_scales.len()).unwrap_or(0);
    assert_eq!(dim * row_scales.len(), exact.len(), "the rows have one length");

    let norm = |row: &[f64]| row.iter().map(|x| x * x).sum::<f64>().sqrt();
    let distance = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
    let max_distance = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);

    let mut largest = exact.iter().map(|x| x.abs()).fold(0.0, f64::max);
    let (mut squared_error, mut squared_size) = (0.0, 0.0);
    let mut worst_row = (0.0, 0);
    for (row, &scale) in row_scales.iter().enumerate() {
        let range = row * dim..(row + 1) * dim;
        let (o, exact, lp) = (&actual[range.clone()], &exact[range.clone()], &lp[range]);
        let size = norm(exact).max(scale);
        let error = distance(o, exact);
        let allowed =
            tolerance.row_relative_l2 * size + 2.0 * distance(lp, exact) + 2.0 * tolerance.tiny * (dim as f64).sqrt();
        largest = f64::max(largest, size / (dim.max(1) as f64).sqrt());
        squared_error += error * error;
        squared_size += size * size;
        if error / allowed > worst_row.0 {
            worst_row = (error / allowed, row);
        }
    }

    let max_abs = max_distance(actual, exact);
    let max_abs_lp = max_distance(lp, exact);
    let relative_l2 =
        if squared_error == 0.0 { 0.0 } else { (squared_error / squared_size.max(f64::MIN_POSITIVE)).sqrt() };
    let allowed_max_abs =
        tolerance.factor * (2.0 * max_abs_lp + (2.0 * tolerance.ulp + ACCUMULATION) * largest) + 2.0 * tolerance.tiny;
    let allowed_relative_l2 = tolerance.factor * tolerance.relative_l2;
    // Errors below the dtype's smallest numbers are no errors, however small the reference is.
    let is_tiny = squared_error.sqrt() <= 2.0 * tolerance.tiny * (exact.len() as f64).sqrt();

    let not_finite = actual.iter().position(|x| !x.is_finite());
    let worst = not_finite.or_else(|| {
        let error = |index: usize| (actual[index] - exact[index]).abs();
        (0..exact.len()).max_by(|&a, &b| error(a).total_cmp(&error(b)))
    });
    let place = |index: usize| WorstElement { row: index / dim, element: index % dim };
    let reason = if let Some(index) = not_finite {
        let WorstElement { row, element } = place(index);
        Some(format!("row {row}, element {element} is {}", actual[index]))
    } else if max_abs > allowed_max_abs {
        Some(format!("the largest error is {max_abs:.3e}, allowed are {allowed_max_abs:.3e}"))
    } else if relative_l2 > allowed_relative_l2 && !is_tiny {
        Some(format!("the relative L2 error is {relative_l2:.3e}, allowed are {allowed_relative_l2:.3e}"))
    } else if worst_row.0 > 1.0 {
        Some(format!("the L2 error of row {} is {:.3} times what is allowed", worst_row.1, worst_row.0))
    } else {
        None
    };
    let finite = |value: f64| not_finite.is_none().then_some(value);
    ErrorReport {
        max_abs: finite(max_abs),
        max_abs_lp,
        relative_l2: finite(relative_l2),
        worst_row_ratio: finite(worst_row.0),
        allowed_max_abs,
        allowed_relative_l2,
        pass: reason.is_none(),
        worst: worst.map(place),
        reason,
    }
}

/// Judges log-sum-exps, f32 whatever is multiplied in: |lse - ref| <= a + b |ref| + 2 |lp - ref| with the numbers of the table above,
/// and negative infinity exactly where the row sees nothing. Scores of 16 bits and more are sums in f32, whose absolute error is
/// one of the LSE, and have no `lp` of their own; e4m3 rounds what is summed.
pub fn judge_lse(multiplied_in: Dtype, actual: &[f64], exact: &[f64], lp: &[f64]) -> ErrorReport {
    assert_eq!((actual.len(), lp.len()), (exact.len(), exact.len()), "every row has its reference");
    let (absolute, relative) = if multiplied_in == Dtype::E4m3 { (1e-2, 1e-3) } else { (1e-4, 1e-5) };
    let mut report = ErrorReport {
        max_abs: Some(0.0),
        max_abs_lp: 0.0,
        relative_l2: Some(0.0),
        worst_row_ratio: Some(0.0),
        allowed_max_abs: absolute,
        allowed_relative_l2: relative,
        pass: true,
        worst: None,
        reason: None,
    };
    let (mut squared_error, mut squared_size) = (0.0, 0.0);
    for (row, ((&actual, &exact), &lp)) in actual.iter().zip(exact).zip(lp).enumerate() {
        if actual == exact {
            continue;
        }
        let place = Some(WorstElement { row, element: 0 });
        if !actual.is_finite() || !exact.is_finite() {
            let reason = Some(format!("the log-sum-exp of row {row} is {actual}, not {exact}"));
            return ErrorReport {
                max_abs: None,
                relative_l2: None,
                worst_row_ratio: None,
                pass: false,
                worst: place,
                reason,
                ..report
            };
        }
        let error = (actual - exact).abs();
        squared_error += error * error;
        squared_size += exact * exact;
        let allowed = absolute + relative * exact.abs() + 2.0 * (lp - exact).abs();
        let ratio = error / allowed;
        if Some(ratio) > report.worst_row_ratio {
            report.worst_row_ratio = Some(ratio);
            report.allowed_max_abs = allowed;
            report.max_abs = Some(error);
            report.worst = place;
        }
        if ratio > 1.0 && report.pass {
            report.pass = false;
            report.reason = Some(format!("the log-sum-exp of row {row} is {actual}, not {exact}"));
        }
    }
    report.relative_l2 = Some(if squared_error == 0.0 { 0.0 } else { (squared_error / squared_size).sqrt() });
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(dtype: Dtype, actual: &[f64], exact: &[f64], lp: &[f64], scales: &[f64]) -> ErrorReport {
        let precision = Precision { multiplied_in: dtype, stored_in: dtype };
        judge(precision, false, actual, Reference { exact, lp, row_scales: scales })
    }

    #[test]
    fn exact_outputs_pass_and_nothing_compared_passes() {
        for dtype in Dtype::ALL {
            let exact = [1.0, -2.0, 0.5, 0.25];
            let report = report(dtype, &exact, &exact, &exact, &[1.0, 1.0]);
            assert!(report.pass, "{report:?}");
            assert_eq!((report.max_abs, report.relative_l2), (Some(0.0), Some(0.0)));
        }
        assert!(report(Dtype::F32, &[], &[], &[], &[]).pass);
    }

    #[test]
    fn numbers_that_are_not_finite_fail_and_say_where() {
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let report =
                report(Dtype::Bf16, &[1.0, 2.0, 3.0, bad], &[1.0, 2.0, 3.0, 4.0], &[1.0, 2.0, 3.0, 4.0], &[1.0; 2]);
            assert!(!report.pass);
            assert_eq!(report.worst, Some(WorstElement { row: 1, element: 1 }));
            assert!(report.reason.as_ref().is_some_and(|reason| reason.contains("row 1, element 1")), "{report:?}");
            assert_eq!(report.max_abs, None);
            let json = serde_json::to_string(&report).expect("a report is JSON");
            assert_eq!(serde_json::from_str::<ErrorReport>(&json).expect("and back"), report);
        }
    }

    #[test]
    fn an_error_in_a_small_row_shows_beside_large_rows() {
        // 63 rows of size 10 and one of size 0.01 with an error of 5 %.
        let mut exact = vec![10.0; 63 * 4];
        exact.extend([0.01; 4]);
        let mut actual = exact.clone();
        actual[63 * 4..].iter_mut().for_each(|x| *x *= 1.05);
        let mut scales = vec![20.0; 63];
        scales.push(0.02);
        for dtype in Dtype::ALL {
            let report = report(dtype, &actual, &exact, &exact, &scales);
            assert!(!report.pass, "{dtype:?}");
            assert!(report.worst_row_ratio > Some(1.0) && report.reason.is_some());
            assert!(report.relative_l2 < Some(1e-5), "the tensor's norm does not show it");
        }
    }

    #[test]
    fn an_empty_row_is_zero_and_nothing_else() {
        let zero = [0.0; 4];
        for dtype in Dtype::ALL {
            assert!(report(dtype, &[0.0, -0.0, 0.0, 0.0], &zero, &zero, &[0.0]).pass);
            assert!(!report(dtype, &[0.0, 1e-4, 0.0, 0.0], &zero, &zero, &[0.0]).pass);
            assert!(!report(dtype, &[f64::NAN; 4], &zero, &zero, &[0.0]).pass);
        }
        // The smallest f16 numbers cannot be told from zero there.
        assert!(report(Dtype::F16, &[6e-8; 4], &[1e-8; 4], &[0.0; 4], &[1e-8]).pass);
    }

    #[test]
    fn cancelled_terms_are_judged_by_their_size() {
        // Two terms of size 1 that leave 1e-6: an error of 3e-6 is f32 rounding, not a wrong result.
        let (exact, actual) = ([1e-6; 4], [4e-6; 4]);
        assert!(report(Dtype::F32, &actual, &exact, &exact, &[2.0]).pass);
        assert!(!report(Dtype::F32, &actual, &exact, &exact, &[1e-6]).pass);
    }

    #[test]
    fn the_bounds_follow_the_dtype() {
        let exact = [1.0, 1.0];
        for (dtype, fine, wrong) in
            [(Dtype::F32, 5e-6, 5e-5), (Dtype::F16, 5e-4, 5e-3), (Dtype::Bf16, 4e-3, 4e-2), (Dtype::E4m3, 5e-2, 5e-1)]
        {
            assert!(report(dtype, &[1.0 + fine, 1.0], &exact, &exact, &[1.0]).pass);
            assert!(!report(dtype, &[1.0 + wrong, 1.0], &exact, &exact, &[1.0]).pass);
        }
    }

    #[test]
    fn log_sum_exps_of_empty_rows_are_negative_infinity() {
        let empty = f64::NEG_INFINITY;
        for dtype in Dtype::STORED {
            let judge_lse = |actual: &[f64], exact: &[f64]| judge_lse(dtype, actual, exact, exact);
            assert!(judge_lse(&[1.0, empty], &[1.00001, empty]).pass);
            assert!(!judge_lse(&[1.0, -1e30], &[1.0, empty]).pass);
            assert!(!judge_lse(&[f64::NAN], &[1.0]).pass);
            assert!(!judge_lse(&[empty], &[1.0]).pass);
            assert_eq!(judge_lse(&[1.001], &[1.0]).pass, dtype == Dtype::E4m3);
            assert!(!judge_lse(&[1.3], &[1.0]).pass);
        }
        // What rounding makes of it is allowed twice.
        assert!(judge_lse(Dtype::E4m3, &[1.3], &[1.0], &[0.8]).pass);
        assert!(!judge_lse(Dtype::E4m3, &[1.5], &[1.0], &[0.8]).pass);
    }

    #[test]
    fn what_is_stored_in_16_bits_has_their_smallest_numbers_whatever_was_multiplied() {
        // A flat row of 131,072 keys has elements of 0.003: below the smallest e4m3, which must not excuse them.
        let exact = [3e-3; 64];
        let wrong = [5e-3; 64];
        let precision = Precision { multiplied_in: Dtype::E4m3, stored_in: Dtype::Bf16 };
        let report = |actual: &[f64]| {
            judge(precision, false, actual, Reference { exact: &exact, lp: &exact, row_scales: &[0.024] })
        };
        assert!(report(&[3.1e-3; 64]).pass && !report(&wrong).pass && !report(&[0.0; 64]).pass);
    }
}
