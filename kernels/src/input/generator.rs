//! The values themselves, by whole tensors or by single rows.

use half::{bf16, f16};
use rayon::prelude::*;

use super::{InputSpec, code, input_names, is_static, key_lengths, tensor_shape};
use crate::e4m3::e4m3;
use crate::hash::hash64;
use crate::problem::{AttentionProblem, Bias, Dtype, KvLayout, Phase};
use crate::shared_mut::SharedMut;
use crate::tensor::{ElementType, Float, Rows, Tensor, TensorName, TensorSet};

/// Mean of the sum of four 16-bit fields.
const FIELD_SUM_MEAN: i32 = 4 * 65535 / 2;
/// 2^-15.
const ELEMENT_SCALE: f32 = 1.0 / 32768.0;

#[inline(always)]
fn field_sum(hash: u64) -> i32 {
    ((hash & 0xFFFF) + ((hash >> 16) & 0xFFFF) + ((hash >> 32) & 0xFFFF) + (hash >> 48)) as i32
}

/// Makes the values of one input set of a problem, by whole tensors or by single rows.
pub struct Generator<'a> {
    problem: &'a AttentionProblem,
    spec: &'a InputSpec,
    set: u64,
    lengths_q: Vec<usize>,
    lengths_k: Vec<usize>,
}

impl<'a> Generator<'a> {
    /// The generator of input set `set`.
    pub fn new(problem: &'a AttentionProblem, spec: &'a InputSpec, set: u64) -> Self {
        Generator { problem, spec, set, lengths_q: problem.lengths_q(), lengths_k: key_lengths(problem) }
    }

    /// Static tensors are the same in every set: a plan that was made from them stays valid.
    fn key(&self, name: TensorName) -> u64 {
        let set = if is_static(name) { 0 } else { self.set };
        hash64(hash64(self.spec.seed, code(name)), set)
    }

    /// The key that a peaked query row singles out; None for an ordinary row.
    pub fn peak(&self, sequence: usize, head: usize, token: usize) -> Option<usize> {
        let longest = self.lengths_q.iter().copied().max().unwrap_or(0);
        let row = (sequence * longest + token) * self.problem.heads_q + head;
        let u = hash64(hash64(self.key(TensorName::Q), 1 << 32), row as u64);
        if !u.is_multiple_of(4) {
            return None;
        }
        let (len_q, len_k) = (self.lengths_q[sequence], self.lengths_k[sequence]);
        let offsets = &self.spec.peak_offsets;
        let choice = ((u >> 8) % (offsets.len() as u64 + 3)) as usize;
        let key = match choice.checked_sub(offsets.len()) {
            None => token as i64 + self.problem.query_offset(len_q, len_k) + offsets[choice],
            Some(0) => 0,
            Some(1) => len_k as i64 - 1,
            Some(_) => ((u >> 32) % (len_k.max(1) as u64)) as i64,
        };
        (0..len_k as i64).contains(&key).then_some(key as usize)
    }

    /// One row of Q, K, V or dO as the problem's dtype holds it, widened to f32.
    pub fn row(&self, name: TensorName, sequence: usize, head: usize, token: usize, out: &mut [f32]) {
        let dtype = match name {
            TensorName::K | TensorName::V => self.problem.dtype_kv,
            _ => self.problem.dtype,
        };
        self.exact_row(name, sequence, head, token, out);
        round_all(dtype, out);
    }

    /// The row before rounding: exact in f32.
    fn exact_row(&self, name: TensorName, sequence: usize, head: usize, token: usize, out: &mut [f32]) {
        let problem = self.problem;
        if name == TensorName::Q
            && let Some(peak) = self.peak(sequence, head, token)
        {
            self.exact_row(TensorName::K, sequence, head / problem.group_size(), peak, out);
            out.iter_mut().for_each(|x| *x *= 2.0);
            return;
        }
        if name == TensorName::DO
            && let Some(sparse) = self.spec.sparse_grads.iter().find(|sparse| sparse.set == self.set)
            && !sparse.rows.contains(&(sequence, head, token))
        {
            out.fill(0.0);
            return;
        }
        let (lengths, heads) = match name {
            TensorName::Q | TensorName::DO => (&self.lengths_q, problem.heads_q),
            _ => (&self.lengths_k, problem.heads_kv),
        };
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let first = ((sequence * longest + token) * heads + head) * out.len();
        normal_run(self.key(name), first as u64, ELEMENT_SCALE, out);
    }

