//! One vector of f32 on each instruction set, behind the trait [`Simd`].

use half::{bf16, f16};

use crate::e4m3::e4m3;
use crate::tensor::Float;

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// Vectors of f32 on one instruction set.
///
/// Its types are private to this module and reach a loop through [`super::Isa::run`] alone, which has checked that the
/// CPU knows their instructions: that makes every arithmetic method safe.
///
/// # Safety
/// `load`, `load_f16`, `load_bf16` and `store` touch exactly LANES elements, at most 16.
pub unsafe trait Simd: Copy {
    /// Lanes of a vector.
    const LANES: usize;
    /// Rows of the largest register block that [`super::gemm`] holds with two vectors a row.
    const BLOCK_ROWS: usize;
    /// Vectors of a panel of packed columns.
    const PANEL_VECTORS: usize;
    /// Rows of the largest register block that [`super::gemm`] holds with a panel's vectors a row.
    const PANEL_ROWS: usize;
    /// A vector.
    type V: Copy;

    /// Every lane is x.
    fn splat(x: f32) -> Self::V;
    /// # Safety
    /// LANES elements from `from` on can be read.
    unsafe fn load(from: *const f32) -> Self::V;
    /// # Safety
    /// LANES elements from `from` on can be read.
    unsafe fn load_f16(from: *const f16) -> Self::V;
    /// # Safety
    /// LANES elements from `from` on can be read.
    unsafe fn load_bf16(from: *const bf16) -> Self::V;
    /// # Safety
    /// LANES elements from `to` on can be written.
    unsafe fn store(to: *mut f32, v: Self::V);
    /// a + b.
    fn add(a: Self::V, b: Self::V) -> Self::V;
    /// a - b.
    fn sub(a: Self::V, b: Self::V) -> Self::V;
    /// a * b.
    fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// a / b.
    fn div(a: Self::V, b: Self::V) -> Self::V;
    /// a * b + c, fused where the hardware can.
    fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// a where a > b, else b: b where either is NaN.
    fn max(a: Self::V, b: Self::V) -> Self::V;
    /// a where a < b, else b: b where either is NaN.
    fn min(a: Self::V, b: Self::V) -> Self::V;
    /// `yes` where a < b, else `no`; `no` where either is NaN.
    fn select_less(a: Self::V, b: Self::V, yes: Self::V, no: Self::V) -> Self::V;
    /// v 2^n, or 0 where x < `bound`. The low bits of `shifted` hold the integer n as [`super::exp`] puts them there; v is
    /// positive, and v and v 2^n are normal numbers, so that n is added to the exponent's bits.
    fn times_power_of_two(v: Self::V, shifted: Self::V, x: Self::V, bound: Self::V) -> Self::V;
    /// The sum of all lanes.
    fn sum(v: Self::V) -> f32;
    /// The sums of four vectors.
    #[inline(always)]
    fn sum4(v: [Self::V; 4]) -> [f32; 4] {
        [Self::sum(v[0]), Self::sum(v[1]), Self::sum(v[2]), Self::sum(v[3])]
    }
    /// Transposes the first LANES vectors, a (LANES, LANES) matrix.
    #[inline(always)]
    fn transpose(rows: &mut [Self::V; MAX_LANES]) {
        let mut from = [[0f32; MAX_LANES]; MAX_LANES];
        let mut to = [[0f32; MAX_LANES]; MAX_LANES];
        for row in 0..Self::LANES {
            // SAFETY: each buffer has at least LANES elements.
            unsafe { Self::store(from[row].as_mut_ptr(), rows[row]) };
        }
        for row in 0..Self::LANES {
            for column in 0..Self::LANES {
                to[column][row] = from[row][column];
            }
        }
        for row in 0..Self::LANES {
            // SAFETY: as above.
            rows[row] = unsafe { Self::load(to[row].as_ptr()) };
        }
    }
    /// The largest lane.
    fn largest(v: Self::V) -> f32;
    /// Asks for the cache line at `address`, which need not be mapped.
    fn prefetch(address: *const u8);
    /// Asks for the cache line at `address`, which need not be mapped, for the second-level cache.
    fn prefetch_far(address: *const u8);
}

/// A stored element type that vectors are loaded from.
pub trait Stored: Float {
    /// LANES elements, widened.
    ///
    /// # Safety
    /// LANES elements from `from` on can be read.
    unsafe fn load<S: Simd>(from: *const Self) -> S::V;

    /// The first `count` < LANES elements, widened, and zeros.
    ///
    /// # Safety
    /// `count` elements from `from` on can be read.
    #[inline(always)]
    unsafe fn load_head<S: Simd>(from: *const Self, count: usize) -> S::V {
        let mut lanes = [0f32; MAX_LANES];
        for lane in 0..count {
            // SAFETY: below `count`.
            lanes[lane] = unsafe { *from.add(lane) }.to_f32();
        }
        // SAFETY: MAX_LANES >= LANES.
        unsafe { S::load(lanes.as_ptr()) }
    }
}

