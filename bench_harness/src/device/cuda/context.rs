//! A device opened for measuring: its context, one stream, and memory that is counted.

use std::cell::Cell;
use std::ffi::c_void;
use std::rc::Rc;

use attn_kernels::cuda::DeviceFacts;
use cudarc::driver::{result, sys};

use super::driver::{Fault, check};
use super::list::CudaDevice;

/// Bytes that allocations are counted in: what [`attn_kernels::cuda::CudaPlan::device_bytes`] counts in too.
const GRANULE_BYTES: u64 = 256;

/// Bytes that this process has taken of a device, now and at most.
#[derive(Default)]
struct Ledger {
    current_bytes: Cell<u64>,
    peak_bytes: Cell<u64>,
}

/// An open device. It belongs to the thread that opened it.
pub struct Context {
    device: CudaDevice,
    stream: sys::CUstream,
    ledger: Rc<Ledger>,
}

impl Context {
    /// Opens a device that [`super::devices`] lists.
    pub fn open(device: &CudaDevice) -> Result<Context, Fault> {
        let doing = "opening the device";
        let failed = |error: result::DriverError| check(doing, error.0).expect_err("an error is no success");
        let handle = result::device::get(device.ordinal).map_err(failed)?;
        // SAFETY: the handle comes from the driver; the context is kept until the process ends.
        unsafe {
            let context = result::primary_ctx::retain(handle).map_err(failed)?;
            result::ctx::set_current(context).map_err(failed)?;
        }
        let mut stream = std::ptr::null_mut();
        let non_blocking = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the stream is valid for writes, and a context is current.
        check("making a stream", unsafe { sys::cuStreamCreate(&mut stream, non_blocking) })?;
        Ok(Context { device: device.clone(), stream, ledger: Rc::default() })
    }

    /// The device.
    pub fn device(&self) -> &CudaDevice {
        &self.device
    }

    /// What plans need to know of it.
    pub fn facts(&self) -> DeviceFacts {
        let (major, minor) = self.device.compute_capability;
        DeviceFacts {
            compute_capability: (10 * major + minor) as u32,
            multiprocessors: self.device.multiprocessors as u32,
            shared_bytes_per_block: self.device.shared_bytes_per_block as u32,
        }
    }

    /// The stream of every call.
    pub(super) fn stream(&self) -> sys::CUstream {
        self.stream
    }

    /// Bytes that can be allocated now.
    pub fn free_bytes(&self) -> Result<u64, Fault> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: both are valid for writes.
        check("asking for free memory", unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) })?;
        Ok(free as u64)
    }

    /// Bytes that are allocated now.
    pub fn current_bytes(&self) -> u64 {
        self.ledger.current_bytes.get()
    }

    /// Bytes that were allocated at most since [`Context::reset_peak`].
    pub fn peak_bytes(&self) -> u64 {
        self.ledger.peak_bytes.get()
    }

    /// Sets the high-water mark back to what is allocated now.
    pub fn reset_peak(&self) {
        self.ledger.peak_bytes.set(self.current_bytes());
    }

    /// Takes memory of undefined contents, aligned to 256 bytes.
    pub fn allocate(&self, bytes: u64) -> Result<Buffer, Fault> {
        let mut address = 0;
        // SAFETY: the address is valid for writes. No byte at all cannot be asked for.
        check("allocating device memory", unsafe { sys::cuMemAlloc_v2(&mut address, bytes.max(1) as usize) })?;
        let ledger = Rc::clone(&self.ledger);
        ledger.current_bytes.set(ledger.current_bytes.get() + bytes.next_multiple_of(GRANULE_BYTES));
        ledger.peak_bytes.set(ledger.peak_bytes.get().max(ledger.current_bytes.get()));
        Ok(Buffer { address, bytes, ledger })
    }

    /// Copies to the device; returns when that is done.
    pub fn upload(&self, bytes: &[u8], to: &Buffer) -> Result<(), Fault> {
        assert!(bytes.len() as u64 <= to.bytes, "{} bytes do not fit {}", bytes.len(), to.bytes);
        if bytes.is_empty() {
            return Ok(());
        }
        let from = bytes.as_ptr().cast::<c_void>();
        // SAFETY: both sides hold as many bytes, and the source lives until the stream has been waited for.
        check("copying to the device", unsafe {
            sys::cuMemcpyHtoDAsync_v2(to.address, from, bytes.len(), self.stream)
        })?;
        self.wait()
    }

    /// Copies from the device; returns when that is done. Waits for this stream alone.
    pub fn download(&self, from: &Buffer, bytes: &mut [u8]) -> Result<(), Fault> {
        assert!(bytes.len() as u64 <= from.bytes, "{} bytes are more than {}", bytes.len(), from.bytes);
        if bytes.is_empty() {
            return Ok(());
        }
        let to = bytes.as_mut_ptr().cast::<c_void>();
        // SAFETY: both sides hold as many bytes, and the target lives until the stream has been waited for.
        check("copying from the device", unsafe {
            sys::cuMemcpyDtoHAsync_v2(to, from.address, bytes.len(), self.stream)
        })?;
        self.wait()
    }

    /// Fills with a pattern of 2 or 4 bytes, or of single bytes; returns at once.
    pub fn fill(&self, buffer: &Buffer, pattern: Pattern) -> Result<(), Fault> {
        let (bytes, address) = (buffer.bytes as usize, buffer.address);
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the buffer holds as many elements as are filled.
        check("filling device memory", unsafe {
            match pattern {
                Pattern::Byte(value) => sys::cuMemsetD8Async(address, value, bytes, self.stream),
                Pattern::Half(value) => sys::cuMemsetD16Async(address, value, bytes / 2, self.stream),
                Pattern::Word(value) => sys::cuMemsetD32Async(address, value, bytes / 4, self.stream),
            }
        })
    }

    /// Waits for everything of this stream.
    pub fn wait(&self) -> Result<(), Fault> {
        // SAFETY: the stream is a live one.
        check("waiting for the stream", unsafe { sys::cuStreamSynchronize(self.stream) })
    }

    /// Waits for everything on the device that this process started, on whatever stream.
    pub fn wait_for_all(&self) -> Result<(), Fault> {
        // SAFETY: a context is current.
        check("waiting for the device", unsafe { sys::cuCtxSynchronize() })
    }
}

/// What memory is filled with.
#[derive(Clone, Copy, Debug)]
pub enum Pattern {
    /// Every byte.
    Byte(u8),
    /// Every two bytes.
    Half(u16),
    /// Every four bytes.
    Word(u32),
}

/// Device memory, given back when dropped.
pub struct Buffer {
    address: sys::CUdeviceptr,
    bytes: u64,
    ledger: Rc<Ledger>,
}

impl Buffer {
    /// Where it is on the device.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// How many bytes it has.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // A context that has failed gives nothing back, and its process ends anyway.
        // SAFETY: the address came from `cuMemAlloc` and is freed once. Freeing waits for work that uses it.
        let _ = unsafe { sys::cuMemFree_v2(self.address) };
        let current = self.ledger.current_bytes.get();
        self.ledger.current_bytes.set(current.saturating_sub(self.bytes.next_multiple_of(GRANULE_BYTES)));
    }
}
