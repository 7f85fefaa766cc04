//! Sliding window: p - left <= j <= p + right.

use super::{ranges::Band, signed};

/// The band of a window; causal cuts its right side.
pub(super) fn window(left: usize, right: usize, causal: bool) -> Band {
    Band { left: signed(left), right: if causal { 0 } else { signed(right) }, step: 1 }
}
