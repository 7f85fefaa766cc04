//! Every combination of options on every kernel, against [`Dense`].

use attn_kernels::cpu::KERNELS;
use attn_kernels::kernel::KernelError;
use attn_kernels::problem::CausalAlignment;
use attnbench::eval::{EvalError, Inputs, Options, evaluate};
use attnbench::tensor_file::{Array, FileDtype};
use half::{bf16, f16};
use proptest::prelude::*;

use crate::dense::{Dense, Mask};

/// What a drawn mask looks like.
#[derive(Clone, Copy, Debug, PartialEq)]
enum MaskKind {
    Bool,
    Additive(FileDtype),
}

#[derive(Clone, Debug)]
struct Config {
    dtype: FileDtype,
    batch: usize,
    group: usize,
    heads_kv: usize,
    len_q: usize,
    len_k: usize,
    past: Option<usize>,
    past_is_3d: bool,
    dims: (usize, usize),
    is_3d: bool,
    causal: bool,
    alignment: CausalAlignment,
    window: (Option<usize>, Option<usize>),
    scale: Option<f64>,
    softcap: Option<f64>,
    /// Kind, whether each of batch, heads and queries is broadcast, dimensions left out, and the part of the keys that it
    /// covers, in eighths.
    mask: Option<(MaskKind, [bool; 3], usize, usize)>,
    /// Whether each sequence has its own number of valid keys.
    has_lengths: bool,
    seed: u64,
}

fn config() -> impl Strategy<Value = Config> {
    let float = || prop_oneof![3 => Just(FileDtype::F32), 1 => Just(FileDtype::F16), 1 => Just(FileDtype::Bf16)];
    let mask_kind =
        prop_oneof![Just(MaskKind::Bool), prop_oneof![float(), Just(FileDtype::F64)].prop_map(MaskKind::Additive)];
    let mask = proptest::option::of((
        mask_kind,
        any::<[bool; 3]>(),
        0..3usize,
        prop_oneof![2 => Just(8usize), 1 => 0..8usize],
    ));
    let window = || proptest::option::weighted(0.3, prop_oneof![0..12usize, Just(1 << 40)]);
    let shape =
        (1..4usize, 1..5usize, 1..4usize, prop_oneof![1..9usize, 1..140usize], prop_oneof![1..9usize, 1..300usize]);
    let rules = (any::<bool>(), any::<bool>(), (window(), window()));
    let factors = (proptest::option::of(-1.5..1.5f64), proptest::option::weighted(0.3, 0.5..20.0f64));
    let past = (proptest::option::weighted(0.4, 0..20usize), any::<bool>());
    let rest = (float(), (1..20usize, 1..20usize), any::<bool>(), any::<bool>(), any::<u64>());
    (shape, rules, factors, mask, past, rest).prop_map(|(shape, rules, factors, mask, past, rest)| Config {
        dtype: rest.0,
        batch: shape.0,
        group: shape.1,
        heads_kv: shape.2,
        len_q: shape.3,
        len_k: shape.4,
        past: past.0,
        past_is_3d: past.1,
        dims: rest.1,
        is_3d: rest.2,
        causal: rules.0,
        alignment: if rules.1 { CausalAlignment::TopLeft } else { CausalAlignment::BottomRight },
        window: rules.2,
        scale: factors.0,
        softcap: factors.1,
        mask,
        has_lengths: rest.3,
        seed: rest.4,
    })
}

/// splitmix64: its own stream of numbers, so that the tensors depend on nothing of the crate.
struct Stream(u64);

impl Stream {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// Uniform in -2..2.
    fn real(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 51) as f64 - 2.0
    }
}

fn round(dtype: FileDtype, value: f64) -> f64 {
    match dtype {
        FileDtype::F16 => f16::from_f64(value).to_f64(),
        FileDtype::Bf16 => bf16::from_f64(value).to_f64(),
        FileDtype::F32 => f64::from(value as f32),
        _ => value,
    }
}

fn bytes(dtype: FileDtype, values: &[f64]) -> Vec<u8> {
    let one = |&value: &f64| match dtype {
        FileDtype::Bool => vec![u8::from(value != 0.0)],
        FileDtype::F16 => f16::from_f64(value).to_le_bytes().to_vec(),
        FileDtype::Bf16 => bf16::from_f64(value).to_le_bytes().to_vec(),
        FileDtype::F32 => (value as f32).to_le_bytes().to_vec(),
        FileDtype::F64 => value.to_le_bytes().to_vec(),
        FileDtype::I32 => (value as i32).to_le_bytes().to_vec(),
        other => panic!("no test tensor is {other}"),
    };
    values.iter().flat_map(one).collect()
}

