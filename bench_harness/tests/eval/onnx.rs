//! Vectors from the reference implementation of the ONNX `Attention` operator, which `onnx_attention.py` made: the
//! command reads them from their file, with the command line that each names.

use std::path::PathBuf;

use attnbench::tensor_file::{Location, read};
use serde::Deserialize;

use crate::files::Bench;

#[derive(Deserialize)]
struct Case {
    name: String,
    arguments: Vec<String>,
    inputs: Vec<String>,
    outputs: Vec<String>,
    relative: f64,
    absolute: f64,
}

fn values(location: &Location) -> (Vec<usize>, Vec<f64>) {
    let array = read(location).unwrap();
    let bytes = array.bytes.chunks_exact(array.dtype.bytes());
    let values = match array.dtype.name() {
        "float32" => bytes.map(|bytes| f64::from(f32::from_le_bytes(bytes.try_into().unwrap()))).collect(),
        "float16" => bytes.map(|bytes| half::f16::from_le_bytes(bytes.try_into().unwrap()).to_f64()).collect(),
        other => panic!("an output is {other}"),
    };
    (array.dims, values)
}

#[test]
fn eval_reproduces_the_operator() {
    let fixture = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/onnx_attention.safetensors");
    let bytes = std::fs::read(&fixture).unwrap();
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let cases: Vec<Case> = serde_json::from_str(&metadata.metadata().as_ref().unwrap()["cases"]).unwrap();
    assert!(cases.len() > 70);
    let bench = Bench::new();
    for case in &cases {
        let place = |role: &str| format!("{}#{}/{role}", fixture.display(), case.name);
        for kernel in ["cpu/naive", "cpu/flash"] {
            let mut arguments = vec!["--kernel".to_owned(), kernel.into()];
            arguments.extend(case.arguments.iter().cloned());
            for role in &case.inputs {
                arguments.extend([format!("--{}", role.replace('_', "-")), place(role)]);
            }
            for role in &case.outputs {
                let flag = if role == "o" { "--out".into() } else { format!("--{}-out", role.replace('_', "-")) };
                arguments.extend([flag, format!("{role}.npy")]);
            }
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            bench.eval(&arguments).assert().success();
            for role in &case.outputs {
                let (dims, got) = values(&Location { path: bench.path(&format!("{role}.npy")), tensor: None });
                let (want_dims, want) = values(&place(&format!("expected_{role}")).parse().unwrap());
                assert_eq!(dims, want_dims, "{} {role}", case.name);
                for (index, (got, want)) in got.iter().zip(&want).enumerate() {
                    let is_close = got == want || (got - want).abs() <= case.absolute + case.relative * want.abs();
                    assert!(is_close, "{} of {} with {kernel}: element {index} is {got}, not {want}", role, case.name);
                }
            }
        }
    }
}
