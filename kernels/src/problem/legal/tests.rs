use proptest::prelude::*;

use super::*;
use crate::problem::id::tests::any_problem;
use crate::problem::{Dtype, Layout, LengthDistribution};

fn base() -> AttentionProblem {
    AttentionProblem::softmax(Phase::Prefill, Dtype::F16, 2, (8, 2), (64, 64), 32)
}

/// A valid problem of every family and phase.
fn valid() -> Vec<AttentionProblem> {
    let parse = |text: &str| AttentionProblem::parse_id(text).expect("an id");
    let mut problems = Vec::new();
    for phase in ["prefill", "decode", "append", "backward"] {
        for pattern in [
            "full",
            "full+causal",
            "full+causal-tl",
            "window:inf,3",
            "window:15,0+causal",
            "dilated:4,2",
            "longformer:8,0+causal",
            "bigbird:block=16",
            "strided:8+causal",
            "fixed:8,8+causal",
        ] {
            problems.push(parse(&format!("softmax/{phase}/{pattern}/f16/b2/h8:2/q5/k9/d32:16")));
        }
    }
    problems.extend(
        [
            "softmax/append/full+causal/f16+bf16/b2/h8:2/q5/k@list:0,9/d32/layout=thd/page=16/sinks=true/softcap=30",
            "softmax/backward/full/f32/b1/h8:2/q5/k9/d32/bias=alibi/deterministic=true/scale=-0.5",
            "softmax/prefill/full/f32/b65536/h1024:1/q@uniform:1-4:s1/k@loguniform:0-9:s1/d1024:1",
            "linear/prefill/full/f32/b1/h8:2/q5/k9/d32",
            "linear:feature_map=identity,normalised=false/prefill/full+causal/f32/b1/h8:2/q5/k9/d32/scale=0.5",
            "linear/decode/full+causal/f32/b1/h8:2/q3/k9/d32",
            "linformer:rank=4/prefill/full/f32/b1/h8:2/q5/k9/d32",
            "mla/prefill/full+causal/bf16/b1/h8:8/q5/k9/d192:128",
            "mla/decode/full+causal/bf16+f16/b1/h8:1/q1/k9/d576:512/page=64",
        ]
        .map(parse),
    );
    problems
}

#[test]
fn what_exists_is_valid() {
    for problem in valid() {
        assert_eq!(problem.validate(), Ok(()), "{problem}");
        assert_eq!(problem.clone().normalise(), problem);
    }
}

#[test]
fn every_row_of_the_table_has_a_valid_problem() {
    for row in LEGAL {
        for pattern in row.patterns {
            for phase in row.phases {
                let is_there = |problem: &AttentionProblem| {
                    problem.mechanism.name() == row.mechanism
                        && problem.pattern.name() == *pattern
                        && problem.phase == *phase
                };
                assert!(valid().iter().any(is_there), "{} {pattern} {phase:?}", row.mechanism);
            }
        }
    }
}

#[test]
fn what_is_not_in_the_table_is_invalid() {
    let patterns = ["full", "window:3,0", "dilated:4,2", "longformer:8,1", "bigbird", "strided:8", "fixed:8,1"];
    for mechanism in ["softmax", "linear", "linformer", "mla"] {
        for pattern in patterns {
            for phase in Phase::ALL {
                let name = pattern.split(':').next().expect("a name");
                let is_legal = LEGAL.iter().any(|row| {
                    row.mechanism == mechanism && row.patterns.contains(&name) && row.phases.contains(&phase)
                });
                let (heads, dims) =
                    if (mechanism, phase) == ("mla", Phase::Decode) { (1, "576:512") } else { (8, "64") };
                let id = format!("{mechanism}/{}/{pattern}/f32/b1/h8:{heads}/q8/k8/d{dims}", phase.name());
                let problem = AttentionProblem::parse_id(&id).expect("an id").normalise();
                assert_eq!(problem.validate().is_ok(), is_legal, "{problem}");
            }
        }
    }
}

