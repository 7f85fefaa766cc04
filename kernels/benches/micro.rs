//! Micro-kernels on every instruction set of this CPU: `cargo bench -p attn-kernels --bench micro [-- filter]`.
//!
//! Operands fit the second-level cache, but for the stream, which is read from memory. Whole kernels are compared with the
//! machine's ceilings by the `rates` example and by suites.

use std::hint::black_box;

use attn_kernels::cpu::simd::exp::{exp_in_place, softmax_weights_in_place};
use attn_kernels::cpu::simd::gemm::{Strided, gemm};
use attn_kernels::cpu::simd::pack::{PackedShape, pack_columns, pack_rows};
use attn_kernels::cpu::simd::stream::{self, StoredRows};
use attn_kernels::cpu::simd::{Isa, Simd, Task};
use attn_kernels::problem::Dtype;
use attn_kernels::tensor::{ElementType, Tensor};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

/// Elements between -1 and 1 that follow no pattern of the caches or the branch predictor.
fn values(count: usize) -> Tensor {
    let values: Vec<f32> = (0..count as u64)
        .map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / (1 << 23) as f32 - 1.0)
        .collect();
    Tensor::from_slice(&[count], &values)
}

/// The offsets of `count` rows.
fn offsets(count: usize, stride: usize) -> Vec<usize> {
    (0..count).map(|row| row * stride).collect()
}

/// Products as attention has them: (rows, keys, d) for Q K^T and (rows, d, keys) for P V.
fn products(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("gemm");
    for isa in Isa::available() {
        for (m, n, k) in [(96, 128, 64), (96, 64, 128), (96, 128, 128), (32, 128, 128), (4, 128, 128)] {
            let a = values(m * k);
            let shape = PackedShape::new(isa, k, n);
            let b = values(shape.len());
            let mut c = Tensor::zeros(ElementType::F32, &[m * n]);
            group.throughput(Throughput::Elements((2 * m * n * k) as u64));
            group.bench_function(format!("{}/{m}x{n}x{k}", isa.name()), |bencher| {
                let (a, b) = (Strided::rows(a.as_slice(), k), shape.view(b.as_slice()));
                bencher.iter(|| gemm(isa, (m, n, k), a, b, c.as_mut_slice(), n, false));
            });
        }
    }
}

/// FMAs of 10 chains, 20 a step, of which the first LOADS take an operand from the first-level cache: what loads cost the
/// FMA rate. A product in blocks of 6 x 4 vectors has 10 loads for 24 FMAs, 8.3 for 20.
struct FmaWithLoads<'a, const LOADS: usize> {
    steps: usize,
    /// 20 vectors.
    operands: &'a [f32],
}

impl<const LOADS: usize> Task for FmaWithLoads<'_, LOADS> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self) -> f32 {
        assert!(self.operands.len() >= 20 * S::LANES, "there are 20 vectors");
        let data = self.operands.as_ptr();
        // SAFETY: the vectors are there.
        let (x, y) = unsafe { (S::load(data), S::load(data.add(S::LANES))) };
        let mut chains = [S::splat(0.5); 10];
        for _ in 0..self.steps {
            // The compiler may not keep the vectors in registers from step to step.
            let data = black_box(data);
            for fma in 0..20 {
                // SAFETY: as above.
                let operand = if fma < LOADS { unsafe { S::load(data.add(fma * S::LANES)) } } else { x };
                chains[fma % 10] = S::fma(chains[fma % 10], operand, y);
            }
        }
        let mut total = 0.0;
        for chain in chains {
            total += S::sum(chain);
        }
        total
    }
}

fn fma_with_loads(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("fma");
    let operands = values(20 * 16);
    let operands = operands.as_slice::<f32>();
    let steps = 10_000;
    for isa in Isa::available() {
        group.throughput(Throughput::Elements((2 * 20 * steps * isa.lanes()) as u64));
        let name = |loads| format!("{}/{loads}_loads_a_20", isa.name());
        group.bench_function(name(0), |bencher| bencher.iter(|| isa.run(FmaWithLoads::<0> { steps, operands })));
        group.bench_function(name(4), |bencher| bencher.iter(|| isa.run(FmaWithLoads::<4> { steps, operands })));
        group.bench_function(name(8), |bencher| bencher.iter(|| isa.run(FmaWithLoads::<8> { steps, operands })));
        group.bench_function(name(16), |bencher| bencher.iter(|| isa.run(FmaWithLoads::<16> { steps, operands })));
    }
}

