//! What attention computes and how: problems, their exact work, seeded inputs, an f64 oracle, and kernels.
//!
//! This crate knows no suite, no statistics, no git and no report: those live in `bench_harness`, which depends on this
//! crate and never the other way round. A kernel is one file under [`cpu`] and one line in [`cpu::KERNELS`].

pub mod cpu;
pub mod cuda;
pub mod e4m3;
pub mod hash;
pub mod input;
pub mod kernel;
pub mod pattern;
pub mod problem;
pub mod reference;
mod shared_mut;
pub mod tensor;
pub mod tolerance;
pub mod work;
