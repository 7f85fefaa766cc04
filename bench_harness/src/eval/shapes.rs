//! What the caller's shapes mean, checked against one another.

use attn_kernels::problem::Layout;
use attn_kernels::problem::legal::{MAX_BATCH, MAX_HEAD_DIM, MAX_HEADS, MAX_LENGTH};
use attn_kernels::tensor::{ElementType, Rows, Tensor};

use super::{Inputs, Options};
use crate::tensor_file::{Array, FileDtype};

/// A tensor seen as (batch, heads, length, dim), whatever its rank.
pub(super) struct View<'a> {
    pub(super) array: &'a Array,
    pub(super) batch: usize,
    pub(super) heads: usize,
    pub(super) length: usize,
    pub(super) dim: usize,
    pub(super) layout: Layout,
}

impl<'a> View<'a> {
    /// `heads` is the number that the caller gave or that follows from other tensors; `flag` is how to give it.
    fn of(name: &str, array: &'a Array, heads: Option<usize>, flag: &str) -> Result<Self, String> {
        let dims = &array.dims;
        match dims[..] {
            [batch, own, length, dim] => {
                if let Some(heads) = heads.filter(|&heads| heads != own) {
                    return Err(format!("{name} of shape {dims:?} has {own} heads, but {flag} says {heads}"));
                }
                Ok(View { array, batch, heads: own, length, dim, layout: Layout::Bhsd })
            }
            [batch, length, hidden] => {
                let heads = heads.ok_or_else(|| {
                    format!("{name} is 3-D, (batch, length, heads * dim): say how many heads it has with {flag}")
                })?;
                if heads == 0 || !hidden.is_multiple_of(heads) {
                    return Err(format!(
                        "{name} of shape {dims:?}: its last dimension is not divisible by {heads} heads ({flag})"
                    ));
                }
                Ok(View { array, batch, heads, length, dim: hidden / heads, layout: Layout::Bshd })
            }
            _ => Err(format!(
                "{name} has {} dimensions, {dims:?}: it must be (batch, heads, length, dim), or (batch, length, heads * \
                 dim) with {flag}",
                dims.len()
            )),
        }
    }

    /// Refuses sizes that no problem has, because a file of no element may claim any of them.
    fn check_sizes(&self, name: &str) -> Result<(), String> {
        let limits = [
            ("batch", self.batch, 0, MAX_BATCH),
            ("number of heads", self.heads, 1, MAX_HEADS),
            ("length", self.length, 0, MAX_LENGTH),
            ("head dim", self.dim, 1, MAX_HEAD_DIM),
        ];
        limits.into_iter().find(|&(_, size, min, max)| size < min || size > max).map_or(
            Ok(()),
            |(what, size, min, max)| {
                Err(format!("{name} of shape {:?} has {what} {size}: valid is {min} to {max}", self.array.dims))
            },
        )
    }

    fn rows(&self) -> Rows {
        Rows::contiguous(self.layout, &vec![self.length; self.batch], self.heads, self.dim)
    }
}

/// All of them, checked.
pub(super) struct Shapes<'a> {
    pub(super) q: View<'a>,
    k: View<'a>,
    v: View<'a>,
    pub(super) past: Option<(View<'a>, View<'a>)>,
    pub(super) batch: usize,
    pub(super) heads_q: usize,
    pub(super) heads_kv: usize,
    pub(super) len_q: usize,
    pub(super) dim_qk: usize,
    pub(super) dim_v: usize,
    pub(super) layout: Layout,
}

impl<'a> Shapes<'a> {
    pub(super) fn of(inputs: &'a Inputs, options: &Options) -> Result<Self, String> {
        let Inputs { q, k, v, past, .. } = inputs;
        for (name, array) in [("k", k), ("v", v)] {
            if array.dims.len() != q.dims.len() {
                return Err(format!(
                    "q is {}-D {:?} and {name} is {}-D {:?}: q, k and v must have one layout",
                    q.dims.len(),
                    q.dims,
                    array.dims.len(),
                    array.dims
                ));
            }
        }
        let q = View::of("q", q, options.heads_q, "--heads-q")?;
        let follows = |hidden: usize| (q.dim > 0 && hidden.is_multiple_of(q.dim)).then(|| hidden / q.dim);
        let heads_kv = options.heads_kv.or_else(|| match k.dims[..] {
            [_, _, hidden] => follows(hidden),
            _ => None,
        });
        let k = View::of("k", k, heads_kv, "--heads-kv")?;
        let v = View::of("v", v, Some(k.heads), "k's heads or --heads-kv")?;
        let past = match past {
            None => None,
            Some((key, value)) => {
                let view = |name, array| View::of(name, array, Some(k.heads), "k's heads or --heads-kv");
                Some((view("past-key", key)?, view("past-value", value)?))
            }
        };
        let shapes = Shapes {
            batch: q.batch,
            heads_q: q.heads,
            heads_kv: k.heads,
            len_q: q.length,
            dim_qk: q.dim,
            dim_v: v.dim,
            layout: q.layout,
            q,
            k,
            v,
            past,
        };
        shapes.check()?;
        Ok(shapes)
    }

