//! Tells the crate what it is built with, so that records can say it.

use std::env;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let variable = |name: &str| env::var(name).unwrap_or_default();
    let rustc = Command::new(variable("RUSTC")).arg("--version").output();
    let rustc = rustc.ok().and_then(|output| String::from_utf8(output.stdout).ok()).unwrap_or_default();
    // Cargo separates encoded flags with the unit separator.
    let rustflags = variable("CARGO_ENCODED_RUSTFLAGS").replace('\u{1f}', " ");
    for (name, value) in [
        ("OPT_LEVEL", variable("OPT_LEVEL")),
        ("PROFILE", variable("PROFILE")),
        ("RUSTC", rustc),
        ("RUSTFLAGS", rustflags),
        ("TARGET", variable("TARGET")),
        ("TARGET_FEATURES", variable("CARGO_CFG_TARGET_FEATURE")),
    ] {
        // A line break would end the instruction to cargo.
        let value = value.split_whitespace().collect::<Vec<_>>().join(" ");
        println!("cargo::rustc-env=ATTNBENCH_BUILD_{name}={value}");
    }
}
