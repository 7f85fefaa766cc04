//! The CUDA provider: plans and times kernels of `attn_kernels::cuda`, and a user's own, on one device.

mod case;
mod memory;
mod slowdown;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;

use attn_kernels::cuda::nvrtc::NvrtcError;
use attn_kernels::cuda::{self, CudaKernel};
use attn_kernels::input;
use attn_kernels::problem::Phase;

use super::protocol::{
    CaseRequest, Control, ControlSamples, ErrorKind, Hello, KernelInfo, PROTOCOL_VERSION, Prepare, Prepared,
    WorkerError,
};
use super::provider::{PreparedCase, Provider};
use crate::device::cuda::ceiling;
use crate::device::cuda::checksum::Checksummer;
use crate::device::cuda::compile::Compiler;
use crate::device::cuda::context::Context;
use crate::device::cuda::driver::Fault;
use crate::device::cuda::launch::{Code, LoadError};
use crate::device::cuda::timer::Timer;
use crate::device::cuda::{CudaDevice, devices};
use crate::user_kernel::{Image, UserKernel};

/// Sources whose change makes two builds' timings incomparable: what runs between the two events of a sample, and around it.
const TIMING_SOURCES: [&str; 3] = [
    include_str!("case.rs"),
    include_str!("../../device/cuda/timer.rs"),
    include_str!("../../../../kernels/cuda/timing.cu"),
];

/// Kernels on one CUDA device.
pub struct CudaProvider {
    /// The device, or why there is none: then that is the answer to everything.
    device: Result<CudaDevice, String>,
    user: Option<UserKernel>,
    session: Option<Rc<Session>>,
}

/// What is opened once a process.
pub(super) struct Session {
    context: Context,
    compiler: Compiler,
    timer: Timer,
    checksummer: Checksummer,
    /// Whether CUDA has failed for good.
    is_broken: Cell<bool>,
}

impl CudaProvider {
    /// The device of this number, with the kernels of `attn_kernels::cuda` and a user's own. Nothing is opened before a case
    /// needs it; a device that is not there is an answer to requests.
    pub fn new(ordinal: usize, user: Option<UserKernel>) -> CudaProvider {
        let device = devices().map_err(|error| error.to_string()).and_then(|devices| {
            let count = devices.len();
            let found = devices.into_iter().nth(ordinal);
            found.ok_or_else(|| format!("there is no CUDA device {ordinal}; the driver lists {count}, numbered from 0"))
        });
        CudaProvider { device, user, session: None }
    }

    fn device(&self) -> Result<&CudaDevice, WorkerError> {
        self.device.as_ref().map_err(|reason| WorkerError::new(ErrorKind::Unsupported, reason))
    }

    fn kernel(&self, name: &str) -> Result<&dyn CudaKernel, WorkerError> {
        match &self.user {
            Some(user) if user.name() == name => Ok(user),
            _ => match cuda::find(name) {
                Some(kernel) => Ok(kernel),
                None => {
                    let names: Vec<String> = self.kernels().into_iter().map(|kernel| kernel.name).collect();
                    let message = format!("provider `cuda` has no kernel `{name}`; it has {}", names.join(", "));
                    Err(WorkerError::new(ErrorKind::Unsupported, message))
                }
            },
        }
    }

    fn session(&mut self) -> Result<Rc<Session>, WorkerError> {
        if let Some(session) = &self.session {
            return Ok(Rc::clone(session));
        }
        let device = self.device()?.clone();
        let context = Context::open(&device).map_err(|fault| kernel_error(&fault))?;
        let compiler = Compiler::new(device.compute_capability);
        let timer = Timer::new(&context, &compiler).map_err(|error| load_error(&error))?;
        let checksummer = Checksummer::new(&context, &compiler).map_err(|error| load_error(&error))?;
        let session = Rc::new(Session { context, compiler, timer, checksummer, is_broken: Cell::new(false) });
        self.session = Some(Rc::clone(&session));
        Ok(session)
    }
}

