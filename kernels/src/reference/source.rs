//! Where the oracle's numbers come from: the seeded generator, row by row, or tensors that somebody gives.

use std::sync::OnceLock;

use super::round_to;
use crate::input::{Generator, InputSpec, tensor_shape};
use crate::problem::{AttentionProblem, Bias, Dtype};
use crate::tensor::{ElementType, Rows, Tensor, TensorName, TensorSet};

/// The already rounded inputs of a problem, widened. f32 holds every dtype exactly.
pub trait RowSource: Sync {
    /// Row (sequence, head, token) of Q, K, V or dO; `out` has the row's length.
    fn row(&self, name: TensorName, sequence: usize, head: usize, token: usize, out: &mut [f32]);

    /// What is added to the score of a pair: negative infinity hides it. A boolean mask gives 0 or negative infinity.
    /// Called for [`Bias::Bool`] and [`Bias::Additive`] alone.
    fn bias(&self, sequence: usize, head: usize, query: usize, key: usize) -> f64;

    /// Elements `first..first + out.len()` of a tensor that has no tokens, in the order of its shape: E, F, the state,
    /// the normaliser, the sinks.
    fn values(&self, name: TensorName, first: usize, out: &mut [f32]);
}

/// The inputs that [`Generator`] would make, one row at a time: a problem of any size costs no memory.
pub struct GeneratedRows<'a> {
    problem: &'a AttentionProblem,
    generator: Generator<'a>,
    /// Elements between the rows of the bias.
    bias_stride: usize,
}

impl<'a> GeneratedRows<'a> {
    /// The inputs of input set `set`.
    pub fn new(problem: &'a AttentionProblem, spec: &'a InputSpec, set: u64) -> Self {
        let bias_stride = tensor_shape(problem, TensorName::Bias).1[3];
        GeneratedRows { problem, generator: Generator::new(problem, spec, set), bias_stride }
    }
}

impl RowSource for GeneratedRows<'_> {
    fn row(&self, name: TensorName, sequence: usize, head: usize, token: usize, out: &mut [f32]) {
        debug_assert!(matches!(name, TensorName::Q | TensorName::K | TensorName::V | TensorName::DO));
        self.generator.row(name, sequence, head, token, out);
    }

    fn bias(&self, _sequence: usize, _head: usize, query: usize, key: usize) -> f64 {
        let mut value = [0.0];
        self.generator.values(TensorName::Bias, query * self.bias_stride + key, &mut value);
        match self.problem.bias {
            Bias::Bool if value[0] == 0.0 => f64::NEG_INFINITY,
            Bias::Bool => 0.0,
            _ => f64::from(value[0]),
        }
    }

    fn values(&self, name: TensorName, first: usize, out: &mut [f32]) {
        self.generator.values(name, first, out);
    }
}

/// The inputs in a set of tensors, laid out as the problem says. The bias may have 2 to 4 dimensions, aligned at the
/// last, each either 1 (broadcast) or the full size; a last dimension that is shorter than the keys hides the rest.
pub struct TensorRows<'a> {
    tensors: &'a TensorSet,
    queries: Rows,
    outputs: Rows,
    keys: Rows,
    values: Rows,
}

impl<'a> TensorRows<'a> {
    /// Reads these tensors. They must have the shapes of [`tensor_shape`], which the caller has checked.
    pub fn new(problem: &'a AttentionProblem, tensors: &'a TensorSet) -> Self {
        let table = tensors.find(TensorName::PageTable);
        let keys = |dim| match problem.is_recurrent() {
            true => Rows::contiguous(problem.layout, &problem.lengths_q(), problem.heads_kv, dim),
            false => Rows::of_keys(problem, dim, table),
        };
        TensorRows {
            tensors,
            queries: Rows::of_queries(problem, problem.head_dim_qk),
            outputs: Rows::of_queries(problem, problem.head_dim_v),
            keys: keys(problem.head_dim_qk),
            values: keys(problem.head_dim_v),
        }
    }
}

