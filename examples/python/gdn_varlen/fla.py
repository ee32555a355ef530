"""Flash Linear Attention's operators (fla-core 0.6), argument for argument, on the CPU.

from gdn_varlen.fla import chunk_gated_delta_rule, chunk_kda, fused_recurrent_gated_delta_rule, fused_recurrent_kda

Initial states are only read and final states are new, in float32; `o` has v's dtype. "chunk" and "fused_recurrent" are
the same computation here, but that "chunk" rounds q and k (and p) to their dtype after the norm.
"""

import numpy as np

from .arrays import dtype_name, dtype_named, filled, integers, known, new, wide
from .calls import (
    before_chunks,
    in_new_states,
    in_new_states_and_steps,
    in_states_of_tokens,
    operator,
    prepared,
    refuse,
)
from .operator import GdnError

NAMES = {
    "a": "g",
    "b": "beta",
    "o": "out",
    "initial_state_source": "initial_state",
    "initial_state_indices": "ssm_state_indices",
    "softplus_beta": "use_gate_in_kernel",
}
GATE = {"a": "g"}
GDN2 = NAMES | {"erase": "b", "b": "w"}
COMBA = NAMES | {"k_read": "p"}

# How to compute, and not what: taken and not needed.
HINTS = {"chunk_size", "chunk_indices", "cu_seqlens_cpu"}


def _rest(kwargs, state_v_first):
    """The keyword arguments that the signatures do not name; returns state_v_first, whose older name is one of them."""
    kwargs = dict(kwargs)
    older = kwargs.pop("transpose_state_layout", None)
    if older is not None and state_v_first:
        raise GdnError("is the older name of state_v_first: pass one", "transpose_state_layout")
    refuse(head_first=kwargs.pop("head_first", None))
    for name in kwargs.keys() - HINTS:
        raise GdnError("is no argument of this function", name)
    return bool(older) or state_v_first


def _gate(g, A_log, dt_bias, use_gate_in_kernel, lower_bound=None):
    """What `g` is: the log decay, or the gate's raw input."""
    if not use_gate_in_kernel:
        return dict(a=g, gate_input="log")
    for name, value in (("g", g), ("A_log", A_log if lower_bound is None else g)):
        if value is None:
            raise GdnError("is needed with use_gate_in_kernel", name)
    return dict(a=g, gate_input="raw", A_log=A_log, dt_bias=dt_bias, lower_bound=lower_bound)


def _beta(beta, use_beta_sigmoid_in_kernel, allow_neg_eigval):
    if allow_neg_eigval and not use_beta_sigmoid_in_kernel:
        raise GdnError("needs use_beta_sigmoid_in_kernel", "allow_neg_eigval")
    return dict(b=beta, beta_input="raw" if use_beta_sigmoid_in_kernel else "given", allow_neg_eigval=allow_neg_eigval)


