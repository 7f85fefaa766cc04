"""ggml's attention on the CPU, ggml_flash_attn_ext: what llama.cpp and whisper.cpp compute with.

    attnbench run suites/peers.toml --provider cpu --provider ggml

ggml comes as the shared libraries in the Python package pywhispercpp and is called through ctypes; `--libraries FOLDER`
names another build's libggml-base and libggml-cpu. A case is a graph on the case's own memory, built while preparing,
and a sample computes it. The operator reads Q and writes O in f32; in a problem of f16 or bf16 the graph converts both, and
that is timed, as is the transposition of O where the layout is bhsd. Causality and windows are a mask, made while
preparing, as ggml's users make it.
"""

import argparse
import ctypes
import importlib.metadata
import importlib.util
import os
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path

from attnbench_worker import Call, Kernel, Provider, Unsupported, aligned, np, refuse, serve

# enum ggml_type.
TYPES = {"f32": 0, "f16": 1, "bf16": 30}
# Tensors of a graph, the views of them included; more than any graph here has.
MAX_TENSORS = 32
# Rows of a mask: some versions want a multiple of this.
MASK_ROWS = 64


class Parameters(ctypes.Structure):
    """struct ggml_init_params."""

    _fields_ = [("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool)]


# Functions that are called: the library, result and arguments. Every tensor, context, graph, buffer is a pointer.
FUNCTIONS = {
    "ggml_version": ("base", c_char_p, []),
    "ggml_tensor_overhead": ("base", c_size_t, []),
    "ggml_graph_overhead": ("base", c_size_t, []),
    "ggml_init": ("base", c_void_p, [Parameters]),
    "ggml_free": ("base", None, [c_void_p]),
    "ggml_new_tensor": ("base", c_void_p, [c_void_p, c_int, c_int, POINTER(c_int64)]),
    "ggml_view_4d": ("base", c_void_p, [c_void_p, c_void_p] + [c_int64] * 4 + [c_size_t] * 4),
    "ggml_cast": ("base", c_void_p, [c_void_p, c_void_p, c_int]),
    "ggml_cpy": ("base", c_void_p, [c_void_p] * 3),
    "ggml_flash_attn_ext": ("base", c_void_p, [c_void_p] * 5 + [c_float] * 3),
    "ggml_flash_attn_ext_add_sinks": ("base", None, [c_void_p] * 2),
    "ggml_new_graph": ("base", c_void_p, [c_void_p]),
    "ggml_build_forward_expand": ("base", None, [c_void_p] * 2),
    "ggml_backend_cpu_buffer_from_ptr": ("base", c_void_p, [c_void_p, c_size_t]),
    "ggml_backend_buffer_free": ("base", None, [c_void_p]),
    "ggml_backend_tensor_alloc": ("base", c_int, [c_void_p] * 3),
    "ggml_backend_graph_compute": ("base", c_int, [c_void_p] * 2),
    "ggml_backend_cpu_init": ("cpu", c_void_p, []),
    "ggml_backend_cpu_set_n_threads": ("cpu", None, [c_void_p, c_int]),
}


class Library:
    """The functions above, as attributes without the prefix `ggml_`."""

    def __init__(self, base, cpu):
        # The second needs the first, by a name that the loader then knows.
        libraries = {"base": ctypes.CDLL(str(base), ctypes.RTLD_GLOBAL), "cpu": ctypes.CDLL(str(cpu))}
        for name, (library, result, arguments) in FUNCTIONS.items():
            function = getattr(libraries[library], name)
            function.restype, function.argtypes = result, arguments
            setattr(self, name.removeprefix("ggml_"), function)


def find_libraries(folder):
    """The paths of libggml-base and libggml-cpu in a folder, or in the package pywhispercpp."""
    if folder is None:
        package = importlib.util.find_spec("pywhispercpp")
        if package is None:
            raise Unsupported("pywhispercpp, which carries ggml, cannot be imported; ci/peers.sh installs it")
        folder = Path(package.origin).parent.parent / "pywhispercpp.libs"
    for suffix in ("so", "dylib", "dll"):
        paths = [next(iter(sorted(Path(folder).glob(f"*ggml-{part}*.{suffix}*"))), None) for part in ("base", "cpu")]
        if None not in paths:
            return paths
    raise Unsupported(f"no libggml-base and libggml-cpu in {folder}")


class Graph(Call):
    """A graph whose tensors lie in numpy's memory."""

    def __init__(self, backend):
        self.backend, self.buffers, self.arrays = backend, [], []
        bytes_needed = MAX_TENSORS * ggml.tensor_overhead() + ggml.graph_overhead()
        self.context = ggml.init(Parameters(bytes_needed, None, True))

    def place(self, tensor, array):
        """Gives a tensor an array's memory."""
        buffer = ggml.backend_cpu_buffer_from_ptr(array.ctypes.data, array.nbytes)
        self.buffers.append(buffer)
        self.arrays.append(array)
        if ggml.backend_tensor_alloc(buffer, tensor, array.ctypes.data) != 0:
            raise RuntimeError("ggml does not place a tensor in this memory")
        return tensor

    def tensor(self, array, element):
        """A tensor of an array's dimensions, which ggml lists from the innermost."""
        dims = (c_int64 * array.ndim)(*reversed(array.shape))
        return self.place(ggml.new_tensor(self.context, TYPES[element], array.ndim, dims), array)

    def view(self, array, element, order):
        """A tensor that is an array of four dimensions in another order of them."""
        dims = [array.shape[axis] for axis in reversed(order)]
        strides = [array.strides[axis] for axis in reversed(order)][1:]
        return ggml.view_4d(self.context, self.tensor(array, element), *dims, *strides, 0)

    def finish(self, result):
        graph = ggml.new_graph(self.context)
        ggml.build_forward_expand(graph, result)

        def run():
            if ggml.backend_graph_compute(self.backend, graph) != 0:
                raise RuntimeError("ggml did not compute the graph")

        self.run = run
        # ggml makes its working memory in the first call.
        run()
        return self

    def __del__(self):
        for buffer in self.buffers:
            ggml.backend_buffer_free(buffer)
        ggml.free(self.context)


class FlashAttention(Kernel):
    name = "flash_attn_ext"
    summary = "ggml_flash_attn_ext, on a mask where not every key is seen"

    def supports(self, problem):
        refuse(problem, "pages", "patterns but windows", "bias", "gradients")

    def bind(self, problem, inputs, outputs, threads):
        graph = Graph(provider.backend)
        # (batch, length, heads, dim), of which ggml wants heads before length, and what it returns.
        separate = (0, 1, 2, 3) if problem.layout == "bhsd" else (0, 2, 1, 3)

        def four_dims(array):
            return array.reshape(problem.batch, -1, *array.shape[1:]) if problem.layout == "thd" else array

        q, k, v = (graph.view(four_dims(inputs[name]), element, separate) for name, element in
                   (("q", problem.dtype), ("k", problem.dtype_kv), ("v", problem.dtype_kv)))  # fmt: skip
        if problem.dtype != "f32":
            q = ggml.cast(graph.context, q, TYPES["f32"])
            graph.place(q, aligned(inputs["q"].shape, np.float32))
        mask = None if problem.sees_all() else graph.tensor(mask_of(problem), "f16")
        softcap = problem.softcap or 0.0
        result = ggml.flash_attn_ext(graph.context, q, k, v, mask, problem.effective_scale, 0.0, softcap)
        if problem.sinks:
            ggml.flash_attn_ext_add_sinks(result, graph.tensor(inputs["sinks"], "f32"))
        o = four_dims(outputs["o"])
        is_in_place = problem.dtype == "f32" and (problem.layout != "bhsd" or 1 in o.shape[1:3])
        if is_in_place:
            return graph.finish(graph.place(result, o))
        graph.place(result, aligned(o.shape, np.float32))
        tokens_second = (0, 2, 1, 3) if problem.layout == "bhsd" else (0, 1, 2, 3)
        return graph.finish(ggml.cpy(graph.context, result, graph.view(o, problem.dtype, tokens_second)))


def mask_of(problem):
    """What is added to scores: zero, or minus infinity; as (query, key), in f16."""
    rows = -(-problem.lengths_q[0] // MASK_ROWS) * MASK_ROWS
    mask = aligned((rows, problem.lengths_kv[0]), np.float16)
    mask.fill(-np.inf)
    mask[: problem.lengths_q[0]][problem.mask()] = 0
    return mask


class Ggml(Provider):
    name = "ggml"
    kernels = (FlashAttention(),)

    def __init__(self):
        parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
        parser.add_argument("--libraries", metavar="FOLDER", help="that of libggml-base and libggml-cpu")
        self.folder = parser.parse_args().libraries

    def load(self):
        global ggml
        paths = find_libraries(self.folder)
        # Where an assertion fails, its message is enough: no debugger is started for more.
        os.environ.setdefault("GGML_NO_BACKTRACE", "1")
        try:
            ggml = Library(*paths)
        except (OSError, AttributeError) as error:
            raise Unsupported(f"ggml's libraries cannot be used: {error}") from error
        self.backend = ggml.backend_cpu_init()
        if not self.backend:
            raise Unsupported("ggml makes no CPU back end")

    def versions(self):
        versions = {"ggml": ggml.version().decode()}
        if self.folder is None:
            versions["pywhispercpp"] = importlib.metadata.version("pywhispercpp")
        return versions

    def set_threads(self, threads):
        ggml.backend_cpu_set_n_threads(self.backend, threads)


if __name__ == "__main__":
    provider = Ggml()
    serve(provider)
