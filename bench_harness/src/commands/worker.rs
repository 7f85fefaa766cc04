//! `attnbench worker`: the built-in worker, started by the coordinator.

use std::io::BufReader;

use anyhow::{Context, bail};

use super::Exit;
use crate::worker::cpu::CpuProvider;
use crate::worker::server::serve;

/// Serve kernels over stdin and stdout (started by `run`; speak the protocol of `attnbench schema protocol`).
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Whose kernels to serve
    #[arg(long, default_value = "cpu", value_name = "NAME")]
    provider: String,
}

/// Serves until `shutdown` or the end of input.
pub fn run(args: Args) -> anyhow::Result<Exit> {
    let mut provider = match args.provider.as_str() {
        "cpu" => CpuProvider::built_in(),
        other => bail!("starting a worker: there is no built-in provider `{other}`; there is `cpu`"),
    };
    serve(&mut provider, BufReader::new(std::io::stdin().lock()), std::io::stdout())
        .context("serving the worker protocol on stdin and stdout")?;
    Ok(Exit::Pass)
}
