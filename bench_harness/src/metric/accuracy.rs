//! How far outputs are from the f64 oracle: the worst of all verified calls and tensors.

use super::{Better, Estimate, Metric};
use crate::record::{CaseResult, Record, Verification};

/// The relative L2 error.
pub struct RelativeL2;

impl Metric for RelativeL2 {
    fn name(&self) -> &'static str {
        "relative_l2"
    }

    fn unit(&self) -> &'static str {
        ""
    }

    fn better(&self) -> Better {
        Better::Lower
    }

    fn value(&self, case: &CaseResult, _: &Record) -> Option<Estimate> {
        worst(case, |verification| verification.error.relative_l2)
    }
}

/// The largest absolute error of an element.
pub struct MaxAbs;

impl Metric for MaxAbs {
    fn name(&self) -> &'static str {
        "max_abs"
    }

    fn unit(&self) -> &'static str {
        ""
    }

    fn better(&self) -> Better {
        Better::Lower
    }

    fn value(&self, case: &CaseResult, _: &Record) -> Option<Estimate> {
        worst(case, |verification| verification.error.max_abs)
    }
}

/// The largest error; none where nothing was verified. An output that is not finite has an infinite error.
fn worst(case: &CaseResult, error: impl Fn(&Verification) -> Option<f64>) -> Option<Estimate> {
    let verified = case.rounds.iter().flat_map(|round| &round.verification);
    verified
        .map(|verification| error(verification).unwrap_or(f64::INFINITY))
        .max_by(f64::total_cmp)
        .map(Estimate::exact)
}
