"""Stand-ins for what only a GPU runs: flash_attn, flash_attn_interface, flashinfer and cudnn, as their documentation
describes the calls that the workers make, computed by PyTorch in f64 on the CPU.

    python stand_ins.py FOLDER WORKER

serves the worker WORKER of FOLDER with them. They are strict: an argument that the real call does not know, a shape, a
stride or a dtype other than the documented one is an error. So a worker that passes asks for the right thing; whether the
real thing does it is another question.
"""

import importlib
import math
import sys
import types
from types import SimpleNamespace


def attend(q, k, v, scale, window, softcap=0.0, slopes=None, bias=None, is_top_left=False):
    """(token, head, dim) -> O and LSE (head, token). `window` counts keys left and right of the query, -1 is no bound."""
    group = q.shape[1] // k.shape[1]
    wide = [tensor.double().repeat_interleave(times, 1) for tensor, times in ((q, 1), (k, group), (v, group))]
    scores = torch.einsum("qhd,khd->hqk", wide[0], wide[1]) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    position = torch.arange(len(q))[:, None] + (0 if is_top_left else len(k) - len(q))
    distance = position - torch.arange(len(k))
    if slopes is not None:
        scores = scores - slopes.double()[:, None, None] * distance.abs()
    if bias is not None:
        scores = scores + bias.double()
    left, right = window
    visible = ((distance <= left) | (left < 0)) & ((-distance <= right) | (right < 0))
    scores = scores.masked_fill(~visible, -math.inf)
    weights = torch.softmax(scores, -1).nan_to_num(0)
    return torch.einsum("hqk,khd->qhd", weights, wide[2]), torch.logsumexp(scores, -1)


def spans(starts):
    """The slices between these numbers."""
    starts = starts.tolist()
    return [slice(*span) for span in zip(starts, starts[1:])]


def flash_attention(generation):
    """The three functions of FlashAttention 2 or 3."""

    def one(q, k, v, softmax_scale, causal, window_size, softcap, alibi_slopes=None, deterministic=False):
        assert q.dtype in (torch.float16, torch.bfloat16) and q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
        if generation == 2:
            assert q.shape[-1] == v.shape[-1]
        else:
            assert alibi_slopes is None
        window = (window_size[0], 0) if causal else window_size
        return attend(q, k, v, softmax_scale, window, softcap, alibi_slopes)[0].to(q.dtype)

    def flash_attn_func(q, k, v, **options):
        assert q.dim() == k.dim() == v.dim() == 4 and len(q) == len(k)
        return torch.stack([one(*tensors, **options) for tensors in zip(q, k, v)])

    def flash_attn_varlen_func(q, k, v, *, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, **options):
        assert q.dim() == k.dim() == 3 and cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
        assert (cu_seqlens_q[-1], cu_seqlens_k[-1]) == (len(q), len(k))
        assert (cu_seqlens_q.diff().max(), cu_seqlens_k.diff().max()) == (max_seqlen_q, max_seqlen_k)
        pairs = zip(spans(cu_seqlens_q), spans(cu_seqlens_k))
        return torch.cat([one(q[a], k[b], v[b], **options) for a, b in pairs])

    def with_kvcache(q, k_cache, v_cache, cache_seqlens, table, options):
        assert "deterministic" not in options and cache_seqlens.dtype == torch.int32
        out = []
        for sequence, length in enumerate(cache_seqlens.tolist()):
            caches = (k_cache, v_cache)
            k, v = (cache[sequence] if table is None else cache[table[sequence]].flatten(0, 1) for cache in caches)
            out.append(one(q[sequence], k[:length], v[:length], **options))
        return torch.stack(out)

    def flash_attn_with_kvcache_2(q, k_cache, v_cache, *, cache_seqlens, block_table=None, **options):
        assert block_table is None or k_cache.shape[1] % 256 == 0
        return with_kvcache(q, k_cache, v_cache, cache_seqlens, block_table, options)

    def flash_attn_with_kvcache_3(q, k_cache, v_cache, *, cache_seqlens, page_table=None, **options):
        # Some releases return the LSE too.
        return with_kvcache(q, k_cache, v_cache, cache_seqlens, page_table, options), None

    return {
        "flash_attn_func": flash_attn_func,
        "flash_attn_varlen_func": flash_attn_varlen_func,
        "flash_attn_with_kvcache": flash_attn_with_kvcache_2 if generation == 2 else flash_attn_with_kvcache_3,
    }