fn exponentials(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("exp");
    for isa in Isa::available() {
        let inputs = values(4096);
        let mut outputs = inputs.clone();
        group.throughput(Throughput::Elements(4096));
        for (name, function) in
            [("exp", exp_in_place as fn(Isa, &mut [f32])), ("softmax_weight", softmax_weights_in_place)]
        {
            group.bench_function(format!("{}/{name}", isa.name()), |bencher| {
                bencher.iter(|| {
                    outputs.as_mut_slice::<f32>().copy_from_slice(inputs.as_slice());
                    function(isa, outputs.as_mut_slice());
                });
            });
        }
    }
}

/// 128 keys of 8 heads of 128 elements: one head's block of K and of V.
fn packing(criterion: &mut Criterion) {
    let (rows, dim) = (128, 128);
    let mut group = criterion.benchmark_group("pack");
    group.throughput(Throughput::Elements((rows * dim) as u64));
    for isa in Isa::available() {
        for dtype in Dtype::ALL {
            let tensor = Tensor::zeros(dtype.into(), &[rows * 8 * dim]);
            let offsets = offsets(rows, 8 * dim);
            let mut packed = Tensor::zeros(ElementType::F32, &[rows * dim]);
            group.bench_function(format!("{}/columns/{}", isa.name(), dtype.name()), |bencher| {
                bencher.iter(|| pack_columns(isa, &tensor, &offsets, dim, packed.as_mut_slice()));
            });
            group.bench_function(format!("{}/rows/{}", isa.name(), dtype.name()), |bencher| {
                bencher.iter(|| pack_rows(isa, &tensor, &offsets, dim, rows, packed.as_mut_slice()));
            });
        }
    }
}

/// Scores and weighted sums of groups of 1 and 4 query heads over 8 KV heads, from memory.
fn decode_stream(criterion: &mut Criterion) {
    let (tokens, heads, dim, block) = (16384, 8, 128, 64);
    let mut group = criterion.benchmark_group("stream");
    group.sample_size(20);
    for isa in Isa::available() {
        for dtype in Dtype::ALL {
            let tensor = Tensor::zeros(dtype.into(), &[tokens * heads * dim]);
            let offsets = offsets(tokens, heads * dim);
            group.throughput(Throughput::Bytes(tensor.bytes().len() as u64));
            for rows in [1, 4] {
                let queries = values(heads * rows * dim);
                let mut scores = values(heads * rows * block);
                let mut out = values(heads * rows * dim);
                let stored = |offsets| StoredRows { tensor: &tensor, offsets, heads, head_stride: dim, dim };
                let name = |pass| format!("{}/{pass}/{}/group{rows}", isa.name(), dtype.name());
                group.bench_function(name("scores"), |bencher| {
                    bencher.iter(|| {
                        for offsets in offsets.chunks(block) {
                            let out = scores.as_mut_slice();
                            stream::scores(isa, queries.as_slice(), stored(offsets), None, out, block);
                        }
                    });
                });
                group.bench_function(name("values"), |bencher| {
                    bencher.iter(|| {
                        for offsets in offsets.chunks(block) {
                            let weights = black_box(scores.as_slice());
                            stream::accumulate(isa, weights, block, stored(offsets), None, out.as_mut_slice());
                        }
                    });
                });
            }
        }
    }
}

criterion_group! {
    name = micro;
    config = Criterion::default()
        .warm_up_time(std::time::Duration::from_millis(200))
        .measurement_time(std::time::Duration::from_millis(500));
    targets = fma_with_loads, products, exponentials, packing, decode_stream
}
criterion_main!(micro);
