//! A call allocates nothing: whatever it needs was allocated by its plan, so that what is timed is the kernel.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use attn_kernels::cpu::KERNELS;
use attn_kernels::input::{self, Generator, InputSpec};
use attn_kernels::kernel::PlanContext;
use attn_kernels::problem::{AttentionProblem, Phase};
use attn_kernels::tensor::{Tensor, TensorName};

/// The system's allocator, counting.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const PROBLEMS: &[&str] = &[
    "softmax/prefill/full+causal/f32/b2/h4:2/q200/k200/d32",
    "softmax/prefill/full/bf16/b1/h2:2/q65/k130/d64/softcap=10",
    "softmax/prefill/full/f32/b1/h2:1/q50/k50/d16/bias=additive",
    "softmax/prefill/window:20,3/f16/b1/h4:1/q300/k300/d17",
    "softmax/prefill/bigbird:block=16,global=2,random=3,window=3/f32/b1/h2:2/q300/k300/d32",
    "softmax/prefill/longformer:8,3,dilation=2/f32/b1/h2:2/q300/k300/d32",
    "softmax/prefill/strided:16+causal/f32/b1/h2:1/q300/k300/d32",
    "softmax/prefill/fixed:16,2+causal/f32/b1/h2:1/q300/k300/d32",
    "softmax/backward/full+causal/f32/b1/h4:2/q300/k300/d32",
    "softmax/append/full+causal/f32/b1/h8:2/q20/k400/d32",
    "softmax/decode/full/f16/b3/h8:2/q1/k700/d64",
    "softmax/decode/full/f32/b1/h8:1/q1/k700/d64/page=16",
    "linear/prefill/full+causal/f32/b1/h4:2/q200/k200/d32",
    "linear/prefill/full/bf16/b1/h4:4/q200/k200/d32",
    "linear/decode/full+causal/f32/b2/h4:4/q1/k100/d32",
    "linformer:rank=40/prefill/full/f32/b1/h4:2/q200/k200/d32",
    "mla/prefill/full+causal/f32/b1/h2:2/q200/k200/d192:128",
    "mla/decode/full/f32/b2/h16:1/q1/k300/d576:512",
];

#[test]
fn calls_allocate_nothing() {
    for id in PROBLEMS {
        let problem: AttentionProblem = id.parse().expect("a problem's id");
        let mut inputs = Generator::new(&problem, &InputSpec::new(&problem, 3), 0).inputs();
        if problem.phase == Phase::Backward {
            for name in [TensorName::O, TensorName::Lse] {
                let (element, dims) = input::tensor_shape(&problem, name);
                inputs.insert(name, Tensor::zeros(element, &dims));
            }
        }
        let mut kernels = 0;
        for kernel in KERNELS.iter().filter(|kernel| kernel.supports(&problem).is_ok()) {
            for threads in [1, 2] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
                let context =
                    PlanContext { problem: &problem, static_tensors: &inputs, threads, available_bytes: 1 << 30 };
                let mut plan = kernel.plan(&context).expect("a plan");
                let mut outputs = input::outputs(&problem);
                // The pool allocates now and then, when a thread first takes work of another: the fewest of some calls is
                // what the kernel itself does.
                let allocations = pool.install(|| {
                    let mut one_call = || {
                        let before = ALLOCATIONS.load(Ordering::Relaxed);
                        plan.run(&inputs, &mut outputs);
                        ALLOCATIONS.load(Ordering::Relaxed) - before
                    };
                    (0..10).map(|_| one_call()).min().expect("there were calls")
                });
                assert_eq!(allocations, 0, "{} on {threads} threads: {id}", kernel.name());
            }
            kernels += 1;
        }
        assert!(kernels > 0, "no kernel computes {id}");
    }
}
