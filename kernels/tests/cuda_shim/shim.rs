//! Compiles `.cu` files for the CPU and executes plans in the host shim.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock, Mutex, OnceLock};

use attn_kernels::cuda::{Argument, CudaPlan, HEADERS, Header, Launch, Module, TensorMap};
use attn_kernels::tensor::{ElementType, Tensor, TensorName, TensorSet};
use libloading::Library;

/// The shim's headers, whose change means that everything is compiled anew.
static SHIM: LazyLock<Vec<String>> = LazyLock::new(|| {
    let entries = std::fs::read_dir(cuda_folder().join("shim")).expect("the shim is there");
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "h"));
    paths.sort();
    paths.iter().map(|path| std::fs::read_to_string(path).expect("a header is text")).collect()
});

/// `struct Allocation` of the shim.
#[repr(C)]
struct Allocation {
    base: *mut u8,
    bytes: u64,
    name: *const c_char,
    is_defined: *mut u8,
    is_writable: u32,
}

type Signature = unsafe extern "C" fn(*const c_char) -> *const c_char;
type LaunchFunction = unsafe extern "C" fn(
    *const c_char,
    *const u32,
    *const u32,
    u32,
    *mut *mut c_void,
    *const Allocation,
    u32,
    *mut c_char,
    u64,
) -> bool;

type LeaveOutFunction = unsafe extern "C" fn(*const c_char, i32);

type ReverseFunction = unsafe extern "C" fn(bool);

thread_local! {
    /// The barrier that launches of this thread leave out: a file and a line.
    static LEFT_OUT: RefCell<(CString, i32)> = RefCell::default();
    /// Whether launches of this thread run their last block first.
    static IS_REVERSED: Cell<bool> = const { Cell::new(false) };
}

/// Does something with blocks in the opposite order.
pub(crate) fn with_blocks_reversed<T>(work: impl FnOnce() -> T) -> T {
    IS_REVERSED.set(true);
    let done = work();
    IS_REVERSED.set(false);
    done
}

/// Does something without the barrier or wait of a place in the sources.
pub(crate) fn without_barrier<T>(file: &str, line: i32, work: impl FnOnce() -> T) -> T {
    LEFT_OUT.set((CString::new(file).expect("a name without zeros"), line));
    let done = work();
    LEFT_OUT.take();
    done
}

/// A module as a shared object in this process.
pub(crate) struct Compiled {
    library: Library,
}

impl Compiled {
    /// A function that the shim exports.
    ///
    /// # Safety
    /// The type is the function's.
    pub(crate) unsafe fn get<T: Copy>(&self, name: &[u8]) -> T {
        // SAFETY: the caller's.
        *unsafe { self.library.get::<T>(name) }.expect("the shim exports it")
    }
}

/// One slot a module, filled by whoever needs it first.
type Slot = Arc<OnceLock<Compiled>>;
type Slots = HashMap<(PathBuf, Vec<String>), Slot>;
static COMPILED: LazyLock<Mutex<Slots>> = LazyLock::new(Default::default);

/// A `.cu` file compiled with these options, once a process; kept in the target folder for the next.
pub(crate) fn compile(path: &Path, options: &[String]) -> Slot {
    let key = (path.to_path_buf(), options.to_vec());
    let slot = COMPILED.lock().expect("no test panics with the lock").entry(key).or_default().clone();
    slot.get_or_init(|| build(path, options));
    slot
}

/// A module of a plan, from its file in this folder, so that errors name real lines.
fn compile_module(folder: &Path, module: &Module) -> Slot {
    compile(&folder.join(module.source.name), &module.options())
}

pub(crate) fn cuda_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda")
}

fn build(path: &Path, options: &[String]) -> Compiled {
    let source = std::fs::read_to_string(path).expect("the source exists");
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = cpu.lines().find(|line| line.starts_with("flags")).unwrap_or("").to_string();
    let mut all = vec![source, flags, options.join(" ")];
    all.extend(SHIM.iter().cloned());
    // The headers beside it, which may differ from those that are embedded.
    let beside = |header: &Header| path.parent().map(|folder| folder.join(header.name));
    all.extend(HEADERS.iter().filter_map(|header| std::fs::read_to_string(beside(header)?).ok()));
    let hash = all
        .join("\0")
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda_shim");
    std::fs::create_dir_all(&folder).expect("a folder for shared objects");
    let stem = path.file_stem().and_then(|stem| stem.to_str()).expect("a source has a name");
    let object = folder.join(format!("{stem}-{hash:016x}.so"));
    if !object.exists() {
        let unfinished = folder.join(format!("{stem}-{hash:016x}.{}.tmp", std::process::id()));
        let compiler = std::env::var("CXX").unwrap_or_else(|_| "g++".into());
        let output = Command::new(&compiler)
            .args(["-std=c++17", "-O2", "-march=native", "-fPIC", "-shared", "-DATTN_HOST_SHIM", "-x", "c++"])
            .args(["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-unused-function"])
            .args(options)
            .arg("-I")
            .arg(cuda_folder())
            .arg("-o")
            .arg(&unfinished)
            .arg(path)
            .output()
            .unwrap_or_else(|error| panic!("{compiler}: {error}; a C++17 compiler is needed, or name one in CXX"));
        let log = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "compiling {} {options:?}:\n{log}", path.display());
        std::fs::rename(&unfinished, &object).expect("the object can be renamed");
    }
    // SAFETY: the object was compiled from sources of this repository; its initialisers only register kernels.
    let library = unsafe { Library::new(&object) }.unwrap_or_else(|error| panic!("{}: {error:?}", object.display()));
    Compiled { library }
}

