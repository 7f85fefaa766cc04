//! Tensors in CPU memory, and how a problem's (sequence, head, token) becomes an offset in one.
//!
//! A [`Tensor`] is a plain contiguous array. What its dimensions mean is said by [`Rows`], which is made from the
//! problem: kernels read rows through it and therefore never see a memory layout.

use std::alloc::{Layout as AllocLayout, alloc, dealloc, handle_alloc_error};
use std::fmt;

use half::{bf16, f16};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::e4m3::e4m3;
use crate::problem::{AttentionProblem, Dtype, KvLayout, Layout};

/// The type of a tensor's elements: a [`Dtype`], or one of the few types that tables and masks need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ElementType {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// bfloat16.
    Bf16,
    /// [`e4m3`].
    E4m3,
    /// Page ids.
    I32,
    /// Masks: one byte, 0 or 1.
    Bool,
}

impl ElementType {
    /// Bytes an element.
    pub const fn bytes(self) -> usize {
        match self {
            ElementType::F32 | ElementType::I32 => 4,
            ElementType::F16 | ElementType::Bf16 => 2,
            ElementType::E4m3 | ElementType::Bool => 1,
        }
    }
}

impl From<Dtype> for ElementType {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => ElementType::F32,
            Dtype::F16 => ElementType::F16,
            Dtype::Bf16 => ElementType::Bf16,
            Dtype::E4m3 => ElementType::E4m3,
        }
    }
}

/// A Rust type that tensors can hold.
pub trait Element: Copy + Send + Sync + 'static {
    /// What it is called.
    const TYPE: ElementType;
}

/// A floating-point element: stored as itself, computed with in f32.
pub trait Float: Element {
    /// Widens exactly.
    fn to_f32(self) -> f32;
    /// Rounds to nearest, ties to even.
    fn from_f32(value: f32) -> Self;
}

macro_rules! element {
    ($rust:ty, $variant:ident) => {
        impl Element for $rust {
            const TYPE: ElementType = ElementType::$variant;
        }
    };
}
element!(f32, F32);
element!(f16, F16);
element!(bf16, Bf16);
element!(e4m3, E4m3);
element!(i32, I32);
element!(u8, Bool);

impl Float for f32 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        value
    }
}
impl Float for f16 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }
    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        f16::from_f32(value)
    }
}
impl Float for bf16 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        bf16::from_f32(value)
    }
}

impl Float for e4m3 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        e4m3::to_f32(self)
    }
    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        e4m3::from_f32(value)
    }
}

/// What a tensor is in a problem. The order is the order in which a worker makes, hashes and writes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TensorName {
    /// Queries.
    Q,
    /// Keys; for absorbed MLA the latent rows, which V aliases.
    K,
    /// Values.
    V,
    /// Linformer's E: (seqlen_kv, rank) f32, static.
    ProjectionK,
    /// Linformer's F: (seqlen_kv, rank) f32, static.
    ProjectionV,
    /// Linear decode: (batch, heads_kv, d_qk, d_v) f32 before the call.
    StateIn,
    /// Linear decode, normalised: (batch, heads_kv, d_qk) f32 before the call.
    NormaliserIn,
    /// Paged KV: (batch, pages a sequence) i32, static.
    PageTable,
    /// Additive bias or boolean mask: 4-D, dimensions of size 1 broadcast over (batch, heads_q, seqlen_q, seqlen_kv).
    Bias,
    /// (heads_q) f32 logits.
    Sinks,
    /// Output; an input of backward.
    O,
    /// (batch, heads_q, longest seqlen_q) f32 natural-log-sum-exp of scaled, soft-capped, biased scores; an input of
    /// backward.
    Lse,
    /// Gradient of O: an input of backward.
    DO,
    /// Gradient of Q.
    DQ,
    /// Gradient of K.
    DK,
    /// Gradient of V.
    DV,
    /// Linear decode: the state after the call.
    StateOut,
    /// Linear decode: the normaliser after the call.
    NormaliserOut,
}

/// Memory that starts at a cache line and is never initialised to garbage.
struct Buffer {
    pointer: *mut u8,
    bytes: usize,
}

const ALIGNMENT: usize = 64;
/// Pages that one entry of the processor's address cache maps, where the system gives them.
const HUGE_PAGE_BYTES: usize = 2 << 20;
/// Memory from which on huge pages are worth what rounding up to them wastes.
const HUGE_FROM_BYTES: usize = 4 * HUGE_PAGE_BYTES;

