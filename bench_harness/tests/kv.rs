//! The arithmetic of KV caches against published figures, and its laws on random shapes.

use attnbench::kv::capacity::{largest_batch, largest_context};
use attnbench::kv::pages::{paged, reserved_bytes};
use attnbench::kv::size::{parse_bytes, parse_share_or_bytes};
use attnbench::kv::variants::{latent, linear, windowed, with_heads};
use attnbench::kv::{CacheShape, Context, Element};
use attnbench::suite::presets::{LayerGroup, find};
use proptest::prelude::*;

fn element(name: &str) -> Element {
    name.parse().unwrap()
}

fn uniform(layers: u32, heads_q: usize, heads_kv: usize) -> CacheShape {
    CacheShape::uniform(layers, heads_q, heads_kv, 128).unwrap()
}

#[test]
fn published_figures() {
    let f16 = Element::F16;
    // Scores of one head at 100k tokens: 1e10 elements.
    assert_eq!(CacheShape::score_bytes_of_a_head(f16, 100_000).unwrap(), 20_000_000_000);
    // A 70B-class model at 8k: 21.5 GB as MHA, 2.7 GB at 8 KV heads.
    assert_eq!(uniform(80, 64, 64).sequence_bytes(f16, 8192).unwrap(), 21_474_836_480);
    assert_eq!(uniform(80, 64, 8).sequence_bytes(f16, 8192).unwrap(), 2_684_354_560);
    // GQA 32:8 keeps a quarter of MHA, MQA a thirty-second.
    let mha = uniform(32, 32, 32).token_bytes(f16).unwrap();
    assert_eq!(uniform(32, 32, 8).token_bytes(f16).unwrap() * 4, mha);
    assert_eq!(uniform(32, 32, 1).token_bytes(f16).unwrap() * 32, mha);
    // DeepSeek-V2 keeps 576 elements a token a layer.
    let v2 = CacheShape::of_model(find("deepseek-v2").unwrap()).unwrap();
    assert_eq!(v2.token_bytes(f16).unwrap(), 60 * 576 * 2);
    assert_eq!(v2.token_bytes(element("int6")).unwrap(), 60 * 432);
    // Mistral's window bounds its cache from 4,096 tokens on (Jiang et al. 2023, section 2).
    let mistral = CacheShape::of_model(find("mistral-7b").unwrap()).unwrap();
    assert_eq!(mistral.sequence_bytes(f16, 32_768).unwrap(), mistral.sequence_bytes(f16, 4096).unwrap());
    assert_eq!(uniform(32, 32, 8).sequence_bytes(f16, 32_768).unwrap(), 8 * mistral.sequence_bytes(f16, 4096).unwrap());
}

#[test]
fn groups_add_up() {
    for model in attnbench::suite::presets::MODELS.iter().filter(|model| model.causal) {
        let shape = CacheShape::of_model(model).unwrap();
        let parts: u64 = model
            .layers
            .iter()
            .map(|&group| CacheShape::new(vec![group]).unwrap().sequence_bytes(Element::BF16, 5000).unwrap())
            .sum();
        assert_eq!(shape.sequence_bytes(Element::BF16, 5000).unwrap(), parts, "{}", model.name);
        assert_eq!(
            shape.token_bytes(Element::BF16).unwrap(),
            model.kv_bytes_per_token(attn_kernels::problem::Dtype::Bf16),
            "{}",
            model.name
        );
    }
}

#[test]
fn states_and_encoders() {
    let linear = CacheShape::new(vec![linear(LayerGroup::dense(24, 16, 16, 64))]).unwrap();
    let bytes = linear.sequence_bytes(Element::F16, 1).unwrap();
    assert_eq!(bytes, 24 * 16 * (64 * 64 + 64) * 4);
    assert_eq!(linear.sequence_bytes(Element::FP8, 1 << 40).unwrap(), bytes);
    assert_eq!(largest_context(&linear, Element::F16, 3, 3 * bytes), Context::Unbounded);
    assert_eq!(largest_context(&linear, Element::F16, 3, 3 * bytes - 1), Context::Tokens(0));
    let error = CacheShape::of_model(find("bert-base").unwrap()).unwrap_err().to_string();
    assert!(error.contains("`bert-base` is an encoder"), "{error}");
}

