//! The closed forms against enumeration, and hand-computed numbers.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::problem::Lengths;

fn problem(id: &str) -> AttentionProblem {
    let problem = AttentionProblem::parse_id(id).expect("an id").normalise();
    assert_eq!(problem.validate(), Ok(()), "{id}");
    problem
}

/// The work by listing every pair and every element that a pair needs.
fn enumerate(problem: &AttentionProblem) -> Work {
    let (dim_qk, dim_v) = (problem.head_dim_qk as u64, problem.head_dim_v as u64);
    let (element, element_kv) = (problem.dtype.bytes() as u64, problem.dtype_kv.bytes() as u64);
    let (lengths_q, lengths_kv) = (problem.lengths_q(), problem.lengths_kv());
    let group = problem.heads_q / problem.heads_kv;
    let (mut pairs, mut pairs_of_head_0) = (0u64, 0u64);
    let (mut queries, mut keys, mut pages, mut bias) =
        (BTreeSet::new(), BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for sequence in 0..problem.batch {
        let visibility = Visibility::new(problem, lengths_q[sequence], lengths_kv[sequence]);
        for head in 0..problem.heads_q {
            for i in 0..lengths_q[sequence] {
                for j in 0..lengths_kv[sequence] {
                    if visibility.sees(head, i, j) {
                        pairs += 1;
                        pairs_of_head_0 += u64::from(head == 0);
                        queries.insert((sequence, head, i));
                        keys.insert((sequence, head / group, j));
                        bias.insert((i, j));
                        if let KvLayout::Paged { page_size } = problem.kv_layout {
                            pages.insert((sequence, j / page_size));
                        }
                    }
                }
            }
        }
    }
    let (queries, keys, pages) = (queries.len() as u64, keys.len() as u64, pages.len() as u64);
    let all_queries = (problem.heads_q * lengths_q.iter().sum::<usize>()) as u64;
    let all_keys = (problem.heads_kv * lengths_kv.iter().sum::<usize>()) as u64;
    let flops_per_pair =
        if problem.phase == Phase::Backward { 2 * (3 * dim_qk + 2 * dim_v) } else { 2 * (dim_qk + dim_v) };
    let key_dims = if problem.is_absorbed_mla() { dim_qk } else { dim_qk + dim_v };
    let forms_pairs = matches!(problem.mechanism, Mechanism::Softmax | Mechanism::Mla { .. });
    if !forms_pairs {
        pairs_of_head_0 = 0;
    }
    let mut work = Work {
        pairs: pairs_of_head_0,
        pairs_all_heads: if forms_pairs { pairs } else { 0 },
        flops: match problem.mechanism {
            Mechanism::Linear { .. } => 2 * dim_qk * dim_v * (queries + keys),
            Mechanism::Linformer { rank } => 2 * rank as u64 * (dim_qk + dim_v) * (queries + keys),
            Mechanism::Softmax | Mechanism::Mla { .. } => pairs * flops_per_pair,
        },
        read_bytes: queries * dim_qk * element + keys * key_dims * element_kv + 4 * pages,
        write_bytes: all_queries * dim_v * element,
    };
    if problem.phase == Phase::Backward {
        work.read_bytes += queries * (2 * dim_v * element + 4);
        work.write_bytes = all_queries * dim_qk * element + all_keys * (dim_qk + dim_v) * element;
    }
    if let Mechanism::Linformer { rank } = problem.mechanism {
        work.read_bytes += (2 * 4 * rank * lengths_kv[0]) as u64;
    }
    if problem.sinks {
        work.read_bytes += 4 * problem.heads_q as u64;
    }
    match problem.bias {
        Bias::Bool => work.read_bytes += bias.len() as u64,
        Bias::Additive => work.read_bytes += bias.len() as u64 * element,
        Bias::None | Bias::Alibi => {}
    }
    work
}

fn any_pattern() -> impl Strategy<Value = String> {
    let bigbird =
        (1usize..9, 0usize..3, 0usize..5, 0usize..4, 0u64..9).prop_map(|(block, half, global, random, seed)| {
            format!("bigbird:block={block},global={global},random={random},seed={seed},window={}", 2 * half + 1)
        });
    prop_oneof![
        Just("full".to_owned()),
        (0usize..40, 0usize..40).prop_map(|(left, right)| format!("window:{left},{right}")),
        (0usize..40).prop_map(|left| format!("window:{left},inf")),
        (0usize..9, 1usize..20).prop_map(|(window, step)| format!("dilated:{window},{step}")),
        (0usize..9, 0usize..9, 1usize..5).prop_map(|(w, g, step)| format!("longformer:{w},{g},dilation={step}")),
        bigbird,
        (1usize..40).prop_map(|stride| format!("strided:{stride}")),
        (1usize..40, 1usize..9).prop_map(|(block, summary)| format!("fixed:{block},{}", summary.min(block))),
    ]
}

fn any_lengths() -> impl Strategy<Value = Lengths> {
    let length = || prop_oneof![1usize..4, 1usize..50];
    prop_oneof![length().prop_map(Lengths::Same), prop::collection::vec(length(), 3).prop_map(Lengths::List)]
}

prop_compose! {
    fn any_softmax()(
        pattern in any_pattern(),
        mask in prop::sample::select(&["", "+causal", "+causal-tl"][..]),
        phase in prop::sample::select(&["prefill", "decode", "append", "backward"][..]),
        (dtype, kv) in prop::sample::select(&[("f32", "f16"), ("bf16", "bf16"), ("f16", "f32")][..]),
        heads in prop::sample::select(&["1:1", "4:4", "4:2", "3:1"][..]),
        (q, k) in (any_lengths(), any_lengths()),
        (dim_qk, dim_v) in (1usize..20, 1usize..20),
        page in prop::option::of(1usize..20),
        bias in prop::sample::select(&["none", "bool", "additive", "alibi"][..]),
        sinks in any::<bool>(),
    ) -> AttentionProblem {
        let mask = if mask.is_empty() && (pattern.starts_with("strided") || pattern.starts_with("fixed")) {
            "+causal"
        } else {
            mask
        };
        let is_backward = phase == "backward";
        let dtype = if is_backward { dtype.to_owned() } else { format!("{dtype}+{kv}") };
        let page = page.filter(|_| !is_backward).map_or(String::new(), |page| format!("/page={page}"));
        // A shared bias is exact for equal lengths and heads only.
        let bias = if q.is_ragged() || k.is_ragged() || pattern.starts_with("bigbird") { "none" } else { bias };
        problem(&format!(
            "softmax/{phase}/{pattern}{mask}/{dtype}/b3/h{heads}/q{q}/k{k}/d{dim_qk}:{dim_v}{page}/bias={bias}/sinks={sinks}"
        ))
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn closed_forms_agree_with_enumeration(problem in any_softmax()) {
        prop_assert_eq!(Work::of(&problem), enumerate(&problem), "{}", problem);
    }

    #[test]
    fn mla_linear_and_linformer_agree_with_enumeration(
        mask in prop::sample::select(&["", "+causal", "+causal-tl"][..]),
        (q, k) in (any_lengths(), any_lengths()), page in 1usize..20, heads in 1usize..4,
    ) {
        let prefill = format!("mla/prefill/full{mask}/f16/b3/h{heads}:{heads}/q{q}/k{k}/d12:8");
        let linear = format!("linear/prefill/full{mask}/f16/b3/h{}:{heads}/q{q}/k{k}/d12:8", 2 * heads);
        let decode = format!("mla:latent=9,rope=4/decode/full{mask}/f16/b3/h{heads}:1/q{q}/k{k}/d13:9/page={page}");
        for problem in [problem(&prefill), problem(&linear), problem(&decode)] {
            prop_assert_eq!(Work::of(&problem), enumerate(&problem), "{}", problem);
        }
        if let (Lengths::Same(q), Lengths::Same(k)) = (q, k) {
            let linformer = problem(&format!("linformer:rank=5/prefill/full/f16/b3/h{heads}:1/q{q}/k{k}/d12:8"));
            prop_assert_eq!(Work::of(&linformer), enumerate(&linformer), "{}", linformer);
        }
    }
}

#[test]
fn pairs_of_shapes_that_are_often_miscounted() {
    let pairs = |pattern: &str, q: usize, k: usize| {
        Work::of(&problem(&format!("softmax/prefill/{pattern}/f16/b1/h1:1/q{q}/k{k}/d64"))).pairs
    };
    let triangle = 1024 * 1025 / 2;
    // More queries than keys: the first 7168 rows see nothing.
    assert_eq!(pairs("full+causal", 8192, 1024), triangle);
    // Aligned at the top left instead, the last 7168 rows see every key.
    assert_eq!(pairs("full+causal-tl", 8192, 1024), triangle + 7168 * 1024);
    // More keys than queries: every row sees at least 7168 keys.
    assert_eq!(pairs("full+causal", 1024, 8192), triangle + 1024 * 7168);
    assert_eq!(pairs("full+causal-tl", 1024, 8192), triangle);
    // A window of 1024 keys in 32768, itself included.
    assert_eq!(pairs("window:1024+causal", 32768, 32768), triangle + (32768 - 1024) * 1024);
    assert_eq!(pairs("window:1024+causal", 1, 32768), 1024);
    assert_eq!(pairs("full+causal", 1, 1), 1);
    // BigBird's middle rows see 3 + 2 + 3 blocks of 64; the first and the last row of 32 see all; rows 1 and 30 see one
    // block less, because their window holds a global one.
    let per_head = 64 * 64 * (2 * 32 + 2 * 7 + 28 * 8);
    assert_eq!(pairs("bigbird:block=64,global=2,random=3,window=3", 2048, 2048), per_head);
}

#[test]
fn flops_and_bytes_by_hand() {
    // 32 query heads on 8 KV heads, one query, 8192 keys of 128: keys and values once a KV head.
    let decode = Work::of(&problem("softmax/decode/full/bf16/b1/h32:8/q1/k8192/d128"));
    assert_eq!(decode.flops, 134_217_728);
    assert_eq!((decode.read_bytes, decode.write_bytes), (8_192 + 33_554_432, 8_192));
    // Pages of 16: 512 entries of 4 bytes.
    let paged = Work::of(&problem("softmax/decode/full/bf16/b1/h32:8/q1/k8192/d128/page=16"));
    assert_eq!(paged.bytes() - decode.bytes(), 2_048);
    // A window of 100 keys, 8092 to 8191, touches 7 pages of 16.
    let window = Work::of(&problem("softmax/decode/window:100/bf16/b1/h32:8/q1/k8192/d128/page=16"));
    assert_eq!(window.read_bytes, 8_192 + 100 * 8 * 256 * 2 + 7 * 4);

    // 8192 x 8193 / 2 pairs, 32 heads, 4 x 128 FLOPs a pair.
    let prefill = Work::of(&problem("softmax/prefill/full+causal/bf16/b1/h32:8/q8192/k8192/d128"));
    assert_eq!(prefill.pairs, 33_558_528);
    assert_eq!(prefill.flops, 549_822_922_752);
    assert_eq!(prefill.bytes(), 67_108_864 + 33_554_432 + 67_108_864);
    // 549.8 GFLOP in 1 ms are 549.8 TFLOP/s; G is 1e9.
    assert!((prefill.tflop_per_s(1e6) - 549.822_922_752).abs() < 1e-9);
    assert!((prefill.gflop_per_s(1e6) - 549_822.922_752).abs() < 1e-6);
    assert!((prefill.gb_per_s(1e6) - 167.772_16).abs() < 1e-9);

    // Backward: 5 products where forward has 2.
    let backward = Work::of(&problem("softmax/backward/full+causal/bf16/b1/h32:32/q8192/k8192/d128"));
    assert_eq!(backward.flops * 2, prefill.flops * 5);
    let tensor = 32 * 8192 * 128 * 2;
    assert_eq!((backward.read_bytes, backward.write_bytes), (5 * tensor + 32 * 8192 * 4, 3 * tensor));

    // Linear: 2 * 2 * 16384 tokens * 16 heads * 128 * 128.
    let linear = Work::of(&problem("linear/prefill/full+causal/bf16/b2/h16:16/q16384/k16384/d128"));
    assert_eq!((linear.pairs, linear.flops), (0, 2 * 2 * 2 * 16384 * 16 * 128 * 128));
    assert_eq!(linear.bytes(), 4 * 2 * 16384 * 16 * 128 * 2);
    // One token: q, k, v, o, and a state of 128 x 128 and a normaliser of 128 in and out, whatever came before.
    let recurrent = Work::of(&problem("linear/decode/full+causal/f16/b2/h16:4/q1/k4096/d128"));
    assert_eq!(recurrent.flops, 2 * 2 * 128 * 128 * (4 + 16));
    assert_eq!(recurrent.bytes(), 2 * 2 * 128 * (16 + 4 + 4 + 16) + 2 * 2 * 4 * (128 * 128 + 128) * 4);
    let plain =
        Work::of(&problem("linear:feature_map=identity,normalised=false/decode/full+causal/f16/b2/h16:4/q1/k9/d128"));
    assert_eq!(recurrent.bytes() - plain.bytes(), 2 * 2 * 4 * 128 * 4);

    // Linformer: E and F once for the batch, in f32.
    let linformer = Work::of(&problem("linformer/prefill/full/f16/b4/h12:12/q4096/k4096/d64"));
    assert_eq!(linformer.flops, 2 * 4 * 256 * 128 * (12 * 4096 + 12 * 4096));
    assert_eq!(linformer.bytes(), 4 * 4 * 12 * 4096 * 64 * 2 + 2 * 4096 * 256 * 4);

    // Absorbed MLA: the latent row once, 576 elements, and 1.89 FLOPs a byte and head.
    let mla = Work::of(&problem("mla/decode/full/bf16/b128/h128:1/q1/k4096/d576:512"));
    assert_eq!(mla.flops, 128 * 1_140_850_688);
    assert_eq!(mla.read_bytes, 128 * (147_456 + 4_718_592));
    assert_eq!(mla.write_bytes, 128 * 131_072);
    let latent_only = mla.flops as f64 / (128.0 * 4_718_592.0);
    assert!((latent_only / 128.0 - 1.89).abs() < 0.01);
    assert!((mla.intensity_flop_per_byte() - mla.flops as f64 / mla.bytes() as f64).abs() < 1e-12);
}

#[test]
fn keys_and_queries_without_a_pair_are_not_read() {
    // The first 7 of 8 rows see nothing, yet their zeros are written.
    let causal = Work::of(&problem("softmax/prefill/full+causal/f32/b1/h1:1/q8/k1/d4"));
    assert_eq!((causal.read_bytes, causal.write_bytes), (4 * 4 * 3, 8 * 4 * 4));
    // A sequence without keys.
    let ragged = Work::of(&problem("softmax/decode/full/f32/b2/h1:1/q1/k@list:0,3/d4"));
    assert_eq!((ragged.pairs, ragged.read_bytes, ragged.write_bytes), (3, 4 * 4 * (1 + 6), 2 * 4 * 4));
    // Linear attention aligned at the top left never needs the last 5 keys.
    let linear = Work::of(&problem("linear/prefill/full+causal-tl/f32/b1/h1:1/q3/k8/d4"));
    assert_eq!(linear.flops, 2 * 4 * 4 * (3 + 3));
}

#[test]
fn caches_by_hand() {
    let cache = |id: &str| KvCache::of(&problem(id));
    let llama = cache("softmax/decode/full/bf16/b1/h32:8/q1/k8192/d128");
    assert_eq!(llama, KvCache { token_bytes: 4096, max_tokens: None, state_bytes: 0 });
    assert_eq!(llama.bytes_at(1_000_000), 4_096_000_000);
    assert_eq!(cache("softmax/decode/full/bf16+f32/b1/h32:8/q1/k8192/d128:64").token_bytes, 8 * 192 * 4);
    let mistral = cache("softmax/decode/window:4096+causal/bf16/b1/h32:8/q1/k8192/d128");
    assert_eq!((mistral.bytes_at(100), mistral.bytes_at(1_000_000)), (409_600, 4096 * 4096));
    assert_eq!(cache("softmax/decode/window:inf,0/bf16/b1/h32:8/q1/k8192/d128").max_tokens, None);
    assert_eq!(cache("softmax/decode/dilated:8,4/bf16/b1/h1:1/q1/k8192/d128").max_tokens, Some(33));
    assert_eq!(cache("softmax/decode/longformer:8,2/bf16/b1/h1:1/q1/k8192/d128").max_tokens, Some(11));
    assert_eq!(cache("mla/decode/full/bf16/b1/h128:1/q1/k8192/d576:512").token_bytes, 1152);
    // The cache holds latent rows, whatever prefill computes on.
    assert_eq!(cache("mla/prefill/full/bf16/b1/h128:128/q8/k8/d192:128").token_bytes, 1152);
    let linear = cache("linear/decode/full+causal/bf16/b1/h16:4/q1/k8/d128");
    assert_eq!((linear.token_bytes, linear.bytes_at(9)), (0, 4 * (128 * 128 + 128) * 4));
    assert_eq!(cache("linformer/prefill/full/f16/b1/h2:2/q8/k8/d64").bytes_at(1 << 20), 256 * 2 * 128 * 2);
}

#[test]
fn a_million_tokens_need_no_million_squared_steps() {
    let n = 1u64 << 20;
    let work = |pattern: &str| {
        Work::of(&problem(&format!("softmax/prefill/{pattern}/bf16/b8/h32:8/q1048576/k1048576/d128"))).pairs
    };
    assert_eq!(work("full"), 8 * n * n);
    assert_eq!(work("full+causal"), 8 * (n * (n + 1) / 2));
    assert_eq!(work("window:512,512"), 8 * (n * 1025 - 512 * 513));
    assert_eq!(work("dilated:2,512"), 8 * (n * 5 - 2 * (512 + 1024)));
    // Every block row of 64 sees its own block, its two neighbours, the first and last block, and three more.
    let blocks = n / 64;
    assert_eq!(work("bigbird"), 8 * 64 * 64 * (2 * blocks + 2 * 7 + (blocks - 4) * 8));
    assert!(work("strided:1024") < work("full+causal") / 100);
    assert!(work("fixed:1024,8") < work("full+causal") / 100);
}

#[test]
fn the_largest_sizes_do_not_overflow() {
    let n = 1u64 << 24;
    let work = |id: &str| Work::of(&problem(id));
    let shape = "f32/b1/h32:1/q16777216/k16777216/d128";
    let full = work(&format!("softmax/prefill/full/{shape}"));
    assert_eq!(u128::from(full.flops), 2 * 32 * 256 * u128::from(n) * u128::from(n));
    for (pattern, pairs) in [
        ("window:inf,inf", n * n),
        ("window:16777216,16777216", n * n),
        ("window:inf,0", n * (n + 1) / 2),
        ("window:0,inf+causal", n),
        ("dilated:16777216,1", n * n),
        ("dilated:16777216,16777216", n),
        ("longformer:0,16777216,dilation=16777216", n * n),
        ("strided:16777216", n * (n + 1) / 2),
        ("strided:1", n * (n + 1) / 2),
        ("fixed:16777216,1", n * (n + 1) / 2),
        ("bigbird:block=16777216", n * n),
        ("bigbird:block=65536,random=16777216", n * n),
    ] {
        assert_eq!(work(&format!("softmax/prefill/{pattern}/{shape}")).pairs, pairs, "{pattern}");
    }
    let linear = work("linear/prefill/full/f32/b16384/h1:1/q65536/k65536/d1024");
    assert_eq!(u128::from(linear.flops), 2 * (1 << 20) * 2 * (1u128 << 30));
}
