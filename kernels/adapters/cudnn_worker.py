"""cuDNN's attention through its Python front end, the package `cudnn` (nvidia-cudnn-frontend): forward and backward.

    attnbench run SUITE --provider cudnn

PyTorch's tensors are the memory, its events the clock (attnbench_torch.py). A case is a graph of one operation, planned
while preparing, on views of the case's own tensors. Not yet run on hardware: written after the front end's documentation
and its own PyTorch bindings.

Files here must not be called like the packages that they import: Python looks into a script's own folder first.
"""

from attnbench_torch import Bound, TorchProvider, torch
from attnbench_worker import Kernel, Lazy, Unsupported, refuse, serve

cudnn = Lazy("cudnn")


class Plan:
    """A planned graph. `operands` are the tensors that `run` reads and writes, by the graph's own."""

    def __init__(self, dtype):
        self.io = {"f16": cudnn.data_type.HALF, "bf16": cudnn.data_type.BFLOAT16}[dtype]
        self.graph = cudnn.pygraph(
            io_data_type=self.io, intermediate_data_type=cudnn.data_type.FLOAT,
            compute_data_type=cudnn.data_type.FLOAT, handle=provider.handle,
        )  # fmt: skip
        self.operands = {}

    def input(self, tensor, data_type=None):
        node = self.graph.tensor(
            dim=list(tensor.shape), stride=list(tensor.stride()), data_type=data_type or self.io
        )  # fmt: skip
        self.operands[node] = tensor
        return node

    def output(self, node, tensor, data_type=None):
        node.set_output(True).set_dim(list(tensor.shape)).set_stride(list(tensor.stride()))
        node.set_data_type(data_type or self.io)
        self.operands[node] = tensor

    def finish(self):
        """Plans the graph, and returns a function that computes it."""
        graph = self.graph
        try:
            graph.validate()
            graph.build_operation_graph()
            graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
            graph.check_support()
            graph.build_plans()
        except (cudnn.cudnnGraphNotSupportedError, ValueError) as error:
            raise Unsupported(f"cuDNN refuses the graph: {' '.join(str(error).split())[:300]}") from error
        workspace = torch.empty(max(graph.get_workspace_size(), 1), dtype=torch.uint8, device=provider.device)
        operands, handle = self.operands, provider.handle
        return lambda: graph.execute(operands, workspace, handle=handle)


class Graph(Bound):
    """The operation of a problem on the case's tensors, as (batch, heads, length, dim)."""

    def __init__(self, problem, inputs, outputs):
        super().__init__(problem, inputs, None)
        self.options = {"attn_scale": problem.effective_scale, **band(problem)}
        q, k, v = (self.view(inputs[name]) for name in ("q", "k", "v"))
        if problem.is_paged:
            # (pages, heads, tokens, dim).
            k, v = k.transpose(1, 2), v.transpose(1, 2)
        if not self.is_backward:
            self.run = self.forward(q, k, v, self.view(outputs["o"]))
            return
        # O lies as its gradient does; the statistics that cuDNN wants are the LSE.
        d_o = self.view(inputs["d_o"])
        o = torch.empty_like(d_o)
        stats = torch.empty(*q.shape[:3], 1, dtype=torch.float32, device=q.device)
        self.refresh = self.forward(q, k, v, o, stats)
        self.run = self.backward(q, k, v, o, d_o, stats, [self.view(outputs[name]) for name in ("d_q", "d_k", "d_v")])

    def lengths(self, plan):
        """The arguments that tell each sequence's lengths, and the pages of its keys."""
        problem, options = self.problem, {}
        if problem.is_ragged or problem.is_paged:
            options["use_padding_mask"] = True
            for name, lengths in (("seq_len_q", problem.lengths_q), ("seq_len_kv", problem.lengths_kv)):
                tensor = torch.tensor(lengths, dtype=torch.int32, device=provider.device).view(-1, 1, 1, 1)
                options[name] = plan.input(tensor, cudnn.data_type.INT32)
        if problem.is_paged:
            # Entries that no token needs name a page that exists.
            table = self.inputs["page_table"].clamp(min=0)[:, None, :, None]
            for name in ("paged_attention_k_table", "paged_attention_v_table"):
                options[name] = plan.input(table.clone(), cudnn.data_type.INT32)
            options["paged_attention_max_seq_len_kv"] = max(problem.lengths_kv)
        return options

    def forward(self, q, k, v, o, stats=None):
        plan = Plan(self.problem.dtype)
        options = {**self.options, **self.lengths(plan), "generate_stats": stats is not None}
        if self.problem.bias == "additive":
            options["bias"] = plan.input(self.inputs["bias"])
        o_node, stats_node = plan.graph.sdpa(q=plan.input(q), k=plan.input(k), v=plan.input(v), **options)
        plan.output(o_node, o)
        if stats is not None:
            plan.output(stats_node, stats, cudnn.data_type.FLOAT)
        return plan.finish()

    def backward(self, q, k, v, o, d_o, stats, gradients):
        plan = Plan(self.problem.dtype)
        named = {"q": q, "k": k, "v": v, "o": o, "dO": d_o}
        nodes = plan.graph.sdpa_backward(
            **{name: plan.input(tensor) for name, tensor in named.items()},
            stats=plan.input(stats, cudnn.data_type.FLOAT),
            use_deterministic_algorithm=self.problem.deterministic,
            **self.options,
        )
        for node, gradient in zip(nodes, gradients):
            plan.output(node, gradient)
        return plan.finish()

    def results(self, value):
        return None