fn layout_of(bytes: usize) -> AllocLayout {
    let alignment = if bytes >= HUGE_FROM_BYTES { HUGE_PAGE_BYTES } else { ALIGNMENT };
    AllocLayout::from_size_align(bytes, alignment).expect("a tensor's size fits isize")
}

/// Rows that are read with large strides, and caches of gigabytes, would else wait for page tables.
fn ask_for_huge_pages(pointer: *mut u8, layout: AllocLayout) {
    #[cfg(target_os = "linux")]
    if layout.align() == HUGE_PAGE_BYTES {
        // SAFETY: the range is a fresh allocation, and advice changes no contents. A refusal changes nothing.
        unsafe { libc::madvise(pointer.cast(), layout.size(), libc::MADV_HUGEPAGE) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (pointer, layout);
}

impl Buffer {
    fn zeroed(bytes: usize) -> Self {
        if bytes == 0 {
            return Buffer { pointer: std::ptr::without_provenance_mut(ALIGNMENT), bytes };
        }
        let layout = layout_of(bytes);
        // SAFETY: the layout's size is not zero.
        let pointer = unsafe { alloc(layout) };
        if pointer.is_null() {
            handle_alloc_error(layout);
        }
        ask_for_huge_pages(pointer, layout);
        // SAFETY: these bytes have just been allocated.
        unsafe { pointer.write_bytes(0, bytes) };
        Buffer { pointer, bytes }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.bytes > 0 {
            // SAFETY: the pointer came from `alloc` with this layout.
            unsafe { dealloc(self.pointer, layout_of(self.bytes)) };
        }
    }
}

// SAFETY: a Buffer owns its memory alone, as a Box<[u8]> does.
unsafe impl Send for Buffer {}
// SAFETY: shared access only reads.
unsafe impl Sync for Buffer {}

/// A contiguous n-dimensional array, last dimension fastest, aligned to 64 bytes.
pub struct Tensor {
    element: ElementType,
    dims: Vec<usize>,
    buffer: Buffer,
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({:?} {:?})", self.element, self.dims)
    }
}

impl Clone for Tensor {
    fn clone(&self) -> Self {
        let mut copy = Tensor::zeros(self.element, &self.dims);
        copy.bytes_mut().copy_from_slice(self.bytes());
        copy
    }
}

impl Tensor {
    /// A tensor of zeros. Panics where the size overflows: callers check [`Tensor::size_bytes`] of untrusted shapes.
    pub fn zeros(element: ElementType, dims: &[usize]) -> Self {
        let bytes = Tensor::size_bytes(element, dims).expect("a tensor's size fits usize");
        Tensor { element, dims: dims.to_vec(), buffer: Buffer::zeroed(bytes) }
    }

    /// A vector of f32 zeros, as kernels keep their scratch in.
    pub(crate) fn f32s(elements: usize) -> Self {
        Tensor::zeros(ElementType::F32, &[elements])
    }

    /// Bytes of a tensor of this shape, or None where they overflow.
    pub fn size_bytes(element: ElementType, dims: &[usize]) -> Option<usize> {
        dims.iter()
            .try_fold(element.bytes(), |bytes, &dim| bytes.checked_mul(dim))
            .filter(|&bytes| bytes <= isize::MAX as usize)
    }

    /// A tensor with these elements. Panics where the count differs from the shape's.
    pub fn from_slice<T: Element>(dims: &[usize], elements: &[T]) -> Self {
        let mut tensor = Tensor::zeros(T::TYPE, dims);
        tensor.as_mut_slice::<T>().copy_from_slice(elements);
        tensor
    }

    /// The type of its elements.
    pub fn element(&self) -> ElementType {
        self.element
    }

    /// Its shape.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.buffer.bytes / self.element.bytes()
    }

    /// Whether it has no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its memory.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the buffer holds this many initialised bytes.
        unsafe { std::slice::from_raw_parts(self.buffer.pointer, self.buffer.bytes) }
    }

    /// Its memory, to write.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and the borrow is unique.
        unsafe { std::slice::from_raw_parts_mut(self.buffer.pointer, self.buffer.bytes) }
    }

    /// Its elements. Panics where T is not their type.
    pub fn as_slice<T: Element>(&self) -> &[T] {
        assert_eq!(T::TYPE, self.element, "a tensor is read as what it holds");
        // SAFETY: the buffer is aligned to 64 bytes and every bit pattern of these types is valid.
        unsafe { std::slice::from_raw_parts(self.buffer.pointer.cast::<T>(), self.len()) }
    }

    /// Its elements, to write. Panics where T is not their type.
    pub fn as_mut_slice<T: Element>(&mut self) -> &mut [T] {
        assert_eq!(T::TYPE, self.element, "a tensor is written as what it holds");
        // SAFETY: as above, and the borrow is unique.
        unsafe { std::slice::from_raw_parts_mut(self.buffer.pointer.cast::<T>(), self.len()) }
    }

    /// Element `index` widened to f64 (booleans are 0 and 1).
    pub fn get_f64(&self, index: usize) -> f64 {
        match self.element {
            ElementType::F32 => f64::from(self.as_slice::<f32>()[index]),
            ElementType::F16 => self.as_slice::<f16>()[index].to_f64(),
            ElementType::Bf16 => self.as_slice::<bf16>()[index].to_f64(),
            ElementType::E4m3 => self.as_slice::<e4m3>()[index].to_f64(),
            ElementType::I32 => f64::from(self.as_slice::<i32>()[index]),
            ElementType::Bool => f64::from(self.as_slice::<u8>()[index]),
        }
    }

    /// Fills a float tensor with NaN, so that an element that no kernel wrote cannot pass for a result.
    pub fn poison(&mut self) {
        match self.element {
            ElementType::F32 => self.as_mut_slice::<f32>().fill(f32::NAN),
            ElementType::F16 => self.as_mut_slice::<f16>().fill(f16::NAN),
            ElementType::Bf16 => self.as_mut_slice::<bf16>().fill(bf16::NAN),
            ElementType::E4m3 => self.as_mut_slice::<e4m3>().fill(e4m3::NAN),
            ElementType::I32 => self.as_mut_slice::<i32>().fill(i32::MIN),
            ElementType::Bool => self.as_mut_slice::<u8>().fill(1),
        }
    }
}