impl Provider for CudaProvider {
    fn hello(&self) -> Result<Hello, WorkerError> {
        let device = self.device()?;
        let mut hasher = blake3::Hasher::new();
        TIMING_SOURCES.iter().for_each(|source| {
            hasher.update(source.as_bytes());
        });
        let mut versions = BTreeMap::from([("attnbench".to_owned(), env!("CARGO_PKG_VERSION").to_owned())]);
        let cuda = device.driver_cuda_version;
        versions.insert("cuda_driver_api".to_owned(), format!("{}.{}", cuda / 1000, cuda % 1000 / 10));
        if let Ok((major, minor)) = Compiler::new(device.compute_capability).version() {
            versions.insert("nvrtc".to_owned(), format!("{major}.{minor}"));
        }
        Ok(Hello {
            protocol: PROTOCOL_VERSION,
            provider: "cuda".to_owned(),
            device: format!("cuda:{} {}", device.ordinal, device.name),
            versions,
            timing_hash: hasher.finalize().to_hex()[..16].to_owned(),
            golden_hash: input::golden_hash(),
            gpu_uuid: Some(device.uuid.clone()),
            gpu: Some(device.clone()),
        })
    }

    fn kernels(&self) -> Vec<KernelInfo> {
        let info = |name: &str, summary: &str| KernelInfo { name: name.to_owned(), summary: summary.to_owned() };
        let built_in = cuda::CUDA_KERNELS.iter().map(|kernel| info(kernel.name(), kernel.summary()));
        built_in.chain(self.user.iter().map(|user| info(user.name(), user.summary()))).collect()
    }

    fn supports(&self, case: &CaseRequest) -> Result<(), WorkerError> {
        case.problem.validate().map_err(|error| WorkerError::invalid(error.to_string()))?;
        let is_user = self.user.as_ref().is_some_and(|user| user.name() == case.kernel);
        if is_user && case.problem.phase == Phase::Backward {
            let message = "phase backward: a kernel of one's own computes forward phases only";
            return Err(WorkerError::new(ErrorKind::Unsupported, message));
        }
        Ok(self.kernel(&case.kernel)?.supports(&case.problem)?)
    }

    fn prepare(&mut self, prepare: &Prepare) -> Result<(Box<dyn PreparedCase>, Prepared), WorkerError> {
        self.supports(&prepare.case)?;
        let session = self.session()?;
        let kernel = self.kernel(&prepare.case.kernel)?;
        let code = match self.user.as_ref().filter(|user| user.name() == kernel.name()).map(UserKernel::image) {
            Some(Image::Binary(bytes)) => Code::Image(bytes),
            _ => Code::Source(&session.compiler),
        };
        let (case, prepared) = case::CudaCase::new(&session, kernel, &code, prepare)?;
        Ok((Box::new(case), prepared))
    }

    fn control(&mut self, control: &Control) -> Result<ControlSamples, WorkerError> {
        let session = self.session()?;
        ceiling::measure(&session.context, &session.compiler, &session.timer, control)
            .map_err(|error| session.failed_to_load(&error))
    }

    fn is_usable(&self) -> bool {
        self.session.as_ref().is_none_or(|session| !session.is_broken.get())
    }
}

impl Session {
    /// What a failed call means for the case, noting where it means the end of this process.
    fn failed(&self, fault: Fault) -> WorkerError {
        if !fault.is_recoverable() {
            self.is_broken.set(true);
        }
        kernel_error(&fault)
    }

    fn failed_to_load(&self, error: &LoadError) -> WorkerError {
        if let LoadError::Driver { fault, .. } = error
            && !fault.is_recoverable()
        {
            self.is_broken.set(true);
        }
        load_error(error)
    }
}

fn kernel_error(fault: &Fault) -> WorkerError {
    let kind = if fault.is_out_of_memory() { ErrorKind::OutOfMemory } else { ErrorKind::KernelError };
    WorkerError::new(kind, fault.to_string())
}

fn load_error(error: &LoadError) -> WorkerError {
    let kind = match error {
        LoadError::Nvrtc(NvrtcError::Missing(_)) => ErrorKind::Unsupported,
        LoadError::Nvrtc(NvrtcError::Compile { .. }) => ErrorKind::KernelError,
        LoadError::Driver { fault, .. } => kernel_error(fault).kind,
    };
    WorkerError::new(kind, error.to_string())
}
