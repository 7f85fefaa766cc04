//! What attention published models compute: one table, each row with its source.
//!
//! A model is a list of layer groups that differ in their attention; how the groups alternate changes no cost and is not
//! kept. Grouped layers of one kind are counted together. Figures are the source's; where a source rounds the number of
//! parameters, so does the table.

use attn_kernels::problem::{AttentionProblem, Dtype, KvLayout, Mechanism, Pattern, Phase};

/// A published model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Model {
    /// The name in suites.
    pub name: &'static str,
    /// Where the figures come from.
    pub source: &'static str,
    /// All parameters, experts that a token does not visit included.
    pub parameters: u64,
    /// Whether tokens see earlier tokens only: a decoder. An encoder sees both sides and has no cache.
    pub causal: bool,
    /// The layers, grouped by what their attention computes.
    pub layers: &'static [LayerGroup],
}

/// Layers that compute the same attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerGroup {
    /// How many.
    pub count: u32,
    /// How scores become outputs.
    pub mechanism: Mechanism,
    /// Which keys a query sees, before `causal`.
    pub pattern: Pattern,
    /// Query heads.
    pub heads_q: usize,
    /// Key-value heads; for MLA those of the expanded form.
    pub heads_kv: usize,
    /// Elements of a query or key row; for MLA those of the expanded form.
    pub head_dim_qk: usize,
    /// Elements of a value row; for MLA those of the expanded form.
    pub head_dim_v: usize,
    /// Cap of the scores.
    pub softcap: Option<f64>,
    /// Factor of the scores, where it is not the usual 1/sqrt(head_dim_qk).
    pub scale: Option<f64>,
    /// Whether each head has a learned logit in the softmax's denominator.
    pub sinks: bool,
}

impl LayerGroup {
    /// Softmax layers with square heads and nothing special.
    pub const fn dense(count: u32, heads_q: usize, heads_kv: usize, head_dim: usize) -> Self {
        LayerGroup {
            count,
            mechanism: Mechanism::Softmax,
            pattern: Pattern::Full,
            heads_q,
            heads_kv,
            head_dim_qk: head_dim,
            head_dim_v: head_dim,
            softcap: None,
            scale: None,
            sinks: false,
        }
    }

    /// The expanded form of DeepSeek's latent attention: 128 + 64 for queries and keys, 128 for values.
    const fn mla(count: u32, heads: usize) -> Self {
        LayerGroup {
            mechanism: Mechanism::MLA,
            head_dim_qk: 192,
            head_dim_v: 128,
            ..Self::dense(count, heads, heads, 128)
        }
    }

    const fn with_pattern(self, pattern: Pattern) -> Self {
        LayerGroup { pattern, ..self }
    }

    /// The last `keys` keys, the query's own included.
    const fn with_window(self, keys: usize) -> Self {
        self.with_pattern(Pattern::Window { left: keys - 1, right: 0 })
    }

    const fn with_softcap(self, cap: f64) -> Self {
        LayerGroup { softcap: Some(cap), ..self }
    }

    const fn with_scale(self, scale: f64) -> Self {
        LayerGroup { scale: Some(scale), ..self }
    }

    const fn with_sinks(self) -> Self {
        LayerGroup { sinks: true, ..self }
    }

    /// Makes a problem's mechanism, pattern, heads, dims, scale, softcap and sinks those of this group. MLA decodes in its
    /// absorbed form: one KV head of latent + rope elements, whose first `latent` elements are the value.
    pub fn apply(&self, problem: &mut AttentionProblem) {
        problem.mechanism = self.mechanism;
        problem.pattern = self.pattern;
        problem.heads_q = self.heads_q;
        (problem.heads_kv, problem.head_dim_qk, problem.head_dim_v) = match self.mechanism {
            Mechanism::Mla { latent, rope, .. } if problem.phase == Phase::Decode => (1, latent + rope, latent),
            _ => (self.heads_kv, self.head_dim_qk, self.head_dim_v),
        };
        problem.scale = self.scale;
        problem.softcap = self.softcap;
        problem.sinks = self.sinks;
    }

    /// Bytes that one token adds to the cache of these layers together, while nothing has left the window: both K and V of
    /// each KV head; for MLA the latent row; nothing for linear attention, whose state is constant.
    pub fn kv_bytes_per_token(&self, dtype: Dtype) -> u64 {
        let elements = match self.mechanism {
            Mechanism::Mla { latent, rope, .. } => latent + rope,
            Mechanism::Linear { .. } => 0,
            _ => self.heads_kv * (self.head_dim_qk + self.head_dim_v),
        };
        u64::from(self.count) * elements as u64 * dtype.bytes() as u64
    }
}

