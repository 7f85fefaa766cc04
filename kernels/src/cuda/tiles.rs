//! How a kernel's blocks may be cut, where there is a choice.
//!
//! A kernel lists its candidates in one table and takes one of them for each class of problems. A candidate is a kernel too,
//! `flash+rows128-keys64-warps8`, so that runs, comparisons and the oracle treat it like any other; only lists of kernels
//! leave it out. What is taken is a constant of the source: measuring changes no code.

use std::fmt;
use std::sync::LazyLock;

use super::{CUDA_KERNELS, CudaKernel, CudaPlan, DeviceFacts, Module};
use crate::kernel::KernelError;
use crate::problem::AttentionProblem;

/// One way to cut a kernel's blocks: sizes by name, in the order of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tiles(pub &'static [(&'static str, usize)]);

impl Tiles {
    /// The size of that name.
    ///
    /// # Panics
    /// There is none: a kernel asks for its own table's names.
    pub(super) fn size(&self, name: &str) -> usize {
        self.0.iter().find(|(known, _)| *known == name).expect("a kernel's candidates have the sizes it asks for").1
    }
}

/// `rows128-keys64-warps8`.
impl fmt::Display for Tiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (name, size)) in self.0.iter().enumerate() {
            write!(f, "{}{name}{size}", if index == 0 { "" } else { "-" })?;
        }
        Ok(())
    }
}

/// What a problem means for the choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TileClass {
    /// Problems of one class have one choice: `d128 plain`.
    pub name: String,
    /// The candidate that the kernel takes for it.
    pub taken: Tiles,
}

/// What stands between a kernel's name and its tiles.
pub const TILES_SEPARATOR: char = '+';

/// A kernel with other tiles than it would take.
pub struct Tiled {
    kernel: &'static dyn CudaKernel,
    tiles: Tiles,
    name: &'static str,
}

/// Every candidate of every kernel. Their names live as long as the program, as kernels' names do.
static TILED: LazyLock<Vec<Tiled>> = LazyLock::new(|| {
    let of = |kernel: &'static dyn CudaKernel| {
        kernel.candidates().iter().map(move |&tiles| {
            let name = format!("{}{TILES_SEPARATOR}{tiles}", kernel.name());
            Tiled { kernel, tiles, name: Box::leak(name.into_boxed_str()) }
        })
    };
    CUDA_KERNELS.iter().copied().flat_map(of).collect()
});

/// The candidate of that name.
pub(super) fn find(name: &str) -> Option<&'static dyn CudaKernel> {
    TILED.iter().find(|tiled| tiled.name == name).map(|tiled| tiled as &dyn CudaKernel)
}

impl CudaKernel for Tiled {
    fn name(&self) -> &'static str {
        self.name
    }

    fn summary(&self) -> &'static str {
        self.kernel.summary()
    }

    fn supports(&self, problem: &AttentionProblem) -> Result<(), KernelError> {
        self.kernel.supports(problem)
    }

    fn plan(&self, problem: &AttentionProblem, device: &DeviceFacts) -> Result<CudaPlan, KernelError> {
        self.kernel.plan_with(problem, device, self.tiles)
    }

    fn modules(&self) -> Vec<Module> {
        self.kernel.modules()
    }
}

/// The answer of a kernel without a choice.
pub(super) fn no_choice(kernel: &str, tiles: Tiles) -> KernelError {
    KernelError::Unsupported(format!("tiles {tiles}: {kernel} has no choice of tiles"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda;
    use crate::problem::{Dtype, Phase};

    #[test]
    fn candidates_are_kernels_by_their_names() {
        let tiled = cuda::find("flash+rows64-keys64-warps4").expect("a candidate");
        let problem = AttentionProblem::softmax(Phase::Prefill, Dtype::Bf16, 1, (2, 1), (300, 300), 128);
        tiled.supports(&problem).expect("as flash does");
        let plan = tiled.plan(&problem, &DeviceFacts::H200).expect("it fits");
        assert_eq!(plan.launches[0].block, [128, 1, 1]);
        assert!(plan.modules[0].label().contains("rows=64 keys=64 warps=4"), "{}", plan.modules[0].label());
        assert!(cuda::find("flash+rows64-keys64-warps5").is_none());
        assert!(cuda::find("naive+rows64").is_none());
    }

    #[test]
    fn what_a_kernel_takes_is_a_candidate_and_plans_alike() {
        for kernel in CUDA_KERNELS {
            for dim in [40, 64, 96, 128, 192, 256] {
                let mut problem = AttentionProblem::softmax(Phase::Prefill, Dtype::F16, 1, (2, 1), (300, 300), dim);
                for softcap in [None, Some(30.0)] {
                    problem.softcap = softcap;
                    let Some(class) = kernel.tile_class(&problem) else { continue };
                    assert!(kernel.candidates().contains(&class.taken), "{} {}", kernel.name(), class.name);
                    let plan = kernel.plan(&problem, &DeviceFacts::H200).expect("it has a class");
                    assert_eq!(kernel.plan_with(&problem, &DeviceFacts::H200, class.taken).as_ref(), Ok(&plan));
                }
            }
        }
    }

    #[test]
    fn names_are_those_of_cases() {
        for tiled in TILED.iter() {
            let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_.-+".contains(c);
            assert!(tiled.name.len() <= 64 && tiled.name.chars().all(allowed), "{}", tiled.name);
        }
    }
}
