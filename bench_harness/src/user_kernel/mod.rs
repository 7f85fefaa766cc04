//! A user's own CUDA kernel: a source, PTX or cubin, and a manifest that says what it computes and how it is launched.
//!
//! From both comes a [`CudaKernel`] like the built-in ones, so that it is verified, timed and recorded in the same way.
//! `kernels/cuda/examples/README.md` explains the manifest.

pub mod expression;
mod manifest;
mod sequences;

use std::path::{Path, PathBuf};

use attn_kernels::cuda::{Argument, CudaKernel, CudaPlan, DeviceFacts, Launch, Module, Source};
use attn_kernels::input::{input_names, output_names};
use attn_kernels::kernel::KernelError;
use attn_kernels::problem::{AttentionProblem, Bias, CausalAlignment, Dtype, KvLayout, Mechanism, Pattern};
use attn_kernels::tensor::TensorName;
use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::{Error as ValueError, StrDeserializer};

use self::expression::{Variables, evaluate};
use self::manifest::{LaunchEntry, Manifest};
use self::sequences::{SequenceTable, tables_of};

/// Largest manifest, in bytes.
const MAX_MANIFEST_BYTES: u64 = 64 << 10;
/// Largest source or machine code, in bytes.
const MAX_SOURCE_BYTES: u64 = 64 << 20;
/// A distance that no sequence reaches: what `window_left` and `window_right` are without a window.
const UNBOUNDED: i64 = 1 << 28;

/// Where a user's kernel lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserKernelFiles {
    /// `.cu`, `.ptx` or `.cubin`.
    pub source: PathBuf,
    /// The manifest.
    pub manifest: PathBuf,
}

/// Why a user's kernel cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("reading {what} `{}`: {reason}", .path.display())]
pub struct UserKernelError {
    what: &'static str,
    path: PathBuf,
    reason: String,
}

/// What is compiled or loaded.
pub enum Image {
    /// CUDA C++, for NVRTC.
    Source,
    /// PTX or machine code, for the driver.
    Binary(Vec<u8>),
}

/// A user's kernel.
pub struct UserKernel {
    name: &'static str,
    summary: &'static str,
    source: Source,
    image: Image,
    manifest: Manifest,
    /// Entries of the launches, in their order.
    entries: Vec<&'static str>,
}

/// Plans refer to names for as long as the process lives, and a process has one user's kernel.
fn keep(text: &str) -> &'static str {
    Box::leak(text.to_owned().into_boxed_str())
}

impl UserKernel {
    /// Reads a kernel's two files.
    pub fn read(files: &UserKernelFiles) -> Result<UserKernel, UserKernelError> {
        let in_manifest = |reason| UserKernelError { what: "kernel manifest", path: files.manifest.clone(), reason };
        let bytes = read_at_most(&files.manifest, MAX_MANIFEST_BYTES).map_err(in_manifest)?;
        let text = String::from_utf8(bytes).map_err(|_| in_manifest("it is not UTF-8".to_owned()))?;
        let manifest = Manifest::parse(&text).map_err(in_manifest)?;

        let in_source = |reason| UserKernelError { what: "kernel source", path: files.source.clone(), reason };
        let bytes = read_at_most(&files.source, MAX_SOURCE_BYTES).map_err(in_source)?;
        let extension = files.source.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        let (image, text) = match extension {
            "cu" => {
                let text = String::from_utf8(bytes).map_err(|_| in_source("it is not UTF-8".to_owned()))?;
                if text.contains('\0') {
                    return Err(in_source("it has a zero byte".to_owned()));
                }
                (Image::Source, text)
            }
            "ptx" | "cubin" | "fatbin" => (Image::Binary(bytes), String::new()),
            _ => return Err(in_source("its name ends neither in .cu nor in .ptx, .cubin or .fatbin".to_owned())),
        };
        let name = keep(&manifest.name);
        Ok(UserKernel {
            name,
            summary: keep(&manifest.summary),
            source: Source { name: keep(&format!("{name}.cu")), text: keep(&text) },
            image,
            entries: manifest.launch.iter().map(|launch| keep(&launch.entry)).collect(),
            manifest,
        })
    }

    /// What is compiled or loaded.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// The problems to measure where no suite is named.
    pub fn problems(&self) -> Result<Vec<AttentionProblem>, String> {
        let parse = |id: &String| {
            let problem = AttentionProblem::parse_id(id).map_err(|error| format!("`problems`: {error}"))?;
            problem.validate().map_err(|error| format!("`problems`: `{id}`: {error}"))?;
            Ok(problem)
        };
        self.manifest.problems.iter().map(parse).collect()
    }