    /// The rows of Q, K, V and dO in a tensor of the problem; a paged K or V needs the page table.
    pub fn rows(&self, name: TensorName, page_table: Option<&Tensor>) -> Rows {
        let problem = self.problem;
        match name {
            TensorName::Q => Rows::of_queries(problem, problem.head_dim_qk),
            TensorName::DO => Rows::of_queries(problem, problem.head_dim_v),
            TensorName::K | TensorName::V => {
                let dim = if name == TensorName::K { problem.head_dim_qk } else { problem.head_dim_v };
                match problem.kv_layout {
                    KvLayout::Contiguous => Rows::contiguous(problem.layout, &self.lengths_k, problem.heads_kv, dim),
                    KvLayout::Paged { .. } => Rows::of_keys(problem, dim, page_table),
                }
            }
            _ => unreachable!("{name:?} has no rows"),
        }
    }

    /// Overwrites a tensor with this set's values. A paged K or V needs the page table. What belongs to no token
    /// (padding, unused pages) becomes NaN, so that reading it shows.
    pub fn fill(&self, name: TensorName, tensor: &mut Tensor, page_table: Option<&Tensor>) {
        match name {
            TensorName::Q | TensorName::K | TensorName::V | TensorName::DO => {
                let rows = self.rows(name, page_table);
                match tensor.element() {
                    ElementType::F32 => self.fill_rows::<f32>(name, &rows, tensor),
                    ElementType::F16 => self.fill_rows::<f16>(name, &rows, tensor),
                    ElementType::Bf16 => self.fill_rows::<bf16>(name, &rows, tensor),
                    ElementType::E4m3 => self.fill_rows::<e4m3>(name, &rows, tensor),
                    other => unreachable!("rows of {other:?}"),
                }
            }
            TensorName::PageTable => self.fill_page_table(tensor),
            other => match tensor.element() {
                ElementType::F32 => self.fill_values::<f32>(other, tensor),
                ElementType::F16 => self.fill_values::<f16>(other, tensor),
                ElementType::Bf16 => self.fill_values::<bf16>(other, tensor),
                ElementType::Bool => {
                    for (index, x) in tensor.as_mut_slice::<u8>().iter_mut().enumerate() {
                        let mut value = [0.0];
                        self.exact_values(other, index, &mut value);
                        *x = value[0] as u8;
                    }
                }
                element => unreachable!("{other:?} of {element:?}"),
            },
        }
    }

    /// Elements `first..first + out.len()` of a tensor without tokens (bias, E, F, state, normaliser, sinks), in the
    /// order of its shape, as its element type holds them; a boolean mask gives 0 and 1.
    pub fn values(&self, name: TensorName, first: usize, out: &mut [f32]) {
        self.exact_values(name, first, out);
        // Masks hold 0 and 1, which every dtype does; all other tensors without tokens are f32.
        if name == TensorName::Bias {
            round_all(self.problem.dtype, out);
        }
    }

    /// The values before rounding: exact in f32.
    fn exact_values(&self, name: TensorName, first: usize, out: &mut [f32]) {
        let key = self.key(name);
        match name {
            TensorName::ProjectionK | TensorName::ProjectionV => {
                // Entries of about 1/sqrt(n), so that the projected keys are as large as keys: the power of two keeps
                // the arithmetic exact.
                let n = self.lengths_k.iter().copied().max().unwrap_or(0).max(1) as u64;
                let scale = ELEMENT_SCALE * (0.5f32).powi(n.ilog2().div_ceil(2) as i32);
                normal_run(key, first as u64, scale, out);
            }
            // Positive, as a sum of non-negative features is.
            TensorName::NormaliserIn => out.iter_mut().enumerate().for_each(|(index, x)| {
                *x = (field_sum(hash64(key, (first + index) as u64)) + 1) as f32 * ELEMENT_SCALE;
            }),
            // Three of four pairs are visible.
            TensorName::Bias if self.problem.bias == Bias::Bool => out.iter_mut().enumerate().for_each(|(index, x)| {
                *x = f32::from(u8::from(!hash64(key, (first + index) as u64).is_multiple_of(4)));
            }),
            TensorName::Bias | TensorName::StateIn | TensorName::Sinks => {
                normal_run(key, first as u64, ELEMENT_SCALE, out);
            }
            other => unreachable!("{other:?} is computed or has tokens"),
        }
    }

    fn fill_values<T: Float>(&self, name: TensorName, tensor: &mut Tensor) {
        tensor.as_mut_slice::<T>().par_chunks_mut(4096).enumerate().for_each(|(chunk, out)| {
            let mut exact = [0f32; 4096];
            let exact = &mut exact[..out.len()];
            self.exact_values(name, chunk * 4096, exact);
            out.iter_mut().zip(exact.iter()).for_each(|(out, &x)| *out = T::from_f32(x));
        });
    }

