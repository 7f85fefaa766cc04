//! Workers in Python. What needs numpy or a framework runs where `.venv/bin/python` (ci/peers.sh) or `python3` has it,
//! and says so where not.

mod support;

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use support::{attnbench, record};

/// The workers for other frameworks, each with a kernel of its own.
const WORKERS: [(&str, &str); 6] = [
    ("cudnn_worker.py", "sdpa"),
    ("flash_attn_worker.py", "fa2"),
    ("ggml_worker.py", "flash_attn_ext"),
    ("jax_worker.py", "xla"),
    ("onnxruntime_worker.py", "attention"),
    ("torch_worker.py", "sdpa"),
];

const QUICK: &str = "rounds = 1\nmin_samples = 2\nmax_samples = 3\nbudget_ms = 1\ntimeout_s = 120";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in a workspace").to_owned()
}

fn adapter(file: &str) -> PathBuf {
    root().join("kernels/adapters").join(file)
}

/// The Python that `--provider torch` is run with here, where these modules can be imported in it; None, with a word why,
/// where not.
fn python_with(modules: &[&str]) -> Option<PathBuf> {
    let environment = root().join(".venv/bin/python");
    let python = if environment.exists() { environment } else { PathBuf::from("python3") };
    let has = |python: &Path| {
        let imports = modules.iter().map(|module| format!("import {module}\n")).collect::<String>();
        let status = Command::new(python).args(["-c", &imports]).stdout(Stdio::null()).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    };
    if has(&python) {
        return Some(python);
    }
    eprintln!("skipped: {} does not import {}; ci/peers.sh makes one that does", python.display(), modules.join(", "));
    None
}

/// What a worker, Python with these arguments, answers to these requests.
fn talk<A: AsRef<OsStr>>(python: &Path, arguments: impl IntoIterator<Item = A>, lines: &[String]) -> Vec<Value> {
    let mut worker = Command::new(python)
        .args(arguments)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the interpreter starts");
    let mut stdin = worker.stdin.take().expect("piped");
    stdin.write_all(lines.concat().as_bytes()).expect("the worker reads");
    drop(stdin);
    let answers = BufReader::new(worker.stdout.take().expect("piped"))
        .lines()
        .map(|line| serde_json::from_str(&line.expect("text")).expect("nothing but JSON on stdout"))
        .collect();
    assert!(worker.wait().expect("waiting").success());
    answers
}

fn request(id: u64, name: &str, more: Value) -> String {
    let mut request = json!({ "id": id, "request": name });
    request.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
    format!("{request}\n")
}

/// Runs a suite of these matrices, each a name and its axes, and returns its record.
fn measure(provider: &str, matrices: &[(&str, &str)]) -> Value {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (suite, out) = (folder.path().join("adapters.toml"), folder.path().join("record.json"));
    let name = provider.split('=').next().unwrap_or(provider);
    let mut text = format!("description = \"adapters\"\n\n[measure]\n{QUICK}\n");
    for (matrix, axes) in matrices {
        text += &format!(
            "\n[[matrix]]\nname = \"{matrix}\"\nreason = \"a test\"\nproviders = [\"{name}\"]\nthreads = 1\n{axes}\n"
        );
    }
    std::fs::write(&suite, text).expect("a temporary folder is writable");
    let _ = attnbench()
        .current_dir(root())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .args(["run", "--provider", provider, "--out"])
        .args([&out, &suite])
        .assert();
    record(&out)
}

/// All cases of a matrix came to this, and there are so many of them.
fn assert_all(record: &Value, matrix: &str, disposition: &str, count: usize) {
    let cases = record["cases"].as_array().expect("a list").iter().filter(|case| case["matrix"] == matrix);
    for case in cases.clone() {
        assert_eq!(case["disposition"], disposition, "{case:#}");
    }
    assert_eq!(cases.count(), count, "{matrix}");
}

