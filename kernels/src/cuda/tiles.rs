//! How a kernel's blocks may be cut, where there is a choice.
//!
//! A kernel has a table with a row for each class of its problems: what it takes for them, and what it might take instead. A
//! candidate is a kernel too, `flash+rows128-keys64-warps8`, so that runs, comparisons and the oracle treat it like any other;
//! only lists of kernels leave it out. What is taken is a constant of the source: measuring changes no code.

use std::fmt;
use std::sync::LazyLock;

use super::{CUDA_KERNELS, CudaKernel, CudaPlan, DeviceFacts, Module};
use crate::kernel::KernelError;
use crate::problem::{AttentionProblem, Dtype};

/// One way to cut a kernel's blocks: sizes by name, in the order of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tiles {
    names: &'static [&'static str],
    sizes: &'static [usize],
}

impl Tiles {
    /// How many sizes there are.
    pub(super) fn count(&self) -> usize {
        self.sizes.len()
    }

    /// The sizes, in the order of their names.
    ///
    /// # Panics
    /// There are not `N`: a kernel asks for what its own table has, which [`TileClass::check`] sees to.
    pub(super) fn sizes<const N: usize>(&self) -> [usize; N] {
        self.sizes.try_into().expect("a kernel's tiles have the sizes it asks for")
    }
}

/// `rows128-keys64-warps8`.
impl fmt::Display for Tiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (name, size)) in self.names.iter().zip(self.sizes).enumerate() {
            write!(f, "{}{name}{size}", if index == 0 { "" } else { "-" })?;
        }
        Ok(())
    }
}

/// Problems that have one choice, and what there is to choose from: a row of a kernel's table.
#[derive(Debug, PartialEq, Eq)]
pub struct TileClass {
    /// The class: `d128 plain`, `backward d128 plain`. Classes of one kernel may have sizes of different names.
    pub name: &'static str,
    names: &'static [&'static str],
    taken: &'static [usize],
    others: &'static [&'static [usize]],
}

impl TileClass {
    /// A row: sizes of these names, those that the kernel takes, and those that it might take instead.
    pub(super) const fn new(
        name: &'static str,
        names: &'static [&'static str],
        taken: &'static [usize],
        others: &'static [&'static [usize]],
    ) -> TileClass {
        TileClass { name, names, taken, others }
    }

    fn tiles(&self, sizes: &'static [usize]) -> Tiles {
        Tiles { names: self.names, sizes }
    }

    /// What the kernel takes.
    pub fn taken(&self) -> Tiles {
        self.tiles(self.taken)
    }

    /// What it might take instead.
    pub fn others(&self) -> impl Iterator<Item = Tiles> {
        self.others.iter().map(|sizes| self.tiles(sizes))
    }

    /// What it takes, and what it might.
    pub fn candidates(&self) -> impl Iterator<Item = Tiles> {
        std::iter::once(self.taken()).chain(self.others())
    }

    /// Refuses tiles that are none of its candidates.
    fn check(&self, kernel: &str, tiles: Tiles) -> Result<(), KernelError> {
        if self.candidates().any(|candidate| candidate == tiles) {
            return Ok(());
        }
        let others: Vec<String> = self.candidates().map(|tiles| tiles.to_string()).collect();
        Err(KernelError::Unsupported(format!(
            "tiles {tiles} for `{}`: {kernel} has candidates {} for it",
            self.name,
            others.join(", ")
        )))
    }
}

