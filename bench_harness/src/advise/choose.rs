//! Which design, from what each comes to.
//!
//! In this order: it meets every need; its KV heads keep at least [`MIN_DIVERSITY`], unless the model was trained so; it takes
//! the least training (none, some, anew); it leaves [`HEADROOM`]; it needs no eight-bit cache; it needs the least machinery;
//! more of its layers see every token; it keeps the fewest bytes. Nothing is weighed against anything else, so that the reason
//! for a choice is always one comparison.

use std::cmp::Ordering;

use super::assess::Assessment;
use super::design::Change;

/// How much of every limit a design should leave: what plans get wrong.
pub const HEADROOM: f64 = 1.2;

/// The least that sharing KV heads should leave of what independent heads would say: pools of eight, which published models
/// have, keep a little more, and pools of sixteen less.
pub const MIN_DIVERSITY: f64 = 0.08;

/// Whether a design shares more than that, and would have to be trained to.
pub fn is_too_shared(own: &Assessment) -> bool {
    own.change != Change::AsTrained && diversity(own) < MIN_DIVERSITY
}

/// What was chosen, by position among the assessments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The best option: a design, and perhaps an eight-bit cache.
    pub primary: usize,
    /// Whether that cache is the modification.
    pub is_modified: bool,
    /// The best option with another design, if there is one.
    pub runner_up: Option<usize>,
    /// The best of the options that would keep fewer bytes, had they not failed a need of quality.
    pub tempting: Option<usize>,
}

/// Chooses among assessments, of which there is at least one.
pub fn choose(assessments: &[Assessment]) -> Choice {
    let mut order: Vec<usize> = (0..assessments.len()).collect();
    order.sort_by(|&a, &b| compare(&assessments[a], &assessments[b]).then(a.cmp(&b)));
    let primary = order[0];
    let own = &assessments[primary];
    let runner_up = order.iter().copied().find(|&index| assessments[index].design != own.design);
    let fails_quality = |index: &usize| assessments[*index].failures.iter().any(|failure| failure.is_quality);
    let bytes = |index: &usize| assessments[*index].planned_bytes.unwrap_or(u64::MAX);
    let is_cheaper = |index: &usize| bytes(index) < bytes(&primary);
    let tempting = order.iter().copied().filter(fails_quality).find(is_cheaper);
    Choice { primary, is_modified: is_narrowed(own, assessments), runner_up, tempting }
}

/// Whether the option is a design's eight-bit form and not the design itself.
fn is_narrowed(own: &Assessment, assessments: &[Assessment]) -> bool {
    let is_wider = |other: &&Assessment| other.design == own.design && other.dtype.bits() > own.dtype.bits();
    assessments.iter().any(|other| is_wider(&other))
}

/// Less is better.
fn compare(a: &Assessment, b: &Assessment) -> Ordering {
    let quality = |own: &Assessment| own.failures.iter().filter(|failure| failure.is_quality).count();
    let is_narrow = |own: &Assessment| own.dtype.bits() <= 8;
    // Where nothing meets every need, the least that is missing decides, quality first.
    quality(a)
        .cmp(&quality(b))
        .then(a.failures.len().cmp(&b.failures.len()))
        .then(is_too_shared(a).cmp(&is_too_shared(b)))
        .then(a.change.cmp(&b.change))
        .then((a.headroom < HEADROOM).cmp(&(b.headroom < HEADROOM)))
        .then(is_narrow(a).cmp(&is_narrow(b)))
        .then(a.machinery.cmp(&b.machinery))
        .then(b.full_share.total_cmp(&a.full_share))
        .then(a.planned_bytes.unwrap_or(u64::MAX).cmp(&b.planned_bytes.unwrap_or(u64::MAX)))
}

/// The diversity that the probe found; 1 where nothing is shared.
pub fn diversity(own: &Assessment) -> f64 {
    own.probes.iter().find(|finding| finding.probe == "head diversity").map_or(1.0, |finding| finding.value)
}
