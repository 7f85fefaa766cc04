//! `--device` and a user's own kernel: on what a run runs, and how the workers there are started.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, bail};
use attn_kernels::cuda::CudaKernel;
use attn_kernels::kernel::KernelError;

use super::Args;
use super::workers::built_in;
use crate::device::cuda::selection::{Selected, Selection};
use crate::device::cuda::{CudaDevice, devices};
use crate::suite::{MatrixInfo, MeasureSettings, PlannedCase, Suite};
use crate::user_kernel::{UserKernel, UserKernelFiles};
use crate::worker::client::{Worker, WorkerCommand};
use crate::worker::protocol::Hello;

/// How long a worker may take to say what device it has.
const HELLO_TIMEOUT: Duration = Duration::from_secs(60);

/// The matrix of a user's kernel.
const USER_MATRIX: &str = "user-kernel";

/// The GPUs of a run.
#[derive(Default)]
pub(super) struct Gpus {
    /// A worker for each.
    pub(super) workers: Vec<WorkerCommand>,
    /// What the first one said of itself; the others are like it.
    pub(super) hello: Option<Hello>,
    /// Each one's unique name.
    pub(super) uuids: Vec<String>,
}

impl Gpus {
    /// What the device is.
    pub(super) fn device(&self) -> Option<&CudaDevice> {
        self.hello.as_ref()?.gpu.as_ref()
    }
}

impl Args {
    /// The files of `--kernel-source` and `--kernel-manifest`.
    fn user_kernel_files(&self) -> Option<UserKernelFiles> {
        let (source, manifest) = (self.kernel_source.clone()?, self.kernel_manifest.clone()?);
        Some(UserKernelFiles { source, manifest })
    }

    /// The user's kernel, where one is given.
    pub(super) fn user_kernel(&self) -> anyhow::Result<Option<UserKernel>> {
        Ok(self.user_kernel_files().map(|files| UserKernel::read(&files)).transpose()?)
    }

    /// On what the built-in kernels run: a user's kernel is CUDA, and its peers run beside it.
    fn selection(&self) -> anyhow::Result<Selection> {
        match (&self.device, &self.kernel_source) {
            (Some(Selection::Cpu), Some(_)) => {
                bail!("selecting a device: --kernel-source is a CUDA kernel; give --device cuda:0 and not cpu")
            }
            (Some(selection), _) => Ok(selection.clone()),
            (None, Some(_)) => Ok(Selection::Cuda(vec![Selected::Ordinal(0)])),
            (None, None) => Ok(Selection::Cpu),
        }
    }
}

/// Moves the cases of the built-in kernels to the device that was asked for, and adds the user's kernel to every problem
/// that it supports.
pub(super) fn retarget(suite: &mut Suite, args: &Args) -> anyhow::Result<()> {
    if args.selection()? == Selection::Cpu {
        return Ok(());
    }
    for case in suite.cases.iter_mut().filter(|case| case.case.provider == "cpu") {
        case.case.provider = "cuda".to_owned();
        case.threads = 0;
    }
    // Without a suite, the cases are the kernel's own already.
    let Some(kernel) = args.user_kernel()?.filter(|_| args.suite.is_some()) else { return Ok(()) };
    let mut own: Vec<PlannedCase> = Vec::new();
    for case in suite.cases.iter().filter(|case| case.case.provider == "cuda") {
        // A manifest that makes no sense is the case's to say.
        if !matches!(kernel.supports(&case.case.problem), Err(KernelError::Unsupported(_))) {
            let mut case = case.clone();
            case.case.kernel = kernel.name().to_owned();
            own.push(case);
        }
    }
    if own.is_empty() {
        bail!(
            "measuring kernel `{}`: its manifest supports none of the problems of suite `{}`",
            kernel.name(),
            suite.name
        );
    }
    suite.cases.extend(own);
    Ok(())
}