class Wrapper:
    """What FlashInfer's wrappers have in common. `plan` keeps how to compute; `run` only gets tensors."""

    def __init__(self, workspace, kv_layout="NHD", use_tensor_cores=False):
        assert workspace.dtype == torch.uint8 and len(workspace) >= 128 << 20

    def keep(self, heads_q, heads_kv, dim, sm_scale, window_left, logits_soft_cap, q_data_type, causal):
        def one(q, k, v):
            assert q.dtype == q_data_type and q.shape[1:] == (heads_q, dim) and k.shape[1:] == (heads_kv, dim)
            window = (window_left, 0 if causal else -1)
            return attend(q, k, v, sm_scale, window, logits_soft_cap or 0.0)[0].to(q.dtype)

        self.one = one


class Ragged(Wrapper):
    def plan(self, starts_q, starts_kv, heads_q, heads_kv, dim, *, head_dim_vo, causal, **options):
        self.pairs = list(zip(spans(starts_q), spans(starts_kv)))
        self.keep(heads_q, heads_kv, dim, causal=causal, **options)

    def run(self, q, k, v):
        return torch.cat([self.one(q[a], k[b], v[b]) for a, b in self.pairs])


class Paged(Wrapper):
    def plan(self, starts_q, starts_pages, pages, last, heads_q, heads_kv, dim, page_size, *, causal, **options):
        assert pages.dtype == last.dtype == torch.int32 and len(pages) == starts_pages[-1]
        assert 1 <= last.min() and last.max() <= page_size
        self.plans = list(zip(spans(starts_q), [pages[span] for span in spans(starts_pages)], last.tolist()))
        self.page_size = page_size
        self.keep(heads_q, heads_kv, dim, causal=causal, **options)

    def run(self, q, caches):
        out = []
        for span, pages, last in self.plans:
            length = (len(pages) - 1) * self.page_size + last
            out.append(self.one(q[span], *(cache[pages].flatten(0, 1)[:length] for cache in caches)))
        return torch.cat(out)


class Decode(Paged):
    def plan(self, starts_pages, pages, last, *shape, **options):
        super().plan(torch.arange(len(last) + 1), starts_pages, pages, last, *shape, causal=True, **options)


class Node:
    """A tensor of a cuDNN graph."""

    def __init__(self, dim=None, stride=None, data_type=None):
        self.described = [dim, stride, data_type]

    def set_output(self, is_output):
        assert is_output
        return self

    def set_dim(self, dim):
        self.described[0] = dim
        return self

    def set_stride(self, stride):
        self.described[1] = stride
        return self

    def set_data_type(self, data_type):
        self.described[2] = data_type
        return self


