#!/usr/bin/env bash
# Makes the Python environment in which other frameworks are measured: .venv in the repository's root.
#
# usage: ci/peers.sh [--gpu]
#
# Afterwards `attnbench run suites/peers.toml` with `--provider torch`, `onnxruntime`, `jax` and `ggml` finds it there.
# Everything comes from PyPI; ggml is that of pywhispercpp. --gpu adds cuDNN's front end and JAX's CUDA plugin.
# FlashAttention and FlashInfer are compiled by the machine's own CUDA toolkit: install them into .venv by hand where they
# are wanted (`.venv/bin/pip install --no-build-isolation flash-attn`, `.venv/bin/pip install flashinfer-python`).
#
# PyTorch's Linux wheel there is linked against CUDA and pulls in gigabytes of it; without
# --gpu only the wheel itself, the CUDA runtime and the few packages that `import torch` needs are installed, and
# ci/stub_cuda.sh stands in for the rest (download 0.6 GB instead of some 3 GB, 1.5 GB on disk). That takes a C compiler
# and binutils; where they are missing, and with --gpu, PyTorch is installed with all that it asks for.
set -euo pipefail
case "${1-}" in
'' | --gpu) ;;
*) echo "usage: ci/peers.sh [--gpu]" >&2 && exit 2 ;;
esac
cd "$(dirname "$0")/.."

torch=torch==2.15.0
# Of the CUDA release that this torch is built for.
cuda_runtime=(nvidia-cuda-runtime==13.2.86 nvidia-cuda-cupti==13.2.86)
onnx=(onnx==1.23.2 onnxruntime==1.32.0)
jax_version=0.10.2
ggml=pywhispercpp==1.5.1
cudnn=nvidia-cudnn-frontend==1.32.0

is_lean=no
if [ "${1-}" != --gpu ] && [ "$(uname -sm)" = "Linux x86_64" ] && command -v cc nm objdump ldd >/dev/null; then
    is_lean=yes
fi

python=.venv/bin/python
[ -x $python ] || "${PYTHON:-python3}" -m venv .venv
pip() { "$python" -m pip --disable-pip-version-check install --quiet "$@"; }

pip "numpy>=2" "${onnx[@]}" "jax==$jax_version"
# Its libraries are all that is used of it.
pip --no-deps "$ggml"
if [ $is_lean = yes ]; then
    # What `import torch` needs comes first: after torch, pip would complain about all that is left out on purpose.
    pip filelock typing-extensions sympy networkx jinja2 fsspec
    pip --no-deps "$torch" "${cuda_runtime[@]}"
    ci/stub_cuda.sh "$($python -c 'import importlib.util as u; print(u.find_spec("torch").submodule_search_locations[0])')/lib"
elif [ "${1-}" = --gpu ]; then
    pip "$torch" "jax[cuda13]==$jax_version" "$cudnn"
else
    pip "$torch"
fi

"$python" - <<'PYTHON'
from importlib.metadata import version

import jax, numpy, onnx, onnxruntime, torch

found = "with" if torch.cuda.is_available() else "without"
print(f"numpy {numpy.__version__}, torch {torch.__version__} ({found} a GPU), onnxruntime {onnxruntime.__version__}, "
      f"jax {jax.__version__}, ggml of pywhispercpp {version('pywhispercpp')}")
PYTHON
