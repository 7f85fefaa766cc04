//! The emulated driver and compiler of `kernels/cuda/shim/emulator.cpp`, built once and put before a real one.

use std::path::{Path, PathBuf};
use std::process::Command as Process;
use std::sync::LazyLock;

use assert_cmd::Command;

/// Where the CUDA sources are.
pub(crate) fn cuda_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernels/cuda").canonicalize().expect("the sources are there")
}

/// What is kept from one run of the tests to the next.
fn kept() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda_device")
}

/// Compiles with the compiler that the shim's tests use.
pub(crate) fn compile(arguments: &[&str], output: &Path) {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "g++".into());
    let unfinished = output.with_extension(format!("{}.tmp", std::process::id()));
    let output_words = ["-o", unfinished.to_str().expect("a path of text")];
    let done = Process::new(&compiler)
        .args(["-std=c++17", "-fPIC", "-shared"])
        .args(arguments)
        .args(output_words)
        .output()
        .unwrap_or_else(|error| panic!("{compiler}: {error}; a C++17 compiler is needed, or name one in CXX"));
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    std::fs::rename(&unfinished, output).expect("the library can be renamed");
}

/// The folder with `libcuda.so.1` and `libnvrtc.so.13`.
static LIBRARIES: LazyLock<PathBuf> = LazyLock::new(|| {
    let source = cuda_folder().join("shim/emulator.cpp");
    let text = std::fs::read_to_string(&source).expect("the source exists");
    let hash = blake3::hash(format!("{text}{}", source.display()).as_bytes()).to_hex()[..16].to_owned();
    let folder = kept().join(hash);
    std::fs::create_dir_all(&folder).expect("a folder for libraries");
    let library = folder.join("libcuda.so.1");
    if !folder.join("libnvrtc.so.13").exists() {
        let define = format!("-DCUDA_FOLDER=\"{}\"", cuda_folder().display());
        let source = source.to_str().expect("a path of text");
        compile(
            &["-O1", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden", &define, source, "-ldl", "-lpthread"],
            &library,
        );
        std::fs::copy(&library, folder.join("libnvrtc.so.13")).expect("the library can be copied");
    }
    folder
});

/// The binary on the emulated device.
pub(crate) fn attnbench() -> Command {
    on_device(Command::new(env!("CARGO_BIN_EXE_attnbench")))
}

/// A program that finds the emulated device where others find a real one.
pub(crate) fn on_device(mut command: Command) -> Command {
    command.envs(environment()).env_remove("CUDA_VISIBLE_DEVICES");
    command
}

/// What makes a process find the emulated device.
pub(crate) fn environment() -> [(&'static str, String); 3] {
    let libraries = LIBRARIES.display().to_string();
    [
        ("LD_LIBRARY_PATH", libraries.clone()),
        ("ATTNBENCH_NVRTC", libraries),
        ("ATTNBENCH_CACHE", kept().join("cubins").display().to_string()),
    ]
}
