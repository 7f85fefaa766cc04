//! What is computed: an attention problem says nothing about how.
//!
//! [`AttentionProblem`] is the checked form that everything downstream trusts; [`mod@id`] prints and parses it,
//! [`mod@legal`] is the visible table of what combinations exist, [`mod@lengths`] expands ragged batches.

pub mod id;
pub mod legal;
pub mod lengths;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use id::IdError;
pub use legal::InvalidProblem;
pub use lengths::{LengthDistribution, Lengths};

/// An element type of Q, K, V and O. Accumulation is f32 in every kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Dtype {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// bfloat16: binary32 with the low 16 bits dropped.
    Bf16,
    /// 8-bit floating point with 4 bits of exponent ([`crate::e4m3`]): of keys and values in a cache only.
    E4m3,
}

impl Dtype {
    /// Every dtype of queries and outputs, widest first.
    pub const ALL: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];
    /// Every dtype of keys and values, widest first.
    pub const STORED: [Dtype; 4] = [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::E4m3];

    /// The name in case ids, suites and records.
    pub const fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "f32",
            Dtype::F16 => "f16",
            Dtype::Bf16 => "bf16",
            Dtype::E4m3 => "e4m3",
        }
    }

    /// Parses [`Dtype::name`].
    pub fn parse(text: &str) -> Option<Dtype> {
        Dtype::STORED.into_iter().find(|dtype| dtype.name() == text)
    }

    /// Bytes an element.
    pub const fn bytes(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::Bf16 => 2,
            Dtype::E4m3 => 1,
        }
    }

    /// The distance from 1.0 to the next larger number.
    pub const fn ulp(self) -> f64 {
        match self {
            Dtype::F32 => f32::EPSILON as f64,
            Dtype::F16 => 1.0 / 1024.0,
            Dtype::Bf16 => 1.0 / 128.0,
            Dtype::E4m3 => 1.0 / 8.0,
        }
    }
}

/// The non-linearity phi of linear attention (Katharopoulos et al. 2020, section 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FeatureMap {
    /// elu(x) + 1.
    Elu1,
    /// max(x, 0).
    Relu,
    /// x itself.
    Identity,
}

impl FeatureMap {
    /// Every feature map.
    pub const ALL: [FeatureMap; 3] = [FeatureMap::Elu1, FeatureMap::Relu, FeatureMap::Identity];

    /// The name in case ids and suites.
    pub const fn name(self) -> &'static str {
        match self {
            FeatureMap::Elu1 => "elu1",
            FeatureMap::Relu => "relu",
            FeatureMap::Identity => "identity",
        }
    }
}

/// How scores become outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "name", rename_all = "snake_case")]
pub enum Mechanism {
    /// softmax(scale * Q K^T) V (Vaswani et al. 2017).
    Softmax,
    /// phi(Q) (phi(K)^T V), divided by phi(Q) sum phi(K) + 1e-6 when normalised, times `scale` when not.
    Linear {
        /// phi.
        feature_map: FeatureMap,
        /// Whether the output is divided by the sum of its weights.
        normalised: bool,
    },
    /// softmax(scale * Q (E^T K)^T) (F^T V), with E and F of shape (seqlen_kv, rank), shared by batch and heads
    /// (Wang et al. 2020).
    Linformer {
        /// Rows of the projected K and V.
        rank: usize,
    },
    /// Multi-head latent attention (DeepSeek-V2, section 2.1). `prefill` works on the expanded heads
    /// (d_qk = nope + rope); `decode` is absorbed: one latent row of latent + rope elements serves every head as its
    /// key, and its first `latent` elements as its value.
    Mla {
        /// Elements of the compressed key-value row.
        latent: usize,
        /// Elements of the shared rotary key.
        rope: usize,
        /// Elements of a head's non-rotary key before absorption: it sets the scale 1/sqrt(nope + rope).
        nope: usize,
    },
}

impl Mechanism {
    /// Linear attention as Katharopoulos et al. define it: elu + 1, normalised.
    pub const LINEAR: Mechanism = Mechanism::Linear { feature_map: FeatureMap::Elu1, normalised: true };
    /// Linformer with its usual rank.
    pub const LINFORMER: Mechanism = Mechanism::Linformer { rank: 256 };
    /// DeepSeek-V2's and V3's dimensions.
    pub const MLA: Mechanism = Mechanism::Mla { latent: 512, rope: 64, nope: 128 };

    /// The name without options.
    pub const fn name(self) -> &'static str {
        match self {
            Mechanism::Softmax => "softmax",
            Mechanism::Linear { .. } => "linear",
            Mechanism::Linformer { .. } => "linformer",
            Mechanism::Mla { .. } => "mla",
        }
    }
}

