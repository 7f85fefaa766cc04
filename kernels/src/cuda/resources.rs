//! What each compiled kernel takes of a multiprocessor, as the assembler says it: a measure of a kernel that needs no GPU.

use super::nvrtc::{Nvrtc, NvrtcError};
use super::sass::{Disassembler, InstructionMix, SassError};
use super::{CUDA_KERNELS, CudaKernel, Module};

/// One kernel of a module on one architecture.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Resources {
    /// [`Module::label`].
    pub module: String,
    /// The kernel's name.
    pub entry: String,
    /// Registers a thread.
    pub registers: u32,
    /// Bytes a thread that did not fit the registers, written and read.
    pub spill_bytes: u32,
    /// Bytes of a thread's stack.
    pub stack_bytes: u32,
    /// Bytes of shared memory that are part of the kernel; what launches ask for comes on top.
    pub static_shared_bytes: u32,
    /// What its machine code is made of, where somebody could read it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instructions: Option<InstructionMix>,
}

/// Why the resources of a module are not known.
#[derive(Debug, thiserror::Error)]
pub enum ResourcesError {
    /// It does not compile.
    #[error(transparent)]
    Compile(#[from] NvrtcError),
    /// It was compiled, and products of warpgroups that are to run beside other work wait for each other: the assembler could not
    /// follow their registers.
    #[error("module `{module}` for {architecture}: {message}")]
    Serialised {
        /// [`Module::label`].
        module: String,
        /// `sm_90a`.
        architecture: String,
        /// What the assembler says.
        message: String,
    },
    /// It was compiled, and the disassembler failed.
    #[error(transparent)]
    Sass(#[from] SassError),
}

/// The oldest architecture that these kernels are written for.
const OLDEST: u32 = 80;

/// Checks the name of an architecture: `sm_` and its number, with an `a` or an `f` where its own features are meant.
///
/// # Errors
/// In words, with examples.
pub fn check_architecture(name: &str) -> Result<(), String> {
    let number = name.strip_prefix("sm_").map(|rest| rest.trim_end_matches(['a', 'f']));
    let suffix = number.map_or("", |number| &name[3 + number.len()..]);
    let is_plain = |number: &&str| number.len() <= 3 && !number.starts_with('0') && suffix.len() <= 1;
    match number.filter(is_plain).and_then(|number| number.parse::<u32>().ok()) {
        None => Err("an architecture is named sm_80, sm_90a or alike".to_owned()),
        Some(number) if number < OLDEST => Err(format!("these kernels are for sm_{OLDEST} and later")),
        Some(_) => Ok(()),
    }
}

/// The compute capability of an architecture: 90 of `sm_90a`.
fn capability(architecture: &str) -> Option<u32> {
    architecture.strip_prefix("sm_")?.trim_end_matches(['a', 'f']).parse().ok()
}

/// Every module of every kernel for an architecture, once, and those of the harness.
pub fn modules_for(architecture: &str) -> Vec<Module> {
    let capability = capability(architecture);
    modules_of(|kernel| capability.map_or(Vec::new(), |capability| kernel.modules_for(capability)))
}

/// Every module of every kernel, once, and those of the harness.
pub fn all_modules() -> Vec<Module> {
    modules_of(|kernel| kernel.modules())
}

fn modules_of(wanted: impl Fn(&dyn CudaKernel) -> Vec<Module>) -> Vec<Module> {
    let mut modules: Vec<Module> = super::harness::modules();
    for module in CUDA_KERNELS.iter().flat_map(|kernel| wanted(*kernel)) {
        if !modules.contains(&module) {
            modules.push(module);
        }
    }
    modules
}

/// Compiles a module and reads what its kernels take, in the order of the log; with a disassembler, also what they are
/// made of.
///
/// # Errors
/// [`ResourcesError`]: it does not compile, or the disassembler fails.
pub fn of_module(
    nvrtc: &Nvrtc,
    module: &Module,
    architecture: &str,
    disassembler: Option<&Disassembler>,
) -> Result<Vec<Resources>, ResourcesError> {
    let cubin = nvrtc.compile(module, architecture)?;
    if let Some(message) = serialised(&cubin.log) {
        let (module, architecture) = (module.label(), architecture.into());
        return Err(ResourcesError::Serialised { module, architecture, message });
    }
    let mut kernels = parse(&module.label(), &cubin.log);
    if kernels.is_empty() {
        return Err(NvrtcError::Compile {
            module: module.label(),
            architecture: architecture.into(),
            reason: "the log names no kernel".into(),
            log: cubin.log,
        }
        .into());
    }
    if let Some(disassembler) = disassembler {
        let mixes = disassembler.mixes(&cubin.bytes)?;
        for kernel in &mut kernels {
            kernel.instructions = mixes.get(&kernel.entry).copied();
        }
    }
    Ok(kernels)
}

/// What the assembler says where it made asynchronous products wait for each other.
fn serialised(log: &str) -> Option<String> {
    let line = log.lines().find(|line| line.contains("wgmma") && line.contains("serialized"))?;
    Some(line.trim_start_matches("ptxas").trim_start_matches([' ', ':']).to_owned())
}

/// Reads the log of `ptxas -v`: the kernels of a module, in the log's order.
pub fn parse(module: &str, log: &str) -> Vec<Resources> {
    let mut kernels: Vec<Resources> = Vec::new();
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            kernels.push(Resources {
                module: module.into(),
                entry: rest.split('\'').next().unwrap_or_default().into(),
                registers: 0,
                spill_bytes: 0,
                stack_bytes: 0,
                static_shared_bytes: 0,
                instructions: None,
            });
        }
        let Some(kernel) = kernels.last_mut() else { continue };
        // "0 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads" and "Used 72 registers, 16 bytes smem, ...".
        for part in line.split([',', ':']) {
            let mut words =
                part.trim().trim_start_matches("ptxas").trim_start_matches([' ', '.']).split(' ').peekable();
            words.next_if_eq(&"Used");
            let Some(number) = words.next().and_then(|word| word.parse::<u32>().ok()) else { continue };
            match words.collect::<Vec<_>>().as_slice() {
                ["registers"] => kernel.registers = number,
                ["bytes", "stack", "frame"] => kernel.stack_bytes = number,
                ["bytes", "spill", "stores" | "loads"] => kernel.spill_bytes += number,
                ["bytes", "smem"] => kernel.static_shared_bytes = number,
                _ => {}
            }
        }
    }
    kernels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_of_the_assembler_are_read() {
        let log = "ptxas info    : 0 bytes gmem\n\
            ptxas info    : Compiling entry function 'combine' for 'sm_80'\n\
            ptxas         .     16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads\n\
            ptxas info    : Used 72 registers, used 0 barriers, 16 bytes cumulative stack size, 548 bytes cmem[0]\n\
            ptxas info    : Compile time = 12.3 ms\n\
            ptxas info    : Compiling entry function 'paged' for 'sm_80'\n\
            ptxas info    : Function properties for paged\n    \
            0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
            ptxas info    : Used 255 registers, used 1 barriers, 1024 bytes smem, 584 bytes cmem[0]\n";
        let [combine, paged] = parse("paged", log).try_into().expect("two kernels");
        assert_eq!(combine.entry, "combine");
        assert_eq!((combine.registers, combine.spill_bytes, combine.stack_bytes), (72, 12, 16));
        assert_eq!((paged.registers, paged.spill_bytes, paged.static_shared_bytes), (255, 0, 1024));
        assert!(parse("paged", "nothing of the kind").is_empty());
    }