/// Elements of a float tensor, widened.
fn copy_widened(tensor: &Tensor, first: usize, out: &mut [f32]) {
    let range = first..first + out.len();
    match tensor.element() {
        ElementType::F32 => out.copy_from_slice(&tensor.as_slice::<f32>()[range]),
        _ => out.iter_mut().zip(range).for_each(|(out, index)| *out = tensor.get_f64(index) as f32),
    }
}

impl RowSource for TensorRows<'_> {
    fn row(&self, name: TensorName, sequence: usize, head: usize, token: usize, out: &mut [f32]) {
        let rows = match name {
            TensorName::Q => &self.queries,
            TensorName::K => &self.keys,
            TensorName::V => &self.values,
            TensorName::DO => &self.outputs,
            other => unreachable!("{other:?} has no rows"),
        };
        copy_widened(self.tensors.get(name), rows.offset(sequence, head, token), out);
    }

    fn bias(&self, sequence: usize, head: usize, query: usize, key: usize) -> f64 {
        let tensor = self.tensors.get(TensorName::Bias);
        let dims = tensor.dims();
        let mut index = 0;
        for (axis, &dim) in dims.iter().enumerate() {
            let at = [sequence, head, query, key][axis + 4 - dims.len()];
            if axis + 1 == dims.len() && dim != 1 && at >= dim {
                return f64::NEG_INFINITY;
            }
            index = index * dim + if dim == 1 { 0 } else { at };
        }
        match (tensor.element(), tensor.get_f64(index)) {
            (ElementType::Bool, 0.0) => f64::NEG_INFINITY,
            (ElementType::Bool, _) => 0.0,
            (_, bias) => bias,
        }
    }

    fn values(&self, name: TensorName, first: usize, out: &mut [f32]) {
        copy_widened(self.tensors.get(name), first, out);
    }
}

/// The inputs of another source as a kernel multiplies them that rounds Q, K and V to a dtype.
pub(super) struct Rounded<'a> {
    pub(super) source: &'a dyn RowSource,
    pub(super) dtype: Dtype,
}

impl RowSource for Rounded<'_> {
    fn row(&self, name: TensorName, sequence: usize, head: usize, token: usize, out: &mut [f32]) {
        self.source.row(name, sequence, head, token, out);
        out.iter_mut().for_each(|x| *x = round_input(self.dtype, *x));
    }

    fn bias(&self, sequence: usize, head: usize, query: usize, key: usize) -> f64 {
        self.source.bias(sequence, head, query, key)
    }

    fn values(&self, name: TensorName, first: usize, out: &mut [f32]) {
        self.source.values(name, first, out);
    }
}

/// The nearest number with the dtype's bits of mantissa. Of e4m3 exponents do not count: how a kernel scales is its own affair, and
/// one that scales well has no error but this.
fn round_input(dtype: Dtype, x: f32) -> f32 {
    if dtype != Dtype::E4m3 {
        return round_to(dtype, f64::from(x)) as f32;
    }
    // 20 bits of mantissa go; a carry into the exponent is what rounding means.
    let bits = x.to_bits();
    f32::from_bits((bits + 0x7_FFFF + (bits >> 20 & 1)) & !0xF_FFFF)
}

/// A source whose small tensors (sinks) are read once.
pub(super) struct CachedSinks(OnceLock<Vec<f64>>);

impl CachedSinks {
    pub(super) fn new() -> Self {
        CachedSinks(OnceLock::new())
    }

    pub(super) fn get(&self, problem: &AttentionProblem, source: &dyn RowSource, head: usize) -> f64 {
        self.0.get_or_init(|| {
            let mut sinks = vec![0.0; problem.heads_q];
            source.values(TensorName::Sinks, 0, &mut sinks);
            sinks.into_iter().map(f64::from).collect()
        })[head]
    }
}