impl Model {
    /// Parameters that one token visits: all of them, unless experts share the work.
    pub fn active_parameters(&self) -> u64 {
        MIXTURES.iter().find(|mixture| mixture.0 == self.name).map_or(self.parameters, |mixture| mixture.1)
    }

    /// All layers.
    pub fn layer_count(&self) -> u32 {
        self.layers.iter().map(|group| group.count).sum()
    }

    /// Bytes that one token adds to the cache of the whole model; see [`LayerGroup::kv_bytes_per_token`].
    pub fn kv_bytes_per_token(&self, dtype: Dtype) -> u64 {
        self.layers.iter().map(|group| group.kv_bytes_per_token(dtype)).sum()
    }

    /// Whether the model has this phase: an encoder decodes nothing and appends to no cache.
    pub fn has_phase(&self, phase: Phase, kv_layout: KvLayout) -> bool {
        self.causal || (matches!(phase, Phase::Prefill | Phase::Backward) && kv_layout == KvLayout::Contiguous)
    }
}

/// BigBird's and Longformer's published sparsity, and what GPT-3's layers are taken to be.
const BIGBIRD: Pattern = Pattern::Bigbird { block: 64, window: 3, global: 2, random: 3, seed: 0 };
const LONGFORMER: Pattern = Pattern::Longformer { window: 256, global: 1, dilation: 1 };
/// GPT-3's paper says "alternating dense and locally banded sparse attention patterns, similar to the Sparse
/// Transformer" and gives no width: the Sparse Transformer's stride of 128 stands in for it.
const GPT_3_SPARSE: Pattern = Pattern::Strided { stride: 128 };