#[test]
fn hostile_shapes_are_errors() {
    for (layers, heads_q, heads_kv, dim) in [
        (0, 8, 8, 64),
        (u32::MAX, 8, 8, 64),
        (1, 8, 3, 64),
        (1, 0, 0, 64),
        (1, 8, 0, 64),
        (1, 8, 8, 0),
        (1, usize::MAX, 1, 1),
    ] {
        assert!(CacheShape::uniform(layers, heads_q, heads_kv, dim).is_err(), "{layers} {heads_q}:{heads_kv} {dim}");
    }
    let shape = uniform(80, 64, 64);
    assert!(shape.sequence_bytes(Element::F16, u64::MAX).unwrap_err().to_string().contains("shorter context"));
    assert!(shape.batch_bytes(Element::F16, 1 << 40, u64::MAX).is_err());
    assert_eq!(shape.sequence_bytes(Element::F16, 0).unwrap(), 0);
    assert!(paged(&shape, Element::F16, &[1], 0).is_err());
}

#[test]
fn sizes() {
    for (text, bytes) in
        [("80GB", 80_000_000_000), ("1.5 GiB", 1_610_612_736), ("7", 7), ("0.001kB", 1), ("2TiB", 2 << 40)]
    {
        assert_eq!(parse_bytes(text).unwrap(), bytes, "{text}");
    }
    for text in ["", "GB", "-1GB", "1.2.3GB", "1e9", "80gb", "99999999999999999999GB", "1.0000000001GB"] {
        assert!(parse_bytes(text).is_err(), "{text}");
    }
    assert_eq!(parse_share_or_bytes("10%", 1000).unwrap(), 100);
    assert_eq!(parse_share_or_bytes("1kB", 5).unwrap(), 1000);
    assert!(parse_share_or_bytes("101%", 1000).is_err() && parse_share_or_bytes("x%", 1).is_err());
}

/// Layers of any kind that keeps a cache.
fn shapes() -> impl Strategy<Value = CacheShape> {
    let group =
        (1u32..40, 0usize..6, prop::sample::select(vec![32usize, 64, 96, 128]), 0usize..6, 0usize..4, 1usize..5000)
            .prop_map(|(layers, log_heads, dim, log_kv, kind, window)| {
                let heads = 1usize << log_heads;
                let group = LayerGroup::dense(layers, heads, 1 << log_kv.min(log_heads), dim);
                match kind {
                    0 => windowed(group, window),
                    1 => linear(group),
                    2 => latent(group),
                    _ => group,
                }
            });
    prop::collection::vec(group, 1..4).prop_map(|groups| CacheShape::new(groups).unwrap())
}

