"""Calls in a peer's words: the operator's arguments for a kernel that has those of a peer's function.

A row of CALLS says what the function takes for granted. Its parameters are those of the function of the same name in
this package, and NAMES is what they are to the operator: the modules under the peers' names, the other way round.
"""

import importlib
import inspect
import sys
from dataclasses import dataclass, field

import numpy as np

from .arrays import is_torch
from .operator import presets
from .variations import narrowed

NAMES = {
    **dict(query="q", key="k", value="v", g="a", raw_g="a", raw_gate="a", beta="b", raw_beta="b"),
    **dict(a_log="A_log", g_bias="dt_bias", threshold="softplus_threshold", use_qk_l2norm="use_qk_l2norm_in_kernel"),
    **dict(initial_state="initial_state_source", state="initial_state_source"),
    **dict(ssm_state_indices="initial_state_indices", state_indices="initial_state_indices"),
}
OF_TOKENS = ("q", "k", "v", "a", "b")
OF_THE_RAW_GATE = ("A_log", "dt_bias", "softplus_beta", "softplus_threshold")


@dataclass
class Row:
    preset: str
    kda: object = False  # True: always; None: as asked for
    decode: bool = False  # one token for each sequence
    states: bool = False  # there are always some
    grouped: bool = True  # several value heads for a key head
    flat: bool = False  # tensors of [tokens, ...]
    batch: bool = False  # beside mixed_qkv, [1, tokens, ...]
    column: bool = False  # A_log is [HV, 1] where each K row has a gate
    fixed: dict = field(default_factory=dict)  # options that it has no argument for
    settings: dict = field(default_factory=dict)  # beside the preset's
    names: dict = field(default_factory=dict)  # beside NAMES; None: not passed
    constants: dict = field(default_factory=dict)  # what else is passed


UNIT = dict(use_qk_l2norm_in_kernel=False)  # q and k come normalised
GIVEN = dict(gate_input="log", beta_input="given")
FINAL = dict(output_final_state=True)
CPU = dict(head_first=False)
ROUND = dict(round_qk=True)  # as the chunk functions do
CPU_ROUND = ROUND | dict(round_q_scaled=True)
NO_BOUND = dict(lower_bound=None)

