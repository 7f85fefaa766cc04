//! Vector exp and tanh, and the weight of a softmax.
//!
//! exp(x) = 2^n exp(r) with n = round(x / ln 2) and |r| <= ln(2)/2 (Cody and Waite 1980, chapter 6: ln 2 is subtracted
//! in two parts, the first of few bits, so that n times it is exact), and exp(r) = 1 + r + r^2 P(r) with a minimax P of
//! degree 4 whose relative error is 0.06 x 2^-24. Measured over every f32 in [-87.33, 88.37]: see the tests' bound.

use super::isa::{Isa, Task};
use super::vector::Simd;

/// exp of anything below is 0: the results would be subnormal, which weighs nothing beside a largest weight of 1.
pub const EXP_UNDERFLOW: f32 = -87.336_54;
/// exp of anything above is exp of this.
pub const EXP_SATURATION: f32 = 88.37;

/// Adding it to a small f32 rounds that to an integer and leaves the integer in the low bits.
const SHIFT: f32 = 12_582_912.0;
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -0.000_212_194_44;

/// exp(x) within 1.1 ulp; 0 below [`EXP_UNDERFLOW`] (so of -inf), saturated above [`EXP_SATURATION`], NaN of NaN.
#[inline(always)]
pub fn exp<S: Simd>(x: S::V) -> S::V {
    let x = S::min(S::splat(EXP_SATURATION), x);
    let shifted = S::fma(x, S::splat(std::f32::consts::LOG2_E), S::splat(SHIFT));
    let n = S::sub(shifted, S::splat(SHIFT));
    let r = S::fma(n, S::splat(-LN2_LOW), S::fma(n, S::splat(-LN2_HIGH), x));
    let mut p = S::splat(0.001_381_314_5);
    for coefficient in [0.008_369_419, 0.041_668_456, 0.166_665_15, 0.499_999_94] {
        p = S::fma(p, r, S::splat(coefficient));
    }
    let exp_r = S::add(S::fma(S::mul(r, r), p, r), S::splat(1.0));
    // Below the bound all of this is garbage (NaN for -inf), and replaced.
    S::times_power_of_two(exp_r, shifted, x, S::splat(EXP_UNDERFLOW))
}

/// exp(x) for x <= 0, three quarters of [`exp`]'s instructions: the weight of a score that lies x above its row's largest.
/// Within 3 ulp and a relative error of 2e-8 |x| (log2 e is rounded; 1e-7 |x| on the portable path, where products are rounded
/// too); 0 and NaN as [`exp`].
///
/// 2^n 2^r with r in [-1/2, 1/2], and 2^r = 1 + r P(r) with a minimax P of degree 4, whose relative error is 1.5 x 2^-24.
#[inline(always)]
#[expect(clippy::approx_constant, reason = "the coefficient of r is near ln 2 and not ln 2")]
pub fn softmax_weight<S: Simd>(x: S::V) -> S::V {
    let log2_e = S::splat(std::f32::consts::LOG2_E);
    let shifted = S::fma(x, log2_e, S::splat(SHIFT));
    let minus_n = S::sub(S::splat(SHIFT), shifted);
    let r = S::fma(x, log2_e, minus_n);
    let mut p = S::splat(0.001_326_472_7);
    for coefficient in [0.009_671_513, 0.055_507_336, 0.240_222_42, 0.693_147, 1.0] {
        p = S::fma(p, r, S::splat(coefficient));
    }
    S::times_power_of_two(p, shifted, x, S::splat(EXP_UNDERFLOW))
}

/// tanh(x) within 1.5 ulp: an odd minimax polynomial below 0.625, 1 - 2 / (exp(2|x|) + 1) with x's sign above.
#[inline(always)]
pub fn tanh<S: Simd>(x: S::V) -> S::V {
    let zero = S::splat(0.0);
    let magnitude = S::max(x, S::sub(zero, x));
    let grown = exp::<S>(S::add(magnitude, magnitude));
    let large = S::sub(S::splat(1.0), S::div(S::splat(2.0), S::add(grown, S::splat(1.0))));
    let signed = S::select_less(x, zero, S::sub(zero, large), large);
    let square = S::mul(x, x);
    let mut p = S::splat(-0.005_717_045);
    for coefficient in [0.020_650_588, -0.053_743_497, 0.133_314_91, -0.333_332_84] {
        p = S::fma(p, square, S::splat(coefficient));
    }
    let small = S::fma(S::mul(x, square), p, x);
    S::select_less(magnitude, S::splat(0.625), small, signed)
}

#[derive(Clone, Copy)]
enum Function {
    Exp,
    SoftmaxWeight,
    Tanh,
}

struct Map<'a> {
    values: &'a mut [f32],
    function: Function,
}

impl Task for Map<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        for start in (0..self.values.len()).step_by(S::LANES) {
            let chunk = &mut self.values[start..];
            let count = chunk.len().min(S::LANES);
            // No closure: it would be compiled without the instruction set.
            let x = load_padded::<S>(chunk);
            let result = match self.function {
                Function::Exp => exp::<S>(x),
                Function::SoftmaxWeight => softmax_weight::<S>(x),
                Function::Tanh => tanh::<S>(x),
            };
            store_padded::<S>(result, &mut chunk[..count]);
        }
    }
}

