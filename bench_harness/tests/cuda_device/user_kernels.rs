//! A kernel of one's own, from source, PTX and machine code; wrong, harmful and badly described.

use std::path::{Path, PathBuf};

use crate::emulator::{attnbench, compile, cuda_folder};
use crate::{dispositions, prefill, run, suite};

/// The example's manifest with small problems of its own.
fn manifest(folder: &Path, change: impl Fn(String) -> String) -> PathBuf {
    let text = std::fs::read_to_string(cuda_folder().join("examples/row_attention.toml")).expect("the example");
    let small = text.replace("h32:8", "h2:1").replace("q1024/k1024/d128", "q19/k23/d40").replace("k8192", "k33");
    let small = small.replace("@uniform:1-1024:s7", "@uniform:1-40:s7").replace("d128/", "d40/");
    assert_ne!(small, text, "the example's problems are those that are made small here");
    let path = folder.join("mine.toml");
    std::fs::write(&path, change(small)).expect("a temporary folder is writable");
    path
}

fn example() -> String {
    std::fs::read_to_string(cuda_folder().join("examples/row_attention.cu")).expect("the example")
}

fn write(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, text).expect("a temporary folder is writable");
    path.display().to_string()
}

fn count(record: &serde_json::Value, disposition: &str) -> usize {
    dispositions(record).iter().filter(|(_, what)| what == disposition).count()
}

const FAST: [&str; 2] = ["--rounds", "1"];

#[test]
fn the_example_is_measured_like_a_built_in() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let manifest = manifest(folder.path(), |text| text).display().to_string();
    let source = cuda_folder().join("examples/row_attention.cu").display().to_string();
    let files = ["--kernel-source", &source, "--kernel-manifest", &manifest];
    // The problems of its manifest.
    let (record, _) = run(folder.path(), &[&files[..], &FAST].concat(), &[], 0);
    assert_eq!(record["run"]["suite"], "row_attention");
    assert_eq!((dispositions(&record).len(), count(&record, "measured")), (4, 4), "{record}");
    // Beside the built-in kernels of a suite, on what both can do.
    let matrices = prefill("\"flash\"", "dtype = [\"bf16\", \"f32\"]\nseqlen = 33");
    let suite = suite(folder.path(), "", &matrices).display().to_string();
    let (record, _) = run(folder.path(), &[&[suite.as_str()], &files[..]].concat(), &[], 0);
    let expected =
        [("flash", "measured"), ("flash", "unsupported"), ("row_attention", "measured"), ("row_attention", "measured")];
    assert_eq!(dispositions(&record), expected.map(|(kernel, what)| (kernel.to_owned(), what.to_owned())));
}

#[test]
fn ptx_and_machine_code_are_loaded_as_they_are() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let manifest = manifest(folder.path(), |text| text).display().to_string();
    // Machine code is of one element type: f16 and f32 problems are not for it.
    let source = example().replace("ELEMENT", "Bf16");
    let ptx = write(folder.path(), "mine.ptx", &format!("// attnbench emulated PTX\n{source}"));
    let cu = write(folder.path(), "mine.cu", &source);
    let cubin = folder.path().join("mine.cubin");
    let include = format!("-I{}", cuda_folder().display());
    compile(&["-O2", "-march=native", "-w", "-DATTN_HOST_SHIM", &include, "-x", "c++", &cu], &cubin);
    for image in [&ptx, &cubin.display().to_string()] {
        let arguments = ["--kernel-source", image, "--kernel-manifest", &manifest];
        let (record, _) = run(folder.path(), &[&arguments[..], &FAST].concat(), &[], 0);
        assert_eq!(count(&record, "measured"), 4, "{image}: {record}");
        assert_eq!(record["cases"][0]["rounds"][0]["launches"][0]["entry"], "row_attention");
    }
}

#[test]
fn a_wrong_kernel_has_no_latency() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let manifest = manifest(folder.path(), |text| text).display().to_string();
    // The mask is off by one.
    let source = write(folder.path(), "mine.cu", &example().replace("len_kv - len_q + 1", "len_kv - len_q"));
    let arguments = ["--kernel-source", &source, "--kernel-manifest", &manifest];
    let (record, _) = run(folder.path(), &[&arguments[..], &FAST].concat(), &[], 5);
    assert_eq!((count(&record, "incorrect"), count(&record, "measured")), (2, 2), "{record}");
    assert_eq!(record["cases"][0]["rounds"][0]["device_ns"], serde_json::json!([]));
}

#[test]
fn changed_inputs_are_noticed_on_the_device() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let manifest = manifest(folder.path(), |text| text).display().to_string();
    // Right once, and wrong for whoever calls again.
    let change =
        "if (causal) store(Global<Storage>{const_cast<Storage *>(q.pointer)}, row * dim, narrow<ELEMENT>(7.0f));";
    let source = write(folder.path(), "mine.cu", &example().replace("// A row that sees nothing is zero.", change));
    let arguments = ["--kernel-source", &source, "--kernel-manifest", &manifest];
    let (record, _) = run(folder.path(), &[&arguments[..], &FAST].concat(), &[], 5);
    assert_eq!((count(&record, "incorrect"), count(&record, "measured")), (2, 2), "{record}");
    assert_eq!(record["cases"][0]["reason"], "the kernel changed its inputs");
}

