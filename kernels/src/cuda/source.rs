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
    header!("elements.cuh"),
    header!("geometry.cuh"),
    header!("attend.cuh"),
    header!("flash_bwd.cuh"),
    header!("flash_bwd_keys.cuh"),
    header!("flash_bwd_queries.cuh"),
    header!("partials.cuh"),
    header!("decode.cuh"),
    header!("combine.cuh"),
    header!("product.cuh"),
    header!("wgmma.cuh"),
    header!("hopper.cuh"),
    header!("e4m3.cuh"),
    header!("linear.cuh"),
    header!("chunks.cuh"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::resources::all_modules;

    #[test]
    fn only_headers_of_instructions_know_the_instruction_set() {
        let sources = all_modules().into_iter().map(|module| (module.source.name, module.source.text));
        let headers = HEADERS.iter().map(|header| (header.name, header.text));
        let of_instructions = ["ptx.cuh", "elements.cuh", "wgmma.cuh"];
        for (name, text) in sources.chain(headers).filter(|(name, _)| !of_instructions.contains(name)) {
            for word in ["asm", "threadIdx", "blockIdx", "__shared__", "__syncthreads", "__shfl", "__ldg"] {
                assert!(!text.contains(word), "{name} has {word}: what the shim cannot see belongs in ptx.cuh");
            }
        }
    }

    #[test]
    fn every_include_is_embedded() {
        let sources = all_modules().into_iter().map(|module| (module.source.name, module.source.text));
        for (name, text) in sources.chain(HEADERS.iter().map(|header| (header.name, header.text))) {
            let included = text.lines().filter_map(|line| line.trim().strip_prefix("#include \"")?.strip_suffix('"'));
            for header in included.filter(|header| *header != "shim/shim.h") {
                assert!(HEADERS.iter().any(|known| known.name == header), "{name} includes {header}");
            }
        }
    }
}
