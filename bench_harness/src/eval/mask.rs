//! The caller's mask as the bias tensor of a problem.

use attn_kernels::problem::{Bias, Dtype};
use attn_kernels::tensor::{ElementType, Tensor};
use half::{bf16, f16};

use super::Options;
use super::shapes::Shapes;
use crate::tensor_file::{Array, FileDtype};

/// Visibility that a problem's two alignments cannot say: query i of sequence b stands at p = i + offsets[b] and sees
/// p - left <= j <= p + right.
pub(super) struct Fold {
    pub(super) offsets: Vec<i64>,
    pub(super) left: i64,
    pub(super) right: i64,
}

impl Fold {
    fn sees(&self, sequence: usize, query: usize, key: usize) -> bool {
        let distance = query as i64 + self.offsets[sequence] - key as i64;
        -self.right <= distance && distance <= self.left
    }

    /// Whether all sequences have one offset, so that one matrix serves all.
    fn is_shared(&self) -> bool {
        self.offsets.windows(2).all(|pair| pair[0] == pair[1])
    }
}

/// The bias of the first `keys` keys, (1 or batch, 1 or heads_q, 1 or len_q, keys). An additive mask is rounded to
/// nearest in Q's dtype, as the operator casts it.
pub(super) fn bias(
    mask: Option<&Array>,
    fold: Option<&Fold>,
    shapes: &Shapes<'_>,
    keys: usize,
    dtype: Dtype,
    options: &Options,
) -> Result<Option<(Bias, Tensor)>, String> {
    if mask.is_none() && fold.is_none() {
        return Ok(None);
    }
    let source = mask.map(|mask| Source::of(mask, shapes, options)).transpose()?;
    let (kind, element) = match &source {
        Some(source) if source.dtype != FileDtype::Bool => (Bias::Additive, dtype.into()),
        _ => (Bias::Bool, ElementType::Bool),
    };
    let mut dims =
        source.as_ref().map_or([1, 1, 1, keys], |source| [source.dims[0], source.dims[1], source.dims[2], keys]);
    if let Some(fold) = fold {
        dims[0] = if fold.is_shared() { dims[0] } else { shapes.batch };
        dims[2] = shapes.len_q;
    }
    if Tensor::size_bytes(element, &dims).is_none_or(|bytes| bytes as u64 > options.available_bytes) {
        return Err(format!(
            "the mask of shape {dims:?} does not fit in the {} bytes of memory that are available",
            options.available_bytes
        ));
    }
    let mut tensor = Tensor::zeros(element, &dims);
    if tensor.is_empty() {
        return Ok(Some((kind, tensor)));
    }
    for (row, index) in rows(&dims).enumerate() {
        let [sequence, head, query] = index;
        let hidden = |key: usize| fold.is_some_and(|fold| !fold.sees(sequence, query, key));
        let own = source.as_ref().map(|source| source.row(sequence, head, query));
        let start = row * keys;
        match kind {
            Bias::Bool => {
                let out = &mut tensor.as_mut_slice::<u8>()[start..start + keys];
                for (key, out) in out.iter_mut().enumerate() {
                    let visible = own.as_ref().is_none_or(|own| own.get(key).is_some_and(|value| value != 0.0));
                    *out = u8::from(visible && !hidden(key));
                }
            }
            _ => {
                let own = own.expect("an additive bias comes from a mask");
                let value = |key: usize| {
                    if hidden(key) { f64::NEG_INFINITY } else { own.get(key).unwrap_or(f64::NEG_INFINITY) }
                };
                match dtype {
                    Dtype::F32 => fill(&mut tensor.as_mut_slice::<f32>()[start..start + keys], value, |x| x as f32),
                    Dtype::F16 => fill(&mut tensor.as_mut_slice::<f16>()[start..start + keys], value, f16::from_f64),
                    Dtype::Bf16 => fill(&mut tensor.as_mut_slice::<bf16>()[start..start + keys], value, bf16::from_f64),
                    Dtype::E4m3 => unreachable!("a bias has the dtype of the queries"),
                }
            }
        }
    }
    Ok(Some((kind, tensor)))
}

