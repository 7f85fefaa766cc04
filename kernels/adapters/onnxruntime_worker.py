"""ONNX Runtime's attention on the CPU: the ONNX operator and com.microsoft's fused ones.

    attnbench run suites/peers.toml --provider cpu --provider onnxruntime

Each case is a model of one node, built while preparing. Its inputs and outputs are bound to the case's own memory, so a
sample is one run of the session: no copy, no Python object a tensor. Decoding with GroupQueryAttention works on the
cache in place, as a server would: past and present are one buffer, whose last tokens are handed in again as the new ones
(a small copy, which is timed). ONNX Runtime keeps caches as (batch, heads, length, dim): such problems have layout bhsd.

Files here must not be called like the packages that they import: Python looks into a script's own folder first.
"""

# numpy comes from there: where it is missing, the worker still says so.
from attnbench_worker import Call, Kernel, Provider, Unsupported, np, refuse, serve

# Imported by OnnxProvider.load, once stdout is out of their reach.
onnx = runtime = None

ELEMENTS = {"f32": "FLOAT", "f16": "FLOAT16", "bf16": "BFLOAT16", "i32": "INT32", "bool": "BOOL"}
# The opset that has the Attention operator.
OPSET = 23


class Model:
    """A session of a model that is one node."""

    def __init__(self, node, inputs, outputs, threads):
        """`inputs` and `outputs` are (name, element, shape)."""

        def infos(tensors):
            make = onnx.helper.make_tensor_value_info
            return [make(name, getattr(onnx.TensorProto, ELEMENTS[element]), shape) for name, element, shape in tensors]

        graph = onnx.helper.make_graph([node], "attention", infos(inputs), infos(outputs))
        opsets = [onnx.helper.make_opsetid("", OPSET), onnx.helper.make_opsetid("com.microsoft", 1)]
        model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        try:
            self.session = runtime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        except Exception as error:
            # The message ends with what is not implemented for which types.
            raise Unsupported(f"ONNX Runtime refuses the model: {' '.join(str(error).split())[:300]}") from error
        self.inputs, self.outputs = inputs, outputs

    def bind(self, arrays):
        """A session's inputs and outputs at these arrays' addresses."""
        binding = self.session.io_binding()
        for tensors, bind in ((self.inputs, binding.bind_input), (self.outputs, binding.bind_output)):
            for name, element, shape in tensors:
                kind = getattr(onnx.TensorProto, ELEMENTS[element])
                bind(name, "cpu", 0, kind, shape, arrays[name].ctypes.data)
        return binding


class Run(Call):
    """One run of a bound session."""

    def __init__(self, model, arrays, first=None):
        self.arrays = arrays  # Kept alive: the binding holds bare addresses.
        binding = model.bind(arrays)
        run = model.session.run_with_iobinding

        def call():
            if first is not None:
                first()
            run(binding)

        self.run = call


class Operator(Kernel):
    """What the three operators have in common."""

    def bind(self, problem, inputs, outputs, threads):
        # One session serves every buffer of a case.
        if getattr(self, "problem", None) is not problem:
            self.problem, self.model = problem, self.build(problem, threads)
        return self.bound(problem, inputs, outputs)

    def bound(self, problem, inputs, outputs):
        return Run(self.model, {**inputs, **outputs, **self.constants})


def flat(problem, heads, length, dim):
    """A tensor's shape as (batch, length, heads * dim): bshd and dense thd lie in memory that way."""
    return (problem.batch, length, heads * dim)


def separate(problem, heads, length, dim):
    """A tensor's shape as (batch, heads, length, dim): layout bhsd."""
    return (problem.batch, heads, length, dim)


class Attention(Operator):
    name = "attention"
    summary = "the ONNX operator Attention"

    def supports(self, problem):
        refuse(problem, "pages", "sinks", "pattern", "alibi", "gradients")
        if problem.bias != "none" and problem.causal:
            raise Unsupported("a mask beside causality is not asked of ONNX Runtime here")

    def build(self, problem, threads):
        q, k = problem.lengths_q[0], problem.lengths_kv[0]
        attributes = {"scale": problem.effective_scale}
        if problem.softcap is not None:
            attributes["softcap"] = problem.softcap
        if problem.layout == "bhsd":
            shape = separate
        else:
            shape = flat
            attributes.update(q_num_heads=problem.heads_q, kv_num_heads=problem.heads_kv)
        dtype, d_qk, d_v = problem.dtype, problem.head_dim_qk, problem.head_dim_v
        inputs = [
            ("q", dtype, shape(problem, problem.heads_q, q, d_qk)),
            ("k", dtype, shape(problem, problem.heads_kv, k, d_qk)),
            ("v", dtype, shape(problem, problem.heads_kv, k, d_v)),
        ]
        self.constants = {}
        if problem.bias != "none":
            inputs.append(("bias", "bool" if problem.bias == "bool" else dtype, (1, 1, q, k)))
        elif not problem.sees_all() and problem.query_offset(0) == 0:
            attributes["is_causal"] = 1
        elif not problem.sees_all():
            # The operator's own causality is top-left; where the problem's is not, the mask is made here, untimed.
            self.constants["mask"] = problem.mask()
            inputs.append(("mask", "bool", (q, k)))
        node = onnx.helper.make_node("Attention", [name for name, *_ in inputs], ["o"], **attributes)
        return Model(node, inputs, [("o", dtype, shape(problem, problem.heads_q, q, d_v))], threads)


