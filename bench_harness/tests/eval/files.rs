//! Tensors on disk, written here without the crate's own writer, and the command run on them.

use std::path::{Path, PathBuf};

use assert_cmd::Command;
use half::{bf16, f16};
use safetensors::SafeTensors;
use tempfile::TempDir;

/// A directory with the tensors of one evaluation.
pub(crate) struct Bench {
    pub(crate) directory: TempDir,
}

impl Bench {
    /// Q of (1, 2, 3, 4), K and V of (1, 1, 5, 4) in float32.
    pub(crate) fn new() -> Bench {
        let bench = Bench { directory: tempfile::tempdir().unwrap() };
        bench.npy("q.npy", "<f4", &[1, 2, 3, 4], &f32_bytes(&ramp(24)));
        bench.npy("k.npy", "<f4", &[1, 1, 5, 4], &f32_bytes(&ramp(20)));
        bench.npy("v.npy", "<f4", &[1, 1, 5, 4], &f32_bytes(&ramp(20)));
        bench
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn npy(&self, name: &str, descr: &str, dims: &[usize], data: &[u8]) {
        std::fs::write(self.path(name), npy(descr, dims, data)).unwrap();
    }

    /// `attnbench eval --kernel cpu/flash --q q.npy --k k.npy --v v.npy --out o.npy` and further arguments.
    pub(crate) fn eval(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_attnbench"));
        command.current_dir(self.directory.path()).args(["eval", "--threads", "1"]);
        for (flag, value) in
            [("--kernel", "cpu/flash"), ("--q", "q.npy"), ("--k", "k.npy"), ("--v", "v.npy"), ("--out", "o.npy")]
        {
            if !arguments.contains(&flag) {
                command.args([flag, value]);
            }
        }
        command.args(arguments);
        command
    }

    /// Runs it, expects success, and returns the bytes behind the output's header.
    pub(crate) fn output(&self, arguments: &[&str]) -> Vec<u8> {
        self.eval(arguments).assert().success();
        data(&self.path("o.npy"))
    }
}

pub(crate) fn ramp(count: usize) -> Vec<f32> {
    (0..count).map(|index| ((index * 37 + 11) % 64) as f32 / 32.0 - 1.0).collect()
}

pub(crate) fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

pub(crate) fn npy(descr: &str, dims: &[usize], data: &[u8]) -> Vec<u8> {
    let dims: String = dims.iter().map(|dim| format!("{dim},")).collect();
    let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({dims})}}\n");
    [&b"\x93NUMPY\x01\x00"[..], &(header.len() as u16).to_le_bytes(), header.as_bytes(), data].concat()
}

/// The header text of a .npy file of version 1.
pub(crate) fn header(path: &Path) -> String {
    let bytes = std::fs::read(path).unwrap();
    let end = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    String::from_utf8(bytes[10..end].to_vec()).unwrap()
}

/// The data of a .npy file of version 1.
pub(crate) fn data(path: &Path) -> Vec<u8> {
    let bytes = std::fs::read(path).unwrap();
    bytes[10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]))..].to_vec()
}

fn close(got: &[f32], want: &[f32], tolerance: f32) {
    assert_eq!(got.len(), want.len());
    for (got, want) in got.iter().zip(want) {
        assert!((got - want).abs() <= tolerance, "{got} is not {want}");
    }
}

