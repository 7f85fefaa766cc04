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

    /// Packs keys `first_key .. first_key + len` of a KV head. `offsets` is scratch of at least `len`.
    pub(crate) fn pack(
        &self,
        (keys, key_rows): (&Tensor, &Rows),
        (values, value_rows): (&Tensor, &Rows),
        (sequence, head): (usize, usize),
        (first_key, len): (usize, usize),
        offsets: &mut [usize],
        out: &mut [f32],
    ) {
        let (key_part, value_part) = self.parts(len);
        let offsets = &mut offsets[..len];
        let find = |rows: &Rows, offsets: &mut [usize]| {
            for (token, offset) in offsets.iter_mut().enumerate() {
                *offset = rows.offset(sequence, head, first_key + token);
            }
        };
        find(key_rows, offsets);
        pack_columns(self.isa, keys, offsets, self.dim_qk, &mut out[..key_part.len()]);
        find(value_rows, offsets);
        let out = &mut out[self.block * self.dim_qk..][..value_part.len()];
        pack_rows(self.isa, values, offsets, self.dim_v, len, out);
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
