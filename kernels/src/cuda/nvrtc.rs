//! NVRTC, NVIDIA's compiler as a library: loaded at run time, needs no GPU.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};

use libloading::Library;

use super::{HEADERS, Module};

/// The environment variable that names the folder of `libnvrtc.so.*`.
pub const NVRTC_VARIABLE: &str = "ATTNBENCH_NVRTC";

/// Why a source was not compiled.
#[derive(Debug, thiserror::Error)]
pub enum NvrtcError {
    /// There is no library to load.
    #[error(
        "loading NVRTC: {0}; install the CUDA toolkit, or run ci/nvrtc.sh and set {NVRTC_VARIABLE} to the folder that it prints"
    )]
    Missing(String),
    /// The source has an error, or the architecture is unknown to this version.
    #[error("compiling {module} for {architecture}: {reason}\n{log}")]
    Compile {
        /// [`Module::label`].
        module: String,
        /// As it was asked for: `sm_90a`.
        architecture: String,
        /// What NVRTC calls the failure.
        reason: String,
        /// What the compiler printed.
        log: String,
    },
}

/// Machine code of a module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cubin {
    /// An ELF file that the driver loads.
    pub bytes: Vec<u8>,
    /// What the compiler and the assembler printed.
    pub log: String,
}

/// What the system's loader says of a library, which the error itself calls `dlopen failed`; it names the library, or this does.
fn cause(path: &Path, error: &libloading::Error) -> String {
    let said = std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
    let name = path.display().to_string();
    if said.contains(&name) { said } else { format!("{name}: {said}") }
}

type Program = *mut c_void;
type Create = unsafe extern "C" fn(
    *mut Program,
    *const c_char,
    *const c_char,
    c_int,
    *const *const c_char,
    *const *const c_char,
) -> c_int;
type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int;
type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;
type Get = unsafe extern "C" fn(Program, *mut c_char) -> c_int;
type Destroy = unsafe extern "C" fn(*mut Program) -> c_int;
type ErrorString = unsafe extern "C" fn(c_int) -> *const c_char;
type Version = unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int;

/// The loaded library.
pub struct Nvrtc {
    create: Create,
    compile: Compile,
    log_size: Size,
    log: Get,
    cubin_size: Size,
    cubin: Get,
    destroy: Destroy,
    error_string: ErrorString,
    version: (u32, u32),
    /// Kept open as long as the functions are.
    _libraries: Vec<Library>,
}

impl Nvrtc {
    /// Loads the library from the folder in [`NVRTC_VARIABLE`], else from where the system finds it.
    pub fn load() -> Result<Nvrtc, NvrtcError> {
        match std::env::var_os(NVRTC_VARIABLE) {
            Some(folder) => Nvrtc::load_from(Path::new(&folder)),
            None => Nvrtc::open(&[], &["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"].map(PathBuf::from)),
        }
    }

    /// Loads the library from this folder.
    pub fn load_from(folder: &Path) -> Result<Nvrtc, NvrtcError> {
        let missing = |text: String| NvrtcError::Missing(text);
        let entries = std::fs::read_dir(folder).map_err(|error| missing(format!("{}: {error}", folder.display())))?;
        let mut names: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        names.sort();
        let of = |prefix: &str| -> Vec<PathBuf> {
            let starts = |path: &&PathBuf| {
                let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                name.starts_with(prefix) && !name.contains(".alt.")
            };
            names.iter().filter(starts).cloned().collect()
        };
        let libraries = of("libnvrtc.so");
        if libraries.is_empty() {
            return Err(missing(format!("{} has no libnvrtc.so.*", folder.display())));
        }
        // The library finds its builtins by name only where they are loaded already.
        Nvrtc::open(&of("libnvrtc-builtins.so"), &libraries)
    }

    /// Opens all the first and one of the second.
    fn open(builtins: &[PathBuf], candidates: &[PathBuf]) -> Result<Nvrtc, NvrtcError> {
        let mut libraries = Vec::new();
        let mut reasons: Vec<String> = Vec::new();
        for path in builtins {
            // SAFETY: loading runs NVIDIA's initialisers, which expect nothing of us.
            let library = unsafe { Library::new(path) };
            let missing = |error| NvrtcError::Missing(cause(path, &error));
            libraries.push(library.map_err(missing)?);
        }
        for path in candidates {
            // SAFETY: as above.
            match unsafe { Library::new(path) } {
                Ok(library) => return Nvrtc::bind(library, libraries),
                Err(error) => reasons.push(cause(path, &error)),
            }
        }
        Err(NvrtcError::Missing(reasons.join("; ")))
    }