    fn launch(
        &self,
        index: usize,
        entry: &LaunchEntry,
        problem: &AttentionProblem,
        device: &DeviceFacts,
        variables: &Variables,
        tables: &[SequenceTable],
    ) -> Result<Launch, String> {
        let size = |text: &String, most: i64| -> Result<u32, String> {
            let value = evaluate(text, variables)?;
            if (0..=most).contains(&value) {
                Ok(value as u32)
            } else {
                Err(format!("`{text}` is {value}, beyond {most}"))
            }
        };
        let dims = |what: &str, texts: &[String], most: [i64; 3]| -> Result<[u32; 3], String> {
            let mut dims = [1u32; 3];
            for (index, text) in texts.iter().enumerate() {
                dims[index] = size(text, most[index]).map_err(|reason| format!("{what}: {reason}"))?;
            }
            Ok(dims)
        };
        let grid = dims("grid", &entry.grid, [i64::from(i32::MAX), 65535, 65535])?;
        let block = dims("block", &entry.block, [1024, 1024, 64])?;
        let threads: u64 = block.iter().map(|&dim| u64::from(dim)).product();
        if !(1..=1024).contains(&threads) {
            return Err(format!("a block of {threads} threads; 1 to 1024 are possible"));
        }
        let shared_bytes = size(&entry.shared_bytes, i64::from(device.shared_bytes_per_block))
            .map_err(|reason| format!("shared_bytes of this device: {reason}"))?;
        let arguments = entry
            .arguments
            .iter()
            .map(|text| {
                self.argument(text, problem, variables, tables).map_err(|reason| format!("argument `{text}`: {reason}"))
            })
            .collect::<Result<_, String>>()?;
        Ok(Launch { module: 0, entry: self.entries[index], grid, block, shared_bytes, arguments })
    }

    fn argument(
        &self,
        text: &str,
        problem: &AttentionProblem,
        variables: &Variables,
        tables: &[SequenceTable],
    ) -> Result<Argument, String> {
        let Some((kind, value)) = text.split_once(':') else {
            if text == "null" {
                return Ok(Argument::Null);
            }
            if let Some(number) = tables.iter().position(|table| table.name() == text) {
                return Ok(Argument::Table(number));
            }
            let deserializer: StrDeserializer<'_, ValueError> = text.into_deserializer();
            let name = TensorName::deserialize(deserializer)
                .map_err(|_| "it is no tensor, nor lengths_q, lengths_kv, starts_q, starts_kv, i32:, u32:, u64:, f32:, workspace: or null".to_owned())?;
            return match name {
                TensorName::Lse => Ok(Argument::OptionalTensor(name)),
                _ if input_names(problem).contains(&name) || output_names(problem).contains(&name) => {
                    Ok(Argument::Tensor(name))
                }
                _ => Err("the problem has no such tensor".to_owned()),
            };
        };
        let integer = || evaluate(value, variables);
        let beyond = |value: i64| format!("{value} does not fit");
        match kind {
            "i32" => integer().and_then(|v| i32::try_from(v).map(Argument::I32).map_err(|_| beyond(v))),
            "u32" => integer().and_then(|v| u32::try_from(v).map(Argument::U32).map_err(|_| beyond(v))),
            "u64" => integer().and_then(|v| u64::try_from(v).map(Argument::U64).map_err(|_| beyond(v))),
            "f32" => match value {
                "scale" => Ok(Argument::F32(problem.effective_scale() as f32)),
                "softcap" => Ok(Argument::F32(problem.softcap.unwrap_or(0.0) as f32)),
                number => match number.parse::<f32>() {
                    Ok(number) if number.is_finite() => Ok(Argument::F32(number)),
                    _ => Err("f32: takes `scale`, `softcap` or a number".to_owned()),
                },
            },
            "workspace" => match value.parse::<usize>() {
                Ok(number) if number < self.manifest.workspace.len() => Ok(Argument::Workspace(number)),
                _ => Err(format!("there are {} workspaces, numbered from 0", self.manifest.workspace.len())),
            },
            _ => Err("it is neither i32:, u32:, u64:, f32: nor workspace:".to_owned()),
        }
    }

    fn module(&self, variables: &Variables, dtype: Dtype) -> Result<Module, String> {
        let element = match dtype {
            Dtype::Bf16 => "Bf16",
            Dtype::F16 => "F16",
            Dtype::F32 => "F32",
            Dtype::E4m3 => "E4m3",
        };
        let mut defines = vec![("ELEMENT", element.to_owned())];
        for (name, value) in &self.manifest.define {
            defines.push((keep(name), evaluate(value, variables)?.to_string()));
        }
        Ok(Module { source: self.source, defines })
    }
}

/// Reads a file that is not larger than it may be.
fn read_at_most(path: &Path, most_bytes: u64) -> Result<Vec<u8>, String> {
    use std::io::Read;
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return Err("it is not a file".to_owned());
    }
    let mut bytes = Vec::new();
    file.take(most_bytes + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > most_bytes {
        return Err(format!("it is larger than {most_bytes} bytes"));
    }
    Ok(bytes)
}

