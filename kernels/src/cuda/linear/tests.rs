//! How walks are cut into segments.

use super::*;

fn prefill(heads: usize, length: usize, causal: bool) -> CudaPlan {
    let mut problem = AttentionProblem {
        mechanism: Mechanism::LINEAR,
        ..AttentionProblem::softmax(Phase::Prefill, Dtype::Bf16, 1, (heads, heads), (length, length), 128)
    };
    problem.causal = causal;
    Linear.plan(&problem, &DeviceFacts::H200).expect("an H200 has what it takes")
}

#[test]
fn few_heads_are_cut_into_segments_until_the_device_is_full() {
    let entries = |plan: &CudaPlan| plan.launches.iter().map(|launch| launch.entry).collect::<Vec<_>>();
    // 264 blocks fit: one walk of each of 264 heads, in one launch and without workspace.
    let full = prefill(264, 16384, true);
    assert_eq!(entries(&full), ["linear_chunks"]);
    assert_eq!((full.launches[0].grid, full.workspaces.len()), ([264, 1, 1], 0));
    for (heads, causal) in [(1, true), (4, true), (16, true), (1, false), (16, false)] {
        let plan = prefill(heads, 65536, causal);
        assert_eq!(entries(&plan), ["linear_sums", "linear_scan", "linear_chunks"], "{heads} {causal}");
        let blocks = plan.launches[2].grid[0];
        assert!(
            blocks as usize >= 64.min(16 * heads) && blocks <= 264,
            "{heads} heads, causal {causal}: {blocks} blocks"
        );
    }
    // A short sequence has nothing to cut.
    assert_eq!(entries(&prefill(1, 64, true)), ["linear_chunks"]);
}
