//! Plans of `attn_kernels::cuda`, loaded and launched.

use attn_kernels::cuda::nvrtc::NvrtcError;
use attn_kernels::cuda::{Argument, CudaPlan, Launch, Module, resources};
use attn_kernels::tensor::TensorName;

use super::compile::Compiler;
use super::context::{Buffer, Context};
use super::driver::Fault;
use super::module::{Function, LoadedModule};
use super::tensor_map;
use crate::clock::elapsed_ns;
use crate::record::launch::LaunchReport;

/// Why a plan cannot be launched.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It does not compile, or there is no compiler.
    #[error(transparent)]
    Nvrtc(#[from] NvrtcError),
    /// The driver refused.
    #[error("{what}: {fault}")]
    Driver {
        /// What it was about: a kernel, a module.
        what: String,
        /// What it said.
        fault: Fault,
    },
}

/// Where the code of a module comes from.
pub enum Code<'a> {
    /// NVRTC compiles the plan's modules.
    Source(&'a Compiler),
    /// Every module is this cubin or PTX.
    Image(&'a [u8]),
}

/// A plan on a device: everything but the addresses of its tensors.
pub struct LoadedPlan {
    launches: Vec<(Function, Launch)>,
    workspaces: Vec<Buffer>,
    tables: Vec<Buffer>,
    reports: Vec<LaunchReport>,
    compile_ns: Option<u64>,
    /// Functions live as long as these.
    _modules: Vec<LoadedModule>,
}

impl LoadedPlan {
    /// Compiles and loads its modules, takes its workspaces, copies its tables and asks what its launches take.
    pub fn load(context: &Context, code: &Code<'_>, plan: CudaPlan) -> Result<LoadedPlan, LoadError> {
        let failed = |what: String| move |fault| LoadError::Driver { what, fault };
        let mut modules = Vec::new();
        let mut compile_ns = None;
        for module in &plan.modules {
            let loaded = load_module(code, module, &mut compile_ns)?;
            modules.push(loaded);
        }
        let mut workspaces = Vec::new();
        for (number, &bytes) in plan.workspaces.iter().enumerate() {
            workspaces.push(context.allocate(bytes).map_err(failed(format!("workspace {number} of {bytes} bytes")))?);
        }
        let mut tables = Vec::new();
        for (number, table) in plan.tables.iter().enumerate() {
            let what = format!("table {number} of {} bytes", table.len());
            let buffer = context.allocate(table.len() as u64).map_err(failed(what.clone()))?;
            context.upload(table, &buffer).map_err(failed(what))?;
            tables.push(buffer);
        }
        let (mut launches, mut reports) = (Vec::new(), Vec::new());
        for launch in plan.launches {
            let (module, log, hash) = &modules[launch.module];
            let what = || failed(format!("kernel `{}`", launch.entry));
            let function = module.function(launch.entry).map_err(what())?;
            function.allow_shared(launch.shared_bytes).map_err(what())?;
            reports.push(report(&function, &launch, &plan.modules[launch.module], log, hash).map_err(what())?);
            launches.push((function, launch));
        }
        let modules = modules.into_iter().map(|(module, ..)| module).collect();
        Ok(LoadedPlan { launches, workspaces, tables, reports, compile_ns, _modules: modules })
    }

    /// Nanoseconds of compiling, where something was compiled.
    pub fn compile_ns(&self) -> Option<u64> {
        self.compile_ns
    }

    /// What each launch is and takes, in order.
    pub fn reports(&self) -> &[LaunchReport] {
        &self.reports
    }

    /// Launches everything, in order; `address_of` knows the tensors of the call.
    pub fn enqueue(&self, context: &Context, address_of: &dyn Fn(TensorName) -> Option<u64>) -> Result<(), Fault> {
        for (function, launch) in &self.launches {
            // A grid without blocks is nothing to do: an empty batch, no key.
            if launch.grid.contains(&0) {
                continue;
            }
            let words: Result<Vec<Vec<u64>>, Fault> =
                launch.arguments.iter().map(|argument| self.words(argument, address_of)).collect();
            let mut arguments = words?;
            function.launch(context, launch.grid, launch.block, launch.shared_bytes, &mut arguments)?;
        }
        Ok(())
    }

    /// A parameter's bytes in whole words.
    fn words(&self, argument: &Argument, address_of: &dyn Fn(TensorName) -> Option<u64>) -> Result<Vec<u64>, Fault> {
        let tensor = |name| address_of(name).unwrap_or_else(|| panic!("the problem has a tensor {name:?}"));
        Ok(match argument {
            Argument::Tensor(name) => vec![tensor(*name)],
            Argument::OptionalTensor(name) => vec![address_of(*name).unwrap_or(0)],
            Argument::Workspace(number) => vec![self.workspaces[*number].address()],
            Argument::Table(number) => vec![self.tables[*number].address()],
            Argument::Null => vec![0],
            Argument::U32(value) => vec![u64::from(*value)],
            Argument::I32(value) => vec![u64::from(value.cast_unsigned())],
            Argument::F32(value) => vec![u64::from(value.to_bits())],
            Argument::U64(value) => vec![*value],
            Argument::Bytes(bytes) => bytes
                .chunks(8)
                .map(|chunk| chunk.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte)))
                .collect(),
            Argument::TensorMap(map) => tensor_map::encode(map, tensor(map.tensor))?,
        })
    }
}

/// A module with its compiler's log and its hash.
pub(super) fn load_module(
    code: &Code<'_>,
    module: &Module,
    compile_ns: &mut Option<u64>,
) -> Result<(LoadedModule, String, String), LoadError> {
    let start = std::time::Instant::now();
    let (image, log) = match code {
        Code::Source(compiler) => {
            let compiled = compiler.compile(module)?;
            if compiled.is_new {
                *compile_ns.get_or_insert(0) += elapsed_ns(start);
            }
            (compiled.cubin.bytes, compiled.cubin.log)
        }
        Code::Image(image) => (image.to_vec(), String::new()),
    };
    let loaded = LoadedModule::load(&image)
        .map_err(|fault| LoadError::Driver { what: format!("module `{}`", module.label()), fault })?;
    Ok((loaded, log, blake3::hash(&image).to_hex()[..16].to_owned()))
}

fn report(function: &Function, launch: &Launch, module: &Module, log: &str, hash: &str) -> Result<LaunchReport, Fault> {
    let threads = launch.block.iter().product();
    let known = resources::parse(&module.label(), log).into_iter().find(|kernel| kernel.entry == launch.entry);
    Ok(LaunchReport {
        entry: launch.entry.to_owned(),
        module: module.label(),
        code_hash: hash.to_owned(),
        grid: launch.grid,
        block: launch.block,
        registers: function.registers()?,
        spill_bytes: known.map(|kernel| kernel.spill_bytes),
        local_bytes: function.local_bytes()?,
        static_shared_bytes: function.static_shared_bytes()?,
        dynamic_shared_bytes: launch.shared_bytes,
        blocks_per_multiprocessor: function.blocks_per_multiprocessor(threads, launch.shared_bytes)?,
    })
}
