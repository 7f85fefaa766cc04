//! Matrix -> planned cases: the product of the axes, sized before it is made, each problem checked.

use std::collections::HashSet;

use attn_kernels::kernel::Kernel;
use attn_kernels::problem::{
    AttentionProblem, Bias, CausalAlignment, Dtype, KvLayout, Layout, Lengths, Mechanism, Pattern, Phase,
};

use super::axes::{AxisValue, Heads, Threads};
use super::error::Fault;
use super::filter::CaseGlob;
use super::presets::{LayerGroup, Model};
use super::raw::{KernelChoice, RawMatrix, RawSuite, kernel_names};
use super::{Environment, MatrixInfo, PlannedCase};
use crate::case::{Case, CaseKey, Mode};

/// Most cases that a matrix may have before it is filtered: a larger one is a mistake, or several suites.
pub const MAX_MATRIX_CASES: u64 = 10_000;
/// Most cases that all matrices of a suite may have together.
pub const MAX_SUITE_CASES: u64 = 50_000;

/// The cases of every matrix in order, without duplicates: the first of two equal keys stays.
pub(super) fn expand(
    raw: &RawSuite,
    environment: &Environment<'_>,
) -> Result<(Vec<MatrixInfo>, Vec<PlannedCase>), Fault> {
    let mut total = 0u64;
    for matrix in &raw.matrices {
        let count = size(matrix, environment.kernels);
        if count > MAX_MATRIX_CASES {
            let message = format!(
                "its axes combine to {count} cases, more than {MAX_MATRIX_CASES}; give fewer values, or split it into \
                 several suites"
            );
            return Err(Fault::at(matrix.span.clone(), message).in_matrix(&matrix.name));
        }
        total = total.saturating_add(count);
        if total > MAX_SUITE_CASES {
            let message =
                format!("up to this matrix the suite has {total} cases, more than {MAX_SUITE_CASES}; split the suite");
            return Err(Fault::at(matrix.span.clone(), message).in_matrix(&matrix.name));
        }
    }
    let mut seen: HashSet<CaseKey> = HashSet::new();
    let (mut matrices, mut cases) = (Vec::new(), Vec::new());
    for matrix in &raw.matrices {
        let mut planned = expand_matrix(matrix, environment).map_err(|fault| fault.in_matrix(&matrix.name))?;
        planned.retain(|case| seen.insert(case.key()));
        matrices.push(MatrixInfo { name: matrix.name.clone(), reason: matrix.reason.clone(), cases: planned.len() });
        cases.append(&mut planned);
    }
    Ok((matrices, cases))
}

/// Cases of a matrix before filters, without making them.
fn size(matrix: &RawMatrix, built_in: &[&dyn Kernel]) -> u64 {
    let kernels = match &matrix.kernels {
        KernelChoice::All => built_in.len(),
        KernelChoice::Named(names) => names.len(),
    };
    let factors = matrix.dimensions.iter().map(Vec::len).chain([matrix.providers.len(), kernels]);
    factors.fold(1, |product: u64, factor| product.saturating_mul(factor as u64))
}

