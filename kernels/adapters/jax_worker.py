"""JAX's attention: jax.nn.dot_product_attention, compiled by XLA, and on GPUs its cuDNN implementation too.

    attnbench run suites/peers.toml --provider cpu --provider jax

Compilation happens while preparing, and a sample ends when the result is there. On the CPU arrays are JAX's in place,
and a case's threads are those of XLA's client, which is made anew where their number changes. On a GPU a sample is wall
time, since JAX has no timing events: launch gaps are in it, and it is flagged `unheld`. The GPU path has not run on hardware
yet.

JAX's own causality and windows begin at the top left. What the problem aligns at the bottom right is given to JAX as a
mask, made while preparing.

Files here must not be called like the packages that they import: Python looks into a script's own folder first.
"""

import gc
import os
from pathlib import Path

from attnbench_worker import Call, Kernel, Lazy, Provider, Unsupported, np, refuse, serve

jax = Lazy("jax")

# The number of threads of XLA's CPU client, which reads it when it is made.
XLA_THREADS = "PJRT_NPROC"
# How XLA names the threads of its pool.
POOL_THREAD = "tf_XLAEigen"
# Overwritten to empty a GPU's caches, whose size JAX does not tell.
SWEEP_BYTES = 256 << 20


class Tensor:
    """What a call reads: JAX's arrays are immutable, so new values are a new array."""

    def __init__(self, value):
        self.value = value


class Bound(Call):
    """A compiled function on the values that the inputs have when it is called. In the backward pass it is that of what
    `forward` keeps."""

    def __init__(self, compiled, forward, inputs, names):
        self.inputs, self.names, self.is_backward = inputs, names, forward is not None
        ready = jax.block_until_ready
        if self.is_backward:
            self.keep = lambda: ready(forward(*self.values()))
            self.run = lambda: ready(compiled(self.kept, inputs["d_o"].value))
        else:
            self.run = lambda: ready(compiled(*self.values()))

    def values(self):
        return tuple(self.inputs[name].value for name in self.names)

    def refresh(self):
        """Runs the forward pass, which leaves behind what its gradients need."""
        if self.is_backward:
            self.kept = self.keep()

    def results(self, value):
        return dict(zip(("d_q", "d_k", "d_v"), value)) if self.is_backward else {"o": value}


class Attention(Kernel):
    def __init__(self, name, summary):
        self.name, self.summary = name, summary

    def supports(self, problem):
        refuse(problem, "pages", "sinks", "softcap", "patterns but windows", "alibi", "deterministic", "head dims")
        if problem.phase == "backward" and problem.bias != "none":
            raise Unsupported("gradients with a bias are not asked of JAX here")
        if self.name == "cudnn" and provider.is_cpu:
            raise Unsupported("JAX has its cuDNN implementation on GPUs only, and the device is the CPU")

    def workspace_bytes(self, problem):
        # Scores and weights; gradients of both.
        copies = 5 if problem.phase == "backward" else 2
        return 4 * problem.score_count * copies if self.name == "xla" else 0

    def bind(self, problem, inputs, outputs, threads):
        if problem.has_blind_rows():
            raise Unsupported("gives a query that sees no key the mean of all values, not zero")
        names = ("q", "k", "v", *(["bias"] if problem.bias != "none" else []))
        # One compilation serves every buffer of a case.
        is_new = getattr(self, "problem", None) is not problem
        if is_new:
            self.problem, self.functions = problem, self.functions_of(problem)
        call = Bound(*self.functions, inputs, names)
        if is_new:
            try:
                call.refresh()
                call.run()
            except (ValueError, NotImplementedError) as error:
                raise Unsupported(f"JAX refuses it: {' '.join(str(error).split())[:300]}") from error
        return call

    def functions_of(self, problem):
        """What is timed, and what it needs to have kept; both are compiled in their first call."""
        fixed = {"scale": problem.effective_scale, "implementation": self.name, **masking(problem)}
        shape = problem.shape("o")[1]

        def attend(q, k, v, bias=None):
            options = dict(fixed)
            if problem.bias == "additive":
                options["bias"] = bias
            elif problem.bias == "bool":
                options["mask"] = bias & fixed["mask"] if "mask" in fixed else bias
            q, k, v = (heads_third(problem, tensor) for tensor in (q, k, v))
            out = jax.nn.dot_product_attention(q, k, v, **options)
            return out.swapaxes(1, 2) if problem.layout == "bhsd" else out.reshape(shape)

        if problem.phase != "backward":
            return jax.jit(attend), None
        forward = jax.jit(lambda *values: jax.vjp(attend, *values)[1])
        return jax.jit(lambda walk_back, gradient: walk_back(gradient)), forward


