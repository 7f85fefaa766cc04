//! Whether memory changed.

use rayon::prelude::*;

use crate::hash::hash64;
use crate::tensor::Tensor;

/// A checksum of a tensor's bytes, for telling whether a call changed its inputs.
pub fn checksum(tensor: &Tensor) -> u64 {
    let bytes = tensor.bytes();
    let chunk = 1 << 16;
    let sums: Vec<u64> = bytes
        .par_chunks(chunk)
        .map(|part| {
            let words = part.chunks_exact(8);
            let tail = words.remainder().iter().fold(0u64, |sum, &byte| hash64(sum, u64::from(byte)));
            words.fold(tail, |sum, word| {
                (sum ^ u64::from_le_bytes(word.try_into().expect("eight bytes")))
                    .wrapping_mul(0x9E37_79B9_7F4A_7C15)
                    .rotate_left(29)
            })
        })
        .collect();
    sums.into_iter().fold(bytes.len() as u64, hash64)
}
