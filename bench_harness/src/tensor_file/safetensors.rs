//! The `.safetensors` format. Only the header and the one tensor that is asked for are read: the file may be a model.

use std::borrow::Cow;
use std::io::{Read, Seek, SeekFrom};

use safetensors::tensor::Metadata;
use safetensors::{Dtype, View};

use super::{Array, FileDtype};

/// The format's own limit.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Names that an error message lists.
const MAX_NAMES_SHOWN: usize = 20;

/// Reads the tensor `name`, or the only tensor, from a file of `file_bytes` bytes.
pub(super) fn read(file: &mut (impl Read + Seek), file_bytes: u64, name: Option<&str>) -> Result<Array, String> {
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(|_| "the file is too short for a .safetensors header".to_owned())?;
    let header_bytes = u64::from_le_bytes(length);
    if header_bytes > MAX_HEADER_BYTES || header_bytes > file_bytes - 8 {
        return Err(format!(
            "no valid .safetensors header, or the file is truncated: it claims a header of {header_bytes} bytes in a file \
             of {file_bytes}"
        ));
    }
    let mut header = vec![0; header_bytes as usize];
    file.read_exact(&mut header).map_err(|cause| cause.to_string())?;
    let metadata: Metadata =
        serde_json::from_slice(&header).map_err(|cause| format!("no valid .safetensors header: {cause}"))?;
    let data_start = 8 + header_bytes;
    let (wanted, present) = (metadata.data_len() as u64, file_bytes - data_start);
    if wanted != present {
        let what = if wanted > present { "truncated" } else { "longer than its header says" };
        return Err(format!("the file is {what}: its tensors take {wanted} bytes, {present} follow the header"));
    }
    let name = choose(&metadata.offset_keys(), name)?;
    let info = metadata.info(&name).expect("the name was just found");
    let dtype = file_dtype(info.dtype).ok_or_else(|| {
        format!("tensor `{name}` is {}; supported are F32, F16, BF16, BOOL and the integers", info.dtype)
    })?;
    let (start, end) = info.data_offsets;
    file.seek(SeekFrom::Start(data_start + start as u64)).map_err(|cause| cause.to_string())?;
    let mut bytes = vec![0; end - start];
    file.read_exact(&mut bytes).map_err(|cause| cause.to_string())?;
    Ok(Array { dtype, dims: info.shape.clone(), bytes })
}

fn choose(names: &[String], wanted: Option<&str>) -> Result<String, String> {
    let listed = || {
        let shown: Vec<String> = names.iter().take(MAX_NAMES_SHOWN).map(|name| format!("`{name}`")).collect();
        let more = names.len().saturating_sub(MAX_NAMES_SHOWN);
        if more > 0 { format!("{} and {more} more", shown.join(", ")) } else { shown.join(", ") }
    };
    match (wanted, names) {
        (_, []) => Err("the file holds no tensor".into()),
        (Some(wanted), _) if names.iter().any(|name| name == wanted) => Ok(wanted.to_owned()),
        (Some(_), _) => Err(format!("the file has no tensor of that name, it has {}", listed())),
        (None, [only]) => Ok(only.clone()),
        (None, _) => Err(format!(
            "the file holds {} tensors: choose one with `file.safetensors#name`, it has {}",
            names.len(),
            listed()
        )),
    }
}

const fn file_dtype(dtype: Dtype) -> Option<FileDtype> {
    Some(match dtype {
        Dtype::BOOL => FileDtype::Bool,
        Dtype::I8 => FileDtype::I8,
        Dtype::I16 => FileDtype::I16,
        Dtype::I32 => FileDtype::I32,
        Dtype::I64 => FileDtype::I64,
        Dtype::U8 => FileDtype::U8,
        Dtype::U16 => FileDtype::U16,
        Dtype::U32 => FileDtype::U32,
        Dtype::U64 => FileDtype::U64,
        Dtype::F16 => FileDtype::F16,
        Dtype::BF16 => FileDtype::Bf16,
        Dtype::F32 => FileDtype::F32,
        Dtype::F64 => FileDtype::F64,
        _ => return None,
    })
}

