//! `attnbench kernels`: the built-in kernels and what they compute.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context;
use attn_kernels::cpu;
use attn_kernels::cuda::CUDA_KERNELS;
use attn_kernels::cuda::nvrtc::Nvrtc;
use attn_kernels::cuda::resources::{self, Resources};
use attn_kernels::cuda::sass::Disassembler;
use rayon::prelude::*;

use super::{Exit, terminal};
use crate::files::write_atomically;
use crate::gate::budget::{Budget, faults};
use crate::report::listing::{self, KernelListing};
use crate::suite::support;

/// List the built-in kernels and what each computes
///
/// Which mechanisms, phases and patterns a kernel supports is found by asking it about a small problem of every kind.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  attnbench kernels          every kernel, with a table of mechanism x phase
  attnbench kernels --json   the same for programs
  attnbench kernels --resources --arch sm_90a
                             compile every CUDA kernel with NVRTC; registers, spills and shared memory of each,
                             and its instructions where cuobjdump or nvdisasm is there")]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Compile every CUDA kernel and variant, which takes NVRTC and no GPU, and list what each takes of a multiprocessor
    #[arg(long)]
    resources: bool,
    /// Architectures to compile for
    #[arg(long, value_name = "SM", value_delimiter = ',', default_values = ["sm_80", "sm_90a"], requires = "resources",
        value_parser = architecture)]
    arch: Vec<String>,
    /// Fail where a kernel takes more registers than this file allows, spills, or has a stack
    #[arg(long, value_name = "FILE", requires = "resources")]
    budget: Option<PathBuf>,
    /// Write what was found to the budget instead
    #[arg(long, requires = "budget")]
    update_budget: bool,
}

/// An architecture, refused before anything is loaded.
fn architecture(name: &str) -> Result<String, String> {
    resources::check_architecture(name).map(|()| name.to_owned())
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<Exit> {
    if args.resources {
        return run_resources(&args);
    }
    let cpu = cpu::KERNELS.iter().map(|kernel| KernelListing {
        provider: "cpu",
        name: kernel.name(),
        summary: kernel.summary(),
        multiplies_in: None,
        supports: support(&|problem| kernel.supports(problem).is_ok()),
    });
    let cuda = CUDA_KERNELS.iter().map(|kernel| KernelListing {
        provider: "cuda",
        name: kernel.name(),
        summary: kernel.summary(),
        multiplies_in: listing::multiplies_in(*kernel),
        supports: support(&|problem| kernel.supports(problem).is_ok()),
    });
    let kernels: Vec<KernelListing> = cpu.chain(cuda).collect();
    if args.json {
        terminal::print_json(&kernels)?;
    } else {
        terminal::print(&listing::kernels(&kernels, terminal::width()))?;
    }
    Ok(Exit::Pass)
}

/// Compiles everything for every architecture asked for, and holds it against the budget.
fn run_resources(args: &Args) -> anyhow::Result<Exit> {
    let mut budget = match &args.budget {
        None => None,
        Some(path) => Some(read_budget(path, args.update_budget)?),
    };
    let nvrtc = Nvrtc::load()?;
    // A budget is of registers: reading its machine code would be for nothing.
    let disassembler = if args.budget.is_some() { None } else { Some(Disassembler::find()) };
    let tool = disassembler.as_ref().and_then(|found| found.as_ref().ok());
    let mut found: BTreeMap<&str, Vec<Resources>> = BTreeMap::new();
    let (mut complaints, mut module_count) = (Vec::new(), 0);
    for architecture in &args.arch {
        let modules = resources::modules_for(architecture);
        module_count += modules.len();
        let kernels: Result<Vec<Vec<Resources>>, _> =
            modules.par_iter().map(|module| resources::of_module(&nvrtc, module, architecture, tool)).collect();
        let mut kernels = kernels?.concat();
        kernels.sort_by(|a, b| (&a.module, &a.entry).cmp(&(&b.module, &b.entry)));
        match &mut budget {
            Some(budget) if args.update_budget => {
                budget.set(architecture, &kernels);
                complaints.extend(faults(architecture, &kernels));
            }
            Some(budget) => complaints.extend(budget.complaints(architecture, &kernels)),
            None => {}
        }
        found.insert(architecture, kernels);
    }
    if let (Some(path), Some(budget), true) = (&args.budget, &budget, args.update_budget) {
        write_atomically(path, budget.to_toml().as_bytes())
            .with_context(|| format!("writing the budget {}", path.display()))?;
    }
    if args.json {
        terminal::print_json(&found)?;
    } else if args.budget.is_none() {
        for (architecture, kernels) in &found {
            terminal::print(&listing::resources(architecture, kernels, terminal::width()))?;
            if tool.is_some() {
                terminal::print(&format!("\n{}", listing::instructions(architecture, kernels, terminal::width())))?;
            }
        }
    } else {
        let count: usize = found.values().map(Vec::len).sum();
        let (major, minor) = nvrtc.version();
        terminal::print(&format!(
            "{count} kernels of {module_count} modules compiled for {} with NVRTC {major}.{minor}",
            args.arch.join(", ")
        ))?;
    }
    if let Some(Err(missing)) = &disassembler {
        eprintln!("{missing}");
    }
    for complaint in &complaints {
        eprintln!("{complaint}");
    }
    Ok(if complaints.is_empty() { Exit::Pass } else { Exit::Regression })
}

/// A budget's file; an empty one where it is about to be written for the first time.
fn read_budget(path: &PathBuf, is_new: bool) -> anyhow::Result<Budget> {
    match std::fs::read_to_string(path) {
        Ok(text) => toml::from_str(&text).with_context(|| format!("reading the budget {}", path.display())),
        Err(error) if is_new && error.kind() == std::io::ErrorKind::NotFound => Ok(Budget::default()),
        Err(error) => Err(error).with_context(|| format!("reading the budget {}", path.display())),
    }
}
