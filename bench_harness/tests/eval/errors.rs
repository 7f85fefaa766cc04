//! Every error names the object and the way out, comes before any output, and leaves no file behind.

use crate::files::{Bench, f32_bytes, ramp};

/// Runs the command, expects it to be refused, and checks the message.
fn refused(bench: &Bench, arguments: &[&str], says: &[&str]) {
    let before = std::fs::read_dir(bench.directory.path()).unwrap().count();
    let output = bench.eval(arguments).output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {message}");
    for text in says {
        assert!(message.contains(text), "{arguments:?}: `{text}` is not in: {message}");
    }
    assert_eq!(std::fs::read_dir(bench.directory.path()).unwrap().count(), before, "{arguments:?} left a file behind");
}

#[test]
fn kernels_and_options() {
    let bench = Bench::new();
    refused(&bench, &["--kernel", "cpu/flush"], &["`cpu/flush`", "cpu/naive", "cpu/flash"]);
    refused(&bench, &["--kernel", "torch/sdpa"], &["`torch/sdpa`", "eval runs cpu/naive"]);
    refused(&bench, &["--kernel", "cpu/paged"], &["`paged`", "unsupported"]);
    bench.npy("mask.npy", "|b1", &[3, 5], &[1; 15]);
    refused(&bench, &["--kernel", "cpu/split_kv", "--mask", "mask.npy"], &["`split_kv`", "unsupported", "mask"]);
    refused(&bench, &["--kernel", "cpu/linear"], &["`linear`", "unsupported", "softmax"]);
    refused(&bench, &["--threads", "0"], &["--threads"]);
    refused(&bench, &["--scale", "inf"], &["scale of inf"]);
    refused(&bench, &["--softcap", "-1"], &["softcap of -1"]);
    refused(&bench, &["--window-left", "-2"], &["--window-left", "-1 for all"]);
    refused(&bench, &["--window-right", "x"], &["--window-right", "-1 stands for all"]);
    refused(&bench, &["--causal-alignment", "middle"], &["top_left", "bottom_right"]);
    refused(&bench, &["--past-key", "k.npy"], &["--past-value"]);
}

#[test]
fn files() {
    let bench = Bench::new();
    refused(&bench, &["--q", "missing.npy"], &["reading `missing.npy`", "No such file"]);
    refused(&bench, &["--q", "q.txt"], &["reading `q.txt`", "`.npy` or `.safetensors`"]);
    refused(&bench, &["--q", "."], &["reading `.`"]);
    let whole = std::fs::read(bench.path("q.npy")).unwrap();
    std::fs::write(bench.path("cut.npy"), &whole[..whole.len() - 5]).unwrap();
    refused(&bench, &["--q", "cut.npy"], &["reading `cut.npy`", "truncated"]);
    std::fs::write(bench.path("cut.safetensors"), &whole).unwrap();
    refused(&bench, &["--v", "cut.safetensors#v"], &["reading `cut.safetensors#v`", "no valid .safetensors header"]);
    bench.npy("object.npy", "|O", &[1], &[]);
    refused(&bench, &["--k", "object.npy"], &["reading `object.npy`", "Python objects"]);
}

#[test]
fn places_of_outputs() {
    let bench = Bench::new();
    // The output's place is checked first: the inputs of this command do not even exist.
    refused(
        &bench,
        &["--q", "missing.npy", "--out", "no/o.npy"],
        &["writing `no/o.npy`", "its directory takes no new file"],
    );
    refused(&bench, &["--out", "o.bin"], &["writing `o.bin`", "`.npy` or `.safetensors`"]);
    refused(&bench, &["--out", "./q.npy"], &["writing `./q.npy`", "also an input"]);
    refused(&bench, &["--lse-out", "o.npy"], &["writing `o.npy`", "also another output"]);
    std::fs::create_dir(bench.path("folder.npy")).unwrap();
    refused(&bench, &["--out", "folder.npy"], &["writing `folder.npy`", "directory"]);
}

#[test]
fn dtypes() {
    let bench = Bench::new();
    bench.npy("double.npy", "<f8", &[1, 2, 3, 4], &[0; 192]);
    refused(&bench, &["--q", "double.npy"], &["q is float64", ".astype(np.float32)"]);
    bench.npy("int.npy", "<i4", &[1, 2, 3, 4], &[0; 96]);
    refused(&bench, &["--q", "int.npy"], &["q is int32", "supported are float32, float16 and bfloat16"]);
    bench.npy("bits.npy", "<u2", &[1, 2, 3, 4], &[0; 48]);
    refused(&bench, &["--q", "bits.npy"], &["q is uint16", "--dtype bf16"]);
    refused(&bench, &["--dtype", "bf16"], &["q is float32", "converts nothing"]);
    bench.npy("half.npy", "<f2", &[1, 1, 5, 4], &[0; 40]);
    refused(&bench, &["--v", "half.npy"], &["v is f16 and k is f32", "convert one"]);
}

