"""FlashAttention 2 and 3, and FlashInfer, where they are installed.

    attnbench run SUITE --provider flash_attn

| kernel | package | call |
|---|---|---|
| fa2, fa2_varlen, fa2_kvcache | flash_attn | flash_attn_func, flash_attn_varlen_func, flash_attn_with_kvcache |
| fa3, fa3_varlen, fa3_kvcache | flash_attn_interface, or flash_attn_3 | the same functions |
| flashinfer | flashinfer | a batch prefill wrapper, on ragged or paged keys |
| flashinfer_decode | flashinfer | the batch decode wrapper, on paged keys |

PyTorch's tensors are the memory, its events the clock (attnbench_torch.py). All are causal from the bottom right. A
kernel whose package is missing is unsupported, and says so. Not yet run on hardware: written after the packages'
sources and documentation.

Files here must not be called like the packages that they import: Python looks into a script's own folder first.
"""

import importlib

from attnbench_torch import Bound, TorchProvider, torch
from attnbench_worker import Kernel, Unsupported, refuse, serve

MODULES = {
    "fa2": ("flash_attn",),
    "fa3": ("flash_attn_interface", "flash_attn_3.flash_attn_interface"),
    "flashinfer": ("flashinfer",),
}
# What FlashInfer's documentation recommends.
FLASHINFER_WORKSPACE_BYTES = 128 << 20
FA2_PAGE_TOKENS = 256


def module(package):
    """The package's module; raises Unsupported with the reason where none can be imported."""
    reasons = []
    for name in MODULES[package]:
        try:
            return importlib.import_module(name)
        except (ImportError, OSError, RuntimeError) as error:
            reasons.append(f"{name}: {error}")
    raise Unsupported(f"{package} cannot be imported ({'; '.join(reasons)[:300]}); install it into .venv")


class Packaged(Kernel):
    """What the kernels here have in common."""

    def __init__(self, package, name, summary):
        self.package, self.name, self.summary = package, name, summary

    def refuse(self, problem, *options):
        module(self.package)
        refuse(problem, "sinks", "patterns but windows", *options)
        if problem.dtype not in ("f16", "bf16"):
            raise Unsupported(f"computes in f16 and bf16, not {problem.dtype}")
        if problem.bias not in ("none", "alibi") or (problem.bias == "alibi" and self.package != "fa2"):
            raise Unsupported(f"does not know bias {problem.bias}")
        is_square = problem.seqlen_q == problem.seqlen_kv
        if problem.causal_alignment == "top_left" and not is_square:
            raise Unsupported("aligns bottom-right only")


def window(problem):
    """(left, right) of the keys that a query sees, itself not counted; -1 is no bound."""
    left, right = -1, -1
    if problem.pattern == "window":
        left, right = problem.pattern_options["left"], problem.pattern_options["right"]
    return left, 0 if problem.causal else right


class FlashAttention(Packaged):
    """flash_attn_func and its relatives. `form` is `func`, `varlen_func` or `with_kvcache`."""

    def __init__(self, package, form, name, summary):
        super().__init__(package, name, summary)
        self.form = form

    def supports(self, problem):
        allowed = {"func": ("pages",), "varlen_func": ("lengths", "pages"), "with_kvcache": ("lengths", "gradients")}
        self.refuse(problem, *allowed[self.form], *(["head dims"] if self.package == "fa2" else []))
        if self.form == "varlen_func" and problem.layout == "bhsd":
            raise Unsupported("takes sequences one after another: layout thd, or bshd of one length")
        if self.form == "varlen_func" and problem.layout == "bshd" and problem.is_ragged:
            raise Unsupported("takes sequences without padding: layout thd")
        if self.form == "with_kvcache" and "same" not in problem.seqlen_q:
            raise Unsupported("takes equally many queries of each sequence")
        if self.form == "with_kvcache" and problem.is_ragged and problem.layout == "thd":
            raise Unsupported("takes a padded cache or pages where sequences differ in length: layout bshd or bhsd")
        if self.package == "fa2" and problem.is_paged and problem.page_size % FA2_PAGE_TOKENS != 0:
            raise Unsupported(f"takes pages of a multiple of {FA2_PAGE_TOKENS} tokens")

    def bind(self, problem, inputs, outputs, threads):
        function = getattr(module(self.package), f"flash_attn_{self.form}")
        options = {"softmax_scale": problem.effective_scale, "causal": problem.causal, "window_size": window(problem)}
        options["softcap"] = problem.softcap or 0.0
        if problem.bias == "alibi":
            slopes = [2.0 ** (-8.0 * (head + 1) / problem.heads_q) for head in range(problem.heads_q)]
            options["alibi_slopes"] = torch.tensor(slopes, dtype=torch.float32, device=provider.device)
        if problem.phase == "backward":
            options["deterministic"] = problem.deterministic
        if self.form == "varlen_func":
            options.update(cu_seqlens_q=starts(problem.lengths_q), cu_seqlens_k=starts(problem.lengths_kv),
                           max_seqlen_q=max(problem.lengths_q), max_seqlen_k=max(problem.lengths_kv))  # fmt: skip
        if self.form == "with_kvcache":
            options["cache_seqlens"] = integers(problem.lengths_kv)
            if problem.is_paged:
                table = inputs["page_table"].clamp(min=0)
                options["block_table" if self.package == "fa2" else "page_table"] = table

        def attend(q, k, v):
            out = function(q, k, v, **options)
            # Some releases return the LSE too.
            return out[0] if isinstance(out, tuple) else out

        bound = Flat if self.form == "varlen_func" else Bound
        return bound(problem, inputs, attend, heads_second=False)