    fn check(&self) -> Result<(), String> {
        let Shapes { q, k, v, .. } = self;
        for (name, view) in [("q", q), ("k", k), ("v", v)] {
            view.check_sizes(name)?;
        }
        let same = |what: &str, a: (&str, usize), b: (&str, usize)| {
            if a.1 == b.1 {
                return Ok(());
            }
            Err(format!("{} has {what} {} and {} has {what} {}: they must agree", a.0, a.1, b.0, b.1))
        };
        same("batch", ("q", q.batch), ("k", k.batch))?;
        same("batch", ("q", q.batch), ("v", v.batch))?;
        same("head dim", ("q", q.dim), ("k", k.dim))?;
        same("length", ("k", k.length), ("v", v.length))?;
        if let Some((key, value)) = &self.past {
            key.check_sizes("past-key")?;
            value.check_sizes("past-value")?;
            same("batch", ("q", q.batch), ("past-key", key.batch))?;
            same("batch", ("q", q.batch), ("past-value", value.batch))?;
            same("head dim", ("k", k.dim), ("past-key", key.dim))?;
            same("head dim", ("v", v.dim), ("past-value", value.dim))?;
            same("length", ("past-key", key.length), ("past-value", value.length))?;
        }
        if !self.heads_q.is_multiple_of(self.heads_kv) {
            return Err(format!(
                "{} query heads cannot share {} KV heads: the first must be a multiple of the second",
                self.heads_q, self.heads_kv
            ));
        }
        Ok(())
    }

    pub(super) fn len_past(&self) -> usize {
        self.past.as_ref().map_or(0, |(key, _)| key.length)
    }

    /// Keys, past ones included.
    pub(super) fn len_total(&self) -> usize {
        self.len_past() + self.k.length
    }

    /// Past and new keys.
    pub(super) fn keys(&self) -> Vec<&View<'a>> {
        self.past.iter().map(|(key, _)| key).chain([&self.k]).collect()
    }

    /// Past and new values.
    pub(super) fn values(&self) -> Vec<&View<'a>> {
        self.past.iter().map(|(_, value)| value).chain([&self.v]).collect()
    }

    /// Q's shape with V's dim.
    pub(super) fn output_dims(&self) -> Vec<usize> {
        match self.layout {
            Layout::Bhsd => vec![self.batch, self.heads_q, self.len_q, self.dim_v],
            _ => vec![self.batch, self.len_q, self.heads_q.saturating_mul(self.dim_v)],
        }
    }

    /// Past and new keys, and past and new values.
    pub(super) fn present(&self, inputs: &Inputs) -> (Array, Array) {
        let layout = self.past.as_ref().map_or(Layout::Bhsd, |(key, _)| key.layout);
        let concatenate = |parts: &[&View<'a>], dtype: FileDtype| {
            let element = if dtype.bytes() == 4 { ElementType::F32 } else { ElementType::Bf16 };
            let (heads, dim) = (parts[0].heads, parts[0].dim);
            let dims = match layout {
                Layout::Bhsd => vec![self.batch, heads, self.len_total(), dim],
                _ => vec![self.batch, self.len_total(), heads * dim],
            };
            super::to_array(&gather(parts, self.len_total(), layout, element), &dims, dtype)
        };
        (concatenate(&self.keys(), inputs.k.dtype), concatenate(&self.values(), inputs.v.dtype))
    }

    /// The keys of each sequence that count.
    pub(super) fn valid_keys(&self, kv_lengths: Option<&Array>) -> Result<Vec<usize>, String> {
        let total = self.len_total();
        let Some(array) = kv_lengths else { return Ok(vec![total; self.batch]) };
        if array.dims != [self.batch] {
            return Err(format!(
                "kv-lengths has shape {:?}: it must be one length a sequence, [{}]",
                array.dims, self.batch
            ));
        }
        integers(array)
            .ok_or_else(|| format!("kv-lengths is {}: it must be integers", array.dtype))?
            .into_iter()
            .enumerate()
            .map(|(sequence, length)| {
                usize::try_from(length).ok().filter(|&length| length <= total).ok_or_else(|| {
                    format!("kv-lengths[{sequence}] is {length}: it must be 0 to {total}, the number of keys")
                })
            })
            .collect()
    }
}

fn integers(array: &Array) -> Option<Vec<i128>> {
    macro_rules! read {
        ($type:ty) => {
            array
                .bytes
                .chunks_exact(size_of::<$type>())
                .map(|bytes| <$type>::from_le_bytes(bytes.try_into().expect("a chunk has the type's size")).into())
                .collect()
        };
    }
    Some(match array.dtype {
        FileDtype::I8 => read!(i8),
        FileDtype::I16 => read!(i16),
        FileDtype::I32 => read!(i32),
        FileDtype::I64 => read!(i64),
        FileDtype::U8 => read!(u8),
        FileDtype::U16 => read!(u16),
        FileDtype::U32 => read!(u32),
        FileDtype::U64 => read!(u64),
        FileDtype::Bool | FileDtype::F16 | FileDtype::Bf16 | FileDtype::F32 | FileDtype::F64 => return None,
    })
}

/// The parts one after the other along the length, cut after `length` tokens, in memory order `layout`.
pub(super) fn gather(parts: &[&View<'_>], length: usize, layout: Layout, element: ElementType) -> Tensor {
    let View { batch, heads, dim, .. } = *parts[0];
    let to = Rows::contiguous(layout, &vec![length; batch], heads, dim);
    let mut tensor = Tensor::zeros(element, &to.dims);
    let bytes = element.bytes();
    let mut start = 0;
    for part in parts {
        let from = part.rows();
        let tokens = part.length.min(length - start);
        if part.layout == layout && tokens == length && part.length == length {
            tensor.bytes_mut().copy_from_slice(&part.array.bytes);
            return tensor;
        }
        for sequence in 0..batch {
            for head in 0..heads {
                for token in 0..tokens {
                    let source = from.offset(sequence, head, token) * bytes;
                    let target = to.offset(sequence, head, start + token) * bytes;
                    let row = &part.array.bytes[source..source + dim * bytes];
                    tensor.bytes_mut()[target..target + dim * bytes].copy_from_slice(row);
                }
            }
        }
        start += tokens;
    }
    tensor
}
