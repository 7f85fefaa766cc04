//! Rows of K and V as the packed operands of [`super::gemm`], and rows of any dtype as f32.

use super::gemm::Panels;
use super::isa::{Isa, Task};
use super::vector::{MAX_LANES, Simd, Stored};
use crate::tensor::Tensor;

/// The size of a packed (depth, columns) operand.
#[derive(Clone, Copy, Debug)]
pub struct PackedShape {
    isa: Isa,
    depth: usize,
    columns: usize,
}

impl PackedShape {
    /// The shape of `depth` rows and at least `columns` columns, padded with zeros to whole vectors.
    pub fn new(isa: Isa, depth: usize, columns: usize) -> Self {
        PackedShape { isa, depth, columns: isa.pad(columns) }
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.depth * self.columns
    }

    /// Whether there is nothing to pack.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The operand in packed memory.
    pub fn view<'a>(&self, data: &'a [f32]) -> Panels<'a> {
        Panels::packed(self.isa, data, (self.depth, self.columns))
    }
}

/// Runs an expression with a floating-point tensor's elements as a slice of their type.
macro_rules! with_elements {
    ($tensor:expr, $data:ident => $body:expr) => {
        match $tensor.element() {
            $crate::tensor::ElementType::F32 => {
                let $data = $tensor.as_slice::<f32>();
                $body
            }
            $crate::tensor::ElementType::F16 => {
                let $data = $tensor.as_slice::<half::f16>();
                $body
            }
            $crate::tensor::ElementType::Bf16 => {
                let $data = $tensor.as_slice::<half::bf16>();
                $body
            }
            $crate::tensor::ElementType::E4m3 => {
                let $data = $tensor.as_slice::<$crate::e4m3::e4m3>();
                $body
            }
            other => unreachable!("{other:?} is no floating-point element"),
        }
    };
}
pub(crate) use with_elements;

/// Packs the rows of `dim` elements that start at `offsets` as *columns*: B (dim, rows) = K^T. `out` has the length of
/// `PackedShape::new(isa, dim, offsets.len())`.
pub fn pack_columns(isa: Isa, tensor: &Tensor, offsets: &[usize], dim: usize, out: &mut [f32]) {
    check(isa, tensor, offsets, dim);
    assert_eq!(out.len(), dim * isa.pad(offsets.len()), "the packed operand has its shape's length");
    with_elements!(tensor, data => isa.run(PackColumns { data, offsets, dim, out }));
}

/// Packs the rows of `dim` elements that start at `offsets` as *rows*: B (rows, dim) = V. Rows beyond the offsets up to
/// `depth` become zeros. `out` has the length of `PackedShape::new(isa, depth, dim)`.
pub fn pack_rows(isa: Isa, tensor: &Tensor, offsets: &[usize], dim: usize, depth: usize, out: &mut [f32]) {
    check(isa, tensor, offsets, dim);
    assert!(offsets.len() <= depth, "the depth holds every row");
    assert_eq!(out.len(), depth * isa.pad(dim), "the packed operand has its shape's length");
    with_elements!(tensor, data => isa.run(PackRows { data, offsets, dim, depth, out }));
}

/// out = factor * the row at `offset`, widened, then zeros.
pub fn widen_row(isa: Isa, tensor: &Tensor, offset: usize, dim: usize, factor: f32, out: &mut [f32]) {
    check(isa, tensor, &[offset], dim);
    out[dim..].fill(0.0);
    let out = &mut out[..dim];
    with_elements!(tensor, data => isa.run(Widen { row: &data[offset..offset + dim], factor, out }));
}

/// The rows of `dim` elements that start at `offsets`, widened, `stride` elements apart in `out`, each with zeros up to
/// whole vectors.
pub fn widen_rows(isa: Isa, tensor: &Tensor, offsets: &[usize], dim: usize, stride: usize, out: &mut [f32]) {
    check(isa, tensor, offsets, dim);
    assert!(stride >= isa.pad(dim) && out.len() >= offsets.len() * stride, "every row has its place");
    with_elements!(tensor, data => isa.run(WidenRows { data, offsets, dim, stride, out }));
}

fn check(_isa: Isa, tensor: &Tensor, offsets: &[usize], dim: usize) {
    assert!(offsets.iter().all(|&offset| offset + dim <= tensor.len()), "every row is inside the tensor");
}

struct PackColumns<'a, T> {
    data: &'a [T],
    offsets: &'a [usize],
    dim: usize,
    out: &'a mut [f32],
}

