//! How close a case comes to what its device can do, by ceilings that the same run measured (Williams, Waterman and
//! Patterson, Roofline, 2009).

use super::latency::LatencyMedian;
use super::rate::{Bandwidth, Flops};
use super::{Better, Estimate, Metric};
use crate::case::{Case, Mode};
use crate::record::{CaseResult, ControlKind, ControlResult, Record};
use crate::stats::quantile::median;

/// A rate beyond this share of its ceiling is not believed.
pub const IMPLAUSIBLE_SHARE: f64 = 1.02;

/// How the flag of a rate that is not believed begins.
pub const IMPLAUSIBLE: &str = "implausible";

/// What the device can do for a case.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Ceilings {
    /// Bytes a second of the memory that the case's mode leaves its data in.
    pub bytes_per_s: Option<f64>,
    /// FLOPs a second.
    pub flops_per_s: Option<f64>,
}

/// The time that the device's ceilings allow, as a share of the time taken: 100 % is the roofline.
pub struct PercentOfLimit;

impl Metric for PercentOfLimit {
    fn name(&self) -> &'static str {
        "percent_of_limit"
    }

    fn unit(&self) -> &'static str {
        "%"
    }

    fn better(&self) -> Better {
        Better::Higher
    }

    fn value(&self, case: &CaseResult, record: &Record) -> Option<Estimate> {
        let limit_ns = limit_ns(case, record)?;
        Some(LatencyMedian.value(case, record)?.under(100.0 * limit_ns))
    }
}

/// The least time that the ceilings allow for the case's exact work, in nanoseconds: of its bytes or of its FLOPs,
/// whichever takes longer. `None` unless both ceilings were measured, since the missing one could be the lower.
pub fn limit_ns(case: &CaseResult, record: &Record) -> Option<f64> {
    let ceilings = ceilings(case, record);
    let memory = case.work.bytes() as f64 / ceilings.bytes_per_s?;
    let compute = case.work.flops as f64 / ceilings.flops_per_s?;
    Some(1e9 * memory.max(compute)).filter(|ns| *ns > 0.0)
}

/// The ceilings of a case, from controls of its provider with its number of threads.
///
/// Memory: attention mostly reads, so the faster of `read` and `copy`. A cold case is judged by the cold ones. A hot case
/// is judged by the fastest hot one whose working set is at least the case's bytes, and so by the innermost memory level
/// that holds them; where the case is larger than every working set, by the largest working set.
/// Compute: the fastest `fma`, of the dtype that the case multiplies in where there is one for each.
pub fn ceilings(case: &CaseResult, record: &Record) -> Ceilings {
    let provider = case.key.case_id.split('/').next().unwrap_or_default();
    let own = |control: &&ControlResult| control.provider == provider && control.threads == case.key.threads;
    let memory: Vec<&ControlResult> = record
        .controls
        .iter()
        .filter(own)
        .filter(|control| {
            matches!(control.kind, ControlKind::Read | ControlKind::Copy) && control.mode == case.key.mode
        })
        .collect();
    let fits = |control: &&&ControlResult| match case.key.mode {
        Mode::Cold => true,
        Mode::Hot => control.working_set_bytes >= case.work.bytes(),
    };
    let holding: Vec<&ControlResult> = memory.iter().filter(fits).copied().collect();
    let largest = memory.iter().map(|control| control.working_set_bytes).max();
    let candidates = if holding.is_empty() {
        memory.into_iter().filter(|control| Some(control.working_set_bytes) == largest).collect()
    } else {
        holding
    };
    let dtype = case.multiplied_in.or_else(|| case.key.case_id.parse::<Case>().ok().map(|case| case.problem.dtype));
    let of_its_dtype = |control: &&ControlResult| control.dtype.is_none() || control.dtype == dtype;
    let fma =
        record.controls.iter().filter(own).filter(|control| control.kind == ControlKind::Fma).filter(of_its_dtype);
    Ceilings {
        bytes_per_s: candidates.into_iter().filter_map(rate_per_s).max_by(f64::total_cmp),
        flops_per_s: fma.filter_map(rate_per_s).max_by(f64::total_cmp),
    }
}

/// What a control sustained, a second: the median of its best round, since a ceiling is what the device can do and
/// disturbances only lower it.
pub fn rate_per_s(control: &ControlResult) -> Option<f64> {
    let rounds = control.rounds.iter().filter_map(|samples| median(samples)).filter(|&ns| ns > 0.0);
    rounds.min_by(f64::total_cmp).map(|ns| control.work as f64 / ns * 1e9)
}

/// Why a case's speed is not believed: a rate beyond [`IMPLAUSIBLE_SHARE`] of its ceiling. The case keeps its samples and
/// takes no part in verdicts.
pub fn implausible(case: &CaseResult, record: &Record) -> Option<String> {
    let ceilings = ceilings(case, record);
    let beyond = |rate: Option<Estimate>, ceiling: Option<f64>| {
        let share = rate?.value / ceiling?;
        (share > IMPLAUSIBLE_SHARE).then_some(100.0 * share)
    };
    if let Some(percent) = beyond(Flops.value(case, record), ceilings.flops_per_s) {
        return Some(format!("{IMPLAUSIBLE}: {percent:.0} % of the FMA rate that this device was measured to have"));
    }
    let bytes_per_s = Bandwidth.value(case, record).map(|gb| Estimate::exact(gb.value * 1e9));
    let percent = beyond(bytes_per_s, ceilings.bytes_per_s)?;
    let mode = case.key.mode.name();
    Some(format!("{IMPLAUSIBLE}: {percent:.0} % of the {mode} bandwidth that this device was measured to have"))
}
