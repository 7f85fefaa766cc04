"""PyTorch's attention: scaled_dot_product_attention with each of its back ends, flex_attention, and the raw flash op.

    attnbench run suites/peers.toml --provider cpu --provider torch
    attnbench run SUITE --provider torch='.venv/bin/python kernels/adapters/torch_worker.py --device cuda'

The device is the CPU unless `--device` names another that PyTorch knows and that has timing events (cuda, which ROCm
calls itself too, or xpu). On such a device a sample is the time between two events around the call, with the queue held
by a spinning kernel while the call is enqueued, so that launch gaps stay outside; where the hold ended too early, or
the device has none, the sample is flagged `unheld`. The second-level cache is flushed by overwriting twice its size.
This path has not run on hardware yet: treat its numbers as unproven.

Files here must not be called like the packages that they import: Python looks into a script's own folder first.
"""

import argparse
import time
import warnings

from attnbench_worker import Call, Kernel, Provider, Unsupported, serve

torch = None  # Imported by TorchProvider.load, once stdout is out of its reach.

# The longest that the queue is held.
HOLD_LIMIT_NS = 100e6


class Bound(Call):
    """A call on tensors as PyTorch wants them: (batch, heads, length, dim) views of the problem's own."""

    def __init__(self, problem, inputs, attend, heads_second=True):
        self.problem, self.inputs, self.attend, self.heads_second = problem, inputs, attend, heads_second
        self.is_backward = problem.phase == "backward"
        if not self.is_backward:
            q, k, v = (self.view(inputs[name]) for name in ("q", "k", "v"))
            self.run = lambda: attend(q, k, v)

    def view(self, tensor):
        problem = self.problem
        if problem.layout == "thd":
            tensor = tensor.view(problem.batch, -1, *tensor.shape[1:])
        is_heads_second = problem.layout == "bhsd"
        return tensor if is_heads_second == self.heads_second else tensor.transpose(1, 2)

    def refresh(self):
        """Records the forward pass, whose graph holds O and LSE; `run` only walks it back."""
        leaves = [self.inputs[name].detach().requires_grad_() for name in ("q", "k", "v")]
        with torch.enable_grad():
            out = self.attend(*map(self.view, leaves))
        gradient = self.view(self.inputs["d_o"])
        self.run = lambda: torch.autograd.grad(out, leaves, gradient, retain_graph=True)

    def results(self, value):
        if self.is_backward:
            return dict(zip(("d_q", "d_k", "d_v"), value))
        problem = self.problem
        if (problem.layout == "bhsd") != self.heads_second:
            value = value.transpose(1, 2)
        return {"o": value.reshape(-1, *value.shape[2:]) if problem.layout == "thd" else value}


def refuse(problem, *options):
    """What none of PyTorch's dense kernels computes, and further options that one of them does not."""
    if problem.mechanism != "softmax":
        raise Unsupported(f"computes softmax attention, not {problem.mechanism}")
    if problem.dtype != problem.dtype_kv:
        raise Unsupported(f"needs one dtype: Q has {problem.dtype}, K and V have {problem.dtype_kv}")
    if problem.is_ragged:
        raise Unsupported("takes sequences of one length")
    values = {
        "pages": problem.is_paged,
        "sinks": problem.sinks,
        "softcap": problem.softcap is not None,
        f"pattern {problem.pattern}": problem.pattern != "full",
        f"bias {problem.bias}": problem.bias != "none",
        "deterministic": problem.deterministic,
    }
    for option, is_wanted in values.items():
        if is_wanted and option.split()[0] in options:
            raise Unsupported(f"does not know {option}")


