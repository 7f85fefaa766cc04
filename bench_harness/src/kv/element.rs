//! How wide an element of a cache or of weights is stored.

use std::fmt;
use std::str::FromStr;

use attn_kernels::problem::Dtype;
use serde::{Serialize, Serializer};

/// A storage type. Scale factors of the narrow ones are not counted: they are a fraction of a bit an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Element {
    name: &'static str,
    bits: u32,
    dtype: Option<Dtype>,
}

/// Every storage type, widest first. What kernels compute with has a [`Dtype`]; the others are only counted.
pub const ELEMENTS: &[Element] = &[
    Element { name: "f32", bits: 32, dtype: Some(Dtype::F32) },
    Element { name: "f16", bits: 16, dtype: Some(Dtype::F16) },
    Element { name: "bf16", bits: 16, dtype: Some(Dtype::Bf16) },
    Element { name: "fp8", bits: 8, dtype: Some(Dtype::E4m3) },
    Element { name: "int8", bits: 8, dtype: None },
    Element { name: "int6", bits: 6, dtype: None },
    Element { name: "int4", bits: 4, dtype: None },
];

impl Element {
    /// IEEE binary16.
    pub const F16: Element = ELEMENTS[1];
    /// bfloat16.
    pub const BF16: Element = ELEMENTS[2];
    /// An 8-bit float.
    pub const FP8: Element = ELEMENTS[3];

    /// Its name.
    pub const fn name(self) -> &'static str {
        self.name
    }

    /// Bits an element.
    pub const fn bits(self) -> u32 {
        self.bits
    }

    /// The type that kernels know it by, where they do.
    pub const fn dtype(self) -> Option<Dtype> {
        self.dtype
    }

    /// Bytes of this many elements stored side by side, a last half byte rounded up.
    pub const fn bytes(self, elements: u64) -> u128 {
        (elements as u128 * self.bits as u128).div_ceil(8)
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl FromStr for Element {
    type Err = String;

    fn from_str(text: &str) -> Result<Element, String> {
        ELEMENTS.iter().copied().find(|element| element.name == text).ok_or_else(|| {
            let names: Vec<&str> = ELEMENTS.iter().map(|element| element.name).collect();
            format!("there is no storage type `{text}`; valid: {}", names.join(", "))
        })
    }
}

impl Serialize for Element {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name)
    }
}