/// The tensors of one call, by name.
#[derive(Debug, Default, Clone)]
pub struct TensorSet {
    tensors: Vec<(TensorName, Tensor)>,
}

impl TensorSet {
    /// No tensors.
    pub fn new() -> Self {
        TensorSet::default()
    }

    /// Adds or replaces a tensor.
    pub fn insert(&mut self, name: TensorName, tensor: Tensor) {
        match self.tensors.iter_mut().find(|(existing, _)| *existing == name) {
            Some(entry) => entry.1 = tensor,
            None => {
                self.tensors.push((name, tensor));
                self.tensors.sort_by_key(|(name, _)| *name);
            }
        }
    }

    /// The tensor of that name, if the problem has one.
    pub fn find(&self, name: TensorName) -> Option<&Tensor> {
        self.tensors.iter().find(|(existing, _)| *existing == name).map(|(_, tensor)| tensor)
    }

    /// Whether there is a tensor of that name.
    pub fn contains(&self, name: TensorName) -> bool {
        self.find(name).is_some()
    }

    /// The tensor of that name. Panics where it is missing: which tensors exist follows from the problem.
    pub fn get(&self, name: TensorName) -> &Tensor {
        self.find(name).unwrap_or_else(|| panic!("the problem has a tensor {name:?}"))
    }

    /// The tensor of that name, to write. Panics where it is missing.
    pub fn get_mut(&mut self, name: TensorName) -> &mut Tensor {
        self.tensors
            .iter_mut()
            .find(|(existing, _)| *existing == name)
            .map(|(_, tensor)| tensor)
            .unwrap_or_else(|| panic!("the problem has a tensor {name:?}"))
    }

    /// Takes a tensor out.
    pub fn remove(&mut self, name: TensorName) -> Option<Tensor> {
        let position = self.tensors.iter().position(|(existing, _)| *existing == name)?;
        Some(self.tensors.remove(position).1)
    }

    /// All tensors in the order of [`TensorName`].
    pub fn iter(&self) -> impl Iterator<Item = (TensorName, &Tensor)> {
        self.tensors.iter().map(|(name, tensor)| (*name, tensor))
    }

    /// All tensors, to write.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (TensorName, &mut Tensor)> {
        self.tensors.iter_mut().map(|(name, tensor)| (*name, tensor))
    }

    /// Bytes of all tensors.
    pub fn total_bytes(&self) -> usize {
        self.iter().map(|(_, tensor)| tensor.bytes().len()).sum()
    }
}