    fn fill_rows<T: Float>(&self, name: TensorName, rows: &Rows, tensor: &mut Tensor) {
        let is_padded = tensor.len() != rows.lengths.iter().sum::<usize>() * rows.heads * rows.dim;
        if is_padded {
            tensor.poison();
        }
        let destination = SharedMut::new(tensor.as_mut_slice::<T>());
        for (sequence, &length) in rows.lengths.iter().enumerate() {
            (0..length).into_par_iter().with_min_len(16).for_each_init(
                || vec![0f32; rows.dim],
                |row, token| {
                    for head in 0..rows.heads {
                        self.exact_row(name, sequence, head, token, row);
                        // SAFETY: each (sequence, head, token) owns its `dim` elements.
                        let out = unsafe { destination.slice(rows.offset(sequence, head, token), rows.dim) };
                        out.iter_mut().zip(row.iter()).for_each(|(out, &x)| *out = T::from_f32(x));
                    }
                },
            );
        }
    }

    fn fill_page_table(&self, table: &mut Tensor) {
        let KvLayout::Paged { page_size } = self.problem.kv_layout else {
            unreachable!("only paged problems have a table")
        };
        let key = self.key(TensorName::PageTable);
        // Pages in the order of their hashes: a seeded permutation of the pool, the unused pages scattered among the used.
        let mut pool: Vec<i32> = (0..self.problem.page_pool_size() as i32).collect();
        pool.sort_by_key(|&page| (hash64(key, page as u64), page));
        let columns = table.dims()[1];
        let entries = table.as_mut_slice::<i32>();
        entries.fill(-1);
        let mut next = pool.into_iter();
        for (sequence, &length) in self.lengths_k.iter().enumerate() {
            for column in 0..length.div_ceil(page_size) {
                entries[sequence * columns + column] = next.next().expect("the pool holds every page in use");
            }
        }
    }

    /// All generated inputs of the problem in new memory.
    pub fn inputs(&self) -> TensorSet {
        let mut set = TensorSet::new();
        for name in input_names(self.problem) {
            let (element, dims) = tensor_shape(self.problem, name);
            set.insert(name, Tensor::zeros(element, &dims));
        }
        self.overwrite(&mut set, true);
        set
    }

    /// Overwrites the inputs in place with this set's values; static tensors only when asked.
    pub fn overwrite(&self, inputs: &mut TensorSet, statics_too: bool) {
        let mut names = input_names(self.problem);
        // The table finds the pages that K and V are written to.
        names.sort_by_key(|&name| name != TensorName::PageTable);
        let mut table = None;
        for name in names {
            if is_static(name) && !statics_too {
                if name == TensorName::PageTable {
                    table = inputs.find(name).cloned();
                }
                continue;
            }
            self.fill(name, inputs.get_mut(name), table.as_ref());
            if name == TensorName::PageTable {
                table = inputs.find(name).cloned();
            }
        }
    }

    /// The static inputs alone.
    pub fn static_inputs(&self) -> TensorSet {
        let mut set = TensorSet::new();
        for name in input_names(self.problem).into_iter().filter(|&name| is_static(name)) {
            let (element, dims) = tensor_shape(self.problem, name);
            let mut tensor = Tensor::zeros(element, &dims);
            self.fill(name, &mut tensor, None);
            set.insert(name, tensor);
        }
        set
    }
}

/// Elements `first..` of a stream, exact in f32.
fn normal_run(key: u64, first: u64, scale: f32, out: &mut [f32]) {
    for (index, x) in out.iter_mut().enumerate() {
        *x = (field_sum(hash64(key, first + index as u64)) - FIELD_SUM_MEAN) as f32 * scale;
    }
}

fn round_all(dtype: Dtype, values: &mut [f32]) {
    match dtype {
        Dtype::F32 => {}
        Dtype::F16 => values.iter_mut().for_each(|x| *x = f16::from_f32(*x).to_f32()),
        Dtype::Bf16 => values.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32()),
        Dtype::E4m3 => values.iter_mut().for_each(|x| *x = e4m3::from_f32(*x).to_f32()),
    }
}

/// A hash of the first elements of every tensor kind: workers publish it, so that two generators that differ are found
/// before any number is compared.
pub fn golden_hash() -> String {
    let mut problem = AttentionProblem::softmax(Phase::Backward, Dtype::F32, 2, (4, 2), (5, 7), 8);
    problem.causal = true;
    let spec = InputSpec::new(&problem, 42);
    let generator = Generator::new(&problem, &spec, 3);
    let mut digest = 0u64;
    for name in [TensorName::Q, TensorName::K, TensorName::V, TensorName::DO] {
        let (element, dims) = tensor_shape(&problem, name);
        let mut tensor = Tensor::zeros(element, &dims);
        generator.fill(name, &mut tensor, None);
        for x in tensor.as_slice::<f32>() {
            digest = hash64(digest, u64::from(x.to_bits()));
        }
    }
    format!("{digest:016x}")
}
