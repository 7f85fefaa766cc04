"""PyTorch's attention: scaled_dot_product_attention with each of its back ends, flex_attention, and the raw flash op.

    attnbench run suites/peers.toml --provider cpu --provider torch
    attnbench run SUITE --provider torch='.venv/bin/python kernels/adapters/torch_worker.py --device cuda'

The device is the CPU unless `--device` names another that PyTorch knows and that has timing events (cuda, which ROCm
calls itself too, or xpu); attnbench_torch.py says how it is timed there.

Files here must not be called like the packages that they import: Python looks into a script's own folder first.
"""

import warnings

from attnbench_torch import Bound, Gradients, TorchProvider, torch
from attnbench_worker import Kernel, Unsupported, refuse, serve


class Sdpa(Kernel):
    """scaled_dot_product_attention, held to one back end or free to choose."""

    def __init__(self, name, backend, summary):
        self.name, self.backend, self.summary = name, backend, summary

    def supports(self, problem):
        refuse(problem, "pages", "sinks", "softcap", "pattern", "alibi", "deterministic")
        if provider.is_cpu and self.backend in ("EFFICIENT_ATTENTION", "CUDNN_ATTENTION"):
            raise Unsupported("PyTorch has this back end on GPUs only, and the device is the CPU")
        if problem.bias != "none" and problem.causal:
            raise Unsupported("takes a mask or causality, not both")

    def workspace_bytes(self, problem):
        if self.backend != "MATH":
            return 0
        # Scores and weights, which autograd keeps and their gradients accompany.
        return 4 * problem.score_count * (5 if problem.phase == "backward" else 2)

    def bind(self, problem, inputs, outputs, threads):
        flags = torch.backends.cuda
        for backend, enable in (
            ("MATH", flags.enable_math_sdp), ("FLASH_ATTENTION", flags.enable_flash_sdp),
            ("EFFICIENT_ATTENTION", flags.enable_mem_efficient_sdp), ("CUDNN_ATTENTION", flags.enable_cudnn_sdp),
        ):  # fmt: skip
            enable(self.backend in (None, backend))
        options = {"scale": problem.effective_scale, "enable_gqa": problem.heads_q != problem.heads_kv}
        options.update(causality(problem))
        if problem.bias != "none":
            bias = inputs["bias"]
            options["attn_mask"] = bias.view(torch.bool) if problem.bias == "bool" else bias
        attend = torch.nn.functional.scaled_dot_product_attention
        bound = Bound(problem, inputs, lambda q, k, v: attend(q, k, v, **options))
        self.check_choice(bound, options)
        return bound

    def check_choice(self, bound, options):
        """PyTorch would fall back to another back end, or fail in the first call; this asks it first, and for why."""
        if self.backend is None:
            return
        q, k, v = (bound.view(bound.inputs[name]) for name in ("q", "k", "v"))
        if bound.is_backward:
            q, k, v = (tensor.detach().requires_grad_() for tensor in (q, k, v))
        mask = options.get("attn_mask")
        is_lower_right = mask is not None and type(mask) is not torch.Tensor
        if is_lower_right and self.backend == "CUDNN_ATTENTION":
            raise Unsupported("PyTorch gives bottom-right causality to other back ends than cuDNN's")
        plain = {name: value for name, value in options.items() if name != "attn_mask"}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                # A lower-right bias chooses by itself, with the same rules.
                choice = torch._fused_sdp_choice(q, k, v, None if is_lower_right else mask, 0.0, **plain)
            except RuntimeError as error:
                caught, choice = [error, *caught], -1
        if choice != int(getattr(torch.nn.attention.SDPBackend, self.backend)):
            said = [str(getattr(item, "message", item)).split(" (Triggered")[0] for item in caught]
            why = f": {' '.join(said)}"[:400] if said else ""
            raise Unsupported(f"PyTorch does not use its {self.backend} back end for this problem{why}")


def causality(problem):
    """The arguments of SDPA that mask what the problem masks. `is_causal` is top-left there."""
    q, k = problem.lengths_q[0], problem.lengths_kv[0]
    if not problem.causal:
        return {}
    if problem.causal_alignment == "top_left" or q == k:
        return {"is_causal": True}
    if q == 1:
        return {}
    if provider.is_cpu:
        # The CPU's kernels know no lower-right causality: they get it as a mask, which is made here, untimed.
        visible = torch.ones(q, k, dtype=torch.bool).tril(k - q)
        return {"attn_mask": visible}
    from torch.nn.attention.bias import causal_lower_right

    return {"attn_mask": causal_lower_right(q, k)}