/// What expressions may name.
fn variables(problem: &AttentionProblem, device: Option<&DeviceFacts>) -> Variables {
    let first = |lengths: Vec<usize>| lengths.into_iter().max().unwrap_or(0) as i64;
    let (seqlen_q, seqlen_kv) = (first(problem.lengths_q()), first(problem.lengths_kv()));
    let distance = |distance: usize| (distance as i64).min(UNBOUNDED);
    let (left, right) = match problem.pattern {
        Pattern::Window { left, right } => (distance(left), distance(right)),
        _ => (UNBOUNDED, UNBOUNDED),
    };
    let page_size = match problem.kv_layout {
        KvLayout::Contiguous => 0,
        KvLayout::Paged { page_size } => page_size as i64,
    };
    let mut variables = Variables::from([
        ("batch", problem.batch as i64),
        ("causal", i64::from(problem.causal)),
        ("element_bytes", problem.dtype.bytes() as i64),
        ("group", (problem.heads_q / problem.heads_kv.max(1)) as i64),
        ("head_dim_qk", problem.head_dim_qk as i64),
        ("head_dim_v", problem.head_dim_v as i64),
        ("heads_kv", problem.heads_kv as i64),
        ("heads_q", problem.heads_q as i64),
        ("page_size", page_size),
        ("query_offset", problem.query_offset(seqlen_q as usize, seqlen_kv as usize)),
        ("seqlen_kv", seqlen_kv),
        ("seqlen_q", seqlen_q),
        ("window_left", left),
        ("window_right", right),
    ]);
    if let Some(device) = device {
        variables.insert("multiprocessors", i64::from(device.multiprocessors));
        variables.insert("shared_bytes_per_block", i64::from(device.shared_bytes_per_block));
    }
    variables
}

impl CudaKernel for UserKernel {
    fn name(&self) -> &'static str {
        self.name
    }

    fn summary(&self) -> &'static str {
        self.summary
    }

    fn supports(&self, problem: &AttentionProblem) -> Result<(), KernelError> {
        let name = self.name;
        let supports = &self.manifest.supports;
        let unsupported =
            |what: String| Err(KernelError::Unsupported(format!("{what}: the manifest of {name} says no")));
        if problem.mechanism != Mechanism::Softmax {
            return unsupported(format!("mechanism {}", problem.mechanism.name()));
        }
        if !supports.phase.contains(&problem.phase) {
            return unsupported(format!("phase {}", problem.phase.name()));
        }
        if !supports.dtype.contains(&problem.dtype) || problem.dtype_kv != problem.dtype {
            return unsupported(format!("dtype {} on keys of {}", problem.dtype.name(), problem.dtype_kv.name()));
        }
        if !supports.pattern.iter().any(|pattern| pattern == problem.pattern.name()) {
            return unsupported(format!("pattern {}", problem.pattern.name()));
        }
        if !supports.causal.contains(&problem.causal) {
            return unsupported(format!("causal = {}", problem.causal));
        }
        if !supports.layout.contains(&problem.layout) {
            return unsupported(format!("layout {}", problem.layout.name()));
        }
        let has = [
            ("additive_bias", problem.bias == Bias::Additive),
            ("alibi", problem.bias == Bias::Alibi),
            ("bool_bias", problem.bias == Bias::Bool),
            ("paged", problem.kv_layout != KvLayout::Contiguous),
            ("ragged", problem.seqlen_q.is_ragged() || problem.seqlen_kv.is_ragged()),
            ("sinks", problem.sinks),
            ("softcap", problem.softcap.is_some()),
            ("top_left", problem.causal_alignment == CausalAlignment::TopLeft),
        ];
        for (option, is_asked) in has {
            if is_asked && !supports.options.iter().any(|known| known == option) {
                return unsupported(option.to_owned());
            }
        }
        let variables = variables(problem, None);
        for condition in &supports.conditions {
            match evaluate(condition, &variables) {
                Ok(0) => return unsupported(format!("`{condition}` is not so")),
                Ok(_) => {}
                Err(reason) => return Err(KernelError::Failed(format!("supports.where of {name}: {reason}"))),
            }
        }
        Ok(())
    }

    fn plan(&self, problem: &AttentionProblem, device: &DeviceFacts) -> Result<CudaPlan, KernelError> {
        self.supports(problem)?;
        let variables = variables(problem, Some(device));
        let failed =
            |what: &str, reason: String| KernelError::Failed(format!("manifest of {}: {what}: {reason}", self.name));
        let mut plan = CudaPlan {
            modules: vec![self.module(&variables, problem.dtype).map_err(|reason| failed("define", reason))?],
            ..CudaPlan::default()
        };
        for workspace in &self.manifest.workspace {
            let bytes = evaluate(&workspace.bytes, &variables)
                .and_then(|bytes| u64::try_from(bytes).map_err(|_| format!("`{}` is {bytes}", workspace.bytes)))
                .map_err(|reason| failed("workspace", reason))?;
            plan.workspaces.push(bytes);
        }
        let tables = tables_of(self.manifest.launch.iter().flat_map(|launch| &launch.arguments));
        for table in &tables {
            plan.tables.push(table.bytes(problem).map_err(|reason| failed(table.name(), reason))?);
        }
        for (index, entry) in self.manifest.launch.iter().enumerate() {
            let launch = self.launch(index, entry, problem, device, &variables, &tables);
            plan.launches.push(launch.map_err(|reason| failed(&format!("launch of `{}`", entry.entry), reason))?);
        }
        Ok(plan)
    }

    fn modules(&self) -> Vec<Module> {
        Vec::new()
    }
}
