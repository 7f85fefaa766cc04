use proptest::prelude::*;

use super::*;
use crate::problem::{FeatureMap, LengthDistribution, Mechanism, Pattern};

/// Small and huge, so that defaults and limits both come up.
fn size() -> impl Strategy<Value = usize> {
    prop_oneof![0usize..4, 1usize..1000, Just(64), Just(128), Just(256), Just(512), any::<usize>(), Just(usize::MAX)]
}

fn any_mechanism() -> impl Strategy<Value = Mechanism> {
    prop_oneof![
        Just(Mechanism::Softmax),
        (prop::sample::select(&FeatureMap::ALL[..]), any::<bool>())
            .prop_map(|(feature_map, normalised)| Mechanism::Linear { feature_map, normalised }),
        size().prop_map(|rank| Mechanism::Linformer { rank }),
        (size(), size(), size()).prop_map(|(latent, rope, nope)| Mechanism::Mla { latent, rope, nope }),
    ]
}

fn any_pattern() -> impl Strategy<Value = Pattern> {
    prop_oneof![
        Just(Pattern::Full),
        (size(), size()).prop_map(|(left, right)| Pattern::Window { left, right }),
        (size(), size()).prop_map(|(window, step)| Pattern::Dilated { window, step }),
        (size(), size(), size()).prop_map(|(window, global, dilation)| Pattern::Longformer {
            window,
            global,
            dilation
        }),
        (size(), size(), size(), size(), prop_oneof![Just(0u64), any::<u64>()])
            .prop_map(|(block, window, global, random, seed)| Pattern::Bigbird { block, window, global, random, seed }),
        size().prop_map(|stride| Pattern::Strided { stride }),
        (size(), size()).prop_map(|(block, summary)| Pattern::Fixed { block, summary }),
    ]
}

fn any_lengths() -> impl Strategy<Value = Lengths> {
    prop_oneof![
        size().prop_map(Lengths::Same),
        prop::collection::vec(size(), 0..5).prop_map(Lengths::List),
        (prop::sample::select(&LengthDistribution::ALL[..]), size(), size(), any::<u64>())
            .prop_map(|(distribution, min, max, seed)| Lengths::Varlen { distribution, min, max, seed }),
    ]
}

fn any_real() -> impl Strategy<Value = Option<f64>> {
    let finite = any::<f64>().prop_filter("NaN equals nothing", |x| !x.is_nan());
    prop_oneof![
        Just(None),
        prop_oneof![finite, Just(0.125), Just(50.0), Just(-0.0), Just(f64::INFINITY), Just(f64::MIN_POSITIVE)]
            .prop_map(Some)
    ]
}