/// Every preset: encoders and early decoders, then families by name. A new model is one row.
pub const MODELS: &[Model] = &[
    Model {
        name: "bert-base",
        source: "Devlin et al. 2018; config.json of google-bert/bert-base-uncased",
        parameters: 109_482_240,
        causal: false,
        layers: &[LayerGroup::dense(12, 12, 12, 64)],
    },
    // The window is 512 wide, 256 a side. How many tokens are global is the task's choice: classification has one.
    Model {
        name: "longformer-base",
        source: "Beltagy et al. 2020; config.json of allenai/longformer-base-4096",
        parameters: 148_659_456,
        causal: false,
        layers: &[LayerGroup::dense(12, 12, 12, 64).with_pattern(LONGFORMER)],
    },
    // Parameters: the encoder with its pooler, counted from the configuration.
    Model {
        name: "bigbird-base",
        source: "Zaheer et al. 2020, table 8; config.json of google/bigbird-roberta-base",
        parameters: 127_468_800,
        causal: false,
        layers: &[LayerGroup::dense(12, 12, 12, 64).with_pattern(BIGBIRD)],
    },
    Model {
        name: "gpt-2",
        source: "Radford et al. 2019; config.json of openai-community/gpt2",
        parameters: 124_439_808,
        causal: true,
        layers: &[LayerGroup::dense(12, 12, 12, 64)],
    },
    Model {
        name: "gpt-3",
        source: "Brown et al. 2020, table 2.1 and section 2.1",
        parameters: 175_000_000_000,
        causal: true,
        layers: &[LayerGroup::dense(48, 96, 96, 128), LayerGroup::dense(48, 96, 96, 128).with_pattern(GPT_3_SPARSE)],
    },
    Model {
        name: "falcon-7b",
        source: "Almazrouei et al. 2023; config.json of tiiuae/falcon-7b (tied embeddings)",
        parameters: 6_921_720_704,
        causal: true,
        layers: &[LayerGroup::dense(32, 71, 1, 64)],
    },
    Model {
        name: "llama-2-7b",
        source: "Touvron et al. 2023; config.json of meta-llama/Llama-2-7b",
        parameters: 6_738_415_616,
        causal: true,
        layers: &[LayerGroup::dense(32, 32, 32, 128)],
    },
    Model {
        name: "llama-3-8b",
        source: "Grattafiori et al. 2024, table 3; config.json of meta-llama/Meta-Llama-3-8B",
        parameters: 8_030_261_248,
        causal: true,
        layers: &[LayerGroup::dense(32, 32, 8, 128)],
    },
    Model {
        name: "llama-3-70b",
        source: "Grattafiori et al. 2024, table 3; config.json of meta-llama/Meta-Llama-3-70B",
        parameters: 70_553_706_496,
        causal: true,
        layers: &[LayerGroup::dense(80, 64, 8, 128)],
    },
    Model {
        name: "llama-3.1-405b",
        source: "Grattafiori et al. 2024, table 3; config.json of meta-llama/Llama-3.1-405B",
        parameters: 405_853_388_800,
        causal: true,
        layers: &[LayerGroup::dense(126, 128, 8, 128)],
    },
    Model {
        name: "mistral-7b",
        source: "Jiang et al. 2023, table 1; config.json of mistralai/Mistral-7B-v0.1",
        parameters: 7_241_732_096,
        causal: true,
        layers: &[LayerGroup::dense(32, 32, 8, 128).with_window(4096)],
    },
    Model {
        name: "mixtral-8x7b",
        source: "Jiang et al. 2024, table 1; config.json of mistralai/Mixtral-8x7B-v0.1",
        parameters: 46_702_792_704,
        causal: true,
        layers: &[LayerGroup::dense(32, 32, 8, 128)],
    },
    // Alternates window and full; the scale is 1/sqrt(256), the usual one.
    Model {
        name: "gemma-2-9b",
        source: "Gemma Team 2024, table 1 and section 2; config.json of google/gemma-2-9b",
        parameters: 9_241_705_984,
        causal: true,
        layers: &[
            LayerGroup::dense(21, 16, 8, 256).with_softcap(50.0).with_window(4096),
            LayerGroup::dense(21, 16, 8, 256).with_softcap(50.0),
        ],
    },
    // Five window layers to one full layer; the scale is 1/sqrt(5376 / 32). Parameters: the language model.
    Model {
        name: "gemma-3-27b",
        source: "Gemma Team 2025, table 1 and section 2; config.json of google/gemma-3-27b-pt",
        parameters: 27_009_346_304,
        causal: true,
        layers: &[
            LayerGroup::dense(52, 32, 16, 128).with_scale(GEMMA_3_27B_SCALE).with_window(1024),
            LayerGroup::dense(10, 32, 16, 128).with_scale(GEMMA_3_27B_SCALE),
        ],
    },
    Model {
        name: "qwen-2.5-7b",
        source: "Qwen Team 2024, table 1; config.json of Qwen/Qwen2.5-7B",
        parameters: 7_615_616_512,
        causal: true,
        layers: &[LayerGroup::dense(28, 28, 4, 128)],
    },
    Model {
        name: "qwen-2.5-72b",
        source: "Qwen Team 2024, table 1; config.json of Qwen/Qwen2.5-72B",
        parameters: 72_706_203_648,
        causal: true,
        layers: &[LayerGroup::dense(80, 64, 8, 128)],
    },
    Model {
        name: "qwen3-8b",
        source: "Qwen Team 2025, table 1; config.json of Qwen/Qwen3-8B",
        parameters: 8_190_735_360,
        causal: true,
        layers: &[LayerGroup::dense(36, 32, 8, 128)],
    },
    Model {
        name: "qwen3-32b",
        source: "Qwen Team 2025, table 1; config.json of Qwen/Qwen3-32B",
        parameters: 32_762_123_264,
        causal: true,
        layers: &[LayerGroup::dense(64, 64, 8, 128)],
    },
    Model {
        name: "qwen3-30b-a3b",
        source: "Qwen Team 2025, table 2; config.json of Qwen/Qwen3-30B-A3B",
        parameters: 30_532_122_624,
        causal: true,
        layers: &[LayerGroup::dense(48, 32, 4, 128)],
    },
    Model {
        name: "phi-3-mini-128k",
        source: "Abdin et al. 2024, section 2; config.json of microsoft/Phi-3-mini-128k-instruct",
        parameters: 3_821_079_552,
        causal: true,
        layers: &[LayerGroup::dense(32, 32, 32, 96)],
    },
    Model {
        name: "phi-3-medium-128k",
        source: "Abdin et al. 2024, section 2; config.json of microsoft/Phi-3-medium-128k-instruct",
        parameters: 13_960_238_080,
        causal: true,
        layers: &[LayerGroup::dense(40, 40, 10, 128)],
    },
    // The scale is that of the base context; the factor that YaRN puts on it for long contexts is left out.
    Model {
        name: "deepseek-v2",
        source: "DeepSeek-AI 2024 (V2), section 3.1.2",
        parameters: 236_000_000_000,
        causal: true,
        layers: &[LayerGroup::mla(60, 128)],
    },
    Model {
        name: "deepseek-v3",
        source: "DeepSeek-AI 2024 (V3), section 4.2",
        parameters: 671_000_000_000,
        causal: true,
        layers: &[LayerGroup::mla(61, 128)],
    },
    // Alternates window and full.
    Model {
        name: "gpt-oss-20b",
        source: "OpenAI 2025, gpt-oss model card, table 1 and section 2.2; config.json of openai/gpt-oss-20b",
        parameters: 20_910_000_000,
        causal: true,
        layers: &[
            LayerGroup::dense(12, 64, 8, 64).with_sinks().with_window(128),
            LayerGroup::dense(12, 64, 8, 64).with_sinks(),
        ],
    },
    Model {
        name: "gpt-oss-120b",
        source: "OpenAI 2025, gpt-oss model card, table 1 and section 2.2; config.json of openai/gpt-oss-120b",
        parameters: 116_830_000_000,
        causal: true,
        layers: &[
            LayerGroup::dense(18, 64, 8, 64).with_sinks().with_window(128),
            LayerGroup::dense(18, 64, 8, 64).with_sinks(),
        ],
    },
];