/// Needs an interpreter and nothing else: `-S` hides every installed package, numpy included.
#[test]
fn without_numpy_every_line_gets_an_answer_that_says_so() {
    if python_with(&[]).is_none() {
        return;
    }
    for (file, _) in WORKERS {
        let script = adapter(file);
        let lines = [
            request(1, "hello", json!({ "protocol": [1, 0] })),
            "rubbish\n\n".to_owned(),
            request(3, "dance", json!({})),
            request(4, "measure", json!({})),
            "[5]\n".to_owned(),
            request(6, "shutdown", json!({})),
            request(7, "kernels", json!({})),
        ];
        let answers = talk(Path::new("python3"), [OsStr::new("-S"), script.as_os_str()], &lines);
        let ids: Vec<u64> = answers.iter().map(|answer| answer["id"].as_u64().expect("a number")).collect();
        assert_eq!(ids, [1, 0, 3, 4, 0, 6], "{file}: and nothing is read after shutdown");
        let error = |at: usize, field: &str| answers[at]["error"][field].as_str().unwrap_or_default().to_owned();
        assert_eq!(error(0, "kind"), "unsupported");
        assert!(error(0, "message").contains("numpy cannot be imported"), "{}", answers[0]);
        assert_eq!(error(1, "kind"), "invalid");
        assert!(error(2, "message").contains("`dance`"));
        assert_eq!(error(3, "message"), "no case is prepared");
        assert_eq!(error(4, "kind"), "invalid");
        assert!(answers[5]["ok"].is_object());
    }
}

#[test]
fn inputs_agree_bit_for_bit() {
    let Some(python) = python_with(&["numpy"]) else { return };
    let lines =
        [request(1, "hello", json!({ "protocol": [1, 0] })), request(2, "hello", json!({ "protocol": [2, 0] }))];
    let answers = talk(&python, [adapter("template.py")], &lines);
    assert_eq!(answers[0]["ok"]["golden_hash"], attn_kernels::input::golden_hash());
    assert_eq!(answers[1]["error"]["kind"], "unsupported");
}

/// Inputs of every layout, dtype and raggedness are right if what is computed from them is.
#[test]
fn the_template_is_measured() {
    let Some(python) = python_with(&["numpy"]) else { return };
    let provider = format!("mine='{}' '{}'", python.display(), adapter("template.py").display());
    let common = "kernels = \"softmax\"\nheads = \"4:2\"\nhead_dim = 16\ncausal = [false, true]\nlayout = [\"bshd\", \
                  \"bhsd\", \"thd\"]\n";
    let dense = format!("{common}seqlen = 67\ndtype = [\"f32\", \"f16\", \"bf16\"]");
    let ragged = format!("{common}batch = 4\nseqlen_q = [[1, 9, 30, 17]]\nseqlen_kv = [[40, 1, 7, 33]]");
    let refused = "kernels = [\"softmax\", \"other\"]\nheads = 2\nseqlen = 8\nhead_dim = 8\nsoftcap = 20";
    let record = measure(&provider, &[("dense", &dense), ("ragged", &ragged), ("refused", refused)]);
    assert_all(&record, "dense", "measured", 18);
    assert_all(&record, "ragged", "measured", 6);
    assert_all(&record, "refused", "unsupported", 2);
}

