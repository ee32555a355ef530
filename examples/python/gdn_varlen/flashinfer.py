"""FlashInfer's operators (0.7.4), argument for argument, on the CPU: decode, MTP, prefill, pages, GDN-2 and KDA.

from gdn_varlen.flashinfer import chunk_gated_delta_rule, gated_delta_rule_mtp, recurrent_kda

Backends, workspaces and schedules are taken and not needed. A negative index is padding, which reads and writes no
slot: FlashInfer's bfloat16 decode uses slot 0 for it, and gives rows without a meaning where these are 0.
"""

from typing import NamedTuple

import numpy as np

from .arrays import dtype_name, filled, integers, known, new, repeated, wide
from .calls import (
    before_chunks,
    gathered,
    in_new_states,
    in_new_states_and_steps,
    lengths_of,
    missing,
    operator,
    packed_decode,
    refuse,
    scattered,
)
from .operator import GdnError

DECODE = {"initial_state_source": "state", "o": "output", "use_qk_l2norm_in_kernel": "use_qk_l2norm"}
POOL = DECODE | {"initial_state_source": "initial_state"}
PREFILL = {"a": "g", "b": "beta", "o": "output", "initial_state_source": "initial_state"}
PREFILL |= {"initial_state_indices": "state_indices", "output_state_indices": "state_indices"}
PREFILL |= {"output_state_pool": "output_state"}
GDN2 = PREFILL | {"erase": "beta", "b": "w"}
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


def _grouped(q, k, v):
    """(k, v, heads): each key and value head several times where there are more query heads."""
    heads = max(q.shape[1], v.shape[1])
    if q.shape[1] > v.shape[1]:
        if k.shape[1] != v.shape[1]:
            raise GdnError(f"its shape is {list(k.shape)}, and v has {v.shape[1]} heads", "k")
        k, v = repeated(known(k), heads, 1), repeated(known(v), heads, 1)
    return k, v, heads


def _checkpoints(state_checkpoints, starts, indices, states):
    """The states after the steps of each sequence into its rows: from starts[n] on, or those that `indices` says."""
    starts = np.asarray(integers(starts)).tolist()
    indices = None if indices is None else np.asarray(integers(indices)).tolist()
    for start, steps in zip(starts, states):
        for i in range(len(steps)):
            row = start + i if indices is None else indices[start + i]
            if row >= 0:
                filled(state_checkpoints[row], steps[i])


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
    gate_domain="linear",
    use_gate_in_kernel=False,
    A_log=None,
    dt_bias=None,
    beta_is_logit=False,
    cu_seqlens_cpu=None,
    output_state_indices=None,
    checkpoint_state_indices=None,
    prefix_lens=None,
    compute="f32",
    num_threads=None,
):
    """output [tokens, max(Hq,HV), V], or with output_final_state (output, final state [N,..,V,K]). g is the decay, its
    logarithm, or the gate's input. q and k are rounded to their dtype after the norm, a sigmoid to beta's.

    The final states go to output_state, but for sequences without tokens; with state_indices it and initial_state are
    pools. With output_state_indices a read of -1 starts from zeros, and a written -1 is none. The states after every
    checkpoint_every_n_tokens go to state_checkpoints.
    """
    if cu_seqlens is None:
        raise GdnError("is needed", "cu_seqlens")
    if gate_domain not in ("linear", "log"):
        raise GdnError(f"{gate_domain!r} is none of 'linear', 'log'", "gate_domain", status="GDN_ERROR_ENUM")
    if beta_is_logit and beta is None:
        raise GdnError("is needed with beta_is_logit", "beta")
    if not use_gate_in_kernel and (A_log is not None or dt_bias is not None):
        raise GdnError("it comes with use_gate_in_kernel", "dt_bias" if A_log is None else "A_log")
    for name, x in (("state_checkpoints", state_checkpoints), ("checkpoint_cu_starts", checkpoint_cu_starts)):
        if (x is not None) != (checkpoint_every_n_tokens > 0):
            raise GdnError("it comes with checkpoint_every_n_tokens", name)
    for name, x in (("checkpoint_state_indices", checkpoint_state_indices), ("prefix_lens", prefix_lens)):
        if x is not None and checkpoint_every_n_tokens <= 0:
            raise GdnError("it comes with checkpoint_every_n_tokens", name)
    if output_state_indices is not None and (state_indices is None or output_state is None or not output_final_state):
        raise GdnError("it comes with state_indices, output_state and output_final_state", "output_state_indices")
    k, v, heads = _grouped(q, k, v)
    N = len(cu_seqlens) - 1
    gate = dict(A_log=A_log, dt_bias=dt_bias, gate_input="raw") if use_gate_in_kernel else {}
    if gate_domain == "log" and not use_gate_in_kernel:
        gate = dict(gate_input="log")
    arguments = dict(
        q=q, k=k, v=v, a=g, b=beta, scale=scale, cu_seqlens=cu_seqlens, o=output, preset="flashinfer_prefill", **gate,
        beta_input="raw" if beta_is_logit else "given", round_beta=beta_is_logit, round_qk=True, like=q,
        use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel, compute=compute, num_threads=num_threads,
    )  # fmt: skip
    if output_final_state and output_state is None:
        if state_indices is not None:
            raise GdnError("is needed with state_indices", "output_state")
        shape = (N, heads, v.shape[-1], q.shape[-1])
        output_state = new(known(q), shape, "float64" if compute == "f64" else "float32")
    if checkpoint_every_n_tokens:
        start = gathered(PREFILL, None if initial_state is None else known(initial_state), state_indices, N)
        o, final, steps = in_new_states_and_steps(
            PREFILL, start, checkpoint_every_n_tokens, prefixes=prefix_lens, state_layout="vk", **arguments
        )
        _checkpoints(state_checkpoints, checkpoint_cu_starts, checkpoint_state_indices, steps)
        if output_final_state:
            written = state_indices if output_state_indices is None else output_state_indices
            scattered(output_state, written, final, lengths_of(q, cu_seqlens))
        return (o, output_state) if output_final_state else o
    if output_state_indices is not None and initial_state is not None:
        initial_state, state_indices = gathered(PREFILL, known(initial_state), state_indices, N), None
    arguments["initial_state_indices"] = state_indices
    if not output_final_state:
        return operator(PREFILL, initial_state_source=initial_state, disable_state_update=True, **arguments)
    if initial_state is not output_state:
        written = state_indices if output_state_indices is None else output_state_indices
        arguments |= dict(output_state_pool=output_state, output_state_indices=written)
    return operator(PREFILL, initial_state_source=initial_state, **arguments), output_state


