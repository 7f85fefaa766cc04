//! numpy's `.npy` format, versions 1.0 to 3.0 (NEP 1). bfloat16, which numpy does not know, is the descr `V2` that
//! ml_dtypes writes.

use std::io::{Read, Write};

use npyz::{DType, Endianness, NpyHeader, Order, TypeChar};

use super::{Array, FileDtype, size_bytes};

/// numpy itself refuses longer headers.
const MAX_HEADER_BYTES: u64 = 10_000;
/// Brackets open at once in a header; the parser recurses on them.
const MAX_NESTING: usize = 16;
/// The data begin at a multiple of this.
const ALIGNMENT: usize = 64;

/// Reads an array from a file of `file_bytes` bytes.
pub(super) fn read(file: &mut impl Read, file_bytes: u64) -> Result<Array, String> {
    let header_bytes = read_header(file, file_bytes)?;
    let header = NpyHeader::from_reader(&header_bytes[..]).map_err(|cause| format!("no valid .npy header: {cause}"))?;
    let (dtype, swapped) = file_dtype(&header.dtype())?;
    let dims = header
        .shape()
        .iter()
        .map(|&dim| usize::try_from(dim).map_err(|_| format!("the shape {:?} overflows", header.shape())))
        .collect::<Result<Vec<_>, _>>()?;
    let wanted = size_bytes(dtype, &dims)?;
    let present = file_bytes - header_bytes.len() as u64;
    if wanted as u64 != present {
        let what = if wanted as u64 > present { "truncated" } else { "longer than its header says" };
        return Err(format!("the file is {what}: {dtype} {dims:?} takes {wanted} bytes, {present} follow the header"));
    }
    let mut bytes = vec![0; wanted];
    file.read_exact(&mut bytes).map_err(|cause| cause.to_string())?;
    if swapped {
        bytes.chunks_exact_mut(dtype.bytes()).for_each(<[u8]>::reverse);
    }
    if header.order() == Order::Fortran {
        bytes = to_last_dimension_fastest(&bytes, &dims, dtype.bytes());
    }
    Ok(Array { dtype, dims, bytes })
}

/// The bytes before the data, with limits that the parser does not have.
fn read_header(file: &mut impl Read, file_bytes: u64) -> Result<Vec<u8>, String> {
    let not_npy = "this is no .npy file: it does not begin with `\\x93NUMPY`";
    let mut header = vec![0; 10];
    file.read_exact(&mut header).map_err(|_| not_npy.to_owned())?;
    if &header[..6] != b"\x93NUMPY" {
        return Err(not_npy.into());
    }
    let mut text_bytes = u64::from(u16::from_le_bytes([header[8], header[9]]));
    if header[6] >= 2 {
        let mut high = [0; 2];
        file.read_exact(&mut high).map_err(|_| "the file is truncated in its header".to_owned())?;
        header.extend(high);
        text_bytes |= u64::from(u16::from_le_bytes(high)) << 16;
    }
    if text_bytes > MAX_HEADER_BYTES {
        return Err(format!(
            "its header of {text_bytes} bytes is longer than the {MAX_HEADER_BYTES} that numpy accepts"
        ));
    }
    if header.len() as u64 + text_bytes > file_bytes {
        return Err("the file is truncated in its header".into());
    }
    let start = header.len();
    header.resize(start + text_bytes as usize, 0);
    file.read_exact(&mut header[start..]).map_err(|cause| cause.to_string())?;
    if header[start..].iter().filter(|byte| b"([{".contains(byte)).count() > MAX_NESTING {
        return Err("its header is nested too deeply for an array of numbers".into());
    }
    Ok(header)
}