fn elements() -> impl Strategy<Value = Element> {
    prop::sample::select(attnbench::kv::element::ELEMENTS.to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_longer_context_or_a_wider_type_never_shrinks_the_cache(
        shape in shapes(), context in 0u64..200_000, more in 0u64..200_000, batch in 1u64..64
    ) {
        let bytes = |element, context| shape.batch_bytes(element, context, batch).unwrap();
        let mut narrower = u64::MAX;
        for &element in attnbench::kv::element::ELEMENTS {
            prop_assert!(bytes(element, context + more) >= bytes(element, context));
            prop_assert!(bytes(element, context) <= narrower);
            narrower = bytes(element, context);
        }
    }

    #[test]
    fn more_kv_heads_never_shrink_the_cache(
        layers in 1u32..100, log_heads in 0u32..7, log_kv in 0u32..7, context in 0u64..1_000_000, element in elements()
    ) {
        let heads = 1usize << log_heads;
        let group = LayerGroup::dense(layers, heads, heads, 128);
        let bytes = |log_kv: u32| {
            let shape = CacheShape::new(vec![with_heads(group, 1 << log_kv.min(log_heads))]).unwrap();
            shape.sequence_bytes(element, context).unwrap()
        };
        prop_assert!(bytes(log_kv + 1) >= bytes(log_kv));
        let window = CacheShape::new(vec![windowed(group, 512)]).unwrap();
        prop_assert!(window.sequence_bytes(element, context).unwrap() <= bytes(7));
    }

    #[test]
    fn a_larger_budget_never_shrinks_what_fits(
        shape in shapes(), element in elements(), bytes in 0u64..1 << 40, more in 0u64..1 << 40,
        batch in 1u64..64, context in 0u64..1 << 20
    ) {
        prop_assert!(
            largest_context(&shape, element, batch, bytes + more) >= largest_context(&shape, element, batch, bytes)
        );
        prop_assert!(
            largest_context(&shape, element, batch + 1, bytes) <= largest_context(&shape, element, batch, bytes)
        );
        prop_assert!(largest_batch(&shape, element, context, bytes + more) >= largest_batch(&shape, element, context, bytes));
    }

    #[test]
    fn what_fits_fits_and_one_more_does_not(
        shape in shapes(), element in elements(), bytes in 1u64..1 << 40, batch in 1u64..64
    ) {
        if let Context::Tokens(tokens) = largest_context(&shape, element, batch, bytes) {
            let fits = |tokens| shape.batch_bytes(element, tokens, batch).is_ok_and(|needed| needed <= bytes);
            prop_assert!(tokens == 0 || fits(tokens));
            prop_assert!(!fits(tokens + 1));
            let batch = largest_batch(&shape, element, tokens, bytes);
            if batch < u64::MAX {
                prop_assert!(shape.batch_bytes(element, tokens, batch).unwrap() <= bytes);
                prop_assert!(shape.batch_bytes(element, tokens, batch + 1).unwrap() > bytes);
            }
        }
    }

    #[test]
    fn pages_hold_all_and_waste_less_than_a_page_a_sequence(
        shape in shapes(), element in elements(), lengths in prop::collection::vec(0u64..20_000, 0..20), page in 1u64..300
    ) {
        let pages = paged(&shape, element, &lengths, page).unwrap();
        let used: u64 = lengths.iter().map(|&length| shape.sequence_bytes(element, length).unwrap()).sum();
        prop_assert_eq!(pages.used_bytes, used);
        prop_assert!(pages.taken_bytes >= used);
        // A window may waste a part of its first page too.
        let token = shape.token_bytes(element).unwrap();
        prop_assert!(pages.wasted_bytes() <= lengths.len() as u64 * token * 2 * (page - 1));
        prop_assert_eq!(paged(&shape, element, &lengths, 1).unwrap().wasted_bytes(), 0);
        prop_assert!(reserved_bytes(&shape, element, &lengths).unwrap() >= used);
    }
}

#[test]
fn the_command_gives_exact_bytes_and_clear_errors() {
    let attnbench = |args: &[&str]| {
        let output = assert_cmd::Command::cargo_bin("attnbench").unwrap().args(args).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    };
    let shape = "kv --layers 80 --heads-q 64 --heads-kv 8 --head-dim 128 --context 8192 --batch 1 --dtype f16 --json";
    let (code, stdout, stderr) = attnbench(&shape.split(' ').collect::<Vec<_>>());
    assert_eq!(code, 0, "{stderr}");
    let answer: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(answer["batch_bytes"], 2_684_354_560u64);
    assert_eq!(answer["variants"][1]["sequence_bytes"], 21_474_836_480u64);
    for (args, expected) in [
        ("kv --model llama-4-70b", "no model preset `llama-4-70b`; did you mean `llama-3-70b`?"),
        ("kv --model bert-base", "`bert-base` is an encoder"),
        ("kv --layers 2", "--heads-q"),
        ("kv --layers 2 --heads-q 8 --heads-kv 3", "counting a cache:"),
        ("kv --layers 2 --heads-q 8 --mechanism linformer", "does not decode and keeps no cache"),
        ("kv --layers 2 --heads-q 8 --pattern window:0", "reading --pattern"),
        ("kv --model llama-3-70b --memory 80GB", "leave nothing for a cache"),
        ("kv --model llama-3-8b --memory 80GB --reserve 120%", "reading --reserve"),
        ("kv --model llama-3-8b --dtype f12", "no storage type `f12`"),
        ("kv --model llama-3-8b --lengths uniform:9-3", "the smallest length is larger"),
        ("kv --model llama-3-8b --context 18446744073709551615", "more than 18446744073709551615 bytes"),
    ] {
        let (code, _, stderr) = attnbench(&args.split(' ').collect::<Vec<_>>());
        assert_eq!(code, 2, "{args}: {stderr}");
        assert!(stderr.contains(expected), "{args}: {stderr}");
    }
}