def band(problem):
    """The arguments that mask what lies off a diagonal. A left bound counts the query's own key."""
    aligned = cudnn.diagonal_alignment
    is_top_left = problem.causal_alignment == "top_left"
    options = {"diagonal_alignment": aligned.TOP_LEFT if is_top_left else aligned.BOTTOM_RIGHT}
    if problem.pattern == "window":
        options["diagonal_band_left_bound"] = problem.pattern_options["left"] + 1
        options["diagonal_band_right_bound"] = problem.pattern_options["right"]
    if problem.causal:
        options["diagonal_band_right_bound"] = 0
    return options if len(options) > 1 else {}


class Sdpa(Kernel):
    name = "sdpa"
    summary = "cuDNN's fused attention: bottom-right causality, windows, pages, gradients"

    def supports(self, problem):
        refuse(problem, "lengths", "sinks", "softcap", "patterns but windows", "alibi")
        if problem.dtype not in ("f16", "bf16"):
            raise Unsupported(f"computes in f16 and bf16, not {problem.dtype}")
        if problem.bias == "bool":
            raise Unsupported("does not know bias bool")
        if problem.phase == "backward" and (problem.bias != "none" or problem.is_ragged):
            raise Unsupported("gradients with a bias or of sequences that differ in length are not asked of cuDNN here")
        if problem.is_ragged and problem.layout == "thd":
            raise Unsupported("sequences that differ in length are padded here: layout bshd or bhsd")

    def bind(self, problem, inputs, outputs, threads):
        if not problem.is_ragged and min(problem.lengths_kv, default=0) == 0:
            raise Unsupported("needs a key")
        return Graph(problem, inputs, outputs)


class Cudnn(TorchProvider):
    """cuDNN's attention through its Python front end."""

    name = "cudnn"
    kernels = (Sdpa(),)

    def load(self):
        super().load()
        if self.is_cpu:
            raise Unsupported("cuDNN computes on GPUs, and the device is the CPU")
        try:
            import cudnn as module
        except (ImportError, OSError, RuntimeError) as error:
            raise Unsupported(f"cuDNN's front end is not there ({error}); ci/peers.sh --gpu installs it") from error
        self.handle = module.create_handle()
        module.set_stream(handle=self.handle, stream=self.api.current_stream().cuda_stream)

    def versions(self):
        return {**super().versions(), "cudnn_frontend": cudnn.__version__, "cudnn": str(cudnn.backend_version())}


if __name__ == "__main__":
    provider = Cudnn()
    serve(provider)