/// The element type of a header, and whether its bytes are in the other order.
fn file_dtype(dtype: &DType) -> Result<(FileDtype, bool), String> {
    let way_out = "supported are float32, float16, bfloat16 (`V2`), bool and the integers";
    let DType::Plain(plain) = dtype else {
        return Err(format!("its elements are records {}; {way_out}", dtype.descr()));
    };
    let known = match (plain.type_char(), plain.size_field()) {
        (TypeChar::Bool, 1) => FileDtype::Bool,
        (TypeChar::Int, 1) => FileDtype::I8,
        (TypeChar::Int, 2) => FileDtype::I16,
        (TypeChar::Int, 4) => FileDtype::I32,
        (TypeChar::Int, 8) => FileDtype::I64,
        (TypeChar::Uint, 1) => FileDtype::U8,
        (TypeChar::Uint, 2) => FileDtype::U16,
        (TypeChar::Uint, 4) => FileDtype::U32,
        (TypeChar::Uint, 8) => FileDtype::U64,
        (TypeChar::Float, 2) => FileDtype::F16,
        (TypeChar::Float, 4) => FileDtype::F32,
        (TypeChar::Float, 8) => FileDtype::F64,
        (TypeChar::RawData, 2) => FileDtype::Bf16,
        (TypeChar::Object, _) => return Err(format!("its elements are Python objects, which are not read; {way_out}")),
        _ => return Err(format!("its elements are {}; {way_out}", dtype.descr())),
    };
    Ok((known, plain.endianness() == Endianness::Big && known.bytes() > 1))
}