const fn format_dtype(dtype: FileDtype) -> Dtype {
    match dtype {
        FileDtype::Bool => Dtype::BOOL,
        FileDtype::I8 => Dtype::I8,
        FileDtype::I16 => Dtype::I16,
        FileDtype::I32 => Dtype::I32,
        FileDtype::I64 => Dtype::I64,
        FileDtype::U8 => Dtype::U8,
        FileDtype::U16 => Dtype::U16,
        FileDtype::U32 => Dtype::U32,
        FileDtype::U64 => Dtype::U64,
        FileDtype::F16 => Dtype::F16,
        FileDtype::Bf16 => Dtype::BF16,
        FileDtype::F32 => Dtype::F32,
        FileDtype::F64 => Dtype::F64,
    }
}

impl View for &Array {
    fn dtype(&self) -> Dtype {
        format_dtype(self.dtype)
    }
    fn shape(&self) -> &[usize] {
        &self.dims
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }
    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// Writes a file with this one tensor.
pub(super) fn write(file: &mut impl std::io::Write, name: &str, array: &Array) -> std::io::Result<()> {
    let bytes = safetensors::serialize([(name, array)], None).map_err(std::io::Error::other)?;
    file.write_all(&bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::tensor_file::size_bytes;

    fn read_bytes(bytes: &[u8], name: Option<&str>) -> Result<Array, String> {
        read(&mut Cursor::new(bytes), bytes.len() as u64, name)
    }

    #[test]
    fn every_dtype_and_rank_survives_a_round_trip() {
        for dtype in FileDtype::ALL {
            for dims in [vec![], vec![0], vec![5], vec![1, 2, 3, 4]] {
                let bytes = (0..size_bytes(dtype, &dims).unwrap()).map(|byte| byte as u8).collect();
                let array = Array { dtype, dims, bytes };
                let mut file = Vec::new();
                write(&mut file, "o", &array).unwrap();
                assert_eq!(read_bytes(&file, None).unwrap(), array);
                assert_eq!(read_bytes(&file, Some("o")).unwrap(), array);
            }
        }
    }

    #[test]
    fn one_tensor_of_several_is_chosen_by_name() {
        let array = |dtype, bytes: &[u8]| Array { dtype, dims: vec![bytes.len()], bytes: bytes.to_vec() };
        let (a, b) = (array(FileDtype::U8, &[1, 2, 3]), array(FileDtype::Bool, &[0, 1]));
        let file = safetensors::serialize([("a", &a), ("b", &b)], None).unwrap();
        assert_eq!(read_bytes(&file, Some("a")).unwrap(), a);
        assert_eq!(read_bytes(&file, Some("b")).unwrap(), b);
        assert!(read_bytes(&file, Some("c")).unwrap_err().contains("no tensor of that name"));
        let error = read_bytes(&file, None).unwrap_err();
        assert!(error.contains("file.safetensors#name") && error.contains("`a`") && error.contains("`b`"), "{error}");
    }

    #[test]
    fn bad_files_are_named_for_what_they_are() {
        let mut good = Vec::new();
        write(&mut good, "q", &Array { dtype: FileDtype::F32, dims: vec![3], bytes: vec![0; 12] }).unwrap();
        for length in 0..good.len() {
            read_bytes(&good[..length], None).unwrap_err();
        }
        assert!(read_bytes(&good[..good.len() - 1], None).unwrap_err().contains("truncated"));
        assert!(read_bytes(&[&good[..], &[0]].concat(), None).unwrap_err().contains("longer than"));
        assert!(read_bytes(&[255; 64], None).unwrap_err().contains("claims a header of"));
        let empty = safetensors::serialize(Vec::<(String, &Array)>::new(), None).unwrap();
        assert!(read_bytes(&empty, None).unwrap_err().contains("holds no tensor"));
        let complex = br#"{"q":{"dtype":"C64","shape":[1],"data_offsets":[0,8]}}"#;
        let file = [&(complex.len() as u64).to_le_bytes()[..], complex, &[0; 8]].concat();
        assert!(read_bytes(&file, None).unwrap_err().contains("tensor `q` is C64; supported are"));
        let lying = br#"{"q":{"dtype":"F32","shape":[9],"data_offsets":[0,8]}}"#;
        let file = [&(lying.len() as u64).to_le_bytes()[..], lying, &[0; 8]].concat();
        assert!(read_bytes(&file, None).unwrap_err().contains("no valid .safetensors header"));
    }
}