    #[test]
    fn serialised_products_are_noticed() {
        let log =
            "ptxas info    : (C7519) warpgroup.arrive is injected in around line 9 by compiler in function 'flash3'\n";
        assert_eq!(serialised(log), None);
        let warning = "(C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to insufficient \
            register resources for the wgmma pipeline in the function 'flash3'";
        let found = serialised(&format!("{log}ptxas info    : {warning}\n")).expect("it is there");
        assert!(found.ends_with(warning), "{found}");
    }

    #[test]
    fn architectures_are_checked_before_anything_is_compiled() {
        for good in ["sm_80", "sm_86", "sm_90a", "sm_100f", "sm_121"] {
            assert_eq!(check_architecture(good), Ok(()), "{good}");
        }
        for (bad, expected) in [
            ("sm_12", "sm_80 and later"),
            ("sm_75", "sm_80 and later"),
            ("sm_", "is named"),
            ("sm_90aa", "is named"),
            ("sm_090", "is named"),
            ("sm_-90", "is named"),
            ("compute_80", "is named"),
            ("90", "is named"),
            ("", "is named"),
            ("sm_9000", "is named"),
        ] {
            let error = check_architecture(bad).expect_err(bad);
            assert!(error.contains(expected), "{bad}: {error}");
        }
    }

    #[test]
    fn modules_are_listed_once() {
        let modules = all_modules();
        let mut labels: Vec<String> = modules.iter().map(Module::label).collect();
        labels.sort();
        labels.dedup();
        assert_eq!(labels.len(), modules.len(), "a label names one module");
        assert!(modules.len() > 50);
    }
}