class Flex(Kernel):
    name = "flex"
    summary = "flex_attention, compiled, with a block mask made beforehand"

    def supports(self, problem):
        refuse(problem, "pages", "sinks", "deterministic")
        if problem.pattern == "bigbird":
            raise Unsupported("does not know pattern bigbird")
        if problem.bias == "bool":
            raise Unsupported("a boolean mask is an input, and a block mask may not depend on inputs")
        if problem.phase == "backward" and provider.is_cpu:
            raise Unsupported("PyTorch has no backward of flex_attention on the CPU")

    def bind(self, problem, inputs, outputs, threads):
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        torch._dynamo.reset()
        compiled = torch.compile(flex_attention, dynamic=False)
        options = {"scale": problem.effective_scale, "enable_gqa": problem.heads_q != problem.heads_kv}
        if problem.causal or problem.pattern != "full":
            lengths = problem.lengths_q[0], problem.lengths_kv[0]
            options["block_mask"] = create_block_mask(mask_of(problem), None, None, *lengths, device=provider.device)
        options["score_mod"] = score_of(problem, inputs)
        bound = Bound(problem, inputs, lambda q, k, v: compiled(q, k, v, **options))
        try:
            if not bound.is_backward:
                bound.run()
        except (torch._dynamo.exc.TorchDynamoException, RuntimeError, NotImplementedError) as error:
            if provider.is_out_of_memory(error):
                raise
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise Unsupported(f"flex_attention does not compile here: {' '.join(lines)[:300]}") from error
        return bound


