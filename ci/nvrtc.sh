#!/usr/bin/env bash
# Fetches NVRTC, NVIDIA's compiler library, from its Python package into .nvrtc/ and prints the folder that has it: what
# ATTNBENCH_NVRTC is to be set to. Needs Python with pip once, and no GPU ever. The version is pinned, because registers are
# held against a budget that another compiler would move.
set -euo pipefail
cd "$(dirname "$0")/.."
version=13.0.88
cache=.nvrtc/$version
folder=$cache/nvidia/cu13/lib
if ! [ -e "$folder/libnvrtc.so.13" ]; then
    echo "fetching nvidia-cuda-nvrtc $version" >&2
    unfinished=$cache.tmp.$$
    trap 'rm -rf "$unfinished"' EXIT
    python3 -m pip install --quiet --disable-pip-version-check --no-deps --no-cache-dir --target "$unfinished" \
        "nvidia-cuda-nvrtc==$version" >&2
    mkdir -p .nvrtc
    rm -rf "$cache"
    mv "$unfinished" "$cache"
fi
echo "$PWD/$folder"
