"""vLLM's operators (0.33), argument for argument, on the CPU: those of its Triton kernels, and its CPU operators.

from gdn_varlen.vllm import fused_sigmoid_gating_delta_rule_update, fused_recurrent_gated_delta_rule

Slot 0 is reserved, and a sequence that reads it, or a negative one, is padding: its output rows are 0 here, where vLLM
leaves them as they were allocated. The CPU operators know no padding. The chunk functions round q and k to their dtype
after the norm; those of the CPU round q after the scale. gdn_varlen.vllm_kimi_k3 has the functions of that model.
"""

import numpy as np

from .arrays import contiguous, dtype_name, integers, known
from .calls import in_new_states, in_states_of_tokens, missing, operator, packed_decode, prepared, refuse
from .operator import GdnError

NAMES = {
    "a": "g",
    "b": "beta",
    "o": "out",
    "initial_state_source": "initial_state",
    "initial_state_indices": "ssm_state_indices",
}
RAW = NAMES | {"a": "a", "b": "b", "softplus_beta": "beta", "softplus_threshold": "threshold"}
CPU_CHUNK = {"a": "g", "b": "beta", "q": "query", "k": "key", "v": "value", "initial_state_source": "initial_state"}

fused_gdn_decode_post_conv_mtp_triton = missing("fused_gdn_decode_post_conv_mtp_triton")


def fused_post_conv_prep(
    conv_output,
    a,
    b,
    A_log,
    dt_bias,
    num_k_heads,
    head_k_dim,
    head_v_dim,
    apply_l2norm=True,
    output_g_exp=False,
    *,
    compute="f32",
    num_threads=None,
):
    """(q, k [L,H,K], v [L,HV,V], g, beta [L,HV]) of conv_output [L, H*K + H*K + HV*V]. q and k are normalised, and of
    its dtype; g is the log decay, or with output_g_exp its exponential."""
    conv_output = known(conv_output)
    (L, width), HV, keys = conv_output.shape, len(A_log), num_k_heads * head_k_dim
    if width != 2 * keys + HV * head_v_dim:
        raise GdnError(f"its rows of {width} are not q, k and {HV} heads of {head_v_dim}", "conv_output")
    q, k = (conv_output[:, i * keys : (i + 1) * keys].reshape((L, num_k_heads, head_k_dim)) for i in range(2))
    v = contiguous(conv_output[:, 2 * keys :]).reshape((L, HV, head_v_dim))
    dtype = "float64" if compute == "f64" else dtype_name(conv_output)
    x = prepared(
        {"q": "conv_output", "k": "conv_output"}, A_log=A_log, a=a, dt_bias=dt_bias, b=b, q=q, k=k, scale=1,
        use_qk_l2norm_in_kernel=apply_l2norm, preset="vllm", dtypes=dict(q=dtype, k=dtype), compute=compute,
    )  # fmt: skip
    return x.q, x.k, v, x.decay if output_g_exp else x.g, x.beta


def fused_kda_gate(
    g,
    A,
    head_k_dim,
    g_bias=None,
    beta=1.0,
    threshold=20.0,
    lower_bound=None,
    *,
    compute="f32",
    num_threads=None,
):
    """The log decay [..., H, head_k_dim] of g [..., H * head_k_dim]."""
    g = known(g)
    return prepared(
        RAW | {"A_log": "A", "a": "g", "dt_bias": "g_bias"}, A_log=A, a=g.reshape((*g.shape[:-1], -1, head_k_dim)),
        dt_bias=g_bias, softplus_beta=beta, softplus_threshold=threshold, lower_bound=lower_bound, is_kda=True,
        preset="vllm", compute=compute,
    ).g  # fmt: skip


def fused_olmo_hybrid_gdn_gating(
    A_log, a, b, dt_bias, allow_neg_eigval=False, beta=1.0, threshold=20.0, *, compute="f32", num_threads=None
):
    """(g, beta), both [1, batch, HV] and float32: the log decay and the sigmoid of b, doubled with allow_neg_eigval."""
    x = prepared(
        RAW, A_log=A_log, a=a, b=b, dt_bias=dt_bias, allow_neg_eigval=allow_neg_eigval, softplus_beta=beta,
        softplus_threshold=threshold, preset="vllm", compute=compute,
    )  # fmt: skip
    return x.g[None], x.beta[None]


def fused_gdn_gating_cpu(A_log, a, b, dt_bias, *, compute="f32", num_threads=None):
    """(g [1, batch, HV] in float32, beta [1, batch, HV] in b's dtype), which is rounded once here."""
    dtypes = {} if compute == "f64" else dict(beta=dtype_name(known(b)))
    x = prepared({}, A_log=A_log, a=a, b=b, dt_bias=dt_bias, preset="vllm_cpu", dtypes=dtypes, compute=compute)
    return x.g[None], x.beta[None]


