"""SGLang's operators (0.5.23), argument for argument, on the CPU: those of its Triton kernels, and its CPU operators.

from gdn_varlen.sglang import fused_sigmoid_gating_delta_rule_update, fused_recurrent_gated_delta_rule_update

States are [V,K] and updated in place in a pool; of the two older CPU operators they are [K,V]. The chunk functions
round q and k to their dtype after the norm, and the packed decode beta to b's.
"""

import numpy as np

from . import vllm
from .arrays import dtype_name, filled, integers, known, new, repeated
from .calls import (
    before_chunks,
    gathered,
    in_new_states,
    in_new_states_and_steps,
    lengths_of,
    operator,
    packed_decode,
    prepared,
    refuse,
    scattered,
)
from .operator import GdnError

NAMES = {"a": "g", "b": "beta", "initial_state_source": "initial_state"}
UPDATE = NAMES | {"initial_state_source": "initial_state_source"}
PACKED = {"initial_state_source": "initial_state", "initial_state_indices": "ssm_state_indices", "o": "out"}
GIVEN = dict(gate_input="log", beta_input="given")

CHUNK = 64


def fused_gdn_gating(A_log, a, b, dt_bias, beta=1.0, threshold=20.0, *, compute="f32", num_threads=None):
    """(g, beta), both [1, batch, HV] and float32: the log decay, and the sigmoid of b, rounded to b's dtype."""
    x = prepared(
        {"softplus_beta": "beta", "softplus_threshold": "threshold"}, A_log=A_log, a=a, b=b, dt_bias=dt_bias,
        softplus_beta=beta, softplus_threshold=threshold, round_beta=True, compute=compute,
    )  # fmt: skip
    return x.g[None], x.beta[None]


