//! The workers for other frameworks that come with this binary: Python sources, embedded, and written out to be run.
//!
//! A new one is a file of `kernels/adapters/` and a line in [`ADAPTERS`].

use std::io;
use std::path::{Path, PathBuf};

use super::client::WorkerCommand;

/// Providers with a worker in Python: name, file and source.
const ADAPTERS: &[(&str, &str, &str)] = &[
    ("cudnn", "cudnn_worker.py", include_str!("../../../kernels/adapters/cudnn_worker.py")),
    ("flash_attn", "flash_attn_worker.py", include_str!("../../../kernels/adapters/flash_attn_worker.py")),
    ("ggml", "ggml_worker.py", include_str!("../../../kernels/adapters/ggml_worker.py")),
    ("jax", "jax_worker.py", include_str!("../../../kernels/adapters/jax_worker.py")),
    ("onnxruntime", "onnxruntime_worker.py", include_str!("../../../kernels/adapters/onnxruntime_worker.py")),
    ("torch", "torch_worker.py", include_str!("../../../kernels/adapters/torch_worker.py")),
];

/// What the workers import from their own folder.
const SHARED: &[(&str, &str)] = &[
    ("attnbench_inputs.py", include_str!("../../../kernels/adapters/attnbench_inputs.py")),
    ("attnbench_torch.py", include_str!("../../../kernels/adapters/attnbench_torch.py")),
    ("attnbench_worker.py", include_str!("../../../kernels/adapters/attnbench_worker.py")),
];

/// The environment that ci/peers.sh makes, from the folder in which it is used.
const ENVIRONMENT: &str = ".venv/bin/python";

/// The names of the providers that have an adapter.
pub fn names() -> impl Iterator<Item = &'static str> {
    ADAPTERS.iter().map(|(name, ..)| *name)
}

/// How the worker of a provider with an adapter is started: its sources are written to a folder of their own under
/// `scratch`, and run by `.venv/bin/python` of the current folder where there is one, else by `python3`. None where there
/// is no such adapter.
pub fn command(provider: &str, scratch: &Path) -> io::Result<Option<WorkerCommand>> {
    let Some((name, file, source)) = ADAPTERS.iter().find(|(name, ..)| *name == provider) else { return Ok(None) };
    let folder = scratch.join("adapters");
    std::fs::create_dir_all(&folder)?;
    for (file, source) in SHARED.iter().chain([&(*file, *source)]) {
        std::fs::write(folder.join(file), source)?;
    }
    let environment = PathBuf::from(ENVIRONMENT);
    let interpreter = if environment.exists() { std::path::absolute(environment)? } else { "python3".into() };
    let argv = [interpreter, folder.join(file)].map(|path| path.to_string_lossy().into_owned()).to_vec();
    Ok(Some(WorkerCommand { provider: (*name).to_owned(), argv }))
}
