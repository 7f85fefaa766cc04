"""A worker in Python: speaks attnbench's protocol, so that any framework's kernel is fed, timed and checked like ours.

A provider subclasses `Provider` and `Kernel` and calls `serve`; template.py shows how. Needs numpy and nothing else. The
protocol is one JSON object a line, requests on stdin and answers on stdout (bench_harness/schema/protocol.schema.json).
Everything else that this process or its libraries print goes to stderr.

The rules that make numbers comparable are kept here, not in kernels:
- Inputs have the same bits as every provider's. Input sets rotate over buffers that are overwritten in place, and
  `Kernel.bind` sees NaN in them, so what is computed from values cannot be prepared in advance.
- Cold mode empties caches before each sample: the lines of the case's tensors are evicted one by one, then a buffer of
  twice the second-level cache is swept (of twice the last level where that is small). Where lines cannot be evicted,
  the sweep alone has to do, of twice the last level up to SWEEP_LIMIT_BYTES.
- A call on poisoned outputs is kept and watched: outputs that change after it returned, or a process that is still busy
  SETTLE_S later, are reported as `late_work`. (Thread pools that spin for work sleep by then. A kernel that ends its
  work within that time and before its outputs are first read is not caught here, but by its wrong times.)
- Inputs are checksummed; a kernel that changes them is reported as `mutated_input`.
"""

import ctypes
import functools
import gc
import hashlib
import importlib
import json
import math
import mmap
import os
import platform
import sys
import time
import zlib
from pathlib import Path

try:
    import attnbench_inputs
    import numpy as np
    from attnbench_inputs import ARRAY_TYPES, Generator, Problem, poison, workers

    NUMPY_ERROR = None
except ImportError as error:
    np = None
    NUMPY_ERROR = f"numpy cannot be imported by {sys.executable} ({error}); ci/peers.sh makes an environment with it"

PROTOCOL = [1, 0]
# Longest line that either side accepts.
MAX_LINE_BYTES = 16 << 20
MAX_SLOTS = 16
CACHE_LINE_BYTES = 64
# A last-level cache up to this size is swept whole even where lines can be evicted.
SWEPT_CACHE_BYTES = 64 << 20
# Where lines cannot be evicted, no more than this is swept: virtual machines show their host's whole cache.
SWEEP_LIMIT_BYTES = 1 << 30
# How long thread pools may go on spinning after a call before they count as busy, and how long that is watched.
SETTLE_S = 0.25
WATCH_S = 0.002


class WorkerError(Exception):
    """An error that the coordinator can act on."""

    kind = "internal"


class Unsupported(WorkerError):
    """The kernel does not compute this problem, or its framework is missing. Give the precise reason."""

    kind = "unsupported"


class OutOfMemory(WorkerError):
    """It needs more memory than there is. Raise it before touching the memory, where that is known."""

    kind = "out_of_memory"


class Invalid(WorkerError):
    """The request makes no sense."""

    kind = "invalid"


class Lazy:
    """A module that is imported when first used: frameworks print while they are imported, and stdout is the protocol's
    until `serve` has moved it away. `Provider.load` imports them in earnest, and says what is missing."""

    def __init__(self, name):
        self.name = name

    def __getattr__(self, attribute):
        value = getattr(importlib.import_module(self.name), attribute)
        setattr(self, attribute, value)
        return value


def check_elements(problem):
    """Raises Unsupported for element types that these workers have no arrays of."""
    for element in (problem.dtype, problem.dtype_kv):
        if element not in ARRAY_TYPES:
            raise Unsupported(f"has no arrays of {element}: there are {', '.join(ARRAY_TYPES)}")


