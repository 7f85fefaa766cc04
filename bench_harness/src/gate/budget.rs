//! What compiled kernels may take: a gate of static figures that drift with no machine and need no GPU.

use std::collections::BTreeMap;
use std::fmt::Write;

use attn_kernels::cuda::resources::Resources;
use serde::Deserialize;

/// Registers a thread that each kernel may take, by architecture and kernel. Spills and stacks have no budget: they are
/// always wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Budget(pub BTreeMap<String, BTreeMap<String, u32>>);

/// The name of a kernel in a budget: its module and its entry.
pub fn kernel_name(resources: &Resources) -> String {
    format!("{} / {}", resources.module, resources.entry)
}

impl Budget {
    /// The file's text, sorted, one kernel a line.
    pub fn to_toml(&self) -> String {
        let mut text = String::from(
            "# Registers a thread of every CUDA kernel, as NVRTC compiles it. `attnbench kernels --resources --budget FILE`\n\
             # fails where one takes more, spills or has a stack; `--update-budget` writes this file.\n",
        );
        for (architecture, kernels) in &self.0 {
            let _ = write!(text, "\n[{architecture}]\n");
            for (kernel, registers) in kernels {
                let _ = writeln!(text, "\"{kernel}\" = {registers}");
            }
        }
        text
    }

    /// Puts the figures of an architecture in the place of what it had.
    pub fn set(&mut self, architecture: &str, kernels: &[Resources]) {
        let figures = kernels.iter().map(|kernel| (kernel_name(kernel), kernel.registers)).collect();
        self.0.insert(architecture.to_owned(), figures);
    }

    /// What is wrong with the figures of an architecture, a line each; nothing where all is well.
    pub fn complaints(&self, architecture: &str, kernels: &[Resources]) -> Vec<String> {
        let none = BTreeMap::new();
        let allowed = self.0.get(architecture).unwrap_or(&none);
        let mut complaints = faults(architecture, kernels);
        for kernel in kernels {
            let name = kernel_name(kernel);
            match allowed.get(&name) {
                None => complaints.push(format!("{architecture}: {name} has no budget")),
                Some(&registers) if kernel.registers > registers => complaints.push(format!(
                    "{architecture}: {name} takes {} registers, {registers} are budgeted",
                    kernel.registers
                )),
                Some(_) => {}
            }
        }
        let exists = |name: &String| kernels.iter().any(|kernel| kernel_name(kernel) == *name);
        let gone = allowed.keys().filter(|name| !exists(name));
        complaints.extend(gone.map(|name| format!("{architecture}: {name} has a budget and does not exist")));
        complaints
    }
}

/// Kernels that spill registers or have a stack.
pub fn faults(architecture: &str, kernels: &[Resources]) -> Vec<String> {
    let is_faulty = |kernel: &&Resources| kernel.spill_bytes > 0 || kernel.stack_bytes > 0;
    let line = |kernel: &Resources| {
        let (name, spill, stack) = (kernel_name(kernel), kernel.spill_bytes, kernel.stack_bytes);
        format!("{architecture}: {name} spills {spill} bytes and has a stack of {stack}")
    };
    kernels.iter().filter(is_faulty).map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(entry: &str, registers: u32) -> Resources {
        Resources {
            module: "flash dim_qk=64".into(),
            entry: entry.into(),
            registers,
            spill_bytes: 0,
            stack_bytes: 0,
            static_shared_bytes: 0,
            instructions: None,
        }
    }

    #[test]
    fn a_budget_is_written_read_and_kept() {
        let mut budget = Budget::default();
        budget.set("sm_90a", &[kernel("flash", 200), kernel("combine", 72)]);
        budget.set("sm_80", &[kernel("flash", 210)]);
        let read: Budget = toml::from_str(&budget.to_toml()).expect("its own text");
        assert_eq!(read, budget);
        assert_eq!(read.complaints("sm_80", &[kernel("flash", 210)]), Vec::<String>::new());
        assert_eq!(read.complaints("sm_90a", &[kernel("flash", 100), kernel("combine", 72)]), Vec::<String>::new());
    }

    #[test]
    fn everything_that_is_not_as_budgeted_is_named() {
        let mut budget = Budget::default();
        budget.set("sm_80", &[kernel("flash", 200), kernel("combine", 72)]);
        let mut spilling = kernel("flash", 200);
        spilling.spill_bytes = 8;
        let complaints = |kernels: &[Resources]| budget.complaints("sm_80", kernels).join("\n");
        assert!(
            complaints(&[kernel("flash", 201), kernel("combine", 72)])
                .contains("takes 201 registers, 200 are budgeted")
        );
        assert!(complaints(&[spilling, kernel("combine", 72)]).contains("spills 8 bytes"));
        assert!(complaints(&[kernel("flash", 200)]).contains("combine has a budget and does not exist"));
        let with_new = [kernel("flash", 200), kernel("combine", 72), kernel("new", 1)];
        assert!(complaints(&with_new).contains("new has no budget"));
        assert_eq!(budget.complaints("sm_90a", &[kernel("flash", 1)]).len(), 1);
    }
}
