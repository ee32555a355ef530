"""Flash Linear Attention's operators (fla-core 0.6), argument for argument, on the CPU.

from gdn_varlen.fla import chunk_gated_delta_rule, chunk_kda, fused_recurrent_gated_delta_rule, fused_recurrent_kda

Initial states are only read and final states are new, in float32; `o` has v's dtype. "chunk" and "fused_recurrent" are
the same computation here.
"""

from .arrays import new
from .calls import in_new_states, in_states_of_tokens, missing, operator, refuse
from .operator import GdnError

NAMES = {
    "a": "g",
    "b": "beta",
    "o": "out",
    "initial_state_source": "initial_state",
    "initial_state_indices": "ssm_state_indices",
    "softplus_beta": "use_gate_in_kernel",
}

fused_gdn_gate = missing("fused_gdn_gate")
fused_kda_gate = missing("fused_kda_gate")
naive_gdn_gate = missing("naive_gdn_gate")
naive_kda_gate = missing("naive_kda_gate")
naive_kda_lowerbound_gate = missing("naive_kda_lowerbound_gate")

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


def _update(q, k, v, scale, initial_state, output_final_state, state_v_first, cu_seqlens, **arguments):
    if scale == 0:
        raise GdnError("must not be 0", "scale")
    if cu_seqlens is not None and q.shape[0] != 1:
        raise GdnError(f"the batch is {q.shape[0]}, and with cu_seqlens it is 1", "cu_seqlens")
    return in_new_states(
        NAMES, initial_state, output_final_state, q=q, k=k, v=v, scale=scale, cu_seqlens=cu_seqlens, like=v,
        preset="fla", state_layout="vk" if state_v_first else "kv", **arguments,
    )  # fmt: skip


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
    """(o [B,T,HV,V], final state [N,HV,K,V] or None). g is [B,T,HV], or gk [B,T,HV,K]; gv is not there."""
    state_v_first = _rest(kwargs, state_v_first)
    refuse(gv=gv, gk=gk if g is not None else None)
    gate = _gate(g, A_log, dt_bias, use_gate_in_kernel) if gk is None else dict(a=gk, gate_input="log", is_kda=True)
    return _update(
        q, k, v, scale, initial_state, output_final_state, state_v_first, cu_seqlens, **gate,
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
        compute=compute, num_threads=num_threads,
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
    """(o [B,T,HV,V], final state [N,HV,K,V] or None). g is [B,T,HV,K]; safe_gate only says how to compute."""
    state_v_first = _rest(kwargs, state_v_first)
    refuse(cp_context=cp_context, return_intermediate_states=return_intermediate_states)
    return _update(
        q, k, v, scale, initial_state, output_final_state, state_v_first, cu_seqlens, is_kda=True,
        **_gate(g, A_log, dt_bias, use_gate_in_kernel, lower_bound),
        **_beta(beta, use_beta_sigmoid_in_kernel, allow_neg_eigval), use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel,
        compute=compute, num_threads=num_threads,
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
