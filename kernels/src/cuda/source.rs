//! The CUDA sources, embedded in the binary.

/// A `.cu` file: one translation unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    /// Its file name.
    pub name: &'static str,
    /// Its text.
    pub text: &'static str,
}

/// A file that sources include by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Header {
    /// Its name in `#include "..."`.
    pub name: &'static str,
    /// Its text.
    pub text: &'static str,
}

macro_rules! header {
    ($name:literal) => {
        Header { name: $name, text: include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/cuda/", $name)) }
    };
}

macro_rules! source {
    ($name:literal) => {
        $crate::cuda::Source { name: $name, text: include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/cuda/", $name)) }
    };
}
pub(super) use source;

/// Every header that a source may include, all of them to be handed to NVRTC.
pub const HEADERS: &[Header] = &[
    header!("ptx.cuh"),
    header!("geometry.cuh"),
    header!("attend.cuh"),
    header!("partials.cuh"),
    header!("decode.cuh"),
    header!("product.cuh"),
];
