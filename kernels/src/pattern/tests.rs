//! Every closed form against the pair predicates written a second time here, straight from [`Pattern`]'s formulas.

use proptest::prelude::*;

use super::*;

/// The formulas on plain numbers, without any of the module's helpers.
fn sees_by_formula(visibility: &Visibility, head: usize, i: usize, j: usize) -> bool {
    let (p, j) = (i as i64 + visibility.query_offset, j as i64);
    let distance = p - j;
    let is_seen = match visibility.pattern {
        Pattern::Full => true,
        Pattern::Window { left, right } => -distance <= right as i64 && distance <= left as i64,
        Pattern::Dilated { window, step } => {
            distance.unsigned_abs() as usize <= window * step && distance % step as i64 == 0
        }
        Pattern::Longformer { window, global, dilation } => {
            j < global as i64
                || p < global as i64
                || (distance.unsigned_abs() as usize <= window * dilation && distance % dilation as i64 == 0)
        }
        Pattern::Strided { stride } => distance >= 0 && (distance <= stride as i64 || distance % stride as i64 == 0),
        Pattern::Fixed { block, summary } => {
            let block = block as i64;
            distance >= 0 && (p / block == j / block || j % block >= block - summary as i64)
        }
        Pattern::Bigbird { block, window, global, random, seed } => {
            let blocks = visibility.len_kv.div_ceil(block) as i64;
            let row = (p as f64 / block as f64).floor() as i64;
            let is_global = |b: i64| {
                (0..blocks).contains(&b) && (b < global.div_ceil(2) as i64 || b >= blocks - (global / 2) as i64)
            };
            let in_window = |b: i64| (b - row).unsigned_abs() as usize <= window / 2;
            let key_block = j / block as i64;
            let mut is_random = false;
            if !is_global(row) {
                let candidates: Vec<i64> = (0..blocks).filter(|&b| !is_global(b) && !in_window(b)).collect();
                let key = crate::input::hash64(crate::input::hash64(seed, head as u64), row as u64);
                let mut chosen = std::collections::HashSet::new();
                for t in candidates.len() - random.min(candidates.len())..candidates.len() {
                    let u = (crate::input::hash64(key, t as u64) % (t as u64 + 1)) as usize;
                    if !chosen.insert(u) {
                        chosen.insert(t);
                    }
                }
                is_random = chosen.into_iter().any(|number| candidates[number] == key_block);
            }
            in_window(key_block) || is_global(key_block) || is_global(row) || is_random
        }
    };
    is_seen && (!visibility.causal || distance >= 0)
}

fn any_pattern() -> impl Strategy<Value = Pattern> {
    let distance = || prop_oneof![0usize..6, 0usize..70];
    let step = || prop_oneof![1usize..4, 1usize..40];
    prop_oneof![
        Just(Pattern::Full),
        (distance(), distance()).prop_map(|(left, right)| Pattern::Window { left, right }),
        (0usize..9, step()).prop_map(|(window, step)| Pattern::Dilated { window, step }),
        (0usize..9, 0usize..9, step()).prop_map(|(window, global, dilation)| Pattern::Longformer {
            window,
            global,
            dilation
        }),
        (1usize..9, 0usize..3, 0usize..5, 0usize..5, any::<u64>()).prop_map(|(block, half, global, random, seed)| {
            Pattern::Bigbird { block, window: 2 * half + 1, global, random, seed }
        }),
        step().prop_map(|stride| Pattern::Strided { stride }),
        (step(), 0usize..9).prop_map(|(block, summary)| Pattern::Fixed { block, summary: summary.min(block) }),
    ]
}

fn any_visibility() -> impl Strategy<Value = Visibility> {
    let length = || prop_oneof![1usize..4, 1usize..70];
    (any_pattern(), any::<bool>(), length(), prop_oneof![1 => Just(0usize), 20 => length()], -1i64..100).prop_map(
        |(pattern, causal, len_q, len_kv, offset)| {
            // Top-left and bottom-right, and now and then an offset of neither.
            let query_offset = match offset {
                -1..40 => len_kv as i64 - len_q as i64,
                40..80 => 0,
                other => other - 90,
            };
            Visibility { pattern, causal, query_offset, len_q, len_kv }
        },
    )
}