/// The first LANES elements, zeros where there are fewer.
#[inline(always)]
pub(crate) fn load_padded<S: Simd>(from: &[f32]) -> S::V {
    if from.len() >= S::LANES {
        // SAFETY: LANES elements are there.
        return unsafe { S::load(from.as_ptr()) };
    }
    let mut lanes = [0f32; super::vector::MAX_LANES];
    lanes[..from.len()].copy_from_slice(from);
    // SAFETY: the buffer has at least LANES elements.
    unsafe { S::load(lanes.as_ptr()) }
}

/// Stores as many lanes as `to` has elements, at most LANES.
#[inline(always)]
pub(crate) fn store_padded<S: Simd>(x: S::V, to: &mut [f32]) {
    if to.len() == S::LANES {
        // SAFETY: LANES elements are there.
        return unsafe { S::store(to.as_mut_ptr(), x) };
    }
    let mut lanes = [0f32; super::vector::MAX_LANES];
    // SAFETY: the buffer has at least LANES elements.
    unsafe { S::store(lanes.as_mut_ptr(), x) };
    to.copy_from_slice(&lanes[..to.len()]);
}

/// [`exp`] of every element, in place.
pub fn exp_in_place(isa: Isa, values: &mut [f32]) {
    isa.run(Map { values, function: Function::Exp });
}

/// [`softmax_weight`] of every element, in place.
pub fn softmax_weights_in_place(isa: Isa, values: &mut [f32]) {
    isa.run(Map { values, function: Function::SoftmaxWeight });
}

/// [`tanh`] of every element, in place.
pub fn tanh_in_place(isa: Isa, values: &mut [f32]) {
    isa.run(Map { values, function: Function::Tanh });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The error of `got` in units of the last place of the exact value.
    fn ulps(got: f32, exact: f64) -> f64 {
        let ulp = f64::from(f32::from_bits((exact.abs() as f32).to_bits() + 1)) - f64::from(exact.abs() as f32);
        (f64::from(got) - exact).abs() / ulp
    }

    /// Every `step`-th f32 between two bit patterns of one sign.
    fn sweep(from: f32, to: f32, step: usize) -> Vec<f32> {
        let (low, high) = (from.to_bits().min(to.to_bits()), from.to_bits().max(to.to_bits()));
        (low..=high).step_by(step).map(f32::from_bits).collect()
    }

    #[test]
    fn exp_is_within_its_bound_on_every_instruction_set() {
        for isa in Isa::available() {
            let mut worst = 0f64;
            for inputs in [sweep(-1e-6, EXP_UNDERFLOW, 131), sweep(1e-6, EXP_SATURATION, 131)] {
                let mut outputs = inputs.clone();
                exp_in_place(isa, &mut outputs);
                worst = inputs.iter().zip(&outputs).fold(worst, |w, (&x, &y)| w.max(ulps(y, f64::from(x).exp())));
            }
            assert!(worst < 1.1, "{}: {worst} ulp", isa.name());
            println!("{}: exp within {worst:.3} ulp", isa.name());
        }
    }

    #[test]
    fn softmax_weights_are_within_their_bound_on_every_instruction_set() {
        for isa in Isa::available() {
            let inputs = sweep(-1e-6, EXP_UNDERFLOW, 131);
            let mut outputs = inputs.clone();
            softmax_weights_in_place(isa, &mut outputs);
            for (&x, &y) in inputs.iter().zip(&outputs) {
                let exact = f64::from(x).exp();
                let of_log2_e = if isa.name() == "portable" { 1e-7 } else { 2e-8 } * f64::from(-x) * exact;
                let ulp = f64::from(f32::from_bits((exact as f32).to_bits() + 1)) - f64::from(exact as f32);
                assert!((f64::from(y) - exact).abs() <= 3.0 * ulp + of_log2_e, "{}: exp({x}) is not {y}", isa.name());
            }
            let mut ends = [f32::NEG_INFINITY, -1e30, -87.4, 0.0, -0.0, f32::NAN];
            softmax_weights_in_place(isa, &mut ends);
            assert_eq!(&ends[..5], &[0.0, 0.0, 0.0, 1.0, 1.0], "{}", isa.name());
            assert!(ends[5].is_nan(), "{}", isa.name());
        }
    }

    #[test]
    fn exp_keeps_the_ends() {
        for isa in Isa::available() {
            let mut x = [f32::NEG_INFINITY, -1e30, -87.4, 0.0, -0.0, f32::NAN, 1e30, f32::INFINITY];
            exp_in_place(isa, &mut x);
            assert_eq!(&x[..5], &[0.0, 0.0, 0.0, 1.0, 1.0], "{}", isa.name());
            assert!(x[5].is_nan() && x[6] > 2e38 && x[6].is_finite() && x[7] == x[6], "{}: {x:?}", isa.name());
        }
    }

    #[test]
    fn tanh_is_within_its_bound_on_every_instruction_set() {
        for isa in Isa::available() {
            let mut worst = 0f64;
            for inputs in [sweep(-1e-6, -20.0, 131), sweep(1e-6, 1e9, 131)] {
                let mut outputs = inputs.clone();
                tanh_in_place(isa, &mut outputs);
                worst = inputs.iter().zip(&outputs).fold(worst, |w, (&x, &y)| w.max(ulps(y, f64::from(x).tanh())));
            }
            assert!(worst < 1.5, "{}: {worst} ulp", isa.name());
            println!("{}: tanh within {worst:.3} ulp", isa.name());
        }
    }
}