fn fill<T>(out: &mut [T], value: impl Fn(usize) -> f64, round: impl Fn(f64) -> T) {
    out.iter_mut().enumerate().for_each(|(key, out)| *out = round(value(key)));
}

/// The first three indices of a 4-D tensor, in memory order.
fn rows(dims: &[usize; 4]) -> impl Iterator<Item = [usize; 3]> {
    let [batch, heads, queries, _] = *dims;
    (0..batch).flat_map(move |b| (0..heads).flat_map(move |h| (0..queries).map(move |q| [b, h, q])))
}

/// A mask with its dimensions filled up to four from the left.
struct Source<'a> {
    array: &'a Array,
    dtype: FileDtype,
    dims: [usize; 4],
}

impl<'a> Source<'a> {
    fn of(array: &'a Array, shapes: &Shapes<'_>, options: &Options) -> Result<Self, String> {
        let dtype = match array.dtype {
            FileDtype::U16 if options.uint16_is_bf16 => FileDtype::Bf16,
            FileDtype::Bool | FileDtype::F16 | FileDtype::Bf16 | FileDtype::F32 | FileDtype::F64 => array.dtype,
            other => {
                return Err(format!(
                    "mask is {other}: it must be bool (true = visible) or floating-point (added to the scores), in numpy \
                     `.astype(bool)`"
                ));
            }
        };
        let wanted = [shapes.batch, shapes.heads_q, shapes.len_q, shapes.len_total()];
        let shape = &array.dims;
        let wrong = |reason: String| {
            Err(format!(
                "mask of shape {shape:?} {reason}: it is broadcast to (batch, heads, queries, keys) = {wanted:?}"
            ))
        };
        if !(2..=4).contains(&shape.len()) {
            return wrong(format!("has {} dimensions, not 2 to 4", shape.len()));
        }
        let mut dims = [1; 4];
        dims[4 - shape.len()..].copy_from_slice(shape);
        for (axis, name) in ["sequences", "heads", "queries"].into_iter().enumerate() {
            if dims[axis] != 1 && dims[axis] != wanted[axis] {
                return wrong(format!("has {} where {name} are {}", dims[axis], wanted[axis]));
            }
        }
        if dims[3] > wanted[3] {
            return wrong(format!("covers {} keys where there are {}", dims[3], wanted[3]));
        }
        Ok(Source { array, dtype, dims })
    }

    fn row(&self, sequence: usize, head: usize, query: usize) -> Row<'_> {
        let [batch, heads, queries, keys] = self.dims;
        let at = |index: usize, dim: usize| if dim == 1 { 0 } else { index };
        let row = (at(sequence, batch) * heads + at(head, heads)) * queries + at(query, queries);
        let (start, bytes) = (row * keys * self.dtype.bytes(), keys * self.dtype.bytes());
        Row { dtype: self.dtype, bytes: &self.array.bytes[start..start + bytes] }
    }
}

struct Row<'a> {
    dtype: FileDtype,
    bytes: &'a [u8],
}

impl Row<'_> {
    /// The element of a key; None behind the mask's end. Booleans are 0 or not.
    fn get(&self, key: usize) -> Option<f64> {
        let size = self.dtype.bytes();
        let element = self.bytes.get(key * size..(key + 1) * size)?;
        macro_rules! read {
            ($type:ty) => {
                <$type>::from_le_bytes(element.try_into().expect("an element has its type's size"))
            };
        }
        Some(match self.dtype {
            FileDtype::F16 => read!(f16).to_f64(),
            FileDtype::Bf16 => read!(bf16).to_f64(),
            FileDtype::F32 => f64::from(read!(f32)),
            FileDtype::F64 => read!(f64),
            _ => f64::from(element[0]),
        })
    }
}
