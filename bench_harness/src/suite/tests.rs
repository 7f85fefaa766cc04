use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use attn_kernels::kernel::{KernelError, Plan, PlanContext};
use attn_kernels::problem::{AttentionProblem, Lengths, Pattern, Phase};
use proptest::prelude::*;

use super::*;
use crate::report::listing;

/// A kernel that computes one pattern only.
struct Only(&'static str, &'static str);

impl Kernel for Only {
    fn name(&self) -> &'static str {
        self.0
    }

    fn summary(&self) -> &'static str {
        "for tests"
    }

    fn supports(&self, problem: &AttentionProblem) -> Result<(), KernelError> {
        match problem.pattern.name() == self.1 {
            true => Ok(()),
            false => Err(KernelError::Unsupported(format!("{} has {} only", self.0, self.1))),
        }
    }

    fn plan(&self, _: &PlanContext<'_>) -> Result<Box<dyn Plan>, KernelError> {
        Err(KernelError::OutOfMemory { needed_bytes: 1_000_000, available_bytes: 0 })
    }
}

const KERNELS: &[&dyn Kernel] = &[&Only("dense", "full"), &Only("banded", "window")];
const ENVIRONMENT: Environment<'static> = Environment { kernels: KERNELS, threads: 2 };

fn parse(text: &str) -> Result<Suite, SuiteError> {
    Suite::parse("test", "test.toml", text.as_bytes(), &ENVIRONMENT)
}

/// A suite of one matrix with the keys that every matrix needs.
fn matrix(keys: &str) -> String {
    format!("description = \"d\"\n[[matrix]]\nname = \"m\"\nreason = \"r\"\n{keys}\n")
}

const SHAPE: &str = "kernels = \"dense\"\nheads = \"2:2\"\nseqlen = 64\nhead_dim = 32\n";

fn ids(keys: &str) -> Vec<String> {
    let suite = parse(&matrix(keys)).unwrap_or_else(|error| panic!("{error}"));
    suite.cases.iter().map(|planned| planned.case.id()).collect()
}

#[test]
fn axes_multiply_in_a_fixed_order() {
    let keys =
        "kernels = [\"dense\", \"banded\"]\nseqlen = [64, 128]\nhead_dim = 32\nheads = 2\ncausal = [false, true]";
    let expected = [
        "cpu/dense/softmax/prefill/full/f32/b1/h2:2/q64/k64/d32",
        "cpu/banded/softmax/prefill/full/f32/b1/h2:2/q64/k64/d32",
        "cpu/dense/softmax/prefill/full/f32/b1/h2:2/q128/k128/d32",
        "cpu/banded/softmax/prefill/full/f32/b1/h2:2/q128/k128/d32",
        "cpu/dense/softmax/prefill/full+causal/f32/b1/h2:2/q64/k64/d32",
        "cpu/banded/softmax/prefill/full+causal/f32/b1/h2:2/q64/k64/d32",
        "cpu/dense/softmax/prefill/full+causal/f32/b1/h2:2/q128/k128/d32",
        "cpu/banded/softmax/prefill/full+causal/f32/b1/h2:2/q128/k128/d32",
    ];
    assert_eq!(ids(keys), expected);
    let mut lines: Vec<&str> = keys.lines().collect();
    lines.reverse();
    assert_eq!(ids(&lines.join("\n")), expected, "the order of keys changes nothing");
}

#[test]
fn ranges_and_ties_and_lists_of_lengths() {
    let count = |lengths: &str| ids(&format!("kernels = \"dense\"\nheads = 2\nhead_dim = 32\n{lengths}")).len();
    assert_eq!(count("seqlen = { pow2 = [64, 1024] }"), 5);
    assert_eq!(count("seqlen = { from = 100, to = 350, step = 100 }"), 3);
    assert_eq!(count("seqlen = [1, { pow2 = [64, 128] }, 64]"), 3, "an equal case is planned once");
    assert_eq!(count("shapes = [{ batch = 4, seqlen = 64 }, { batch = 2, seqlen = 128 }]\ncausal = [true, false]"), 4);
    let id = |lengths: &str| ids(&format!("kernels = \"dense\"\nheads = 2\nhead_dim = 32\n{lengths}")).remove(0);
    assert_eq!(
        id("batch = 2\nseqlen_q = [[3, 5]]\nseqlen_kv = \"@uniform:1-9:s7\""),
        "cpu/dense/softmax/prefill/full/f32/b2/h2:2/q@list:3,5/k@uniform:1-9:s7/d32"
    );
}