class Graph:
    """cudnn.pygraph of one operation."""

    def __init__(self, io_data_type, intermediate_data_type, compute_data_type, handle):
        self.steps = []

    def tensor(self, dim, stride, data_type):
        return Node(dim, stride, data_type)

    def sdpa(self, q, k, v, attn_scale, generate_stats, bias=None, use_padding_mask=False, seq_len_q=None,
             seq_len_kv=None, paged_attention_k_table=None, paged_attention_v_table=None,
             paged_attention_max_seq_len_kv=None, **band):  # fmt: skip
        assert use_padding_mask == (seq_len_q is not None) == (seq_len_kv is not None)
        o, stats = Node(), Node() if generate_stats else None

        def compute(of):
            q_of, k_of, v_of = of(q), of(k), of(v)
            for b in range(len(q_of)):
                queries = q_of[b].transpose(0, 1)
                if paged_attention_k_table is None:
                    keys, values = k_of[b].transpose(0, 1), v_of[b].transpose(0, 1)
                else:
                    tables = paged_attention_k_table, paged_attention_v_table
                    keys, values = (pool[of(table)[b, 0, :, 0]].transpose(1, 2).flatten(0, 1)
                                    for pool, table in zip((k_of, v_of), tables))  # fmt: skip
                if use_padding_mask:
                    length_q, length_kv = int(of(seq_len_q)[b]), int(of(seq_len_kv)[b])
                    queries, keys, values = queries[:length_q], keys[:length_kv], values[:length_kv]
                masked = band_of(**band)
                out, lse = attend(queries, keys, values, attn_scale, bias=of(bias)[0] if bias else None, **masked)
                of(o)[b, :, : len(queries)] = out.transpose(0, 1).to(q_of.dtype)
                if generate_stats:
                    of(stats)[b, ..., 0] = lse.float()

        self.steps.append(compute)
        return o, stats

    def sdpa_backward(self, q, k, v, o, dO, stats, attn_scale, use_deterministic_algorithm, **band):
        gradients = Node(), Node(), Node()

        def compute(of):
            with torch.enable_grad():
                leaves = [of(node).double().requires_grad_() for node in (q, k, v)]
                each = zip(*(leaf.transpose(1, 2) for leaf in leaves))
                pairs = [attend(*tensors, attn_scale, **band_of(**band)) for tensors in each]
                out = torch.stack([out for out, _ in pairs]).transpose(1, 2)
                found = torch.autograd.grad(out, leaves, of(dO).double())
            lse = torch.stack([lse for _, lse in pairs])
            assert torch.allclose(out.to(of(o).dtype), of(o), atol=1e-2)
            assert torch.allclose(lse.float(), of(stats)[..., 0])
            for node, gradient in zip(gradients, found):
                of(node).copy_(gradient)

        self.steps.append(compute)
        return gradients

    def validate(self):
        pass

    build_operation_graph = check_support = build_plans = validate

    def create_execution_plans(self, modes):
        assert modes

    def get_workspace_size(self):
        return 0

    def execute(self, operands, workspace, handle):
        for node, tensor in operands.items():
            assert node.described == [list(tensor.shape), list(tensor.stride()), tensor.dtype], node.described
        (compute,) = self.steps
        compute(operands.__getitem__)


def band_of(diagonal_alignment="TOP_LEFT", diagonal_band_left_bound=None, diagonal_band_right_bound=None):
    """cuDNN masks at or before the left bound, and beyond the right one."""
    left = -1 if diagonal_band_left_bound is None else diagonal_band_left_bound - 1
    right = -1 if diagonal_band_right_bound is None else diagonal_band_right_bound
    return {"window": (left, right), "is_top_left": diagonal_alignment == "TOP_LEFT"}


def stand_in(name, **contents):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__dict__.update(__version__="stand-in", **contents)


if __name__ == "__main__":
    _, folder, worker = sys.argv
    sys.path.insert(0, folder)
    import torch

    stand_in("flash_attn", **flash_attention(2))
    stand_in("flash_attn_interface", **flash_attention(3))
    stand_in("flashinfer", BatchPrefillWithRaggedKVCacheWrapper=Ragged, BatchPrefillWithPagedKVCacheWrapper=Paged,
             BatchDecodeWithPagedKVCacheWrapper=Decode)  # fmt: skip
    types_of = {"HALF": torch.float16, "BFLOAT16": torch.bfloat16, "FLOAT": torch.float32, "INT32": torch.int32}
    stand_in("cudnn", pygraph=Graph, data_type=SimpleNamespace(**types_of), heur_mode=SimpleNamespace(A=0, FALLBACK=1),
             diagonal_alignment=SimpleNamespace(TOP_LEFT="TOP_LEFT", BOTTOM_RIGHT="BOTTOM_RIGHT"),
             cudnnGraphNotSupportedError=NotImplementedError, backend_version=lambda: 0)  # fmt: skip

    import attnbench_torch
    import attnbench_worker

    sys.argv = [f"{folder}/{worker}.py", "--device", "cpu"]
    module = importlib.import_module(worker)
    (provider_class,) = (value for value in vars(module).values() if isinstance(value, type)
                         and issubclass(value, attnbench_torch.TorchProvider) and value.__module__ == worker)  # fmt: skip
    # The device is the CPU, which these providers refuse.
    provider_class.load = attnbench_torch.TorchProvider.load
    provider_class.handle = None
    module.provider = provider_class()
    attnbench_worker.serve(module.provider)