#[test]
fn what_is_wrong_is_named() {
    let mut cases: Vec<(AttentionProblem, &str)> = Vec::new();
    let mut case = |expected, change: fn(&mut AttentionProblem)| {
        let mut problem = base();
        change(&mut problem);
        cases.push((problem, expected));
    };
    case("8 query heads cannot share 3 KV heads", |p| p.heads_kv = 3);
    case("the number of KV heads is 0; valid is 1 to 1024", |p| p.heads_kv = 0);
    case("the number of query heads is 0", |p| p.heads_q = 0);
    case("batch is 0; valid is 1 to 65536", |p| p.batch = 0);
    case("batch is 65537", |p| p.batch = 65537);
    case("the head dimension of Q and K is 1025; valid is 1 to 1024", |p| p.head_dim_qk = 1025);
    case("the head dimension of V is 0", |p| p.head_dim_v = 0);
    case("the query length is 0", |p| p.seqlen_q = Lengths::Same(0));
    case("the key length is 0", |p| p.seqlen_kv = Lengths::Same(0));
    case("the key length is 16777217", |p| p.seqlen_kv = Lengths::Same((1 << 24) + 1));
    case("the key length is 18446744073709551615", |p| p.seqlen_kv = Lengths::Same(usize::MAX));
    case("a query length of the list is 0", |p| p.seqlen_q = Lengths::List(vec![1, 0]));
    case("every key length of the list is 0", |p| p.seqlen_kv = Lengths::List(vec![0, 0]));
    case("3 key lengths are listed for a batch of 2", |p| p.seqlen_kv = Lengths::List(vec![1, 2, 3]));
    case("the smallest key length (at most the largest) is 9", |p| {
        p.seqlen_kv = Lengths::Varlen { distribution: LengthDistribution::Uniform, min: 9, max: 8, seed: 0 }
    });
    case("the largest query length is 0", |p| {
        p.seqlen_q = Lengths::Varlen { distribution: LengthDistribution::Uniform, min: 0, max: 0, seed: 0 }
    });
    case("the window's left side (unless inf) is", |p| {
        p.pattern = Pattern::Window { left: usize::MAX - 1, right: 0 };
    });
    case("the dilated window's step is 0", |p| p.pattern = Pattern::Dilated { window: 1, step: 0 });
    case("longformer's dilation is 0", |p| p.pattern = Pattern::Longformer { window: 1, global: 1, dilation: 0 });
    case("bigbird's window is 4 blocks; it must be odd", |p| {
        p.pattern = Pattern::Bigbird { block: 64, window: 4, global: 2, random: 3, seed: 0 };
    });
    case("bigbird's block is 0", |p| {
        p.pattern = Pattern::Bigbird { block: 0, window: 3, global: 2, random: 3, seed: 0 };
    });
    case("softmax prefill with pattern `strided` is causal by definition; write `strided+causal`", |p| {
        p.pattern = Pattern::Strided { stride: 8 };
    });
    case("the stride is 0", |p| {
        p.pattern = Pattern::Strided { stride: 0 };
        p.causal = true;
    });
    case("fixed's summary (at most its block) is 9; valid is 1 to 8", |p| {
        p.pattern = Pattern::Fixed { block: 8, summary: 9 };
        p.causal = true;
    });
    case("linear attention has no pattern `window`; valid are full", |p| {
        p.mechanism = Mechanism::LINEAR;
        p.pattern = Pattern::Window { left: 1, right: 0 };
    });
    case("linear attention with pattern `full` has no phase `backward`; valid are prefill, decode", |p| {
        p.mechanism = Mechanism::LINEAR;
        p.phase = Phase::Backward;
    });
    case("linear decode with pattern `full` is causal by definition", |p| {
        p.mechanism = Mechanism::LINEAR;
        p.phase = Phase::Decode;
    });
    case("cannot be normalised", |p| {
        p.mechanism = Mechanism::Linear { feature_map: FeatureMap::Identity, normalised: true };
    });
    case("a scale changes nothing in normalised linear attention", |p| {
        p.mechanism = Mechanism::LINEAR;
        p.scale = Some(0.5);
    });
    case("linformer attention has no causal form", |p| {
        p.mechanism = Mechanism::LINFORMER;
        p.causal = true;
    });
    case("all sequences must have one length", |p| {
        p.mechanism = Mechanism::LINFORMER;
        p.seqlen_q = Lengths::List(vec![1, 2]);
    });
    case("linformer's rank is 0", |p| p.mechanism = Mechanism::Linformer { rank: 0 });
    case("one KV head a query head, not 2 for 8", |p| p.mechanism = Mechanism::MLA);
    case("mla decode has 1 KV head", |p| {
        p.mechanism = Mechanism::MLA;
        p.phase = Phase::Decode;
    });
    case("mla decode with latent 512 and rope 64 has d576:512, not d32:32", |p| {
        p.mechanism = Mechanism::MLA;
        p.phase = Phase::Decode;
        p.heads_kv = 1;
    });
    case("a bias exists for softmax attention only, not for linear", |p| {
        p.mechanism = Mechanism::LINEAR;
        p.bias = Bias::Alibi;
    });
    case("a softcap exists for softmax attention only", |p| {
        p.mechanism = Mechanism::LINFORMER;
        p.softcap = Some(1.0);
    });
    case("a sink exists for softmax attention only", |p| {
        p.mechanism = Mechanism::LINEAR;
        p.sinks = true;
    });
    case("scale is 0", |p| p.scale = Some(0.0));
    case("scale is NaN", |p| p.scale = Some(f64::NAN));
    case("softcap is -1", |p| p.softcap = Some(-1.0));
    case("softmax backward has no KV cache to be paged", |p| {
        p.phase = Phase::Backward;
        p.kv_layout = KvLayout::Paged { page_size: 16 };
    });
    case("linear prefill has no KV cache, so no KV dtype of its own", |p| {
        p.mechanism = Mechanism::LINEAR;
        p.dtype_kv = Dtype::Bf16;
    });
    case("e4m3 is a dtype of keys and values only: queries have f32, f16, bf16; write for example `bf16+e4m3`", |p| {
        (p.dtype, p.dtype_kv) = (Dtype::E4m3, Dtype::E4m3);
    });
    case("softmax backward has no KV cache, so no KV dtype of its own", |p| {
        p.phase = Phase::Backward;
        p.dtype_kv = Dtype::E4m3;
    });
    case("the page size is 0", |p| p.kv_layout = KvLayout::Paged { page_size: 0 });
    case("more than a page id of 32 bits can name", |p| {
        p.batch = 65536;
        p.heads_q = 1;
        p.heads_kv = 1;
        p.head_dim_qk = 1;
        p.head_dim_v = 1;
        p.seqlen_q = Lengths::Same(1);
        p.seqlen_kv = Lengths::Same(1 << 17);
        p.layout = Layout::Thd;
        p.kv_layout = KvLayout::Paged { page_size: 1 };
    });
    case("deterministic=true belongs to backward", |p| p.deterministic = true);
    case("which no machine holds", |p| {
        p.batch = 65536;
        p.seqlen_q = Lengths::Same(1 << 24);
        p.seqlen_kv = Lengths::Same(1 << 24);
    });
    case("which no device finishes in a day", |p| {
        p.batch = 64;
        p.head_dim_qk = 1024;
        p.seqlen_q = Lengths::Same(1 << 24);
        p.seqlen_kv = Lengths::Same(1 << 24);
    });
    for (problem, expected) in cases {
        let error = problem.validate().expect_err(expected).to_string();
        assert!(error.contains(expected), "expected `{expected}`, got: {error}");
        assert!(!error.contains('\n'));
    }
}

#[test]
fn normalising_sets_causal_where_it_is_implied() {
    for pattern in [Pattern::Strided { stride: 4 }, Pattern::Fixed { block: 4, summary: 1 }] {
        assert!(AttentionProblem { pattern, ..base() }.normalise().causal);
    }
    let decode = AttentionProblem { mechanism: Mechanism::LINEAR, phase: Phase::Decode, ..base() };
    assert!(decode.normalise().causal);
    assert!(!base().normalise().causal);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 5000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_problem_is_judged_without_a_panic(problem in any_problem()) {
        let verdict = problem.validate();
        let is_legal = problem.legal().is_some();
        prop_assert!(is_legal || verdict.is_err());
        // Normalising helps with nothing but a missing `causal`.
        let normalised = AttentionProblem { causal: problem.causal, ..problem.clone().normalise() };
        prop_assert_eq!(normalised.scale.map(f64::to_bits), problem.scale.map(f64::to_bits));
        prop_assert_eq!(normalised.id(), problem.id());
    }
}
