//! The oracle's inner loops in f64: dot products and weighted sums over rows of a block.
//!
//! They are compiled twice, plainly and with AVX2 and FMA, and the machine picks: the oracle runs on the coordinator's
//! CPU for every case, so its few GFLOP decide how long verification takes.

/// `out[n] = sum over d of query[d] * rows[picks[n]][d]`, rows of `query.len()` elements.
pub(super) fn dots(query: &[f64], rows: &[f64], picks: &[u32], out: &mut [f64]) {
    #[cfg(target_arch = "x86_64")]
    if has_fma() {
        // SAFETY: the machine has AVX2 and FMA.
        return unsafe { dots_fma(query, rows, picks, out) };
    }
    dots_body::<false>(query, rows, picks, out);
}

/// `sums[c][d] += sum over n of weights[c][n] * rows[picks[n]][d]` for both columns c: the exact and the rounded weights.
pub(super) fn accumulate(weights: [&[f64]; 2], rows: &[f64], picks: &[u32], sums: [&mut [f64]; 2]) {
    #[cfg(target_arch = "x86_64")]
    if has_fma() {
        // SAFETY: the machine has AVX2 and FMA.
        return unsafe { accumulate_fma(weights, rows, picks, sums) };
    }
    accumulate_body::<false>(weights, rows, picks, sums);
}

#[cfg(target_arch = "x86_64")]
fn has_fma() -> bool {
    std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma")
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn dots_fma(query: &[f64], rows: &[f64], picks: &[u32], out: &mut [f64]) {
    dots_body::<true>(query, rows, picks, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn accumulate_fma(weights: [&[f64]; 2], rows: &[f64], picks: &[u32], sums: [&mut [f64]; 2]) {
    accumulate_body::<true>(weights, rows, picks, sums);
}

#[inline(always)]
fn multiply_add<const FMA: bool>(a: f64, b: f64, c: f64) -> f64 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Independent partial sums, so that the additions of one dot product overlap.
const LANES: usize = 16;

#[inline(always)]
fn dots_body<const FMA: bool>(query: &[f64], rows: &[f64], picks: &[u32], out: &mut [f64]) {
    let dim = query.len();
    for (&pick, out) in picks.iter().zip(out) {
        let row = &rows[pick as usize * dim..][..dim];
        let mut lanes = [0.0; LANES];
        let (mut a, mut b) = (query.chunks_exact(LANES), row.chunks_exact(LANES));
        for (a, b) in (&mut a).zip(&mut b) {
            for lane in 0..LANES {
                lanes[lane] = multiply_add::<FMA>(a[lane], b[lane], lanes[lane]);
            }
        }
        let tail: f64 = a.remainder().iter().zip(b.remainder()).map(|(a, b)| a * b).sum();
        *out = lanes.iter().sum::<f64>() + tail;
    }
}

#[inline(always)]
fn accumulate_body<const FMA: bool>(weights: [&[f64]; 2], rows: &[f64], picks: &[u32], sums: [&mut [f64]; 2]) {
    let [exact, rounded] = sums;
    let dim = exact.len();
    let rounded = &mut rounded[..dim];
    for (n, &pick) in picks.iter().enumerate() {
        let row = &rows[pick as usize * dim..][..dim];
        let (w, w_rounded) = (weights[0][n], weights[1][n]);
        for d in 0..dim {
            exact[d] = multiply_add::<FMA>(w, row[d], exact[d]);
            rounded[d] = multiply_add::<FMA>(w_rounded, row[d], rounded[d]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_agree_with_plain_sums() {
        for dim in [1, 3, 15, 16, 17, 64, 71] {
            let value = |n: usize| ((n * 37 % 101) as f64 - 50.0) / 16.0;
            let query: Vec<f64> = (0..dim).map(value).collect();
            let rows: Vec<f64> = (0..dim * 9).map(|n| value(n + 11)).collect();
            let picks = [0u32, 3, 8, 4];
            let plain: Vec<f64> =
                picks.iter().map(|&pick| (0..dim).map(|d| query[d] * rows[pick as usize * dim + d]).sum()).collect();
            let mut out = [0.0; 4];
            dots(&query, &rows, &picks, &mut out);
            assert_eq!(out.as_slice(), plain, "small dyadic numbers are exact");
            dots_body::<false>(&query, &rows, &picks, &mut out);
            assert_eq!(out.as_slice(), plain);

            let weights = [[0.5, 1.0, -2.0, 3.0], [0.25, 1.5, 2.0, -1.0]];
            let mut sums = [vec![1.0; dim], vec![-1.0; dim]];
            let [exact, rounded] = &mut sums;
            accumulate([&weights[0], &weights[1]], &rows, &picks, [exact, rounded]);
            for column in 0..2 {
                for d in 0..dim {
                    let plain: f64 = (0..4).map(|n| weights[column][n] * rows[picks[n] as usize * dim + d]).sum();
                    assert_eq!(sums[column][d], plain + [1.0, -1.0][column]);
                }
            }
        }
    }
}