#[test]
fn phases_read_their_lengths() {
    let id = |lengths: &str| ids(&format!("kernels = \"dense\"\nheads = 2\nhead_dim = 32\n{lengths}")).remove(0);
    assert!(id("phase = \"decode\"\nseqlen = 64").contains("/q1/k64/"));
    assert!(id("phase = \"decode\"\nseqlen_q = 4\nseqlen_kv = 64").contains("/q4/k64/"));
    assert!(id("phase = \"append\"\nseqlen_q = 8\nseqlen_kv = 64").contains("/q8/k64/"));
    assert!(id("seqlen = 64").contains("/q64/k64/"));
}

#[test]
fn options_can_be_switched_off_in_a_list() {
    let keys = format!("{SHAPE}softcap = [\"none\", 50.0]\nscale = [\"none\", 0.5]\nsinks = [false, true]");
    assert_eq!(ids(&keys).len(), 8);
    let keys = format!("{}phase = \"decode\"\npage_size = [\"none\", 16]\nbias = [\"none\", \"alibi\"]", SHAPE);
    assert_eq!(ids(&keys).len(), 4);
}

#[test]
fn latent_attention_knows_its_dims() {
    let keys = "kernels = \"dense\"\nmechanism = \"mla\"\nheads = 16\nseqlen = 64\nphase = [\"prefill\", \"decode\"]";
    assert_eq!(
        ids(keys),
        [
            "cpu/dense/mla/prefill/full/f32/b1/h16:16/q64/k64/d192:128",
            "cpu/dense/mla/decode/full/f32/b1/h16:1/q1/k64/d576:512"
        ]
    );
}

#[test]
fn models_expand_to_their_layer_kinds() {
    let cases = ids("kernels = \"dense\"\nmodel = [\"gemma-2-9b\", \"llama-3-8b\"]\ndtype = \"bf16\"\nseqlen = 64");
    assert_eq!(
        cases,
        [
            "cpu/dense/softmax/prefill/window:4095,0+causal/bf16/b1/h16:8/q64/k64/d256/softcap=50",
            "cpu/dense/softmax/prefill/full+causal/bf16/b1/h16:8/q64/k64/d256/softcap=50",
            "cpu/dense/softmax/prefill/full+causal/bf16/b1/h32:8/q64/k64/d128",
        ]
    );
}

#[test]
fn every_model_makes_valid_problems() {
    for model in presets::MODELS {
        for phase in Phase::ALL.into_iter().filter(|phase| matches!(phase, Phase::Prefill | Phase::Decode)) {
            if !model.has_phase(phase, attn_kernels::problem::KvLayout::Contiguous) {
                continue;
            }
            let keys =
                format!("kernels = \"dense\"\nmodel = \"{}\"\nphase = \"{}\"\nseqlen = 256", model.name, phase.name());
            assert_eq!(ids(&keys).len(), model.layers.len(), "{}", model.name);
        }
    }
}

#[test]
fn all_kernels_are_those_that_support_the_problem() {
    let keys = SHAPE.replace("\"dense\"", "\"all\"") + "pattern = [\"full\", \"window:8\"]";
    let cases = ids(&keys);
    assert_eq!(cases.len(), 2);
    assert!(cases[0].starts_with("cpu/dense/") && cases[1].starts_with("cpu/banded/"));
}

