//! Which keys a query sees.
//!
//! [`Visibility`] is the one place that decides it: the oracle, the exact pair counts and every kernel's masks follow from
//! it. A pattern is one file with its pair predicate, its closed-form pair count and its block map.

use crate::problem::{AttentionProblem, Pattern};

/// Who sees whom in one sequence of a problem: the pattern and `causal` together. Bias masks are not part of it.
#[derive(Clone, Debug)]
pub struct Visibility {
    /// The pattern.
    pub pattern: Pattern,
    /// Whether j <= p is required too.
    pub causal: bool,
    /// p - i.
    pub query_offset: i64,
    /// Queries.
    pub len_q: usize,
    /// Keys.
    pub len_kv: usize,
}

impl Visibility {
    /// The visibility of a sequence with these lengths.
    pub fn new(problem: &AttentionProblem, len_q: usize, len_kv: usize) -> Self {
        Visibility {
            pattern: problem.pattern,
            causal: problem.causal,
            query_offset: problem.query_offset(len_q, len_kv),
            len_q,
            len_kv,
        }
    }
}