fn f32s(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

fn halves(bytes: &[u8], widen: impl Fn([u8; 2]) -> f32) -> Vec<f32> {
    bytes.chunks_exact(2).map(|bytes| widen(bytes.try_into().unwrap())).collect()
}

/// Q, K and V are overwritten as `round` stores them.
fn store(bench: &Bench, descr: &str, round: impl Fn(f32) -> Vec<u8>) {
    for (name, dims) in [("q.npy", [1, 2, 3, 4]), ("k.npy", [1, 1, 5, 4]), ("v.npy", [1, 1, 5, 4])] {
        let bytes: Vec<u8> = ramp(dims.iter().product()).into_iter().flat_map(&round).collect();
        bench.npy(name, descr, &dims, &bytes);
    }
}

#[test]
fn the_output_has_the_dtype_and_spelling_of_q() {
    let bench = Bench::new();
    let want = f32s(&bench.output(&[]));
    assert!(header(&bench.path("o.npy")).contains("'<f4'"));
    assert!(header(&bench.path("o.npy")).contains("(1, 2, 3, 4)"));
    // The ramp is exact in every dtype, so only the output is rounded.
    store(&bench, "<f2", |x| f16::from_f32(x).to_le_bytes().to_vec());
    close(&halves(&bench.output(&[]), |bytes| f16::from_le_bytes(bytes).to_f32()), &want, 2e-3);
    assert!(header(&bench.path("o.npy")).contains("'<f2'"));
    let widen = |bytes| bf16::from_le_bytes(bytes).to_f32();
    for (descr, arguments, written) in
        [("<V2", &[][..], "'<V2'"), ("|V2", &["--dtype", "bf16"], "'<V2'"), ("<u2", &["--dtype", "bf16"], "'<u2'")]
    {
        store(&bench, descr, |x| bf16::from_f32(x).to_le_bytes().to_vec());
        close(&halves(&bench.output(arguments), widen), &want, 2e-2);
        assert!(header(&bench.path("o.npy")).contains(written), "{descr}");
    }
}

#[test]
fn byte_order_and_element_order_do_not_matter() {
    let bench = Bench::new();
    let want = bench.output(&[]);
    store(&bench, ">f4", |x| x.to_be_bytes().to_vec());
    assert_eq!(bench.output(&[]), want);
    store(&bench, "<f4", |x| x.to_le_bytes().to_vec());
    // Q with its first dimension fastest: element (0, h, i, d) is at h + 2 * (i + 3 * d).
    let q = ramp(24);
    let fortran: Vec<f32> = (0..24).map(|at| q[(at % 2) * 12 + (at / 2 % 3) * 4 + at / 6]).collect();
    let file = String::from_utf8_lossy(&npy("<f4", &[1, 2, 3, 4], &[])).replace("False", "True ");
    let header_bytes = file.find('{').unwrap();
    let text = &file[header_bytes..];
    let bytes = [&b"\x93NUMPY\x01\x00"[..], &(text.len() as u16).to_le_bytes(), text.as_bytes(), &f32_bytes(&fortran)];
    std::fs::write(bench.path("q.npy"), bytes.concat()).unwrap();
    assert_eq!(bench.output(&[]), want);
}

#[test]
fn safetensors_hold_the_same_numbers() {
    let bench = Bench::new();
    let want = bench.output(&[]);
    let tensor = |dims: &[usize], bytes: &'static [u8]| {
        safetensors::tensor::TensorView::new(safetensors::Dtype::F32, dims.to_vec(), bytes).unwrap()
    };
    let leak = |count| -> &'static [u8] { f32_bytes(&ramp(count)).leak() };
    let (q, kv) = (leak(24), leak(20));
    let file =
        [("q", tensor(&[1, 2, 3, 4], q)), ("k", tensor(&[1, 1, 5, 4], kv)), ("layer#0.v", tensor(&[1, 1, 5, 4], kv))];
    std::fs::write(bench.path("t.safetensors"), safetensors::serialize(file, None).unwrap()).unwrap();
    let arguments = [
        "--q",
        "t.safetensors#q",
        "--k",
        "t.safetensors#k",
        "--v",
        "t.safetensors#layer#0.v",
        "--lse-out",
        "l.safetensors",
    ];
    assert_eq!(bench.output(&arguments), want);
    let one = [("anything", tensor(&[1, 2, 3, 4], q))];
    std::fs::write(bench.path("q.safetensors"), safetensors::serialize(one, None).unwrap()).unwrap();
    assert_eq!(bench.output(&["--q", "q.safetensors"]), want);
    for (location, name) in [("o.safetensors", "o"), ("o.safetensors#mine", "mine")] {
        bench.eval(&["--out", location]).assert().success();
        let bytes = std::fs::read(bench.path("o.safetensors")).unwrap();
        let written = SafeTensors::deserialize(&bytes).unwrap();
        let tensor = written.tensor(name).unwrap();
        assert_eq!((tensor.shape(), tensor.data()), (&[1, 2, 3, 4][..], &want[..]));
    }
    let bytes = std::fs::read(bench.path("l.safetensors")).unwrap();
    assert_eq!(SafeTensors::deserialize(&bytes).unwrap().tensor("lse").unwrap().shape(), [1, 2, 3]);
}

