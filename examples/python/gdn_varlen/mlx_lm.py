"""mlx-lm's operator (0.32), argument for argument, on the CPU.

from gdn_varlen.mlx_lm import gated_delta_kernel, gated_delta_update

The results are mlx's arrays where `q` is one; states are values there, so that the new state is returned and none is
written. mlx-lm normalises q and k before the operator and puts the scale into q: none is applied here. The output of a
token that the mask leaves out is 0, as in mlx-lm's kernel. From raw gates the decay is computed in float32 throughout,
where mlx-lm adds dt_bias in the dtype of both.
"""

import sys

import numpy as np

from .arrays import dtype_name, known
from .calls import in_new_states, prepared

NAMES = {"a": "g", "b": "beta", "initial_state_source": "state"}
RAW = {"initial_state_source": "state"}


def compute_g(A_log, a, dt_bias, *, compute="f32", num_threads=None):
    """The decay itself, in the shape of `a`: [..., Hv] with A_log and dt_bias [Hv], or [..., Hv, Dk] with A_log [Hv],
    [Hv, 1] or [Hv, Dk] and dt_bias [Hv, Dk]. float32."""
    return _decay(A_log, a, dt_bias, None, compute)


def compute_lower_bound_g(A_log, a, dt_bias, lower_bound, *, compute="f32", num_threads=None):
    """The same, of a gate with a lower bound."""
    return _decay(A_log, a, dt_bias, lower_bound, compute)


def _decay(A_log, a, dt_bias, lower_bound, compute):
    like, (A_log, a, dt_bias) = a, (known(x) for x in (A_log, a, dt_bias))
    shape, rates, biases = tuple(a.shape), np.prod(A_log.shape), np.prod(dt_bias.shape)
    gates = dict(A_log=A_log, a=a, dt_bias=dt_bias, is_kda=len(shape) > 3 or len(dt_bias.shape) > 1)
    if gates["is_kda"] and rates == biases:  # a rate for each K row: as many heads of their own
        a, A_log, dt_bias = a.reshape((*shape[:-2], -1)), A_log.reshape(-1), dt_bias.reshape(-1)
        gates = dict(A_log=A_log, a=a, dt_bias=dt_bias, is_kda=False)
    x = prepared({}, **gates, lower_bound=lower_bound, preset="mlx_lm", gate_input="raw", compute=compute)
    return _as(like, x.decay.reshape(shape))


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
    """(y [B,T,Hv,Dv], state [B,Hv,Dv,Dk]). `a` is [B,T,Hv], or [B,T,Hv,Dk]; A_log [Hv], or then [Hv,Dk]. beta is
    rounded to b's dtype."""
    gate = dict(A_log=A_log, dt_bias=dt_bias, lower_bound=lower_bound, gate_input="raw")
    if np.prod(A_log.shape) != v.shape[2]:
        a, gate = _decay(A_log, a, dt_bias, lower_bound, compute), {}
    return _update(
        RAW, q, k, v, a, b, state, mask, **gate, beta_input="raw", round_beta=True, allow_neg_eigval=allow_neg_eigval,
        compute=compute, num_threads=num_threads,
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
    o, states = in_new_states(names, state, True, q=q, k=k, v=v, a=a, b=b, token_mask=mask, **options)
    return _as(like, o), _as(like if state is None else state, states)


def _as(like, x):
    """`x` as an array of mlx where `like` is one."""
    mx = sys.modules.get("mlx.core")
    if mx is None or not isinstance(like, mx.array):
        return x
    return mx.array(x).view(mx.bfloat16) if x.dtype == np.uint16 else mx.array(x)
