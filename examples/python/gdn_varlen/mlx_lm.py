"""mlx-lm's operator (0.32), argument for argument, on the CPU.

from gdn_varlen.mlx_lm import gated_delta_kernel, gated_delta_update

The results are mlx's arrays where `q` is one; states are values there, so that the new state is returned and none is
written. mlx-lm normalises q and k before the operator and puts the scale into q: none is applied here.
"""

import sys

import numpy as np

from .arrays import dtype_name, known, new
from .calls import in_new_states, missing, refuse

NAMES = {"a": "g", "b": "beta", "initial_state_source": "state"}
RAW = {"initial_state_source": "state"}

compute_g = missing("compute_g")
compute_lower_bound_g = missing("compute_lower_bound_g")


def gated_delta_update(
    q,
    k,
    v,
    a,
    b,
    A_log,
    dt_bias,
    state=None,
    mask=None,
    *,
    use_kernel=True,
    lower_bound=None,
    allow_neg_eigval=False,
    compute="f32",
    num_threads=None,
):
    """(y [B,T,Hv,Dv], state [B,Hv,Dv,Dk]). `a` is [B,T,Hv], or [B,T,Hv,Dk]; A_log [Hv]."""
    Hv = v.shape[2]
    refuse(A_log=None if np.prod(A_log.shape) == Hv else True)
    return _update(
        RAW, q, k, v, a, b, state, mask, A_log=A_log, dt_bias=dt_bias, lower_bound=lower_bound, gate_input="raw",
        beta_input="raw", allow_neg_eigval=allow_neg_eigval, compute=compute, num_threads=num_threads,
    )  # fmt: skip


def gated_delta_kernel(q, k, v, g, beta, state, mask=None, *, compute="f32", num_threads=None):
    """(y, state). g is the decay itself, [B,T,Hv] or [B,T,Hv,Dk]."""
    return _update(NAMES, q, k, v, g, beta, state, mask, compute=compute, num_threads=num_threads)


def gated_delta_ops(q, k, v, g, beta, state=None, mask=None, *, compute="f32", num_threads=None):
    """gated_delta_kernel, which may start from zeros."""
    return gated_delta_kernel(q, k, v, g, beta, state, mask, compute=compute, num_threads=num_threads)


def _update(names, q, k, v, a, b, state, mask, compute, **options):
    like = q
    q, k, v, a, b = (known(x) for x in (q, k, v, a, b))
    options |= dict(is_kda=len(a.shape) == 4, scale=1, preset="mlx_lm", state_layout="vk", compute=compute)
    options |= dict(state_dtype="float32" if state is None else dtype_name(known(state)))
    if mask is None:
        o, states = in_new_states(names, state, True, q=q, k=k, v=v, a=a, b=b, **options)
    else:  # the tokens that count, packed
        counts = np.asarray(known(mask)).astype(bool)
        ends = np.cumsum([0, *counts.sum(1)])
        o = new(q, tuple(v.shape), "float64" if compute == "f64" else dtype_name(q))
        q, k, v, a, b = (x[counts] for x in (q, k, v, a, b))
        o[counts], states = in_new_states(names, state, True, q=q, k=k, v=v, a=a, b=b, cu_seqlens=ends, **options)
    return _as(like, o), _as(like if state is None else state, states)


def _as(like, x):
    """`x` as an array of mlx where `like` is one."""
    mx = sys.modules.get("mlx.core")
    if mx is None or not isinstance(like, mx.array):
        return x
    return mx.array(x).view(mx.bfloat16) if x.dtype == np.uint16 else mx.array(x)