#[test]
fn an_illegal_address_costs_one_case() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let manifest = manifest(folder.path(), |text| text).display().to_string();
    // Causal problems write behind the output: after that, CUDA fails for as long as the process lives.
    let harmful = example().replace("store(o, row * dim + at,", "store(o, row * dim + at + causal * 1000000000,");
    let source = write(folder.path(), "mine.cu", &harmful);
    let arguments = ["--kernel-source", &source, "--kernel-manifest", &manifest];
    let (record, _) = run(folder.path(), &[&arguments[..], &FAST].concat(), &[], 5);
    assert_eq!((count(&record, "crashed"), count(&record, "measured")), (2, 2), "{record}");
    let reason = record["cases"][0]["reason"].as_str().expect("a reason");
    assert!(reason.contains("CUDA_ERROR_ILLEGAL_ADDRESS"), "{reason}");
    // A source that does not compile costs its cases, not the run, and the compiler's words are there.
    let broken = write(folder.path(), "mine.cu", &example().replace("f32 norm =", "f32 norm +=;"));
    let arguments = ["--kernel-source", &broken, "--kernel-manifest", &manifest];
    let (record, _) = run(folder.path(), &[&arguments[..], &FAST].concat(), &[], 5);
    assert_eq!(count(&record, "crashed"), 4);
    assert!(record["cases"][0]["reason"].as_str().is_some_and(|reason| reason.contains("norm")), "{record}");
}

#[test]
fn manifests_are_untrusted() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let source = cuda_folder().join("examples/row_attention.cu").display().to_string();
    let refusal = |source: &str, change: &dyn Fn(String) -> String| {
        let manifest = manifest(folder.path(), change).display().to_string();
        let assert = attnbench()
            .args(["run", "--kernel-source", source, "--kernel-manifest", &manifest, "--dry-run"])
            .current_dir(folder.path())
            .assert()
            .code(2);
        String::from_utf8_lossy(&assert.get_output().stderr).into_owned()
    };
    let replaced = |from: &'static str, to: &'static str| {
        move |text: String| {
            assert!(text.contains(from), "{from}");
            text.replace(from, to)
        }
    };
    for (from, to, part) in [
        ("name = \"row_attention\"", "name = \"Row Attention\"", "`name`: name `Row Attention`"),
        ("name = \"row_attention\"", "name = \"flash\"", "a built-in kernel `flash`"),
        ("summary =", "summery =", "unknown field `summery`"),
        ("dtype = [\"f32\", ", "dtype = [\"f64\", ", "unknown variant `f64`"),
        ("entry = \"row_attention\"", "entry = \"row; rm\"", "no name of a C function"),
        ("block = [\"128\"]", "block = []", "`block` has 0 entries"),
        ("h2:1/q19/k23", "h2:0/q19/k23", "`problems`"),
        ("name = \"row_attention\"", "name = ", "expected"),
    ] {
        let error = refusal(&source, &replaced(from, to));
        assert!(error.contains(part), "{to}: {error}");
        assert!(error.contains("mine.toml") || error.contains("manifest"), "{to}: {error}");
    }
    let as_it_is = |text: String| text;
    assert!(refusal("mine.txt", &as_it_is).contains("mine.txt"));
    let too_large = |text: String| format!("{text}\n#{}", "x".repeat(70_000));
    assert!(refusal(&source, &too_large).contains("larger than 65536 bytes"));
    // A ragged batch is only for a kernel that says so.
    let manifest_file = manifest(folder.path(), replaced("\"ragged\"", "\"softcap\"")).display().to_string();
    let arguments = ["--kernel-source", &source, "--kernel-manifest", &manifest_file];
    let (record, _) = run(folder.path(), &[&arguments[..], &FAST].concat(), &[], 0);
    assert_eq!(record["cases"][3]["disposition"], "unsupported");
    assert_eq!(record["cases"][3]["reason"], "ragged: the manifest of row_attention says no");
    // What only a problem's sizes show is the case's to say.
    for (from, to, part) in [
        ("block = [\"128\"]", "block = [\"seqlen_q * 100\"]", "`seqlen_q * 100` is 1900, beyond 1024"),
        ("ceil_div(batch * seqlen_q * heads_q, 4)", "seqlen_q / (batch - 1)", "divides by zero"),
        ("\"f32:scale\"", "\"f32:seqlen_q\"", "f32: takes"),
        ("\"i32:causal\"", "\"bias\"", "the problem has no such tensor"),
        ("\"head_dim_qk <= 128\"", "\"head_dim <= 128\"", "`head_dim` is not known"),
    ] {
        let manifest = manifest(folder.path(), replaced(from, to)).display().to_string();
        let arguments = ["--kernel-source", &source, "--kernel-manifest", &manifest];
        let (record, _) = run(folder.path(), &[&arguments[..], &FAST].concat(), &[], 5);
        let reason = record["cases"][0]["reason"].as_str().unwrap_or_default();
        assert!(reason.contains(part), "{to}: {reason}");
    }
}
