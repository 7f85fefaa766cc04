//! What combinations exist: [`LEGAL`] is the whole table, and [`AttentionProblem::validate`] the only judge.
//!
//! A valid problem's sizes never overflow: every count of pairs, FLOPs and bytes fits in 64 bits, every tensor in the
//! address space, every page id in an i32. Whether a kernel computes it is the kernel's own matter.

use super::{AttentionProblem, Bias, Dtype, FeatureMap, KvLayout, Lengths, Mechanism, Pattern, Phase};

#[cfg(test)]
mod tests;

/// Why a combination does not exist.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidProblem(pub String);

/// What `causal` may be in a row of [`LEGAL`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Causality {
    /// Both.
    Either,
    /// The combination is causal by definition, and the problem has to say so.
    Always,
    /// The combination has no causal form.
    Never,
}

/// Combinations that exist.
#[derive(Clone, Copy, Debug)]
pub struct Legal {
    /// Name of the mechanism.
    pub mechanism: &'static str,
    /// Names of patterns.
    pub patterns: &'static [&'static str],
    /// Phases.
    pub phases: &'static [Phase],
    /// What `causal` may be.
    pub causality: Causality,
}

/// Every mechanism x pattern x phase that exists.
pub const LEGAL: &[Legal] = &[
    Legal {
        mechanism: "softmax",
        patterns: &["full", "window", "dilated", "longformer", "bigbird"],
        phases: &Phase::ALL,
        causality: Causality::Either,
    },
    Legal { mechanism: "softmax", patterns: &["strided", "fixed"], phases: &Phase::ALL, causality: Causality::Always },
    Legal { mechanism: "linear", patterns: &["full"], phases: &[Phase::Prefill], causality: Causality::Either },
    // The recurrent form: the state holds what came before.
    Legal { mechanism: "linear", patterns: &["full"], phases: &[Phase::Decode], causality: Causality::Always },
    // The projection mixes all keys, so there is no past to keep to.
    Legal { mechanism: "linformer", patterns: &["full"], phases: &[Phase::Prefill], causality: Causality::Never },
    Legal {
        mechanism: "mla",
        patterns: &["full"],
        phases: &[Phase::Prefill, Phase::Decode],
        causality: Causality::Either,
    },
];

/// Longest sequence, widest window, largest block or stride.
pub const MAX_LENGTH: usize = 1 << 24;
/// Most sequences in a batch.
pub const MAX_BATCH: usize = 1 << 16;
/// Most query heads.
pub const MAX_HEADS: usize = 1 << 10;
/// Most elements of a row; also bounds MLA's parts.
pub const MAX_HEAD_DIM: usize = 1 << 10;
/// Most rows of Linformer's projected keys.
pub const MAX_RANK: usize = 1 << 16;
/// Most tokens a page.
pub const MAX_PAGE_SIZE: usize = 1 << 16;

fn require(is_met: bool, why: impl FnOnce() -> String) -> Result<(), InvalidProblem> {
    if is_met { Ok(()) } else { Err(InvalidProblem(why())) }
}

fn require_range(what: &str, value: usize, min: usize, max: usize) -> Result<(), InvalidProblem> {
    require((min..=max).contains(&value), || format!("{what} is {value}; valid is {min} to {max}"))
}

impl AttentionProblem {
    /// The problem with `causal` set where its mechanism, pattern and phase imply it: strided, fixed and the recurrent
    /// form of linear attention. Suites need not spell it out.
    pub fn normalise(mut self) -> Self {
        self.causal |= self.legal().is_some_and(|row| row.causality == Causality::Always);
        self
    }

    /// Checks that this combination exists and that its sizes are sane. The error says what is wrong and what is valid.
    pub fn validate(&self) -> Result<(), InvalidProblem> {
        self.validate_combination()?;
        self.validate_pattern()?;
        self.validate_shape()?;
        self.validate_mechanism()?;
        self.validate_options()?;
        self.validate_size()
    }