class Flat(Bound):
    """Tensors as (token, heads, dim), all sequences one after another, or the pages of a cache."""

    def view(self, tensor):
        return tensor if self.is_pool(tensor) or tensor.dim() == 3 else tensor.reshape(-1, *tensor.shape[2:])

    def own(self, value):
        return value.view(self.problem.shape("o")[1])


def integers(values):
    return torch.tensor(values, dtype=torch.int32, device=provider.device)


def starts(lengths):
    """Where each sequence begins, and where the last ends."""
    ends = [0]
    for length in lengths:
        ends.append(ends[-1] + length)
    return integers(ends)


class FlashInfer(Packaged):
    def supports(self, problem):
        self.refuse(problem, "lengths", "gradients")
        is_decode = self.name == "flashinfer_decode"
        if is_decode and not (problem.is_paged and problem.seqlen_q == {"same": 1}):
            raise Unsupported("takes one query a sequence, and pages")
        if (is_decode or problem.is_paged) and problem.head_dim_qk != problem.head_dim_v:
            raise Unsupported("does not know keys and values of different dimensions")
        if problem.layout == "bhsd" or (problem.layout == "bshd" and "same" not in problem.seqlen_q):
            raise Unsupported("takes sequences one after another: layout thd, or bshd of one length")
        if problem.layout == "bshd" and "same" not in problem.seqlen_kv and not problem.is_paged:
            raise Unsupported("takes sequences one after another: layout thd, or bshd of one length")
        if problem.pattern == "window" and not problem.causal and problem.pattern_options["right"] != 0:
            raise Unsupported("does not know windows to the right of the query")

    def bind(self, problem, inputs, outputs, threads):
        flashinfer = module("flashinfer")
        workspace = torch.zeros(FLASHINFER_WORKSPACE_BYTES, dtype=torch.uint8, device=provider.device)
        dtype = {"f16": torch.float16, "bf16": torch.bfloat16}[problem.dtype]
        heads, dims = (problem.heads_q, problem.heads_kv), (problem.head_dim_qk, problem.head_dim_v)
        options = {"sm_scale": problem.effective_scale, "window_left": window(problem)[0], "q_data_type": dtype}
        options["logits_soft_cap"] = problem.softcap
        # A window that ends at the query is causal.
        causal = problem.causal or problem.pattern == "window"
        if self.name == "flashinfer_decode":
            # Its matrix units pay where several query heads share a KV head.
            is_grouped = heads[0] >= 4 * heads[1]
            wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, use_tensor_cores=is_grouped)
            wrapper.plan(*pages(problem, inputs), *heads, dims[0], problem.page_size, **options)
        elif problem.is_paged:
            wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace)
            begin = starts(problem.lengths_q)
            wrapper.plan(begin, *pages(problem, inputs), *heads, dims[0], problem.page_size, causal=causal, **options)
        else:
            wrapper = flashinfer.BatchPrefillWithRaggedKVCacheWrapper(workspace)
            begin = starts(problem.lengths_q), starts(problem.lengths_kv)
            wrapper.plan(*begin, *heads, dims[0], head_dim_vo=dims[1], causal=causal, **options)

        def attend(q, k, v):
            return wrapper.run(q, (k, v)) if problem.is_paged else wrapper.run(q, k, v)

        bound = Flat(problem, inputs, attend)
        # It compiles in the first call.
        bound.run()
        return bound


def pages(problem, inputs):
    """FlashInfer's page table: where each sequence's pages begin in a list, the list, and tokens in the last page."""
    counts = [-(-length // problem.page_size) for length in problem.lengths_kv]
    table = inputs["page_table"]
    ids = [table[sequence, :count] for sequence, count in enumerate(counts)]
    last = [length - (count - 1) * problem.page_size for length, count in zip(problem.lengths_kv, counts)]
    return starts(counts), torch.cat(ids), integers(last)


class FlashAttn(TorchProvider):
    """FlashAttention 2 and 3, and FlashInfer."""

    name = "flash_attn"
    kernels = (
        FlashAttention("fa2", "func", "fa2", "FlashAttention 2, flash_attn_func"),
        FlashAttention("fa2", "varlen_func", "fa2_varlen", "FlashAttention 2, flash_attn_varlen_func"),
        FlashAttention("fa2", "with_kvcache", "fa2_kvcache", "FlashAttention 2, flash_attn_with_kvcache"),
        FlashAttention("fa3", "func", "fa3", "FlashAttention 3, flash_attn_func"),
        FlashAttention("fa3", "varlen_func", "fa3_varlen", "FlashAttention 3, flash_attn_varlen_func"),
        FlashAttention("fa3", "with_kvcache", "fa3_kvcache", "FlashAttention 3, flash_attn_with_kvcache"),
        FlashInfer("flashinfer", "flashinfer", "FlashInfer's batch prefill on ragged or paged keys"),
        FlashInfer("flashinfer", "flashinfer_decode", "FlashInfer's batch decode on paged keys"),
    )

    def load(self):
        super().load()
        if self.is_cpu:
            raise Unsupported("FlashAttention and FlashInfer compute on GPUs, and the device is the CPU")

    def versions(self):
        versions = super().versions()
        for package in MODULES:
            try:
                versions[package] = getattr(module(package), "__version__", "unknown")
            except Unsupported:
                pass
        return versions


if __name__ == "__main__":
    provider = FlashAttn()
    serve(provider)