def _on_pool(names, initial_state, inplace_final_state, ssm_state_indices, num_accepted_tokens=None, **arguments):
    """(o, initial_state); without inplace_final_state (o, the state after every token), in initial_state's dtype."""
    if initial_state is None:
        raise GdnError("is needed", "initial_state")
    _one_batch(**arguments)
    if not inplace_final_state:
        if ssm_state_indices is not None:  # slot 0 is the null slot of the pool, and a row like any other of the result
            slots = np.asarray(integers(ssm_state_indices))
            ssm_state_indices = np.where(slots > 0, slots, -1)
        arguments |= dict(state_layout="vk", null_slot=-1, state_dtype=dtype_name(known(initial_state)))
        return in_states_of_tokens(names, initial_state, ssm_state_indices, num_accepted_tokens, **arguments)
    if ssm_state_indices is None:
        raise GdnError("is needed with inplace_final_state", "ssm_state_indices")
    o = operator(
        names, initial_state_source=initial_state, ssm_state_indices=ssm_state_indices,
        num_accepted_tokens=num_accepted_tokens, **arguments,
    )  # fmt: skip
    return o, initial_state


def _one_batch(q, cu_seqlens, **_):
    if cu_seqlens is not None and q.shape[0] != 1:
        raise GdnError(f"the batch is {q.shape[0]}, and with cu_seqlens it is 1", "cu_seqlens")


def fused_sigmoid_gating_delta_rule_update(
    A_log,
    a,
    b,
    dt_bias,
    q,
    k,
    v,
    beta=1.0,
    threshold=20.0,
    scale=None,
    initial_state=None,
    inplace_final_state=True,
    cu_seqlens=None,
    ssm_state_indices=None,
    num_accepted_tokens=None,
    use_qk_l2norm_in_kernel=False,
    is_kda=False,
    *,
    compute="f32",
    num_threads=None,
):
    """(o, initial_state): the pool [slots,HV,V,K] is updated in place, in one slot for each sequence or each step."""
    return _on_pool(
        RAW, initial_state, inplace_final_state, ssm_state_indices, A_log=A_log, a=a, b=b, dt_bias=dt_bias, q=q, k=k,
        v=v, softplus_beta=beta, softplus_threshold=threshold, scale=scale, cu_seqlens=cu_seqlens,
        num_accepted_tokens=num_accepted_tokens, use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel, is_kda=is_kda,
        preset="vllm", compute=compute, num_threads=num_threads,
    )  # fmt: skip


def fused_recurrent_gated_delta_rule(
    q,
    k,
    v,
    g,
    beta=None,
    scale=None,
    initial_state=None,
    inplace_final_state=True,
    cu_seqlens=None,
    ssm_state_indices=None,
    num_accepted_tokens=None,
    use_qk_l2norm_in_kernel=False,
    *,
    compute="f32",
    num_threads=None,
):
    """(o, initial_state). g is the log decay, beta [B,T,HV] or [B,T,HV,V]."""
    return _on_pool(
        NAMES, initial_state, inplace_final_state, ssm_state_indices, q=q, k=k, v=v, a=g, b=beta, scale=scale,
        cu_seqlens=cu_seqlens, num_accepted_tokens=num_accepted_tokens, use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel,
        preset="vllm_recurrent", compute=compute, num_threads=num_threads,
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
    """(out, initial_state). Padding gives rows of zeros; beta is not rounded."""
    return packed_decode(
        RAW, mixed_qkv, a, b, A_log, dt_bias, scale, initial_state, out, ssm_state_indices, use_qk_l2norm_in_kernel,
        preset="vllm_packed_decode", compute=compute, num_threads=num_threads,
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
    cu_seqlens=None,
    chunk_indices=None,
    chunk_offsets=None,
    use_qk_l2norm_in_kernel=False,
    core_attn_out=None,
    *,
    compute="f32",
    num_threads=None,
):
    """(o, final state [N,HV,V,K] or None): initial_state is only read."""
    _one_batch(q, cu_seqlens)
    return in_new_states(
        NAMES | {"o": "core_attn_out"}, initial_state, output_final_state, q=q, k=k, v=v, a=g, b=beta, scale=scale,
        cu_seqlens=cu_seqlens, use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel, round_qk=True, o=core_attn_out,
        preset="vllm", state_layout="vk", null_slot=-1, gate_input="log", beta_input="given", compute=compute,
        num_threads=num_threads,
    )  # fmt: skip


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
    ssm_state_indices=None,
    num_accepted_tokens=None,
    out=None,
    sigmoid_beta=False,
    a_log=None,
    g_bias=None,
    compute_gate=False,
    lower_bound=-5.0,
    *,
    compute="f32",
    num_threads=None,
    **kwargs,
):
    """(o, initial_state). g [B,T,HV,K] is the log decay, or with compute_gate the gate's input."""
    gate = dict(A_log=a_log, dt_bias=g_bias, lower_bound=lower_bound) if compute_gate else {}
    return _on_pool(
        NAMES | {"A_log": "a_log", "dt_bias": "g_bias"}, initial_state, inplace_final_state, ssm_state_indices, q=q,
        k=k, v=v, a=g, b=beta, scale=scale, use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel, cu_seqlens=cu_seqlens,
        num_accepted_tokens=num_accepted_tokens, o=out, is_kda=True, preset="vllm", **gate,
        gate_input="raw" if compute_gate else "log", beta_input="raw" if sigmoid_beta else "given", compute=compute,
        num_threads=num_threads,
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
    cu_seqlens=None,
    *,
    compute="f32",
    num_threads=None,
    **kwargs,
):
    """(o, final state [N,HV,V,K] or None)."""
    return in_new_states(
        NAMES, initial_state, output_final_state, q=q, k=k, v=v, a=g, b=beta, scale=scale, cu_seqlens=cu_seqlens,
        use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel, is_kda=True, round_qk=True, preset="vllm", state_layout="vk",
        null_slot=-1, gate_input="log", beta_input="given", compute=compute, num_threads=num_threads,
    )  # fmt: skip