def heads_third(problem, tensor):
    """A tensor as (batch, length, heads, dim), which is traced, so a transposition is XLA's to fuse."""
    if problem.layout == "thd":
        return tensor.reshape(problem.batch, -1, *tensor.shape[1:])
    return tensor.swapaxes(1, 2) if problem.layout == "bhsd" else tensor


def masking(problem):
    """The arguments that mask what the problem masks."""
    if problem.sees_all():
        return {}
    if problem.query_offset(0) != 0:
        return {"mask": problem.mask()[None, None]}
    options = {"is_causal": problem.causal}
    if problem.pattern == "window":
        left, right = problem.pattern_options["left"], problem.pattern_options["right"]
        # Compared in 32 bits.
        options["local_window_size"] = tuple(min(bound, 1 << 30) for bound in (left, 0 if problem.causal else right))
    return options


class Jax(Provider):
    name = "jax"
    kernels = (
        Attention("xla", "dot_product_attention as XLA compiles it: the scores are materialised"),
        Attention("cudnn", "dot_product_attention, cuDNN implementation"),
    )
    is_cpu = True

    def load(self):
        try:
            import jax as module
        except (ImportError, OSError, RuntimeError) as error:
            raise Unsupported(f"JAX cannot be imported ({error}); ci/peers.sh installs it") from error
        self.device = "cpu" if module.default_backend() == "cpu" else str(module.devices()[0].device_kind)
        self.is_cpu, self.threads = self.device == "cpu", None
        if not self.is_cpu:
            self.sweep = module.numpy.zeros(SWEEP_BYTES, dtype="uint8")
            self.overwrite = module.jit(lambda sweep: sweep + 1, donate_argnums=0)

    def versions(self):
        import jaxlib

        return {"jax": jax.__version__, "jaxlib": jaxlib.__version__}

    def set_threads(self, threads):
        """Makes a client with so many threads: XLA knows no other way."""
        if not self.is_cpu or threads == self.threads:
            return
        from jax.extend.backend import clear_backends

        os.environ[XLA_THREADS] = str(threads)
        clear_backends()
        gc.collect()
        before = pool_threads()
        jax.block_until_ready(jax.numpy.zeros(1))
        made = len(pool_threads() - before)
        if made not in (0, threads):
            raise Unsupported(f"XLA made a pool of {made} threads where {threads} were asked for ({XLA_THREADS})")
        self.threads = threads

    def tensor(self, array, element):
        return Tensor(self.put(array, element))

    def put(self, array, element):
        """The array on the device; on the CPU, in its own memory."""
        if element == "bf16":
            array = array.view(jax.numpy.bfloat16)
        elif element == "bool":
            array = array.view(np.bool_)
        return jax.device_put(array, may_alias=True)

    def upload(self, tensor, array):
        tensor.value = self.put(array, {"bfloat16": "bf16", "bool": "bool"}.get(str(tensor.value.dtype)))

    def download(self, tensor, array, element):
        value = np.asarray(tensor.value if isinstance(tensor, Tensor) else tensor)
        array[...] = value.view(array.dtype)

    def flush(self, arrays):
        if self.is_cpu:
            super().flush(arrays)
        else:
            self.sweep = jax.block_until_ready(self.overwrite(self.sweep))

    def timed(self, run):
        result, device_ns, wall_ns, flags = super().timed(run)
        return result, device_ns, wall_ns, flags if self.is_cpu else [*flags, "unheld"]

    def is_out_of_memory(self, error):
        return super().is_out_of_memory(error) or "RESOURCE_EXHAUSTED" in str(error)


def pool_threads():
    """The threads of XLA's pools in this process; none where the system does not tell."""
    found = set()
    for thread in Path("/proc/self/task").glob("*"):
        try:
            if (thread / "comm").read_text().startswith(POOL_THREAD):
                found.add(thread.name)
        except OSError:
            pass
    return found


if __name__ == "__main__":
    provider = Jax()
    serve(provider)