class GDNPagedPrefillSlots(NamedTuple):
    """Of each sequence: the page that it starts from (-1: zeros), the one of its final state (-1: none), the place in
    page_indices of the first page that it completes, and the tokens before the new ones."""

    state_indices: object
    output_state_indices: object
    checkpoint_cu_starts: object
    prefix_lens: object


class GDNPagedDecodeSlots(NamedTuple):
    """Of each sequence: the page that is read, and the one that is written."""

    initial_state_indices: object
    output_state_indices: object


def _int32(like, values):
    return filled(new(integers(like), (len(values),), "int32"), values)


def gdn_paged_prefill_slots(cu_seqlens, page_indices, page_indptr, page_size, last_page_len):
    """What chunk_gated_delta_rule_paged finds in a table of pages: a GDNPagedPrefillSlots."""
    ends, pages, bounds, last = (
        np.asarray(integers(x)).astype(np.int64) for x in (cu_seqlens, page_indices, page_indptr, last_page_len)
    )
    lengths, first, end = np.diff(ends), bounds[:-1], bounds[1:]
    total = (end - first - 1) * page_size + last
    prefix = total - lengths
    read = np.where(prefix > 0, pages[first + np.maximum(prefix - 1, 0) // page_size], -1)
    written = np.where((lengths > 0) & (total % page_size != 0), pages[end - 1], -1)
    return GDNPagedPrefillSlots(*(_int32(cu_seqlens, x) for x in (read, written, first + prefix // page_size, prefix)))


def gdn_paged_decode_slots(page_indices, page_indptr, last_page_len):
    """What gated_delta_rule_decode_paged finds in a table of pages: a GDNPagedDecodeSlots."""
    pages, bounds, last = (np.asarray(integers(x)) for x in (page_indices, page_indptr, last_page_len))
    end = bounds[1:] - 1
    return GDNPagedDecodeSlots(*(_int32(page_indptr, x) for x in (pages[end - (last == 1)], pages[end])))


def chunk_gated_delta_rule_paged(
    q,
    k,
    v,
    g=None,
    beta=None,
    scale=None,
    *,
    cu_seqlens,
    state_pool,
    page_indices,
    page_indptr,
    page_size,
    last_page_len,
    use_qk_l2norm_in_kernel=False,
    output=None,
    gate_domain="linear",
    use_gate_in_kernel=False,
    A_log=None,
    dt_bias=None,
    beta_is_logit=False,
    slots=None,
    compute="f32",
    num_threads=None,
):
    """output: state_pool [pages,HV,V,K] is read and written in place; a page holds the state after its last token."""
    if slots is None:
        slots = gdn_paged_prefill_slots(cu_seqlens, page_indices, page_indptr, page_size, last_page_len)
    return chunk_gated_delta_rule(
        q, k, v, g, beta, scale, state_pool, True, cu_seqlens, use_qk_l2norm_in_kernel, output, state_pool, state_pool,
        slots.checkpoint_cu_starts, page_size, state_indices=slots.state_indices, gate_domain=gate_domain,
        use_gate_in_kernel=use_gate_in_kernel, A_log=A_log, dt_bias=dt_bias, beta_is_logit=beta_is_logit,
        output_state_indices=slots.output_state_indices, checkpoint_state_indices=page_indices,
        prefix_lens=slots.prefix_lens, compute=compute, num_threads=num_threads,
    )[0]  # fmt: skip


def gated_delta_rule_decode_paged(
    q,
    k,
    v,
    A_log,
    a,
    dt_bias,
    b,
    scale=None,
    output=None,
    use_qk_l2norm=True,
    *,
    state_pool,
    page_indices,
    page_indptr,
    last_page_len,
    backend="auto",
    slots=None,
    compute="f32",
    num_threads=None,
):
    """output: a token for each sequence, which opens a page where last_page_len is 1; state_pool in place."""
    if slots is None:
        slots = gdn_paged_decode_slots(page_indices, page_indptr, last_page_len)
    return gated_delta_rule_decode_pretranspose(
        q, k, v, None, A_log, a, dt_bias, b, scale, output, use_qk_l2norm, state_pool, slots.initial_state_indices,
        slots.output_state_indices, compute=compute, num_threads=num_threads,
    )[0]  # fmt: skip


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
    state_indices=None,
    compute="f32",
    num_threads=None,
):
    """GDN-2. output [tokens, max(Hq,HV), V], or with output_final_state (output, final state). g (the log decay) and
    beta (erase) are [tokens,..,K], w (write) [tokens,..,V]; beta and w are read at q's dtype."""
    if cu_seqlens is None:
        raise GdnError("is needed", "cu_seqlens")
    k, v, _ = _grouped(q, k, v)
    v, dtype = known(v), dtype_name(known(q))
    beta, w = (
        x if x is None or dtype_name(known(x)) == dtype else filled(new(known(q), tuple(x.shape), dtype), known(x))
        for x in (beta, w)
    )
    N = len(cu_seqlens) - 1
    if state_indices is not None and initial_state is not None:
        initial_state = gathered(GDN2, known(initial_state), state_indices, N)
    o, final = in_new_states(
        GDN2, initial_state, output_final_state, q=q, k=k, v=v if w is None else wide(v) * wide(known(w)), a=g,
        erase=beta, is_kda=True, scale=scale, cu_seqlens=cu_seqlens, o=output, gate_input="log", like=q,
        use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel, preset="flashinfer_prefill", state_layout="vk",
        compute=compute, num_threads=num_threads,
    )  # fmt: skip
    if not output_final_state:
        return o
    if output_state is not None:
        scattered(output_state, state_indices, final, np.ones(N))
        final = output_state
    return o, final


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
    [N,1+S]. Sequences start from initial_state_source, a pool that is only read, where it is given.

    With checkpoint_every_n_tokens a third: state_checkpoints with the states before every block of so many tokens, or,
    in the rows that checkpoint_state_indices says, those after."""
    refuse(kg_cache=kg_cache, correction_cache=correction_cache)
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

    arguments = dict(
        q=q, k=k, v=v, a=g, b=beta, scale=scale, **gate, use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel,
        cu_seqlens=cu_seqlens, o=output, is_kda=True, beta_input="raw" if beta_is_logit else "given",
        preset="flashinfer_decode", compute=compute, num_threads=num_threads,
    )  # fmt: skip
    returned = initial_state if output_final_state and not disable_state_update else None
    if checkpoint_every_n_tokens:
        if num_spec_tokens is not None or (checkpoint_state_indices is not None and state_checkpoints is None):
            raise GdnError("needs a prefill, and with checkpoint_state_indices a pool", "state_checkpoints")
        slots = np.arange(N) if first is None else first
        if initial_state_source is None:
            start = gathered(KDA, None if initial_state is None else known(initial_state), slots, N)
        else:
            start = gathered(KDA_SOURCE, known(initial_state_source), initial_state_indices, N)
            slots = np.where(np.asarray(integers(initial_state_indices)) < 0, -1, slots)
        o, final, steps = in_new_states_and_steps(
            KDA, start, checkpoint_every_n_tokens, state_layout="vk",
            initial_state_indices=np.where(slots < 0, -1, np.arange(N)), **arguments,
        )  # fmt: skip
        if not disable_state_update:
            scattered(initial_state, slots, final, lengths_of(q, cu_seqlens))
        if checkpoint_state_indices is not None:
            _checkpoints(state_checkpoints, checkpoint_cu_starts, checkpoint_state_indices, steps)
        else:
            dtype = "float32" if start is None else dtype_name(start)
            h = before_chunks(start, steps, checkpoint_every_n_tokens, q, cu_seqlens, dtype)
            if state_checkpoints is None:
                state_checkpoints = h
            filled(state_checkpoints[: len(h)], h)
        return o, returned, state_checkpoints

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
    return operator(KDA if initial_state_source is None else KDA_SOURCE, **pools, **arguments), returned


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
