"""FlashInfer's operators (0.7.2), argument for argument, on the CPU: decode, MTP, prefill and KDA.

from gdn_varlen.flashinfer import chunk_gated_delta_rule, gated_delta_rule_mtp, recurrent_kda

Backends, workspaces and schedules are taken and not needed. A negative index is padding, which reads and writes no
slot: FlashInfer's bfloat16 decode uses slot 0 for it, and gives rows without a meaning where these are 0.
"""

import numpy as np

from .arrays import dtype_name, integers, known, new, repeated
from .calls import missing, operator, packed_decode, refuse
from .operator import GdnError

DECODE = {"initial_state_source": "state", "o": "output", "use_qk_l2norm_in_kernel": "use_qk_l2norm"}
POOL = DECODE | {"initial_state_source": "initial_state"}
PREFILL = {"a": "g", "b": "beta", "o": "output", "initial_state_source": "initial_state"}
PREFILL |= {"initial_state_indices": "state_indices", "output_state_indices": "state_indices"}
PREFILL |= {"output_state_pool": "output_state"}
KDA = {"a": "g", "b": "beta", "o": "output"}
KDA_SOURCE = KDA | {"output_state_pool": "initial_state", "output_state_indices": "ssm_state_indices"}
KDA |= {"initial_state_source": "initial_state", "initial_state_indices": "ssm_state_indices"}
PACKED = {"a": "raw_gate", "b": "raw_beta", "o": "output", "initial_state_source": "state"}
PACKED |= {"initial_state_indices": "state_indices"}

fused_kda_decode = missing("fused_kda_decode")
packed_fused_kda_decode = missing("packed_fused_kda_decode")
gated_delta_rule_replayssm_commit = missing("gated_delta_rule_replayssm_commit")


def gated_delta_rule_decode_pretranspose(
    q,
    k,
    v,
    state,
    A_log,
    a,
    dt_bias,
    b,
    scale=None,
    output=None,
    use_qk_l2norm=True,
    initial_state=None,
    initial_state_indices=None,
    output_state_indices=None,
    intermediate_states_buffer=None,
    disable_state_update=False,
    backend="auto",
    *,
    compute="f32",
    num_threads=None,
):
    """(output, state or initial_state): `state` [B,HV,V,K], or a pool [slots,HV,V,K] with its indices, in place."""
    if (initial_state is None) != (initial_state_indices is None):
        raise GdnError("it comes with initial_state", "initial_state_indices")
    if (state is None) == (initial_state is None):
        raise GdnError("one of state and initial_state is needed", "state")
    states, names = (state, DECODE) if initial_state is None else (initial_state, POOL)
    if states is state and state.shape[0] != q.shape[0]:
        raise GdnError(f"its shape is {list(state.shape)}, and the batch is {q.shape[0]}", "state")
    o = operator(
        names, q=q, k=k, v=v, A_log=A_log, a=a, dt_bias=dt_bias, b=b, scale=scale, o=output,
        use_qk_l2norm_in_kernel=use_qk_l2norm, initial_state_source=states, initial_state_indices=initial_state_indices,
        output_state_indices=output_state_indices, intermediate_states_buffer=intermediate_states_buffer,
        disable_state_update=disable_state_update, preset="flashinfer_decode", compute=compute, num_threads=num_threads,
    )  # fmt: skip
    return o, states


def gated_delta_rule_decode(
    q,
    k,
    v,
    state,
    A_log,
    a,
    dt_bias,
    b,
    scale=None,
    output=None,
    use_qk_l2norm=True,
    backend="auto",
    *,
    compute="f32",
    num_threads=None,
):
    """(output, state): `state` [B,HV,K,V] is updated in place."""
    if state.shape[0] != q.shape[0]:
        raise GdnError(f"its shape is {list(state.shape)}, and the batch is {q.shape[0]}", "state")
    o = operator(
        DECODE, q=q, k=k, v=v, A_log=A_log, a=a, dt_bias=dt_bias, b=b, scale=scale, o=output,
        use_qk_l2norm_in_kernel=use_qk_l2norm, initial_state_source=state, preset="flashinfer_decode_kv",
        compute=compute, num_threads=num_threads,
    )  # fmt: skip
    return o, state