def refuse(problem, *options):
    """Raises Unsupported for what no dense kernel of a framework computes (another mechanism than softmax, K and V of
    another dtype, sequences that differ in length), and for these options where the problem has them: `pages`, `sinks`,
    `softcap`, `pattern`, `patterns but windows`, `bias`, `alibi`, `deterministic` (gradients), `gradients`, `head dims`
    (of V other than of K). `dtypes` and `lengths` allow what is refused otherwise."""
    if problem.mechanism != "softmax":
        raise Unsupported(f"computes softmax attention, not {problem.mechanism}")
    if problem.dtype != problem.dtype_kv and "dtypes" not in options:
        raise Unsupported(f"needs one dtype: Q has {problem.dtype}, K and V have {problem.dtype_kv}")
    if problem.is_ragged and "lengths" not in options:
        raise Unsupported("takes sequences of one length")
    has = {
        "pages": (problem.is_paged, "pages"),
        "sinks": (problem.sinks, "sinks"),
        "softcap": (problem.softcap is not None, "softcap"),
        "pattern": (problem.pattern != "full", f"pattern {problem.pattern}"),
        "patterns but windows": (problem.pattern not in ("full", "window"), f"pattern {problem.pattern}"),
        "bias": (problem.bias != "none", f"bias {problem.bias}"),
        "alibi": (problem.bias == "alibi", "bias alibi"),
        "deterministic": (problem.phase == "backward" and problem.deterministic, "deterministic gradients"),
        "gradients": (problem.phase == "backward", "gradients"),
        "head dims": (problem.head_dim_qk != problem.head_dim_v, "keys and values of different dimensions"),
    }
    for option in options:
        is_wanted, what = has.get(option, (False, ""))
        if is_wanted:
            raise Unsupported(f"does not know {what}")


class Call:
    """A kernel bound to one input buffer and one set of outputs."""

    def refresh(self):
        """Backward problems only: called, untimed, whenever inputs were overwritten; makes O and LSE."""

    def run(self):
        """The timed call. Returns when the result is there (on a GPU: when the work is queued)."""
        raise NotImplementedError

    def results(self, value):
        """Untimed: {name: tensor} of outputs, from what `run` returned. None where it wrote into `outputs`."""
        return None


class Function(Call):
    """A call that is a plain function and writes into `outputs`."""

    def __init__(self, function):
        self.run = function


class Kernel:
    """One implementation."""

    name = ""
    summary = ""

    def supports(self, problem):
        """Raises Unsupported with the reason where this kernel does not compute the problem."""

    def workspace_bytes(self, problem):
        """Bytes that a call is known to allocate beside inputs and outputs."""
        return 0

    def bind(self, problem, inputs, outputs, threads):
        """Prepares a call on these tensors, by name and in the problem's layout, and returns a `Call` or a function.
        Called once for each input buffer. The values are not there yet, except those of `STATIC` tensors."""
        raise NotImplementedError


class Provider:
    """Where kernels come from, and the device that they run on. This one is numpy on a CPU."""

    name = ""
    device = "cpu"
    gpu_uuid = None  # of the GPU that it uses, as NVML writes it: the coordinator then watches its clocks, heat and power
    host_ns = None  # nanoseconds that the host took to enqueue the last timed call, on a device that computes by itself
    kernels = ()

    def load(self):
        """Imports the framework; raises Unsupported with the reason where that fails. Called once, at the start."""

    def versions(self):
        """Versions of what computes, by name."""
        return {}

    def set_threads(self, threads):
        """Makes the framework use this many CPU threads."""
        set_blas_threads(threads)

    def tensor(self, array, element):
        """What kernels see of a host array."""
        return array

    def upload(self, tensor, array):
        """Brings a host array's values to its tensor."""

    def download(self, tensor, array, element):
        """Copies a result into a host array."""
        array[...] = tensor

    def flush(self, tensors):
        """Empties caches before a cold sample."""
        flusher().flush(tensors)

    def timed(self, run):
        """Runs a call: its result, nanoseconds on the device, on the wall clock, and flags."""
        start = time.perf_counter_ns()
        result = run()
        elapsed = time.perf_counter_ns() - start
        return result, elapsed, elapsed, []

    def synchronise(self):
        """Waits until the device is idle."""

    def reset_peak(self):
        """Starts watching the device's memory."""

    def extra_peak_bytes(self):
        """Highest memory beside inputs and outputs since `reset_peak`; None where that cannot be measured."""
        return None

    def is_out_of_memory(self, error):
        """Whether a framework's exception means that."""
        return isinstance(error, MemoryError)