/// The widest vector of any instruction set.
pub(crate) const MAX_LANES: usize = 16;

impl Stored for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const f32) -> S::V {
        // SAFETY: as the caller promises.
        unsafe { S::load(from) }
    }
}
impl Stored for f16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const f16) -> S::V {
        // SAFETY: as the caller promises.
        unsafe { S::load_f16(from) }
    }
}
impl Stored for bf16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const bf16) -> S::V {
        // SAFETY: as the caller promises.
        unsafe { S::load_bf16(from) }
    }
}

impl Stored for e4m3 {
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const e4m3) -> S::V {
        let mut lanes = [0f32; MAX_LANES];
        for (lane, out) in lanes.iter_mut().enumerate().take(S::LANES) {
            // SAFETY: as the caller promises.
            *out = unsafe { *from.add(lane) }.to_f32();
        }
        // SAFETY: MAX_LANES >= LANES.
        unsafe { S::load(lanes.as_ptr()) }
    }
}

/// Arrays of four: what every target has, in the hope of its own vectors.
#[derive(Clone, Copy)]
pub(super) struct Portable;

// SAFETY: loads and stores touch one vector of LANES elements.
unsafe impl Simd for Portable {
    const LANES: usize = 4;
    const BLOCK_ROWS: usize = 4;
    const PANEL_VECTORS: usize = 2;
    const PANEL_ROWS: usize = 4;
    type V = [f32; 4];

