//! The only loop between the state machine and what measures for it: workers, or a simulated machine.

use super::plan::{self, Evidence, PairedCase, Step};
use super::policy::Policy;
use crate::compare::Finding;

/// What measures pairs.
pub trait PairSource {
    /// Why measuring can break off.
    type Error;
    /// Everything that was measured so far.
    fn cases(&self) -> &[PairedCase];
    /// Whether there is time for more.
    fn may_measure(&self) -> bool;
    /// Measures this many further pairs of these cases, each in a round of its own. A case that cannot be measured any
    /// more is closed.
    ///
    /// # Errors
    /// Measuring cannot go on at all.
    fn measure(&mut self, cases: &[usize], pairs: usize) -> Result<(), Self::Error>;
}

/// Measures until everything is decided or time is up; one finding a case.
///
/// # Errors
/// Those of the source.
pub fn drive<S: PairSource + ?Sized>(policy: &Policy, source: &mut S) -> Result<Vec<Finding>, S::Error> {
    loop {
        let evidence = Evidence::Pairs { cases: source.cases(), may_measure: source.may_measure() };
        match plan::next(policy, &evidence) {
            Step::Decided(findings) => return Ok(findings),
            Step::Measure { cases, pairs } => source.measure(&cases, pairs)?,
        }
    }
}
