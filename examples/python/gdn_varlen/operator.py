"""The operator, with the signature of SGLang's Triton wrapper."""

import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from ctypes import byref
from typing import NamedTuple

import numpy as np

from . import header, library
from .arrays import BYTES, FLOATS, INTEGERS, View, broadcastable, dtype_name, integers, known, new, readable, writable
from .header import ENUMERATIONS, ROUNDING
from .library import LIB, SYSTEMS

TINY = 1e-300  # the library's zero of a number whose 0 is "default"
GRAIN = 1 << 19  # elements of state to update that are worth a thread: some 0.1 ms


class GdnError(ValueError):
    """A call that the library, or this module before it, refuses. Nothing has been written."""

    def __init__(self, text, argument="", index=-1, other=-1, status="GDN_ERROR_SIZE"):
        place = f"[{index}]" if index >= 0 else ""
        with_other = f" (and [{other}])" if other >= 0 else ""
        super().__init__(f"{argument}{place}{with_other}: {text}" if argument else text)
        self.text, self.argument, self.index, self.other, self.status = text, argument, index, other, status


class _Call:
    """The parameter struct of one call, and what keeps its memory alive."""

    def __init__(self):
        self.params = header.Params()
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

    def options(
        self, preset, softplus_beta, softplus_threshold, scale, use_qk_l2norm_in_kernel, l2norm_eps, is_kda,
        lower_bound, allow_neg_eigval, rounding, **enumerations,
    ):  # fmt: skip
        """What does not depend on the arrays."""
        params = self.params
        if preset is not None:
            if preset not in SYSTEMS:
                raise GdnError(f"{preset!r} is none of {', '.join(SYSTEMS)}", "preset", status="GDN_ERROR_ENUM")
            LIB.gdn_preset(byref(params), SYSTEMS[preset])
        for argument, value in enumerations.items():
            self.option(argument, value)
        self.number("l2norm_eps", l2norm_eps, positive=False)
        self.number("softplus_beta", softplus_beta, positive=True)
        self.number("softplus_threshold", softplus_threshold, positive=False)
        self.number("scale", scale or None, positive=True)  # 0 is None to FlashInfer too
        params.use_qk_l2norm_in_kernel = bool(use_qk_l2norm_in_kernel)
        params.is_kda = bool(is_kda)
        params.has_lower_bound, params.lower_bound = lower_bound is not None, lower_bound or 0
        params.allow_neg_eigval = bool(allow_neg_eigval)
        params.rounding = sum(ROUNDING[name][1] for name, on in rounding.items() if on)

    def attempt(self, argument, make, *arguments):
        try:
            return make(*arguments)
        except ValueError as error:
            raise GdnError(str(error), argument, status="GDN_ERROR_STRIDE") from None

    def _view(self, argument, make, *arguments):
        view = self.attempt(argument, make, *arguments)
        self.views.append(view)
        return view

    def _dtype(self, argument, view, kinds, enumeration):
        if view.dtype not in kinds:
            raise GdnError(f"{view.dtype} is none of {', '.join(kinds)}", argument, status="GDN_ERROR_ENUM")
        return ENUMERATIONS[enumeration][1].index(kinds[view.dtype])

    def array(self, argument, x):
        return None if x is None else self.attempt(argument, known, x)

    def tensor(self, argument, x, shape):
        """An input of `shape` [batch, token, head, inner]; adjacent axes may be merged."""
        if x is None:
            return
        if not _merged(x.shape, shape):
            raise GdnError(f"its shape is {list(x.shape)}, and {_text(shape)} is needed", argument)
        view = self._view(argument, broadcastable, x.reshape(shape))
        dtype = self._dtype(argument, view, FLOATS, "dtype")
        setattr(self.params, argument, header.Tensor(view.address, dtype, *view.strides[:3]))

    def mask(self, argument, x, shape):
        """One bool or byte for each token, `shape` [batch, token]."""
        if x is None:
            return
        if not _merged(x.shape, shape):
            raise GdnError(f"its shape is {list(x.shape)}, and {list(shape)} is needed", argument)
        view = self._view(argument, broadcastable, x.reshape(shape), 0)
        if view.dtype not in BYTES:
            raise GdnError(f"{view.dtype} is none of {', '.join(BYTES)}", argument, status="GDN_ERROR_ENUM")
        setattr(self.params, argument, header.Mask(view.address, *view.strides))

    def output(self, argument, x, shape, given_shape):
        """A tensor that is written."""
        if tuple(x.shape) not in (shape, given_shape):
            raise GdnError(f"its shape is {list(x.shape)}, and {list(given_shape)} is needed", argument)
        view = self._view(argument, writable, self._in_place(argument, x, shape), 1)
        return header.Tensor(view.address, self._dtype(argument, view, FLOATS, "dtype"), *view.strides[:3])

    def _in_place(self, argument, x, shape):
        """What is written, with its axes as the library has them."""
        if tuple(x.shape) == shape:
            return x
        y = x.reshape(shape)
        if self._view(argument, View, x).address != self._view(argument, View, y).address:
            raise GdnError("axes that are one must lie side by side: a copy would be written", argument)
        return y

    def states(self, argument, x, sizes, written):
        """A pool or a cache: [*outer sizes, HV, matrix], the matrix in the layout that is set."""
        if x is None:
            return
        if not self.params.state_layout:
            raise GdnError("is not set, and a wrong one is silently wrong", "state_layout", status="GDN_ERROR_ENUM")
        layout = ENUMERATIONS["state_layout"][1][self.params.state_layout]
        heads, rows, columns = sizes if layout != "vk" else (sizes[0], sizes[2], sizes[1])
        whole = (math.prod(x.shape) // max(1, heads * rows * columns), heads, rows, columns)
        if argument == "initial_state_source" and len(x.shape) < 4 and _merged(x.shape, whole):
            x = self._in_place(argument, x, whole)
        outer = tuple(x.shape[:-3])
        is_pool = argument != "intermediate_states_buffer"
        if len(outer) != (1 if is_pool else 2) or x.shape[-3:] != (heads, rows, columns):
            axes = "[slots, HV, " if is_pool else "[rows, steps, HV, "
            text = f"{axes}{layout[0].upper()}, {layout[1].upper()}] = [..., {heads}, {rows}, {columns}]"
            raise GdnError(f"its shape is {list(x.shape)}, and state_layout {layout!r} is {text}", argument)
        view = self._view(argument, writable, x, 2) if written else self._view(argument, readable, x, 2)
        structure = header.StatePool if is_pool else header.StateCache
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
        setattr(self.params, argument, header.Indices(view.address, dtype, width, view.strides[0]))


def _merged(shape, wanted):
    """Whether `shape` is `wanted` with adjacent axes merged; axes of one element do not count."""
    rest = [size for size in wanted if size != 1]
    for size in shape:
        product = 1
        while product != size and rest:
            product *= rest.pop(0)
        if product != size:
            return False
    return not rest


def _text(shape):
    """[2, 3, 4, 1] as what one would write."""
    sizes = list(shape)
    while len(sizes) > 1 and sizes[-1] == 1:
        sizes.pop()
    return str(sizes)


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
    output_state_pool=None,
    ssm_state_indices=None,
    num_accepted_tokens=None,
    step_interval=1,
    k_read=None,
    erase=None,
    gv=None,
    token_mask=None,
    read_before_decay=False,
    round_qk=False,
    round_q_scaled=False,
    round_beta=False,
    round_state=False,
    compute="f32",
    isa="auto",
    o=None,
    num_threads=None,
):
    """The Gated DeltaNet recurrence over q, k [B,T,H,K] and v [B,T,HV,V]; returns o [B,T,HV,V].

    The arguments to retrieve_parent_token are the Triton wrapper's: numpy arrays or CPU torch tensors, used where they
    lie (float32, bfloat16, float16; an uint16 array is the bits of bfloat16), and to read, arrays of other libraries
    that have DLPack or the buffer protocol. Inputs may be broadcast (stride 0) along batch, tokens and heads.
    initial_state_source [slots,HV,V,K] is updated in place. `o` is new, of q's kind (numpy's for other libraries) and
    dtype, and v's shape; rows that no sequence owns are 0. cu_seqlens packs sequences one behind another: q, k, v may
    then be [tokens, ...] too. In the other inputs and in the pool, axes that lie side by side may be one: a [tokens,
    HV], dt_bias [HV * K]. A scale of 0 is the default, K^-0.5; without dt_bias the bias is 0, without a, A_log and
    dt_bias there is no decay, and with lower_bound A_log may be missing: rate 1. ssm_state_indices [N] is one slot for
    each sequence, read and written.

    The others are the fields of gdn_params, described in gdn_varlen.h, by the lower-case names of their values:

      preset        one of presets(): what another system takes for granted; each of the next eight overrides it
      state_layout  "kv", "vk"                    head_map     "grouped", "tiled"
      gate_input    "raw", "log", "decay"         beta_input   "raw", "given"
      l2norm_form   "sum_plus_eps", "mean_plus_eps", "max_norm_eps", "norm_plus_eps"; l2norm_eps a number
      padding       "compute", "zero", "leave"    null_slot    a slot, or -1 for none
      step_interval tokens of a step, whose states go to ssm_state_indices and intermediate_states_buffer
      k_read        [B,T,H,K] the key that reads  erase        [B,T,HV,K] a factor on it (GDN-2)
      gv            [B,T,HV,V] a log decay of columns, besides `a`
      token_mask    [B,T] of bool or uint8: tokens that are False change no state, and leave their rows of `o`
      read_before_decay: the state is read before its decay (Comba)
      round_qk, round_q_scaled, round_beta, round_state: what some systems round inside
      compute       "f32"; "f32_chunks": faster for prompts, with other last bits; or "f64": the oracle, whose new `o`
                    is float64
      o             where to put the output       num_threads  at most; default: all cores

    A call that is refused raises GdnError, a ValueError with .argument, .index, .other and .status.
    """
    call = _Call()
    params = call.params
    call.options(
        preset, softplus_beta, softplus_threshold, scale, use_qk_l2norm_in_kernel, l2norm_eps, is_kda, lower_bound,
        allow_neg_eigval,
        dict(round_qk=round_qk, round_q_scaled=round_q_scaled, round_beta=round_beta, round_state=round_state),
        state_layout=state_layout, head_map=head_map, gate_input=gate_input, beta_input=beta_input,
        l2norm_form=l2norm_form, padding=padding, compute=compute, isa=isa,
    )  # fmt: skip
    if null_slot is not None:
        params.has_null_slot, params.null_slot = null_slot >= 0, null_slot
    params.disable_state_update = bool(disable_state_update)
    params.read_before_decay, params.step_interval = bool(read_before_decay), step_interval

    A_log, a, dt_bias, b = (call.array(*x) for x in (("A_log", A_log), ("a", a), ("dt_bias", dt_bias), ("b", b)))
    q, k, v, o = (call.array(*x) for x in (("q", q), ("k", k), ("v", v), ("o", o)))
    k_read, erase, gv = (call.array(*x) for x in (("k_read", k_read), ("erase", erase), ("gv", gv)))
    token_mask = call.array("token_mask", token_mask)
    initial_state_source = call.array("initial_state_source", initial_state_source)
    intermediate_states_buffer = call.array("intermediate_states_buffer", intermediate_states_buffer)

    packed = cu_seqlens is not None
    if packed and v is not None:
        v_shape = tuple(v.shape)
        q, k, v, k_read, erase, gv = (
            _packed(x, len(x.shape) - 2) if x is not None and len(x.shape) in (3, 4) else x
            for x in (q, k, v, k_read, erase, gv)
        )
        a, b = (_packed(x, 2) if x is not None and x.shape[:2] == v_shape[:-2] else x for x in (a, b))
        token_mask = token_mask if token_mask is None else token_mask.reshape((1, -1))
    for argument, x in (("q", q), ("v", v)):
        if x is None or len(x.shape) != 4:
            raise GdnError("[batch, token, head, inner] is needed", argument)
    B, T, H, K = q.shape
    HV, V = v.shape[2:]
    shape = (B, T, HV, V)
    if not packed:
        v_shape = shape
    N = len(cu_seqlens) - 1 if packed else B
    params.batch_size, params.seq_len, params.num_seqs = B, T, N
    params.num_key_heads, params.num_value_heads, params.head_k_dim, params.head_v_dim = H, HV, K, V
    gates = K if is_kda else 1
    params.beta_per_column = b is not None and V > 1 and _merged(b.shape, shape) and not _merged(b.shape, (B, T, HV))
    if ssm_state_indices is not None and num_accepted_tokens is None and initial_state_indices is None:
        slots = call.attempt("ssm_state_indices", integers, ssm_state_indices)
        if len(slots.shape) == 1:  # one for each sequence
            initial_state_indices, ssm_state_indices = slots, None

    call.indices("cu_seqlens", cu_seqlens, N + 1)
    call.tensor("q", q, (B, T, H, K))
    call.tensor("k", k, (B, T, H, K))
    call.tensor("v", v, shape)
    call.tensor("a", a, (B, T, HV, gates))
    call.tensor("A_log", A_log, (1, 1, HV, 1))
    call.tensor("dt_bias", dt_bias, (1, 1, HV, gates))
    call.tensor("b", b, shape if params.beta_per_column else (B, T, HV, 1))
    call.tensor("k_read", k_read, (B, T, H, K))
    call.tensor("erase", erase, (B, T, HV, K))
    call.tensor("gv", gv, shape)
    call.mask("token_mask", token_mask, (B, T))
    sizes = (HV, K, V)
    written = not disable_state_update and output_state_pool is None
    call.states("initial_state_source", initial_state_source, sizes, written)
    call.states("output_state_pool", output_state_pool, sizes, True)
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
        o = new(q, v_shape, "float64" if compute == "f64" else dtype_name(q))
    params.o = call.output("o", o, shape, v_shape)
    _run(params, num_threads)
    return o