#[test]
fn shapes() {
    let bench = Bench::new();
    let write = |name: &str, dims: &[usize]| bench.npy(name, "<f4", dims, &f32_bytes(&ramp(dims.iter().product())));
    write("x.npy", &[2, 3]);
    refused(
        &bench,
        &["--q", "x.npy", "--k", "x.npy", "--v", "x.npy"],
        &["q has 2 dimensions", "(batch, heads, length, dim)"],
    );
    write("x.npy", &[1, 5, 4]);
    refused(&bench, &["--k", "x.npy"], &["q is 4-D", "k is 3-D", "one layout"]);
    write("q3.npy", &[1, 3, 8]);
    let three = ["--q", "q3.npy", "--k", "x.npy", "--v", "x.npy"];
    refused(&bench, &three, &["q is 3-D", "--heads-q"]);
    refused(&bench, &[&three[..], &["--heads-q", "3"]].concat(), &["not divisible by 3 heads", "--heads-q"]);
    refused(&bench, &[&three[..], &["--heads-q", "0"]].concat(), &["not divisible by 0 heads"]);
    refused(
        &bench,
        &[&three[..], &["--heads-q", "2", "--heads-kv", "3"]].concat(),
        &["k of shape [1, 5, 4]", "--heads-kv"],
    );
    refused(&bench, &[&three[..], &["--heads-q", "1"]].concat(), &["--heads-kv"]);
    refused(&bench, &["--heads-q", "4"], &["q of shape [1, 2, 3, 4] has 2 heads", "--heads-q says 4"]);
    write("x.npy", &[1, 3, 5, 4]);
    refused(&bench, &["--k", "x.npy", "--v", "x.npy"], &["2 query heads cannot share 3 KV heads"]);
    write("x.npy", &[2, 1, 5, 4]);
    refused(&bench, &["--k", "x.npy"], &["q has batch 1 and k has batch 2"]);
    write("x.npy", &[1, 1, 5, 3]);
    refused(&bench, &["--k", "x.npy"], &["q has head dim 4 and k has head dim 3"]);
    write("x.npy", &[1, 1, 6, 4]);
    refused(&bench, &["--k", "x.npy"], &["k has length 6 and v has length 5"]);
    refused(
        &bench,
        &["--past-key", "x.npy", "--past-value", "k.npy"],
        &["past-key has length 6", "past-value has length 5"],
    );
    write("x.npy", &[1, 2, 5, 4]);
    refused(&bench, &["--past-key", "x.npy", "--past-value", "x.npy"], &["past-key of shape", "2 heads", "says 1"]);
    write("x.npy", &[1, 1, 5, 0]);
    refused(&bench, &["--v", "x.npy"], &["v of shape [1, 1, 5, 0] has head dim 0: valid is 1 to 1024"]);
    // Shapes that no data backs: the arithmetic on them must not overflow.
    let huge = 1usize << 40;
    for dims in [[huge, 2, 0, 4], [0, huge, huge, 4], [1, huge, 0, huge], [0, 1, 3, huge]] {
        write_empty(&bench, "x.npy", &dims);
        let output = bench.eval(&["--q", "x.npy", "--k", "x.npy", "--v", "x.npy", "--causal"]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{dims:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

fn write_empty(bench: &Bench, name: &str, dims: &[usize]) {
    bench.npy(name, "<f4", dims, &[]);
}

#[test]
fn masks_and_lengths() {
    let bench = Bench::new();
    let mask = |descr: &str, dims: &[usize], element: usize| {
        bench.npy("mask.npy", descr, dims, &vec![0; dims.iter().product::<usize>() * element]);
    };
    let refuse = |says: &[&str]| refused(&bench, &["--mask", "mask.npy"], says);
    mask("<i8", &[3, 5], 8);
    refuse(&["mask is int64", "bool (true = visible)", ".astype(bool)"]);
    mask("|b1", &[5], 1);
    refuse(&["mask of shape [5]", "1 dimensions, not 2 to 4"]);
    mask("|b1", &[1, 1, 1, 3, 5], 1);
    refuse(&["5 dimensions"]);
    mask("|b1", &[3, 6], 1);
    refuse(&["covers 6 keys where there are 5"]);
    mask("|b1", &[2, 5], 1);
    refuse(&["has 2 where queries are 3", "(batch, heads, queries, keys) = [1, 2, 3, 5]"]);
    mask("<f4", &[3, 3, 5], 4);
    refuse(&["has 3 where heads are 2"]);
    mask("<f4", &[2, 1, 3, 5], 4);
    refuse(&["has 2 where sequences are 1"]);

    let lengths = |descr: &str, dims: &[usize], bytes: &[u8]| bench.npy("lengths.npy", descr, dims, bytes);
    let refuse = |says: &[&str]| refused(&bench, &["--kv-lengths", "lengths.npy"], says);
    lengths("<f4", &[1], &[0; 4]);
    refuse(&["kv-lengths is float32", "integers"]);
    lengths("<i4", &[2], &[0; 8]);
    refuse(&["kv-lengths has shape [2]", "[1]"]);
    lengths("<i4", &[1], &(-1i32).to_le_bytes());
    refuse(&["kv-lengths[0] is -1", "0 to 5"]);
    lengths("<u8", &[1], &u64::MAX.to_le_bytes());
    refuse(&["kv-lengths[0] is 18446744073709551615", "0 to 5"]);
}