class MultiHeadAttention(Operator):
    name = "mha"
    summary = "com.microsoft MultiHeadAttention"

    def supports(self, problem):
        refuse(problem, "pages", "sinks", "softcap", "pattern", "bias", "gradients")
        if problem.heads_q != problem.heads_kv:
            raise Unsupported("needs a KV head for each query head")
        if problem.layout == "bhsd":
            raise Unsupported("takes queries as (batch, length, heads * dim): layout bshd")
        if problem.seqlen_q != problem.seqlen_kv and problem.causal and problem.seqlen_q != {"same": 1}:
            raise Unsupported("is causal only where queries and keys are equally many")

    def build(self, problem, threads):
        q, k, heads = problem.lengths_q[0], problem.lengths_kv[0], problem.heads_q
        dtype, d_qk, d_v = problem.dtype, problem.head_dim_qk, problem.head_dim_v
        self.constants = {}
        is_causal = int(not problem.sees_all())
        node = onnx.helper.make_node(
            "MultiHeadAttention", ["q", "k", "v"], ["o"], domain="com.microsoft", num_heads=heads,
            scale=problem.effective_scale, unidirectional=is_causal,
        )  # fmt: skip
        inputs = [
            ("q", dtype, flat(problem, heads, q, d_qk)),
            ("k", dtype, flat(problem, heads, k, d_qk)),
            ("v", dtype, flat(problem, heads, k, d_v)),
        ]
        return Model(node, inputs, [("o", dtype, flat(problem, heads, q, d_v))], threads)


class GroupQueryAttention(Operator):
    name = "gqa"
    summary = "com.microsoft GroupQueryAttention, the cache updated in place"

    def supports(self, problem):
        refuse(problem, "pages", "sinks", "patterns but windows", "bias", "gradients", "head dims")
        q, k = (lengths["same"] for lengths in (problem.seqlen_q, problem.seqlen_kv))
        is_windowed = problem.pattern == "window" and (problem.causal or problem.pattern_options["right"] == 0)
        if problem.pattern == "window" and not is_windowed:
            raise Unsupported("does not know windows to the right of the query")
        if not (problem.causal or is_windowed or q == 1):
            raise Unsupported("is always causal")
        if q != k and problem.causal_alignment == "top_left":
            raise Unsupported("aligns bottom-right only")
        if q > k or k == 0:
            raise Unsupported("needs at least a key for each query")
        if (problem.layout == "bhsd") != (q != k):
            raise Unsupported("takes a cache as (batch, heads, length, dim), layout bhsd, and prompts as bshd")
        if q != k and problem.layout == "bhsd" and q > 1:
            raise Unsupported("takes several queries onto a cache in another layout than the cache's")

    def build(self, problem, threads):
        q, k, dim = problem.lengths_q[0], problem.lengths_kv[0], problem.head_dim_qk
        dtype, kv_heads = problem.dtype, problem.heads_kv
        self.is_cached = q != k
        self.constants = {
            "seqlens_k": np.full(problem.batch, k - 1, dtype=np.int32),
            "total": np.array(k, dtype=np.int32),
        }
        attributes = {"num_heads": problem.heads_q, "kv_num_heads": kv_heads, "scale": problem.effective_scale}
        if problem.softcap is not None:
            attributes["softcap"] = problem.softcap
        if problem.pattern == "window":
            attributes["local_window_size"] = problem.pattern_options["left"] + 1
        cache = (problem.batch, kv_heads, k, dim)
        new = flat(problem, kv_heads, q, dim)
        inputs = [("q", dtype, flat(problem, problem.heads_q, q, dim)), ("new_k", dtype, new), ("new_v", dtype, new)]
        past = ["past_k", "past_v"] if self.is_cached else ["", ""]
        inputs += [(name, dtype, cache) for name in past if name]
        inputs += [("seqlens_k", "i32", (problem.batch,)), ("total", "i32", ())]
        names = ["q", "new_k", "new_v", *past, "seqlens_k", "total"]
        outputs = [("o", dtype, flat(problem, problem.heads_q, q, dim)), ("present_k", dtype, cache),
                   ("present_v", dtype, cache)]  # fmt: skip
        output_names = [name for name, *_ in outputs]
        node = onnx.helper.make_node("GroupQueryAttention", names, output_names, domain="com.microsoft", **attributes)
        return Model(node, inputs, outputs, threads)

    def bound(self, problem, inputs, outputs):
        arrays = {**inputs, **outputs, **self.constants}
        k, v = inputs["k"], inputs["v"]
        if not self.is_cached:
            # Prompts: the operator copies K and V into a cache that nobody reads here.
            cache = (problem.batch, problem.heads_kv, problem.lengths_kv[0], problem.head_dim_qk)
            arrays.update(new_k=k, new_v=v, present_k=np.empty(cache, k.dtype), present_v=np.empty(cache, v.dtype))
            return Run(self.model, arrays)
        new_k, new_v = (np.empty(array[:, :, 0].shape, array.dtype) for array in (k, v))
        arrays.update(new_k=new_k, new_v=new_v, past_k=k, past_v=v, present_k=k, present_v=v)

        def take_new_token():
            np.copyto(new_k, k[:, :, -1])
            np.copyto(new_v, v[:, :, -1])

        return Run(self.model, arrays, first=take_new_token)


class OnnxProvider(Provider):
    name = "onnxruntime"
    kernels = (Attention(), MultiHeadAttention(), GroupQueryAttention())

    def load(self):
        global onnx, runtime
        try:
            import onnx as onnx_module
            import onnx.helper
            import onnxruntime as runtime_module
        except ImportError as error:
            raise Unsupported(f"ONNX Runtime cannot be imported ({error}); ci/peers.sh installs it") from error
        onnx, runtime = onnx_module, runtime_module

    def versions(self):
        return {"onnxruntime": runtime.__version__, "onnx": onnx.__version__}

    def is_out_of_memory(self, error):
        return super().is_out_of_memory(error) or "Failed to allocate memory" in str(error)


if __name__ == "__main__":
    serve(OnnxProvider())
