//! Tensors in files: `.npy` and `.safetensors`, chosen by extension, the two formats that every framework can write.
//!
//! An [`Array`] is what a file holds and nothing more: element type, shape and bytes. What the numbers mean is decided
//! where they are used. Files are untrusted: every size is checked against the file's length before memory is taken.

mod npy;
mod output;
mod safetensors;

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::str::FromStr;

pub use output::PendingFile;

// Files are little-endian and are read into the memory that kernels use.
#[cfg(target_endian = "big")]
compile_error!("tensor files are read and written for little-endian machines");

/// Element types that both formats can hold and that some input of a command may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileDtype {
    /// One byte, 0 or 1.
    Bool,
    /// Signed, 8 bits.
    I8,
    /// Signed, 16 bits.
    I16,
    /// Signed, 32 bits.
    I32,
    /// Signed, 64 bits.
    I64,
    /// Unsigned, 8 bits.
    U8,
    /// Unsigned, 16 bits; some programs store bfloat16 this way.
    U16,
    /// Unsigned, 32 bits.
    U32,
    /// Unsigned, 64 bits.
    U64,
    /// IEEE binary16.
    F16,
    /// bfloat16.
    Bf16,
    /// IEEE binary32.
    F32,
    /// IEEE binary64.
    F64,
}

impl FileDtype {
    /// Every element type.
    pub const ALL: [FileDtype; 13] = [
        FileDtype::Bool,
        FileDtype::I8,
        FileDtype::I16,
        FileDtype::I32,
        FileDtype::I64,
        FileDtype::U8,
        FileDtype::U16,
        FileDtype::U32,
        FileDtype::U64,
        FileDtype::F16,
        FileDtype::Bf16,
        FileDtype::F32,
        FileDtype::F64,
    ];

    /// The name that numpy gives it.
    pub const fn name(self) -> &'static str {
        match self {
            FileDtype::Bool => "bool",
            FileDtype::I8 => "int8",
            FileDtype::I16 => "int16",
            FileDtype::I32 => "int32",
            FileDtype::I64 => "int64",
            FileDtype::U8 => "uint8",
            FileDtype::U16 => "uint16",
            FileDtype::U32 => "uint32",
            FileDtype::U64 => "uint64",
            FileDtype::F16 => "float16",
            FileDtype::Bf16 => "bfloat16",
            FileDtype::F32 => "float32",
            FileDtype::F64 => "float64",
        }
    }

    /// Bytes an element.
    pub const fn bytes(self) -> usize {
        match self {
            FileDtype::Bool | FileDtype::I8 | FileDtype::U8 => 1,
            FileDtype::I16 | FileDtype::U16 | FileDtype::F16 | FileDtype::Bf16 => 2,
            FileDtype::I32 | FileDtype::U32 | FileDtype::F32 => 4,
            FileDtype::I64 | FileDtype::U64 | FileDtype::F64 => 8,
        }
    }
}

impl fmt::Display for FileDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a file holds: little-endian elements, last dimension fastest.
#[derive(Clone, PartialEq)]
pub struct Array {
    /// Type of the elements.
    pub dtype: FileDtype,
    /// Shape.
    pub dims: Vec<usize>,
    /// `dims`' product times `dtype`'s bytes.
    pub bytes: Vec<u8>,
}

impl fmt::Debug for Array {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Array({} {:?})", self.dtype, self.dims)
    }
}

/// A tensor's place: a file and, in a `.safetensors` file, the tensor's name (`weights.safetensors#layer.q`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// The file.
    pub path: PathBuf,
    /// The tensor in it.
    pub tensor: Option<String>,
}

impl FromStr for Location {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const SEPARATOR: &str = ".safetensors#";
        Ok(match text.find(SEPARATOR) {
            Some(position) => {
                let (path, name) = text.split_at(position + SEPARATOR.len());
                Location { path: PathBuf::from(&path[..path.len() - 1]), tensor: Some(name.to_owned()) }
            }
            None => Location { path: PathBuf::from(text), tensor: None },
        })
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        self.tensor.as_ref().map_or(Ok(()), |name| write!(f, "#{name}"))
    }
}

/// Why a tensor could not be read or written: names the operation, the file and the way out.
#[derive(Debug, thiserror::Error)]
#[error("{operation} `{object}`: {reason}")]
pub struct TensorFileError {
    /// `reading` or `writing`.
    operation: &'static str,
    /// The file, and the tensor in it.
    object: String,
    /// What is wrong, and what would be right.
    reason: String,
}

/// The format of a file, by its extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Npy,
    Safetensors,
}

impl Format {
    fn of(path: &Path) -> Result<Format, String> {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("npy") => Ok(Format::Npy),
            Some("safetensors") => Ok(Format::Safetensors),
            _ => Err("the name must end in `.npy` or `.safetensors`".into()),
        }
    }
}

/// Reads a tensor. Errors: no such file, an unknown extension or element type, a header that disagrees with the file's
/// length, a `.safetensors` file with several tensors and no name given.
pub fn read(location: &Location) -> Result<Array, TensorFileError> {
    let fail = |reason| TensorFileError { operation: "reading", object: location.to_string(), reason };
    let format = Format::of(&location.path).map_err(fail)?;
    let mut file = File::open(&location.path).map_err(|cause| fail(cause.to_string()))?;
    let metadata = file.metadata().map_err(|cause| fail(cause.to_string()))?;
    if !metadata.is_file() {
        return Err(fail("this is no regular file".into()));
    }
    match format {
        Format::Npy => npy::read(&mut file, metadata.len()),
        Format::Safetensors => safetensors::read(&mut file, metadata.len(), location.tensor.as_deref()),
    }
    .map_err(fail)
}

/// Bytes of a tensor of this shape, or why there is no such tensor.
fn size_bytes(dtype: FileDtype, dims: &[usize]) -> Result<usize, String> {
    dims.iter()
        .try_fold(dtype.bytes(), |bytes, &dim| bytes.checked_mul(dim))
        .filter(|&bytes| bytes <= isize::MAX as usize)
        .ok_or_else(|| format!("the shape {dims:?} overflows"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_names_a_file_and_perhaps_a_tensor() {
        let parse = |text: &str| text.parse::<Location>().unwrap();
        let named = parse("dir.safetensors/a.safetensors#layer#0.q");
        assert_eq!(named.path, PathBuf::from("dir.safetensors/a.safetensors"));
        assert_eq!(named.tensor.as_deref(), Some("layer#0.q"));
        assert_eq!(named.to_string(), "dir.safetensors/a.safetensors#layer#0.q");
        let plain = parse("run#3/q.npy");
        assert_eq!((plain.path, plain.tensor), (PathBuf::from("run#3/q.npy"), None));
    }

    #[test]
    fn sizes_that_overflow_are_errors() {
        assert_eq!(size_bytes(FileDtype::F32, &[2, 3]), Ok(24));
        assert!(size_bytes(FileDtype::F32, &[usize::MAX, 2]).is_err());
        assert!(size_bytes(FileDtype::Bool, &[usize::MAX]).is_err());
    }
}