/// Which keys a query may see, before `causal` is laid on top. Positions are p = i + seqlen_kv - seqlen_q
/// ([`CausalAlignment::BottomRight`]) or p = i ([`CausalAlignment::TopLeft`]), signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "name", rename_all = "snake_case")]
pub enum Pattern {
    /// Every key.
    Full,
    /// p - left <= j <= p + right.
    Window {
        /// Keys before p.
        left: usize,
        /// Keys after p.
        right: usize,
    },
    /// |p - j| <= window * step, and step divides p - j.
    Dilated {
        /// Keys a side, itself excluded.
        window: usize,
        /// Distance of neighbours.
        step: usize,
    },
    /// |p - j| <= window * dilation with dilation dividing p - j, or j < global, or p < global
    /// (Beltagy et al. 2020).
    Longformer {
        /// Keys a side, itself excluded.
        window: usize,
        /// Leading tokens that see and are seen by all.
        global: usize,
        /// Distance of neighbours in the window; 1 by default.
        dilation: usize,
    },
    /// Block-sparse window + global + random (Zaheer et al. 2020): see [`crate::pattern::bigbird`].
    Bigbird {
        /// Tokens a block.
        block: usize,
        /// Blocks in the window, odd.
        window: usize,
        /// Global blocks, even: half of them lead the sequence and half end it, in rows and in columns.
        global: usize,
        /// Further blocks drawn for each block row.
        random: usize,
        /// Seed of the draw.
        seed: u64,
    },
    /// Causal, and p - j <= stride or stride divides p - j (Child et al. 2019, strided).
    Strided {
        /// l of the paper.
        stride: usize,
    },
    /// Causal, and the same block of `block`, or j mod block >= block - summary (Child et al. 2019, fixed).
    Fixed {
        /// l of the paper.
        block: usize,
        /// c of the paper.
        summary: usize,
    },
}

impl Pattern {
    /// The name without options.
    pub const fn name(self) -> &'static str {
        match self {
            Pattern::Full => "full",
            Pattern::Window { .. } => "window",
            Pattern::Dilated { .. } => "dilated",
            Pattern::Longformer { .. } => "longformer",
            Pattern::Bigbird { .. } => "bigbird",
            Pattern::Strided { .. } => "strided",
            Pattern::Fixed { .. } => "fixed",
        }
    }
}

/// What part of a model's work the call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Many queries over their own keys.
    Prefill,
    /// A few new queries (usually 1) over a cache.
    Decode,
    /// Chunked prefill: many queries onto a cache that already holds earlier tokens.
    Append,
    /// (Q, K, V, O, LSE, dO) -> (dQ, dK, dV).
    Backward,
}

impl Phase {
    /// Every phase.
    pub const ALL: [Phase; 4] = [Phase::Prefill, Phase::Decode, Phase::Append, Phase::Backward];

    /// The name in case ids and suites.
    pub const fn name(self) -> &'static str {
        match self {
            Phase::Prefill => "prefill",
            Phase::Decode => "decode",
            Phase::Append => "append",
            Phase::Backward => "backward",
        }
    }
}

/// How query positions line up with key positions when the lengths differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CausalAlignment {
    /// The last query sees the last key: FlashAttention >= 2.1, KV caches.
    #[default]
    BottomRight,
    /// The first query sees the first key: the ONNX operator without a cache, PyTorch's `is_causal`.
    TopLeft,
}

/// What is added to scores, after soft-capping and before masking.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Bias {
    /// Nothing.
    #[default]
    None,
    /// A boolean tensor, true = visible.
    Bool,
    /// A tensor of the problem's dtype.
    Additive,
    /// -slope(h) * |p - j| with slope(h) = 2^(-8 (h + 1) / heads_q) (Press et al. 2022).
    Alibi,
}

impl Bias {
    /// Every bias.
    pub const ALL: [Bias; 4] = [Bias::None, Bias::Bool, Bias::Additive, Bias::Alibi];

    /// The name in case ids and suites.
    pub const fn name(self) -> &'static str {
        match self {
            Bias::None => "none",
            Bias::Bool => "bool",
            Bias::Additive => "additive",
            Bias::Alibi => "alibi",
        }
    }
}

/// The order of dimensions of Q, K, V and O in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// (batch, length, heads, dim); ragged batches are padded to the longest.
    #[default]
    Bshd,
    /// (batch, heads, length, dim); ragged batches are padded to the longest.
    Bhsd,
    /// (sum of lengths, heads, dim): ragged batches are packed.
    Thd,
}

impl Layout {
    /// Every layout.
    pub const ALL: [Layout; 3] = [Layout::Bshd, Layout::Bhsd, Layout::Thd];

    /// The name in case ids and suites.
    pub const fn name(self) -> &'static str {
        match self {
            Layout::Bshd => "bshd",
            Layout::Bhsd => "bhsd",
            Layout::Thd => "thd",
        }
    }
}

/// Where keys and values live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "name", rename_all = "snake_case")]
pub enum KvLayout {
    /// As [`Layout`] says.
    #[default]
    Contiguous,
    /// Pages of (page_size, heads_kv, dim) that a table (batch, pages a sequence) of i32 finds (Kwon et al. 2023).
    Paged {
        /// Tokens a page.
        page_size: usize,
    },
}