class CacheFlusher:
    """Empties CPU caches."""

    # clflush [rdi]; add rdi, 64; cmp rdi, rsi; jb 0; mfence; ret
    EVICT = bytes.fromhex("0fae3f 4883c740 4839f7 72f4 0faef0 c3")

    def __init__(self):
        last_level, second_level = cache_bytes(3) or cache_bytes(2) or SWEPT_CACHE_BYTES, cache_bytes(2) or 2 << 20
        self.evict = self.make_evict()
        if self.evict is not None and last_level > SWEPT_CACHE_BYTES:
            swept_bytes = 2 * second_level
        else:
            swept_bytes = min(2 * last_level, SWEEP_LIMIT_BYTES)
        self.sweep = np.ones(swept_bytes // 8, dtype=np.uint64)

    def make_evict(self):
        """A function (start, end) that evicts lines, or None: Python has no such instruction, so it is written into an
        executable page where the system allows one."""
        if platform.machine() not in ("x86_64", "AMD64") or os.name != "posix":
            return None
        try:
            self.page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        except (OSError, ValueError):
            return None
        self.page.write(self.EVICT)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self.page))
        return ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)(address)

    def flush(self, arrays):
        self.sweep[::8] += np.uint64(1)
        if self.evict is not None:
            for array in arrays:
                if array.nbytes:
                    self.evict(array.ctypes.data, array.ctypes.data + array.nbytes)


@functools.cache
def flusher():
    """The one flusher of this process, made when first needed."""
    return CacheFlusher()


def cache_bytes(level):
    """Size of a cache level as Linux shows it, or None."""
    for index in range(8):
        base = Path(f"/sys/devices/system/cpu/cpu0/cache/index{index}")
        try:
            if (base / "level").read_text().strip() == str(level):
                text = (base / "size").read_text().strip()
                return int(text.rstrip("KM")) << {"K": 10, "M": 20}.get(text[-1], 0)
        except (OSError, ValueError):
            pass
    return None


def set_blas_threads(threads):
    """Sets the threads of every OpenBLAS in this process: numpy itself has no such function."""
    try:
        maps = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return
    for path in {line.split()[-1] for line in maps if "openblas" in line}:
        library = ctypes.CDLL(path)
        for name in ("openblas_set_num_threads", "scipy_openblas_set_num_threads", "scipy_openblas_set_num_threads64_"):
            if hasattr(library, name):
                getattr(library, name)(threads)


def aligned(dims, dtype):
    """An array of undefined values that begins at a cache line."""
    dtype = np.dtype(dtype)
    bytes_needed = math.prod(dims) * dtype.itemsize
    memory = np.empty(bytes_needed + CACHE_LINE_BYTES, dtype=np.uint8)
    start = -memory.ctypes.data % CACHE_LINE_BYTES
    return memory[start : start + bytes_needed].view(dtype).reshape(dims)


def checksum(arrays):
    """A checksum of arrays' bytes, by chunks on all cores."""
    parts = [memoryview(array.reshape(-1).view(np.uint8)) for array in arrays if array.size]
    chunks = [part[at : at + (8 << 20)] for part in parts for at in range(0, len(part), 8 << 20)]
    return list(workers.map(zlib.crc32, chunks))