#[test]
fn named_kernels_stay_planned_where_they_do_not_support_the_problem() {
    let suite = parse(&matrix(&(SHAPE.to_owned() + "pattern = \"window:8\""))).expect("a suite");
    let estimate = Estimate::of(&suite.cases[0], &ENVIRONMENT);
    assert_eq!(estimate.unsupported.as_deref(), Some("unsupported: dense has full only"));
}

#[test]
fn filters_and_settings_and_threads() {
    let text = "description = \"d\"\nseed = 7\n[measure]\nrounds = 3\nbudget_ms = 10\n[[matrix]]\nname = \"m\"\nreason = \"r\"\n\
                kernels = \"dense\"\nheads = 2\nseqlen = [64, 128, 256]\nhead_dim = 32\nthreads = [1, \"all\"]\n\
                include = [\"*/q64/*\", \"*/q128/*\"]\nexclude = \"*/k128/*\"\n[matrix.measure]\nmode = \"hot\"\nbudget_ms = 20\n";
    let suite = parse(text).expect("a suite");
    let seen: Vec<_> = suite.cases.iter().map(|case| (case.threads, case.settings.clone())).collect();
    let settings = MeasureSettings { mode: Mode::Hot, rounds: 3, budget_ms: 20, ..MeasureSettings::default() };
    assert_eq!(seen, [(1, settings.clone()), (2, settings)]);
    assert_eq!(suite.seed, 7);
    assert_eq!(suite.matrices, [MatrixInfo { name: "m".into(), reason: "r".into(), cases: 2 }]);
}

#[test]
fn skip_invalid_leaves_out_what_does_not_exist() {
    let keys =
        SHAPE.to_owned() + "mechanism = [\"softmax\", \"linformer\"]\ncausal = [false, true]\nskip_invalid = true";
    assert_eq!(ids(&keys).len(), 3);
}