def gated_delta_rule_mtp(
    q,
    k,
    v,
    initial_state,
    initial_state_indices,
    A_log,
    a,
    dt_bias,
    b,
    scale=None,
    output=None,
    intermediate_states_buffer=None,
    ssm_state_indices=None,
    disable_state_update=None,
    use_qk_l2norm=True,
    output_state_indices=None,
    cache_replayssm=False,
    replayssm_rawv=None,
    replayssm_rawk=None,
    replayssm_g=None,
    replayssm_beta=None,
    *,
    compute="f32",
    num_threads=None,
):
    """(output, initial_state): the pool [slots,HV,V,K] is only read unless disable_state_update is False. The rows of a
    padded sequence stay as the caller's `output` has them."""
    refuse(cache_replayssm=cache_replayssm)
    disable_state_update = True if disable_state_update is None else disable_state_update
    if ssm_state_indices is not None:
        if disable_state_update or intermediate_states_buffer is not None or output_state_indices is not None:
            raise GdnError("it stands alone, and with disable_state_update=False", "ssm_state_indices")
    o = operator(
        POOL, q=q, k=k, v=v, A_log=A_log, a=a, dt_bias=dt_bias, b=b, scale=scale, o=output,
        use_qk_l2norm_in_kernel=use_qk_l2norm, initial_state_source=initial_state,
        initial_state_indices=initial_state_indices, output_state_indices=output_state_indices,
        ssm_state_indices=ssm_state_indices, intermediate_states_buffer=intermediate_states_buffer,
        disable_state_update=disable_state_update, preset="flashinfer_mtp", compute=compute, num_threads=num_threads,
    )  # fmt: skip
    return o, initial_state


def chunk_gated_delta_rule(
    q,
    k,
    v,
    g=None,
    beta=None,
    scale=None,
    initial_state=None,
    output_final_state=False,
    cu_seqlens=None,
    use_qk_l2norm_in_kernel=False,
    output=None,
    output_state=None,
    state_checkpoints=None,
    checkpoint_cu_starts=None,
    checkpoint_every_n_tokens=0,
    use_cp="auto",
    state_indices=None,
    _cp_chunk_len=None,
    backend="auto",
    max_seqlen=None,
    *,
    compute="f32",
    num_threads=None,
):
    """output [tokens, max(Hq,HV), V], or with output_final_state (output, final state [N,..,V,K]). g is the decay.

    The final states go to output_state, but for sequences without tokens; with state_indices it and initial_state are
    pools. q and k are not rounded after the norm.
    """
    refuse(state_checkpoints=state_checkpoints, checkpoint_every_n_tokens=checkpoint_every_n_tokens or None)
    if cu_seqlens is None:
        raise GdnError("is needed", "cu_seqlens")
    heads = max(q.shape[1], v.shape[1])
    if q.shape[1] > v.shape[1]:  # grouped queries: each key and value head for several of them
        if k.shape[1] != v.shape[1]:
            raise GdnError(f"its shape is {list(k.shape)}, and v has {v.shape[1]} heads", "k")
        k, v = repeated(known(k), heads, 1), repeated(known(v), heads, 1)
    arguments = dict(
        q=q, k=k, v=v, a=g, b=beta, scale=scale, cu_seqlens=cu_seqlens, o=output, preset="flashinfer_prefill",
        use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel, like=q, compute=compute, num_threads=num_threads,
        initial_state_indices=state_indices,
    )  # fmt: skip
    if not output_final_state:
        return operator(PREFILL, initial_state_source=initial_state, disable_state_update=True, **arguments)
    if output_state is None:
        if state_indices is not None:
            raise GdnError("is needed with state_indices", "output_state")
        shape = (len(cu_seqlens) - 1, heads, v.shape[-1], q.shape[-1])
        output_state = new(known(q), shape, "float64" if compute == "f64" else "float32")
    if initial_state is not output_state:
        arguments |= dict(output_state_pool=output_state, output_state_indices=state_indices)
    return operator(PREFILL, initial_state_source=initial_state, **arguments), output_state


def chunk_gated_delta_rule2(
    q,
    k,
    v,
    g=None,
    beta=None,
    w=None,
    scale=None,
    initial_state=None,
    output_final_state=False,
    cu_seqlens=None,
    use_qk_l2norm_in_kernel=False,
    output=None,
    output_state=None,
    *,
    backend="auto",
    compute="f32",
    num_threads=None,
):
    """GDN-2: not there."""
    refuse(w=True)


