//! NVRTC at first use, and its machine code kept on disk.
//!
//! A cubin is kept under a hash of all that decides it: source, headers, options, architecture and version of NVRTC. A file
//! that is cut short or damaged is compiled anew; one that cannot be written is compiled again next time.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};

use attn_kernels::cuda::nvrtc::{Cubin, Nvrtc, NvrtcError};
use attn_kernels::cuda::{HEADERS, Module};

use crate::files::write_atomically;

/// The environment variable that names the folder in which compiled kernels are kept.
pub const CACHE_VARIABLE: &str = "ATTNBENCH_CACHE";

/// Compiles for one architecture.
pub struct Compiler {
    architecture: String,
    folder: Option<PathBuf>,
    nvrtc: OnceCell<Nvrtc>,
}

/// Machine code, and whether it had to be compiled.
pub struct Compiled {
    /// The code and the compiler's log.
    pub cubin: Cubin,
    /// Whether NVRTC ran.
    pub is_new: bool,
}

impl Compiler {
    /// For devices of this compute capability (major, minor).
    pub fn new((major, minor): (i32, i32)) -> Compiler {
        // Architectures with an `a` have the instructions that only that one has: wgmma and its like.
        let suffix = if major >= 9 { "a" } else { "" };
        let folder = match std::env::var_os(CACHE_VARIABLE) {
            Some(folder) => Some(PathBuf::from(folder)),
            None => std::env::var_os("XDG_CACHE_HOME")
                .map(PathBuf::from)
                .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))
                .map(|folder| folder.join("attnbench")),
        };
        Compiler {
            architecture: format!("sm_{major}{minor}{suffix}"),
            folder: folder.filter(|folder| !folder.as_os_str().is_empty()),
            nvrtc: OnceCell::new(),
        }
    }

    /// `sm_90a`.
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// Major and minor version of NVRTC.
    pub fn version(&self) -> Result<(u32, u32), NvrtcError> {
        self.nvrtc().map(Nvrtc::version)
    }

    fn nvrtc(&self) -> Result<&Nvrtc, NvrtcError> {
        if self.nvrtc.get().is_none() {
            let _ = self.nvrtc.set(Nvrtc::load()?);
        }
        Ok(self.nvrtc.get().expect("just put there"))
    }

    /// The machine code of a module, compiled unless an earlier process did.
    pub fn compile(&self, module: &Module) -> Result<Compiled, NvrtcError> {
        let nvrtc = self.nvrtc()?;
        let path = self.folder.as_ref().map(|folder| folder.join(self.file_name(module, nvrtc.version())));
        if let Some(cubin) = path.as_ref().and_then(|path| read(path)) {
            return Ok(Compiled { cubin, is_new: false });
        }
        let cubin = nvrtc.compile(module, &self.architecture)?;
        if let Some(path) = path {
            // Nothing depends on it but the next process's time.
            let _ = path.parent().map(std::fs::create_dir_all);
            let _ = write_atomically(&path, &encode(&cubin));
        }
        Ok(Compiled { cubin, is_new: true })
    }

    fn file_name(&self, module: &Module, (major, minor): (u32, u32)) -> String {
        let mut hasher = blake3::Hasher::new();
        let options = module.options().join("\0");
        let version = format!("{major}.{minor}");
        let parts = [module.source.name, module.source.text, &options, &self.architecture, &version];
        for part in parts.into_iter().chain(HEADERS.iter().flat_map(|header| [header.name, header.text])) {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        format!("{}.cubin", &hasher.finalize().to_hex()[..32])
    }
}

/// A hash of what follows, the length of the log, the log, the machine code.
fn encode(cubin: &Cubin) -> Vec<u8> {
    let log = cubin.log.as_bytes();
    let body = [&(log.len() as u64).to_le_bytes()[..], log, &cubin.bytes].concat();
    [blake3::hash(&body).as_bytes(), &body[..]].concat()
}

fn read(path: &Path) -> Option<Cubin> {
    decode(&std::fs::read(path).ok()?)
}

fn decode(file: &[u8]) -> Option<Cubin> {
    let (hash, body) = file.split_at_checked(blake3::OUT_LEN)?;
    if blake3::hash(body).as_bytes() != hash {
        return None;
    }
    let (length, rest) = body.split_at_checked(8)?;
    let length = u64::from_le_bytes(length.try_into().ok()?);
    let (log, bytes) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    Some(Cubin { log: String::from_utf8(log.to_vec()).ok()?, bytes: bytes.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use attn_kernels::cuda::harness;
    use attn_kernels::problem::Dtype;

    #[test]
    fn what_is_kept_is_whole_or_not_there() {
        let cubin = Cubin { bytes: vec![1, 2, 3, 0, 255], log: "ptxas info : ok".into() };
        let file = encode(&cubin);
        assert_eq!(decode(&file), Some(cubin));
        for cut in 0..file.len() {
            assert_eq!(decode(&file[..cut]), None, "cut to {cut} bytes");
            let mut damaged = file.clone();
            damaged[cut] ^= 1;
            assert_eq!(decode(&damaged), None, "byte {cut} damaged");
        }
    }

    #[test]
    fn whatever_decides_the_code_decides_its_name() {
        let hopper = Compiler::new((9, 0));
        assert_eq!(hopper.architecture(), "sm_90a");
        let ampere = Compiler::new((8, 0));
        assert_eq!(ampere.architecture(), "sm_80");
        let module = harness::ceiling(Dtype::Bf16);
        let name = hopper.file_name(&module, (13, 0));
        assert_eq!(name, hopper.file_name(&module, (13, 0)));
        assert_ne!(name, ampere.file_name(&module, (13, 0)));
        assert_ne!(name, hopper.file_name(&module, (13, 1)));
        assert_ne!(name, hopper.file_name(&harness::ceiling(Dtype::F16), (13, 0)));
        assert_ne!(name, hopper.file_name(&harness::timing(), (13, 0)));
    }
}
