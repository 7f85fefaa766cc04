"""Problems and their seeded inputs in numpy: the same bits as every other provider's.

What is computed here is described in kernels/src/input.rs: an element is a hash of (seed, tensor, set, index) in integer
arithmetic, so nothing depends on a mathematics library. `golden_hash` proves it: the coordinator refuses a worker whose
hash differs. Tensors are numpy arrays; numpy has no bfloat16, so such a tensor holds its bits as uint16 (`widen` and
`narrow` convert).
"""

import math
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

# The stable number of a tensor in the hash; the names are the protocol's.
CODES = {
    "q": 1, "k": 2, "v": 3, "projection_k": 4, "projection_v": 5, "state_in": 6, "normaliser_in": 7,
    "page_table": 8, "bias": 9, "sinks": 10, "d_o": 11,
}  # fmt: skip
# What may be looked at while planning: it is the same in every input set.
STATIC = ("projection_k", "projection_v", "page_table", "sinks")
ARRAY_TYPES = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16, "i32": np.int32, "bool": np.uint8}

MASK = (1 << 64) - 1
# Mean of the sum of four 16-bit fields.
FIELD_SUM_MEAN = 131070
ELEMENT_SCALE = np.float32(2.0**-15)
# Elements that one numpy operation works on: a few of these fit the second-level cache.
CHUNK = 1 << 15

workers = ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None)


def hash64(key, counter):
    """splitmix64's output function at position `counter + 1` of stream `key`, of two integers."""
    z = (key + (counter + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def hash_array(key, counters):
    """`hash64` of a uint64 array, which is overwritten with the result. Arithmetic wraps."""
    z, shifted = counters, np.empty_like(counters)
    z += np.uint64(1)
    z *= np.uint64(0x9E3779B97F4A7C15)
    z += np.uint64(key)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, None)):
        np.right_shift(z, np.uint64(shift), out=shifted)
        z ^= shifted
        if factor is not None:
            z *= np.uint64(factor)
    return z


def field_sums(hashes):
    """The sum of the four 16-bit fields of each hash, as int64. Both lanes of 32 bits are added at once."""
    lanes = np.uint64(0x0000FFFF0000FFFF)
    upper = hashes >> np.uint64(16)
    upper &= lanes
    hashes &= lanes
    hashes += upper
    np.right_shift(hashes, np.uint64(32), out=upper)
    hashes += upper
    hashes &= np.uint64(0xFFFFFFFF)
    return hashes.view(np.int64)


def normal(key, counters, scale=ELEMENT_SCALE):
    """Elements at these counters of a stream, exact in f32; the counters are overwritten."""
    sums = field_sums(hash_array(key, counters))
    sums -= FIELD_SUM_MEAN
    values = sums.astype(np.float32)
    values *= scale
    return values


def counters(first, count):
    return np.arange(first, first + count, dtype=np.uint64)


def narrow(values, element):
    """Rounds f32 values to nearest even, as an array of that element type holds them."""
    if element == "bf16":
        bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
        rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        return np.where(np.isnan(values), np.uint32(0x7FC0), rounded).astype(np.uint16)
    return values.astype(ARRAY_TYPES[element])