/// One clear error with its place and the way out, for everything that a file can get wrong.
#[test]
fn errors() {
    let second = "[[matrix]]\nname = \"m\"\nreason = \"r\"\n";
    let with = |keys: &str| matrix(&(SHAPE.to_owned() + keys));
    let without =
        |key: &str| matrix(&SHAPE.lines().filter(|line| !line.starts_with(key)).collect::<Vec<_>>().join("\n"));
    let cases = [
        ("no TOML", "description = \"d\"\n[[matrix]\n".to_owned()),
        ("a key twice", with("heads = 2")),
        ("nested without end", format!("a = {}", "[".repeat(5000))),
        ("unknown suite key", "descripton = \"d\"".to_owned()),
        ("unknown matrix key", with("seqlens = 3")),
        ("unknown measure key", with("[matrix.measure]\nround = 3")),
        ("unknown shape key", with("shapes = [{ bacth = 3 }]")),
        ("unknown kernel", with("").replace("dense", "densse")),
        ("unknown model", matrix("kernels = \"dense\"\nmodel = \"llama-3-9b\"\nseqlen = 64")),
        ("unknown pattern", with("pattern = \"windows:3\"")),
        ("unknown mechanism", with("mechanism = \"sofmax\"")),
        ("unknown dtype", with("dtype = \"fp16\"")),
        ("unknown phase", with("phase = [\"prefill\", \"decoding\"]")),
        ("no description", "[[matrix]]\nname = \"m\"".to_owned()),
        ("empty description", "description = \" \"".to_owned()),
        ("no reason", with("").replace("reason = \"r\"\n", "")),
        ("no name", with("").replace("name = \"m\"\n", "")),
        ("bad name", with("").replace("name = \"m\"", "name = \"M m\"")),
        ("no kernels", without("kernels")),
        ("no heads", without("heads")),
        ("no length", without("seqlen")),
        ("no head dim", without("head_dim")),
        ("empty suite", "description = \"d\"".to_owned()),
        ("empty axis", with("dtype = []")),
        ("empty matrix", with("exclude = \"*\"")),
        ("glob without a match", with("exclude = \"*/decode/*\"")),
        ("broken glob", with("include = \"[\"")),
        ("same name twice", with("") + second + SHAPE),
        ("too many cases", with("dtype = [\"f32\", \"f16\"]\nbatch = { from = 1, to = 5001, step = 1 }")),
        ("too long a range", with("batch = { from = 1, to = 60000, step = 1 }")),
        ("too many in all", {
            let many = SHAPE.to_owned() + "batch = { from = 1, to = 9999, step = 1 }\n";
            let matrices = (0..6).map(|i| second.replace("\"m\"", &format!("\"m{i}\"")) + &many);
            format!("description = \"d\"\n{}", matrices.collect::<String>())
        }),
        ("backward range", with("batch = { from = 3, to = 1, step = 1 }")),
        ("pow2 of others", without("seqlen").replace("heads", "seqlen = { pow2 = [100, 200] }\nheads")),
        ("unknown range", with("batch = { first = 3, last = 1 }")),
        ("wrong type", with("batch = \"3\"")),
        ("wrong type in list", with("causal = [true, 1]")),
        ("table for a matrix", "description = \"d\"\n[matrix]\nname = \"m\"".to_owned()),
        ("negative", with("batch = -1")),
        ("absurd", with("batch = 1000000000000")),
        ("beyond 64 bits", with("batch = 99999999999999999999999")),
        ("not finite", with("scale = nan")),
        ("fraction of a token", without("seqlen") + "seqlen = 1.5"),
        ("length zero", without("seqlen") + "seqlen = 0"),
        ("heads that do not divide", without("heads") + "heads = \"32:5\""),
        ("heads that are none", without("heads") + "heads = \"32-8\""),
        ("impossible combination", with("mechanism = \"linformer\"\ncausal = true")),
        ("nothing but impossible", with("mechanism = \"linformer\"\ncausal = true\nskip_invalid = true")),
        ("an encoder decodes", matrix("kernels = \"dense\"\nmodel = \"bert-base\"\nphase = \"decode\"\nseqlen = 64")),
        ("a model and its heads", matrix("kernels = \"dense\"\nmodel = \"gpt-2\"\nheads = 2\nseqlen = 64")),
        ("lengths twice", with("seqlen_q = 3")),
        ("lengths for append", with("phase = \"append\"")),
        ("an axis in shapes and beside", with("shapes = [{ batch = 1, seqlen = 3 }]")),
        ("several in a shape", with("shapes = [{ batch = [1, 2] }]")),
        ("no kernel supports it", with("pattern = \"strided:4\"").replace("\"dense\"", "\"all\"")),
        ("all kernels of others", with("providers = [\"torch\"]").replace("\"dense\"", "\"all\"")),
        ("mode twice", with("mode = \"hot\"\n[matrix.measure]\nmode = \"cold\"")),
        ("samples", with("[matrix.measure]\nmin_samples = 10\nmax_samples = 5")),
        ("interval", with("[matrix.measure]\ntarget_ci = 5")),
    ];
    let mut all = String::new();
    for (label, text) in cases {
        match parse(&text) {
            Ok(suite) => panic!("{label}: {} cases instead of an error", suite.cases.len()),
            Err(error) => {
                let error = error.to_string();
                assert!(!error.contains('\n') && error.len() < 1500, "{label}: {error}");
                let _ = writeln!(all, "{label}\n  {error}");
            }
        }
    }
    insta::assert_snapshot!(all);
}

#[test]
fn files_have_limits() {
    let parse = |bytes: &[u8]| Suite::parse("x", "x.toml", bytes, &ENVIRONMENT).expect_err("an error").to_string();
    assert_eq!(
        parse(b"a = 1\nb = \"\xff\""),
        "reading suite `x.toml`, line 2: the line is not UTF-8; suites are TOML files"
    );
    assert_eq!(
        parse(&vec![b'#'; (1 << 20) + 1]),
        "reading suite `x.toml`: the file is larger than 1048576 bytes; split the suite"
    );
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("mine.toml"), matrix(SHAPE)).expect("writing");
    std::fs::write(dir.path().join("My Suite.toml"), matrix(SHAPE)).expect("writing");
    let dirs = [dir.path().to_owned()];
    assert_eq!(Suite::load_in(&find("mine", &dirs).expect("found"), &ENVIRONMENT).expect("a suite").name, "mine");
    let error = find("mime", &dirs).expect_err("no such suite").to_string();
    assert!(error.contains("did you mean `mine`?"), "{error}");
    let error = Suite::load_in(&dir.path().join("My Suite.toml"), &ENVIRONMENT).expect_err("a bad name").to_string();
    assert!(error.contains("rename it"), "{error}");
    assert!(Suite::load_in(dir.path(), &ENVIRONMENT).is_err(), "a folder is no suite");
    assert!(list(&dir.path().join("none")).is_err());
}