def recurrent_kda(
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
    use_qk_l2norm_in_kernel=True,
    use_gate_in_kernel=False,
    lower_bound=None,
    cu_seqlens=None,
    ssm_state_indices=None,
    num_spec_tokens=None,
    num_accepted_tokens=None,
    output=None,
    initial_state_source=None,
    initial_state_indices=None,
    beta_is_logit=False,
    seq_order=None,
    prefill_workspace=None,
    state_checkpoints=None,
    checkpoint_cu_starts=None,
    checkpoint_every_n_tokens=0,
    checkpoint_state_indices=None,
    *,
    disable_state_update=False,
    correction_cache=None,
    kg_cache=None,
    backend="auto",
    compute="f32",
    num_threads=None,
):
    """(output, final state or None): initial_state [N,HV,V,K] in place, or a pool with ssm_state_indices [N] or
    [N,1+S]. Sequences start from initial_state_source, a pool that is only read, where it is given."""
    refuse(
        state_checkpoints=state_checkpoints, kg_cache=kg_cache, correction_cache=correction_cache,
        checkpoint_every_n_tokens=checkpoint_every_n_tokens or None,
    )  # fmt: skip
    if (initial_state_source is None) != (initial_state_indices is None):
        raise GdnError("it comes with initial_state_source", "initial_state_indices")
    H, HV, K, V = q.shape[2], v.shape[2], q.shape[3], v.shape[3]
    gate = dict(gate_input="log")
    if use_gate_in_kernel:
        if A_log is not None and HV != H and A_log.shape[0] == H:  # of key heads
            A_log = repeated(known(A_log), HV, 0)
            dt_bias = dt_bias if dt_bias is None else repeated(known(dt_bias).reshape(H, K), HV, 0)
        gate = dict(gate_input="raw", A_log=A_log, dt_bias=dt_bias, lower_bound=lower_bound)
    N = q.shape[0] if cu_seqlens is None else len(cu_seqlens) - 1
    steps = 1 if num_spec_tokens is None else 1 + num_spec_tokens
    if num_spec_tokens is not None and ssm_state_indices is None:
        ssm_state_indices = np.arange(N * steps).reshape(N, steps)
    first = None if ssm_state_indices is None else np.asarray(integers(ssm_state_indices))  # negative: padding
    if first is not None and first.ndim == 2:
        first = first[:, 0]
    if initial_state is None and not disable_state_update:
        initial_state = new(known(q), (N * steps, HV, V, K), "float64" if compute == "f64" else "float32")

    pools = dict(initial_state_source=initial_state, disable_state_update=disable_state_update)
    accepted = num_spec_tokens is not None and num_accepted_tokens is not None
    if initial_state_source is not None and disable_state_update:
        pools |= dict(initial_state_source=initial_state_source, initial_state_indices=initial_state_indices)
    elif initial_state_source is not None:
        starts = np.asarray(integers(initial_state_indices))
        pools = dict(initial_state_source=initial_state_source, output_state_pool=initial_state)
        pools["initial_state_indices"] = starts if first is None else np.where(first < 0, -1, starts)
        pools["output_state_indices" if num_spec_tokens is None else "ssm_state_indices"] = ssm_state_indices
    elif num_spec_tokens is None or (disable_state_update and not accepted):
        pools["initial_state_indices"] = first
    else:
        pools["ssm_state_indices"] = ssm_state_indices
        if accepted:
            pools["num_accepted_tokens"] = np.clip(np.asarray(integers(num_accepted_tokens)), 1, steps)
    o = operator(
        KDA if initial_state_source is None else KDA_SOURCE, q=q, k=k, v=v, a=g, b=beta, scale=scale, **pools, **gate,
        use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel, cu_seqlens=cu_seqlens, o=output, is_kda=True,
        beta_input="raw" if beta_is_logit else "given", preset="flashinfer_decode", compute=compute,
        num_threads=num_threads,
    )  # fmt: skip
    return o, initial_state if output_final_state and not disable_state_update else None


def packed_kda_decode(
    mixed_qkv,
    raw_gate,
    raw_beta,
    A_log,
    dt_bias,
    state,
    state_indices,
    output=None,
    *,
    compute="f32",
    num_threads=None,
):
    """output [B,1,HV,V]: a token for each row of mixed_qkv; the pool [slots,HV,V,K] in place. q, k are normalised."""
    if output is None:
        HV, V = state.shape[1:3]
        output = new(known(mixed_qkv), (mixed_qkv.shape[0], 1, HV, V), dtype_name(known(mixed_qkv)))
    return packed_decode(
        PACKED, mixed_qkv, raw_gate, raw_beta, A_log, dt_bias, None, state, output, state_indices, True, is_kda=True,
        preset="flashinfer_decode", compute=compute, num_threads=num_threads,
    )[0]  # fmt: skip
