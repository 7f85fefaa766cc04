"""Bring your own kernel: copy this file beside attnbench_worker.py, replace what `attend` does, and run

    attnbench run SUITE --provider mine='python3 kernels/adapters/template.py'

with a suite whose matrices say `providers = ["mine"]` and `kernels = ["softmax"]`. It works as it stands: softmax
attention in numpy, which materialises the scores of one head at a time. kernels/adapters/README.md has such a suite.
"""

import numpy as np
from attnbench_inputs import narrow, widen
from attnbench_worker import Kernel, Provider, Unsupported, serve


class Softmax(Kernel):
    name = "softmax"
    summary = "softmax attention in numpy, one head at a time"

    def supports(self, problem):
        """Say precisely what you do not compute: the reason stands in the record."""
        if problem.mechanism != "softmax" or problem.pattern != "full":
            raise Unsupported(f"computes full softmax attention only, not {problem.mechanism} {problem.pattern}")
        if problem.phase == "backward":
            raise Unsupported("computes no gradients")
        for option in ("softcap", "sinks", "is_paged"):
            if getattr(problem, option):
                raise Unsupported(f"does not know {option}")
        if problem.bias != "none":
            raise Unsupported(f"does not know bias {problem.bias}")

    def bind(self, problem, inputs, outputs, threads):
        """Make the timed call for these tensors. Shapes are known here, values are not: they change between calls."""

        def call():
            for sequence in range(problem.batch):
                # (token, head, dim), whatever the memory layout.
                q, k, v = (problem.tokens(inputs[name], name, sequence)[0] for name in ("q", "k", "v"))
                o = problem.tokens(outputs["o"], "o", sequence)[0]
                visible = causal_mask(problem, sequence) if problem.causal else None
                for head in range(problem.heads_q):
                    kv_head = head // (problem.heads_q // problem.heads_kv)
                    rows = attend(
                        widen(q[:, head], problem.dtype),
                        widen(k[:, kv_head], problem.dtype_kv),
                        widen(v[:, kv_head], problem.dtype_kv),
                        problem.effective_scale,
                        visible,
                    )
                    o[:, head] = narrow(rows, problem.dtype)

        return call


def causal_mask(problem, sequence):
    """Query i sees keys up to its position i + offset."""
    positions = np.arange(problem.lengths_q[sequence]) + problem.query_offset(sequence)
    return np.arange(problem.lengths_kv[sequence]) <= positions[:, None]


def attend(q, k, v, scale, visible):
    """softmax(scale q k^T) v of one head; rows that see no key are zero."""
    if not k.shape[0]:
        return np.zeros((q.shape[0], v.shape[1]), dtype=np.float32)
    scores = (q * np.float32(scale)) @ k.T
    if visible is not None:
        scores[~visible] = -np.inf
    peaks = scores.max(axis=1, keepdims=True)
    weights = np.exp(scores - np.where(np.isfinite(peaks), peaks, 0))
    return (weights @ v) / np.maximum(weights.sum(axis=1, keepdims=True), np.finfo(np.float32).tiny)


class Mine(Provider):
    name = "mine"
    kernels = (Softmax(),)


if __name__ == "__main__":
    serve(Mine())