impl<T: Stored> Task for PackColumns<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let panel = S::PANEL_VECTORS * S::LANES;
        let mut out = self.out;
        for (index, offsets) in self.offsets.chunks(panel).enumerate() {
            let first = index * panel;
            let width = offsets.len().next_multiple_of(S::LANES);
            let (block, rest) = out.split_at_mut(self.dim * width);
            out = rest;
            // Squares of LANES rows by LANES elements, transposed in registers.
            for (group, group_offsets) in offsets.chunks(S::LANES).enumerate() {
                let next = first + (group + 1) * S::LANES;
                for x in (0..self.dim).step_by(S::LANES) {
                    for offset in self.offsets.iter().skip(next).take(S::LANES) {
                        S::prefetch(self.data.as_ptr().wrapping_add(offset + x).cast());
                    }
                    let count = S::LANES.min(self.dim - x);
                    let mut rows = [S::splat(0.0); MAX_LANES];
                    for (row, offset) in rows.iter_mut().zip(group_offsets) {
                        // SAFETY: `check` has seen that every row has `dim` elements.
                        *row = unsafe {
                            let from = self.data.as_ptr().add(offset + x);
                            if count == S::LANES { T::load::<S>(from) } else { T::load_head::<S>(from, count) }
                        };
                    }
                    S::transpose(&mut rows);
                    for (element, row) in rows.iter().enumerate().take(count) {
                        let to = &mut block[(x + element) * width + group * S::LANES..][..S::LANES];
                        // SAFETY: the slice has LANES elements.
                        unsafe { S::store(to.as_mut_ptr(), *row) };
                    }
                }
            }
        }
    }
}

/// Rows between the one that is packed and the one that is asked for.
const ROWS_AHEAD: usize = 8;

struct PackRows<'a, T> {
    data: &'a [T],
    offsets: &'a [usize],
    dim: usize,
    depth: usize,
    out: &'a mut [f32],
}

impl<T: Stored> Task for PackRows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let panel = S::PANEL_VECTORS * S::LANES;
        for (row, &offset) in self.offsets.iter().enumerate() {
            if let Some(ahead) = self.offsets.get(row + ROWS_AHEAD) {
                for x in (0..self.dim * size_of::<T>()).step_by(64) {
                    S::prefetch(self.data.as_ptr().wrapping_add(*ahead).cast::<u8>().wrapping_add(x));
                }
            }
            for start in (0..self.dim).step_by(panel) {
                let used = panel.min(self.dim - start);
                let width = used.next_multiple_of(S::LANES);
                let to = &mut self.out[start * self.depth + row * width..][..width];
                widen::<S, T>(&self.data[offset + start..offset + start + used], S::splat(1.0), &mut to[..used]);
                to[used..].fill(0.0);
            }
        }
        for start in (0..self.dim).step_by(panel) {
            let width = panel.min(self.dim - start).next_multiple_of(S::LANES);
            let block = &mut self.out[start * self.depth..][..self.depth * width];
            block[self.offsets.len() * width..].fill(0.0);
        }
    }
}

struct Widen<'a, T> {
    row: &'a [T],
    factor: f32,
    out: &'a mut [f32],
}

impl<T: Stored> Task for Widen<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        widen::<S, T>(self.row, S::splat(self.factor), self.out);
    }
}

struct WidenRows<'a, T> {
    data: &'a [T],
    offsets: &'a [usize],
    dim: usize,
    stride: usize,
    out: &'a mut [f32],
}

impl<T: Stored> Task for WidenRows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        for (row, &offset) in self.offsets.iter().enumerate() {
            if let Some(ahead) = self.offsets.get(row + ROWS_AHEAD) {
                for x in (0..self.dim * size_of::<T>()).step_by(64) {
                    S::prefetch(self.data.as_ptr().wrapping_add(*ahead).cast::<u8>().wrapping_add(x));
                }
            }
            let out = &mut self.out[row * self.stride..][..self.dim.next_multiple_of(S::LANES)];
            let (out, padding) = out.split_at_mut(self.dim);
            widen::<S, T>(&self.data[offset..offset + self.dim], S::splat(1.0), out);
            padding.fill(0.0);
        }
    }
}

/// out = factor * row.
#[inline(always)]
fn widen<S: Simd, T: Stored>(row: &[T], factor: S::V, out: &mut [f32]) {
    let whole = row.len().min(out.len()) / S::LANES * S::LANES;
    for i in (0..whole).step_by(S::LANES) {
        // SAFETY: LANES elements from i on are inside both.
        unsafe { S::store(out.as_mut_ptr().add(i), S::mul(T::load::<S>(row.as_ptr().add(i)), factor)) };
    }
    let mut lanes = [0f32; MAX_LANES];
    let tail = row.len().min(out.len()) - whole;
    if tail > 0 {
        // SAFETY: `tail` elements remain in the row, and the buffer has at least LANES.
        unsafe {
            S::store(lanes.as_mut_ptr(), S::mul(T::load_head::<S>(row.as_ptr().add(whole), tail), factor));
        }
        out[whole..whole + tail].copy_from_slice(&lanes[..tail]);
    }
}
