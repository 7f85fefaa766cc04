use attn_kernels::cpu::simd::gemm::{Panels, Strided, gemm};
use attn_kernels::cpu::simd::pack::PackedShape;
use attn_kernels::cpu::simd::{Isa, Simd, Task};
use attn_kernels::tensor::{ElementType, Tensor};
use std::hint::black_box;
fn cpu() -> f64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut t) };
    t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9
}
fn best(n: usize, mut f: impl FnMut()) -> f64 {
    (0..n)
        .map(|_| {
            let s = cpu();
            f();
            cpu() - s
        })
        .fold(f64::INFINITY, f64::min)
}
struct Fma<'a> {
    steps: usize,
    o: &'a [f32],
}
impl Task for Fma<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<S: Simd>(self) -> f32 {
        let mut ops = [S::splat(0.0); 8];
        for (a, b) in ops.iter_mut().zip(self.o.chunks_exact(S::LANES)) {
            *a = unsafe { S::load(b.as_ptr()) };
        }
        let mut c = [S::splat(0.5); 12];
        for _ in 0..self.steps / 4 {
            for s in 0..4 {
                for k in 0..12 {
                    c[k] = S::fma(c[k], ops[(k + s) % 4], ops[4 + (k + s) % 4]);
                }
            }
        }
        let mut t = 0.0;
        for x in c {
            t += S::sum(x);
        }
        t
    }
}
fn values(count: usize) -> Tensor {
    let v: Vec<f32> = (0..count as u64)
        .map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / (1 << 23) as f32 - 1.0)
        .collect();
    Tensor::from_slice(&[count], &v)
}

fn chain() -> f64 {
    let s = std::time::Instant::now();
    let mut x = black_box(3u64);
    for _ in 0..5000 {
        x = x.wrapping_mul(x | 1);
        x = x.wrapping_mul(x | 1);
        x = x.wrapping_mul(x | 1);
        x = x.wrapping_mul(x | 1);
    }
    black_box(x);
    20000.0 * 4.0 / s.elapsed().as_secs_f64() / 1e9
}
fn main() {
    let o = values(8 * 16);
    for isa in Isa::available().into_iter().skip(1) {
        let fma = || {
            let steps = 400_000;
            (2 * 12 * steps * isa.lanes()) as f64
                / best(9, || {
                    black_box(isa.run(Fma { steps, o: black_box(o.as_slice()) }));
                })
                / 1e9
        };
        let mut f = [0.0f64; 3];
        for _ in 0..200 {
            f[0] = f[0].max(chain());
        }
        for _ in 0..100 {
            black_box(isa.run(Fma { steps: 20000, o: black_box(o.as_slice()) }));
            f[1] = f[1].max(chain());
        }
        for (m, n, k) in [(96, 128, 64), (96, 64, 128), (24, 64, 128)] {
            let a = values(m * k);
            let shape = PackedShape::new(isa, k, n);
            let b = values(shape.len());
            let mut c = Tensor::zeros(ElementType::F32, &[m * n]);
            let f0 = fma();
            let reps = 20_000_000 / (2 * m * n * k) + 1;
            let bb = shape.view(b.as_slice());
            let mut go = || {
                for _ in 0..reps {
                    gemm(isa, (m, n, k), Strided::rows(a.as_slice(), k), bb, c.as_mut_slice(), n, false)
                }
            };
            let t = best(99, &mut go) / reps as f64;
            let r = (2 * m * n * k) as f64 / t / 1e9;
            let f1 = fma();
            for _ in 0..200 {
                go();
                f[2] = f[2].max(chain());
            }
            println!(
                "{} {m}x{n}x{k}: {r:.0} GFLOP/s, {:.0} % of {:.0}; chain {f:.2?}",
                isa.name(),
                100.0 * r / f0.max(f1),
                f0.max(f1)
            );
        }
    }
}
