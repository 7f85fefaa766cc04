//! What a GPU has to do to compute a problem.

use super::Source;
use crate::kernel::KernelError;
use crate::tensor::TensorName;

/// What a plan needs to know of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeviceFacts {
    /// Compute capability, major * 10 + minor: 80, 90.
    pub compute_capability: u32,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of shared memory that a block may have when it asks for them (opt-in).
    pub shared_bytes_per_block: u32,
}

impl DeviceFacts {
    /// An A100.
    pub const A100: DeviceFacts =
        DeviceFacts { compute_capability: 80, multiprocessors: 108, shared_bytes_per_block: 163 << 10 };
    /// An H100 or H200 (SXM).
    pub const H200: DeviceFacts =
        DeviceFacts { compute_capability: 90, multiprocessors: 132, shared_bytes_per_block: 227 << 10 };

    /// Refuses a kernel that this device is too old for.
    pub(super) fn require_capability(&self, kernel: &str, least: u32) -> Result<(), KernelError> {
        let have = self.compute_capability;
        if have >= least {
            return Ok(());
        }
        Err(KernelError::Unsupported(format!(
            "a device of compute capability {}.{}: {kernel} needs {}.{} or later",
            have / 10,
            have % 10,
            least / 10,
            least % 10
        )))
    }

    /// Refuses a kernel that is written in instructions of this compute capability alone.
    pub(super) fn require_exactly(&self, kernel: &str, capability: u32) -> Result<(), KernelError> {
        let have = self.compute_capability;
        if have == capability {
            return Ok(());
        }
        Err(KernelError::Unsupported(format!(
            "a device of compute capability {}.{}: {kernel} is for {}.{} alone",
            have / 10,
            have % 10,
            capability / 10,
            capability % 10
        )))
    }

    /// Refuses a block that does not fit.
    pub(super) fn require_shared(&self, kernel: &str, bytes: u32) -> Result<(), KernelError> {
        let have = self.shared_bytes_per_block;
        if bytes <= have {
            return Ok(());
        }
        Err(KernelError::Unsupported(format!(
            "a device with {have} bytes of shared memory a block: {kernel} needs {bytes} for these head dimensions"
        )))
    }
}

/// A source and how it is compiled. Two equal modules give the same code on the same architecture.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Module {
    /// What to compile.
    pub source: Source,
    /// Macros to define, by name and value.
    pub defines: Vec<(&'static str, String)>,
}

impl Module {
    /// The options that define its macros: `-DDIM_QK=128`.
    pub fn options(&self) -> Vec<String> {
        self.defines.iter().map(|(name, value)| format!("-D{name}={value}")).collect()
    }

    /// What distinguishes it from the other modules: its source and defines, in one line.
    pub fn label(&self) -> String {
        let mut label = self.source.name.trim_end_matches(".cu").to_string();
        for (name, value) in &self.defines {
            label.push_str(&format!(" {}={value}", name.to_lowercase()));
        }
        label
    }
}

/// A tensor as the asynchronous copy engine of compute capability 9.0 sees it, and the tile that one copy brings; the address is
/// the call's (CUDA driver API, `cuTensorMapEncodeTiled`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TensorMap {
    /// Which tensor.
    pub tensor: TensorName,
    /// Bytes of an element: 1, 2, 4 or 8.
    pub element_bytes: u32,
    /// Elements of each of 1 to 5 dimensions, the innermost first.
    pub sizes: Vec<u32>,
    /// Bytes from one index to the next, of all dimensions but the innermost: multiples of 16.
    pub strides_bytes: Vec<u64>,
    /// Elements of a tile in each dimension, at most 256.
    pub tile: Vec<u32>,
    /// Bytes after which the pattern repeats in which 16-byte chunks of a tile are exchanged: 0, 32, 64 or 128.
    pub swizzle_bytes: u32,
}

/// The value of a kernel's parameter.
#[derive(Clone, Debug, PartialEq)]
pub enum Argument {
    /// The address of a tensor of the call.
    Tensor(TensorName),
    /// The address of a tensor that the caller may have asked for, else null.
    OptionalTensor(TensorName),
    /// The address of a workspace of the plan, by its number.
    Workspace(usize),
    /// The address of a table of the plan, by its number.
    Table(usize),
    /// No address.
    Null,
    /// 32 bits, unsigned.
    U32(u32),
    /// 32 bits, signed.
    I32(i32),
    /// 32 bits, floating.
    F32(f32),
    /// 64 bits, unsigned.
    U64(u64),
    /// A structure by value, as its bytes; aligned to 8 bytes.
    Bytes(Vec<u8>),
    /// A tensor map by value: 128 bytes, aligned to 64.
    TensorMap(TensorMap),
}

/// One kernel launch.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// Which of the plan's modules the entry is in.
    pub module: usize,
    /// The kernel's name, unmangled.
    pub entry: &'static str,
    /// Blocks in x, y and z.
    pub grid: [u32; 3],
    /// Threads a block in x, y and z.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory a block. Above 48 KiB the function has to be allowed them first.
    pub shared_bytes: u32,
    /// One a parameter, in order.
    pub arguments: Vec<Argument>,
}

/// A problem on a device: everything but the addresses of its tensors.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CudaPlan {
    /// What to compile and load.
    pub modules: Vec<Module>,
    /// Bytes of each piece of device memory that calls use and that need not keep anything from one call to the next. Each
    /// aligned to 256.
    pub workspaces: Vec<u64>,
    /// Constant arrays, to be copied to the device once. Each aligned to 256.
    pub tables: Vec<Vec<u8>>,
    /// What a call launches, in order, on one stream.
    pub launches: Vec<Launch>,
}

impl CudaPlan {
    /// Bytes of all workspaces and tables, as they lie one after another at multiples of 256: what the plan needs besides
    /// the tensors of the call.
    pub fn device_bytes(&self) -> u64 {
        let tables = self.tables.iter().map(|table| table.len() as u64);
        self.workspaces.iter().copied().chain(tables).map(|bytes| bytes.next_multiple_of(256)).sum()
    }

    /// Number of a module, added unless it is there.
    pub(super) fn module(&mut self, module: Module) -> usize {
        self.modules.iter().position(|known| *known == module).unwrap_or_else(|| {
            self.modules.push(module);
            self.modules.len() - 1
        })
    }

    /// Takes this many bytes of workspace.
    pub(super) fn workspace(&mut self, bytes: u64) -> Argument {
        self.workspaces.push(bytes);
        Argument::Workspace(self.workspaces.len() - 1)
    }

    /// Adds a table.
    pub(super) fn table(&mut self, bytes: Vec<u8>) -> Argument {
        self.tables.push(bytes);
        Argument::Table(self.tables.len() - 1)
    }
}

/// Blocks of a grid of one dimension, or why there are too many.
pub(super) fn grid_of(kernel: &str, factors: &[usize]) -> Result<[u32; 3], KernelError> {
    let blocks = factors.iter().try_fold(1u64, |blocks, &factor| blocks.checked_mul(factor as u64));
    match blocks {
        Some(blocks) if blocks <= i32::MAX as u64 => Ok([blocks as u32, 1, 1]),
        _ => {
            Err(KernelError::Unsupported(format!("a problem of this size: {kernel} would need a grid of 2^31 blocks")))
        }
    }
}
