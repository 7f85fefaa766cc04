//! What schedules visit, counted.

use super::*;
use crate::problem::Pattern;

fn problem(pattern: Pattern, causal: bool, length: usize, heads: (usize, usize), dim: usize) -> AttentionProblem {
    let mut problem = AttentionProblem::softmax(Phase::Prefill, Dtype::Bf16, 1, heads, (length, length), dim);
    (problem.pattern, problem.causal) = (pattern, causal);
    problem.normalise()
}

fn scheduled(problem: &AttentionProblem) -> Schedule {
    schedule(problem, &Geometry::new(problem), &DeviceFacts::H200, class_of(problem).taken())
        .expect("an H200 has what it takes")
}

/// The part of visited tiles that is visible, for each pattern at 16k, with a head of its own and with four heads a group;
/// printed with `--nocapture`.
#[test]
fn tiles_are_well_filled_at_16k() {
    let bigbird = Pattern::Bigbird { block: 64, window: 3, global: 2, random: 3, seed: 0 };
    let longformer = |window, global, dilation| Pattern::Longformer { window, global, dilation };
    let window = |left| Pattern::Window { left, right: 0 };
    #[rustfmt::skip]
    let cases = [
        ("full", Pattern::Full, true, 128, [0.99, 0.99]),
        ("window:1024", window(1023), true, 64, [0.88, 0.94]),
        ("window:1024", window(1023), true, 128, [0.88, 0.96]),
        ("window:128", window(127), true, 128, [0.66, 0.79]),
        ("bigbird", bigbird, false, 64, [1.0, 1.0]),
        ("bigbird", bigbird, true, 128, [0.9, 0.9]),
        ("longformer:256,1", longformer(256, 1, 1), false, 64, [0.61, 0.84]),
        ("longformer:256,64", longformer(256, 64, 1), false, 128, [0.76, 0.95]),
        ("longformer:256,1,dilation=2", longformer(256, 1, 2), false, 128, [0.64, 0.84]),
        ("dilated:256,4", Pattern::Dilated { window: 256, step: 4 }, false, 128, [0.8, 0.94]),
        ("dilated:64,2", Pattern::Dilated { window: 64, step: 2 }, false, 64, [0.67, 0.8]),
        ("strided:128", Pattern::Strided { stride: 128 }, true, 128, [0.66, 0.79]),
        ("strided:91", Pattern::Strided { stride: 91 }, true, 64, [0.6, 0.68]),
        ("fixed:128,8", Pattern::Fixed { block: 128, summary: 8 }, true, 128, [0.88, 0.95]),
        ("fixed:91,1", Pattern::Fixed { block: 91, summary: 1 }, true, 64, [0.59, 0.74]),
    ];
    for (name, pattern, causal, dim, least) in cases {
        for (heads, least) in [(16, 16), (32, 8)].into_iter().zip(least) {
            let problem = problem(pattern, causal, 16384, heads, dim);
            let schedule = scheduled(&problem);
            let visibility = Visibility::new(&problem, 16384, 16384);
            let pairs: u64 = (0..heads.0).map(|head| visibility.pairs(head)).sum();
            assert_eq!(schedule.visible, pairs, "{name}: every pair once");
            let fill = schedule.visible as f64 / schedule.visited as f64;
            let blocks: Vec<usize> = schedule.launches.iter().map(Vec::len).collect();
            let Shape { rows, keys, packed, .. } = schedule.shape;
            println!(
                "{name:28} d{dim:<3} h{}:{} fill {fill:.3} tiles {rows} x {keys} of {packed} heads, {blocks:?} blocks, longest {} tiles",
                heads.0, heads.1, schedule.launches[0][0].tiles
            );
            assert!(fill >= least, "{name} d{dim}: {fill}");
        }
    }
}

/// Nobody waits for a dense row: no piece is longer than half of what a block's place on the device has to do.
#[test]
fn the_longest_pieces_come_first_and_are_no_tail() {
    let bigbird = Pattern::Bigbird { block: 64, window: 3, global: 2, random: 3, seed: 0 };
    let longformer = Pattern::Longformer { window: 256, global: 64, dilation: 1 };
    for (pattern, heads) in [(bigbird, (16, 16)), (longformer, (12, 12)), (Pattern::Full, (1, 1))] {
        let schedule = scheduled(&problem(pattern, false, 16384, heads, 64));
        let places = 132 * schedule.shape.blocks_a_multiprocessor;
        let total: usize = schedule.launches.iter().flatten().map(|piece| piece.tiles).sum();
        let longest = schedule.launches[0][0].tiles;
        assert!(longest <= (total / places / 2).max(1024 / schedule.shape.keys), "{pattern:?}: {longest} of {total}");
        for launch in &schedule.launches {
            assert!(launch.is_sorted_by_key(|piece| std::cmp::Reverse(piece.tiles)), "{pattern:?}");
        }
        assert_eq!(schedule.launches.len(), 2, "{pattern:?}: parts are merged");
        let parts: i32 = schedule.launches[1].iter().map(|piece| piece.pieces).sum();
        let written = schedule.launches[0].iter().filter(|piece| piece.pieces < 0).count();
        assert_eq!(parts as usize, written, "{pattern:?}: what is written is merged");
    }
}
