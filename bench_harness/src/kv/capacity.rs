//! What fits in a memory beside weights and a reserve.

use std::fmt;

use serde::{Serialize, Serializer};

use super::{CacheShape, Element, KvError};

/// A memory and what is not for caches in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Budget {
    /// All of it, in bytes.
    pub memory_bytes: u64,
    /// What the weights take.
    pub weight_bytes: u64,
    /// What stays free: activations, workspaces, fragmentation, the driver.
    pub reserve_bytes: u64,
}

impl Budget {
    /// Bytes for caches.
    pub fn available_bytes(&self) -> Result<u64, KvError> {
        let left = self.memory_bytes.checked_sub(self.weight_bytes);
        left.and_then(|left| left.checked_sub(self.reserve_bytes)).filter(|&left| left > 0).ok_or(
            KvError::NothingLeft {
                memory_bytes: self.memory_bytes,
                weight_bytes: self.weight_bytes,
                reserve_bytes: self.reserve_bytes,
            },
        )
    }
}

/// How long a sequence may get.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Context {
    /// So many tokens, and not one more.
    Tokens(u64),
    /// As long as one likes: nothing that is kept grows with it.
    Unbounded,
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Context::Tokens(tokens) => write!(f, "{tokens}"),
            Context::Unbounded => f.write_str("unbounded"),
        }
    }
}

impl Serialize for Context {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Context::Tokens(tokens) => serializer.serialize_u64(*tokens),
            Context::Unbounded => serializer.serialize_str("unbounded"),
        }
    }
}

/// The longest context that `batch` sequences can all have in this many bytes.
pub fn largest_context(shape: &CacheShape, element: Element, batch: u64, available_bytes: u64) -> Context {
    let fits = |context: u64| {
        let bytes = shape.wide_sequence_bytes(element, context).and_then(|bytes| bytes.checked_mul(batch.into()));
        bytes.is_some_and(|bytes| bytes <= u128::from(available_bytes))
    };
    // From the widest window on nothing grows, unless some layer keeps every token.
    let mut widest = shape.kept().map(|kept| if kept.token_elements == 0 { Some(0) } else { kept.max_tokens });
    let saturated = widest.try_fold(0, |widest: u64, own| own.map(|own| widest.max(own)));
    if batch == 0 || saturated.is_some_and(fits) {
        return Context::Unbounded;
    }
    let (mut fitting, mut too_long) = (0, u64::MAX);
    while too_long - fitting > 1 {
        let middle = fitting + (too_long - fitting) / 2;
        if fits(middle) { fitting = middle } else { too_long = middle }
    }
    Context::Tokens(fitting)
}

/// How many sequences of this context fit in this many bytes at once.
pub fn largest_batch(shape: &CacheShape, element: Element, context: u64, available_bytes: u64) -> u64 {
    match shape.wide_sequence_bytes(element, context) {
        Some(0) => u64::MAX,
        Some(bytes) => u64::try_from(u128::from(available_bytes) / bytes).unwrap_or(u64::MAX),
        None => 0,
    }
}
