#!/usr/bin/env bash
# Gates a pull request against its merge base. The coordinator is built from there: a pull request does not judge itself.
set -euo pipefail
base=$(git merge-base HEAD "origin/$BUILDKITE_PULL_REQUEST_BASE_BRANCH")
tree=$(mktemp -d)
trap 'git worktree remove --force "$tree/base" || true; rm -rf "$tree"' EXIT
git worktree add --detach "$tree/base" "$base"
CARGO_TARGET_DIR="$tree/target" cargo build --release --locked --manifest-path "$tree/base/Cargo.toml"
mkdir -p results
set +e
"$tree/target/release/attnbench" gate --against "$base" --suite ci --out results/gate.json | tee results/gate.txt
exit "${PIPESTATUS[0]}"
