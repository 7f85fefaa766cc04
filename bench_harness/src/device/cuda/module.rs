//! Loaded machine code and its functions.

use std::ffi::{CString, c_int, c_void};

use cudarc::driver::sys::{self, CUfunction_attribute};

use super::context::Context;
use super::driver::{Fault, check};

/// Dynamic shared memory that a function may have without being allowed it first, in bytes.
const SHARED_BYTES_FREE: u32 = 48 << 10;

/// A module in the context of this thread, unloaded when dropped.
pub struct LoadedModule {
    handle: sys::CUmodule,
}

impl LoadedModule {
    /// Loads a cubin, a fat binary, or PTX as text, which the driver compiles.
    pub fn load(image: &[u8]) -> Result<LoadedModule, Fault> {
        // PTX ends at a zero; behind a cubin one does no harm.
        let image = [image, &[0]].concat();
        let mut handle = std::ptr::null_mut();
        // SAFETY: the image is a complete one of whatever it is, with a zero after it; the driver copies it.
        check("loading a module", unsafe { sys::cuModuleLoadData(&mut handle, image.as_ptr().cast::<c_void>()) })?;
        Ok(LoadedModule { handle })
    }

    /// The kernel of that name.
    pub fn function(&self, name: &str) -> Result<Function, Fault> {
        let name = CString::new(name).expect("names of kernels have no zero");
        let mut handle = std::ptr::null_mut();
        // SAFETY: the module is loaded, and the name ends with a zero.
        check("finding a kernel", unsafe { sys::cuModuleGetFunction(&mut handle, self.handle, name.as_ptr()) })?;
        Ok(Function { handle })
    }
}

impl Drop for LoadedModule {
    fn drop(&mut self) {
        // SAFETY: the module was loaded by this thread's context and is unloaded once.
        let _ = unsafe { sys::cuModuleUnload(self.handle) };
    }
}

/// A kernel of a loaded module, valid as long as that is.
#[derive(Clone, Copy)]
pub struct Function {
    handle: sys::CUfunction,
}

impl Function {
    fn attribute(&self, attribute: CUfunction_attribute) -> Result<u32, Fault> {
        let mut value: c_int = 0;
        // SAFETY: the number is valid for writes, and the function is a live one.
        check("asking about a kernel", unsafe { sys::cuFuncGetAttribute(&mut value, attribute, self.handle) })?;
        Ok(value.max(0) as u32)
    }

    /// Registers a thread.
    pub fn registers(&self) -> Result<u32, Fault> {
        self.attribute(CUfunction_attribute::CU_FUNC_ATTRIBUTE_NUM_REGS)
    }

    /// Bytes a thread that are not in registers: spills and arrays.
    pub fn local_bytes(&self) -> Result<u32, Fault> {
        self.attribute(CUfunction_attribute::CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)
    }

    /// Bytes of shared memory that are part of the kernel.
    pub fn static_shared_bytes(&self) -> Result<u32, Fault> {
        self.attribute(CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)
    }

    /// Allows it as much dynamic shared memory as its launch will ask for.
    pub fn allow_shared(&self, bytes: u32) -> Result<(), Fault> {
        if bytes <= SHARED_BYTES_FREE {
            return Ok(());
        }
        let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function is a live one.
        check("allowing a kernel its shared memory", unsafe {
            sys::cuFuncSetAttribute(self.handle, attribute, bytes as c_int)
        })
    }

    /// Blocks of a launch that a multiprocessor holds at a time.
    pub fn blocks_per_multiprocessor(&self, threads: u32, shared_bytes: u32) -> Result<u32, Fault> {
        let mut blocks: c_int = 0;
        // SAFETY: the number is valid for writes, and the function is a live one.
        check("asking for a kernel's occupancy", unsafe {
            sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(
                &mut blocks,
                self.handle,
                threads as c_int,
                shared_bytes as usize,
            )
        })?;
        Ok(blocks.max(0) as u32)
    }

    /// Launches it on the context's stream. Each argument is a parameter's bytes in whole words.
    ///
    /// The caller answers for what the kernel does with them: as many, of the sizes, and to memory, as it was written for.
    pub fn launch(
        &self,
        context: &Context,
        grid: [u32; 3],
        block: [u32; 3],
        shared_bytes: u32,
        arguments: &mut [Vec<u64>],
    ) -> Result<(), Fault> {
        let mut pointers: Vec<*mut c_void> = arguments.iter_mut().map(|words| words.as_mut_ptr().cast()).collect();
        // SAFETY: the pointers are those of live words, which the driver copies before it returns.
        check("launching", unsafe {
            sys::cuLaunchKernel(
                self.handle,
                grid[0],
                grid[1],
                grid[2],
                block[0],
                block[1],
                block[2],
                shared_bytes,
                context.stream(),
                pointers.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        })
    }
}
