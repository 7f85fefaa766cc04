//! e4m3 of the OCP 8-bit floating point specification, revision 1.0: a sign, 4 bits of exponent and 3 of mantissa; no
//! infinities, one NaN of each sign, 448 at most.

/// An element of a cache of keys and values. Its 256 values are exact in f16 and bf16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
#[allow(non_camel_case_types)]
pub struct e4m3(u8);

/// 448.
const LARGEST: u8 = 0x7E;

impl e4m3 {
    /// Not a number.
    pub const NAN: e4m3 = e4m3(0x7F);
    /// 2^-9.
    pub const MIN_POSITIVE_SUBNORMAL: e4m3 = e4m3(1);

    /// The number with these bits.
    pub const fn from_bits(bits: u8) -> e4m3 {
        e4m3(bits)
    }

    /// Its bits.
    pub const fn to_bits(self) -> u8 {
        self.0
    }

    /// The nearest number, ties to even; what is too large becomes 448 (the specification's saturating mode).
    #[inline]
    pub fn from_f32(value: f32) -> e4m3 {
        let bits = value.to_bits();
        let (sign, size) = ((bits >> 24) as u8 & 0x80, bits & 0x7FFF_FFFF);
        let magnitude = if value.is_nan() {
            return e4m3(sign | e4m3::NAN.0);
        } else if size < 121 << 23 {
            // Below 2^-6: multiples of 2^-9, the largest of which is the smallest normal number.
            (f32::from_bits(size) * 512.0).round_ties_even() as u8
        } else {
            // 20 bits of mantissa go, and 120 of the exponent's bias. A carry into the exponent is what rounding means.
            let rounded = size + 0x7_FFFF + (size >> 20 & 1);
            ((rounded >> 20) - (120 << 3)).min(u32::from(LARGEST)) as u8
        };
        e4m3(sign | magnitude)
    }

    /// The same number.
    #[inline(always)]
    pub fn to_f32(self) -> f32 {
        let (sign, size) = (u32::from(self.0 & 0x80) << 24, u32::from(self.0 & 0x7F));
        // Selections, not branches: loops over elements then become vector instructions.
        let normal = f32::from_bits((size << 20) + (120 << 23));
        let number = if size < 8 { size as f32 * (1.0 / 512.0) } else { normal };
        let magnitude = if size == 0x7F { f32::NAN } else { number };
        f32::from_bits(magnitude.to_bits() | sign)
    }

    /// The same number.
    pub fn to_f64(self) -> f64 {
        f64::from(self.to_f32())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values of the specification's table, from their definition.
    fn defined(bits: u8) -> f64 {
        let (exponent, mantissa) = (i32::from(bits >> 3 & 15), f64::from(bits & 7));
        let size = match (exponent, bits & 7) {
            (15, 7) => f64::NAN,
            (0, _) => mantissa / 8.0 * 2f64.powi(-6),
            _ => (1.0 + mantissa / 8.0) * 2f64.powi(exponent - 7),
        };
        if bits & 0x80 == 0 { size } else { -size }
    }

    #[test]
    fn every_number_is_what_its_bits_mean_and_comes_back() {
        for bits in 0..=255u8 {
            let number = e4m3::from_bits(bits);
            if bits & 0x7F == 0x7F {
                assert!(number.to_f32().is_nan());
            } else {
                assert_eq!(number.to_f64(), defined(bits), "{bits:#x}");
            }
            assert_eq!(e4m3::from_f32(number.to_f32()), number, "{bits:#x}");
            assert_eq!(half::f16::from_f32(number.to_f32()).to_f32().to_bits(), number.to_f32().to_bits());
            assert_eq!(half::bf16::from_f32(number.to_f32()).to_f32().to_bits(), number.to_f32().to_bits());
        }
    }

    #[test]
    fn numbers_between_two_become_the_nearer_and_ties_the_even_one() {
        for bits in 0..LARGEST {
            let (low, high) = (defined(bits), defined(bits + 1));
            let middle = ((low + high) / 2.0) as f32;
            let even = if bits % 2 == 0 { bits } else { bits + 1 };
            assert_eq!(e4m3::from_f32(middle).to_bits(), even, "the middle of {low} and {high}");
            assert_eq!(e4m3::from_f32(middle.next_down()).to_bits(), bits);
            assert_eq!(e4m3::from_f32(middle.next_up()).to_bits(), bits + 1);
            assert_eq!(e4m3::from_f32(-middle).to_bits(), even | 0x80);
        }
    }

    #[test]
    fn what_is_too_large_saturates_and_nan_stays() {
        for large in [448.0, 449.0, 464.0, 480.0, 1e30, f32::INFINITY] {
            assert_eq!(e4m3::from_f32(large).to_f32(), 448.0);
            assert_eq!(e4m3::from_f32(-large).to_f32(), -448.0);
        }
        assert_eq!(e4m3::from_f32(f32::NAN), e4m3::NAN);
        assert_eq!(e4m3::from_f32(-0.0).to_f32().to_bits(), (-0.0f32).to_bits());
        assert_eq!(e4m3::from_f32(1e-30).to_f32(), 0.0);
    }
}