def widen(array, element):
    """The f32 values of an array of that element type."""
    if element == "bf16":
        return (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return array.astype(np.float32)


def poison(array, element):
    """Fills an array with NaN, so that an element that nobody wrote cannot pass for a result."""
    fills = {"bf16": 0x7FC0, "i32": np.iinfo(np.int32).min, "bool": 1}
    array.fill(fills.get(element, np.nan))


class Problem:
    """One attention computation, as the protocol describes it (the schema has every field).

    Fields are attributes: `dtype`, `dtype_kv`, `batch`, `heads_q`, `heads_kv`, `head_dim_qk`, `head_dim_v`, `causal`,
    `causal_alignment`, `phase`, `layout`, `softcap`, `bias`, `sinks`, ... `mechanism`, `pattern` and `kv_layout` are
    names, whose options are in `mechanism_options`, `pattern_options` and `page_size`. `lengths_q` and `lengths_kv` have
    an entry for each sequence.
    """

    def __init__(self, fields, lengths_q=None, lengths_kv=None):
        self.__dict__.update(fields)
        for field in ("mechanism", "pattern"):
            options = dict(fields[field])
            setattr(self, field, options.pop("name"))
            setattr(self, f"{field}_options", options)
        self.kv_layout = fields["kv_layout"]["name"]
        self.page_size = fields["kv_layout"].get("page_size")
        self.lengths_q = lengths_q if lengths_q is not None else expand(fields["seqlen_q"], self.batch)
        self.lengths_kv = lengths_kv if lengths_kv is not None else expand(fields["seqlen_kv"], self.batch)

    @property
    def is_ragged(self):
        """Whether sequences may differ in length."""
        return "same" not in self.seqlen_q or "same" not in self.seqlen_kv

    @property
    def is_paged(self):
        return self.kv_layout == "paged"

    @property
    def key_lengths(self):
        """Tokens of K and V in a call; the recurrent form of linear attention only gets the new ones."""
        is_recurrent = self.mechanism == "linear" and self.phase == "decode"
        return self.lengths_q if is_recurrent else self.lengths_kv

    @property
    def effective_scale(self):
        """The factor of the scores in force."""
        if self.scale is not None:
            return self.scale
        dim = self.head_dim_qk
        if self.mechanism == "mla":
            dim = self.mechanism_options["nope"] + self.mechanism_options["rope"]
        return 1.0 / math.sqrt(dim)

    def query_offset(self, sequence):
        """p - i: what turns a query's index into its position among the keys."""
        if self.causal_alignment == "top_left":
            return 0
        return self.lengths_kv[sequence] - self.lengths_q[sequence]

    def visible_span(self, sequence=0):
        """First key, and one past the last, that each query of a sequence sees: two int64 arrays, the second not below
        the first. For patterns full and window, whose keys are in one piece."""
        keys = self.lengths_kv[sequence]
        position = np.arange(self.lengths_q[sequence]) + self.query_offset(sequence)
        first, end = np.zeros_like(position), np.full_like(position, keys)
        if self.pattern == "window":
            first = position - self.pattern_options["left"]
            end = position + self.pattern_options["right"] + 1
        if self.causal:
            end = np.minimum(end, position + 1)
        first = np.clip(first, 0, keys)
        return first, np.maximum(np.clip(end, 0, keys), first)

    def sees_all(self, sequence=0):
        """Whether every query of a sequence sees every key: no mask is needed."""
        first, end = self.visible_span(sequence)
        return bool((end - first == self.lengths_kv[sequence]).all())

    def has_blind_rows(self, sequence=0):
        """Whether some query of a sequence sees no key: its output is zero, which not every kernel knows."""
        first, end = self.visible_span(sequence)
        return bool((first == end).any())

    def mask(self, sequence=0):
        """Which (query, key) pairs of a sequence are visible."""
        first, end = (bound[:, None] for bound in self.visible_span(sequence))
        key = np.arange(self.lengths_kv[sequence])
        return (first <= key) & (key < end)

    @property
    def score_count(self):
        """Scores of all heads and sequences, masked ones included: what a kernel holds that keeps them all."""
        return sum(q * k for q, k in zip(self.lengths_q, self.lengths_kv)) * self.heads_q

    @property
    def input_names(self):
        """The tensors that are generated for a call."""
        names = ["q", "k"]
        if not (self.mechanism == "mla" and self.phase == "decode"):
            names.append("v")
        if self.mechanism == "linformer":
            names += ["projection_k", "projection_v"]
        if self.mechanism == "linear" and self.phase == "decode":
            names += ["state_in"] + ["normaliser_in"] * self.mechanism_options["normalised"]
        names += ["page_table"] * self.is_paged + ["bias"] * (self.bias in ("bool", "additive"))
        return names + ["sinks"] * self.sinks + ["d_o"] * (self.phase == "backward")

    @property
    def output_names(self):
        """The tensors that a call writes."""
        if self.phase == "backward":
            return ["d_q", "d_k", "d_v"]
        if self.mechanism == "linear" and self.phase == "decode":
            return ["o", "state_out"] + ["normaliser_out"] * self.mechanism_options["normalised"]
        return ["o"]

    def shape(self, name):
        """Element type and dimensions of a tensor."""
        longest_q, longest_kv = max(self.lengths_q, default=0), max(self.lengths_kv, default=0)
        d_qk, d_v = self.head_dim_qk, self.head_dim_v
        state = (self.batch, self.heads_kv, d_qk)
        if name in ("q", "d_q"):
            return self.dtype, self.rows(self.lengths_q, self.heads_q, d_qk)
        if name in ("o", "d_o"):
            return self.dtype, self.rows(self.lengths_q, self.heads_q, d_v)
        if name in ("k", "v", "d_k", "d_v"):
            dim = d_qk if name.endswith("k") else d_v
            element = self.dtype if name.startswith("d_") else self.dtype_kv
            if self.is_paged:
                return element, (self.page_pool_size, self.page_size, self.heads_kv, dim)
            return element, self.rows(self.key_lengths, self.heads_kv, dim)
        if name in ("projection_k", "projection_v"):
            return "f32", (longest_kv, self.mechanism_options["rank"])
        if name in ("state_in", "state_out"):
            return "f32", (*state, d_v)
        if name in ("normaliser_in", "normaliser_out"):
            return "f32", state
        if name == "page_table":
            return "i32", (self.batch, -(-longest_kv // self.page_size))
        if name == "bias":
            return "bool" if self.bias == "bool" else self.dtype, (1, 1, longest_q, longest_kv)
        if name == "sinks":
            return "f32", (self.heads_q,)
        if name == "lse":
            return "f32", (self.batch, self.heads_q, longest_q)
        raise KeyError(name)

    def rows(self, lengths, heads, dim):
        longest = max(lengths, default=0)
        if self.layout == "bshd":
            return (self.batch, longest, heads, dim)
        if self.layout == "bhsd":
            return (self.batch, heads, longest, dim)
        return (sum(lengths), heads, dim)

    @property
    def page_pool_size(self):
        """Pages in use and one in eight more, which hold NaN."""
        used = sum(-(-length // self.page_size) for length in self.lengths_kv)
        return used + max(used // 8, 1)

    def tensor_bytes(self, names):
        total = 0
        for name in names:
            element, dims = self.shape(name)
            total += math.prod(dims) * np.dtype(ARRAY_TYPES[element]).itemsize
        return total

    def tokens(self, array, name, sequence, page_table=None):
        """The rows of one sequence as (token, head, dim): a view to read and write, except of paged K and V, which is
        (pages as tokens, head, dim) and the indices of the sequence's tokens in it."""
        lengths = self.lengths_q if name in ("q", "o", "d_o", "d_q") else self.key_lengths
        length = lengths[sequence]
        if self.is_paged and name in ("k", "v"):
            token = np.arange(length)
            pages = page_table[sequence, token // self.page_size].astype(np.int64)
            return array.reshape(-1, *array.shape[2:]), pages * self.page_size + token % self.page_size
        if self.layout == "bshd":
            return array[sequence, :length], None
        if self.layout == "bhsd":
            return array[sequence, :, :length].transpose(1, 0, 2), None
        start = sum(lengths[:sequence])
        return array[start : start + length], None


def expand(lengths, batch):
    """Lengths of each sequence; None where they are drawn, which only the coordinator does."""
    if "same" in lengths:
        return [lengths["same"]] * batch
    return lengths.get("list")


class Generator:
    """Makes the values of one input set of a problem. `spec` is the protocol's InputSpec."""

    def __init__(self, problem, spec, input_set):
        self.problem, self.spec, self.set = problem, spec, input_set

    def key(self, name):
        return hash64(hash64(self.spec["seed"], CODES[name]), 0 if name in STATIC else self.set)

    def fill(self, name, array, page_table=None):
        """Overwrites a tensor in place. What belongs to no token (padding, unused pages) becomes NaN."""
        problem = self.problem
        element, _ = problem.shape(name)
        if name == "page_table":
            return self.fill_page_table(array)
        if name not in ("q", "k", "v", "d_o"):
            return self.fill_values(name, array, element)
        lengths = problem.lengths_q if name in ("q", "d_o") else problem.key_lengths
        heads, dim = (problem.heads_q if name in ("q", "d_o") else problem.heads_kv), array.shape[-1]
        if array.size != sum(lengths) * heads * dim:
            poison(array, element)
        step = max(1, CHUNK // max(1, heads * dim))
        blocks = []
        for sequence, length in enumerate(lengths):
            rows, places = problem.tokens(array, name, sequence, page_table)
            blocks += [(sequence, rows, places, t, min(t + step, length)) for t in range(0, length, step)]

        def write(block):
            sequence, rows, places, first, last = block
            values = narrow(self.block(name, sequence, first, last, heads, dim), element)
            rows[slice(first, last) if places is None else places[first:last]] = values

        for _ in workers.map(write, blocks):
            pass

    def block(self, name, sequence, first, last, heads, dim):
        """Tokens first..last of a sequence, exact in f32: (token, head, dim)."""
        problem = self.problem
        lengths = problem.lengths_q if name in ("q", "d_o") else problem.key_lengths
        row = (sequence * max(lengths) + first) * heads
        shape = (last - first, heads, dim)
        sparse = next((s for s in self.spec.get("sparse_grads", []) if s["set"] == self.set), None)
        if name == "d_o" and sparse is not None:
            values = np.zeros(shape, dtype=np.float32)
            for b, head, token in sparse["rows"]:
                if b == sequence and first <= token < last:
                    start = (row + (token - first) * heads + head) * dim
                    values[token - first, head] = normal(self.key(name), counters(start, dim))
            return values
        values = normal(self.key(name), counters(row * dim, math.prod(shape))).reshape(shape)
        if name == "q":
            self.single_out(values, sequence, first, row)
        return values

    def single_out(self, values, sequence, first, row):
        """Sets peaked query rows to twice the key row that each singles out."""
        problem, offsets = self.problem, np.array(self.spec["peak_offsets"], dtype=np.int64)
        tokens, heads, dim = values.shape
        length = problem.key_lengths[sequence]
        u = hash_array(hash64(self.key("q"), 1 << 32), counters(row, tokens * heads))
        peaked = np.flatnonzero(u % np.uint64(4) == 0)
        u = u[peaked]
        choice = ((u >> np.uint64(8)) % np.uint64(len(offsets) + 3)).astype(np.int64)
        position = first + peaked // heads + problem.query_offset(sequence)
        if len(offsets):
            keys = position + offsets[np.minimum(choice, len(offsets) - 1)]
        else:
            keys = position
        drawn = ((u >> np.uint64(32)) % np.uint64(max(length, 1))).astype(np.int64)
        for further, key in enumerate((0, length - 1, drawn)):
            keys = np.where(choice == len(offsets) + further, key, keys)
        inside = (keys >= 0) & (keys < length)
        peaked, keys = peaked[inside], keys[inside]
        group = problem.heads_q // problem.heads_kv
        rows = (sequence * max(problem.key_lengths) + keys) * problem.heads_kv + (peaked % heads) // group
        elements = rows.astype(np.uint64)[:, None] * np.uint64(dim) + np.arange(dim, dtype=np.uint64)
        values.reshape(-1, dim)[peaked] = 2 * normal(self.key("k"), elements)

    def fill_values(self, name, array, element):
        """Tensors without tokens, in the order of their shape."""
        key, flat = self.key(name), array.reshape(-1)
        scale = ELEMENT_SCALE
        if name.startswith("projection"):
            n = max(max(self.problem.key_lengths, default=0), 1)
            scale = ELEMENT_SCALE * np.float32(0.5 ** (n.bit_length() // 2))

        def write(first):
            count = min(CHUNK, flat.size - first)
            at = counters(first, count)
            if element == "bool":
                values = (hash_array(key, at) % np.uint64(4) != 0).astype(np.uint8)
            elif name == "normaliser_in":
                values = (field_sums(hash_array(key, at)) + 1).astype(np.float32) * ELEMENT_SCALE
            else:
                values = narrow(normal(key, at, scale), element)
            flat[first : first + count] = values

        for _ in workers.map(write, range(0, flat.size, CHUNK)):
            pass

    def fill_page_table(self, table):
        """Pages in the order of their hashes: a seeded permutation of the pool; -1 where a sequence has no more."""
        pool = np.arange(self.problem.page_pool_size)
        order = np.lexsort((pool, hash_array(self.key("page_table"), pool.astype(np.uint64))))
        table.fill(-1)
        next_page = 0
        for sequence, length in enumerate(self.problem.lengths_kv):
            pages = -(-length // self.problem.page_size)
            table[sequence, :pages] = order[next_page : next_page + pages]
            next_page += pages


def golden_hash():
    """A hash of the first elements of every kind of tensor, which all providers must agree on."""
    problem = Problem(
        {
            "mechanism": {"name": "softmax"}, "pattern": {"name": "full"}, "causal": True, "layout": "bshd",
            "causal_alignment": "bottom_right", "phase": "backward", "dtype": "f32", "dtype_kv": "f32", "batch": 2,
            "heads_q": 4, "heads_kv": 2, "seqlen_q": {"same": 5}, "seqlen_kv": {"same": 7}, "head_dim_qk": 8,
            "head_dim_v": 8, "scale": None, "softcap": None, "bias": "none", "sinks": False,
            "kv_layout": {"name": "contiguous"},
        }
    )
    generator = Generator(problem, {"seed": 42, "peak_offsets": [0, 1]}, 3)
    digest = 0
    for name in ("q", "k", "v", "d_o"):
        array = np.empty(problem.shape(name)[1], dtype=np.float32)
        generator.fill(name, array)
        for bits in array.view(np.uint32).reshape(-1).tolist():
            digest = hash64(digest, bits)
    return f"{digest:016x}"
