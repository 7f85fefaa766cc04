//! Device memory of a case: what it will take, what it takes, and what it is filled with.

use attn_kernels::e4m3::e4m3;
use attn_kernels::input;
use attn_kernels::problem::{AttentionProblem, Phase};
use attn_kernels::tensor::{ElementType, Tensor, TensorName};

use super::Session;
use crate::device::cuda::context::{Buffer, Context, Pattern};
use crate::device::cuda::driver::Fault;
use crate::worker::protocol::{ErrorKind, Prepare, WorkerError};

/// The share of the free memory that is left alone: allocations are rounded up, and loading code takes some.
const MARGIN_SHARE: u64 = 64;

/// The tensors that a call reads: those that are generated, and what backward's own forward makes of them.
pub(super) fn read_names(problem: &AttentionProblem) -> Vec<TensorName> {
    let computed: &[TensorName] =
        if problem.phase == Phase::Backward { &[TensorName::O, TensorName::Lse] } else { &[] };
    [&input::input_names(problem), computed].concat()
}

/// Input buffers that fit, or why not even one does: out of memory is foreseen and not met, since nothing is certain of a
/// device after it.
pub(super) fn foresee_memory(
    session: &Session,
    problem: &AttentionProblem,
    plan_bytes: u64,
    prepare: &Prepare,
) -> Result<u64, WorkerError> {
    let out_of_memory = |message: String| Err(WorkerError::new(ErrorKind::OutOfMemory, message));
    let bytes_of = |names: Vec<TensorName>| -> u64 {
        let bytes = |name| {
            let (element, dims) = input::tensor_shape(problem, name);
            let bytes = dims.iter().fold(element.bytes() as u64, |bytes, &dim| bytes.saturating_mul(dim as u64));
            bytes.saturating_add(256)
        };
        names.into_iter().map(bytes).fold(0, u64::saturating_add)
    };
    let inputs_bytes = bytes_of(read_names(problem));
    let outputs_bytes = bytes_of(input::output_names(problem));
    let host_bytes = inputs_bytes.saturating_add(outputs_bytes);
    if host_bytes > prepare.available_bytes {
        return out_of_memory(format!(
            "needs {host_bytes} bytes of host memory to make inputs and compare outputs, {} are available",
            prepare.available_bytes
        ));
    }
    let free_bytes = session.context.free_bytes().map_err(|fault| session.failed(fault))?;
    let usable_bytes = free_bytes - free_bytes / MARGIN_SHARE;
    let needs = |slots: u64| {
        let fixed = outputs_bytes.saturating_mul(2).saturating_add(plan_bytes);
        inputs_bytes.saturating_mul(slots).saturating_add(fixed)
    };
    let wanted = prepare.slots.clamp(1, 16);
    match (1..=wanted).rev().find(|&slots| needs(slots) <= usable_bytes) {
        Some(slots) => Ok(slots),
        None => out_of_memory(format!(
            "needs {} bytes of device memory, {plan_bytes} of them workspace, and {usable_bytes} can be had",
            needs(1)
        )),
    }
}

/// Memory of a tensor in whole words, all of them defined.
pub(super) fn tensor_buffer(context: &Context, problem: &AttentionProblem, name: TensorName) -> Result<Buffer, Fault> {
    let (element, dims) = input::tensor_shape(problem, name);
    let bytes = Tensor::size_bytes(element, &dims).expect("foreseen to fit") as u64;
    let buffer = context.allocate(bytes.next_multiple_of(4))?;
    context.fill(&buffer, Pattern::Byte(0))?;
    Ok(buffer)
}

/// NaN of a float type, as `Tensor::poison` writes it.
pub(super) fn poison_of(element: ElementType) -> Pattern {
    match element {
        ElementType::F32 => Pattern::Word(f32::NAN.to_bits()),
        ElementType::F16 => Pattern::Half(half::f16::NAN.to_bits()),
        ElementType::Bf16 => Pattern::Half(half::bf16::NAN.to_bits()),
        ElementType::E4m3 => Pattern::Byte(e4m3::NAN.to_bits()),
        ElementType::I32 => Pattern::Word(0x8000_0000),
        ElementType::Bool => Pattern::Byte(1),
    }
}
