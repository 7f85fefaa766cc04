//! How many blocks of a kernel a multiprocessor holds, from the assembler's figures alone: what the driver would say, without
//! one.

use super::DeviceFacts;

/// What a multiprocessor has to share out (CUDA C++ Programming Guide, technical specifications per compute capability).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Multiprocessor {
    /// Threads at a time.
    pub threads: u32,
    /// Blocks at a time.
    pub blocks: u32,
    /// Registers, 32 bits each.
    pub registers: u32,
    /// Bytes of shared memory.
    pub shared_bytes: u32,
    /// What plans need to know of such a device.
    pub device: DeviceFacts,
}

/// Registers are given to warps in units of so many.
const REGISTER_UNIT: u32 = 256;
/// Bytes of shared memory that the system keeps of each block's.
const SYSTEM_SHARED_BYTES: u32 = 1024;
/// Bytes that shared memory is given out in.
const SHARED_UNIT: u32 = 128;

impl Multiprocessor {
    /// That of an architecture; `None` where its figures are not here.
    pub fn of(architecture: &str) -> Option<Multiprocessor> {
        let (shared_bytes, device) = match architecture {
            "sm_80" => (164 << 10, DeviceFacts::A100),
            "sm_90" | "sm_90a" => (228 << 10, DeviceFacts::H200),
            _ => return None,
        };
        Some(Multiprocessor { threads: 2048, blocks: 32, registers: 64 << 10, shared_bytes, device })
    }

    /// Blocks of `threads` threads with so many registers a thread and bytes of shared memory a block; 0 where not one fits.
    pub fn resident_blocks(&self, threads: u32, registers: u32, shared_bytes: u32) -> u32 {
        let warps = threads.div_ceil(32).max(1);
        let of_warp = (registers.max(1) * 32).next_multiple_of(REGISTER_UNIT);
        let of_block = (shared_bytes + SYSTEM_SHARED_BYTES).next_multiple_of(SHARED_UNIT);
        let limits = [
            self.blocks,
            self.threads / (32 * warps),
            // Each of the four schedulers has its own quarter of the registers, which warps do not share.
            4 * (self.registers / 4 / of_warp) / warps,
            self.shared_bytes / of_block,
        ];
        limits.into_iter().min().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scarcest_resource_decides() {
        let hopper = Multiprocessor::of("sm_90a").unwrap();
        // The figures of NVIDIA's occupancy calculator.
        assert_eq!(hopper.resident_blocks(128, 32, 0), 16, "threads");
        assert_eq!(hopper.resident_blocks(32, 16, 0), 32, "blocks");
        assert_eq!(hopper.resident_blocks(128, 255, 0), 4 * (16384 / 8192) / 4, "registers");
        assert_eq!(hopper.resident_blocks(128, 168, 0), 3, "registers");
        assert_eq!(hopper.resident_blocks(256, 128, 0), 2, "registers");
        assert_eq!(hopper.resident_blocks(128, 64, 113 << 10), 2, "shared memory, with the system's");
        assert_eq!(hopper.resident_blocks(128, 64, 227 << 10), 1);
        assert_eq!(hopper.resident_blocks(1024, 255, 0), 0, "not one");
        assert_eq!(Multiprocessor::of("sm_80").unwrap().resident_blocks(128, 64, 163 << 10), 1);
        assert_eq!(Multiprocessor::of("sm_100f"), None);
    }
}
