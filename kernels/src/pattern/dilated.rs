//! Dilated window: |p - j| <= window * step, and step divides p - j.

use super::{ranges::Band, signed};

/// The band of a dilated window; causal cuts its right side.
pub(super) fn dilated(window: usize, step: usize, causal: bool) -> Band {
    Band { left: signed(window), right: if causal { 0 } else { signed(window) }, step: signed(step) }
}