fn expand_matrix(matrix: &RawMatrix, environment: &Environment<'_>) -> Result<Vec<PlannedCase>, Fault> {
    let fault = |message: String| Fault::at(matrix.span.clone(), message);
    let mut cases = Vec::new();
    let mut was_included = vec![false; matrix.include.len()];
    let mut was_excluded = vec![false; matrix.exclude.len()];
    let mut first_invalid = None;
    let mut indices = vec![0; matrix.dimensions.len()];
    loop {
        let mut draft = Draft::default();
        for (values, &index) in matrix.dimensions.iter().zip(&indices) {
            values[index].iter().for_each(|value| draft.set(value));
        }
        let problem = draft.resolve().map_err(fault)?.normalise();
        let checked = draft.check(&problem);
        for provider in &matrix.providers {
            let threads = draft.threads(provider, environment.threads);
            let mut settings = matrix.settings.clone();
            settings.mode = draft.mode.unwrap_or(settings.mode);
            let names: Vec<&str> = match &matrix.kernels {
                KernelChoice::Named(names) => names.iter().map(String::as_str).collect(),
                KernelChoice::All if checked.is_err() => vec!["all"],
                KernelChoice::All => supporting(environment.kernels, &problem).map_err(fault)?,
            };
            for kernel in names {
                let case = Case { provider: provider.clone(), kernel: kernel.to_owned(), problem: problem.clone() };
                let id = case.id();
                let is_included = matrix.include.is_empty() | any_match(&matrix.include, &id, &mut was_included);
                if any_match(&matrix.exclude, &id, &mut was_excluded) || !is_included {
                    continue;
                }
                match &checked {
                    Ok(()) => {
                        let matrix = matrix.name.clone();
                        cases.push(PlannedCase { case, matrix, threads, settings: settings.clone(), slowdown: 0.0 });
                    }
                    Err(reason) => {
                        first_invalid.get_or_insert_with(|| format!("`{}` does not exist: {reason}", problem.id()));
                    }
                }
            }
        }
        if !advance(&mut indices, matrix) {
            break;
        }
    }
    if let Some(reason) = first_invalid.filter(|_| !matrix.skip_invalid || cases.is_empty()) {
        let way_out = match matrix.skip_invalid {
            true => "no combination of the matrix is left",
            false => "change the axes, `exclude` it, or leave such combinations out with `skip_invalid = true`",
        };
        return Err(fault(format!("{reason}; {way_out}")));
    }
    for (globs, was_used, key) in
        [(&matrix.include, was_included, "include"), (&matrix.exclude, was_excluded, "exclude")]
    {
        if let Some(((glob, span), _)) = globs.iter().zip(was_used).find(|(_, was_used)| !was_used) {
            let example = cases.first().map(|case| format!(", such as `{}`", case.case.id())).unwrap_or_default();
            let message = format!("`{key}` glob `{}` matches no case id of the matrix{example}", glob.as_str());
            return Err(Fault::at(span.clone(), message));
        }
    }
    if cases.is_empty() {
        return Err(fault("the matrix is empty: `include` and `exclude` leave no case".to_owned()));
    }
    Ok(cases)
}

/// Counts up, last dimension fastest; false at the end.
fn advance(indices: &mut [usize], matrix: &RawMatrix) -> bool {
    for (index, values) in indices.iter_mut().zip(&matrix.dimensions).rev() {
        *index += 1;
        if *index < values.len() {
            return true;
        }
        *index = 0;
    }
    false
}

/// Whether any glob matches; marks those that do.
fn any_match<T>(globs: &[(CaseGlob, T)], id: &str, was_used: &mut [bool]) -> bool {
    let mut any = false;
    for ((glob, _), was_used) in globs.iter().zip(was_used) {
        let matches = glob.matches(id);
        *was_used |= matches;
        any |= matches;
    }
    any
}

/// The built-in kernels that support a problem.
fn supporting<'k>(built_in: &[&'k dyn Kernel], problem: &AttentionProblem) -> Result<Vec<&'k str>, String> {
    let names: Vec<&str> =
        built_in.iter().filter(|kernel| kernel.supports(problem).is_ok()).map(|kernel| kernel.name()).collect();
    if names.is_empty() {
        return Err(format!(
            "`kernels = \"all\"`, but no built-in kernel supports `{}`; the kernels are {}",
            problem.id(),
            kernel_names(built_in)
        ));
    }
    Ok(names)
}

