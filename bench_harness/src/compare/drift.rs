//! Whether the machine itself changed between base and head, as seen by controls: cases that no commit can change.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::baseline::{Session, SessionControl};
use crate::stats::quantile::median;

/// The control that differs most between base and head.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Drift {
    /// The control.
    pub control: String,
    /// Natural logarithm of its time on head over that on base: positive where the machine was slower for head.
    pub log_ratio: f64,
}

/// The largest drift of each provider's controls. Providers without a control on both sides are absent.
pub fn drifts(base: &[Session], head: &[Session]) -> BTreeMap<String, Drift> {
    let base = log_times(base);
    let mut drifts: BTreeMap<String, Drift> = BTreeMap::new();
    for (identity, head_time) in log_times(head) {
        let Some(base_time) = base.get(&identity) else { continue };
        let (provider, name) = (identity.0, identity.1);
        let found = Drift { control: name, log_ratio: head_time - base_time };
        let kept = drifts.entry(provider).or_insert_with(|| found.clone());
        if found.log_ratio.abs() > kept.log_ratio.abs() {
            *kept = found;
        }
    }
    drifts
}

/// What makes two controls the same: provider, a name for people, and everything that determines the work.
type Identity = (String, String, crate::case::Mode, usize, u64);

/// The logarithm of each control's time: the median over sessions of the median over rounds.
fn log_times(sessions: &[Session]) -> BTreeMap<Identity, f64> {
    let mut times: BTreeMap<Identity, Vec<f64>> = BTreeMap::new();
    for control in sessions.iter().flat_map(|session| &session.controls) {
        let Some(ns) = median(&control.round_ns).filter(|&ns| ns > 0.0) else { continue };
        times.entry(identity(control)).or_default().push(ns.ln());
    }
    times.into_iter().filter_map(|(identity, logs)| Some((identity, median(&logs)?))).collect()
}

fn identity(control: &SessionControl) -> Identity {
    let name = format!("{} {}", control.mode.name(), control.name);
    (control.provider.clone(), name, control.mode, control.threads, control.work)
}