def status_bytes(field):
    """A field of /proc/self/status in bytes, or None."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def reset_rss_peak():
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


class Slot:
    """One of the input buffers that calls rotate over, with calls on both sets of outputs."""

    def __init__(self, arrays, tensors, call, poisoned_call):
        self.arrays, self.tensors, self.calls = arrays, tensors, (call, poisoned_call)
        self.set, self.checksum = None, None


class Case:
    """A prepared case."""

    def __init__(self, provider, kernel, request):
        self.provider, self.spec = provider, request["inputs"]
        problem = self.problem = Problem(request["problem"], request["lengths_q"], request["lengths_kv"])
        check_elements(problem)
        kernel.supports(problem)
        self.is_backward = problem.phase == "backward"
        names = problem.input_names + problem.output_names + ["o", "lse"] * self.is_backward
        self.tensor_bytes = problem.tensor_bytes(names)
        slots, available = min(max(request["slots"], 1), MAX_SLOTS), request["available_bytes"]
        needed = self.tensor_bytes * (slots + 1) + kernel.workspace_bytes(problem)
        if needed > available:
            raise OutOfMemory(f"needs {needed} bytes for inputs, outputs and workspace, {available} are available")
        threads = max(request["threads"], 1)
        provider.set_threads(threads)
        reset_rss_peak()

        start = time.perf_counter_ns()
        self.statics = {}
        for name in problem.input_names:
            if name in attnbench_inputs.STATIC:
                self.statics[name] = self.new_array(name)
                Generator(problem, self.spec, 0).fill(name, self.statics[name])
        self.outputs = self.new_outputs()
        self.poisoned = self.new_outputs()
        buffers = []
        for _ in range(slots):
            arrays = {name: self.statics.get(name) for name in problem.input_names}
            arrays = {name: self.new_array(name) if array is None else array for name, array in arrays.items()}
            buffers.append((arrays, self.tensors_of(arrays)))
        self.output_tensors, self.poisoned_tensors = self.tensors_of(self.outputs), self.tensors_of(self.poisoned)
        self.inputs_ns = time.perf_counter_ns() - start

        start = time.perf_counter_ns()
        provider.reset_peak()
        self.slots = []
        for arrays, tensors in buffers:
            bound = [kernel.bind(problem, tensors, outputs, threads) for outputs in
                     (self.output_tensors, self.poisoned_tensors)]  # fmt: skip
            self.slots.append(Slot(arrays, tensors, *(b if isinstance(b, Call) else Function(b) for b in bound)))
        provider.synchronise()
        self.plan_ns = time.perf_counter_ns() - start

        start = time.perf_counter_ns()
        for input_set in range(slots):
            self.fill(input_set)
        self.inputs_ns += time.perf_counter_ns() - start

    def new_array(self, name):
        """A poisoned array that begins at a cache line, as the built-in kernels' tensors do."""
        element, dims = self.problem.shape(name)
        array = aligned(dims, ARRAY_TYPES[element])
        poison(array, element)
        return array

    def new_outputs(self):
        return {name: self.new_array(name) for name in self.problem.output_names}

    def tensors_of(self, arrays):
        shape = self.problem.shape
        return {name: self.provider.tensor(array, shape(name)[0]) for name, array in arrays.items()}

    def fill(self, input_set):
        """Makes sure that a set's values are in its slot; they overwrite the slot's earlier set in place."""
        slot = self.slots[input_set % len(self.slots)]
        if slot.set == input_set:
            return slot
        generator = Generator(self.problem, self.spec, input_set)
        for name, array in slot.arrays.items():
            if name not in self.statics:
                generator.fill(name, array, self.statics.get("page_table"))
                self.provider.upload(slot.tensors[name], array)
        if self.is_backward:
            for call in slot.calls:
                call.refresh()
        self.provider.synchronise()
        slot.set, slot.checksum = input_set, checksum(slot.arrays.values())
        return slot

    def measure(self, request):
        order, poison_call = request["set_order"], request.get("poison_call")
        if poison_call is not None and not 0 <= poison_call < len(order):
            raise Invalid(f"poison_call {poison_call} is not one of {len(order)} calls")
        samples, flags, touched = [], [], []
        inputs_ns = flush_ns = 0
        begin = time.perf_counter_ns()
        gc.collect()
        gc.disable()
        try:
            for index, input_set in enumerate(order[: request["max_samples"]]):
                is_owed = poison_call is not None and index <= poison_call
                if index > 0 and not is_owed and time.perf_counter_ns() - begin > request["max_ns"]:
                    break
                start = time.perf_counter_ns()
                slot = self.fill(input_set)
                inputs_ns += time.perf_counter_ns() - start
                if slot not in touched:
                    touched.append(slot)
                is_poisoned = index == poison_call
                call, outputs = slot.calls[is_poisoned], self.poisoned_tensors if is_poisoned else self.output_tensors
                if is_poisoned:
                    for name, array in self.poisoned.items():
                        poison(array, self.problem.shape(name)[0])
                        self.provider.upload(outputs[name], array)
                if request["mode"] == "cold":
                    start = time.perf_counter_ns()
                    arrays = [*slot.arrays.values(), *(self.poisoned if is_poisoned else self.outputs).values()]
                    self.provider.flush(arrays)
                    flush_ns += time.perf_counter_ns() - start
                value, device_ns, wall_ns, found = self.provider.timed(call.run)
                sample = {"device_ns": max(device_ns, 1), "wall_ns": max(wall_ns, 1), "set": input_set}
                if self.provider.host_ns is not None:
                    sample["host_ns"] = self.provider.host_ns
                samples.append({**sample, "flags": found} if found else sample)
                if is_poisoned and self.works_late(call, value):
                    flags.append("late_work")
                del value
        finally:
            gc.enable()
        start = time.perf_counter_ns()
        if any(self.is_changed(slot) for slot in touched):
            flags.append("mutated_input")
        inputs_ns += time.perf_counter_ns() - start
        return {"samples": samples, "inputs_ns": inputs_ns, "flush_ns": flush_ns, "flags": flags}

    def is_changed(self, slot):
        for name, tensor in slot.tensors.items():
            if tensor is not slot.arrays[name]:
                self.provider.download(tensor, slot.arrays[name], self.problem.shape(name)[0])
        return checksum(slot.arrays.values()) != slot.checksum

    def take(self, results):
        """Brings a call's outputs to `poisoned`, and returns their checksum."""
        for name, array in self.poisoned.items():
            tensor = (self.poisoned_tensors if results is None else results)[name]
            if tensor is not array:
                self.provider.download(tensor, array, self.problem.shape(name)[0])
        return checksum(self.poisoned.values())

    def works_late(self, call, value):
        """Whether something still computes, or still changes the outputs, after a call has returned."""
        results = call.results(value)
        at_return = self.take(results)
        time.sleep(SETTLE_S)
        cpu, wall = time.process_time(), time.perf_counter()
        time.sleep(WATCH_S)
        is_busy = 2 * (time.process_time() - cpu) > time.perf_counter() - wall
        return is_busy or self.take(results) != at_return

    def write_outputs(self, request):
        with open(request["path"], "wb") as file:
            for sampled in request["rows"]:
                name = sampled["tensor"]
                if name not in self.poisoned:
                    raise Invalid(f"sampling rows of {name}: the problem has no such output")
                for sequence, head, token in sampled["rows"]:
                    row = np.ascontiguousarray(self.row(name, sequence, head, token))
                    file.write(row.astype(row.dtype.newbyteorder("<"), copy=False).tobytes())

    def row(self, name, sequence, head, token):
        array = self.poisoned[name]
        try:
            if min(sequence, head, token) < 0:
                raise IndexError
            if name == "state_out":
                return array[sequence, head, token]
            if name == "normaliser_out":
                return array[sequence, head] if token == 0 else array[None]
            return self.problem.tokens(array, name, sequence)[0][token, head]
        except IndexError:
            row = (sequence, head, token)
            raise Invalid(f"sampling rows of {name}: no row (sequence, head, token) = {row}") from None

    def memory(self):
        return {
            "tensor_bytes": self.tensor_bytes,
            "extra_peak_bytes": self.provider.extra_peak_bytes(),
            "rss_peak_bytes": status_bytes("VmHWM"),
        }


