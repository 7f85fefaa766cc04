//! What works: every kernel, both modes, several devices, the device's own figures.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::emulator::attnbench;
use crate::{dispositions, prefill, run, suite};

/// Every CUDA kernel on a problem that it computes.
const EVERY_KERNEL: &str = r#"
[[matrix]]
name = "prefill"
reason = "kernels on tensor cores and off them"
kernels = ["naive", "flash1", "flash", "block_sparse"]
dtype = "bf16"
causal = true
heads = "2:1"
seqlen = 70
head_dim = 64

[[matrix]]
name = "hopper"
reason = "tiles by tensor maps, products of warpgroups"
providers = ["cuda"]
kernels = "flash3"
dtype = "bf16"
causal = true
heads = "2:1"
seqlen = 150
head_dim = 64

[[matrix]]
name = "e4m3"
reason = "two launches, products of bytes, a tolerance of its own"
providers = ["cuda"]
kernels = "flash3_e4m3"
dtype = "bf16"
causal = true
heads = "2:1"
seqlen = 150
head_dim = 64

[[matrix]]
name = "backward"
reason = "an O and LSE that nobody times, sums in memory and sums in order"
providers = ["cuda"]
kernels = ["flash", "flash3"]
phase = "backward"
dtype = "bf16"
causal = true
deterministic = [false, true]
heads = "2:1"
seqlen = 70
head_dim = 64

[[matrix]]
name = "decode"
reason = "keys that are split, and their merge"
kernels = "split_kv"
phase = "decode"
dtype = "f16"
heads = "4:1"
seqlen = 700
head_dim = 64

[[matrix]]
name = "paged"
reason = "a page table, which is a static input"
kernels = "paged"
phase = "decode"
dtype = "bf16"
dtype_kv = ["bf16", "e4m3"]
heads = "4:1"
seqlen = 90
head_dim = 64
page_size = 16

[[matrix]]
name = "linear"
reason = "f32"
kernels = "linear"
mechanism = "linear"
causal = true
dtype = "f32"
heads = "2:2"
seqlen = 70
head_dim = 32

[[matrix]]
name = "linear-chunks"
reason = "tensor cores, the state in registers"
kernels = "linear"
mechanism = "linear"
causal = true
dtype = "bf16"
heads = "2:2"
seqlen = 130
head_dim = 64

[[matrix]]
name = "sparse"
reason = "two launches that share sums"
kernels = "block_sparse"
pattern = "strided:8"
causal = true
dtype = "bf16"
heads = "2:1"
seqlen = 130
head_dim = 64

[[matrix]]
name = "linformer"
reason = "static weights"
kernels = "linformer"
mechanism = "linformer"
dtype = "bf16"
heads = "2:2"
seqlen = 70
head_dim = 64

[[matrix]]
name = "mla"
reason = "values within keys"
kernels = "mla"
mechanism = "mla"
phase = "decode"
dtype = "bf16"
heads = 16
seqlen = 70
"#;