    fn bind(library: Library, mut libraries: Vec<Library>) -> Result<Nvrtc, NvrtcError> {
        /// Finds a function. The type is that of `nvrtc.h`.
        macro_rules! function {
            ($type:ty, $name:literal) => {
                // SAFETY: `nvrtc.h` declares the function with this type, the same in all versions since 11.
                *unsafe { library.get::<$type>($name) }.map_err(|error| NvrtcError::Missing(error.to_string()))?
            };
        }
        let version: Version = function!(Version, b"nvrtcVersion");
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both are valid for writes.
        unsafe { version(&mut major, &mut minor) };
        let nvrtc = Nvrtc {
            create: function!(Create, b"nvrtcCreateProgram"),
            compile: function!(Compile, b"nvrtcCompileProgram"),
            log_size: function!(Size, b"nvrtcGetProgramLogSize"),
            log: function!(Get, b"nvrtcGetProgramLog"),
            cubin_size: function!(Size, b"nvrtcGetCUBINSize"),
            cubin: function!(Get, b"nvrtcGetCUBIN"),
            destroy: function!(Destroy, b"nvrtcDestroyProgram"),
            error_string: function!(ErrorString, b"nvrtcGetErrorString"),
            version: (major as u32, minor as u32),
            _libraries: Vec::new(),
        };
        libraries.push(library);
        Ok(Nvrtc { _libraries: libraries, ..nvrtc })
    }

    /// Major and minor version.
    pub fn version(&self) -> (u32, u32) {
        self.version
    }

    /// Compiles a module to machine code of an architecture (`sm_80`, `sm_90a`). The log has registers, spills and shared
    /// memory of every kernel. May be called from several threads at a time.
    pub fn compile(&self, module: &Module, architecture: &str) -> Result<Cubin, NvrtcError> {
        let text = |text: &str| CString::new(text).expect("sources and options have no zeros");
        let source = text(module.source.text);
        let name = text(module.source.name);
        let headers: Vec<CString> = HEADERS.iter().map(|header| text(header.text)).collect();
        let names: Vec<CString> = HEADERS.iter().map(|header| text(header.name)).collect();
        let mut options =
            vec![text("--std=c++17"), text(&format!("--gpu-architecture={architecture}")), text("--ptxas-options=-v")];
        options.extend(module.options().iter().map(|option| text(option)));
        let pointers = |strings: &[CString]| -> Vec<*const c_char> { strings.iter().map(|s| s.as_ptr()).collect() };
        let (headers_at, names_at, options_at) = (pointers(&headers), pointers(&names), pointers(&options));
        let mut program: Program = std::ptr::null_mut();
        // SAFETY: every string outlives the program, and the counts are those of the arrays.
        let (status, log, bytes) = unsafe {
            let status = (self.create)(
                &mut program,
                source.as_ptr(),
                name.as_ptr(),
                headers_at.len() as c_int,
                headers_at.as_ptr(),
                names_at.as_ptr(),
            );
            if status == 0 {
                let status = (self.compile)(program, options_at.len() as c_int, options_at.as_ptr());
                let log = self.fetch(program, self.log_size, self.log);
                let bytes = if status == 0 { self.fetch(program, self.cubin_size, self.cubin) } else { Vec::new() };
                (self.destroy)(&mut program);
                (status, log, bytes)
            } else {
                (status, Vec::new(), Vec::new())
            }
        };
        let log = String::from_utf8_lossy(&log).trim_end_matches('\0').to_string();
        if status == 0 && !bytes.is_empty() {
            return Ok(Cubin { bytes, log });
        }
        // SAFETY: NVRTC returns a static string for every number.
        let reason = unsafe { CStr::from_ptr((self.error_string)(status)) }.to_string_lossy().into_owned();
        Err(NvrtcError::Compile { module: module.label(), architecture: architecture.into(), reason, log })
    }

    /// A size and then as many bytes.
    ///
    /// # Safety
    /// The program is a live one.
    unsafe fn fetch(&self, program: Program, size: Size, get: Get) -> Vec<u8> {
        let mut bytes = 0;
        // SAFETY: the caller's program is live, and the size is valid for writes.
        if unsafe { size(program, &mut bytes) } != 0 {
            return Vec::new();
        }
        let mut buffer = vec![0u8; bytes];
        // SAFETY: the buffer has as many bytes as NVRTC asked for.
        let status = unsafe { get(program, buffer.as_mut_ptr().cast()) };
        if status == 0 { buffer } else { Vec::new() }
    }
}
