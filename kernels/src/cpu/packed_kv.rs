//! Keys and values of one KV head packed for the gemm, block by block.

use super::online::KeyValueBlock;
use super::simd::Isa;
use super::simd::pack::{PackedShape, pack_columns, pack_rows};
use crate::tensor::{Rows, Tensor};

/// How blocks of one problem are packed.
#[derive(Clone, Copy)]
pub(crate) struct BlockPacker {
    /// Instruction set that the packed layout is for.
    pub(crate) isa: Isa,
    /// Keys a block: a multiple of [`Isa::panel`].
    pub(crate) block: usize,
    /// Elements of a key.
    pub(crate) dim_qk: usize,
    /// Elements of a value.
    pub(crate) dim_v: usize,
}

impl BlockPacker {
    /// Elements that a packed block takes.
    pub(crate) fn block_elements(&self) -> usize {
        self.block * (self.dim_qk + self.isa.pad(self.dim_v))
    }

    /// Packs `len` keys and values of a KV head: those of tokens `token(0)`, `token(1)`, ... `offsets` is scratch of at
    /// least `len`.
    pub(crate) fn pack(
        &self,
        (keys, key_rows): (&Tensor, &Rows),
        (values, value_rows): (&Tensor, &Rows),
        (sequence, head): (usize, usize),
        len: usize,
        token: impl Fn(usize) -> usize,
        offsets: &mut [usize],
        out: &mut [f32],
    ) {
        let offsets = &mut offsets[..len];
        let find = |rows: &Rows, offsets: &mut [usize]| {
            for (index, offset) in offsets.iter_mut().enumerate() {
                *offset = rows.offset(sequence, head, token(index));
            }
        };
        find(key_rows, offsets);
        self.pack_keys(keys, offsets, out);
        find(value_rows, offsets);
        self.pack_values(values, offsets, out);
    }

    /// Packs the keys that start at `offsets`.
    pub(crate) fn pack_keys(&self, keys: &Tensor, offsets: &[usize], out: &mut [f32]) {
        let (part, _) = self.parts(offsets.len());
        pack_columns(self.isa, keys, offsets, self.dim_qk, &mut out[..part.len()]);
    }

    /// Packs the values that start at `offsets`.
    pub(crate) fn pack_values(&self, values: &Tensor, offsets: &[usize], out: &mut [f32]) {
        let (_, part) = self.parts(offsets.len());
        let out = &mut out[self.block * self.dim_qk..][..part.len()];
        pack_rows(self.isa, values, offsets, self.dim_v, offsets.len(), out);
    }

    /// The operands of a packed block.
    pub(crate) fn view<'a>(&self, packed: &'a [f32], first_key: usize, len: usize) -> KeyValueBlock<'a> {
        let (key_part, value_part) = self.parts(len);
        KeyValueBlock {
            keys: key_part.view(&packed[..key_part.len()]),
            values: value_part.view(&packed[self.block * self.dim_qk..][..value_part.len()]),
            first_key,
            len,
        }
    }

    fn parts(&self, len: usize) -> (PackedShape, PackedShape) {
        (PackedShape::new(self.isa, self.dim_qk, len), PackedShape::new(self.isa, len, self.dim_v))
    }
}