#[test]
fn every_kernel_is_verified_timed_and_described() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let suite = suite(folder.path(), "", EVERY_KERNEL);
    let (record, _) = run(folder.path(), &[suite.to_str().unwrap(), "--device", "cuda:0"], &[], 0);
    let kernels: BTreeSet<String> = dispositions(&record).into_iter().map(|(kernel, _)| kernel).collect();
    let known: BTreeSet<String> =
        attn_kernels::cuda::CUDA_KERNELS.iter().map(|kernel| kernel.name().to_owned()).collect();
    assert_eq!(kernels, known, "a new kernel needs a case here");
    assert_eq!(record["fingerprint"]["gpu_model"], "attnbench emulated device");
    assert!(record["provenance"]["gpu_nvrtc_version"].as_str().is_some_and(|version| version.starts_with("99.")));
    for case in record["cases"].as_array().expect("a list") {
        assert_eq!(case["disposition"], "measured", "{case}");
        assert_eq!(case["threads"], 0);
        // The record says by whose tolerance, and the judge's own table does.
        let is_e4m3 = case["case_id"].as_str().is_some_and(|id| id.starts_with("cuda/flash3_e4m3/"));
        assert_eq!(case["multiplied_in"], if is_e4m3 { Value::from("e4m3") } else { Value::Null });
        let allowed = case["rounds"][0]["verification"][0]["error"]["allowed_relative_l2"].as_f64();
        assert_eq!(allowed == Some(9e-2), is_e4m3, "{allowed:?}");
        let round = &case["rounds"][0];
        assert_eq!(round["device"], "cuda:0 attnbench emulated device");
        for what in ["cycles", "host_ns"] {
            assert_eq!(round["device_ns"].as_array().map(Vec::len), round[what].as_array().map(Vec::len), "{what}");
        }
        assert!(round["verification"].as_array().is_some_and(|calls| calls.len() >= 2), "{round}");
        let launches = round["launches"].as_array().expect("what was launched");
        assert!(!launches.is_empty());
        for launch in launches {
            assert_eq!(launch["code_hash"].as_str().map(str::len), Some(16));
            assert_eq!(launch["blocks_per_multiprocessor"], 1);
        }
    }
    // The f32 scores of 2 heads, 70 queries and 70 keys, in steps of 256 bytes.
    let naive = record["cases"].as_array().and_then(|cases| {
        cases.iter().find(|case| case["case_id"].as_str().is_some_and(|id| id.starts_with("cuda/naive")))
    });
    let workspace = (4u64 * 2 * 70 * 70).next_multiple_of(256);
    assert_eq!(naive.expect("planned")["rounds"][0]["memory"]["extra_peak_bytes"], workspace);
    // A ceiling for each dtype, and each bandwidth.
    let controls: Vec<&str> =
        record["controls"].as_array().expect("a list").iter().filter_map(|control| control["name"].as_str()).collect();
    assert_eq!(controls, ["fma/f32", "mma/f16", "mma/bf16", "read/1048576", "write/1048576", "copy/1048576"]);
    assert!(record["controls"].as_array().expect("a list").iter().all(|control| control["work"].as_u64() > Some(0)));
}

#[test]
fn hot_calls_are_graphs() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let suite = suite(folder.path(), "mode = \"hot\"", &prefill("\"flash\"", "dtype = \"bf16\"\nseqlen = 40"));
    let small = [("ATTNBENCH_EMULATED_MEMORY", "1048576")];
    let (record, _) = run(folder.path(), &[suite.to_str().unwrap(), "--device", "cuda"], &small, 0);
    assert_eq!(dispositions(&record), [("flash".to_owned(), "measured".to_owned())]);
    let modes: BTreeSet<&str> =
        record["controls"].as_array().expect("a list").iter().filter_map(|control| control["mode"].as_str()).collect();
    assert_eq!(modes, BTreeSet::from(["hot"]));
}

#[test]
fn devices_share_the_cases_and_each_keeps_its_own() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let matrices = prefill("[\"naive\", \"flash\"]", "dtype = \"bf16\"\nseqlen = [20, 30]");
    let suite = suite(folder.path(), "", &matrices).display().to_string();
    let two = [("ATTNBENCH_EMULATED_DEVICES", "2")];
    for selection in ["cuda:0,1", "all"] {
        let (record, _) = run(folder.path(), &[&suite, "--device", selection, "--rounds", "2"], &two, 0);
        let mut devices = Vec::new();
        for case in record["cases"].as_array().expect("a list") {
            let of_case: BTreeSet<&str> = case["rounds"]
                .as_array()
                .expect("rounds")
                .iter()
                .filter_map(|round| round["device"].as_str())
                .collect();
            assert_eq!(of_case.len(), 1, "both rounds of a case run on one device: {of_case:?}");
            devices.extend(of_case.into_iter().map(|device| device[..6].to_owned()));
        }
        devices.sort();
        assert_eq!(devices, ["cuda:0", "cuda:0", "cuda:1", "cuda:1"]);
    }
    // A slice is a device by its name.
    let slice = "MIG-00000000-0000-0000-0000-000000000001";
    let (record, _) = run(folder.path(), &[&suite, "--device", slice], &two, 0);
    assert_eq!(record["provenance"]["gpu_uuid"], "GPU-00000000-0000-0000-0000-000000000001");
}

#[test]
fn the_self_test_measures_kernels_of_known_length() {
    let output = attnbench().args(["devices", "--self-test", "--json"]).output().expect("it runs");
    let tests: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let test = &tests[0];
    assert_eq!(test["device"], "attnbench emulated device");
    let spins = test["spins_ns"].as_array().expect("a list");
    assert_eq!(spins.len(), 3);
    for spin in spins {
        // No kernel ends early. How late this one ends is for the machine's load to say.
        assert!(spin[1].as_f64() >= spin[0].as_f64(), "{spin}");
    }
    assert_eq!(output.status.success(), test["pass"].as_bool().expect("a verdict"));
}