fn suites_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../suites")
}

/// Every shipped suite, with the built-in kernels.
fn shipped() -> Vec<Suite> {
    let environment = Environment { threads: 2, ..Environment::default() };
    let paths = list(&suites_dir()).expect("suites");
    paths.iter().map(|path| Suite::load_in(path, &environment).unwrap_or_else(|error| panic!("{error}"))).collect()
}

#[test]
fn shipped_suites_load_and_their_kernels_support_their_cases() {
    let suites = shipped();
    let names: Vec<&str> = suites.iter().map(|suite| suite.name.as_str()).collect();
    let expected = [
        "ci",
        "cuda_correctness",
        "cuda_peers",
        "decode",
        "exponents",
        "head_sharing",
        "linear",
        "long_context",
        "nightly",
        "peers",
        "prefill",
        "quickstart",
        "sparse",
        "tune",
    ];
    assert_eq!(names, expected);
    for suite in &suites {
        for planned in &suite.cases {
            let id = planned.case.id();
            if planned.case.provider == "cpu" {
                let kernel = attn_kernels::cpu::find(&planned.case.kernel).unwrap_or_else(|| panic!("{id}"));
                assert!(kernel.supports(&planned.case.problem).is_ok(), "{}: {id}", suite.name);
            }
            if planned.case.provider == "cuda" {
                let kernel = attn_kernels::cuda::find(&planned.case.kernel).unwrap_or_else(|| panic!("{id}"));
                assert!(kernel.supports(&planned.case.problem).is_ok(), "{}: {id}", suite.name);
            }
            assert_eq!(id.parse::<Case>().expect("an id"), planned.case, "{id}");
        }
        for matrix in &suite.matrices {
            assert!(matrix.cases > 0, "{}: {} repeats earlier matrices", suite.name, matrix.name);
        }
    }
}

#[test]
fn quickstart_and_ci_have_every_family_and_stay_small() {
    for (name, counts, has_every_dtype) in [("quickstart", 25..=32, true), ("ci", 30..=60, true)] {
        let suite = shipped().into_iter().find(|suite| suite.name == name).expect(name);
        assert!(counts.contains(&suite.cases.len()), "{name} has {} cases", suite.cases.len());
        let seen = |of: fn(&AttentionProblem) -> &'static str| -> BTreeSet<&str> {
            suite.cases.iter().map(|planned| of(&planned.case.problem)).collect()
        };
        assert_eq!(seen(|p| p.mechanism.name()).len(), 4, "{name}: mechanisms");
        assert_eq!(seen(|p| p.pattern.name()).len(), 7, "{name}: patterns");
        assert_eq!(seen(|p| p.phase.name()).len(), 4, "{name}: phases");
        assert_eq!(seen(|p| p.dtype.name()).len() == 3, has_every_dtype, "{name}: dtypes");
        let kernels: BTreeSet<&str> = suite.cases.iter().map(|planned| planned.case.kernel.as_str()).collect();
        for kernel in attn_kernels::cpu::KERNELS {
            assert!(kernels.contains(kernel.name()), "{name} has no case of {}", kernel.name());
        }
        let groups =
            |group: fn(&AttentionProblem) -> bool| suite.cases.iter().any(|planned| group(&planned.case.problem));
        assert!(groups(|p| p.phase == Phase::Decode && p.heads_q == p.heads_kv), "{name}: MHA decode");
        assert!(groups(|p| p.phase == Phase::Decode && p.heads_kv > 1 && p.heads_q > p.heads_kv), "{name}: GQA decode");
        assert!(groups(|p| p.pattern == Pattern::Full && p.heads_q > 1 && p.heads_kv == 1), "{name}: MQA");
        let flops: Vec<u64> =
            suite.cases.iter().map(|planned| attn_kernels::work::Work::of(&planned.case.problem).flops).collect();
        // At 5 GFLOP/s, half of what one slow core does, a call takes at most 60 ms.
        assert!(flops.iter().all(|&flops| flops <= 300_000_000), "{name}: a case is too large: {flops:?}");
        let bytes = suite.cases.iter().map(|planned| attn_kernels::input::tensor_bytes(&planned.case.problem));
        assert!(bytes.max() <= Some(64 << 20), "{name}: a case is too large");
    }
}