/// What a kernel may touch, and where each part of it is.
#[derive(Default)]
pub(crate) struct Memory {
    allocations: Vec<Allocation>,
    names: Vec<CString>,
    /// Workspaces, tables and the marks of what is defined.
    owned: Vec<Tensor>,
}

impl Memory {
    /// Adds memory that is initialised; returns its address.
    pub(crate) fn add(&mut self, name: &str, base: *mut u8, bytes: usize, is_writable: bool) -> *mut u8 {
        self.names.push(CString::new(name).expect("a name without zeros"));
        let name = self.names.last().expect("just added").as_ptr();
        let is_defined = std::ptr::null_mut();
        self.allocations.push(Allocation {
            base,
            bytes: bytes as u64,
            name,
            is_defined,
            is_writable: u32::from(is_writable),
        });
        base
    }

    fn own(&mut self, bytes: usize, fill: u8) -> *mut u8 {
        let mut tensor = Tensor::zeros(ElementType::Bool, &[bytes.max(1)]);
        tensor.bytes_mut().fill(fill);
        self.owned.push(tensor);
        self.owned.last_mut().expect("just added").bytes_mut().as_mut_ptr()
    }

    /// Adds memory that nobody has written.
    pub(crate) fn workspace(&mut self, name: &str, bytes: usize) -> *mut u8 {
        let (base, is_defined) = (self.own(bytes, 0xff), self.own(bytes, 0));
        self.add(name, base, bytes, true);
        self.allocations.last_mut().expect("just added").is_defined = is_defined;
        base
    }

    /// Adds a copy that kernels may only read.
    pub(crate) fn table(&mut self, name: &str, bytes: &[u8]) -> *mut u8 {
        let base = self.own(bytes.len(), 0);
        let table = self.owned.last_mut().expect("just added");
        table.bytes_mut()[..bytes.len()].copy_from_slice(bytes);
        self.add(name, base, bytes.len(), false)
    }
}

/// A parameter's letter in the shim's signatures, and its bytes in whole words.
fn value(letter: &str, bytes: &[u8]) -> (String, Vec<u64>) {
    let mut words = vec![0u64; bytes.len().div_ceil(8)];
    for (index, &byte) in bytes.iter().enumerate() {
        words[index / 8] |= u64::from(byte) << (8 * (index % 8));
    }
    (letter.to_string(), words)
}

/// Launches one kernel; `arguments` are letters and words.
pub(crate) fn launch(
    compiled: &Compiled,
    entry: &str,
    grid: [u32; 3],
    block: [u32; 3],
    shared_bytes: u32,
    arguments: &[(String, Vec<u64>)],
    memory: &Memory,
) -> Result<(), String> {
    let name = CString::new(entry).expect("a name without zeros");
    // SAFETY: the types are those of shim.h.
    let signature = unsafe {
        let symbol = compiled.library.get::<Signature>(b"shim_signature").expect("the shim exports it");
        let text = symbol(name.as_ptr());
        if text.is_null() { None } else { Some(CStr::from_ptr(text).to_string_lossy().into_owned()) }
    };
    let given: String = arguments.iter().map(|(letter, _)| format!("{letter};")).collect();
    match signature {
        None => return Err(format!("there is no kernel {entry}")),
        Some(signature) if signature != given => {
            return Err(format!("{entry} has parameters {signature}, the plan gives {given}"));
        }
        Some(_) => {}
    }
    let mut words: Vec<Vec<u64>> = arguments.iter().map(|(_, words)| words.clone()).collect();
    let mut pointers: Vec<*mut c_void> = words.iter_mut().map(|words| words.as_mut_ptr().cast()).collect();
    let mut error = vec![0u8; 2048];
    let left_out = LEFT_OUT.take();
    // SAFETY: the type is that of shim.h, and the name outlives the launch.
    unsafe { compiled.get::<LeaveOutFunction>(b"shim_leave_out")(left_out.0.as_ptr(), left_out.1) };
    // SAFETY: the type is that of shim.h.
    unsafe { compiled.get::<ReverseFunction>(b"shim_reverse_blocks")(IS_REVERSED.get()) };
    // SAFETY: as many arguments of the right sizes as the kernel has parameters; the allocations outlive the call.
    let is_done = unsafe {
        let symbol = compiled.library.get::<LaunchFunction>(b"shim_launch").expect("the shim exports it");
        symbol(
            name.as_ptr(),
            grid.as_ptr(),
            block.as_ptr(),
            shared_bytes,
            pointers.as_mut_ptr(),
            memory.allocations.as_ptr(),
            memory.allocations.len() as u32,
            error.as_mut_ptr().cast(),
            error.len() as u64,
        )
    };
    // SAFETY: as above.
    unsafe { compiled.get::<LeaveOutFunction>(b"shim_leave_out")(c"".as_ptr(), 0) };
    LEFT_OUT.set(left_out);
    if is_done {
        return Ok(());
    }
    let text = CStr::from_bytes_until_nul(&error).map(CStr::to_string_lossy).unwrap_or_default();
    Err(text.into_owned())
}

