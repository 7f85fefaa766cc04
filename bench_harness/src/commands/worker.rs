//! `attnbench worker`: the built-in workers, started by the coordinator.

use std::io::BufReader;
use std::path::PathBuf;

use anyhow::{Context, bail};

use super::Exit;
use crate::device::cuda::selection::Selected;
use crate::user_kernel::{UserKernel, UserKernelFiles};
use crate::worker::cpu::CpuProvider;
use crate::worker::cuda::CudaProvider;
use crate::worker::provider::Provider;
use crate::worker::server::serve;

/// Serve kernels over stdin and stdout (started by `run`; speak the protocol of `attnbench schema protocol`).
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Whose kernels to serve
    #[arg(long, default_value = "cpu", value_name = "NAME")]
    provider: String,
    /// CUDA device: its number, or GPU-... or MIG-... as `nvidia-smi -L` prints them
    #[arg(long, default_value = "0", value_name = "DEVICE")]
    device: String,
    /// A CUDA kernel of one's own: .cu, .ptx or .cubin
    #[arg(long, value_name = "FILE", requires = "kernel_manifest")]
    kernel_source: Option<PathBuf>,
    /// What that kernel computes and how it is launched
    #[arg(long, value_name = "FILE", requires = "kernel_source")]
    kernel_manifest: Option<PathBuf>,
}

/// Serves until `shutdown` or the end of input.
pub fn run(args: Args) -> anyhow::Result<Exit> {
    let mut provider: Box<dyn Provider> = match args.provider.as_str() {
        "cpu" => Box::new(CpuProvider::built_in()),
        "cuda" => Box::new(cuda(&args)?),
        other => bail!("starting a worker: there is no built-in provider `{other}`; there are `cpu` and `cuda`"),
    };
    serve(provider.as_mut(), BufReader::new(std::io::stdin().lock()), std::io::stdout())
        .context("serving the worker protocol on stdin and stdout")?;
    Ok(Exit::Pass)
}

fn cuda(args: &Args) -> anyhow::Result<CudaProvider> {
    let Some(device) = Selected::parse(&args.device) else {
        bail!("starting a worker: `{}` is no CUDA device; give a number, GPU-... or MIG-...", args.device);
    };
    let ordinal = match device {
        Selected::Ordinal(ordinal) => ordinal as usize,
        Selected::Uuid(uuid) => {
            // The driver reads it when it starts, and then lists this device alone: a slice has no other way in.
            // SAFETY: no other thread of this process is running yet that could read the environment.
            unsafe { std::env::set_var("CUDA_VISIBLE_DEVICES", uuid) };
            0
        }
    };
    let user = match (&args.kernel_source, &args.kernel_manifest) {
        (Some(source), Some(manifest)) => {
            Some(UserKernel::read(&UserKernelFiles { source: source.clone(), manifest: manifest.clone() })?)
        }
        _ => None,
    };
    Ok(CudaProvider::new(ordinal, user))
}