class Prepared(NamedTuple):
    """What the operator computes of its inputs before the recurrence, each an array of the shape of its input."""

    g: object = None  # the log decay
    decay: object = None  # exp(g)
    beta: object = None
    q: object = None  # normalised and scaled
    k: object = None  # normalised
    k_read: object = None


def prepare(
    A_log=None,
    a=None,
    dt_bias=None,
    b=None,
    q=None,
    k=None,
    k_read=None,
    *,
    softplus_beta=1.0,
    softplus_threshold=20.0,
    scale=None,
    use_qk_l2norm_in_kernel=False,
    is_kda=False,
    lower_bound=None,
    preset="sglang",
    gate_input=None,
    beta_input=None,
    l2norm_form=None,
    l2norm_eps=None,
    allow_neg_eigval=False,
    round_qk=False,
    round_q_scaled=False,
    round_beta=False,
    compute="f32",
    dtypes=None,
):
    """The gates, beta, and normalised q and k alone, in the bits that the operator uses: a Prepared.

    Of `a` [..., HV] or with is_kda [..., HV, K] come g (unless gate_input is "decay") and decay, of `b` beta, of q, k,
    k_read [..., H, K] what has their names; what has no input is None. The results are float32, or float64 under
    compute="f64"; `dtypes`, {"q": "bfloat16"}, names others. The arguments are those of the operator.
    """
    call = _Call()
    params = call.params
    call.options(
        preset, softplus_beta, softplus_threshold, scale, use_qk_l2norm_in_kernel, l2norm_eps, is_kda, lower_bound,
        allow_neg_eigval, dict(round_qk=round_qk, round_q_scaled=round_q_scaled, round_beta=round_beta),
        gate_input=gate_input, beta_input=beta_input, l2norm_form=l2norm_form, compute=compute,
    )  # fmt: skip
    A_log, dt_bias = call.array("A_log", A_log), call.array("dt_bias", dt_bias)
    inputs = dict(a=a, b=b, q=q, k=k, k_read=k_read)
    inputs = {name: call.array(name, x) for name, x in inputs.items() if x is not None}
    for name, x in inputs.items():
        if len(x.shape) < (1 + is_kda if name == "a" else 1 if name == "b" else 2):
            raise GdnError("[..., head, inner] is needed" if name != "b" else "[..., head] is needed", name)
    axes = (("a", -1 - is_kda), ("b", -1), ("q", -2), ("k", -2), ("k_read", -2))  # where the heads are
    HV = next((inputs[name].shape[axis] for name, axis in axes if name in inputs), 1)
    keys = next((inputs[name].shape[-2:] for name in ("q", "k", "k_read") if name in inputs), None)
    H, K = keys or (1, inputs["a"].shape[-1] if is_kda and "a" in inputs else 1)
    shapes = dict(a=(HV, K) if is_kda else (HV,), b=(HV,), q=(H, K), k=(H, K), k_read=(H, K))
    T = next((math.prod(x.shape[: -len(shapes[name])]) for name, x in inputs.items()), 0)
    for name, x in inputs.items():
        if (math.prod(x.shape[: -len(shapes[name])]), *x.shape[-len(shapes[name]) :]) != (T, *shapes[name]):
            raise GdnError(f"its shape is {list(x.shape)}, and {_text((T, *shapes[name]))} is needed", name)
    params.batch_size, params.seq_len, params.num_key_heads, params.num_value_heads = 1, T, H, HV
    params.head_k_dim, params.head_v_dim = K, 1

    results, made = header.Prepared(), {}
    call.tensor("A_log", A_log, (1, 1, HV, 1))
    call.tensor("dt_bias", dt_bias, (1, 1, HV, K if is_kda else 1))
    for name, x in inputs.items():
        shape = (1, T, *shapes[name], *[1] * (2 - len(shapes[name])))
        call.tensor(name, x.reshape(shape), shape)
        linear = params.gate_input == ENUMERATIONS["gate_input"][1].index("decay")
        for result in {"a": ("decay",) if linear else ("g", "decay"), "b": ("beta",)}.get(name, (name,)):
            dtype = (dtypes or {}).get(result) or ("float64" if compute == "f64" else "float32")
            made[result] = new(x, tuple(x.shape), dtype)
            setattr(results, result, call.output(result, made[result], shape, tuple(x.shape)))
    error = header.Error(0, b"", -1, -1)
    _check(LIB.gdn_prepare(byref(params), byref(results), byref(error)), error)
    return Prepared(**made)


def presets():
    """The systems whose conventions preset= sets: {name: {keyword: value}}."""
    return {name: library.preset(name) for name in SYSTEMS}


def _packed(x, outer):
    """`x` whose first axes, batch and token, are one behind a batch of 1."""
    return x.reshape((1, -1, *x.shape[outer:]))


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
    error = header.Error(0, b"", -1, -1)
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
