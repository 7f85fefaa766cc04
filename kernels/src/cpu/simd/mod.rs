//! Vector micro-kernels that the CPU kernels share, for the instruction set that the machine has.
//!
//! An [`Isa`] is a proof that the running CPU has an instruction set; [`Isa::best`] detects it. Everything here takes one
//! and is safe to call with it:
//!
//! * [`gemm::gemm`]: C (+)= A B for a packed B, register-blocked.
//! * [`pack`]: K^T and V as packed B, widened to f32; rows of any dtype as f32.
//! * [`exp`]: vector exp and tanh with their error bounds.
//! * [`stream`]: scores and weighted sums of a few queries over keys read once from memory.
//!
//! A new loop is a [`Task`]: its body is generic over [`Simd`], and [`Isa::run`] compiles it once an instruction set.

pub mod exp;
pub mod gemm;
mod isa;
pub mod pack;
pub mod stream;
mod vector;

pub use isa::{Isa, MAX_ISA_VARIABLE, Task};
pub(crate) use vector::MAX_LANES;
pub use vector::{Simd, Stored};