def chunk_kda_with_fused_gate(
    q,
    k,
    v,
    raw_g,
    beta,
    A_log,
    g_bias,
    scale=None,
    initial_state=None,
    output_final_state=False,
    lower_bound=None,
    use_qk_l2norm_in_kernel=False,
    cu_seqlens=None,
    *,
    compute="f32",
    num_threads=None,
    **kwargs,
):
    """(o, final state [N,HV,V,K] or None)."""
    return in_new_states(
        NAMES | {"a": "raw_g", "dt_bias": "g_bias"}, initial_state, output_final_state, q=q, k=k, v=v, a=raw_g, b=beta,
        A_log=A_log, dt_bias=g_bias, lower_bound=lower_bound, scale=scale, cu_seqlens=cu_seqlens,
        use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel, is_kda=True, round_qk=True, preset="vllm", state_layout="vk",
        null_slot=-1, beta_input="given", compute=compute, num_threads=num_threads,
    )  # fmt: skip


def chunk_gated_delta_rule_cpu(
    query,
    key,
    value,
    g,
    beta,
    initial_state,
    output_final_state,
    cu_seqlens,
    head_first,
    use_qk_l2norm_in_kernel,
    initial_state_indices,
    eps=1e-5,
    *,
    compute="f32",
    num_threads=None,
):
    """(o, initial_state): the pool [slots,HV,K,V] is updated in place."""
    refuse(head_first=head_first)
    o = operator(
        CPU_CHUNK, q=query, k=key, v=value, a=g, b=beta, initial_state_source=initial_state,
        initial_state_indices=initial_state_indices, cu_seqlens=cu_seqlens, l2norm_eps=eps,
        use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel, round_qk=True, round_q_scaled=True, preset="vllm_cpu_chunk",
        compute=compute, num_threads=num_threads,
    )  # fmt: skip
    return o, initial_state


def fused_sigmoid_gating_delta_rule_update_cpu(
    A_log,
    dt_bias,
    q,
    k,
    v,
    a,
    b,
    initial_state_source,
    initial_state_indices,
    cu_seqlens,
    use_qk_l2norm_in_kernel,
    softplus_beta=1.0,
    softplus_threshold=20.0,
    *,
    compute="f32",
    num_threads=None,
):
    """o [B,1,HV,V] of q and k [1,B,H,K], v [1,B,HV,V], a token for each sequence; the pool [slots,HV,K,V] in place."""
    if q.shape[0] != 1:
        raise GdnError(f"it has {q.shape[0]} tokens a sequence, and this is a step of one", "q")
    B, HV, V = v.shape[1:]
    o = operator(
        {}, A_log=A_log, dt_bias=dt_bias, q=q.reshape(B, 1, *q.shape[2:]), k=k.reshape(B, 1, *k.shape[2:]),
        v=v.reshape(B, 1, HV, V), a=a, b=b, initial_state_source=initial_state_source,
        initial_state_indices=initial_state_indices, use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel,
        softplus_beta=softplus_beta, softplus_threshold=softplus_threshold, preset="vllm_cpu", compute=compute,
        num_threads=num_threads,
    )  # fmt: skip
    return o


def fused_sigmoid_gating_delta_rule_update_spec_cpu(
    A_log,
    dt_bias,
    q,
    k,
    v,
    a,
    b,
    initial_state_source,
    spec_state_indices,
    num_accepted_tokens,
    cu_seqlens,
    use_qk_l2norm_in_kernel,
    softplus_beta=1.0,
    softplus_threshold=20.0,
    *,
    compute="f32",
    num_threads=None,
):
    """o [tokens,HV,V] of q and k [tokens,H,K], v [tokens,HV,V]; the pool [slots,HV,K,V] in place, a slot a step. None
    accepted counts as one; the state is not rounded to the pool's dtype between the steps."""
    num_accepted_tokens = np.maximum(np.asarray(integers(num_accepted_tokens)), 1)
    return operator(
        {"ssm_state_indices": "spec_state_indices"}, A_log=A_log, dt_bias=dt_bias, q=q, k=k, v=v, a=a, b=b,
        initial_state_source=initial_state_source, ssm_state_indices=spec_state_indices,
        num_accepted_tokens=num_accepted_tokens, cu_seqlens=cu_seqlens, use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel,
        softplus_beta=softplus_beta, softplus_threshold=softplus_threshold, preset="vllm_cpu", compute=compute,
        num_threads=num_threads,
    )  # fmt: skip