def mask_of(problem):
    """flex_attention's mask_mod of the problem's pattern: which key a query at position p sees."""
    offset, options = problem.query_offset(0), problem.pattern_options
    pattern, is_causal = problem.pattern, problem.causal

    def visible(b, h, q, j):
        p = q + offset
        distance = p - j
        sees = j >= 0
        if pattern == "window":
            sees = (distance <= options["left"]) & (distance >= -options["right"])
        elif pattern in ("dilated", "longformer"):
            step = options["step"] if pattern == "dilated" else options["dilation"]
            sees = (distance.abs() <= options["window"] * step) & (distance % step == 0)
            if pattern == "longformer":
                sees = sees | (j < options["global"]) | (p < options["global"])
        elif pattern == "strided":
            sees = (distance >= 0) & ((distance <= options["stride"]) | (distance % options["stride"] == 0))
        elif pattern == "fixed":
            block, summary = options["block"], options["summary"]
            sees = (distance >= 0) & ((p // block == j // block) | (j % block >= block - summary))
        return sees & (distance >= 0) if is_causal else sees

    return visible


def score_of(problem, inputs):
    """flex_attention's score_mod of softcap and bias, or None. Scores arrive scaled."""
    if problem.softcap is None and problem.bias == "none":
        return None
    cap, bias, offset, heads = problem.softcap, inputs.get("bias"), problem.query_offset(0), problem.heads_q

    def modified(score, b, h, q, j):
        if cap is not None:
            score = cap * torch.tanh(score / cap)
        if problem.bias == "additive":
            score = score + bias[0, 0, q, j]
        if problem.bias == "alibi":
            score = score - torch.exp2(-8.0 * (h + 1) / heads) * (q + offset - j).abs()
        return score

    return modified


class AtenFlash(Kernel):
    name = "aten_flash"
    summary = "the flash operators themselves: on GPUs with FlashAttention's windows; gradients without autograd"

    def supports(self, problem):
        refuse(problem, "pages", "sinks", "softcap", "patterns but windows", "bias", "deterministic", "head dims")
        if provider.is_cpu and problem.pattern == "window":
            raise Unsupported("PyTorch's flash operator for the CPU does not know pattern window")
        if not provider.is_cpu and problem.causal_alignment == "top_left" and problem.seqlen_q != problem.seqlen_kv:
            raise Unsupported("aligns bottom-right only")

    def bind(self, problem, inputs, outputs, threads):
        operators = self.cpu_operators if provider.is_cpu else self.gpu_operators
        forward, backward = operators(problem)
        if problem.phase == "backward":
            return Gradients(problem, inputs, forward, backward, heads_second=provider.is_cpu)
        return Bound(problem, inputs, lambda q, k, v: forward(q, k, v)[0], heads_second=provider.is_cpu)

    def cpu_operators(self, problem):
        masking, options = causality(problem), {"scale": problem.effective_scale}
        if "attn_mask" in masking:
            raise Unsupported("PyTorch's flash operator for the CPU is causal from the top left only")
        is_causal = bool(masking)
        attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        walk_back = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        return (
            lambda q, k, v: attend(q, k, v, 0.0, is_causal, **options),
            lambda d_o, q, k, v, kept: walk_back(d_o, q, k, v, *kept, 0.0, is_causal, **options),
        )

    def gpu_operators(self, problem):
        options = {"scale": problem.effective_scale}
        if problem.pattern == "window":
            right = 0 if problem.causal else problem.pattern_options["right"]
            options.update(window_size_left=problem.pattern_options["left"], window_size_right=right)
        lengths, is_causal = (problem.lengths_q[0], problem.lengths_kv[0]), problem.causal
        attend, walk_back = torch.ops.aten._flash_attention_forward, torch.ops.aten._flash_attention_backward

        def backward(d_o, q, k, v, kept):
            o, lse, state, unused, _ = kept
            # Sequences of one length need no table of where they begin.
            return walk_back(d_o, q, k, v, o, lse, None, None, *lengths, 0.0, is_causal, state, unused, **options)

        return lambda q, k, v: attend(q, k, v, None, None, *lengths, 0.0, is_causal, False, **options), backward


class LinearOps(Kernel):
    name = "linear_ops"
    summary = "linear attention of plain operators: all chunks at once, a cumulative sum between them"
    chunk = 128

    def supports(self, problem):
        if problem.mechanism != "linear":
            raise Unsupported(f"computes linear attention, not {problem.mechanism}")
        if problem.phase != "prefill":
            raise Unsupported(f"computes prefill, not {problem.phase}")
        if problem.is_ragged or problem.dtype != problem.dtype_kv:
            raise Unsupported("takes sequences of one length, and one dtype")
        if problem.causal and problem.seqlen_q != problem.seqlen_kv:
            raise Unsupported("causal, it takes as many queries as keys")

    def bind(self, problem, inputs, outputs, threads):
        options = problem.mechanism_options
        functional = torch.nn.functional
        phi = {
            "elu1": lambda x: functional.elu(x) + 1, "relu": functional.relu, "identity": lambda x: x,
        }[options["feature_map"]]  # fmt: skip
        group = problem.heads_q // problem.heads_kv

        def attend(q, k, v):
            q, k = phi(q), phi(k)
            if group > 1:
                k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
            if options["normalised"]:
                # A column of ones: its output is the denominator.
                v = functional.pad(v, (0, 1), value=1.0)
            o = self.causal(q, k, v) if problem.causal else q @ (k.transpose(-1, -2) @ v)
            return o[..., :-1] / (o[..., -1:] + 1e-6) if options["normalised"] else o * problem.effective_scale

        return Bound(problem, inputs, attend)

    def causal(self, q, k, v):
        """Every chunk's keys and values become a state; a chunk sees the states before it, and itself as a triangle."""
        length = q.shape[2]
        padding = -length % self.chunk
        q, k, v = (
            torch.nn.functional.pad(x, (0, 0, 0, padding)).unflatten(2, (-1, self.chunk)) for x in (q, k, v)
        )  # fmt: skip
        states = k.transpose(-1, -2) @ v
        before = states.cumsum(2) - states
        o = q @ before + (q @ k.transpose(-1, -2)).tril() @ v
        return o.flatten(2, 3)[:, :, :length]


class Torch(TorchProvider):
    """PyTorch's attention."""

    name = "torch"
    default_device = "cpu"
    kernels = (
        Sdpa("sdpa", None, "scaled_dot_product_attention with the back end that PyTorch chooses"),
        Sdpa("sdpa_math", "MATH", "scaled_dot_product_attention, composed of matrix products and a softmax"),
        Sdpa("sdpa_flash", "FLASH_ATTENTION", "scaled_dot_product_attention, flash back end"),
        Sdpa("sdpa_efficient", "EFFICIENT_ATTENTION", "scaled_dot_product_attention, memory-efficient back end"),
        Sdpa("sdpa_cudnn", "CUDNN_ATTENTION", "scaled_dot_product_attention, cuDNN back end"),
        Flex(),
        AtenFlash(),
        LinearOps(),
    )


if __name__ == "__main__":
    provider = Torch()
    serve(provider)