/// The suite of a user's kernel alone: the problems of its manifest.
pub(super) fn own_suite(kernel: &UserKernel) -> anyhow::Result<Suite> {
    let name = kernel.name();
    let problems = kernel.problems().map_err(|reason| anyhow::anyhow!("reading the manifest of `{name}`: {reason}"))?;
    if problems.is_empty() {
        bail!("measuring kernel `{name}`: name a suite, or list `problems` in its manifest");
    }
    let case = |problem| PlannedCase {
        case: crate::case::Case { provider: "cuda".to_owned(), kernel: name.to_owned(), problem },
        matrix: USER_MATRIX.to_owned(),
        threads: 0,
        settings: MeasureSettings::default(),
        slowdown: 0.0,
    };
    let cases: Vec<PlannedCase> = problems.into_iter().map(case).collect();
    let ids: Vec<String> = cases.iter().map(|case| case.case.id()).collect();
    let reason = format!("the problems that the manifest of {name} lists");
    Ok(Suite {
        name: name.to_owned(),
        description: kernel.summary().to_owned(),
        hash: blake3::hash(ids.join("\n").as_bytes()).to_hex().to_string(),
        seed: 42,
        matrices: vec![MatrixInfo { name: USER_MATRIX.to_owned(), reason, cases: cases.len() }],
        cases,
    })
}

/// The GPUs that a suite needs, each asked what it is. One that was asked for and is not there ends the command; where a
/// suite names `cuda` on its own, its cases say what is missing.
pub(super) fn gpus(suite: &Suite, args: &Args) -> anyhow::Result<Gpus> {
    if !suite.cases.iter().any(|case| case.case.provider == "cuda") {
        return Ok(Gpus::default());
    }
    let selected = match args.selection()? {
        Selection::Cuda(selected) => selected,
        Selection::AllCuda => {
            let count = devices().context("listing devices for --device all")?.len() as u32;
            (0..count).map(Selected::Ordinal).collect()
        }
        Selection::Cpu => {
            let command = command(&Selected::Ordinal(0), args)?;
            return Ok(match hello(&command) {
                Ok(hello) => Gpus { uuids: uuid(&hello), workers: vec![command], hello: Some(hello) },
                Err(_) => Gpus { workers: vec![command], ..Gpus::default() },
            });
        }
    };
    let mut gpus = Gpus::default();
    for device in &selected {
        let command = command(device, args)?;
        let hello = hello(&command).with_context(|| format!("opening device `cuda:{}`", device.name()))?;
        if let (Some(first), Some(this)) = (gpus.device(), &hello.gpu)
            && !first.is_like(this)
        {
            bail!(
                "selecting devices: {} and {} differ, so their times cannot share a record; measure them in two runs",
                gpus.hello.as_ref().map_or("", |hello| &hello.device),
                hello.device
            );
        }
        gpus.uuids.extend(uuid(&hello));
        gpus.workers.push(command);
        gpus.hello.get_or_insert(hello);
    }
    Ok(gpus)
}

fn uuid(hello: &Hello) -> Vec<String> {
    hello.gpu.iter().map(|gpu| gpu.uuid.clone()).collect()
}

/// The worker of a device.
fn command(device: &Selected, args: &Args) -> anyhow::Result<WorkerCommand> {
    let mut command = built_in("cuda")?;
    command.argv.extend(["--device".to_owned(), device.name()]);
    if let Some(files) = args.user_kernel_files() {
        for (option, path) in [("--kernel-source", files.source), ("--kernel-manifest", files.manifest)] {
            let path = std::path::absolute(path).context("finding the user's kernel")?;
            command.argv.extend([option.to_owned(), path.to_string_lossy().into_owned()]);
        }
    }
    Ok(command)
}

/// Starts a worker to ask what it has, and lets it go.
fn hello(command: &WorkerCommand) -> anyhow::Result<Hello> {
    let worker = Worker::spawn(command, Arc::new(AtomicBool::new(false)), HELLO_TIMEOUT)?;
    let hello = worker.hello.clone();
    worker.shutdown();
    Ok(hello)
}