#[test]
fn present_keys_and_values_are_past_and_new() {
    let bench = Bench::new();
    let past = f32_bytes(&[9.0; 8]);
    bench.npy("past.npy", "<f4", &[1, 1, 2, 4], &past);
    let arguments = ["--past-key", "past.npy", "--past-value", "past.npy", "--present-key-out", "pk.npy"];
    bench.output(&arguments);
    assert_eq!(data(&bench.path("pk.npy")), [past.clone(), f32_bytes(&ramp(20))].concat());
    assert!(header(&bench.path("pk.npy")).contains("(1, 1, 7, 4)"));
    // 3-D tensors: present is 4-D, as the operator returns it, unless the past is 3-D.
    bench.npy("q.npy", "<f4", &[1, 3, 8], &f32_bytes(&ramp(24)));
    bench.npy("k.npy", "<f4", &[1, 5, 4], &f32_bytes(&ramp(20)));
    bench.npy("v.npy", "<f4", &[1, 5, 4], &f32_bytes(&ramp(20)));
    bench.output(&[&arguments[..], &["--heads-q", "2"]].concat());
    assert!(header(&bench.path("pk.npy")).contains("(1, 1, 7, 4)"));
    assert!(header(&bench.path("o.npy")).contains("(1, 3, 8)"));
    bench.npy("past.npy", "<f4", &[1, 2, 4], &past);
    bench.output(&[&arguments[..], &["--heads-q", "2"]].concat());
    assert!(header(&bench.path("pk.npy")).contains("(1, 7, 4)"));
}

#[test]
fn nothing_to_compute_gives_empty_or_zero_outputs() {
    let bench = Bench::new();
    bench.npy("k.npy", "<f4", &[1, 1, 0, 4], &[]);
    bench.npy("v.npy", "<f4", &[1, 1, 0, 6], &[]);
    assert_eq!(bench.output(&["--lse-out", "lse.npy"]), vec![0; 4 * 36]);
    assert_eq!(f32s(&data(&bench.path("lse.npy"))), [f32::NEG_INFINITY; 6]);
    bench.npy("q.npy", "<f4", &[1, 2, 0, 4], &[]);
    assert_eq!(bench.output(&["--causal"]), Vec::<u8>::new());
    assert!(header(&bench.path("o.npy")).contains("(1, 2, 0, 6)"));
    for name in ["q.npy", "k.npy", "v.npy"] {
        bench.npy(name, "<f4", &[0, 2, 3, 4], &[]);
    }
    assert_eq!(bench.output(&["--lse-out", "lse.npy"]), Vec::<u8>::new());
    assert!(header(&bench.path("lse.npy")).contains("(0, 2, 3)"));
}

#[test]
fn what_lies_behind_a_length_is_never_read() {
    let bench = Bench::new();
    bench.npy("lengths.npy", "<i8", &[1], &3i64.to_le_bytes());
    let want = bench.output(&["--kv-lengths", "lengths.npy", "--causal"]);
    for name in ["k.npy", "v.npy"] {
        let mut values = ramp(20);
        values[12..].fill(f32::NAN);
        bench.npy(name, "<f4", &[1, 1, 5, 4], &f32_bytes(&values));
    }
    assert_eq!(bench.output(&["--kv-lengths", "lengths.npy", "--causal"]), want);
}

#[test]
fn a_nan_stays_in_its_row() {
    let bench = Bench::new();
    let clean = f32s(&bench.output(&["--kernel", "cpu/naive"]));
    let mut q = ramp(24);
    q[5] = f32::NAN;
    bench.npy("q.npy", "<f4", &[1, 2, 3, 4], &f32_bytes(&q));
    for kernel in ["cpu/naive", "cpu/flash"] {
        let got = f32s(&bench.output(&["--kernel", kernel]));
        assert!(got[4..8].iter().all(|x| x.is_nan()), "{kernel}: {got:?}");
        close(&got[..4], &clean[..4], 1e-6);
        close(&got[8..], &clean[8..], 1e-6);
    }
}

#[test]
fn json_says_what_was_computed() {
    let bench = Bench::new();
    let output = bench.eval(&["--json", "--softcap", "0", "--lse-out", "lse.npy"]).output().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["kernel"], "cpu/flash");
    assert_eq!(report["q"], serde_json::json!([1, 2, 3, 4]));
    assert_eq!(report["scale"], 0.5);
    assert_eq!(report["softcap"], serde_json::Value::Null);
    assert_eq!(report["threads"], 1);
    assert!(report["run_ms"].as_f64().unwrap() > 0.0);
    assert_eq!(report["outputs"][1]["file"], "lse.npy");
    assert_eq!(report["outputs"][1]["dims"], serde_json::json!([1, 2, 3]));
}

#[test]
fn outputs_have_the_permissions_of_any_new_file() {
    use std::os::unix::fs::PermissionsExt;
    let bench = Bench::new();
    bench.output(&[]);
    let mode = |name| std::fs::metadata(bench.path(name)).unwrap().permissions().mode();
    assert_eq!(mode("o.npy"), mode("q.npy"));
}