CALLS = {
    "sglang.fused_sigmoid_gating_delta_rule_update": Row("sglang", kda=None),
    "sglang.fused_recurrent_gated_delta_rule": Row("sglang", settings=GIVEN, constants=FINAL),
    "sglang.fused_recurrent_gated_delta_rule_update": Row("sglang", settings=GIVEN),
    "sglang.fused_recurrent_gated_delta_rule_packed_decode": Row(
        "sglang_packed_decode", decode=True, states=True, settings=dict(round_beta=True)
    ),
    "sglang.fused_recurrent_kda_packed_decode": Row("sglang_packed_decode", kda=True, decode=True, states=True),
    "sglang.chunk_gated_delta_rule": Row("sglang", settings=GIVEN | ROUND),
    "sglang.chunk_kda": Row("sglang", kda=True, settings=dict(beta_input="given") | ROUND),
    "sglang.chunk_kda_cpu": Row("sglang", kda=True, settings=dict(beta_input="given")),
    "sglang.fused_recurrent_kda": Row("sglang", kda=True, states=True, settings=GIVEN),
    "sglang.chunk_gated_delta_rule_cpu": Row("sglang_cpu_chunk", settings=CPU_ROUND, constants=CPU),
    "sglang.fused_sigmoid_gating_delta_rule_update_cpu": Row("sglang_cpu", decode=True, states=True),
    "vllm.fused_sigmoid_gating_delta_rule_update": Row(
        "vllm", kda=None, states=True, names=dict(beta="softplus_beta")
    ),
    "vllm.fused_recurrent_gated_delta_rule": Row("vllm_recurrent", states=True),
    "vllm.fused_recurrent_gated_delta_rule_packed_decode": Row("vllm_packed_decode", decode=True, states=True),
    "vllm.chunk_gated_delta_rule": Row("vllm", settings=GIVEN | ROUND, constants=FINAL),
    "vllm.fused_recurrent_kda": Row("vllm", kda=True, states=True, settings=GIVEN),
    "vllm.chunk_kda": Row("vllm", kda=True, settings=GIVEN | ROUND, constants=FINAL),
    "vllm.chunk_kda_with_fused_gate": Row("vllm", kda=True, settings=dict(beta_input="given") | ROUND, constants=FINAL),
    "vllm.chunk_gated_delta_rule_cpu": Row("vllm_cpu_chunk", settings=CPU_ROUND, constants=CPU | FINAL),
    "vllm.fused_sigmoid_gating_delta_rule_update_cpu": Row("vllm_cpu", decode=True, states=True),
    "vllm_kimi_k3.chunk_kda_with_fused_gate": Row("vllm_packed_decode", kda=True, settings=ROUND, constants=FINAL),
    "vllm_kimi_k3.fused_recurrent_kda": Row(
        "vllm_packed_decode", kda=True, states=True, fixed=dict(use_qk_l2norm_in_kernel=True), constants=NO_BOUND
    ),
    "vllm_kimi_k3.fused_recurrent_kda_fwd": Row("vllm_packed_decode", kda=True, states=True, settings=GIVEN),
    "vllm_kimi_k3.fused_recurrent_kda_packed_decode": Row(
        "vllm_packed_decode", kda=True, decode=True, states=True, batch=True, names=dict(out=None),
        fixed=dict(use_qk_l2norm_in_kernel=True), constants=NO_BOUND,
    ),
    "fla.fused_recurrent_gated_delta_rule": Row("fla", constants=FINAL),
    "fla.chunk_gated_delta_rule": Row("fla", settings=ROUND, constants=FINAL),
    "fla.fused_recurrent_kda": Row("fla", kda=True, constants=FINAL),
    "fla.fused_recurrent_kda_fwd": Row("fla", kda=True, states=True),
    "fla.chunk_kda": Row("fla", kda=True, settings=ROUND, constants=FINAL),
    "fla.naive_recurrent_gated_delta_rule": Row("fla", grouped=False, fixed=UNIT, constants=FINAL),
    "fla.naive_chunk_gated_delta_rule": Row("fla", grouped=False, fixed=UNIT, constants=FINAL),
    "fla.naive_recurrent_kda": Row("fla", kda=True, fixed=UNIT, constants=FINAL),
    "fla.naive_chunk_kda": Row("fla", kda=True, fixed=UNIT, constants=FINAL | dict(chunk_size=1)),  # T is a multiple
    "flashinfer.gated_delta_rule_decode": Row("flashinfer_decode_kv", decode=True, states=True),
    "flashinfer.gated_delta_rule_decode_pretranspose": Row(
        "flashinfer_decode", decode=True, states=True, names=dict(state=None), constants=dict(state=None)
    ),
    "flashinfer.gated_delta_rule_mtp": Row(
        "flashinfer_mtp", states=True, names=dict(ssm_state_indices=None), constants=dict(disable_state_update=False)
    ),
    "flashinfer.chunk_gated_delta_rule": Row(
        "flashinfer_prefill", flat=True, settings=ROUND, names=dict(state_indices=None), constants=FINAL
    ),
    "flashinfer.recurrent_kda": Row(
        "flashinfer_decode", kda=True, states=True, settings=GIVEN,
        names=dict(initial_state_source=None, initial_state_indices=None),
    ),
    "flashinfer.packed_kda_decode": Row(
        "flashinfer_decode", kda=True, decode=True, states=True, fixed=dict(use_qk_l2norm_in_kernel=True)
    ),
    "mlx_lm.gated_delta_update": Row(
        "mlx_lm", kda=None, column=True, fixed=UNIT | dict(scale=1.0),
        settings=dict(gate_input="raw", beta_input="raw", round_beta=True),
    ),
    "mlx_lm.gated_delta_kernel": Row("mlx_lm", kda=None, states=True, fixed=UNIT | dict(scale=1.0)),
    "mlx_lm.gated_delta_ops": Row("mlx_lm", kda=None, fixed=UNIT | dict(scale=1.0)),
}  # fmt: skip