fn widen(array: &Array) -> Vec<f64> {
    let one = |bytes: &[u8]| match array.dtype {
        FileDtype::F16 => f16::from_le_bytes(bytes.try_into().unwrap()).to_f64(),
        FileDtype::Bf16 => bf16::from_le_bytes(bytes.try_into().unwrap()).to_f64(),
        FileDtype::F32 => f64::from(f32::from_le_bytes(bytes.try_into().unwrap())),
        other => panic!("an output is {other}"),
    };
    array.bytes.chunks_exact(array.dtype.bytes()).map(one).collect()
}

/// (batch, heads, length, dim) values, as a file of either rank holds them.
fn array(dtype: FileDtype, dims: [usize; 4], is_3d: bool, values: &[f64]) -> Array {
    let [batch, heads, length, dim] = dims;
    if !is_3d {
        return Array { dtype, dims: dims.to_vec(), bytes: bytes(dtype, values) };
    }
    let values = transpose(dims, values);
    Array { dtype, dims: vec![batch, length, heads * dim], bytes: bytes(dtype, &values) }
}

/// (a, b, c, d) to (a, c, b, d).
fn transpose([a, b, c, d]: [usize; 4], values: &[f64]) -> Vec<f64> {
    let mut out = Vec::with_capacity(values.len());
    for i in 0..a {
        for k in 0..c {
            for j in 0..b {
                out.extend_from_slice(&values[((i * b + j) * c + k) * d..][..d]);
            }
        }
    }
    out
}

/// The first or the last tokens of (batch, heads, length, dim).
fn tokens([batch, heads, length, dim]: [usize; 4], values: &[f64], range: std::ops::Range<usize>) -> Vec<f64> {
    (0..batch * heads)
        .flat_map(|row| values[(row * length + range.start) * dim..(row * length + range.end) * dim].to_vec())
        .collect()
}

impl Config {
    fn heads_q(&self) -> usize {
        self.heads_kv * self.group
    }

    fn total(&self) -> usize {
        self.past.unwrap_or(0) + self.len_k
    }

    fn options(&self) -> Options {
        Options {
            heads_q: self.is_3d.then(|| self.heads_q()),
            heads_kv: None,
            causal: self.causal,
            causal_alignment: self.alignment,
            window_left: self.window.0,
            window_right: self.window.1,
            scale: self.scale.map(|scale| if scale == 0.0 { 1.0 } else { scale }),
            softcap: self.softcap,
            uint16_is_bf16: false,
            lse: true,
            present: true,
            threads: 2,
            available_bytes: 1 << 30,
        }
    }

    /// The tensors, and what must come of them.
    fn draw(&self) -> (Inputs, Dense) {
        let mut stream = Stream(self.seed);
        let mut draw = |count: usize| -> Vec<f64> { (0..count).map(|_| round(self.dtype, stream.real())).collect() };
        let (total, past) = (self.total(), self.past.unwrap_or(0));
        let q_dims = [self.batch, self.heads_q(), self.len_q, self.dims.0];
        let k_dims = [self.batch, self.heads_kv, total, self.dims.0];
        let v_dims = [self.batch, self.heads_kv, total, self.dims.1];
        let q = draw(q_dims.iter().product());
        let k = draw(k_dims.iter().product());
        let v = draw(v_dims.iter().product());
        let part = |dims: [usize; 4], values: &[f64], range: std::ops::Range<usize>, is_3d| {
            let length = range.len();
            array(self.dtype, [dims[0], dims[1], length, dims[3]], is_3d, &tokens(dims, values, range))
        };
        let valid: Vec<usize> =
            (0..self.batch).map(|_| if self.has_lengths { stream.below(total + 1) } else { total }).collect();
        let offsets = valid
            .iter()
            .map(|&valid| match (self.alignment, self.past, self.has_lengths) {
                (CausalAlignment::TopLeft, Some(past), _) => past as i64,
                (CausalAlignment::TopLeft, None, false) => 0,
                _ => valid as i64 - self.len_q as i64,
            })
            .collect();
        let (mask, mask_function) = self.draw_mask(&mut stream);
        let lengths: Vec<f64> = valid.iter().map(|&valid| valid as f64).collect();
        let inputs = Inputs {
            q: array(self.dtype, q_dims, self.is_3d, &q),
            k: part(k_dims, &k, past..total, self.is_3d),
            v: part(v_dims, &v, past..total, self.is_3d),
            past: self
                .past
                .map(|past| (part(k_dims, &k, 0..past, self.past_is_3d), part(v_dims, &v, 0..past, self.past_is_3d))),
            mask,
            kv_lengths: self.has_lengths.then(|| Array {
                dtype: FileDtype::I32,
                dims: vec![self.batch],
                bytes: bytes(FileDtype::I32, &lengths),
            }),
        };
        let dense = Dense {
            batch: self.batch,
            heads: (self.heads_q(), self.heads_kv),
            lengths: (self.len_q, total),
            dims: self.dims,
            q,
            k,
            v,
            scale: self.options().scale.unwrap_or(1.0 / (self.dims.0 as f64).sqrt()),
            softcap: self.softcap,
            causal: self.causal,
            window: self.window,
            offsets,
            valid,
            mask: mask_function,
        };
        (inputs, dense)
    }

