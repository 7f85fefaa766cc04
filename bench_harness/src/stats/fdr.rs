//! Benjamini-Hochberg: of all cases that are called regressed, at most a share q is expected to be wrong (Benjamini and
//! Hochberg, 1995).

/// Adjusted p-values, in the order given: a case is a discovery at q when its adjusted p is at most q.
/// A p that is not a number counts as 1.
pub fn adjusted(p_values: &[f64]) -> Vec<f64> {
    let m = p_values.len() as f64;
    let clean: Vec<f64> = p_values.iter().map(|&p| if p.is_nan() { 1.0 } else { p.clamp(0.0, 1.0) }).collect();
    let mut order: Vec<usize> = (0..clean.len()).collect();
    order.sort_unstable_by(|&a, &b| clean[b].total_cmp(&clean[a]));
    let mut adjusted = vec![1.0; clean.len()];
    let mut smallest: f64 = 1.0;
    for (position, &index) in order.iter().enumerate() {
        let rank = (clean.len() - position) as f64;
        smallest = smallest.min(clean[index] * m / rank);
        adjusted[index] = smallest;
    }
    adjusted
}

/// Which cases are discoveries at the false discovery rate `q`.
pub fn discoveries(p_values: &[f64], q: f64) -> Vec<bool> {
    adjusted(p_values).into_iter().map(|p| p <= q).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of Benjamini and Hochberg's paper, section 3.2: 15 p-values, of which 4 are discoveries at 0.05.
    #[test]
    fn the_papers_example() {
        let p = [
            0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262, 0.5719, 0.6528,
            0.7590, 1.000,
        ];
        let found = discoveries(&p, 0.05);
        assert_eq!(found.iter().filter(|&&f| f).count(), 4);
        assert!(found[..4].iter().all(|&f| f));
        let mut backwards = p;
        backwards.reverse();
        assert_eq!(discoveries(&backwards, 0.05).iter().rev().copied().collect::<Vec<_>>(), found);
    }

    #[test]
    fn adjusted_by_hand() {
        // 0.01 * 3/1 = 0.03, 0.04 * 3/2 = 0.06 but the larger p has 0.05 * 3/3 = 0.05.
        let adjusted = adjusted(&[0.04, 0.01, 0.05]);
        for (got, expected) in adjusted.iter().zip([0.05, 0.03, 0.05]) {
            assert!((got - expected).abs() < 1e-15);
        }
        assert_eq!(discoveries(&[], 0.05), [false; 0]);
        assert_eq!(discoveries(&[f64::NAN, 0.001], 0.05), [false, true]);
    }
}