/// Kernels that cheat, in the words of this provider: a stale copy, changed inputs, prints, exceptions, no memory.
#[test]
fn tricks_are_caught_in_python_too() {
    let Some(python) = python_with(&["numpy"]) else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    for file in ["attnbench_worker.py", "attnbench_inputs.py", "template.py"] {
        std::fs::copy(adapter(file), folder.path().join(file)).expect("copying");
    }
    let script = folder.path().join("tricks.py");
    let source = r#"
import os, threading, time
from attnbench_worker import Provider, serve
from template import Softmax

class Trick(Softmax):
    def __init__(self, name, change):
        self.name, self.change = name, change
    def bind(self, problem, inputs, outputs, threads):
        honest = super().bind(problem, inputs, outputs, threads)
        return lambda: self.change(honest, inputs, outputs)

done = []
def once(honest, inputs, outputs):
    if len(done) < 2: honest(); done.append({n: a.copy() for n, a in outputs.items()})
    else:
        for name, array in outputs.items(): array[...] = done[0][name]
def mutate(honest, inputs, outputs):
    honest(); inputs["q"][...] = 0
def late(honest, inputs, outputs):
    threading.Thread(target=lambda: (time.sleep(0.05), honest())).start()
def noisy(honest, inputs, outputs):
    print("hello"); os.system("echo hello"); honest()
def fails(honest, inputs, outputs):
    raise ValueError("no such tile")
def full(honest, inputs, outputs):
    raise MemoryError

class Tricks(Provider):
    name = "tricks"
    kernels = tuple(Trick(f.__name__, f) for f in (once, mutate, late, noisy, fails, full))
serve(Tricks())
"#;
    std::fs::write(&script, source).expect("writing");
    let provider = format!("tricks='{}' '{}'", python.display(), script.display());
    let kernels = "kernels = [\"once\", \"mutate\", \"late\", \"noisy\", \"fails\", \"full\"]";
    let record = measure(&provider, &[("tricks", &format!("{kernels}\nheads = 2\nseqlen = 20\nhead_dim = 8"))]);
    for (kernel, disposition, reason) in [
        ("once", "incorrect", "timing"),
        ("mutate", "incorrect", "changed its inputs"),
        ("late", "incorrect", "after the call had returned"),
        ("noisy", "measured", ""),
        ("fails", "crashed", "ValueError: no such tile"),
        ("full", "out_of_memory", "MemoryError"),
    ] {
        let case = support::case(&record, kernel);
        assert_eq!(case["disposition"], disposition, "{kernel}: {case:#}");
        assert!(case["reason"].as_str().unwrap_or_default().contains(reason), "{kernel}: {case:#}");
    }
}