fn check(visibility: &Visibility, head: usize, block_q: usize, block_k: usize) {
    let Visibility { len_q, len_kv, .. } = *visibility;
    let matrix: Vec<Vec<bool>> =
        (0..len_q).map(|i| (0..len_kv).map(|j| sees_by_formula(visibility, head, i, j)).collect()).collect();
    for i in 0..len_q {
        for j in 0..len_kv {
            assert_eq!(visibility.sees(head, i, j), matrix[i][j], "sees({i}, {j})");
        }
        let row: Vec<usize> = visibility.row_key_ranges(head, i).into_iter().flatten().collect();
        assert_eq!(row, (0..len_kv).filter(|&j| matrix[i][j]).collect::<Vec<_>>(), "row_key_ranges({i})");
        let first = matrix[i].iter().position(|&seen| seen);
        let last = matrix[i].iter().rposition(|&seen| seen);
        let span = visibility.key_span(head, i);
        match (first, last) {
            (Some(first), Some(last)) => assert_eq!(span, first..last + 1, "key_span({i})"),
            _ => assert!(span.is_empty(), "key_span({i})"),
        }
    }
    let pairs = matrix.iter().flatten().filter(|&&seen| seen).count() as u64;
    assert_eq!(visibility.pairs(head), pairs, "pairs");
    let live = matrix.iter().filter(|row| row.contains(&true)).count() as u64;
    assert_eq!(visibility.visible_queries(head), live, "visible_queries");

    let map = visibility.block_map(head, block_q, block_k);
    assert_eq!(map.rows(), len_q.div_ceil(block_q));
    for (row, rows) in matrix.chunks(block_q).enumerate() {
        let mut expected = Vec::new();
        for index in 0..len_kv.div_ceil(block_k) {
            let tile = |row: &Vec<bool>| row[index * block_k..((index + 1) * block_k).min(len_kv)].to_vec();
            let cells: Vec<bool> = rows.iter().flat_map(tile).collect();
            if cells.contains(&true) {
                expected.push(KeyBlock { index, is_full: !cells.contains(&false) });
            }
        }
        assert_eq!(map.row(row), expected, "block_map row {row}");
    }

    let heads = head..head + 3;
    let expected: Vec<usize> = (0..len_kv)
        .filter(|&j| heads.clone().any(|head| (0..len_q).any(|i| sees_by_formula(visibility, head, i, j))))
        .collect();
    let found: Vec<usize> = visibility.visible_key_ranges(heads.clone()).into_iter().flatten().collect();
    assert_eq!(found, expected, "visible_key_ranges");
    assert_eq!(visibility.visible_keys(heads), expected.len() as u64);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn closed_forms_agree_with_the_formulas(
        visibility in any_visibility(), head in 0usize..4, block_q in 1usize..20, block_k in 1usize..20,
    ) {
        check(&visibility, head, block_q, block_k);
    }
}

#[test]
fn the_draw_of_bigbird_is_fixed_forever() {
    let draw = bigbird::Draw { seed: 7, head: 3 };
    let rule = bigbird::Bigbird::new(64, 3, 2, 3, draw, 64 * 40, false);
    let rows: Vec<Vec<i64>> = [5, 6, 20, 38].into_iter().map(|row| rule.random_blocks(row)).collect();
    assert_eq!(rows, GOLDEN_DRAW);
    assert!(rule.random_blocks(0).is_empty() && rule.random_blocks(39).is_empty());
}

/// Made with Python from the module's description.
const GOLDEN_DRAW: [[i64; 3]; 4] = [[11, 12, 26], [2, 16, 25], [22, 24, 30], [7, 14, 21]];
