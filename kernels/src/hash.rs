//! The one hash that everything seeded is drawn from.

/// A 64-bit hash of a counter under a key: splitmix64's output function at position `counter + 1` of stream `key`
/// (Steele, Lea and Flood 2014).
#[inline(always)]
pub const fn hash64(key: u64, counter: u64) -> u64 {
    let mut z = key.wrapping_add(counter.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