    #[inline(always)]
    fn splat(x: f32) -> Self::V {
        [x; 4]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        // SAFETY: as the caller promises; the read is unaligned.
        unsafe { from.cast::<[f32; 4]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self::V {
        // SAFETY: as the caller promises; the read is unaligned.
        unsafe { from.cast::<[f16; 4]>().read_unaligned() }.map(Float::to_f32)
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self::V {
        // SAFETY: as the caller promises; the read is unaligned.
        unsafe { from.cast::<[bf16; 4]>().read_unaligned() }.map(Float::to_f32)
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Self::V) {
        // SAFETY: as the caller promises; the write is unaligned.
        unsafe { to.cast::<[f32; 4]>().write_unaligned(v) }
    }
    #[inline(always)]
    fn add(a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn sub(a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] - b[i])
    }
    #[inline(always)]
    fn mul(a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn div(a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] / b[i])
    }
    #[inline(always)]
    fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn max(a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn min(a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn select_less(a: Self::V, b: Self::V, yes: Self::V, no: Self::V) -> Self::V {
        std::array::from_fn(|i| if a[i] < b[i] { yes[i] } else { no[i] })
    }
    #[inline(always)]
    fn times_power_of_two(v: Self::V, shifted: Self::V, x: Self::V, bound: Self::V) -> Self::V {
        let scaled = |i: usize| f32::from_bits(v[i].to_bits().wrapping_add(shifted[i].to_bits() << 23));
        std::array::from_fn(|i| if x[i] < bound[i] { 0.0 } else { scaled(i) })
    }
    #[inline(always)]
    fn sum(v: Self::V) -> f32 {
        (v[0] + v[2]) + (v[1] + v[3])
    }
    #[inline(always)]
    fn largest(v: Self::V) -> f32 {
        v[0].max(v[2]).max(v[1].max(v[3]))
    }
    #[inline(always)]
    fn prefetch(_address: *const u8) {}
    #[inline(always)]
    fn prefetch_far(_address: *const u8) {}
}

/// AVX2 with FMA and F16C.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(super) struct Avx2;

/// AVX-512F.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(super) struct Avx512;

/// The lane-wise operations that are one intrinsic each.
#[cfg(target_arch = "x86_64")]
macro_rules! lane_wise {
    ($($name:ident($($argument:ident),+) = $intrinsic:ident;)+) => {$(
        #[inline(always)]
        fn $name($($argument: Self::V),+) -> Self::V {
            // SAFETY: the type reaches code through `Isa::run` alone, which has checked the instruction set.
            unsafe { $intrinsic($($argument),+) }
        }
    )+};
}

// SAFETY: loads and stores touch one vector of LANES elements.
#[cfg(target_arch = "x86_64")]
unsafe impl Simd for Avx2 {
    const LANES: usize = 8;
    const BLOCK_ROWS: usize = 6;
    const PANEL_VECTORS: usize = 2;
    const PANEL_ROWS: usize = 6;
    type V = __m256;

    lane_wise! {
        add(a, b) = _mm256_add_ps;
        sub(a, b) = _mm256_sub_ps;
        mul(a, b) = _mm256_mul_ps;
        div(a, b) = _mm256_div_ps;
        max(a, b) = _mm256_max_ps;
        min(a, b) = _mm256_min_ps;
        fma(a, b, c) = _mm256_fmadd_ps;
    }
    #[inline(always)]
    fn splat(x: f32) -> Self::V {
        // SAFETY: the instruction set was checked.
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        // SAFETY: as the caller promises.
        unsafe { _mm256_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self::V {
        // SAFETY: as the caller promises.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self::V {
        // SAFETY: as the caller promises.
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast())))) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Self::V) {
        // SAFETY: as the caller promises.
        unsafe { _mm256_storeu_ps(to, v) }
    }
    #[inline(always)]
    fn select_less(a: Self::V, b: Self::V, yes: Self::V, no: Self::V) -> Self::V {
        // SAFETY: the instruction set was checked.
        unsafe { _mm256_blendv_ps(no, yes, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b)) }
    }
    #[inline(always)]
    fn times_power_of_two(v: Self::V, shifted: Self::V, x: Self::V, bound: Self::V) -> Self::V {
        // SAFETY: the instruction set was checked.
        unsafe {
            let exponent = _mm256_slli_epi32::<23>(_mm256_castps_si256(shifted));
            let scaled = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(v), exponent));
            _mm256_andnot_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(x, bound), scaled)
        }
    }
    #[inline(always)]
    fn sum(v: Self::V) -> f32 {
        // SAFETY: the instruction set was checked.
        unsafe {
            let half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let pair = _mm_add_ps(half, _mm_movehl_ps(half, half));
            _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)))
        }
    }
    #[inline(always)]
    fn sum4(v: [Self::V; 4]) -> [f32; 4] {
        // SAFETY: the instruction set was checked, and four floats have the size of __m128.
        unsafe {
            let (ab, cd) = (_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
            let halves = _mm256_hadd_ps(ab, cd);
            let sums = _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps::<1>(halves));
            std::mem::transmute(sums)
        }
    }
    #[inline(always)]
    fn transpose(rows: &mut [Self::V; MAX_LANES]) {
        // Neighbours of one, then of two lanes change places within 128 bits, then the 128-bit parts do.
        // SAFETY: the instruction set was checked.
        unsafe {
            let mut pairs = *rows;
            for i in (0..8).step_by(2) {
                pairs[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
                pairs[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
            }
            let mut fours = pairs;
            for i in (0..8).step_by(4) {
                fours[i] = _mm256_shuffle_ps::<0b01_00_01_00>(pairs[i], pairs[i + 2]);
                fours[i + 1] = _mm256_shuffle_ps::<0b11_10_11_10>(pairs[i], pairs[i + 2]);
                fours[i + 2] = _mm256_shuffle_ps::<0b01_00_01_00>(pairs[i + 1], pairs[i + 3]);
                fours[i + 3] = _mm256_shuffle_ps::<0b11_10_11_10>(pairs[i + 1], pairs[i + 3]);
            }
            for i in 0..4 {
                rows[i] = _mm256_permute2f128_ps::<0x20>(fours[i], fours[i + 4]);
                rows[i + 4] = _mm256_permute2f128_ps::<0x31>(fours[i], fours[i + 4]);
            }
        }
    }
    #[inline(always)]
    fn largest(v: Self::V) -> f32 {
        // SAFETY: the instruction set was checked.
        unsafe {
            let half = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let pair = _mm_max_ps(half, _mm_movehl_ps(half, half));
            _mm_cvtss_f32(_mm_max_ss(pair, _mm_movehdup_ps(pair)))
        }
    }
    #[inline(always)]
    fn prefetch(address: *const u8) {
        // SAFETY: a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }
    #[inline(always)]
    fn prefetch_far(address: *const u8) {
        // SAFETY: a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) }
    }
}

// SAFETY: loads and stores touch one vector of LANES elements.
#[cfg(target_arch = "x86_64")]
unsafe impl Simd for Avx512 {
    const LANES: usize = 16;
    const BLOCK_ROWS: usize = 12;
    const PANEL_VECTORS: usize = 4;
    const PANEL_ROWS: usize = 6;
    type V = __m512;

    lane_wise! {
        add(a, b) = _mm512_add_ps;
        sub(a, b) = _mm512_sub_ps;
        mul(a, b) = _mm512_mul_ps;
        div(a, b) = _mm512_div_ps;
        max(a, b) = _mm512_max_ps;
        min(a, b) = _mm512_min_ps;
        fma(a, b, c) = _mm512_fmadd_ps;
    }
    #[inline(always)]
    fn splat(x: f32) -> Self::V {
        // SAFETY: the instruction set was checked.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        // SAFETY: as the caller promises.
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self::V {
        // SAFETY: as the caller promises.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self::V {
        // SAFETY: as the caller promises.
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast())))) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Self::V) {
        // SAFETY: as the caller promises.
        unsafe { _mm512_storeu_ps(to, v) }
    }
    #[inline(always)]
    fn select_less(a: Self::V, b: Self::V, yes: Self::V, no: Self::V) -> Self::V {
        // SAFETY: the instruction set was checked.
        unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), no, yes) }
    }
    #[inline(always)]
    fn times_power_of_two(v: Self::V, shifted: Self::V, x: Self::V, bound: Self::V) -> Self::V {
        // SAFETY: the instruction set was checked.
        unsafe {
            let exponent = _mm512_slli_epi32::<23>(_mm512_castps_si512(shifted));
            let is_kept = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, bound);
            _mm512_castsi512_ps(_mm512_maskz_add_epi32(is_kept, _mm512_castps_si512(v), exponent))
        }
    }
    #[inline(always)]
    fn sum(v: Self::V) -> f32 {
        // SAFETY: the instruction set was checked.
        unsafe { _mm512_reduce_add_ps(v) }
    }
    #[inline(always)]
    fn sum4(v: [Self::V; 4]) -> [f32; 4] {
        // Each step adds neighbours of two vectors: 128-bit parts of a and b, then pairs, then single lanes.
        // SAFETY: the instruction set was checked, and four floats have the size of __m128.
        unsafe {
            let ab = _mm512_add_ps(
                _mm512_shuffle_f32x4::<0b01_00_01_00>(v[0], v[1]),
                _mm512_shuffle_f32x4::<0b11_10_11_10>(v[0], v[1]),
            );
            let cd = _mm512_add_ps(
                _mm512_shuffle_f32x4::<0b01_00_01_00>(v[2], v[3]),
                _mm512_shuffle_f32x4::<0b11_10_11_10>(v[2], v[3]),
            );
            // (a, b, c, d), 128 bits each.
            let abcd = _mm512_add_ps(
                _mm512_shuffle_f32x4::<0b10_00_10_00>(ab, cd),
                _mm512_shuffle_f32x4::<0b11_01_11_01>(ab, cd),
            );
            let pairs = _mm512_add_ps(abcd, _mm512_permute_ps::<0b01_00_11_10>(abcd));
            let single = _mm512_add_ps(pairs, _mm512_permute_ps::<0b10_11_00_01>(pairs));
            let index = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
            std::mem::transmute(_mm512_castps512_ps128(_mm512_permutexvar_ps(index, single)))
        }
    }
    #[inline(always)]
    fn transpose(rows: &mut [Self::V; MAX_LANES]) {
        // As with AVX2, then the 128-bit parts of four vectors are gathered in two steps.
        // SAFETY: the instruction set was checked.
        unsafe {
            let mut pairs = *rows;
            for i in (0..16).step_by(2) {
                pairs[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
                pairs[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
            }
            let mut fours = pairs;
            for i in (0..16).step_by(4) {
                fours[i] = _mm512_shuffle_ps::<0b01_00_01_00>(pairs[i], pairs[i + 2]);
                fours[i + 1] = _mm512_shuffle_ps::<0b11_10_11_10>(pairs[i], pairs[i + 2]);
                fours[i + 2] = _mm512_shuffle_ps::<0b01_00_01_00>(pairs[i + 1], pairs[i + 3]);
                fours[i + 3] = _mm512_shuffle_ps::<0b11_10_11_10>(pairs[i + 1], pairs[i + 3]);
            }
            for i in 0..4 {
                let even_low = _mm512_shuffle_f32x4::<0b10_00_10_00>(fours[i], fours[i + 4]);
                let even_high = _mm512_shuffle_f32x4::<0b10_00_10_00>(fours[i + 8], fours[i + 12]);
                let odd_low = _mm512_shuffle_f32x4::<0b11_01_11_01>(fours[i], fours[i + 4]);
                let odd_high = _mm512_shuffle_f32x4::<0b11_01_11_01>(fours[i + 8], fours[i + 12]);
                rows[i] = _mm512_shuffle_f32x4::<0b10_00_10_00>(even_low, even_high);
                rows[i + 8] = _mm512_shuffle_f32x4::<0b11_01_11_01>(even_low, even_high);
                rows[i + 4] = _mm512_shuffle_f32x4::<0b10_00_10_00>(odd_low, odd_high);
                rows[i + 12] = _mm512_shuffle_f32x4::<0b11_01_11_01>(odd_low, odd_high);
            }
        }
    }
    #[inline(always)]
    fn largest(v: Self::V) -> f32 {
        // SAFETY: the instruction set was checked.
        unsafe { _mm512_reduce_max_ps(v) }
    }
    #[inline(always)]
    fn prefetch(address: *const u8) {
        // SAFETY: a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }
    #[inline(always)]
    fn prefetch_far(address: *const u8) {
        // SAFETY: a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) }
    }
}