#[test]
fn pytorch_agrees_with_the_oracle() {
    if python_with(&["numpy", "torch"]).is_none() {
        return;
    }
    let common = "dtype = [\"f32\", \"bf16\"]\nhead_dim = 32\ncausal = true\n";
    let matrices = [
        ("forward", "kernels = [\"sdpa\", \"sdpa_flash\", \"sdpa_math\", \"aten_flash\"]\nheads = [\"4:4\", \"4:2\"]\nseqlen = 67"),
        (
            "append",
            "kernels = \"sdpa\"\nheads = \"4:2\"\nphase = \"append\"\nseqlen_q = 5\nseqlen_kv = 30\nlayout = [\"bhsd\", \
             \"thd\"]\nalign = [\"bottom_right\", \"top_left\"]",
        ),
        ("decode", "kernels = \"sdpa_flash\"\nheads = \"4:1\"\nphase = \"decode\"\nseqlen = 33"),
        (
            "backward",
            "kernels = [\"sdpa_flash\", \"sdpa_math\", \"aten_flash\"]\nheads = \"4:2\"\nphase = \"backward\"\nseqlen = 33",
        ),
        ("refused", "kernels = [\"sdpa_efficient\", \"sdpa_cudnn\"]\nheads = 2\nseqlen = 8"),
    ]
    .map(|(name, axes)| (name, format!("{common}{axes}")));
    let record = measure("torch", &matrices.each_ref().map(|(name, axes)| (*name, axes.as_str())));
    for (matrix, disposition, count) in [
        ("forward", "measured", 16),
        ("append", "measured", 8),
        ("decode", "measured", 2),
        ("backward", "measured", 6),
        ("refused", "unsupported", 4),
    ] {
        assert_all(&record, matrix, disposition, count);
    }
    let reason = support::case(&record, "sdpa_cudnn")["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("the device is the CPU"), "{reason}");
}

#[test]
fn onnx_runtime_agrees_with_the_oracle() {
    if python_with(&["numpy", "onnx", "onnxruntime"]).is_none() {
        return;
    }
    let common = "head_dim = 32\n";
    let matrices = [
        ("prefill", "kernels = [\"attention\", \"mha\", \"gqa\"]\nheads = 4\nseqlen = 67"),
        (
            "decode",
            "kernels = [\"attention\", \"gqa\"]\nheads = \"4:2\"\nphase = \"decode\"\nbatch = 2\nseqlen = 33\nlayout = \
             \"bhsd\"",
        ),
        ("bias", "kernels = \"attention\"\nheads = 2\nseqlen = 21\nbias = [\"bool\", \"additive\"]"),
        ("window", "kernels = \"gqa\"\nheads = 2\nseqlen = 50\npattern = \"window:7\""),
        ("backward", "kernels = \"attention\"\nheads = 2\nseqlen = 8\nphase = \"backward\""),
    ]
    .map(|(name, axes)| (name, format!("{common}causal = {}\n{axes}", name != "bias")));
    let record = measure("onnxruntime", &matrices.each_ref().map(|(name, axes)| (*name, axes.as_str())));
    for (matrix, disposition, count) in [
        ("prefill", "measured", 3),
        ("decode", "measured", 2),
        ("bias", "measured", 2),
        ("window", "measured", 1),
        ("backward", "unsupported", 1),
    ] {
        assert_all(&record, matrix, disposition, count);
    }
}

#[test]
fn jax_agrees_with_the_oracle() {
    if python_with(&["numpy", "jax"]).is_none() {
        return;
    }
    let common = "kernels = \"xla\"\nhead_dim = 32\n";
    let matrices = [
        ("prefill", "heads = \"4:2\"\nseqlen = 67\ncausal = true\nlayout = [\"bshd\", \"bhsd\", \"thd\"]"),
        ("bf16", "heads = 2\nseqlen = 1\ndtype = \"bf16\""),
        (
            "append",
            "heads = \"4:2\"\nphase = \"append\"\nseqlen_q = 5\nseqlen_kv = 30\nalign = [\"bottom_right\", \"top_left\"]",
        ),
        ("window", "heads = 2\nseqlen = 50\npattern = \"window:9,4\"\ncausal = [false, true]"),
        ("bias", "heads = 2\nseqlen = 21\nbias = [\"bool\", \"additive\"]"),
        ("backward", "heads = \"4:2\"\nphase = \"backward\"\nseqlen = 33\nlayout = [\"bhsd\", \"thd\"]"),
        ("refused", "heads = 2\nseqlen_q = 9\nseqlen_kv = 5\ncausal = true"),
    ]
    .map(|(name, axes)| (name, format!("{common}{axes}")));
    let record = measure("jax", &matrices.each_ref().map(|(name, axes)| (*name, axes.as_str())));
    for (matrix, disposition, count) in [
        ("prefill", "measured", 3),
        ("bf16", "measured", 1),
        ("append", "measured", 2),
        ("window", "measured", 2),
        ("bias", "measured", 2),
        ("backward", "measured", 2),
        ("refused", "unsupported", 1),
    ] {
        assert_all(&record, matrix, disposition, count);
    }
}

#[test]
fn ggml_agrees_with_the_oracle() {
    if python_with(&["numpy", "pywhispercpp"]).is_none() {
        return;
    }
    let common = "kernels = \"flash_attn_ext\"\nhead_dim = 32\ncausal = true\n";
    let matrices = [
        (
            "prefill",
            "heads = \"4:2\"\nseqlen = 67\ndtype = [\"f32\", \"f16\", \"bf16\"]\nlayout = [\"bshd\", \"bhsd\", \"thd\"]",
        ),
        ("append", "heads = 2\nphase = \"append\"\nseqlen_q = 5\nseqlen_kv = 30\nbatch = 2"),
        ("decode", "heads = \"8:2\"\nphase = \"decode\"\nseqlen = [1, 33]\nbatch = 2\nlayout = [\"bshd\", \"bhsd\"]"),
        ("blind", "heads = 2\nseqlen_q = 9\nseqlen_kv = 5"),
        ("window", "heads = 2\nseqlen = 50\npattern = \"window:9,4\"\nsoftcap = 20\nsinks = true"),
        ("refused", "heads = 2\nphase = \"decode\"\nseqlen = 40\npage_size = 16"),
    ]
    .map(|(name, axes)| (name, format!("{common}{axes}")));
    let record = measure("ggml", &matrices.each_ref().map(|(name, axes)| (*name, axes.as_str())));
    for (matrix, disposition, count) in [
        ("prefill", "measured", 9),
        ("append", "measured", 1),
        ("decode", "measured", 4),
        ("blind", "measured", 1),
        ("window", "measured", 1),
        ("refused", "unsupported", 1),
    ] {
        assert_all(&record, matrix, disposition, count);
    }
}

/// The workers of what only GPUs run, with stand-ins for it: they ask for what the problem says, and what comes back is
/// put where it belongs.
#[test]
fn gpu_workers_ask_for_the_right_thing() {
    let Some(python) = python_with(&["numpy", "torch"]) else { return };
    let script = root().join("bench_harness/tests/stand_ins.py");
    let folder = root().join("kernels/adapters");
    let common = "mode = \"hot\"\ndtype = \"bf16\"\nhead_dim = 32\nheads = \"4:2\"\nbatch = 2\n";
    let dense = "causal = true\nseqlen_q = 9\nseqlen_kv = 30\nlayout = [\"bshd\", \"thd\"]";
    let separate = "causal = true\nseqlen = 21\nlayout = \"bhsd\"";
    let window = "causal = true\nseqlen = 40\npattern = \"window:9,4\"";
    let backward = "phase = \"backward\"\ncausal = true\nseqlen = 21\nlayout = [\"bshd\", \"bhsd\"]";
    let ragged = "seqlen_q = [[1, 30]]\nseqlen_kv = [[40, 33]]\ncausal = true";
    let cache = "phase = \"decode\"\nseqlen_q = 1\nseqlen_kv = [[40, 600]]";
    for (worker, matrices) in [
        (
            "cudnn",
            vec![
                ("dense", "\"sdpa\"", dense.to_owned(), 2),
                ("separate", "\"sdpa\"", separate.to_owned(), 1),
                ("window", "\"sdpa\"", window.to_owned(), 1),
                ("backward", "\"sdpa\"", backward.to_owned(), 2),
                ("top_left", "\"sdpa\"", format!("{dense}\nalign = \"top_left\""), 2),
                ("ragged", "\"sdpa\"", ragged.to_owned(), 1),
                ("pages", "\"sdpa\"", format!("{cache}\npage_size = [\"none\", 16]"), 2),
                ("bias", "\"sdpa\"", "seqlen = 21\nbias = \"additive\"".to_owned(), 1),
            ],
        ),
        (
            "flash_attn",
            vec![
                ("dense", "[\"fa2\", \"fa2_varlen\", \"fa3\", \"fa3_varlen\", \"flashinfer\"]", dense.to_owned(), 10),
                ("separate", "[\"fa2\", \"fa3\", \"fa2_kvcache\"]", separate.to_owned(), 3),
                ("window", "[\"fa2\", \"fa3\", \"flashinfer\"]", format!("{window}\nsoftcap = 20"), 3),
                ("backward", "[\"fa2\", \"fa3\"]", backward.to_owned(), 4),
                (
                    "ragged",
                    "[\"fa2_varlen\", \"fa3_varlen\", \"flashinfer\"]",
                    format!("{ragged}\nlayout = \"thd\""),
                    3,
                ),
                ("pages-256", "\"fa2_kvcache\"", format!("{cache}\npage_size = 256"), 1),
                (
                    "pages",
                    "[\"fa3_kvcache\", \"flashinfer\", \"flashinfer_decode\"]",
                    format!("{cache}\npage_size = 16"),
                    3,
                ),
                ("cache", "[\"fa2_kvcache\", \"fa3_kvcache\"]", cache.to_owned(), 2),
                ("alibi", "[\"fa2\", \"fa2_kvcache\"]", "seqlen = 21\nbias = \"alibi\"".to_owned(), 2),
            ],
        ),
    ] {
        let provider =
            format!("{worker}='{}' '{}' '{}' {worker}_worker", python.display(), script.display(), folder.display());
        let axes: Vec<(&str, String)> = matrices
            .iter()
            .map(|(name, kernels, axes, _)| (*name, format!("kernels = {kernels}\n{common}{axes}")))
            .collect();
        let record = measure(&provider, &axes.iter().map(|(name, axes)| (*name, axes.as_str())).collect::<Vec<_>>());
        for (matrix, .., count) in &matrices {
            assert_all(&record, matrix, "measured", *count);
        }
    }
}

/// Without a GPU they are unsupported, and say what they miss.
#[test]
fn gpu_workers_want_a_gpu() {
    let Some(python) = python_with(&["numpy", "torch"]) else { return };
    let problem = attn_kernels::problem::AttentionProblem::parse_id("softmax/prefill/full/bf16/b1/h2:2/q8/k8/d8");
    let problem = serde_json::to_value(problem.expect("an id")).expect("JSON");
    for (file, kernel) in [("cudnn_worker.py", "sdpa"), ("flash_attn_worker.py", "fa3")] {
        let script = adapter(file);
        let arguments = [script.as_os_str(), OsStr::new("--device"), OsStr::new("cpu")];
        let lines = [request(1, "supports", json!({ "kernel": kernel, "problem": problem, "threads": 1 }))];
        let answers = talk(&python, arguments, &lines);
        assert_eq!(answers[0]["error"]["kind"], "unsupported", "{file}: {}", answers[0]);
        let said = answers[0]["error"]["message"].as_str().unwrap_or_default();
        assert!(said.contains("the device is the CPU"), "{file}: {said}");
    }
}

/// A framework that cannot be imported costs nothing but its cases, and the reason names it and the way out.
#[test]
fn a_missing_framework_is_unsupported() {
    let Some(python) = python_with(&["numpy"]) else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    for module in ["torch", "onnxruntime", "onnx", "jax"] {
        let broken = format!("raise ImportError('no {module} here')\n");
        std::fs::write(folder.path().join(format!("{module}.py")), broken).expect("writing");
    }
    let problem = attn_kernels::problem::AttentionProblem::parse_id("softmax/prefill/full/f32/b1/h2:2/q8/k8/d8");
    let problem = serde_json::to_value(problem.expect("an id")).expect("JSON");
    for (file, kernel) in WORKERS {
        let script = folder.path().join("start.py");
        let (adapters, adapter) = (root().join("kernels/adapters"), adapter(file));
        let start = format!(
            "import runpy, sys\nsys.dont_write_bytecode = True\nsys.modules['pywhispercpp'] = None\nsys.path[:0] = [{:?}, {adapters:?}]\nsys.argv = \
             [{adapter:?}]\nrunpy.run_path({adapter:?}, run_name='__main__')\n",
            folder.path()
        );
        std::fs::write(&script, start).expect("writing");
        let lines = [
            request(1, "hello", json!({ "protocol": [1, 0] })),
            request(2, "kernels", json!({})),
            request(3, "supports", json!({ "kernel": kernel, "problem": problem, "threads": 1 })),
            request(4, "prepare", json!({ "kernel": kernel, "problem": problem, "threads": 1 })),
        ];
        let answers = talk(&python, [&script], &lines);
        assert_eq!(answers[0]["ok"]["golden_hash"], attn_kernels::input::golden_hash(), "{file}");
        assert!(answers[1]["ok"]["kernels"].as_array().is_some_and(|kernels| !kernels.is_empty()), "{file}");
        for answer in &answers[2..] {
            assert_eq!(answer["error"]["kind"], "unsupported", "{file}: {answer}");
            let said = answer["error"]["message"].as_str().unwrap_or_default();
            assert!(said.contains("cannot be imported") && said.contains("ci/peers.sh"), "{file}: {said}");
        }
    }
}