/// Reorders elements whose first dimension is the fastest.
fn to_last_dimension_fastest(bytes: &[u8], dims: &[usize], element_bytes: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut index = vec![0; dims.len()];
    let strides: Vec<usize> = dims
        .iter()
        .scan(element_bytes, |stride, &dim| {
            let own = *stride;
            *stride *= dim;
            Some(own)
        })
        .collect();
    while out.len() < bytes.len() {
        let start: usize = index.iter().zip(&strides).map(|(index, stride)| index * stride).sum();
        out.extend_from_slice(&bytes[start..start + element_bytes]);
        for axis in (0..dims.len()).rev() {
            index[axis] += 1;
            if index[axis] < dims[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
    out
}

/// Writes an array in version 1.0.
pub(super) fn write(file: &mut impl Write, array: &Array) -> std::io::Result<()> {
    let dims: String = array.dims.iter().map(|dim| format!("{dim}, ")).collect();
    let shape = if array.dims.len() == 1 { dims.trim_end() } else { dims.trim_end_matches(", ") };
    let descr = descr(array.dtype);
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({shape}), }}");
    let unpadded = 10 + header.len() + 1;
    header.extend(std::iter::repeat_n(' ', unpadded.next_multiple_of(ALIGNMENT) - unpadded));
    header.push('\n');
    let header_bytes = u16::try_from(header.len()).map_err(std::io::Error::other)?;
    file.write_all(b"\x93NUMPY\x01\x00")?;
    file.write_all(&header_bytes.to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    file.write_all(&array.bytes)
}

const fn descr(dtype: FileDtype) -> &'static str {
    match dtype {
        FileDtype::Bool => "|b1",
        FileDtype::I8 => "|i1",
        FileDtype::I16 => "<i2",
        FileDtype::I32 => "<i4",
        FileDtype::I64 => "<i8",
        FileDtype::U8 => "|u1",
        FileDtype::U16 => "<u2",
        FileDtype::U32 => "<u4",
        FileDtype::U64 => "<u8",
        FileDtype::F16 => "<f2",
        FileDtype::Bf16 => "<V2",
        FileDtype::F32 => "<f4",
        FileDtype::F64 => "<f8",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn npy(version: u8, header: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = b"\x93NUMPY".to_vec();
        bytes.extend([version, 0]);
        match version {
            1 => bytes.extend((header.len() as u16).to_le_bytes()),
            _ => bytes.extend((header.len() as u32).to_le_bytes()),
        }
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        bytes
    }

    fn read_bytes(bytes: &[u8]) -> Result<Array, String> {
        read(&mut &bytes[..], bytes.len() as u64)
    }

    fn header(descr: &str, fortran: bool, shape: &str) -> String {
        let fortran = if fortran { "True" } else { "False" };
        format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}\n")
    }

    #[test]
    fn every_dtype_and_rank_survives_a_round_trip() {
        for dtype in FileDtype::ALL {
            for dims in [vec![], vec![0], vec![5], vec![2, 3], vec![1, 2, 3, 4], vec![2, 0, 3]] {
                let bytes = (0..size_bytes(dtype, &dims).unwrap()).map(|byte| byte as u8 % 2).collect();
                let array = Array { dtype, dims, bytes };
                let mut file = Vec::new();
                write(&mut file, &array).unwrap();
                assert_eq!((file.len() - array.bytes.len()) % ALIGNMENT, 0);
                assert_eq!(read_bytes(&file).unwrap(), array);
            }
        }
    }

    #[test]
    fn either_spelling_of_two_raw_bytes_is_bfloat16() {
        for descr in ["<V2", "|V2"] {
            let array = read_bytes(&npy(1, &header(descr, false, "(1,)"), &[0x80, 0x3f])).unwrap();
            assert_eq!((array.dtype, array.bytes), (FileDtype::Bf16, vec![0x80, 0x3f]));
        }
    }

    #[test]
    fn big_endian_elements_are_swapped() {
        let array = read_bytes(&npy(1, &header(">f4", false, "(2,)"), &[0x3f, 0x80, 0, 0, 0x40, 0, 0, 0])).unwrap();
        assert_eq!(array.bytes, [1f32.to_le_bytes(), 2f32.to_le_bytes()].concat());
    }

    #[test]
    fn fortran_order_is_reordered() {
        // [[[0, 1], [2, 3], [4, 5]], ...] of shape (2, 3, 2), stored with the first dimension fastest.
        let stored: Vec<u8> =
            (0..12).map(|at| (at % 2, (at / 2) % 3, at / 6)).map(|(a, b, c)| (a * 6 + b * 2 + c) as u8).collect();
        let array = read_bytes(&npy(2, &header("|u1", true, "(2, 3, 2)"), &stored)).unwrap();
        assert_eq!(array.bytes, (0..12).collect::<Vec<u8>>());
    }

    #[test]
    fn bad_files_are_named_for_what_they_are() {
        let good = npy(1, &header("<f4", false, "(3,)"), &[0; 12]);
        let error = |bytes: &[u8]| read_bytes(bytes).unwrap_err();
        assert!(error(&good[..good.len() - 1]).contains("truncated: float32 [3] takes 12 bytes, 11 follow"));
        assert!(error(&[&good[..], &[0]].concat()).contains("longer than its header says"));
        for length in 0..good.len() - 12 {
            error(&good[..length]);
        }
        assert!(error(b"PK\x03\x04 a zip archive").contains("no .npy file"));
        assert!(error(&npy(1, &header("|O", false, "(1,)"), &[])).contains("Python objects"));
        assert!(error(&npy(1, &header("<c8", false, "(1,)"), &[0; 8])).contains("'<c8'"));
        assert!(error(&npy(1, &header("|V3", false, "(1,)"), &[0; 3])).contains("supported are"));
        assert!(
            error(&npy(1, "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}", &[0; 4]))
                .contains("records")
        );
        assert!(error(&npy(1, "{'descr': '<f4'}", &[])).contains("no valid .npy header"));
        assert!(error(&npy(1, &header("<f4", false, "(-1,)"), &[])).contains("no valid .npy header"));
        assert!(error(&npy(1, &header("<f4", false, "(4294967296, 4294967296, 4)"), &[])).contains("overflows"));
        assert!(error(&npy(1, &"(".repeat(9_000), &[])).contains("nested too deeply"));
        assert!(error(&npy(2, &" ".repeat(10_001), &[])).contains("longer than the 10000"));
        assert!(error(&npy(9, &header("<f4", false, "(1,)"), &[0; 4])).contains("version"));
    }
}