/// Models of which a token visits a few experts: name, active parameters and their source.
const MIXTURES: &[(&str, u64, &str)] = &[
    ("mixtral-8x7b", 12_900_000_000, "Jiang et al. 2024, section 2"),
    ("qwen3-30b-a3b", 3_300_000_000, "Qwen3-30B-A3B model card"),
    ("deepseek-v2", 21_000_000_000, "DeepSeek-AI 2024 (V2), abstract"),
    ("deepseek-v3", 37_000_000_000, "DeepSeek-AI 2024 (V3), abstract"),
    ("gpt-oss-20b", 3_610_000_000, "gpt-oss model card, table 1"),
    ("gpt-oss-120b", 5_130_000_000, "gpt-oss model card, table 1"),
];

/// 1/sqrt(168).
const GEMMA_3_27B_SCALE: f64 = 0.077_151_674_981_045_96;

/// The preset of that name.
pub fn find(name: &str) -> Option<&'static Model> {
    MODELS.iter().find(|model| model.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_counts_positive() {
        for (index, model) in MODELS.iter().enumerate() {
            assert!(MODELS[..index].iter().all(|earlier| earlier.name != model.name), "{}", model.name);
            assert!(model.parameters > 100_000_000 && !model.source.is_empty(), "{}", model.name);
            assert!(model.layers.iter().all(|group| group.count > 0), "{}", model.name);
        }
        for (name, active, source) in MIXTURES {
            let model = find(name).expect(name);
            assert!(*active < model.parameters && model.active_parameters() == *active && !source.is_empty(), "{name}");
        }
        assert_eq!(find("llama-3-8b").expect("a preset").active_parameters(), 8_030_261_248);
        assert!((GEMMA_3_27B_SCALE - 168f64.sqrt().recip()).abs() < 1e-17);
    }

    #[test]
    fn layers_are_as_published() {
        let published = [
            ("bert-base", 12),
            ("gpt-2", 12),
            ("gpt-3", 96),
            ("falcon-7b", 32),
            ("llama-2-7b", 32),
            ("llama-3-8b", 32),
            ("llama-3-70b", 80),
            ("llama-3.1-405b", 126),
            ("mistral-7b", 32),
            ("mixtral-8x7b", 32),
            ("gemma-2-9b", 42),
            ("gemma-3-27b", 62),
            ("qwen-2.5-7b", 28),
            ("qwen-2.5-72b", 80),
            ("qwen3-8b", 36),
            ("deepseek-v2", 60),
            ("deepseek-v3", 61),
            ("gpt-oss-20b", 24),
            ("gpt-oss-120b", 36),
        ];
        for (name, layers) in published {
            assert_eq!(find(name).expect(name).layer_count(), layers, "{name}");
        }
    }

    /// Bytes a token in bf16: DeepSeek-V3's hardware paper (Zhao et al. 2025, table 1) for the first three.
    #[test]
    fn cache_bytes_are_as_published() {
        let published = [
            ("deepseek-v3", 70_272),
            ("qwen-2.5-72b", 327_680),
            ("llama-3.1-405b", 516_096),
            ("llama-3-8b", 128 << 10),
            ("llama-2-7b", 512 << 10),
            ("falcon-7b", 32 * 2 * 64 * 2),
            ("gpt-oss-20b", 24 * 8 * 2 * 64 * 2),
        ];
        for (name, bytes) in published {
            assert_eq!(find(name).expect(name).kv_bytes_per_token(Dtype::Bf16), bytes, "{name}");
            assert_eq!(find(name).expect(name).kv_bytes_per_token(Dtype::F32), 2 * bytes, "{name}");
        }
    }

    #[test]
    fn latent_attention_decodes_absorbed_and_prefills_expanded() {
        let group = find("deepseek-v2").expect("a preset").layers[0];
        let mut problem = AttentionProblem::softmax(Phase::Decode, Dtype::Bf16, 1, (1, 1), (1, 64), 1);
        group.apply(&mut problem);
        let shape = |p: &AttentionProblem| (p.heads_q, p.heads_kv, p.head_dim_qk, p.head_dim_v);
        assert_eq!(shape(&problem), (128, 1, 576, 512));
        problem.phase = Phase::Prefill;
        group.apply(&mut problem);
        assert_eq!(shape(&problem), (128, 128, 192, 128));
    }
}
