//! Query rows of softmax attention: what each may see, and where its results go.

use std::ops::Range;

use half::{bf16, f16};

use crate::pattern::Visibility;
use crate::shared_mut::SharedMut;
use crate::tensor::{ElementType, Float, Tensor};

/// One query row.
#[derive(Clone, Debug, Default)]
pub(crate) struct Row {
    /// Query head.
    pub(crate) head: usize,
    /// Token of the sequence.
    pub(crate) query: usize,
    /// p: its position among the keys.
    pub(crate) position: i64,
    /// The keys that its pattern lets it see, where that is a range.
    pub(crate) keys: Range<usize>,
}

/// The keys that each query of a sequence may see under a pattern whose keys are a range. Both ends never fall from one
/// query to the next, also where a query sees nothing.
pub(crate) fn key_ranges(visibility: &Visibility) -> Vec<Range<usize>> {
    let mut end = 0;
    (0..visibility.len_q)
        .map(|query| {
            let mut span = visibility.key_span(0, query);
            if span.is_empty() {
                span = end..end;
            }
            end = span.end;
            span
        })
        .collect()
}

/// An output tensor that threads write row by row.
pub(crate) enum SharedRows {
    F32(SharedMut<f32>),
    F16(SharedMut<f16>),
    Bf16(SharedMut<bf16>),
}

impl SharedRows {
    /// Shares a tensor of O or a gradient.
    pub(crate) fn new(tensor: &mut Tensor) -> Self {
        match tensor.element() {
            ElementType::F32 => SharedRows::F32(SharedMut::new(tensor.as_mut_slice())),
            ElementType::F16 => SharedRows::F16(SharedMut::new(tensor.as_mut_slice())),
            ElementType::Bf16 => SharedRows::Bf16(SharedMut::new(tensor.as_mut_slice())),
            other => unreachable!("rows of {other:?}"),
        }
    }

    /// Writes factor * row at `offset`, rounded to the tensor's dtype.
    ///
    /// # Safety
    /// No two threads may write one element.
    pub(crate) unsafe fn write(&self, offset: usize, row: &[f32], factor: f32) {
        // SAFETY: as the caller promises.
        unsafe {
            match self {
                SharedRows::F32(out) => write(out.slice(offset, row.len()), row, factor),
                SharedRows::F16(out) => write(out.slice(offset, row.len()), row, factor),
                SharedRows::Bf16(out) => write(out.slice(offset, row.len()), row, factor),
            }
        }
    }
}

fn write<T: Float>(out: &mut [T], row: &[f32], factor: f32) {
    out.iter_mut().zip(row).for_each(|(out, &x)| *out = T::from_f32(factor * x));
}

/// The LSE tensor, (batch, heads, longest), where the caller wants it.
pub(crate) struct SharedLse {
    values: SharedMut<f32>,
    heads: usize,
    longest: usize,
}

impl SharedLse {
    /// Shares the tensor.
    pub(crate) fn new(tensor: &mut Tensor) -> Self {
        let (heads, longest) = (tensor.dims()[1], tensor.dims()[2]);
        SharedLse { values: SharedMut::new(tensor.as_mut_slice()), heads, longest }
    }

    /// Writes the LSE of one row.
    ///
    /// # Safety
    /// No two threads may write one element.
    pub(crate) unsafe fn write(&self, sequence: usize, head: usize, query: usize, lse: f32) {
        // SAFETY: as the caller promises.
        unsafe { self.values.slice((sequence * self.heads + head) * self.longest + query, 1)[0] = lse };
    }
}