/// Where the rows of a Q-like or K-like tensor are: `offset(b, h, s)` is the index of the first of `dim` elements that
/// belong to token s of head h of sequence b.
#[derive(Clone, Debug)]
pub struct Rows {
    /// Heads.
    pub heads: usize,
    /// Elements a row.
    pub dim: usize,
    /// Tokens of each sequence.
    pub lengths: Vec<usize>,
    /// Shape of the tensor.
    pub dims: Vec<usize>,
    sequence_base: Vec<usize>,
    head_stride: usize,
    token_stride: usize,
    pages: Option<Pages>,
}

#[derive(Clone, Debug)]
struct Pages {
    page_size: usize,
    /// (batch, pages a sequence), flattened.
    table: Vec<i32>,
    pages_per_sequence: usize,
}

impl Rows {
    /// Rows in a contiguous layout.
    pub fn contiguous(layout: Layout, lengths: &[usize], heads: usize, dim: usize) -> Rows {
        let batch = lengths.len();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let (dims, head_stride, token_stride) = match layout {
            Layout::Bshd => (vec![batch, longest, heads, dim], dim, heads * dim),
            Layout::Bhsd => (vec![batch, heads, longest, dim], longest * dim, dim),
            Layout::Thd => (vec![lengths.iter().sum(), heads, dim], dim, heads * dim),
        };
        let sequence_base = match layout {
            Layout::Bshd | Layout::Bhsd => (0..batch).map(|b| b * longest * heads * dim).collect(),
            Layout::Thd => lengths
                .iter()
                .scan(0, |start, &length| {
                    let base = *start * heads * dim;
                    *start += length;
                    Some(base)
                })
                .collect(),
        };
        Rows { heads, dim, lengths: lengths.to_vec(), dims, sequence_base, head_stride, token_stride, pages: None }
    }

    /// Rows in pages of a pool of `pool_pages` pages, found through `table` of shape (batch, pages a sequence).
    pub fn paged(
        page_size: usize,
        pool_pages: usize,
        table: &[i32],
        lengths: &[usize],
        heads: usize,
        dim: usize,
    ) -> Rows {
        let pages_per_sequence = table.len().checked_div(lengths.len()).unwrap_or(0);
        Rows {
            heads,
            dim,
            lengths: lengths.to_vec(),
            dims: vec![pool_pages, page_size, heads, dim],
            sequence_base: vec![0; lengths.len()],
            head_stride: dim,
            token_stride: heads * dim,
            pages: Some(Pages { page_size, table: table.to_vec(), pages_per_sequence }),
        }
    }

    /// Rows of Q, O, dO and dQ; `dim` is d_qk or d_v.
    pub fn of_queries(problem: &AttentionProblem, dim: usize) -> Rows {
        Rows::contiguous(problem.layout, &problem.lengths_q(), problem.heads_q, dim)
    }

    /// Rows of K, V, dK and dV; `dim` is d_qk or d_v. A paged problem needs its page table.
    pub fn of_keys(problem: &AttentionProblem, dim: usize, page_table: Option<&Tensor>) -> Rows {
        let lengths = problem.lengths_kv();
        match problem.kv_layout {
            KvLayout::Contiguous => Rows::contiguous(problem.layout, &lengths, problem.heads_kv, dim),
            KvLayout::Paged { page_size } => {
                let table = page_table.expect("a paged problem has a page table");
                let pool = problem.page_pool_size();
                Rows::paged(page_size, pool, table.as_slice::<i32>(), &lengths, problem.heads_kv, dim)
            }
        }
    }

    /// Index of the first element of a row.
    #[inline(always)]
    pub fn offset(&self, sequence: usize, head: usize, token: usize) -> usize {
        let token = match &self.pages {
            None => token,
            Some(pages) => {
                let page = pages.table[sequence * pages.pages_per_sequence + token / pages.page_size];
                page as usize * pages.page_size + token % pages.page_size
            }
        };
        self.sequence_base[sequence] + head * self.head_stride + token * self.token_stride
    }

    /// Elements between the rows of neighbouring tokens, where that is one number (not across pages).
    pub fn token_stride(&self) -> usize {
        self.token_stride
    }

    /// Elements between the rows of neighbouring heads of a token.
    pub fn head_stride(&self) -> usize {
        self.head_stride
    }

    /// Tokens a page, where paged.
    pub fn page_size(&self) -> Option<usize> {
        self.pages.as_ref().map(|pages| pages.page_size)
    }
}