/// suites/README.md says why each matrix is there, in the words of the suite itself.
#[test]
fn readme_gives_every_reason() {
    let readme = std::fs::read_to_string(suites_dir().join("README.md")).expect("suites/README.md");
    for suite in shipped() {
        let heading = format!("\n## {}\n", suite.name);
        let start = readme.find(&heading).unwrap_or_else(|| panic!("suites/README.md has no section `{}`", suite.name));
        let rest = &readme[start + heading.len()..];
        let section = &rest[..rest.find("\n## ").unwrap_or(rest.len())];
        assert!(section.contains(&suite.description), "suites/README.md: `{}`: {}", suite.name, suite.description);
        for matrix in &suite.matrices {
            let row = format!("| `{}` | {} | {} |", matrix.name, matrix.cases, matrix.reason);
            assert!(section.contains(&row), "suites/README.md, section `{}`, needs the row\n{row}", suite.name);
        }
        assert_eq!(
            section.matches("\n| `").count(),
            suite.matrices.len(),
            "section `{}` has rows too many",
            suite.name
        );
    }
}

#[test]
fn listings() {
    let text = "description = \"Which of the two is faster, and by how much, on the shapes that the newest models have?\"\n\
                [[matrix]]\nname = \"dense\"\nreason = \"The baseline of the field.\"\nkernels = \"dense\"\nheads = \"32:8\"\n\
                seqlen = { pow2 = [1024, 4096] }\nhead_dim = 128\ncausal = [false, true]\ndtype = \"bf16\"\n\
                [[matrix]]\nname = \"foreign\"\nreason = \"A kernel whose workspace is not known.\"\nproviders = \"mine\"\n\
                kernels = \"theirs\"\nheads = 8\nseqlen = \"@uniform:1-512:s7\"\nbatch = 4\nhead_dim = 64\nlayout = \"thd\"\n";
    let suite = parse(text).expect("a suite");
    let estimates: Vec<Estimate> = suite.cases.iter().map(|planned| Estimate::of(planned, &ENVIRONMENT)).collect();
    let mut all = String::new();
    for width in [80, 100] {
        let tables = [listing::suites(std::slice::from_ref(&suite), width), listing::plan(&suite, &estimates, width)];
        for table in &tables {
            let widest = table.lines().map(|line| line.chars().count()).max().unwrap_or(0);
            assert!(widest <= width as usize, "{widest} columns of {width}:\n{table}");
        }
        // Case ids of a suite's own listing are never broken, so its lines may be longer.
        for listing in [&tables[0], &listing::suite(&suite, width), &tables[1]] {
            let _ = writeln!(all, "{listing}\n");
        }
    }
    insta::assert_snapshot!(all);
}