class Sdpa(Kernel):
    """scaled_dot_product_attention, held to one back end or free to choose."""

    def __init__(self, name, backend, summary):
        self.name, self.backend, self.summary = name, backend, summary

    def supports(self, problem):
        refuse(problem, "pages", "sinks", "softcap", "pattern", "deterministic")
        if provider.device == "cpu" and self.backend in ("EFFICIENT_ATTENTION", "CUDNN_ATTENTION"):
            raise Unsupported("PyTorch has this back end on GPUs only, and the device is the CPU")
        if problem.bias == "alibi":
            raise Unsupported("does not know bias alibi")
        if problem.bias != "none" and problem.causal:
            raise Unsupported("takes a mask or causality, not both")

    def workspace_bytes(self, problem):
        if self.backend != "MATH":
            return 0
        # Scores and weights, which autograd keeps and their gradients accompany.
        scores = 4 * sum(q * k for q, k in zip(problem.lengths_q, problem.lengths_kv)) * problem.heads_q
        return scores * (5 if problem.phase == "backward" else 2)

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
        plain = {name: value for name, value in options.items() if name != "attn_mask"}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                # A lower-right bias chooses by itself, with the same rules.
                is_tensor = mask is None or type(mask) is torch.Tensor
                choice = torch._fused_sdp_choice(q, k, v, mask if is_tensor else None, 0.0, **plain)
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
    if provider.device == "cpu":
        # The CPU's kernels know no lower-right causality: they get it as a mask, which is made here, untimed.
        visible = torch.ones(q, k, dtype=torch.bool).tril(k - q)
        return {"attn_mask": visible}
    return {"attn_mask": torch.nn.attention.bias.causal_lower_right(q, k)}


class Flex(Kernel):
    name = "flex"
    summary = "flex_attention, compiled, with a block mask made beforehand"

    def supports(self, problem):
        refuse(problem, "pages", "sinks", "deterministic")
        if problem.pattern == "bigbird":
            raise Unsupported("does not know pattern bigbird")
        if problem.phase == "backward" and provider.device == "cpu":
            raise Unsupported("PyTorch has no backward of flex_attention on the CPU")

    def bind(self, problem, inputs, outputs, threads):
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        torch._dynamo.reset()
        compiled = torch.compile(flex_attention, dynamic=False)
        options = {"scale": problem.effective_scale, "enable_gqa": problem.heads_q != problem.heads_kv}
        if problem.causal or problem.pattern != "full" or problem.bias == "bool":
            lengths = problem.lengths_q[0], problem.lengths_kv[0]
            if problem.bias == "bool":
                raise Unsupported("a boolean mask is an input, and a block mask may not depend on inputs")
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
    summary = "aten._flash_attention_forward: FlashAttention's own semantics, with windows"

    def supports(self, problem):
        refuse(problem, "pages", "sinks", "softcap", "bias", "deterministic")
        if provider.device == "cpu":
            raise Unsupported("PyTorch has aten::_flash_attention_forward on GPUs only, and the device is the CPU")
        if problem.pattern not in ("full", "window"):
            raise Unsupported(f"does not know pattern {problem.pattern}")
        lengths = (problem.lengths_q or [0])[0], (problem.lengths_kv or [0])[0]
        if problem.causal_alignment == "top_left" and lengths[0] != lengths[1]:
            raise Unsupported("aligns bottom-right only")
        if problem.head_dim_qk != problem.head_dim_v:
            raise Unsupported("needs keys and values of one dimension")

    def bind(self, problem, inputs, outputs, threads):
        options = {"scale": problem.effective_scale}
        if problem.pattern == "window":
            right = 0 if problem.causal else problem.pattern_options["right"]
            options.update(window_size_left=problem.pattern_options["left"], window_size_right=right)
        lengths, is_causal = (problem.lengths_q[0], problem.lengths_kv[0]), problem.causal

        def attend(q, k, v):
            forward = torch.ops.aten._flash_attention_forward
            return forward(q, k, v, None, None, *lengths, 0.0, is_causal, False, **options)[0]

        return Bound(problem, inputs, attend, heads_second=False)