class Signature:
    """How a kernel with the arguments of CALLS[name] is called; with the conventions of a preset, or else the row's."""

    def __init__(self, name, preset=None):
        self.row = CALLS[name]
        self.settings = presets()[preset] if preset else presets()[self.row.preset] | self.row.settings
        module, function = name.split(".")
        function = getattr(importlib.import_module(f".{module}", __package__), function)
        self.names, required = {}, set()  # {the kernel's: the operator's}
        for parameter in inspect.signature(function).parameters.values():
            name = (NAMES | self.row.names).get(parameter.name, parameter.name)
            if parameter.default is parameter.empty:
                required.add(name)
            elif self.settings["gate_input"] != "raw" and name in OF_THE_RAW_GATE:
                continue
            self.names[parameter.name] = name
        self.always_packed = self.row.flat or "cu_seqlens" in required
        self.has_slots = self.takes("initial_state_indices")

    def takes(self, option):
        return option in self.names.values()

    def call(self, kernel, **x):
        """`o`, and the pool updated in place, of a kernel called by name: once, or for each sequence if it is not told
        where they end."""
        shape, ends = x["v"].shape, x.get("cu_seqlens")
        if self.row.decode:
            if not self.takes("cu_seqlens"):
                x |= {name: x[name].reshape(-1, 1, *x[name].shape[2:]) for name in OF_TOKENS}
            return self._once(kernel, x).reshape(shape)
        if ends is None or self.takes("cu_seqlens"):
            return self._once(kernel, x)
        o, ends, slots = None, ends.tolist(), x["initial_state_indices"]
        for n, (begin, end) in enumerate(zip(ends, ends[1:])):
            if begin < end:
                part = x | {name: x[name][:, begin:end] for name in OF_TOKENS}
                part["initial_state_indices"] = None if slots is None else slots[n : n + 1]
                row = self._once(kernel, part)
                o = _zeros(row, shape) if o is None else o
                o[:, begin:end] = row
        return o

    def _once(self, kernel, x):
        pool, slots, shape = x["initial_state_source"], x["initial_state_indices"], x["v"].shape
        states = pool if pool is None or self.has_slots else _take(pool, slots.tolist())
        x = x | dict(initial_state_source=states)
        if self.row.column and x.get("is_kda"):
            x |= dict(A_log=x["A_log"].reshape(-1, 1))
        if self.row.flat:
            x |= {name: x[name][0] for name in OF_TOKENS}
        if self.takes("mixed_qkv"):
            rows = {name: x[name].reshape(shape[0], -1) for name in OF_TOKENS}
            rows["mixed_qkv"] = _side_by_side(rows["q"], rows["k"], rows["v"])
            if self.row.batch:
                rows |= {name: x[name].reshape(1, shape[0], *x[name].shape[2:]) for name in ("a", "b")}
            x |= rows | dict(out=_zeros(rows["q"], shape), scale=x.get("scale") or x["q"].shape[-1] ** -0.5)
        result = kernel(**self.row.constants, **{given: x[name] for given, name in self.names.items() if name in x})
        o, final = (*result, None)[:2] if isinstance(result, (tuple, list)) else (result, None)
        if pool is not None and not self.has_slots:
            slots, states = slots.tolist(), states if final is None else final
            ends = x["cu_seqlens"].tolist() if "cu_seqlens" in x else range(len(slots) + 1)
            some = [n for n in range(len(slots)) if ends[n] < ends[n + 1]]  # of others, not even one peer says the same
            _store(pool, [slots[n] for n in some], _take(states, some))
        elif pool is not None and final is not None and final is not pool:
            _store(pool, slice(None), final)
        return o[None] if self.row.flat else o


# ---- What arrays of numpy, torch and mlx have in different ways


def _mlx(x):
    mx = sys.modules.get("mlx.core")  # who has an array has imported it
    return mx if mx is not None and isinstance(x, mx.array) else None


def _zeros(x, shape):
    return x.new_zeros(shape) if is_torch(x) else (_mlx(x) or np).zeros(shape, x.dtype)


def _side_by_side(*rows):
    return sys.modules["torch"].cat(rows, 1) if is_torch(rows[0]) else (_mlx(rows[0]) or np).concatenate(rows, 1)


def _take(x, numbers):
    return x[_mlx(x).array(numbers) if _mlx(x) else numbers]


def _store(pool, slots, states):
    if is_torch(pool):
        states = states.to(pool.dtype)
    elif _mlx(pool):
        slots = _mlx(pool).array(slots) if isinstance(slots, list) else slots
    elif pool.dtype == np.uint16 and states.dtype != np.uint16:
        states = narrowed(states.astype(np.float64), "bfloat16")
    pool[slots] = states