/// The row of a table.
///
/// # Panics
/// There is none: a table has a row for whatever its kernel asks for.
pub(super) fn class(table: &'static [TileClass], name: &str) -> &'static TileClass {
    find_class(table, name).unwrap_or_else(|| panic!("a table of tiles has no class `{name}`"))
}

/// The row of a table, where it has one of this name.
pub(super) fn find_class(table: &'static [TileClass], name: &str) -> Option<&'static TileClass> {
    table.iter().find(|class| class.name == name)
}

/// Refuses tiles that are no candidate of a kernel for a problem.
pub(super) fn check(kernel: &str, class: Option<&TileClass>, tiles: Tiles) -> Result<(), KernelError> {
    match class {
        Some(class) => class.check(kernel, tiles),
        None => {
            Err(KernelError::Unsupported(format!("tiles {tiles}: {kernel} has no choice of tiles for this problem")))
        }
    }
}

/// Registers that a thread can have.
pub(super) const MOST_REGISTERS: usize = 255;

/// Refuses tiles of which a thread would hold more numbers at a time than it has registers.
pub(super) fn require_registers(kernel: &str, numbers: usize, registers: usize) -> Result<(), KernelError> {
    if numbers < registers {
        return Ok(());
    }
    Err(KernelError::Unsupported(format!(
        "tiles of which a thread holds {numbers} numbers at a time: threads of {kernel} have {registers} registers; smaller tiles \
         or more warps would do"
    )))
}

/// What stands between a kernel's name and its tiles.
pub const TILES_SEPARATOR: char = '+';

/// A kernel with other tiles than it would take.
pub struct Tiled {
    kernel: &'static dyn CudaKernel,
    tiles: Tiles,
    name: &'static str,
}

/// Every candidate of every kernel, once. Their names live as long as the program, as kernels' names do.
static TILED: LazyLock<Vec<Tiled>> = LazyLock::new(|| {
    let mut all: Vec<Tiled> = Vec::new();
    for &kernel in CUDA_KERNELS {
        for tiles in kernel.tile_classes().into_iter().flat_map(TileClass::candidates) {
            let name = format!("{}{TILES_SEPARATOR}{tiles}", kernel.name());
            if all.iter().all(|known| known.name != name) {
                all.push(Tiled { kernel, tiles, name: Box::leak(name.into_boxed_str()) });
            }
        }
    }
    all
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
        self.kernel.supports(problem)?;
        check(self.kernel.name(), self.kernel.tile_class(problem), self.tiles)
    }

    fn plan(&self, problem: &AttentionProblem, device: &DeviceFacts) -> Result<CudaPlan, KernelError> {
        self.kernel.plan_with(problem, device, self.tiles)
    }

    fn is_for(&self, compute_capability: u32) -> bool {
        self.kernel.is_for(compute_capability)
    }

    fn multiplies_in(&self, problem: &AttentionProblem) -> Dtype {
        self.kernel.multiplies_in(problem)
    }

    fn modules(&self) -> Vec<Module> {
        self.kernel.modules()
    }
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
    fn tiles_of_another_class_are_refused() {
        let tiled = cuda::find("flash+rows64-keys64-warps4").expect("a candidate");
        let problem = AttentionProblem::softmax(Phase::Backward, Dtype::Bf16, 1, (2, 1), (300, 300), 128);
        for error in [tiled.supports(&problem), tiled.plan(&problem, &DeviceFacts::H200).map(|_| ())] {
            let error = error.expect_err("the backward has tiles of its own").to_string();
            assert!(error.contains("rows64-keys64-warps4") && error.contains("`backward d128`"), "{error}");
            assert!(error.contains("rows64-keys128-"), "{error}");
        }
        let error = check("mla", None, cuda::mla::Mla.tile_classes()[0].taken()).expect_err("no class").to_string();
        assert!(error.contains("mla has no choice of tiles for this problem"), "{error}");
    }

    #[test]
    fn tables_are_sound() {
        for kernel in CUDA_KERNELS {
            let classes = kernel.tile_classes();
            for (index, class) in classes.iter().enumerate() {
                let what = format!("{} {}", kernel.name(), class.name);
                assert!(classes[..index].iter().all(|other| other.name != class.name), "{what} is there twice");
                let all: Vec<Tiles> = class.candidates().collect();
                for (number, tiles) in all.iter().enumerate() {
                    assert_eq!(tiles.names.len(), tiles.sizes.len(), "{what}: {tiles}");
                    assert!(!all[..number].contains(tiles), "{what}: {tiles} is there twice");
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

    #[test]
    fn what_no_registers_hold_is_refused() {
        assert_eq!(require_registers("flash", 192, 255), Ok(()));
        let error = require_registers("flash", 320, 255).expect_err("too many").to_string();
        assert!(error.contains("320 numbers") && error.contains("255 registers"), "{error}");
    }
}