/// The values of one combination, before they make a problem.
#[derive(Default)]
struct Draft {
    model: Option<(&'static Model, &'static LayerGroup)>,
    mechanism: Option<Mechanism>,
    pattern: Option<Pattern>,
    phase: Option<Phase>,
    causal: Option<bool>,
    align: CausalAlignment,
    dtype: Option<Dtype>,
    dtype_kv: Option<Dtype>,
    batch: Option<usize>,
    heads: Option<Heads>,
    seqlen: Option<Lengths>,
    seqlen_q: Option<Lengths>,
    seqlen_kv: Option<Lengths>,
    head_dim_qk: Option<usize>,
    head_dim_v: Option<usize>,
    scale: Option<f64>,
    softcap: Option<f64>,
    bias: Bias,
    sinks: bool,
    layout: Layout,
    kv_layout: KvLayout,
    deterministic: bool,
    mode: Option<Mode>,
    threads: Option<Threads>,
}

impl Draft {
    fn set(&mut self, value: &AxisValue) {
        match value.clone() {
            AxisValue::Model(model, group) => self.model = Some((model, group)),
            AxisValue::Mechanism(mechanism) => self.mechanism = Some(mechanism),
            AxisValue::Pattern(pattern) => self.pattern = Some(pattern),
            AxisValue::Phase(phase) => self.phase = Some(phase),
            AxisValue::Causal(causal) => self.causal = Some(causal),
            AxisValue::Align(align) => self.align = align,
            AxisValue::Dtype(dtype) => self.dtype = Some(dtype),
            AxisValue::DtypeKv(dtype) => self.dtype_kv = Some(dtype),
            AxisValue::Batch(batch) => self.batch = Some(batch),
            AxisValue::Heads(heads) => self.heads = Some(heads),
            AxisValue::Seqlen(lengths) => self.seqlen = Some(lengths),
            AxisValue::SeqlenQ(lengths) => self.seqlen_q = Some(lengths),
            AxisValue::SeqlenKv(lengths) => self.seqlen_kv = Some(lengths),
            AxisValue::HeadDim(dim) => (self.head_dim_qk, self.head_dim_v) = (Some(dim), Some(dim)),
            AxisValue::HeadDimQk(dim) => self.head_dim_qk = Some(dim),
            AxisValue::HeadDimV(dim) => self.head_dim_v = Some(dim),
            AxisValue::Scale(scale) => self.scale = scale,
            AxisValue::Softcap(cap) => self.softcap = cap,
            AxisValue::Bias(bias) => self.bias = bias,
            AxisValue::Sinks(sinks) => self.sinks = sinks,
            AxisValue::Layout(layout) => self.layout = layout,
            AxisValue::KvLayout(kv_layout) => self.kv_layout = kv_layout,
            AxisValue::Deterministic(deterministic) => self.deterministic = deterministic,
            AxisValue::Mode(mode) => self.mode = Some(mode),
            AxisValue::Threads(threads) => self.threads = Some(threads),
        }
    }

    /// The problem, legal or not; the error names what is missing.
    fn resolve(&self) -> Result<AttentionProblem, String> {
        let phase = self.phase.unwrap_or(Phase::Prefill);
        let dtype = self.dtype.unwrap_or(Dtype::F32);
        let (seqlen_q, seqlen_kv) = self.lengths(phase)?;
        let mut problem = AttentionProblem::softmax(phase, dtype, self.batch.unwrap_or(1), (1, 1), (1, 1), 1);
        problem.dtype_kv = self.dtype_kv.unwrap_or(dtype);
        (problem.seqlen_q, problem.seqlen_kv) = (seqlen_q, seqlen_kv);
        problem.causal_alignment = self.align;
        problem.bias = self.bias;
        problem.layout = self.layout;
        problem.kv_layout = self.kv_layout;
        problem.deterministic = self.deterministic;
        if let Some((model, group)) = self.model {
            group.apply(&mut problem);
            problem.causal = model.causal;
            return Ok(problem);
        }
        problem.mechanism = self.mechanism.unwrap_or(Mechanism::Softmax);
        problem.pattern = self.pattern.unwrap_or(Pattern::Full);
        problem.causal = self.causal.unwrap_or(false);
        problem.scale = self.scale;
        problem.softcap = self.softcap;
        problem.sinks = self.sinks;
        (problem.heads_q, problem.heads_kv) = match self.heads {
            Some(Heads::Grouped(q, kv)) => (q, kv),
            Some(Heads::Same(heads)) if problem.is_absorbed_mla() => (heads, 1),
            Some(Heads::Same(heads)) => (heads, heads),
            None => return Err("it has no `heads`; give query and KV heads such as `heads = \"32:8\"`".to_owned()),
        };
        let (qk, v) = natural_dims(&problem);
        let dim = |given: Option<usize>, natural: Option<usize>, key: &str| {
            given
                .or(natural)
                .ok_or_else(|| format!("it has no `head_dim`; give `head_dim = 128`, or `{key}` and its twin"))
        };
        problem.head_dim_qk = dim(self.head_dim_qk, qk, "head_dim_qk")?;
        problem.head_dim_v = dim(self.head_dim_v, v, "head_dim_v")?;
        Ok(problem)
    }