def _update(
    q, k, v, scale, initial_state, output_final_state, state_v_first, cu_seqlens, chunk_states=None, names=NAMES,
    like=None, **arguments,
):  # fmt: skip
    """(o, final state or None), and with chunk_states=size also the states before each chunk, [B, chunks, HV, ...]."""
    if scale == 0:
        raise GdnError("must not be 0", "scale")
    if cu_seqlens is not None and q.shape[0] != 1:
        raise GdnError(f"the batch is {q.shape[0]}, and with cu_seqlens it is 1", "cu_seqlens")
    arguments |= dict(q=q, k=k, v=v, scale=scale, cu_seqlens=cu_seqlens, like=v if like is None else like)
    arguments |= dict(preset="fla", state_layout="vk" if state_v_first else "kv")
    if chunk_states is None:
        return in_new_states(names, initial_state, output_final_state, **arguments)
    initial_state = None if initial_state is None else known(initial_state)
    o, final, steps = in_new_states_and_steps(names, initial_state, chunk_states, **arguments)
    dtype = "float64" if arguments["compute"] == "f64" else dtype_name(known(k))
    h = before_chunks(initial_state, steps, chunk_states, q, cu_seqlens, dtype)
    return o, final if output_final_state else None, h.reshape((q.shape[0], len(h) // q.shape[0], *h.shape[1:]))


def fused_recurrent_gated_delta_rule(
    q,
    k,
    v,
    g=None,
    gk=None,
    gv=None,
    beta=None,
    scale=None,
    initial_state=None,
    output_final_state=False,
    use_qk_l2norm_in_kernel=False,
    use_gate_in_kernel=False,
    A_log=None,
    dt_bias=None,
    use_beta_sigmoid_in_kernel=False,
    allow_neg_eigval=False,
    state_v_first=False,
    cu_seqlens=None,
    *,
    compute="f32",
    num_threads=None,
    **kwargs,
):
    """(o [B,T,HV,V], final state [N,HV,K,V] or None). The decays g [B,T,HV], gk [B,T,HV,K] and gv [B,T,HV,V] multiply;
    g and gk do so as the exponential of their sum."""
    state_v_first = _rest(kwargs, state_v_first)
    names = NAMES
    gate = _gate(g, A_log, dt_bias, use_gate_in_kernel)
    if gk is not None:
        if use_gate_in_kernel:
            raw = dict(a=g, A_log=A_log, dt_bias=dt_bias, preset="fla", gate_input="raw", compute=compute)
            g = prepared(GATE, **raw).g
        both = gk if g is None else wide(known(gk)) + wide(known(g))[..., None]
        gate, names = dict(a=both, gate_input="log", is_kda=True), NAMES | {"a": "gk"}
    return _update(
        q, k, v, scale, initial_state, output_final_state, state_v_first, cu_seqlens, **gate, gv=gv, names=names,
        **_beta(beta, use_beta_sigmoid_in_kernel, allow_neg_eigval), use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel,
        compute=compute, num_threads=num_threads,
    )  # fmt: skip


def chunk_gated_delta_rule(
    q,
    k,
    v,
    g,
    beta,
    scale=None,
    initial_state=None,
    output_final_state=False,
    use_qk_l2norm_in_kernel=False,
    use_beta_sigmoid_in_kernel=False,
    allow_neg_eigval=False,
    state_v_first=False,
    cu_seqlens=None,
    cu_seqlens_cpu=None,
    chunk_indices=None,
    cp_context=None,
    *,
    use_gate_in_kernel=False,
    A_log=None,
    dt_bias=None,
    compute="f32",
    num_threads=None,
    **kwargs,
):
    """(o [B,T,HV,V], final state [N,HV,K,V] or None)."""
    state_v_first = _rest(kwargs, state_v_first)
    refuse(cp_context=cp_context)
    return _update(
        q, k, v, scale, initial_state, output_final_state, state_v_first, cu_seqlens,
        **_gate(g, A_log, dt_bias, use_gate_in_kernel),
        **_beta(beta, use_beta_sigmoid_in_kernel, allow_neg_eigval), use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel,
        round_qk=True, compute=compute, num_threads=num_threads,
    )  # fmt: skip


def fused_recurrent_kda(
    q,
    k,
    v,
    g,
    beta,
    A_log=None,
    dt_bias=None,
    scale=None,
    initial_state=None,
    output_final_state=False,
    use_qk_l2norm_in_kernel=False,
    use_gate_in_kernel=False,
    use_beta_sigmoid_in_kernel=False,
    allow_neg_eigval=False,
    lower_bound=None,
    state_v_first=False,
    cu_seqlens=None,
    *,
    compute="f32",
    num_threads=None,
    **kwargs,
):
    """(o [B,T,HV,V], final state [N,HV,K,V] or None). g is [B,T,HV,K]."""
    state_v_first = _rest(kwargs, state_v_first)
    return _update(
        q, k, v, scale, initial_state, output_final_state, state_v_first, cu_seqlens, is_kda=True,
        **_gate(g, A_log, dt_bias, use_gate_in_kernel, lower_bound),
        **_beta(beta, use_beta_sigmoid_in_kernel, allow_neg_eigval), use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel,
        compute=compute, num_threads=num_threads,
    )  # fmt: skip


def chunk_kda(
    q,
    k,
    v,
    g,
    beta,
    scale=None,
    initial_state=None,
    output_final_state=False,
    use_qk_l2norm_in_kernel=False,
    use_gate_in_kernel=False,
    use_beta_sigmoid_in_kernel=False,
    allow_neg_eigval=False,
    safe_gate=False,
    lower_bound=None,
    disable_recompute=False,
    return_intermediate_states=False,
    state_v_first=False,
    cu_seqlens=None,
    cu_seqlens_cpu=None,
    cp_context=None,
    use_graph=False,
    max_num_seqs=None,
    *,
    A_log=None,
    dt_bias=None,
    compute="f32",
    num_threads=None,
    **kwargs,
):
    """(o [B,T,HV,V], final state [N,HV,K,V] or None). g is [B,T,HV,K]; safe_gate only says how to compute. With
    return_intermediate_states also h [B,chunks,HV,K,V]: the state before each chunk of 64 tokens, in k's dtype."""
    size = kwargs.get("chunk_size", 64)
    state_v_first = _rest(kwargs, state_v_first)
    refuse(cp_context=cp_context)
    return _update(
        q, k, v, scale, initial_state, output_final_state, state_v_first, cu_seqlens, is_kda=True,
        chunk_states=size if return_intermediate_states else None,
        **_gate(g, A_log, dt_bias, use_gate_in_kernel, lower_bound),
        **_beta(beta, use_beta_sigmoid_in_kernel, allow_neg_eigval), use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel,
        round_qk=True, compute=compute, num_threads=num_threads,
    )  # fmt: skip


def fused_recurrent_kda_fwd(
    q,
    k,
    v,
    g,
    beta,
    A_log=None,
    dt_bias=None,
    initial_state=None,
    scale=None,
    output_final_state=False,
    inplace_final_state=True,
    state_v_first=False,
    cu_seqlens=None,
    ssm_state_indices=None,
    num_accepted_tokens=None,
    use_qk_l2norm_in_kernel=False,
    use_gate_in_kernel=False,
    use_beta_sigmoid_in_kernel=False,
    allow_neg_eigval=False,
    lower_bound=None,
    out=None,
    *,
    compute="f32",
    num_threads=None,
    **kwargs,
):
    """(out, final state): with inplace_final_state that is initial_state, a pool whose slots ssm_state_indices names,
    [N], or [N, steps] for the state after every step. Without, the pool is only read, and with slots the final state is
    that after every token."""
    state_v_first = _rest(kwargs, state_v_first)
    arguments = dict(
        q=q, k=k, v=v, **_gate(g, A_log, dt_bias, use_gate_in_kernel, lower_bound), is_kda=True, o=out,
        **_beta(beta, use_beta_sigmoid_in_kernel, allow_neg_eigval), use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel,
        compute=compute, num_threads=num_threads, scale=scale, cu_seqlens=cu_seqlens, preset="fla", like=v,
        state_layout="vk" if state_v_first else "kv",
    )  # fmt: skip
    if not inplace_final_state and (ssm_state_indices is None or not output_final_state):
        return in_new_states(NAMES, initial_state, output_final_state, **arguments)
    if not inplace_final_state:
        return in_states_of_tokens(
            NAMES, initial_state, ssm_state_indices, num_accepted_tokens, state_dtype="float32", **arguments
        )
    if initial_state is None:
        raise GdnError("is needed with inplace_final_state", "initial_state")
    o = operator(
        NAMES, initial_state_source=initial_state, ssm_state_indices=ssm_state_indices,
        num_accepted_tokens=num_accepted_tokens, **arguments,
    )  # fmt: skip
    return o, initial_state


def _gdn2(q, k, v, g, b, w, A_log, dt_bias, use_gate_in_kernel, lower_bound, **arguments):
    """The arguments of GDN-2: what is written is w v, and what reads b k, after the norm."""
    v, w = known(v), known(w)
    if tuple(w.shape) != tuple(v.shape):
        raise GdnError(f"its shape is {list(w.shape)}, and {list(v.shape)} is needed", "w")
    gate = _gate(g, A_log, dt_bias, use_gate_in_kernel, lower_bound)
    return arguments | gate | dict(q=q, k=k, v=wide(v) * wide(w), like=v, erase=b, is_kda=True)


def fused_recurrent_gdn2(
    q,
    k,
    v,
    g,
    b,
    w,
    A_log=None,
    dt_bias=None,
    scale=None,
    initial_state=None,
    output_final_state=False,
    use_qk_l2norm_in_kernel=False,
    use_gate_in_kernel=False,
    lower_bound=None,
    state_v_first=False,
    cu_seqlens=None,
    *,
    compute="f32",
    num_threads=None,
    **kwargs,
):
    """(o [B,T,HV,V], final state [N,HV,K,V] or None). g and b are [B,T,HV,K], w [B,T,HV,V]."""
    return _update(**_gdn2(
        q, k, v, g, b, w, A_log, dt_bias, use_gate_in_kernel, lower_bound, scale=scale, initial_state=initial_state,
        output_final_state=output_final_state, state_v_first=_rest(kwargs, state_v_first), cu_seqlens=cu_seqlens,
        use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel, names=GDN2, compute=compute, num_threads=num_threads,
    ))  # fmt: skip


def chunk_gdn2(
    q,
    k,
    v,
    g,
    b,
    w,
    scale=None,
    initial_state=None,
    output_final_state=False,
    use_qk_l2norm_in_kernel=False,
    use_gate_in_kernel=False,
    cu_seqlens=None,
    cu_seqlens_cpu=None,
    safe_gate=False,
    lower_bound=None,
    disable_recompute=False,
    return_intermediate_states=False,
    state_v_first=False,
    cp_context=None,
    *,
    A_log=None,
    dt_bias=None,
    compute="f32",
    num_threads=None,
    **kwargs,
):
    """The same; with return_intermediate_states also h [B,chunks,HV,K,V], as chunk_kda."""
    refuse(cp_context=cp_context)
    size = kwargs.get("chunk_size", 64)
    return _update(**_gdn2(
        q, k, v, g, b, w, A_log, dt_bias, use_gate_in_kernel, lower_bound, scale=scale, initial_state=initial_state,
        output_final_state=output_final_state, state_v_first=_rest(kwargs, state_v_first), cu_seqlens=cu_seqlens,
        use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel, round_qk=True, names=GDN2, compute=compute,
        num_threads=num_threads, chunk_states=size if return_intermediate_states else None,
    ))  # fmt: skip


def naive_recurrent_gdn2(
    q, k, v, g, b, w, scale=None, initial_state=None, output_final_state=False, *, compute="f32", num_threads=None
):
    """(o in v's dtype, final state in float32)."""
    return fused_recurrent_gdn2(
        q, k, v, g, b, w, scale=scale, initial_state=initial_state, output_final_state=output_final_state,
        compute=compute, num_threads=num_threads,
    )  # fmt: skip


def naive_chunk_gdn2(
    q,
    k,
    v,
    g,
    b,
    w,
    scale=None,
    initial_state=None,
    output_final_state=False,
    chunk_size=64,
    *,
    compute="f32",
    num_threads=None,
):
    """(o in v's dtype, final state in float32)."""
    return naive_recurrent_gdn2(
        q, k, v, g, b, w, scale, initial_state, output_final_state, compute=compute, num_threads=num_threads
    )


def _comba(
    q, k, p, v, g, beta, scale, initial_state, output_final_state, cu_seqlens=None, read_before_decay=True, **options
):
    return _update(
        q, k, v, scale, initial_state, output_final_state, False, cu_seqlens, a=g, gate_input="log", b=beta, k_read=p,
        beta_input="given", read_before_decay=read_before_decay, names=COMBA, **options,
    )  # fmt: skip


def fused_recurrent_comba(
    q,
    k,
    p,
    v,
    g,
    beta=None,
    scale=None,
    initial_state=None,
    output_final_state=False,
    use_qk_l2norm_in_kernel=False,
    cu_seqlens=None,
    *,
    compute="f32",
    num_threads=None,
):
    """(o [B,T,HV,V], final state [N,HV,K,V] or None). p [B,T,H,K] reads the state before its decay."""
    return _comba(
        q, k, p, v, g, beta, scale, initial_state, output_final_state, cu_seqlens,
        use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel, compute=compute, num_threads=num_threads,
    )  # fmt: skip


def chunk_comba(
    q,
    k,
    v,
    p,
    g,
    beta=None,
    scale=None,
    initial_state=None,
    output_final_state=False,
    use_qk_l2norm_in_kernel=False,
    cu_seqlens=None,
    cu_seqlens_cpu=None,
    *,
    compute="f32",
    num_threads=None,
):
    """The same; p comes after v here."""
    return _comba(
        q, k, p, v, g, beta, scale, initial_state, output_final_state, cu_seqlens, round_qk=True,
        use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel, compute=compute, num_threads=num_threads,
    )  # fmt: skip


def naive_recurrent_comba(
    q, k, v, p, beta, g, scale=None, initial_state=None, output_final_state=False, *, compute="f32", num_threads=None
):
    """(o, final state), both in float32. This one reads the state after its decay."""
    o = None if compute == "f64" else new(known(q), tuple(v.shape), "float32")
    return _comba(
        q, k, p, v, g, beta, scale, initial_state, output_final_state, read_before_decay=False, o=o, compute=compute,
        num_threads=num_threads,
    )  # fmt: skip


def naive_chunk_comba(
    q,
    k,
    v,
    p,
    g,
    beta,
    chunk_size=64,
    scale=None,
    initial_state=None,
    output_final_state=False,
    *,
    compute="f32",
    num_threads=None,
):
    """(o, final state), both in float32. It reads before the decay, as the kernels do."""
    o = None if compute == "f64" else new(known(q), tuple(v.shape), "float32")
    return _comba(
        q, k, p, v, g, beta, scale, initial_state, output_final_state, o=o, compute=compute, num_threads=num_threads
    )


def fused_gdn_gate(g, A_log, dt_bias=None, output_dtype=None, *, compute="f32", num_threads=None):
    """The log decay, in g's shape [..., HV], float32 or output_dtype."""
    return _gate_alone(g, A_log, dt_bias, output_dtype, compute)


def fused_kda_gate(
    g, A_log=None, dt_bias=None, lower_bound=None, output_dtype=None, *, compute="f32", num_threads=None
):
    """The log decay, in g's shape [..., HV, K]. dt_bias is [HV * K]."""
    return _gate_alone(g, A_log, dt_bias, output_dtype, compute, is_kda=True, lower_bound=lower_bound)


def naive_kda_lowerbound_gate(
    g, A_log=None, dt_bias=None, lower_bound=-5.0, output_dtype=None, *, compute="f32", num_threads=None
):
    """fused_kda_gate with a lower bound."""
    return fused_kda_gate(g, A_log, dt_bias, lower_bound, output_dtype, compute=compute)


def naive_kda_gate(g, A_log, dt_bias=None, output_dtype=None, *, compute="f32", num_threads=None):
    """fused_kda_gate without one."""
    return fused_kda_gate(g, A_log, dt_bias, None, output_dtype, compute=compute)


def chunk_local_cumsum(
    g,
    chunk_size,
    reverse=False,
    scale=None,
    cu_seqlens=None,
    output_dtype=None,
    chunk_indices=None,
    use_graph=False,
    *,
    compute="f32",
    num_threads=None,
    **kwargs,
):
    """Sums of g [B,T,...] over the tokens of a chunk up to each of them (with reverse: from each on), times scale;
    float32, or output_dtype. Chunks begin with every sequence."""
    _rest(kwargs, False)
    g = known(g)
    dtype = "float64" if compute == "f64" else "float32"
    x, o = wide(g), new(g, tuple(g.shape), dtype if output_dtype is None else dtype_named(output_dtype))
    ends = [0, x.shape[1]] if cu_seqlens is None else np.asarray(integers(cu_seqlens)).tolist()
    chunks = [(n, t, min(t + chunk_size, end)) for n in range(len(x)) for begin, end in zip(ends, ends[1:])
              for t in range(begin, end, chunk_size)]  # fmt: skip
    for n, begin, end in chunks:
        part = np.asarray(x[n, begin:end], dtype)
        sums = part[::-1].cumsum(0)[::-1] if reverse else part.cumsum(0)
        filled(o[n, begin:end], sums if scale is None else sums * np.asarray(scale, dtype))
    return o


def gdn_gate_chunk_cumsum(
    g,
    A_log,
    chunk_size,
    scale=None,
    dt_bias=None,
    cu_seqlens=None,
    chunk_indices=None,
    output_dtype=None,
    *,
    compute="f32",
    num_threads=None,
):
    """chunk_local_cumsum of fused_gdn_gate."""
    g = fused_gdn_gate(g, A_log, dt_bias, compute=compute)
    return chunk_local_cumsum(g, chunk_size, False, scale, cu_seqlens, output_dtype, compute=compute)


def kda_gate_chunk_cumsum(
    g,
    A_log,
    chunk_size,
    scale=None,
    dt_bias=None,
    cu_seqlens=None,
    output_dtype=None,
    chunk_indices=None,
    lower_bound=None,
    use_graph=False,
    *,
    compute="f32",
    num_threads=None,
    **kwargs,
):
    """chunk_local_cumsum of fused_kda_gate."""
    g = fused_kda_gate(g, A_log, dt_bias, lower_bound, compute=compute)
    return chunk_local_cumsum(g, chunk_size, False, scale, cu_seqlens, output_dtype, compute=compute)


def _gate_alone(g, A_log, dt_bias, output_dtype, compute, **options):
    dtypes = {} if output_dtype is None else {"g": dtype_named(output_dtype)}
    return prepared(
        GATE, A_log=A_log, a=g, dt_bias=dt_bias, preset="fla", gate_input="raw", compute=compute, dtypes=dtypes,
        **options,
    ).g  # fmt: skip


def naive_recurrent_gated_delta_rule(
    q, k, v, beta, g, scale=None, initial_state=None, output_final_state=False, *, compute="f32", num_threads=None
):
    """(o, final state), both in float32. beta comes before g here."""
    o = None if compute == "f64" else new(q, tuple(v.shape), "float32")
    return _update(
        q, k, v, scale, initial_state, output_final_state, False, None, **_gate(g, None, None, False),
        **_beta(beta, False, False), o=o, compute=compute, num_threads=num_threads,
    )  # fmt: skip


def naive_chunk_gated_delta_rule(
    q,
    k,
    v,
    g,
    beta,
    chunk_size=64,
    scale=None,
    initial_state=None,
    output_final_state=False,
    *,
    compute="f32",
    num_threads=None,
):
    """(o, final state), both in float32."""
    return naive_recurrent_gated_delta_rule(
        q, k, v, beta, g, scale, initial_state, output_final_state, compute=compute, num_threads=num_threads
    )


def naive_recurrent_kda(
    q, k, v, g, beta, scale=None, initial_state=None, output_final_state=False, *, compute="f32", num_threads=None
):
    """(o in v's dtype, final state in float32)."""
    return fused_recurrent_kda(
        q, k, v, g, beta, scale=scale, initial_state=initial_state, output_final_state=output_final_state,
        compute=compute, num_threads=num_threads,
    )  # fmt: skip


def naive_chunk_kda(
    q,
    k,
    v,
    g,
    beta,
    scale=None,
    initial_state=None,
    output_final_state=False,
    chunk_size=64,
    *,
    compute="f32",
    num_threads=None,
):
    """(o in v's dtype, final state in float32)."""
    return naive_recurrent_kda(
        q, k, v, g, beta, scale, initial_state, output_final_state, compute=compute, num_threads=num_threads
    )


fused_recurrent_gdn = fused_recurrent_gated_delta_rule
chunk_gdn = chunk_gated_delta_rule
naive_gdn_gate = gdn_gate_fwd = fused_gdn_gate