    /// The row of [`LEGAL`] that holds this combination, whatever `causal` says.
    fn legal(&self) -> Option<&'static Legal> {
        LEGAL.iter().find(|row| {
            row.mechanism == self.mechanism.name()
                && row.patterns.contains(&self.pattern.name())
                && row.phases.contains(&self.phase)
        })
    }

    fn validate_combination(&self) -> Result<(), InvalidProblem> {
        let (mechanism, pattern, phase) = (self.mechanism.name(), self.pattern.name(), self.phase.name());
        let Some(row) = self.legal() else {
            let mine = || LEGAL.iter().filter(|row| row.mechanism == mechanism);
            let mut patterns: Vec<&str> = mine().flat_map(|row| row.patterns.iter().copied()).collect();
            patterns.dedup();
            if !patterns.contains(&pattern) {
                return Err(InvalidProblem(format!(
                    "{mechanism} attention has no pattern `{pattern}`; valid are {}",
                    patterns.join(", ")
                )));
            }
            let with_pattern = mine().filter(|row| row.patterns.contains(&pattern));
            let phases: Vec<&str> = with_pattern.flat_map(|row| row.phases.iter().map(|phase| phase.name())).collect();
            return Err(InvalidProblem(format!(
                "{mechanism} attention with pattern `{pattern}` has no phase `{phase}`; valid are {}",
                phases.join(", ")
            )));
        };
        match (row.causality, self.causal) {
            (Causality::Always, false) => Err(InvalidProblem(format!(
                "{mechanism} {phase} with pattern `{pattern}` is causal by definition; write `{pattern}+causal`"
            ))),
            (Causality::Never, true) => Err(InvalidProblem(format!(
                "{mechanism} attention has no causal form, because every projected key mixes all keys; drop `+causal`"
            ))),
            _ => Ok(()),
        }
    }

    fn validate_pattern(&self) -> Result<(), InvalidProblem> {
        let up_to = |what: &str, value: usize, min: usize| require_range(what, value, min, MAX_LENGTH);
        match self.pattern {
            Pattern::Full => Ok(()),
            Pattern::Window { left, right } => [("left", left), ("right", right)]
                .into_iter()
                .filter(|&(_, side)| side != usize::MAX)
                .try_for_each(|(name, side)| up_to(&format!("the window's {name} side (unless inf)"), side, 0)),
            Pattern::Dilated { window, step } => {
                up_to("the dilated window", window, 0)?;
                up_to("the dilated window's step", step, 1)
            }
            Pattern::Longformer { window, global, dilation } => {
                up_to("longformer's window", window, 0)?;
                up_to("longformer's number of global tokens", global, 0)?;
                up_to("longformer's dilation", dilation, 1)
            }
            Pattern::Bigbird { block, window, global, random, .. } => {
                up_to("bigbird's block", block, 1)?;
                up_to("bigbird's window", window, 1)?;
                up_to("bigbird's number of global blocks", global, 0)?;
                up_to("bigbird's number of random blocks", random, 0)?;
                require(window % 2 == 1, || {
                    format!("bigbird's window is {window} blocks; it must be odd, to have the row's own in its middle")
                })
            }
            Pattern::Strided { stride } => up_to("the stride", stride, 1),
            Pattern::Fixed { block, summary } => {
                up_to("fixed's block", block, 1)?;
                require_range("fixed's summary (at most its block)", summary, 1, block)
            }
        }
    }

    fn validate_shape(&self) -> Result<(), InvalidProblem> {
        require_range("batch", self.batch, 1, MAX_BATCH)?;
        require_range("the number of query heads", self.heads_q, 1, MAX_HEADS)?;
        require_range("the number of KV heads", self.heads_kv, 1, MAX_HEADS)?;
        let (heads_q, heads_kv) = (self.heads_q, self.heads_kv);
        require(heads_q % heads_kv == 0, || {
            format!("{heads_q} query heads cannot share {heads_kv} KV heads evenly; KV heads must divide query heads")
        })?;
        require_range("the head dimension of Q and K", self.head_dim_qk, 1, MAX_HEAD_DIM)?;
        require_range("the head dimension of V", self.head_dim_v, 1, MAX_HEAD_DIM)?;
        self.validate_lengths("query", &self.seqlen_q, 1)?;
        // A sequence may join a batch before it has any keys.
        self.validate_lengths("key", &self.seqlen_kv, 0)
    }

    fn validate_lengths(&self, what: &str, lengths: &Lengths, min_ragged: usize) -> Result<(), InvalidProblem> {
        match lengths {
            Lengths::Same(length) => require_range(&format!("the {what} length"), *length, 1, MAX_LENGTH),
            Lengths::List(list) => {
                require(list.len() == self.batch, || {
                    format!("{} {what} lengths are listed for a batch of {}", list.len(), self.batch)
                })?;
                for &length in list {
                    require_range(&format!("a {what} length of the list"), length, min_ragged, MAX_LENGTH)?;
                }
                require(list.iter().any(|&length| length > 0), || format!("every {what} length of the list is 0"))
            }
            Lengths::Varlen { min, max, .. } => {
                require_range(&format!("the largest {what} length"), *max, 1, MAX_LENGTH)?;
                require_range(&format!("the smallest {what} length (at most the largest)"), *min, min_ragged, *max)
            }
        }
    }

    fn validate_mechanism(&self) -> Result<(), InvalidProblem> {
        let (heads_q, heads_kv) = (self.heads_q, self.heads_kv);
        match self.mechanism {
            Mechanism::Softmax => Ok(()),
            Mechanism::Linear { feature_map: FeatureMap::Identity, normalised: true } => Err(InvalidProblem(
                "linear attention with the identity feature map cannot be normalised, because the sum of its weights may \
                 vanish or be negative; write normalised=false"
                    .into(),
            )),
            Mechanism::Linear { normalised, .. } => require(!normalised || self.scale.is_none(), || {
                "a scale changes nothing in normalised linear attention; drop it or write normalised=false".into()
            }),
            Mechanism::Linformer { rank } => {
                require_range("linformer's rank", rank, 1, MAX_RANK)?;
                require(!self.seqlen_q.is_ragged() && !self.seqlen_kv.is_ragged(), || {
                    "linformer projects a fixed number of keys, so all sequences must have one length".into()
                })
            }
            Mechanism::Mla { latent, rope, nope } => {
                require_range("mla's latent", latent, 1, MAX_HEAD_DIM)?;
                require_range("mla's rope", rope, 0, MAX_HEAD_DIM)?;
                require_range("mla's nope", nope, 1, MAX_HEAD_DIM)?;
                if self.phase == Phase::Prefill {
                    return require(heads_q == heads_kv, || {
                        format!("mla prefill expands the latent rows to one KV head a query head, not {heads_kv} for {heads_q}")
                    });
                }
                require(heads_kv == 1, || format!("mla decode has 1 KV head, the latent rows, not {heads_kv}"))?;
                let (dim_qk, dim_v) = (self.head_dim_qk, self.head_dim_v);
                require((dim_qk, dim_v) == (latent + rope, latent), || {
                    format!("mla decode with latent {latent} and rope {rope} has d{}:{latent}, not d{dim_qk}:{dim_v}", latent + rope)
                })
            }
        }
    }

    fn validate_options(&self) -> Result<(), InvalidProblem> {
        let is_softmax = self.mechanism == Mechanism::Softmax;
        let mechanism = self.mechanism.name();
        let only_softmax = |is_set: bool, what: &str| {
            require(is_softmax || !is_set, || format!("{what} exists for softmax attention only, not for {mechanism}"))
        };
        only_softmax(self.bias != Bias::None, "a bias")?;
        only_softmax(self.softcap.is_some(), "a softcap")?;
        only_softmax(self.sinks, "a sink")?;
        if let Some(scale) = self.scale {
            require(scale.is_finite() && scale != 0.0, || format!("scale is {scale}; valid is a finite number but 0"))?;
        }
        if let Some(softcap) = self.softcap {
            require(softcap.is_finite() && softcap > 0.0, || {
                format!("softcap is {softcap}; valid is a number above 0")
            })?;
        }
        let has_cache = match self.mechanism {
            Mechanism::Softmax => self.phase != Phase::Backward,
            Mechanism::Mla { .. } => self.phase == Phase::Decode,
            Mechanism::Linear { .. } | Mechanism::Linformer { .. } => false,
        };
        require(Dtype::ALL.contains(&self.dtype), || {
            let (dtype, known) = (self.dtype.name(), Dtype::ALL.map(Dtype::name).join(", "));
            format!(
                "{dtype} is a dtype of keys and values only: queries have {known}; write for example `bf16+{dtype}`"
            )
        })?;
        require(has_cache || self.dtype_kv == self.dtype, || {
            format!("{mechanism} {} has no KV cache, so no KV dtype of its own", self.phase.name())
        })?;
        if let KvLayout::Paged { page_size } = self.kv_layout {
            require(has_cache, || format!("{mechanism} {} has no KV cache to be paged", self.phase.name()))?;
            require_range("the page size", page_size, 1, MAX_PAGE_SIZE)?;
            let pages = self.page_pool_size();
            require(pages <= i32::MAX as usize, || {
                format!("{pages} pages are more than a page id of 32 bits can name")
            })?;
        }
        require(!self.deterministic || self.phase == Phase::Backward, || {
            format!("deterministic=true belongs to backward: {} has no sums whose order may vary", self.phase.name())
        })
    }

    /// Bounds the memory of Q, K, V and O, padding included, and the FLOPs, so that no count of either overflows.
    fn validate_size(&self) -> Result<(), InvalidProblem> {
        let (lengths_q, lengths_kv) = (self.lengths_q(), self.lengths_kv());
        let dims = (self.head_dim_qk + self.head_dim_v) as u128;
        let elements = |heads: usize, lengths: &[usize]| {
            (self.batch * heads * lengths.iter().copied().max().unwrap_or(0)) as u128 * dims
        };
        let bytes = 4 * (elements(self.heads_q, &lengths_q) + elements(self.heads_kv, &lengths_kv));
        require(bytes <= 1 << 50, || {
            format!("Q, K, V and O of this shape take {:.1e} bytes, which no machine holds", bytes as f64)
        })?;

        let tokens = |lengths: &[usize]| lengths.iter().map(|&length| length as u128).sum::<u128>();
        let rows = self.heads_q as u128 * tokens(&lengths_q) + self.heads_kv as u128 * tokens(&lengths_kv);
        let flops = match self.mechanism {
            Mechanism::Softmax | Mechanism::Mla { .. } => {
                let pairs: u128 = lengths_q.iter().zip(&lengths_kv).map(|(&q, &k)| q as u128 * k as u128).sum();
                6 * pairs * self.heads_q as u128 * dims
            }
            Mechanism::Linear { .. } => 2 * rows * (self.head_dim_qk * self.head_dim_v) as u128,
            Mechanism::Linformer { rank } => 2 * rows * rank as u128 * dims,
        };
        require(flops <= u128::from(u64::MAX), || {
            format!("attention of this shape takes up to {:.1e} FLOPs, which no device finishes in a day", flops as f64)
        })
    }
}