    /// Queries and keys. `seqlen` alone means both, but for decode the cache under one new query.
    fn lengths(&self, phase: Phase) -> Result<(Lengths, Lengths), String> {
        let one = Lengths::Same(1);
        match (phase, &self.seqlen, &self.seqlen_q, &self.seqlen_kv) {
            (Phase::Decode, Some(cache), _, _) => Ok((one, cache.clone())),
            (Phase::Decode, None, q, Some(cache)) => Ok((q.clone().unwrap_or(one), cache.clone())),
            (Phase::Decode, None, _, None) => {
                Err("phase `decode` has no cache length; give `seqlen` or `seqlen_kv`".to_owned())
            }
            (Phase::Append, Some(_), _, _) => Err(
                "phase `append` puts queries onto a longer cache; give `seqlen_q` and `seqlen_kv` instead of `seqlen`"
                    .to_owned(),
            ),
            (_, Some(both), _, _) => Ok((both.clone(), both.clone())),
            (_, None, Some(q), Some(kv)) => Ok((q.clone(), kv.clone())),
            (Phase::Append, None, _, _) => Err("phase `append` needs `seqlen_q` and `seqlen_kv`".to_owned()),
            (_, None, Some(_), None) => Err("it has `seqlen_q` without `seqlen_kv`".to_owned()),
            (_, None, None, Some(_)) => Err("it has `seqlen_kv` without `seqlen_q`".to_owned()),
            (_, None, None, None) => Err("it has no length; give `seqlen`, or `seqlen_q` and `seqlen_kv`".to_owned()),
        }
    }

    /// Whether the problem exists; the error says why not.
    fn check(&self, problem: &AttentionProblem) -> Result<(), String> {
        if let Some((model, _)) = self.model
            && !model.has_phase(problem.phase, problem.kv_layout)
        {
            return Err(format!(
                "model `{}` is an encoder: it has no cache, so its phases are `prefill` and `backward`",
                model.name
            ));
        }
        problem.validate().map_err(|error| error.to_string())
    }

    /// Threads of a kernel of this provider; 0 on devices that are not CPUs.
    fn threads(&self, provider: &str, available: usize) -> usize {
        match self.threads.unwrap_or(Threads::All) {
            _ if provider == "cuda" => 0,
            Threads::All => available,
            Threads::Count(count) => count,
        }
    }
}

/// The head dimensions that the mechanism itself decides: those of MLA's expanded and absorbed forms.
fn natural_dims(problem: &AttentionProblem) -> (Option<usize>, Option<usize>) {
    match problem.mechanism {
        Mechanism::Mla { latent, rope, .. } if problem.is_absorbed_mla() => (latent.checked_add(rope), Some(latent)),
        Mechanism::Mla { rope, nope, .. } => (nope.checked_add(rope), Some(nope)),
        _ => (None, None),
    }
}
