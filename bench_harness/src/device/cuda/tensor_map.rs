//! Tensor maps, as the driver encodes them for the engine that copies tiles.

use attn_kernels::cuda::TensorMap;
use cudarc::driver::sys::{
    self, CUtensorMap, CUtensorMapDataType, CUtensorMapFloatOOBfill, CUtensorMapInterleave, CUtensorMapL2promotion,
    CUtensorMapSwizzle,
};

use super::driver::{Fault, check};

/// The parameter of a kernel that copies tiles of the tensor at this address, in whole words.
pub(super) fn encode(map: &TensorMap, address: u64) -> Result<Vec<u64>, Fault> {
    use CUtensorMapDataType::*;
    use CUtensorMapSwizzle::*;
    // The engine moves bytes: what they mean does not matter to it, only how many an element has.
    let element = match map.element_bytes {
        1 => CU_TENSOR_MAP_DATA_TYPE_UINT8,
        2 => CU_TENSOR_MAP_DATA_TYPE_UINT16,
        4 => CU_TENSOR_MAP_DATA_TYPE_UINT32,
        8 => CU_TENSOR_MAP_DATA_TYPE_UINT64,
        bytes => panic!("a plan maps elements of {bytes} bytes"),
    };
    let swizzle = match map.swizzle_bytes {
        0 => CU_TENSOR_MAP_SWIZZLE_NONE,
        32 => CU_TENSOR_MAP_SWIZZLE_32B,
        64 => CU_TENSOR_MAP_SWIZZLE_64B,
        128 => CU_TENSOR_MAP_SWIZZLE_128B,
        bytes => panic!("a plan swizzles by {bytes} bytes"),
    };
    let rank = map.sizes.len();
    assert!(map.tile.len() == rank && map.strides_bytes.len() + 1 == rank, "a plan's map is of one rank: {map:?}");
    let sizes: Vec<u64> = map.sizes.iter().map(|&size| u64::from(size)).collect();
    let steps = vec![1; rank];
    let mut encoded = CUtensorMap { opaque: [0; 16] };
    // SAFETY: every array has as many numbers as the map has dimensions, the strides one less; the driver reads no memory at
    // the address, and refuses what it cannot encode.
    check("encoding a tensor map", unsafe {
        sys::cuTensorMapEncodeTiled(
            &mut encoded,
            element,
            rank as u32,
            address as *mut std::ffi::c_void,
            sizes.as_ptr(),
            map.strides_bytes.as_ptr(),
            map.tile.as_ptr(),
            steps.as_ptr(),
            CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            swizzle,
            CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    })?;
    Ok(encoded.opaque.to_vec())
}
