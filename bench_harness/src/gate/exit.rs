//! The exit codes: what a command, above all the gate, came to.

/// What a command came to. The numbers are the contract with CI; precedence 2 > 1 > 5 > 4 > 3 > 0, never a count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Nothing to complain about.
    Pass = 0,
    /// A confirmed regression.
    Regression = 1,
    /// Usage or bad input.
    Usage = 2,
    /// Not enough evidence for a verdict.
    Undecided = 3,
    /// Records of different machines, inputs or policies.
    NotComparable = 4,
    /// Cases failed to run.
    Failed = 5,
}

impl Exit {
    /// Every outcome, most important first.
    pub const ALL: [Exit; 6] =
        [Exit::Usage, Exit::Regression, Exit::Failed, Exit::NotComparable, Exit::Undecided, Exit::Pass];

    /// The more important of two outcomes.
    pub fn and(self, other: Exit) -> Exit {
        Exit::ALL.into_iter().find(|&exit| exit == self || exit == other).unwrap_or(Exit::Pass)
    }
}