prop_compose! {
    /// Any problem that the type can hold, legal or not.
    pub(crate) fn any_problem()(
        (mechanism, pattern, causal, top_left) in (any_mechanism(), any_pattern(), any::<bool>(), any::<bool>()),
        phase in prop::sample::select(&Phase::ALL[..]),
        (dtype, dtype_kv) in (prop::sample::select(&Dtype::STORED[..]), prop::sample::select(&Dtype::STORED[..])),
        (batch, heads_q, heads_kv, head_dim_qk, head_dim_v) in (size(), size(), size(), size(), size()),
        (seqlen_q, seqlen_kv) in (any_lengths(), any_lengths()),
        (scale, softcap) in (any_real(), any_real()),
        bias in prop::sample::select(&Bias::ALL[..]),
        (sinks, deterministic) in (any::<bool>(), any::<bool>()),
        layout in prop::sample::select(&Layout::ALL[..]),
        page in prop::option::of(size()),
    ) -> AttentionProblem {
        AttentionProblem {
            mechanism,
            pattern,
            causal,
            causal_alignment: if top_left { CausalAlignment::TopLeft } else { CausalAlignment::BottomRight },
            phase,
            dtype,
            dtype_kv,
            batch,
            heads_q,
            heads_kv,
            seqlen_q,
            seqlen_kv,
            head_dim_qk,
            head_dim_v,
            scale,
            softcap,
            bias,
            sinks,
            layout,
            kv_layout: page.map_or(KvLayout::Contiguous, |page_size| KvLayout::Paged { page_size }),
            deterministic,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 5000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn parsing_gives_back_what_was_printed(problem in any_problem()) {
        let id = problem.id();
        prop_assert!(id.chars().all(|c| matches!(c, 'a'..='z' | '0'..='9') || ":=,.+_/@-".contains(c)), "{id}");
        prop_assert_eq!(AttentionProblem::parse_id(&id), Ok(problem), "{}", id);
    }

    #[test]
    fn options_may_come_in_any_order_and_defaults_may_be_spelled_out(problem in any_problem()) {
        let id = problem.id();
        let segments: Vec<&str> = id.split('/').collect();
        let mut options: Vec<String> = segments[9..].iter().map(|&option| option.to_owned()).collect();
        for (key, default) in [("bias", "none"), ("layout", "bshd"), ("sinks", "false"), ("deterministic", "false")] {
            if !options.iter().any(|option| option.starts_with(key)) {
                options.push(format!("{key}={default}"));
            }
        }
        options.reverse();
        let other = format!("{}/{}", segments[..9].join("/"), options.join("/"));
        prop_assert_eq!(AttentionProblem::parse_id(&other).map(|problem| problem.id()), Ok(id));
    }

    #[test]
    fn any_text_is_parsed_or_refused_without_a_panic(text in "[a-z0-9:=,.+_/@-]{0,60}") {
        let _ = AttentionProblem::parse_id(&text);
        let _ = (parse_mask(&text), parse_mechanism(&text), parse_lengths(&text), parse_heads(&text));
    }

    #[test]
    fn a_damaged_id_is_refused_or_names_its_own_problem(
        problem in any_problem(), at in any::<prop::sample::Index>(), with in "[a-z0-9:=,.+_/@-]",
    ) {
        let mut id = problem.id().into_bytes();
        let at = at.index(id.len());
        id[at] = with.as_bytes()[0];
        let id = String::from_utf8(id).expect("ASCII");
        let is_nan = |x: Option<f64>| x.is_some_and(f64::is_nan);
        if let Ok(parsed) = AttentionProblem::parse_id(&id)
            && !is_nan(parsed.scale)
            && !is_nan(parsed.softcap)
        {
            prop_assert_eq!(AttentionProblem::parse_id(&parsed.id()), Ok(parsed));
        }
    }
}

#[test]
fn ids_read_as_documented() {
    let plain = {
        let mut problem = AttentionProblem::softmax(Phase::Prefill, Dtype::Bf16, 1, (32, 8), (8192, 8192), 128);
        problem.causal = true;
        problem
    };
    assert_eq!(plain.id(), "softmax/prefill/full+causal/bf16/b1/h32:8/q8192/k8192/d128");

    let ragged = AttentionProblem {
        pattern: Pattern::Window { left: 4095, right: 0 },
        phase: Phase::Decode,
        dtype_kv: Dtype::F16,
        batch: 3,
        seqlen_q: Lengths::Same(1),
        seqlen_kv: Lengths::Varlen { distribution: LengthDistribution::Uniform, min: 1, max: 1024, seed: 7 },
        head_dim_v: 64,
        kv_layout: KvLayout::Paged { page_size: 16 },
        softcap: Some(50.0),
        scale: Some(0.0625),
        ..plain.clone()
    };
    let id = "softmax/decode/window:4095,0+causal/bf16+f16/b3/h32:8/q1/k@uniform:1-1024:s7/d128:64/page=16/scale=0.0625\
              /softcap=50";
    assert_eq!(ragged.id(), id);
    assert_eq!(id.parse(), Ok(ragged));

    let mechanism = |text: &str| parse_mechanism(text).expect("valid").to_string();
    assert_eq!(mechanism("linear:normalised=false,feature_map=relu"), "linear:feature_map=relu,normalised=false");
    assert_eq!(mechanism("linear:feature_map=elu1"), "linear");
    assert_eq!(mechanism("linformer:rank=128"), "linformer:rank=128");
    assert_eq!(mechanism("mla:rope=32,latent=256"), "mla:latent=256,rope=32");

    let pattern = |text: &str| parse_pattern(text).expect("valid").to_string();
    assert_eq!(pattern("window:1024"), "window:1023,0");
    assert_eq!(pattern("window:-1,0"), "window:inf,0");
    assert_eq!(pattern("window:inf"), "window:inf,0");
    assert_eq!(pattern("longformer:256,16,dilation=2"), "longformer:256,16,dilation=2");
    assert_eq!(pattern("bigbird:block=64,window=3,global=2,random=3"), "bigbird:block=64,global=2,random=3,window=3");
    assert_eq!(pattern("bigbird:seed=9"), "bigbird:block=64,global=2,random=3,seed=9,window=3");

    assert_eq!(parse_lengths("@list:5,7,9"), Ok(Lengths::List(vec![5, 7, 9])));
    assert_eq!(parse_lengths("uniform:1-8"), parse_lengths("@uniform:1-8:s0"));
    assert_eq!(parse_heads("8"), Ok((8, 8)));
    assert_eq!(parse_heads("32:8"), Ok((32, 8)));
    assert_eq!(
        parse_mask("strided:128+causal-tl"),
        Ok((Pattern::Strided { stride: 128 }, true, CausalAlignment::TopLeft))
    );
}

#[test]
fn errors_name_the_part_what_was_found_and_the_choices() {
    let tail = "bf16/b1/h32:8/q8/k8/d128";
    let cases = [
        (String::new(), "mechanism is ``; valid are softmax, linear"),
        (format!("relu/prefill/full/{tail}"), "mechanism is `relu`; valid are softmax, linear"),
        (format!("softmax/training/full/{tail}"), "phase is `training`; valid are prefill, decode, append, backward"),
        (format!("softmax/prefill/banded:3/{tail}"), "pattern is `banded:3`; valid are full, window:LEFT,RIGHT"),
        (format!("softmax/prefill/full:3/{tail}"), "`3` has no meaning there; it is written full"),
        (
            format!("softmax/prefill/dilated:3/{tail}"),
            "1 plain numbers instead of 2; it is written dilated:WINDOW,STEP",
        ),
        (format!("softmax/prefill/window:0/{tail}"), "a window of 0 keys"),
        (format!("softmax/prefill/bigbird:blok=3/{tail}"), "`blok` is none of its options"),
        (format!("softmax/prefill/bigbird:block=3,block=3/{tail}"), "`block` is given twice"),
        (format!("softmax/prefill/full+masked/{tail}"), "`+masked`; valid are +causal, +causal-tl"),
        ("softmax/prefill/full/fp8".into(), "dtype is `fp8`; valid are f32, f16, bf16"),
        ("softmax/prefill/full/f16/b1".into(), "it ends where the heads should stand"),
        ("softmax/prefill/full/f16/1".into(), "does not begin with `b`"),
        ("softmax/prefill/full/f16/b+1".into(), "batch is `+1`; valid is a whole number"),
        ("softmax/prefill/full/f16/b1/h8/q@zipf:1-2/k1/d1".into(), "`zipf`; valid are uniform, loguniform"),
        ("softmax/prefill/full/f16/b1/h8/q@5/k1/d1".into(), "lengths are `@5`; valid are N, @list"),
        (format!("softmax/prefill/full/{tail}/pages=3"), "`pages=3` is no option; valid are align=, bias="),
        (format!("softmax/prefill/full/{tail}/page=3/page=3"), "option `page` is given twice"),
        (format!("softmax/prefill/full/{tail}/bias=relative"), "bias is `relative`; valid are none, bool"),
        (format!("softmax/prefill/full/{tail}/scale=big"), "scale is `big`; valid is a number"),
        (format!("softmax/prefill/full+causal-tl/{tail}/align=br"), "contradicts"),
    ];
    for (id, expected) in cases {
        let error = AttentionProblem::parse_id(&id).expect_err(&id).to_string();
        assert!(error.contains(expected), "`{id}` says: {error}");
        assert!(!error.contains('\n'));
    }
}
