#!/usr/bin/env python3
"""Checks `attnbench eval` against the reference implementation of the ONNX `Attention` operator.

    python -m venv venv && venv/bin/pip install onnx numpy safetensors
    venv/bin/python bench_harness/tests/onnx_attention.py --binary target/release/attnbench

makes vectors over every option that both have, runs the binary on them and prints the largest errors; it exits with 1
where one is beyond its tolerance. `--random N` adds N seeded random configurations. `--write FILE` keeps the vectors in
one .safetensors file, which `cargo test` uses without Python: tensors `<case>/<role>`, and in the metadata key `cases`
the command line and the tolerances of each case.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from safetensors.numpy import load_file, save_file

ROLES = {
    "q": "--q",
    "k": "--k",
    "v": "--v",
    "mask": "--mask",
    "past_key": "--past-key",
    "past_value": "--past-value",
    "kv_lengths": "--kv-lengths",
}
OUTPUTS = {"o": "--out", "lse": "--lse-out", "present_key": "--present-key-out", "present_value": "--present-value-out"}
# Relative and absolute; in float16 the inputs are exact and only P and O are rounded.
TOLERANCES = {"float32": (1e-3, 1e-5), "float16": (2e-3, 1e-3)}


@dataclass
class Case:
    """A configuration: its tensors, the operator's attributes and the same as command-line arguments."""

    name: str
    tensors: dict
    attributes: dict = field(default_factory=dict)

    def arguments(self):
        flags = {
            "scale": "--scale",
            "softcap": "--softcap",
            "q_num_heads": "--heads-q",
            "kv_num_heads": "--heads-kv",
            "left_window_size": "--window-left",
            "right_window_size": "--window-right",
        }
        arguments = ["--causal"] if self.attributes.get("is_causal") else []
        for name, flag in flags.items():
            if name in self.attributes:
                arguments += [flag, str(self.attributes[name])]
        return arguments

    def tolerance(self):
        return TOLERANCES[str(self.tensors["q"].dtype)]


def length_q(case):
    return case.tensors["q"].shape[-2]