    fn draw_mask(&self, stream: &mut Stream) -> (Option<Array>, Mask) {
        let Some((kind, broadcast, left_out, eighths)) = self.mask else { return (None, Box::new(|_, _, _, _| 0.0)) };
        let full = [self.batch, self.heads_q(), self.len_q];
        let mut dims: Vec<usize> =
            (0..3).map(|axis| if broadcast[axis] || axis < left_out { 1 } else { full[axis] }).collect();
        dims.push((self.total() * eighths).div_ceil(8));
        let dtype = if let MaskKind::Additive(dtype) = kind { dtype } else { FileDtype::Bool };
        let values: Vec<f64> = (0..dims.iter().product())
            .map(|_| match kind {
                MaskKind::Bool => f64::from(stream.below(3) != 0),
                MaskKind::Additive(_) if stream.below(4) == 0 => f64::NEG_INFINITY,
                MaskKind::Additive(dtype) => round(dtype, stream.real()),
            })
            .collect();
        let file = Array { dtype, dims: dims[left_out..].to_vec(), bytes: bytes(dtype, &values) };
        let own = self.dtype;
        let function = move |b: usize, h: usize, i: usize, j: usize| {
            if j >= dims[3] {
                return f64::NEG_INFINITY;
            }
            let at = |index: usize, axis: usize| if dims[axis] == 1 { 0 } else { index };
            let value = values[((at(b, 0) * dims[1] + at(h, 1)) * dims[2] + at(i, 2)) * dims[3] + j];
            match kind {
                MaskKind::Bool if value == 0.0 => f64::NEG_INFINITY,
                MaskKind::Bool => 0.0,
                // As the operator does, the mask is cast to the dtype of the queries.
                MaskKind::Additive(_) => round(own, value),
            }
        };
        (Some(file), Box::new(function))
    }
}

fn compare(what: &str, got: &[f64], want: &[f64], relative: f64, absolute: f64) -> Result<(), TestCaseError> {
    prop_assert_eq!(got.len(), want.len(), "{}", what);
    for (index, (got, want)) in got.iter().zip(want).enumerate() {
        let is_close = got == want || (got - want).abs() <= absolute + relative * want.abs();
        prop_assert!(is_close, "{what}: element {index} is {got}, not {want}");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_kernel_agrees_with_the_definition(config in config()) {
        let (inputs, dense) = config.draw();
        let (out, lse) = dense.evaluate();
        for &kernel in KERNELS {
            let evaluation = match evaluate(kernel, &inputs, &config.options()) {
                Err(EvalError::Kernel { cause: KernelError::Unsupported(_), .. })
                    if !["naive", "flash"].contains(&kernel.name()) => continue,
                other => other.map_err(|error| TestCaseError::fail(error.to_string()))?,
            };
            let o_dims = [config.batch, config.heads_q(), config.len_q, config.dims.1];
            let want = if config.is_3d { transpose(o_dims, &out) } else { out.clone() };
            prop_assert_eq!(evaluation.o.dtype, config.dtype);
            let (relative, absolute) = match config.dtype {
                FileDtype::F32 => (1e-4, 1e-5),
                FileDtype::F16 => (2e-3, 2e-3),
                _ => (1.6e-2, 1.6e-2),
            };
            compare(&format!("o of {}", kernel.name()), &widen(&evaluation.o), &want, relative, absolute)?;
            let got = evaluation.lse.expect("it was asked for");
            compare(&format!("lse of {}", kernel.name()), &widen(&got), &lse, 1e-4, 1e-4)?;
            let (key, value) = evaluation.present.expect("it was asked for");
            let is_3d = config.past.is_some() && config.past_is_3d;
            let total = config.total();
            let present = |dim, values: &[f64]| array(config.dtype, [config.batch, config.heads_kv, total, dim], is_3d, values);
            prop_assert!(key == present(config.dims.0, &dense.k), "present keys");
            prop_assert!(value == present(config.dims.1, &dense.v), "present values");
        }
    }
}
