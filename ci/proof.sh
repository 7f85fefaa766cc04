#!/usr/bin/env bash
# Prints every simulated figure of bench_harness/docs/proof.md: gates, power, bisections, change points.
#
# usage: ci/proof.sh [GATES [SERIES]]      gates and series a line [1000 1000]; the whole takes some hours on two cores
set -euo pipefail
[[ ${1-1} =~ ^[1-9][0-9]*$ && ${2-1} =~ ^[1-9][0-9]*$ && $# -le 2 ]] || { sed -n '4s/^# //p' "$0" >&2 && exit 2; }
cd "$(dirname "$0")/.."
cargo run --release -q -p attnbench --example gate_proof -- "${1-1000}"
cargo run --release -q -p attnbench --example change_points -- "${2-1000}"