def _on_chunks(names, initial_state, initial_state_indices, update, track_state=None, track_chunk_idx=(), **arguments):
    """(o, h): a pool in place, and the states before each chunk, [1, chunks, HV, V, K] in k's dtype; the one before
    chunk track_chunk_idx[n] of sequence n into track_state[n]."""
    q, ends = arguments["q"], arguments["cu_seqlens"]
    lengths, pool = lengths_of(q, ends), None if initial_state is None else known(initial_state)
    start = gathered(names, pool, initial_state_indices, len(lengths))
    o, final, steps = in_new_states_and_steps(names, start, CHUNK, state_layout="vk", **arguments)
    if pool is not None and update:
        scattered(pool, initial_state_indices, final, lengths)
    for n, chunk in enumerate(track_chunk_idx):
        if 0 < chunk < -(-lengths[n] // CHUNK):
            filled(track_state[n], steps[n][chunk - 1])
        elif chunk == 0 and lengths[n]:
            track_state[n] = 0 if start is None else start[n]
    dtype = "float64" if arguments["compute"] == "f64" else dtype_name(known(arguments["k"]))
    h = before_chunks(start, steps, CHUNK, q, ends, dtype)
    return o, h.reshape((q.shape[0], len(h) // q.shape[0], *h.shape[1:]))


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
    cache_ring=False,
    replayssm_rawv=None,
    replayssm_rawk=None,
    replayssm_g=None,
    replayssm_beta=None,
    match_cutedsl_decode=False,
    *,
    compute="f32",
    num_threads=None,
):
    """o [B,T,HV,V]; the pool [slots,HV,V,K] is updated in place."""
    refuse(cache_ring=cache_ring, match_cutedsl_decode=match_cutedsl_decode)
    return operator(
        {}, A_log=A_log, a=a, dt_bias=dt_bias, softplus_beta=softplus_beta, softplus_threshold=softplus_threshold, q=q,
        k=k, v=v, b=b, initial_state_source=initial_state_source, initial_state_indices=initial_state_indices,
        scale=scale, use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel, cu_seqlens=cu_seqlens, is_kda=is_kda,
        lower_bound=lower_bound, disable_state_update=disable_state_update,
        intermediate_states_buffer=intermediate_states_buffer, intermediate_state_indices=intermediate_state_indices,
        cache_steps=cache_steps, retrieve_parent_token=retrieve_parent_token, preset="sglang", compute=compute,
        num_threads=num_threads,
    )  # fmt: skip


def fused_recurrent_gated_delta_rule_packed_decode(
    mixed_qkv,
    a,
    b,
    A_log,
    dt_bias,
    scale,
    initial_state,
    out,
    ssm_state_indices,
    use_qk_l2norm_in_kernel=False,
    *,
    compute="f32",
    num_threads=None,
):
    """(out, initial_state). Padding gives rows of zeros."""
    return packed_decode(
        PACKED, mixed_qkv, a, b, A_log, dt_bias, scale, initial_state, out, ssm_state_indices, use_qk_l2norm_in_kernel,
        round_beta=True, preset="sglang_packed_decode", compute=compute, num_threads=num_threads,
    )  # fmt: skip


def fused_recurrent_kda_packed_decode(
    mixed_qkv,
    a,
    b,
    A_log,
    dt_bias,
    scale,
    initial_state,
    out,
    ssm_state_indices,
    use_qk_l2norm_in_kernel=False,
    lower_bound=None,
    *,
    compute="f32",
    num_threads=None,
):
    """(out, initial_state), with `a` [B, HV*K]. Padding gives rows of zeros."""
    return packed_decode(
        PACKED, mixed_qkv, a, b, A_log, dt_bias, scale, initial_state, out, ssm_state_indices, use_qk_l2norm_in_kernel,
        is_kda=True, lower_bound=lower_bound, preset="sglang_packed_decode", compute=compute, num_threads=num_threads,
    )  # fmt: skip


def fused_recurrent_gated_delta_rule(
    q,
    k,
    v,
    g,
    beta=None,
    scale=None,
    initial_state=None,
    output_final_state=False,
    cu_seqlens=None,
    use_qk_l2norm_in_kernel=False,
    *,
    compute="f32",
    num_threads=None,
):
    """(o, final state [N,HV,V,K] in float32, or None): initial_state is only read."""
    return in_new_states(
        NAMES, initial_state, output_final_state, q=q, k=k, v=v, a=g, b=beta, scale=scale, cu_seqlens=cu_seqlens,
        use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel, preset="sglang", state_layout="vk", **GIVEN, compute=compute,
        num_threads=num_threads,
    )  # fmt: skip


def fused_recurrent_gated_delta_rule_update(
    q,
    k,
    v,
    g,
    beta=None,
    scale=None,
    initial_state_source=None,
    initial_state_indices=None,
    cu_seqlens=None,
    use_qk_l2norm_in_kernel=False,
    disable_state_update=False,
    disable_output_calculation=False,
    intermediate_states_buffer=None,
    intermediate_state_indices=None,
    cache_steps=None,
    retrieve_parent_token=None,
    *,
    compute="f32",
    num_threads=None,
):
    """o [B,T,HV,V], or one zero with disable_output_calculation; the pool [slots,HV,V,K] is updated in place."""
    o = operator(
        UPDATE, q=q, k=k, v=v, a=g, b=beta, scale=scale, initial_state_source=initial_state_source,
        initial_state_indices=initial_state_indices, cu_seqlens=cu_seqlens,
        use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel, disable_state_update=disable_state_update,
        intermediate_states_buffer=intermediate_states_buffer, intermediate_state_indices=intermediate_state_indices,
        cache_steps=cache_steps, retrieve_parent_token=retrieve_parent_token, preset="sglang", **GIVEN, compute=compute,
        num_threads=num_threads,
    )  # fmt: skip
    return new(known(q), (1, 1, 1, 1), "float32") if disable_output_calculation else o


def chunk_gated_delta_rule(
    q,
    k,
    v,
    g,
    beta,
    scale=None,
    initial_state=None,
    initial_state_indices=None,
    cu_seqlens=None,
    head_first=False,
    use_qk_l2norm_in_kernel=False,
    inplace_update=True,
    *,
    compute="f32",
    num_threads=None,
):
    """(o, None, h): the pool [slots,HV,V,K] is updated in place, and h [B,chunks,HV,V,K] is the state before each chunk
    of 64 tokens, in k's dtype."""
    refuse(head_first=head_first)
    o, h = _on_chunks(
        NAMES, initial_state, initial_state_indices, inplace_update, q=q, k=k, v=v, a=g, b=beta, scale=scale,
        cu_seqlens=cu_seqlens, use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel, round_qk=True, preset="sglang", **GIVEN,
        compute=compute, num_threads=num_threads,
    )  # fmt: skip
    return o, None, h


def chunk_kda(
    q,
    k,
    v,
    g,
    beta,
    scale=None,
    initial_state=None,
    initial_state_indices=None,
    use_qk_l2norm_in_kernel=False,
    cu_seqlens=None,
    A_log=None,
    dt_bias=None,
    lower_bound=None,
    output_intermediate_states=False,
    track_state=None,
    track_chunk_idx=None,
    beta_is_raw=False,
    chunk_indices=None,
    chunk_offsets=None,
    *,
    compute="f32",
    num_threads=None,
    **kwargs,
):
    """o [B,T,HV,V]; the pool [slots,HV,V,K] is updated in place. With A_log, g is the gate's input. With
    output_intermediate_states (o, h), as chunk_gated_delta_rule; track_state [N,HV,V,K] receives the state before chunk
    track_chunk_idx [N] of each sequence, none where that is negative."""
    return _chunk_kda(
        g, A_log, dt_bias, lower_bound, initial_state, initial_state_indices, output_intermediate_states, track_state,
        track_chunk_idx, q=q, k=k, v=v, b=beta, scale=scale, use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel,
        round_qk=True, cu_seqlens=cu_seqlens, beta_input="raw" if beta_is_raw else "given", compute=compute,
        num_threads=num_threads,
    )  # fmt: skip


def chunk_kda_cpu(
    q,
    k,
    v,
    g,
    beta,
    scale=None,
    initial_state=None,
    initial_state_indices=None,
    use_qk_l2norm_in_kernel=False,
    cu_seqlens=None,
    A_log=None,
    dt_bias=None,
    lower_bound=None,
    output_intermediate_states=False,
    track_state=None,
    track_chunk_idx=None,
    beta_is_raw=False,
    *,
    compute="f32",
    num_threads=None,
    **kwargs,
):
    """chunk_kda of SGLang's repository for CPUs, which does not round q and k."""
    return _chunk_kda(
        g, A_log, dt_bias, lower_bound, initial_state, initial_state_indices, output_intermediate_states, track_state,
        track_chunk_idx, q=q, k=k, v=v, b=beta, scale=scale, use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel,
        cu_seqlens=cu_seqlens, beta_input="raw" if beta_is_raw else "given", compute=compute, num_threads=num_threads,
    )  # fmt: skip


def _chunk_kda(g, A_log, dt_bias, lower_bound, pool, slots, all_states, track_state, track_chunk_idx, **arguments):
    if (track_state is None) != (track_chunk_idx is None):
        raise GdnError("it comes with track_state", "track_chunk_idx")
    gate = dict(gate_input="log") if A_log is None else dict(A_log=A_log, dt_bias=dt_bias, lower_bound=lower_bound)
    arguments |= dict(a=g, is_kda=True, preset="sglang", **gate)
    if track_state is None and not all_states:
        return operator(NAMES, initial_state_source=pool, initial_state_indices=slots, **arguments)
    chunks = [] if track_state is None else np.asarray(integers(track_chunk_idx)).tolist()
    o, h = _on_chunks(NAMES, pool, slots, True, track_state, chunks, **arguments)
    return (o, h) if all_states else o


def fused_recurrent_kda(
    q,
    k,
    v,
    g,
    beta=None,
    scale=None,
    initial_state=None,
    inplace_final_state=True,
    use_qk_l2norm_in_kernel=True,
    cu_seqlens=None,
    *,
    compute="f32",
    num_threads=None,
    **kwargs,
):
    """(o, final state [N,HV,V,K]): initial_state itself, updated in place, unless inplace_final_state is off."""
    if g.shape[2] != v.shape[2]:  # of key heads
        g = repeated(known(g), v.shape[2], 2)
    arguments = dict(
        q=q, k=k, v=v, a=g, b=beta, scale=scale, use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel, cu_seqlens=cu_seqlens,
        is_kda=True, preset="sglang", state_layout="vk", **GIVEN, compute=compute, num_threads=num_threads,
    )  # fmt: skip
    if initial_state is None:
        raise GdnError("is needed", "initial_state")
    if not inplace_final_state:
        return in_new_states(NAMES, initial_state, True, state_dtype=dtype_name(known(initial_state)), **arguments)
    return operator(NAMES, initial_state_source=initial_state, **arguments), initial_state


def chunk_gated_delta_rule_cpu(
    q,
    k,
    v,
    g,
    beta,
    initial_state,
    cu_seqlens,
    head_first,
    use_qk_l2norm_in_kernel,
    initial_state_indices,
    *,
    compute="f32",
    num_threads=None,
):
    """(o, initial_state, None), as sgl_kernel.mamba has it: the pool [slots,HV,K,V] is updated in place."""
    o, states = vllm.chunk_gated_delta_rule_cpu(
        q, k, v, g, beta, initial_state, True, cu_seqlens, head_first, use_qk_l2norm_in_kernel, initial_state_indices,
        eps=1e-6, compute=compute, num_threads=num_threads,
    )  # fmt: skip
    return o, states, None


fused_gdn_gating_cpu = vllm.fused_gdn_gating_cpu
fused_sigmoid_gating_delta_rule_update_cpu = vllm.fused_sigmoid_gating_delta_rule_update_cpu
fused_recurrent_gdn = fused_recurrent_gated_delta_rule