def reference(case):
    """Output, present key, present value and log-sum-exp, by the operator's reference implementation in float32."""
    wide = {
        role: array.astype(np.float32) if array.dtype == np.float16 else array for role, array in case.tensors.items()
    }
    if "mask" in wide and wide["mask"].shape[-2] == 1:
        # The reference takes the number of queries from the mask when it adds causal, so a mask that is one row for all
        # queries would give every query the first one's keys. The operator's text broadcasts first.
        shape = list(wide["mask"].shape)
        shape[-2] = length_q(case)
        wide["mask"] = np.broadcast_to(wide["mask"], shape).copy()
    order = ["q", "k", "v", "mask", "past_key", "past_value", "kv_lengths"]
    while order[-1] not in wide:
        order.pop()
    node = helper.make_node(
        "Attention",
        [role if role in wide else "" for role in order],
        ["o", "present_key", "present_value", "scores"],
        # The scores with softcap and mask, from which the log-sum-exp follows.
        qk_matmul_output_mode=2,
        **case.attributes,
    )
    value = lambda name, dtype: helper.make_tensor_value_info(name, dtype, None)
    inputs = [value(role, helper.np_dtype_to_tensor_dtype(wide[role].dtype)) for role in order if role in wide]
    outputs = [value(name, TensorProto.FLOAT) for name in node.output]
    graph = helper.make_graph([node], "attention", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", onnx.defs.onnx_opset_version())])
    o, present_key, present_value, scores = ReferenceEvaluator(model).run(None, wide)
    with np.errstate(divide="ignore"):
        lse = np.logaddexp.reduce(scores.astype(np.float64), axis=-1).astype(np.float32)
    return {"o": o, "present_key": present_key, "present_value": present_value, "lse": lse}


class Maker:
    """Seeded tensors of one shape."""

    def __init__(self, seed, batch=2, heads=(4, 2), length_q=3, length_kv=5, past=0, dim=6, dim_v=None, rank=4, dtype="float32"):
        self.random = np.random.default_rng(seed)
        self.batch, self.heads, self.length_q, self.length_kv, self.past = batch, heads, length_q, length_kv, past
        self.dim, self.dim_v, self.rank, self.dtype = dim, dim_v or dim, rank, dtype

    def normal(self, *shape):
        return self.random.standard_normal(shape).astype(self.dtype)

    def rows(self, heads, length, dim, rank):
        if rank == 3:
            return self.normal(self.batch, length, heads * dim)
        return self.normal(self.batch, heads, length, dim)

    @property
    def total(self):
        return self.past + self.length_kv

    def tensors(self):
        heads_q, heads_kv = self.heads
        tensors = {
            "q": self.rows(heads_q, self.length_q, self.dim, self.rank),
            "k": self.rows(heads_kv, self.length_kv, self.dim, self.rank),
            "v": self.rows(heads_kv, self.length_kv, self.dim_v, self.rank),
        }
        if self.past:
            tensors["past_key"] = self.rows(heads_kv, self.past, self.dim, 4)
            tensors["past_value"] = self.rows(heads_kv, self.past, self.dim_v, 4)
        return tensors

    def boolean(self, *shape):
        return self.random.random(shape) < 0.6

    def additive(self, *shape, dtype=None):
        mask = self.random.standard_normal(shape)
        mask[self.random.random(shape) < 0.3] = -np.inf
        return mask.astype(dtype or self.dtype)


def cases():
    """The fixed configurations: each option alone, then the combinations that have gone wrong elsewhere."""
    made = []

    def add(name, attributes=None, mask=None, kv_lengths=None, **shape):
        maker = Maker(len(made), **shape)
        tensors = maker.tensors()
        if mask is not None:
            tensors["mask"] = mask(maker)
        if kv_lengths is not None:
            tensors["kv_lengths"] = np.array(kv_lengths, dtype=np.int64)
        attributes = dict(attributes or {})
        if maker.rank == 3:
            attributes |= {"q_num_heads": maker.heads[0], "kv_num_heads": maker.heads[1]}
        made.append(Case(name, tensors, attributes))

    causal = {"is_causal": 1}
    # Head layouts, dims, lengths.
    add("mha", heads=(3, 3))
    add("gqa")
    add("mqa", heads=(4, 1), length_q=1, length_kv=17)
    add("value_dim", dim=4, dim_v=12)
    add("odd_dims", dim=5, dim_v=3, length_q=7, length_kv=2)
    add("one", batch=1, heads=(1, 1), length_q=1, length_kv=1, dim=1)
    add("longer", batch=1, heads=(2, 1), length_q=20, length_kv=37, dim=4)
    # Factor and cap.
    add("scale", {"scale": 0.125})
    add("scale_large", {"scale": 3.0})
    add("softcap", {"softcap": 1.5})
    add("softcap_scale_causal", {"softcap": 2.0, "scale": 1.25} | causal)
    # Causal from the top left.
    add("causal_square", causal, length_q=5)
    add("causal_wide", causal, length_q=3, length_kv=9)
    add("causal_tall", causal, length_q=9, length_kv=4)
    # Boolean masks.
    add("bool_2d", mask=lambda m: m.boolean(m.length_q, m.total))
    add("bool_3d", mask=lambda m: m.boolean(m.heads[0], m.length_q, m.total))
    add("bool_3d_shared", mask=lambda m: m.boolean(1, m.length_q, m.total))
    add("bool_4d", mask=lambda m: m.boolean(m.batch, m.heads[0], m.length_q, m.total))
    add("bool_4d_keys", mask=lambda m: m.boolean(m.batch, 1, 1, m.total))
    add("bool_4d_heads", mask=lambda m: m.boolean(1, m.heads[0], 1, m.total))
    add("bool_causal", causal, mask=lambda m: m.boolean(m.length_q, m.total), length_q=5)
    add("bool_keys_causal", causal, mask=lambda m: m.boolean(m.batch, 1, 1, m.total), length_q=5)
    add("bool_softcap", {"softcap": 1.0}, mask=lambda m: m.boolean(m.length_q, m.total))
    # Additive masks.
    add("float_2d", mask=lambda m: m.additive(m.length_q, m.total))
    add("float_3d", mask=lambda m: m.additive(m.heads[0], m.length_q, m.total))
    add("float_4d", mask=lambda m: m.additive(m.batch, m.heads[0], m.length_q, m.total))
    add("float_4d_batch", mask=lambda m: m.additive(m.batch, 1, m.length_q, m.total))
    add("float_softcap", {"softcap": 0.7}, mask=lambda m: m.additive(m.length_q, m.total))
    add("float_causal", causal, mask=lambda m: m.additive(m.batch, 1, m.length_q, m.total), length_q=5)
    add("float_lowest", mask=lambda m: np.where(m.boolean(m.length_q, m.total), np.float32(0), np.finfo(np.float32).min))
    # Masks shorter than the keys.
    add("bool_short", mask=lambda m: m.boolean(m.length_q, 3))
    add("bool_short_causal", causal, mask=lambda m: m.boolean(m.batch, 1, m.length_q, 2))
    add("float_short", mask=lambda m: m.additive(m.heads[0], m.length_q, 3))
    add("float_short_past", causal, mask=lambda m: m.additive(m.length_q, 4), past=3, length_kv=3)
    add("bool_width_1", mask=lambda m: np.ones((m.length_q, 1), dtype=bool))
    # Fully masked rows.
    row = np.array([True, False, True])[:, None]
    add("masked_row_bool", mask=lambda m: np.broadcast_to(row, (3, 5)).copy())
    add("masked_row_float", mask=lambda m: np.where(np.broadcast_to(row, (3, 5)), 0, -np.inf).astype(np.float32))
    add("masked_row_causal", causal, mask=lambda m: ~np.eye(3, 5, dtype=bool))
    add("masked_all", mask=lambda m: np.zeros((3, 5), dtype=bool))
    add("masked_head", mask=lambda m: np.broadcast_to(np.arange(4)[:, None, None] != 1, (4, 3, 5)).copy())
    add("masked_row_softcap", {"softcap": 5.0}, mask=lambda m: np.broadcast_to(row, (3, 5)).copy())
    # Past and present.
    add("past", past=4, length_kv=3)
    add("past_causal", causal, past=4, length_kv=3)
    add("past_decode", causal, past=12, length_q=1, length_kv=1)
    add("past_causal_wide", causal, past=4, length_q=2, length_kv=5)
    add("past_causal_tall", causal, past=2, length_q=6, length_kv=3)
    add("past_causal_tall_mask", causal, past=2, length_q=6, length_kv=3, mask=lambda m: m.additive(6, 5))
    add("past_mask", causal, past=4, length_kv=3, mask=lambda m: m.boolean(m.batch, 1, m.length_q, m.total))
    add("past_value_dim", causal, past=3, length_kv=3, dim_v=4)
    # Key lengths of an external cache.
    add("lengths", kv_lengths=[5, 2])
    add("lengths_causal", causal, kv_lengths=[5, 3])
    add("lengths_causal_short", causal, kv_lengths=[2, 4])
    add("lengths_zero", causal, kv_lengths=[0, 5])
    add("lengths_all_short", causal, kv_lengths=[4, 4])
    add("lengths_mask", causal, kv_lengths=[4, 3], mask=lambda m: m.additive(m.batch, 1, m.length_q, m.total))
    add("lengths_decode", causal, kv_lengths=[9, 4], length_q=1, length_kv=9)
    # Windows.
    add("window_left", {"left_window_size": 1}, length_q=7, length_kv=7)
    add("window_right", {"right_window_size": 2}, length_q=7, length_kv=7)
    add("window_both", {"left_window_size": 2, "right_window_size": 1}, length_q=6, length_kv=9)
    add("window_causal", {"left_window_size": 2} | causal, length_q=7, length_kv=7)
    add("window_none", {"left_window_size": 0, "right_window_size": 0}, length_q=7, length_kv=4)
    add("window_past", {"left_window_size": 3} | causal, past=5, length_kv=3)
    add("window_past_wide", {"left_window_size": 1, "right_window_size": 1}, past=3, length_q=2, length_kv=4)
    add("window_lengths", {"left_window_size": 1} | causal, kv_lengths=[5, 3])
    add("window_mask", {"left_window_size": 2, "right_window_size": 1}, mask=lambda m: m.boolean(5, 5), length_q=5)
    # (batch, length, heads * dim).
    add("rank3", rank=3)
    add("rank3_causal_mask", causal, rank=3, mask=lambda m: m.boolean(m.length_q, m.total), dim_v=3)
    add("rank3_past", causal, rank=3, past=4, length_kv=3)
    add("rank3_lengths", causal, rank=3, kv_lengths=[3, 5])
    # Half precision.
    add("half", dtype="float16")
    add("half_causal_past", causal, dtype="float16", past=4, length_kv=3)
    add("half_mask", dtype="float16", mask=lambda m: m.additive(m.length_q, m.total))
    add("half_wide_mask", dtype="float16", mask=lambda m: m.additive(m.length_q, m.total, dtype=np.float32))
    add("half_bool_softcap", {"softcap": 2.0}, dtype="float16", mask=lambda m: m.boolean(m.length_q, m.total))
    return made


def random_case(seed):
    """A configuration drawn from everything that may be combined."""
    random = np.random.default_rng([seed, 1])
    pick = lambda *choices: choices[random.integers(len(choices))]
    heads_kv = int(random.integers(1, 4))
    shape = {
        "batch": int(random.integers(1, 4)),
        "heads": (heads_kv * int(random.integers(1, 5)), heads_kv),
        "length_q": int(pick(1, 2, 5, 16, 33, 100)),
        "length_kv": int(pick(1, 3, 8, 31, 64, 130, 300)),
        "dim": int(pick(1, 4, 7, 16, 64)),
        "dim_v": int(pick(1, 4, 9, 32)),
        "rank": int(pick(3, 4)),
        "dtype": pick("float32", "float32", "float16"),
        "past": int(pick(0, 0, 1, 6, 40)),
    }
    maker = Maker(seed, **shape)
    tensors, attributes = maker.tensors(), {}
    if maker.rank == 3:
        attributes |= {"q_num_heads": maker.heads[0], "kv_num_heads": maker.heads[1]}
    if random.random() < 0.5:
        attributes["is_causal"] = 1
    if random.random() < 0.3:
        attributes["softcap"] = float(pick(0.5, 2.0, 30.0))
    if random.random() < 0.3:
        attributes["scale"] = float(pick(0.05, 0.5, 2.0))
    if random.random() < 0.3:
        attributes["left_window_size"] = int(random.integers(0, 20))
    if random.random() < 0.3:
        attributes["right_window_size"] = int(random.integers(0, 20))
    if not maker.past and random.random() < 0.4:
        tensors["kv_lengths"] = random.integers(0, maker.length_kv + 1, maker.batch)
    if random.random() < 0.6:
        keys = maker.total if random.random() < 0.7 else int(random.integers(1, maker.total + 1))
        dims = [pick(1, maker.batch), pick(1, maker.heads[0]), pick(1, maker.length_q), keys]
        dims = [int(dim) for dim in dims[int(random.integers(0, 3)) :]]
        tensors["mask"] = pick(maker.boolean, maker.additive)(*dims)
    return Case(f"random_{seed}", tensors, attributes)


def run(binary, kernel, case, expected):
    """The largest error of each output as a fraction of its tolerance, or what the binary complained about."""
    with tempfile.TemporaryDirectory() as directory:
        command = [binary, "eval", "--kernel", kernel, *case.arguments()]
        for role, array in case.tensors.items():
            path = f"{directory}/{role}.npy"
            np.save(path, array)
            command += [ROLES[role], path]
        for role, flag in OUTPUTS.items():
            command += [flag, f"{directory}/out_{role}.npy"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            return {"exit code": float("inf"), done.stderr.strip(): float("inf")}
        errors = {}
        for role in OUTPUTS:
            got, want = np.load(f"{directory}/out_{role}.npy"), expected[role]
            dtype = np.dtype(np.float32) if role == "lse" else case.tensors["q"].dtype
            if got.shape != want.shape or got.dtype != dtype:
                return {f"{role} is {got.dtype} {got.shape}, not {dtype} {want.shape}": float("inf")}
            relative, absolute = case.tolerance()
            with np.errstate(invalid="ignore"):
                error = np.abs(got.astype(np.float64) - want) / (absolute + relative * np.abs(want))
            error = np.where(got == want, 0, error)
            errors[role] = float(np.max(np.nan_to_num(error, nan=np.inf), initial=0))
        return errors


def write(path, named):
    """Keeps the cases and what is expected of them in one file."""
    tensors, described = {}, []
    for case, expected in named:
        for role, array in case.tensors.items():
            tensors[f"{case.name}/{role}"] = np.ascontiguousarray(array)
        outputs = ["o", "lse"] + (["present_key", "present_value"] if "past_key" in case.tensors else [])
        for role in outputs:
            tensors[f"{case.name}/expected_{role}"] = np.ascontiguousarray(expected[role].astype(np.float32))
        relative, absolute = case.tolerance()
        described.append(
            {
                "name": case.name,
                "arguments": case.arguments(),
                "inputs": sorted(case.tensors),
                "outputs": outputs,
                "relative": relative,
                "absolute": absolute,
            }
        )
    save_file(tensors, path, {"cases": json.dumps(described), "onnx": onnx.__version__})
    load_file(path)
    print(f"{path}: {len(described)} cases, {Path(path).stat().st_size} bytes")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", help="attnbench to check")
    parser.add_argument("--kernels", default="cpu/naive,cpu/flash")
    parser.add_argument("--random", type=int, default=0, metavar="N")
    parser.add_argument("--write", metavar="FILE")
    arguments = parser.parse_args()
    fixed = [(case, reference(case)) for case in cases()]
    if arguments.write:
        write(arguments.write, fixed)
    if not arguments.binary:
        return 0
    drawn = ((case, reference(case)) for case in map(random_case, range(arguments.random)))
    failed, worst, count = 0, 0.0, 0
    for case, expected in [*fixed, *drawn]:
        for kernel in arguments.kernels.split(","):
            errors = run(arguments.binary, kernel, case, expected)
            count += 1
            worst = max(worst, *(error for error in errors.values() if np.isfinite(error)), 0.0)
            if any(error > 1 for error in errors.values()):
                failed += 1
                print(f"FAILED {case.name} with {kernel} {' '.join(case.arguments())}: {errors}")
    print(f"{count - failed} of {count} within tolerance; the largest error that is finite is {worst:.3g} of its tolerance")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
