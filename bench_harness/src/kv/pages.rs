//! What a paged cache wastes: the unused ends of each sequence's last pages (Kwon et al. 2023, section 3.1).

use serde::Serialize;

use super::{CacheShape, Element, KvError, counted};

/// The caches of a batch in pages.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PagedBatch {
    /// Tokens a page.
    pub page_size: u64,
    /// Pages of all layers.
    pub pages: u64,
    /// Bytes that hold tokens, states included.
    pub used_bytes: u64,
    /// Bytes that are taken.
    pub taken_bytes: u64,
}

impl PagedBatch {
    /// Bytes that are taken and hold nothing.
    pub fn wasted_bytes(&self) -> u64 {
        self.taken_bytes - self.used_bytes
    }

    /// The wasted share of what is taken, 0 of nothing.
    pub fn wasted_share(&self) -> f64 {
        if self.taken_bytes == 0 { 0.0 } else { self.wasted_bytes() as f64 / self.taken_bytes as f64 }
    }
}

/// Sequences of these lengths in pages of `page_size` tokens. A window drops a page once it has left it as a whole.
pub fn paged(shape: &CacheShape, element: Element, lengths: &[u64], page_size: u64) -> Result<PagedBatch, KvError> {
    if page_size == 0 {
        return Err(KvError::Shape("a page of 0 tokens holds nothing; pages have 1 token or more".to_owned()));
    }
    let (mut pages, mut used, mut taken) = (0u128, 0u128, 0u128);
    for kept in shape.kept() {
        let (row, layers) = (kept.row_bytes(element), u128::from(kept.layers));
        for &length in lengths {
            let tokens = kept.max_tokens.map_or(length, |most| most.min(length));
            // Pages are those of the positions in the sequence: the window's first token may lie inside one.
            let own = if row == 0 { 0 } else { length.div_ceil(page_size) - (length - tokens) / page_size };
            let state = u128::from(kept.state_bytes);
            pages += layers * u128::from(own);
            used += layers * (row * u128::from(tokens) + state);
            taken += layers * (row * u128::from(own) * u128::from(page_size) + state);
        }
    }
    let what = "the bytes of the pages";
    Ok(PagedBatch {
        page_size,
        pages: counted("the pages", Some(pages))?,
        used_bytes: counted(what, Some(used))?,
        taken_bytes: counted(what, Some(taken))?,
    })
}

/// Bytes that are taken where every sequence reserves room for the longest, as contiguous caches do.
pub fn reserved_bytes(shape: &CacheShape, element: Element, lengths: &[u64]) -> Result<u64, KvError> {
    let longest = lengths.iter().copied().max().unwrap_or(0);
    shape.batch_bytes(element, longest, lengths.len() as u64)
}