class TorchProvider(Provider):
    name = "torch"
    kernels = (
        Sdpa("sdpa", None, "scaled_dot_product_attention with the back end that PyTorch chooses"),
        Sdpa("sdpa_math", "MATH", "scaled_dot_product_attention, composed of matrix products and a softmax"),
        Sdpa("sdpa_flash", "FLASH_ATTENTION", "scaled_dot_product_attention, flash back end"),
        Sdpa("sdpa_efficient", "EFFICIENT_ATTENTION", "scaled_dot_product_attention, memory-efficient back end"),
        Sdpa("sdpa_cudnn", "CUDNN_ATTENTION", "scaled_dot_product_attention, cuDNN back end"),
        Flex(),
        AtenFlash(),
    )

    def __init__(self, device):
        self.device = device
        self.hold_ns = 1e6

    def load(self):
        global torch
        try:
            import torch as module
            import torch.nn.attention.bias
        except (ImportError, OSError) as error:
            raise Unsupported(f"PyTorch cannot be imported ({error}); ci/peers.sh installs it") from error
        torch = module
        torch.set_grad_enabled(False)
        self.is_cpu = self.device == "cpu"
        if self.is_cpu:
            return
        try:
            self.api = torch.get_device_module(self.device)
            is_there = self.api.is_available()
        except (RuntimeError, AttributeError) as error:
            raise Unsupported(f"PyTorch knows no device `{self.device}`: {error}") from error
        if not is_there:
            raise Unsupported(f"PyTorch {torch.__version__} finds no device `{self.device}`")
        properties = self.api.get_device_properties()
        self.clock_ghz = getattr(properties, "clock_rate", 2e6) * 1e-6
        flushed_bytes = 2 * (getattr(properties, "L2_cache_size", 0) or 128 << 20)
        self.sweep = torch.empty(flushed_bytes, dtype=torch.uint8, device=self.device)

    def versions(self):
        return {"torch": torch.__version__, **({} if self.is_cpu else {"device": self.api.get_device_name()})}

    def set_threads(self, threads):
        torch.set_num_threads(threads)

    def tensor(self, array, element):
        tensor = self.host(array, element)
        return tensor if self.is_cpu else tensor.to(self.device)

    def host(self, array, element):
        """The array as a tensor that shares its memory."""
        if element == "bf16":
            return torch.from_numpy(array.view("int16")).view(torch.bfloat16)
        return torch.from_numpy(array)

    def upload(self, tensor, array):
        if not self.is_cpu:
            tensor.copy_(self.host(array, "bf16" if tensor.dtype == torch.bfloat16 else None))

    def download(self, tensor, array, element):
        host = self.host(array, element)
        # On the CPU inputs share their memory with the array.
        if tensor.data_ptr() != host.data_ptr():
            host.copy_(tensor.detach())

    def flush(self, arrays):
        if self.is_cpu:
            super().flush(arrays)
        else:
            self.sweep.add_(1)
            self.api.synchronize()

    def timed(self, run):
        if self.is_cpu:
            return super().timed(run)
        flags = []
        start, end = self.api.Event(enable_timing=True), self.api.Event(enable_timing=True)
        self.api.synchronize()
        begin = time.perf_counter_ns()
        can_hold = hasattr(self.api, "_sleep")
        if can_hold:
            self.api._sleep(int(self.hold_ns * self.clock_ghz))
        start.record()
        enqueue = time.perf_counter_ns()
        result = run()
        end.record()
        # The start event passed before everything was enqueued: the queue ran dry, or could have.
        if not can_hold or start.query():
            flags.append("unheld")
        self.hold_ns = min(max(self.hold_ns, 2.0 * (time.perf_counter_ns() - enqueue)), HOLD_LIMIT_NS)
        self.api.synchronize()
        return result, start.elapsed_time(end) * 1e6, time.perf_counter_ns() - begin, flags

    def synchronise(self):
        if not self.is_cpu:
            self.api.synchronize()

    def reset_peak(self):
        if not self.is_cpu:
            self.base_bytes = self.api.memory_allocated()
            self.api.reset_peak_memory_stats()

    def extra_peak_bytes(self):
        """The allocator's mark. Outputs that a call allocates itself are in it. The CPU's allocator keeps none."""
        return None if self.is_cpu else max(self.api.max_memory_allocated() - self.base_bytes, 0)

    def is_out_of_memory(self, error):
        if torch is not None and isinstance(error, torch.OutOfMemoryError):
            return True
        return isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu, cuda or xpu")
    return parser.parse_args()


if __name__ == "__main__":
    provider = TorchProvider(arguments().device)
    serve(provider)
