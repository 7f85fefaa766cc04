//! Reading rows as f32 and writing them back, whatever the dtype: the match on the dtype is made once a row, so that
//! kernels are compiled once and not once a combination of dtypes.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::shared_mut::SharedMut;
use crate::tensor::{ElementType, Float, Rows, Tensor, TensorName, TensorSet};

/// Tokens `first, first + step, ...` of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tokens {
    pub(crate) first: usize,
    pub(crate) step: usize,
}

impl Tokens {
    /// Neighbouring tokens from `first` on.
    pub(crate) fn from(first: usize) -> Self {
        Tokens { first, step: 1 }
    }

    #[inline(always)]
    pub(crate) fn get(self, index: usize) -> usize {
        self.first + index * self.step
    }
}

/// A float tensor to read.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    Bf16(&'a [bf16]),
}

impl<'a> Source<'a> {
    /// The elements of a float tensor.
    pub(crate) fn new(tensor: &'a Tensor) -> Self {
        match tensor.element() {
            ElementType::F32 => Source::F32(tensor.as_slice()),
            ElementType::F16 => Source::F16(tensor.as_slice()),
            ElementType::Bf16 => Source::Bf16(tensor.as_slice()),
            other => unreachable!("{other:?} is no float"),
        }
    }

    /// Widens the elements from `offset` on.
    #[inline]
    pub(crate) fn read(&self, offset: usize, out: &mut [f32]) {
        match self {
            Source::F32(data) => out.copy_from_slice(&data[offset..offset + out.len()]),
            Source::F16(data) => data[offset..offset + out.len()].convert_to_f32_slice(out),
            Source::Bf16(data) => {
                let data = &data[offset..offset + out.len()];
                out.iter_mut().zip(data).for_each(|(out, &x)| *out = Float::to_f32(x));
            }
        }
    }

    /// Widens `count` rows one after the other into `out`, a (count, rows.dim) tile; `token` maps a row to its token.
    #[inline]
    pub(crate) fn read_tile(
        &self,
        rows: &Rows,
        (sequence, head): (usize, usize),
        count: usize,
        token: impl Fn(usize) -> usize,
        out: &mut [f32],
    ) {
        for (index, row) in out.chunks_exact_mut(rows.dim).take(count).enumerate() {
            self.read(rows.offset(sequence, head, token(index)), row);
        }
    }
}

/// A float tensor that several threads write, each its own rows.
pub(crate) enum Sink {
    F32(SharedMut<f32>),
    F16(SharedMut<f16>),
    Bf16(SharedMut<bf16>),
}

impl Sink {
    /// The tensor of that name in a call's outputs, which must outlive every use of the sink.
    pub(crate) fn new(outputs: &mut TensorSet, name: TensorName) -> Self {
        let tensor = outputs.get_mut(name);
        match tensor.element() {
            ElementType::F32 => Sink::F32(SharedMut::new(tensor.as_mut_slice())),
            ElementType::F16 => Sink::F16(SharedMut::new(tensor.as_mut_slice())),
            ElementType::Bf16 => Sink::Bf16(SharedMut::new(tensor.as_mut_slice())),
            other => unreachable!("{other:?} is no float"),
        }
    }

    /// The tensor of that name, where the caller asked for it.
    pub(crate) fn find(outputs: &mut TensorSet, name: TensorName) -> Option<Self> {
        outputs.find(name)?;
        Some(Sink::new(outputs, name))
    }

    /// Rounds a row to the tensor's dtype.
    ///
    /// # Safety
    /// No other thread reads or writes these elements during the call.
    #[inline]
    pub(crate) unsafe fn write(&self, offset: usize, row: &[f32]) {
        match self {
            // SAFETY: the caller's promise.
            Sink::F32(data) => unsafe { data.slice(offset, row.len()) }.copy_from_slice(row),
            // SAFETY: the caller's promise.
            Sink::F16(data) => unsafe { data.slice(offset, row.len()) }.convert_from_f32_slice(row),
            Sink::Bf16(data) => {
                // SAFETY: the caller's promise.
                let out = unsafe { data.slice(offset, row.len()) };
                out.iter_mut().zip(row).for_each(|(out, &x)| *out = bf16::from_f32(x));
            }
        }
    }
}
