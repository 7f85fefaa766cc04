//! The name of a build: a hash of everything that may change it.

use std::process::Command;

use super::{BuildCommand, BuildError};
use crate::device::cpu::info::CpuInfo;
use crate::vcs::{Snapshot, Sources};

/// Version of the cache's layout and of what this hash covers.
const KEY_VERSION: u32 = 1;
/// Environment variables that change what compilers do, by how their names begin.
const FLAG_VARIABLES: [&str; 11] =
    ["RUST", "CARGO_", "CC", "CXX", "CFLAGS", "CXXFLAGS", "CPPFLAGS", "LDFLAGS", "NVCC", "CUDA_", "TORCH_"];
/// Largest lock file, in bytes.
const MAX_LOCK_BYTES: usize = 16 << 20;

/// The key of a build, 32 hexadecimal digits.
pub(super) fn of(
    sources: &Sources,
    snapshot: &Snapshot,
    command: &BuildCommand,
    copy: u32,
) -> Result<String, BuildError> {
    let mut hasher = blake3::Hasher::new();
    // Lengths keep fields apart: no two lists of fields give one sequence of bytes.
    let mut add = |field: &[u8]| {
        hasher.update(&(field.len() as u64).to_le_bytes());
        hasher.update(field);
    };
    add(&KEY_VERSION.to_le_bytes());
    add(sources.root().as_os_str().as_encoded_bytes());
    add(snapshot.commit.as_bytes());
    add(snapshot.tree.as_bytes());
    add(&sources.file(snapshot, "Cargo.lock", MAX_LOCK_BYTES)?.unwrap_or_default());
    for word in &command.argv {
        add(word.as_bytes());
    }
    add(command.binary.as_os_str().as_encoded_bytes());
    add(&toolchain(sources));
    let mut flags: Vec<_> = std::env::vars_os()
        .filter(|(name, _)| {
            let name = name.to_string_lossy();
            FLAG_VARIABLES.iter().any(|start| name.starts_with(start)) && name != "CARGO_TARGET_DIR"
        })
        .collect();
    flags.sort();
    for (name, value) in flags {
        add(name.as_encoded_bytes());
        add(value.as_encoded_bytes());
    }
    // `target-cpu=native` makes other code on another processor.
    let cpu = CpuInfo::read();
    add(std::env::consts::ARCH.as_bytes());
    add(cpu.model.as_bytes());
    add(cpu.instruction_sets.join(" ").as_bytes());
    add(&copy.to_le_bytes());
    Ok(hasher.finalize().to_hex()[..32].to_owned())
}

/// What `rustc -vV` says where the repository is; nothing where there is none, as for workers in other languages.
fn toolchain(sources: &Sources) -> Vec<u8> {
    let said = Command::new("rustc").arg("-vV").current_dir(sources.root()).output();
    said.map(|output| output.stdout).unwrap_or_default()
}
