//! What fails: each costs its case and says why, and the rest is measured.

use crate::emulator::attnbench;
use crate::{dispositions, prefill, run, suite};

fn reason(record: &serde_json::Value, case: usize) -> &str {
    record["cases"][case]["reason"].as_str().unwrap_or_default()
}

#[test]
fn too_little_memory_is_foreseen() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let matrices = prefill("[\"naive\", \"flash\"]", "dtype = \"bf16\"\nseqlen = 300");
    let suite = suite(folder.path(), "", &matrices);
    // Enough for the tensors of 300 tokens, not for the scores of all pairs.
    let little = [("ATTNBENCH_EMULATED_MEMORY", "1000000")];
    let (record, _) = run(folder.path(), &[suite.to_str().unwrap(), "--device", "cuda:0"], &little, 0);
    let expected = [("naive", "out_of_memory"), ("flash", "measured")];
    assert_eq!(dispositions(&record), expected.map(|(kernel, what)| (kernel.to_owned(), what.to_owned())));
    let scores = (4u64 * 2 * 300 * 300).next_multiple_of(256);
    assert!(reason(&record, 0).contains("bytes of device memory"), "{}", reason(&record, 0));
    assert!(reason(&record, 0).contains(&format!("{scores} of them workspace")), "{}", reason(&record, 0));
}

#[test]
fn work_on_another_stream_is_no_speed() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let matrices = prefill("[\"naive\", \"flash\"]", "dtype = \"bf16\"\nseqlen = 40");
    let suite = suite(folder.path(), "", &matrices);
    let side = [("ATTNBENCH_EMULATED_SIDE_STREAM", "naive_output:1000")];
    let (record, _) = run(folder.path(), &[suite.to_str().unwrap(), "--device", "cuda:0"], &side, 5);
    let expected = [("naive", "incorrect"), ("flash", "measured")];
    assert_eq!(dispositions(&record), expected.map(|(kernel, what)| (kernel.to_owned(), what.to_owned())));
    assert!(reason(&record, 0).contains("work went on after the call had returned"), "{}", reason(&record, 0));
}

#[test]
fn what_a_device_lacks_is_said() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let on_cuda = prefill("[\"flash\", \"flash9\"]", "providers = \"cuda\"\ndtype = [\"bf16\", \"f32\"]\nseqlen = 40");
    let suite = suite(folder.path(), "", &on_cuda).display().to_string();
    let (record, _) = run(folder.path(), &[&suite], &[], 0);
    let dispositions: Vec<String> = dispositions(&record).into_iter().map(|(_, what)| what).collect();
    assert_eq!(dispositions.iter().filter(|what| *what == "measured").count(), 1, "{dispositions:?}");
    assert_eq!(dispositions.iter().filter(|what| *what == "unsupported").count(), 3, "{dispositions:?}");

    // A device that was asked for and is not there ends the command, before a journal is in the way.
    let assert = attnbench().args(["run", &suite, "--device", "cuda:7"]).current_dir(folder.path()).assert().code(2);
    let stderr = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    assert!(stderr.contains("opening device `cuda:7`") && stderr.contains("lists 1"), "{stderr}");

    // Without a compiler, or a driver, each case says so.
    let nowhere = folder.path().to_str().unwrap();
    let (record, _) = run(folder.path(), &[&suite], &[("ATTNBENCH_NVRTC", nowhere)], 0);
    assert!(reason(&record, 0).contains("loading NVRTC"), "{}", reason(&record, 0));
    let (record, _) = run(folder.path(), &[&suite], &[("LD_LIBRARY_PATH", nowhere)], 0);
    // A machine with a real driver measures instead.
    assert!(reason(&record, 0).contains("no CUDA") || record["fingerprint"]["gpu_model"].is_string());
}
