//! The structures of `kernels/cuda/geometry.cuh`, filled in from a problem.

use super::plan::{Argument, CudaPlan};
use crate::input::key_lengths;
use crate::problem::{AttentionProblem, Bias, KvLayout, Pattern};
use crate::tensor::Rows;

/// A distance that no sequence reaches, small enough to be added to a position.
const UNBOUNDED: i32 = 1 << 28;

/// Bytes of a C structure in the making.
#[derive(Default)]
pub(super) struct Bytes(Vec<u8>);

impl Bytes {
    pub(super) fn i64(&mut self, value: usize) -> &mut Self {
        self.0.extend((value as i64).to_le_bytes());
        self
    }
    pub(super) fn i32(&mut self, value: i32) -> &mut Self {
        self.0.extend(value.to_le_bytes());
        self
    }
    pub(super) fn f32(&mut self, value: f32) -> &mut Self {
        self.0.extend(value.to_le_bytes());
        self
    }
    pub(super) fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }
}

/// Where one tensor's rows lie: elements between sequences, heads and tokens, and where each sequence begins.
#[derive(Clone, Debug)]
pub(super) struct TensorRows {
    pub(super) strides: [usize; 3],
    pub(super) starts: Vec<usize>,
}

impl TensorRows {
    fn of(rows: &Rows) -> TensorRows {
        let starts: Vec<usize> = (0..rows.lengths.len()).map(|sequence| rows.offset(sequence, 0, 0)).collect();
        let sequence = starts.get(1).copied().unwrap_or(0);
        TensorRows { strides: [sequence, rows.head_stride(), rows.token_stride()], starts }
    }

    /// Rows in pages: found through the table, from the start of the pool.
    fn paged(batch: usize, heads: usize, dim: usize) -> TensorRows {
        TensorRows { strides: [0, dim, heads * dim], starts: vec![0; batch] }
    }
}

/// Everything that `geometry.cuh` tells a kernel.
#[derive(Clone, Debug)]
pub(super) struct Geometry {
    pub(super) q: TensorRows,
    pub(super) k: TensorRows,
    pub(super) v: TensorRows,
    pub(super) o: TensorRows,
    pub(super) lengths_q: Vec<usize>,
    pub(super) lengths_kv: Vec<usize>,
    pub(super) query_offsets: Vec<i64>,
    pub(super) left: i32,
    pub(super) right: i32,
    pub(super) heads_q: usize,
    pub(super) heads_kv: usize,
    pub(super) dim_qk: usize,
    pub(super) dim_v: usize,
    pub(super) scale: f32,
    pub(super) softcap: f32,
    pub(super) page_size: usize,
    pub(super) bias: Bias,
}

impl Geometry {
    /// The geometry of a problem. Of a pattern, only full and window are in it (with `causal`): others bring tables.
    pub(super) fn new(problem: &AttentionProblem) -> Geometry {
        let (lengths_q, lengths_kv) = (problem.lengths_q(), key_lengths(problem));
        let offset = |(&len_q, &len_kv): (&usize, &usize)| problem.query_offset(len_q, len_kv);
        let bound = |side: usize| side.min(UNBOUNDED as usize) as i32;
        let (left, right) = match problem.pattern {
            Pattern::Window { left, right } => (bound(left), bound(right)),
            _ => (UNBOUNDED, UNBOUNDED),
        };
        let keys = |dim| match problem.kv_layout {
            KvLayout::Contiguous => {
                TensorRows::of(&Rows::contiguous(problem.layout, &lengths_kv, problem.heads_kv, dim))
            }
            KvLayout::Paged { .. } => TensorRows::paged(problem.batch, problem.heads_kv, dim),
        };
        let k = keys(problem.head_dim_qk);
        Geometry {
            q: TensorRows::of(&Rows::of_queries(problem, problem.head_dim_qk)),
            // Absorbed MLA has one latent row a token: its head is the value.
            v: if problem.is_absorbed_mla() { k.clone() } else { keys(problem.head_dim_v) },
            k,
            o: TensorRows::of(&Rows::of_queries(problem, problem.head_dim_v)),
            query_offsets: lengths_q.iter().zip(&lengths_kv).map(offset).collect(),
            lengths_q,
            lengths_kv,
            left,
            right: if problem.causal { right.min(0) } else { right },
            heads_q: problem.heads_q,
            heads_kv: problem.heads_kv,
            dim_qk: problem.head_dim_qk,
            dim_v: problem.head_dim_v,
            scale: problem.effective_scale() as f32,
            softcap: problem.softcap.unwrap_or(0.0) as f32,
            page_size: match problem.kv_layout {
                KvLayout::Contiguous => 0,
                KvLayout::Paged { page_size } => page_size,
            },
            bias: problem.bias,
        }
    }

    /// Queries of the longest sequence.
    pub(super) fn longest_q(&self) -> usize {
        self.lengths_q.iter().copied().max().unwrap_or(0)
    }

    /// Keys of the longest sequence.
    pub(super) fn longest_kv(&self) -> usize {
        self.lengths_kv.iter().copied().max().unwrap_or(0)
    }

    /// Sequences.
    pub(super) fn batch(&self) -> usize {
        self.lengths_q.len()
    }

    /// `Geometry` by value.
    pub(super) fn argument(&self) -> Argument {
        let mut bytes = Bytes::default();
        for rows in [&self.q, &self.k, &self.v, &self.o] {
            rows.strides.iter().for_each(|&stride| {
                bytes.i64(stride);
            });
        }
        let pages = if self.page_size == 0 { 0 } else { self.longest_kv().div_ceil(self.page_size) };
        bytes
            .i32(self.longest_q() as i32)
            .i32(self.longest_kv() as i32)
            .i32(self.query_offsets.first().copied().unwrap_or(0) as i32)
            .i32(self.left)
            .i32(self.right)
            .i32(self.batch() as i32)
            .i32(self.heads_q as i32)
            .i32(self.heads_kv as i32)
            .i32(self.dim_qk as i32)
            .i32(self.dim_v as i32)
            .f32(self.scale)
            .f32(self.softcap)
            .i32(self.page_size as i32)
            .i32(pages as i32)
            .i32(Bias::ALL.iter().position(|&bias| bias == self.bias).expect("every bias is listed") as i32)
            .i32(0);
        Argument::Bytes(bytes.take())
    }

    /// Whether all sequences have the same lengths.
    pub(super) fn is_uniform(&self) -> bool {
        let same = |lengths: &[usize]| lengths.windows(2).all(|pair| pair[0] == pair[1]);
        same(&self.lengths_q) && same(&self.lengths_kv)
    }

    /// A table of `Sequence`, or null where all sequences have the same lengths.
    pub(super) fn sequences(&self, plan: &mut CudaPlan) -> Argument {
        if self.is_uniform() {
            return Argument::Null;
        }
        let mut bytes = Bytes::default();
        for sequence in 0..self.batch() {
            for rows in [&self.q, &self.k, &self.v, &self.o] {
                bytes.i64(rows.starts[sequence]);
            }
            bytes
                .i32(self.lengths_q[sequence] as i32)
                .i32(self.lengths_kv[sequence] as i32)
                .i32(self.query_offsets[sequence] as i32)
                .i32(0);
        }
        plan.table(bytes.take())
    }
}
