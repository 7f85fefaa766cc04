"""PyTorch as memory, clock and device of a worker: what the workers for kernels on its tensors share.

A device other than the CPU is one that PyTorch knows and that has timing events: cuda, which ROCm calls itself too, or
xpu. There a sample is the time between two events around the call, with the queue held by a spinning kernel while the
call is enqueued, so that launch gaps stay outside; where the hold ended too early, or the device has none, the sample is
flagged `unheld`. The second-level cache is flushed by overwriting twice its size. This path has not run on hardware yet:
treat its numbers as unproven.
"""

import argparse
import time

from attnbench_worker import Call, Lazy, Provider, Unsupported

torch = Lazy("torch")

# The longest that the queue is held.
HOLD_LIMIT_NS = 100e6


class Bound(Call):
    """A call on tensors as PyTorch wants them: (batch, heads, length, dim) views of the problem's own, or with heads
    third where `heads_second` is false. Pages stay (page, token, heads, dim)."""

    def __init__(self, problem, inputs, attend, heads_second=True):
        self.problem, self.inputs, self.attend, self.heads_second = problem, inputs, attend, heads_second
        self.is_backward = problem.phase == "backward"
        if not self.is_backward:
            q, k, v = (self.view(inputs[name]) for name in ("q", "k", "v"))
            self.run = lambda: attend(q, k, v)

    def is_pool(self, tensor):
        return self.problem.is_paged and any(tensor is self.inputs[name] for name in ("k", "v"))

    def view(self, tensor):
        problem = self.problem
        if self.is_pool(tensor):
            return tensor
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
        return {"o": self.own(value)}

    def own(self, value):
        """What `view` would make this of: a result in the problem's layout."""
        if (self.problem.layout == "bhsd") != self.heads_second:
            value = value.transpose(1, 2)
        return value.reshape(-1, *value.shape[2:]) if self.problem.layout == "thd" else value


class Gradients(Bound):
    """A backward pass that is an operator of its own, called without autograd: `forward(q, k, v)` gives what is to be
    kept, O and LSE, and `backward(d_o, q, k, v, kept)` the gradients."""

    def __init__(self, problem, inputs, forward, backward, heads_second=True):
        super().__init__(problem, inputs, None, heads_second)
        views = [self.view(inputs[name]) for name in ("q", "k", "v")]
        d_o = self.view(inputs["d_o"])
        self.forward, self.views, self.kept = forward, views, None
        self.run = lambda: backward(d_o, *views, self.kept)

    def refresh(self):
        self.kept = self.forward(*self.views)

    def results(self, value):
        return {name: self.own(gradient) for name, gradient in zip(("d_q", "d_k", "d_v"), value)}


class TorchProvider(Provider):
    """A provider of kernels that compute on PyTorch's tensors. `--device` names where, `default_device` otherwise."""

    default_device = "cuda"

    def __init__(self):
        parser = argparse.ArgumentParser(description=self.__doc__)
        parser.add_argument("--device", default=self.default_device, help="cpu, cuda or xpu")
        self.device = parser.parse_args().device
        self.is_cpu = self.device == "cpu"
        self.hold_ns = 1e6

    def load(self):
        try:
            import torch as module
        except (ImportError, OSError) as error:
            raise Unsupported(f"PyTorch cannot be imported ({error}); ci/peers.sh installs it") from error
        module.set_grad_enabled(False)
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
        # Newer versions of PyTorch tell it, without the prefix that NVML has.
        uuid = getattr(properties, "uuid", None)
        self.gpu_uuid = f"GPU-{uuid}" if self.device == "cuda" and uuid else None
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
        self.host_ns = time.perf_counter_ns() - enqueue
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
        if isinstance(error, torch.OutOfMemoryError):
            return True
        return isinstance(error, MemoryError) or "can't allocate memory" in str(error)
