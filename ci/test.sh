#!/usr/bin/env bash
# Formatting, lints, every test, the CUDA kernels through their compiler, and a real run that is gated against itself. Needs
# a Rust toolchain, a C and a C++ compiler, Python with pip (for NVRTC), Chromium (for reports) and git; everything else is a
# crate. One profile and one target folder serve the tests and the binary that people run.
set -euo pipefail
cd "$(dirname "$0")/.."
export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-never}

step() { printf '\n== %s\n' "$*"; }

missing=()
command -v cc >/dev/null || missing+=(gcc libc6-dev)
command -v g++ >/dev/null || missing+=(g++)
python3 -m pip --version >/dev/null 2>&1 || missing+=(python3 python3-pip)
command -v chromium >/dev/null || missing+=(chromium)
if [ ${#missing[@]} -gt 0 ]; then
    step "installing ${missing[*]}"
    apt-get update -q && apt-get install -qy --no-install-recommends "${missing[@]}"
fi
rustup component add rustfmt clippy >/dev/null 2>&1 || true

step "formatting"
cargo fmt --all --check

step "lints"
cargo clippy --release --workspace --all-targets --locked -- -D warnings

step "tests"
export ATTNBENCH_REQUIRE_CHROMIUM=1
ci/postgres.sh cargo test --release --workspace --locked

step "docs"
RUSTDOCFLAGS="-D warnings" cargo doc --release --workspace --no-deps --locked

step "templates for CI and fleets"
ci/templates.sh

step "every CUDA kernel through NVRTC, against the budget of registers"
ATTNBENCH_NVRTC=$(ci/nvrtc.sh)
export ATTNBENCH_NVRTC
target/release/attnbench kernels --resources --budget kernels/cuda/budget.toml

step "a run of quickstart, gated against itself"
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
attnbench=target/release/attnbench
"$attnbench" run suites/quickstart.toml --out "$out/record.json"
"$attnbench" baseline save "$out/record.json" --baselines "$out/baselines"
# One session cannot prove that nothing changed: `inconclusive` is the honest answer, and it passes unless --strict.
"$attnbench" gate "$out/record.json" --baseline "$out"/baselines/*/quickstart.json || [ $? -eq 3 ]

step "all checks passed"