class Worker:
    """Answers requests, one at a time."""

    def __init__(self, provider):
        self.provider, self.case, self.missing = provider, None, NUMPY_ERROR
        if self.missing is None:
            try:
                provider.load()
            except Unsupported as error:
                self.missing = str(error)

    def hello(self, request):
        if request["protocol"][0] != PROTOCOL[0]:
            asked = ".".join(map(str, request["protocol"]))
            raise Unsupported(f"protocol {asked} is asked for, this worker speaks {PROTOCOL[0]}.x")
        if NUMPY_ERROR is not None:
            raise Unsupported(NUMPY_ERROR)
        sources = [*sorted(Path(__file__).parent.glob("attnbench_*.py")), Path(sys.argv[0])]
        versions = {"python": platform.python_version(), "numpy": np.__version__}
        return {
            "protocol": PROTOCOL,
            "provider": self.provider.name,
            "device": self.provider.device,
            "gpu_uuid": self.provider.gpu_uuid,
            "versions": versions if self.missing else {**versions, **self.provider.versions()},
            "timing_hash": hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16],
            "golden_hash": attnbench_inputs.golden_hash(),
        }

    def kernels(self, request):
        return {"kernels": [{"name": kernel.name, "summary": kernel.summary} for kernel in self.provider.kernels]}

    def kernel(self, name):
        for kernel in self.provider.kernels:
            if kernel.name == name:
                if self.missing is not None:
                    raise Unsupported(self.missing)
                return kernel
        names = ", ".join(kernel.name for kernel in self.provider.kernels)
        raise Unsupported(f"provider `{self.provider.name}` has no kernel `{name}`; it has {names}")

    def supports(self, request):
        kernel, problem = self.kernel(request["kernel"]), Problem(request["problem"])
        check_elements(problem)
        kernel.supports(problem)
        return {}

    def prepare(self, request):
        # The earlier case's memory is given back before the new one's is taken.
        self.release(request)
        kernel = self.kernel(request["kernel"])
        case = self.case = Case(self.provider, kernel, request)
        return {"plan_ns": case.plan_ns, "inputs_ns": case.inputs_ns, "tensor_bytes": case.tensor_bytes}

    def prepared(self):
        if self.case is None:
            raise Invalid("no case is prepared")
        return self.case

    def measure(self, request):
        return self.prepared().measure(request)

    def outputs(self, request):
        self.prepared().write_outputs(request)
        return {}

    def memory(self, request):
        return self.prepared().memory()

    def release(self, request):
        self.case = None
        gc.collect()
        return {}

    def control(self, request):
        raise Unsupported("this worker measures no controls")

    def shutdown(self, request):
        return self.release(request)

    REQUESTS = ("hello", "kernels", "supports", "prepare", "measure", "outputs", "memory", "release", "control",
                "shutdown")  # fmt: skip

    def answer(self, request):
        """The result of a request; errors are WorkerErrors."""
        name = request.get("request")
        if name not in self.REQUESTS:
            raise Unsupported(f"unknown request `{name}`; this worker answers {', '.join(self.REQUESTS)}")
        try:
            return getattr(self, name)(request)
        except WorkerError:
            raise
        except (KeyError, TypeError, AttributeError) as error:
            if name in ("hello", "supports", "outputs") or (name == "measure" and self.case is None):
                raise Invalid(f"request does not parse: {type(error).__name__}: {error}") from error
            raise

    def error(self, error):
        """How an exception is told to the coordinator."""
        if isinstance(error, WorkerError):
            return {"kind": error.kind, "message": str(error)}
        # The case may be half changed: it is not used again.
        self.case = None
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        message = f"{type(error).__name__}: {' '.join(lines)[:400]}" if lines else type(error).__name__
        is_full = isinstance(error, MemoryError) or self.provider.is_out_of_memory(error)
        return {"kind": "out_of_memory" if is_full else "kernel_error", "message": message}


def serve(provider):
    """Serves requests until `shutdown` or the end of input. Never returns to a caller that prints."""
    # File descriptor 1 becomes stderr before any library is loaded: nothing but answers reaches the coordinator.
    sys.stdout.flush()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    worker = Worker(provider)
    requests = sys.stdin.buffer
    while line := requests.readline(MAX_LINE_BYTES):
        if not line.strip():
            continue
        number, name = 0, None
        try:
            try:
                request = json.loads(line)
            except ValueError as error:
                raise Invalid(f"request is not JSON: {error}") from error
            if not isinstance(request, dict):
                raise Invalid("request is not a JSON object")
            if isinstance(request.get("id"), int):
                number = request["id"]
            name = request.get("request")
            answer = {"id": number, "ok": worker.answer(request)}
        except Exception as error:  # noqa: BLE001 - whatever a kernel raises costs its case, not the worker
            answer = {"id": number, "error": worker.error(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if name == "shutdown":
            return
