//! The arithmetic of KV caches: what a design keeps of every token, and what fits in a budget.
//!
//! Everything is a pure function over the layer groups of a model, in whole bytes and checked: an answer is exact or an
//! error, never a rounded guess. [`mod@shape`] knows what a layer keeps, [`mod@capacity`] what fits, [`mod@pages`] what
//! pages waste, [`mod@variants`] what the same model would keep with another attention.

pub mod capacity;
pub mod element;
pub mod pages;
pub mod shape;
pub mod size;
pub mod variants;

pub use capacity::{Budget, Context};
pub use element::Element;
pub use shape::CacheShape;

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KvError {
    /// The shape does not exist, or keeps no cache.
    #[error("{0}")]
    Shape(String),
    /// The count does not fit.
    #[error("counting {what}: more than {} bytes; ask for a shorter context or a smaller batch", u64::MAX)]
    Overflow {
        /// What was counted.
        what: &'static str,
    },
    /// Weights and reserve leave nothing.
    #[error(
        "dividing a memory of {memory_bytes} bytes: weights of {weight_bytes} and a reserve of {reserve_bytes} leave \
         nothing for a cache; narrow the weights, shrink the reserve or take more memory"
    )]
    NothingLeft {
        /// The memory.
        memory_bytes: u64,
        /// What the weights take.
        weight_bytes: u64,
        /// What is kept free.
        reserve_bytes: u64,
    },
}

/// A count as u64, or which count overflowed.
pub(crate) fn counted(what: &'static str, bytes: Option<u128>) -> Result<u64, KvError> {
    bytes.and_then(|bytes| u64::try_from(bytes).ok()).ok_or(KvError::Overflow { what })
}