#[test]
fn kernel_listing_fits() {
    let mut kernels: Vec<listing::KernelListing> = attn_kernels::cpu::KERNELS
        .iter()
        .map(|kernel| listing::KernelListing {
            provider: "cpu",
            name: kernel.name(),
            summary: kernel.summary(),
            multiplies_in: None,
            supports: support(&|problem| kernel.supports(problem).is_ok()),
        })
        .collect();
    kernels.extend(attn_kernels::cuda::CUDA_KERNELS.iter().map(|kernel| listing::KernelListing {
        provider: "cuda",
        name: kernel.name(),
        summary: kernel.summary(),
        multiplies_in: listing::multiplies_in(*kernel),
        supports: support(&|problem| kernel.supports(problem).is_ok()),
    }));
    assert!(kernels.iter().all(|kernel| !kernel.supports.is_empty()));
    for width in [80, 100] {
        let listing = listing::kernels(&kernels, width);
        assert!(listing.lines().all(|line| line.chars().count() <= width as usize), "{listing}");
        for phase in Phase::ALL {
            assert!(listing.contains(phase.name()), "{} is broken:\n{listing}", phase.name());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = Suite::parse("x", "x.toml", &bytes, &ENVIRONMENT);
    }

    #[test]
    fn random_values_never_panic(
        key in prop::sample::select(vec!["model", "mechanism", "pattern", "phase", "dtype", "batch", "heads", "seqlen",
            "seqlen_q", "head_dim", "head_dim_v", "scale", "softcap", "bias", "page_size", "mode", "threads", "shapes",
            "kernels", "providers", "include", "exclude", "measure", "reason", "name"]),
        value in prop_oneof![
            "[a-z0-9:,=@.+-]{0,20}".prop_map(|text| format!("\"{text}\"")),
            any::<i64>().prop_map(|number| number.to_string()),
            any::<f64>().prop_map(|number| format!("{number:?}")),
            "[\\[\\]{}a-z0-9=,\" .-]{0,40}",
        ],
    ) {
        let _ = parse(&matrix(&format!("{key} = {value}\n{SHAPE}")));
        let _ = parse(&matrix(&format!("kernels = \"dense\"\n{key} = {value}")));
    }

    #[test]
    fn damaged_suites_never_panic(at in any::<prop::sample::Index>(), with in any::<u8>(), length in 0usize..30) {
        let mut bytes = include_bytes!("../../../suites/quickstart.toml").to_vec();
        let at = at.index(bytes.len());
        let end = (at + length).min(bytes.len());
        bytes.splice(at..end, [with]);
        let _ = Suite::parse("x", "x.toml", &bytes, &Environment { threads: 2, ..Environment::default() });
    }

    #[test]
    fn axes_round_trip(
        lengths in proptest::collection::vec(1usize..10_000, 1..4),
        dims in proptest::collection::vec(1usize..=1024, 1..3),
        groups in proptest::collection::vec((1usize..=32, 1usize..=32), 1..3),
        batches in proptest::collection::vec(1usize..1000, 1..3),
        causal in any::<bool>(),
    ) {
        let heads: Vec<String> = groups.iter().map(|(kv, group)| format!("{}:{kv}", kv * group)).collect();
        let keys = format!(
            "kernels = \"dense\"\nseqlen = {lengths:?}\nhead_dim = {dims:?}\nheads = {heads:?}\nbatch = {batches:?}\ncausal = {causal}"
        );
        let suite = parse(&matrix(&keys)).expect("a suite");
        let mut expected = BTreeSet::new();
        for length in &lengths {
            for dim in &dims {
                for (kv, group) in &groups {
                    for batch in &batches {
                        expected.insert((*length, *dim, kv * group, *kv, *batch));
                    }
                }
            }
        }
        let mut seen = BTreeSet::new();
        for planned in &suite.cases {
            let problem = &planned.case.problem;
            prop_assert_eq!(&problem.seqlen_q, &problem.seqlen_kv);
            let Lengths::Same(length) = problem.seqlen_q else { panic!("one length") };
            prop_assert_eq!(problem.causal, causal);
            prop_assert_eq!(problem.head_dim_qk, problem.head_dim_v);
            prop_assert!(seen.insert((length, problem.head_dim_qk, problem.heads_q, problem.heads_kv, problem.batch)));
            prop_assert_eq!(&planned.case.id().parse::<Case>().expect("an id"), &planned.case);
        }
        prop_assert_eq!(seen, expected);
    }
}
