"""The operator, with the signature of SGLang's Triton wrapper."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from ctypes import byref

import numpy as np

from . import library
from .arrays import FLOATS, INTEGERS, View, dtype_name, integers, is_torch, readable, writable
from .library import ENUMERATIONS, LIB, SYSTEMS

TINY = 1e-300  # the library's zero of a number whose 0 is "default"
GRAIN = 1 << 19  # elements of state to update that are worth a thread: some 0.1 ms


class GdnError(ValueError):
    """A call that the library, or this module before it, refuses. Nothing has been written."""

    def __init__(self, text, argument="", index=-1, other=-1, status="GDN_ERROR_SIZE"):
        place = f"[{index}]" if index >= 0 else ""
        with_other = f" (and [{other}])" if other >= 0 else ""
        super().__init__(f"{argument}{place}{with_other}: {text}" if argument else text)
        self.argument, self.index, self.other, self.status = argument, index, other, status


class _Call:
    """The parameter struct of one call, and what keeps its memory alive."""

    def __init__(self):
        self.params = library.Params()
        self.views = []

    def option(self, argument, value):
        """An enumeration by its name; None leaves what the preset has set."""
        if value is None:
            return
        names = ENUMERATIONS[argument][1]
        if value not in names or value.endswith("not_set"):
            text = ", ".join(repr(name) for name in names if not name.endswith("not_set"))
            raise GdnError(f"{value!r} is none of {text}", argument, status="GDN_ERROR_ENUM")
        setattr(self.params, argument, names.index(value))

    def number(self, argument, value, positive):
        """A number of which the library takes 0 for "default"."""
        if value is None:
            return
        if positive and value == 0:
            raise GdnError("must not be 0", argument, status="GDN_ERROR_VALUE")
        setattr(self.params, argument, value if value != 0 else TINY)

    def _view(self, argument, make, *arguments):
        try:
            view = make(*arguments)
        except ValueError as error:
            raise GdnError(str(error), argument, status="GDN_ERROR_STRIDE") from None
        self.views.append(view)
        return view

    def _dtype(self, argument, view, kinds, enumeration):
        if view.dtype not in kinds:
            raise GdnError(f"{view.dtype} is none of {', '.join(kinds)}", argument, status="GDN_ERROR_ENUM")
        return ENUMERATIONS[enumeration][1].index(kinds[view.dtype])

    def _shape(self, argument, x, *shapes):
        if tuple(x.shape) not in shapes:
            wanted = " or ".join(str(list(shape)) for shape in dict.fromkeys(shapes))
            raise GdnError(f"its shape is {list(x.shape)}, and {wanted} is needed", argument)

    def tensor(self, argument, x, shape, *other_shapes):
        """An input of `shape` [batch, token, head, inner], or one of the others, which hold the same in order."""
        if x is None:
            return
        self._shape(argument, x, shape, *other_shapes)
        view = self._view(argument, readable, x.reshape(shape))
        dtype = self._dtype(argument, view, FLOATS, "dtype")
        setattr(self.params, argument, library.Tensor(view.address, dtype, *view.strides[:3]))

    def output(self, x, shape):
        self._shape("o", x, shape)
        view = self._view("o", writable, x, 1)
        self.params.o = library.Tensor(view.address, self._dtype("o", view, FLOATS, "dtype"), *view.strides[:3])

    def states(self, argument, x, sizes, written):
        """A pool or a cache: [*outer sizes, HV, matrix], the matrix in the layout that is set."""
        if x is None:
            return
        if not self.params.state_layout:
            raise GdnError("is not set, and a wrong one is silently wrong", "state_layout", status="GDN_ERROR_ENUM")
        layout = ENUMERATIONS["state_layout"][1][self.params.state_layout]
        heads, rows, columns = sizes if layout != "vk" else (sizes[0], sizes[2], sizes[1])
        outer = tuple(x.shape[:-3])
        if len(outer) != (1 if argument == "initial_state_source" else 2) or x.shape[-3:] != (heads, rows, columns):
            axes = "[slots, HV, " if argument == "initial_state_source" else "[rows, steps, HV, "
            text = f"{axes}{layout[0].upper()}, {layout[1].upper()}] = [..., {heads}, {rows}, {columns}]"
            raise GdnError(f"its shape is {list(x.shape)}, and state_layout {layout!r} is {text}", argument)
        view = self._view(argument, writable, x, 2) if written else self._view(argument, readable, x, 2)
        structure = library.StatePool if argument == "initial_state_source" else library.StateCache
        dtype = self._dtype(argument, view, FLOATS, "dtype")
        setattr(self.params, argument, structure(view.address, dtype, *outer, *view.strides[:-2]))

    def indices(self, argument, x, length, columns=False):
        """[length], or with columns [length, any]."""
        if x is None:
            return
        x = self._view(argument, lambda: View(integers(x))).owner
        if columns and len(x.shape) == 1:
            x = x.reshape(-1, 1)
        if len(x.shape) != 1 + columns or x.shape[0] != length:
            wanted = f"[{length}, steps]" if columns else f"[{length}]"
            raise GdnError(f"its shape is {list(x.shape)}, and {wanted} is needed", argument)
        view = self._view(argument, readable, x, 1 if columns else 0)
        dtype = self._dtype(argument, view, INTEGERS, "index_dtype")
        width = view.shape[1] if columns else 1
        setattr(self.params, argument, library.Indices(view.address, dtype, width, view.strides[0]))


def fused_sigmoid_gating_delta_rule_update(
    A_log,
    a,
    dt_bias,
    softplus_beta,
    softplus_threshold,
    q,
    k,
    v,
    b,
    initial_state_source,
    initial_state_indices,
    scale=None,
    use_qk_l2norm_in_kernel=False,
    cu_seqlens=None,
    is_kda=False,
    lower_bound=None,
    disable_state_update=False,
    intermediate_states_buffer=None,
    intermediate_state_indices=None,
    cache_steps=None,
    retrieve_parent_token=None,
    *,
    preset="sglang",
    state_layout=None,
    head_map=None,
    gate_input=None,
    beta_input=None,
    l2norm_form=None,
    l2norm_eps=None,
    padding=None,
    null_slot=None,
    allow_neg_eigval=False,
    output_state_indices=None,
    ssm_state_indices=None,
    num_accepted_tokens=None,
    compute="f32",
    isa="auto",
    o=None,
    num_threads=None,
):
    """The Gated DeltaNet recurrence over q, k [B,T,H,K] and v [B,T,HV,V]; returns o [B,T,HV,V].

    The arguments to retrieve_parent_token are the Triton wrapper's: numpy arrays or CPU torch tensors, used where they
    lie (float32, bfloat16, float16; an uint16 array is the bits of bfloat16). initial_state_source
    [slots,HV,V,K] is updated in place. `o` is new, of q's kind and dtype; rows that no sequence owns are 0.
    cu_seqlens packs sequences into a batch of 1, where a and b may be [tokens, ...] too.

    The others are the fields of gdn_params, described in gdn_varlen.h, by the lower-case names of their values:

      preset        one of presets(): what another system takes for granted; each of the next eight overrides it
      state_layout  "kv", "vk"                    head_map     "grouped", "tiled"
      gate_input    "raw", "log", "decay"         beta_input   "raw", "given"
      l2norm_form   "sum_plus_eps", "mean_plus_eps", "max_norm_eps", "norm_plus_eps"; l2norm_eps a number
      padding       "compute", "zero", "leave"    null_slot    a slot, or -1 for none
      compute       "f32"; "f32_chunks": faster for prompts, with other last bits; or "f64": the oracle, whose new `o`
                    is float64
      o             where to put the output       num_threads  at most; default: all cores

    A call that is refused raises GdnError, a ValueError with .argument, .index, .other and .status.
    """
    call = _Call()
    params = call.params
    if preset is not None:
        if preset not in SYSTEMS:
            raise GdnError(f"{preset!r} is none of {', '.join(SYSTEMS)}", "preset", status="GDN_ERROR_ENUM")
        LIB.gdn_preset(byref(params), SYSTEMS[preset])
    call.option("state_layout", state_layout)
    call.option("head_map", head_map)
    call.option("gate_input", gate_input)
    call.option("beta_input", beta_input)
    call.option("l2norm_form", l2norm_form)
    call.option("padding", padding)
    call.option("compute", compute)
    call.option("isa", isa)
    call.number("l2norm_eps", l2norm_eps, positive=False)
    call.number("softplus_beta", softplus_beta, positive=True)
    call.number("softplus_threshold", softplus_threshold, positive=False)
    call.number("scale", scale, positive=True)
    if null_slot is not None:
        params.has_null_slot, params.null_slot = null_slot >= 0, null_slot
    params.has_lower_bound, params.lower_bound = lower_bound is not None, lower_bound or 0
    params.use_qk_l2norm_in_kernel = bool(use_qk_l2norm_in_kernel)
    params.is_kda = bool(is_kda)
    params.disable_state_update = bool(disable_state_update)
    params.allow_neg_eigval = bool(allow_neg_eigval)

    for argument, x in (("q", q), ("v", v)):
        if x is None or len(x.shape) != 4:
            raise GdnError("[batch, token, head, inner] is needed", argument)
    B, T, H, K = q.shape
    HV, V = v.shape[2:]
    N = B if cu_seqlens is None else len(cu_seqlens) - 1
    params.batch_size, params.seq_len, params.num_seqs = B, T, N
    params.num_key_heads, params.num_value_heads, params.head_k_dim, params.head_v_dim = H, HV, K, V
    gates = K if is_kda else 1
    params.beta_per_column = b is not None and len(b.shape) == 4

    call.indices("cu_seqlens", cu_seqlens, N + 1)
    call.tensor("q", q, (B, T, H, K))
    call.tensor("k", k, (B, T, H, K))
    call.tensor("v", v, (B, T, HV, V))
    rows = [(B, T, HV * gates), (B * T, HV, gates), (B * T, HV * gates)]
    call.tensor("a", a, (B, T, HV, gates), *rows)
    call.tensor("A_log", A_log, (1, 1, HV, 1), (HV,))
    call.tensor("dt_bias", dt_bias, (1, 1, HV, gates), (HV, gates), (HV * gates,))
    if params.beta_per_column:
        call.tensor("b", b, (B, T, HV, V))
    else:
        call.tensor("b", b, (B, T, HV, 1), (B, T, HV), (B * T, HV))
    sizes = (HV, K, V)
    call.states("initial_state_source", initial_state_source, sizes, not disable_state_update)
    call.states("intermediate_states_buffer", intermediate_states_buffer, sizes, True)
    if cache_steps is not None and intermediate_states_buffer is not None:
        if cache_steps > params.intermediate_states_buffer.num_steps:
            raise GdnError(f"{cache_steps} are more than intermediate_states_buffer has", "cache_steps")
    call.indices("initial_state_indices", initial_state_indices if initial_state_source is not None else None, N)
    call.indices("output_state_indices", output_state_indices, N)
    call.indices("intermediate_state_indices", intermediate_state_indices, N)
    call.indices("num_accepted_tokens", num_accepted_tokens, N)
    call.indices("retrieve_parent_token", retrieve_parent_token, N, columns=True)
    call.indices("ssm_state_indices", ssm_state_indices, N, columns=True)

    if o is None:
        o = _zeros_like(q, tuple(v.shape), "float64" if compute == "f64" else dtype_name(q))
    call.output(o, (B, T, HV, V))
    _run(params, num_threads)
    return o


def presets():
    """The systems whose conventions preset= sets: {name: {keyword: value}}."""
    return {name: library.preset(name) for name in SYSTEMS}


def _zeros_like(x, shape, dtype):
    if is_torch(x):
        import torch

        return torch.zeros(shape, dtype=getattr(torch, dtype))
    return np.zeros(shape, x.dtype.newbyteorder("=") if dtype == dtype_name(x) else dtype)


def _check(status, error):
    if status:
        argument = (error.argument or b"").decode()
        text, name = (LIB.gdn_status_text(status).decode(), LIB.gdn_status_name(status).decode())
        raise GdnError(text, argument, error.index, error.other, name)


# ---- Threads

_pools = {}  # by the number of threads
_local = threading.local()  # each thread's scratch
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pools.clear)  # their threads stayed in the parent


def _num_cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run(params, num_threads):
    error = library.Error(0, b"", -1, -1)
    _check(LIB.gdn_validate(byref(params), byref(error)), error)
    items, scratch_size = LIB.gdn_num_work_items(byref(params)), LIB.gdn_scratch_size(byref(params))
    state = params.num_value_heads * params.head_k_dim * params.head_v_dim
    threads = _num_cores() if num_threads is None else num_threads
    threads = max(1, min(threads, params.batch_size * params.seq_len * state // GRAIN))

    def run(ith_range, num_ranges):
        if getattr(_local, "size", 0) < scratch_size:
            _local.scratch, _local.size = np.empty(scratch_size, np.uint8), scratch_size
        first, last = items * ith_range // num_ranges, items * (ith_range + 1) // num_ranges
        scratch = _local.scratch.ctypes.data if scratch_size else None
        return LIB.gdn_run_work_items(byref(params), first, last, scratch, scratch_size)

    ranges = min(items, 1 if threads == 1 else 4 * threads)  # more than threads: sequences differ in length
    if ranges <= 1:
        statuses = [run(0, 1)]
    else:
        if threads not in _pools:
            _pools.setdefault(threads, ThreadPoolExecutor(threads, "gdn_varlen"))
        statuses = _pools[threads].map(run, range(ranges), [ranges] * ranges)
    for status in list(statuses):
        _check(status, error)