/// One attention computation: shapes, semantics and dtypes.
///
/// Query head h uses KV head h / (heads_q / heads_kv). score = softcap(scale * q.k) + bias, masked after; a fully
/// masked row gives zeros. [`AttentionProblem::validate`] tells whether the combination exists.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AttentionProblem {
    /// How scores become outputs.
    pub mechanism: Mechanism,
    /// Which keys a query may see.
    pub pattern: Pattern,
    /// Whether j <= p is required on top of the pattern.
    pub causal: bool,
    /// How p is counted.
    pub causal_alignment: CausalAlignment,
    /// What part of a model's work this is.
    pub phase: Phase,
    /// Elements of Q and O, and of K and V unless `dtype_kv` differs.
    pub dtype: Dtype,
    /// Elements of K and V.
    pub dtype_kv: Dtype,
    /// Sequences.
    pub batch: usize,
    /// Query heads.
    pub heads_q: usize,
    /// Key-value heads: a divisor of `heads_q`.
    pub heads_kv: usize,
    /// Queries a sequence.
    pub seqlen_q: Lengths,
    /// Keys a sequence. For linear decode: tokens that the state has absorbed, which change no work.
    pub seqlen_kv: Lengths,
    /// Elements of a query or key row.
    pub head_dim_qk: usize,
    /// Elements of a value or output row.
    pub head_dim_v: usize,
    /// Factor of the scores; [`AttentionProblem::effective_scale`] gives the default.
    pub scale: Option<f64>,
    /// softcap(s) = cap * tanh(s / cap) (Gemma 2).
    pub softcap: Option<f64>,
    /// What is added to scores.
    pub bias: Bias,
    /// Whether each query head has a learned logit that takes part in the softmax's denominator only (gpt-oss).
    pub sinks: bool,
    /// Memory order of Q and O, and of K and V where contiguous.
    pub layout: Layout,
    /// Where K and V live.
    pub kv_layout: KvLayout,
    /// Backward only: whether two runs must agree bit for bit.
    pub deterministic: bool,
}

impl AttentionProblem {
    /// A dense softmax problem with the given shape and every option at its default.
    pub fn softmax(
        phase: Phase,
        dtype: Dtype,
        batch: usize,
        heads: (usize, usize),
        lengths: (usize, usize),
        dim: usize,
    ) -> Self {
        AttentionProblem {
            mechanism: Mechanism::Softmax,
            pattern: Pattern::Full,
            causal: false,
            causal_alignment: CausalAlignment::BottomRight,
            phase,
            dtype,
            dtype_kv: dtype,
            batch,
            heads_q: heads.0,
            heads_kv: heads.1,
            seqlen_q: Lengths::Same(lengths.0),
            seqlen_kv: Lengths::Same(lengths.1),
            head_dim_qk: dim,
            head_dim_v: dim,
            scale: None,
            softcap: None,
            bias: Bias::None,
            sinks: false,
            layout: Layout::Bshd,
            kv_layout: KvLayout::Contiguous,
            deterministic: false,
        }
    }

    /// Query heads that share a KV head.
    pub fn group_size(&self) -> usize {
        self.heads_q / self.heads_kv
    }

    /// Queries of each sequence.
    pub fn lengths_q(&self) -> Vec<usize> {
        self.seqlen_q.expand(self.batch)
    }

    /// Keys of each sequence.
    pub fn lengths_kv(&self) -> Vec<usize> {
        self.seqlen_kv.expand(self.batch)
    }

    /// p - i for a sequence of these lengths: what turns a query's index into its position among the keys.
    pub fn query_offset(&self, len_q: usize, len_kv: usize) -> i64 {
        match self.causal_alignment {
            CausalAlignment::BottomRight => len_kv as i64 - len_q as i64,
            CausalAlignment::TopLeft => 0,
        }
    }

    /// The scale in force: the given one, else 1/sqrt(head_dim_qk); for MLA 1/sqrt(nope + rope).
    pub fn effective_scale(&self) -> f64 {
        self.scale.unwrap_or_else(|| {
            let dim = match self.mechanism {
                Mechanism::Mla { rope, nope, .. } => nope + rope,
                _ => self.head_dim_qk,
            };
            1.0 / (dim as f64).sqrt()
        })
    }

    /// Pages of a paged problem's pool: those in use and one in eight more, which hold no token. 0 where not paged.
    pub fn page_pool_size(&self) -> usize {
        let KvLayout::Paged { page_size } = self.kv_layout else { return 0 };
        let used: usize = self.lengths_kv().iter().map(|length| length.div_ceil(page_size)).sum();
        used + (used / 8).max(1)
    }

    /// Whether this is MLA's absorbed form, whose V is the head of each K row.
    pub fn is_absorbed_mla(&self) -> bool {
        matches!(self.mechanism, Mechanism::Mla { .. }) && self.phase == Phase::Decode
    }

    /// Whether this is linear attention's recurrent form, which carries a state instead of a KV cache.
    pub fn is_recurrent(&self) -> bool {
        matches!(self.mechanism, Mechanism::Linear { .. }) && self.phase == Phase::Decode
    }

    /// The ALiBi slope of a query head.
    pub fn alibi_slope(&self, head: usize) -> f64 {
        (-8.0 * (head as f64 + 1.0) / self.heads_q as f64).exp2()
    }
}
