//! Checksums of device memory, made where it is.

use attn_kernels::cuda::harness;

use super::compile::Compiler;
use super::context::{Buffer, Context};
use super::driver::Fault;
use super::launch::{Code, LoadError, load_module};
use super::module::{Function, LoadedModule};

/// Blocks for each multiprocessor: enough to read at full speed.
const BLOCKS_PER_MULTIPROCESSOR: u32 = 4;

/// Sums of memory, computed on the device.
pub struct Checksummer {
    function: Function,
    blocks: u32,
    sums: Buffer,
    _module: LoadedModule,
}

impl Checksummer {
    /// Compiles and loads it.
    pub fn new(context: &Context, compiler: &Compiler) -> Result<Checksummer, LoadError> {
        let (module, ..) = load_module(&Code::Source(compiler), &harness::checksum(), &mut None)?;
        let failed = |fault| LoadError::Driver { what: "kernel `checksum`".into(), fault };
        let function = module.function("checksum").map_err(failed)?;
        let blocks = (BLOCKS_PER_MULTIPROCESSOR * context.facts().multiprocessors).max(1);
        let sums = context.allocate(u64::from(blocks * harness::THREADS / 32) * 8).map_err(failed)?;
        Ok(Checksummer { function, blocks, sums, _module: module })
    }

    /// The checksum of all whole words of these buffers. Waits for this stream alone.
    pub fn of<'b>(&self, context: &Context, buffers: impl Iterator<Item = &'b Buffer>) -> Result<u64, Fault> {
        let mut total = 0u64;
        for (number, buffer) in buffers.enumerate() {
            let words = buffer.bytes() / 4;
            // No more blocks than the words keep busy.
            let blocks = u64::from(self.blocks).min(words.div_ceil(u64::from(harness::THREADS)).max(1)) as u32;
            let mut arguments = [vec![buffer.address()], vec![words], vec![self.sums.address()]];
            self.function.launch(context, [blocks, 1, 1], [harness::THREADS, 1, 1], 0, &mut arguments)?;
            let mut bytes = vec![0u8; blocks as usize * (harness::THREADS as usize / 32) * 8];
            context.download(&self.sums, &mut bytes)?;
            let sum = bytes
                .chunks_exact(8)
                .map(|chunk| u64::from_le_bytes(chunk.try_into().expect("chunks of eight")))
                .fold(0u64, u64::wrapping_add);
            total = total.wrapping_add(sum.rotate_left(number as u32 % 64));
        }
        Ok(total)
    }
}