/// A tensor map as the driver would make it, as words; or why it would refuse to.
pub(crate) fn encode(compiled: &Compiled, base: *mut u8, map: &TensorMap) -> Result<Vec<u64>, String> {
    type Encode =
        unsafe extern "C" fn(*mut u64, *mut c_void, u32, u32, *const u32, *const u64, *const u32, u32) -> *const c_char;
    let mut words = vec![0u64; 16];
    let TensorMap { element_bytes, sizes, strides_bytes, tile, swizzle_bytes, .. } = map;
    assert!(sizes.len() == tile.len() && sizes.len() == strides_bytes.len() + 1, "{map:?}");
    let rank = sizes.len() as u32;
    let swizzle = [0, 32, 64, 128].iter().position(|known| known == swizzle_bytes).expect("a swizzle") as u32;
    let (sizes, strides, tile) = (sizes.as_ptr(), strides_bytes.as_ptr(), tile.as_ptr());
    // SAFETY: the type is that of tiles.h, and every array has `rank` elements, the strides one less.
    let refusal = unsafe {
        let encode = compiled.get::<Encode>(b"shim_tensor_map");
        encode(words.as_mut_ptr(), base.cast(), rank, *element_bytes, sizes, strides, tile, swizzle)
    };
    if refusal.is_null() {
        return Ok(words);
    }
    // SAFETY: the shim returns a static string.
    Err(unsafe { CStr::from_ptr(refusal) }.to_string_lossy().into_owned())
}

/// Executes a plan as a GPU back end would, with the sources of this folder.
pub(crate) fn run(folder: &Path, plan: &CudaPlan, inputs: &TensorSet, outputs: &mut TensorSet) -> Result<(), String> {
    let mut memory = Memory::default();
    let mut tensors: HashMap<TensorName, *mut u8> = HashMap::new();
    for (name, tensor) in inputs.iter() {
        let bytes = tensor.bytes();
        tensors.insert(name, memory.add(&format!("{name:?}"), bytes.as_ptr().cast_mut(), bytes.len(), false));
    }
    for (name, tensor) in outputs.iter_mut() {
        let bytes = tensor.bytes_mut();
        tensors.insert(name, memory.add(&format!("{name:?}"), bytes.as_mut_ptr(), bytes.len(), true));
    }
    let workspaces: Vec<*mut u8> = plan
        .workspaces
        .iter()
        .enumerate()
        .map(|(number, &bytes)| memory.workspace(&format!("workspace {number}"), bytes as usize))
        .collect();
    let tables: Vec<*mut u8> =
        plan.tables.iter().enumerate().map(|(number, bytes)| memory.table(&format!("table {number}"), bytes)).collect();
    let pointer = |address: *mut u8| ("P".to_string(), vec![address as u64]);
    let tensor = |name: &TensorName| *tensors.get(name).unwrap_or_else(|| panic!("no tensor {name:?}"));
    for Launch { module, entry, grid, block, shared_bytes, arguments } in &plan.launches {
        let slot = compile_module(folder, &plan.modules[*module]);
        let compiled = slot.get().expect("compiled");
        // A grid without blocks is nothing to do, as for the back end.
        if grid.contains(&0) {
            continue;
        }
        let arguments: Vec<(String, Vec<u64>)> = arguments
            .iter()
            .map(|argument| {
                Ok(match argument {
                    Argument::Tensor(name) => pointer(tensor(name)),
                    Argument::OptionalTensor(name) => {
                        pointer(tensors.get(name).copied().unwrap_or(std::ptr::null_mut()))
                    }
                    Argument::Workspace(number) => pointer(workspaces[*number]),
                    Argument::Table(number) => pointer(tables[*number]),
                    Argument::Null => pointer(std::ptr::null_mut()),
                    Argument::U32(x) => value("U", &x.to_le_bytes()),
                    Argument::I32(x) => value("I", &x.to_le_bytes()),
                    Argument::F32(x) => value("F", &x.to_le_bytes()),
                    Argument::U64(x) => value("L", &x.to_le_bytes()),
                    Argument::Bytes(bytes) => value(&format!("S{}", bytes.len()), bytes),
                    Argument::TensorMap(map) => (
                        "S128".to_string(),
                        encode(compiled, tensor(&map.tensor), map).map_err(|refusal| format!("{entry}: {refusal}"))?,
                    ),
                })
            })
            .collect::<Result<_, String>>()?;
        launch(compiled, entry, *grid, *block, *shared_bytes, &arguments, &memory)?;
    }
    Ok(())
}
