"""vLLM's operators (0.33) of its Kimi-K3 models, argument for argument, on the CPU.

from gdn_varlen.vllm_kimi_k3 import chunk_kda_with_fused_gate, fused_recurrent_kda, fused_recurrent_kda_packed_decode

Slot 0 is reserved, and a sequence that reads it, or a negative one, is padding, whose output is 0. The decay is one for
each K row. The chunk functions round q and k to their dtype after the norm.
"""

from .arrays import dtype_name, known, new
from .calls import in_new_states, missing, operator, packed_decode
from .vllm import NAMES, chunk_kda, fused_kda_gate

FUSED = NAMES | {"a": "raw_g", "b": "raw_beta"}
CHUNKS = FUSED | {"dt_bias": "g_bias"}
PACKED = FUSED | {"initial_state_indices": "state_indices"}

kda_recoverssm_verify = missing("kda_recoverssm_verify")


def chunk_kda_with_fused_gate(
    q,
    k,
    v,
    raw_g,
    raw_beta,
    A_log,
    g_bias,
    scale=None,
    initial_state=None,
    output_final_state=False,
    lower_bound=None,
    use_qk_l2norm_in_kernel=False,
    cu_seqlens=None,
    out=None,
    *,
    compute="f32",
    num_threads=None,
    **kwargs,
):
    """(out, final state [N,HV,V,K] or None)."""
    return in_new_states(
        CHUNKS, initial_state, output_final_state, q=q, k=k, v=v, a=raw_g, b=raw_beta, A_log=A_log, dt_bias=g_bias,
        lower_bound=lower_bound, scale=scale, cu_seqlens=cu_seqlens, use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel,
        round_qk=True, o=out, is_kda=True, preset="vllm_packed_decode", state_layout="vk", null_slot=-1,
        compute=compute, num_threads=num_threads,
    )  # fmt: skip


def fused_recurrent_kda_fwd(
    q,
    k,
    v,
    g,
    beta,
    scale=None,
    initial_state=None,
    inplace_final_state=True,
    cu_seqlens=None,
    ssm_state_indices=None,
    num_accepted_tokens=None,
    use_qk_l2norm_in_kernel=True,
    A_log=None,
    dt_bias=None,
    lower_bound=None,
    use_gate_in_kernel=False,
    use_beta_sigmoid_in_kernel=False,
    out=None,
    *,
    compute="f32",
    num_threads=None,
):
    """(out, initial_state): the pool [slots,HV,V,K] in place, with a slot for each sequence or each step."""
    return _recurrent(
        NAMES, q, k, v, g, beta, initial_state, use_gate_in_kernel, A_log, dt_bias, lower_bound, scale=scale,
        cu_seqlens=cu_seqlens, ssm_state_indices=ssm_state_indices, num_accepted_tokens=num_accepted_tokens,
        use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel, o=out, compute=compute, num_threads=num_threads,
        beta_input="raw" if use_beta_sigmoid_in_kernel else "given",
    )  # fmt: skip


def fused_recurrent_kda(
    q,
    k,
    v,
    raw_g,
    raw_beta,
    A_log,
    dt_bias,
    lower_bound,
    initial_state,
    cu_seqlens,
    ssm_state_indices,
    num_accepted_tokens=None,
    out=None,
    fuse_gate=None,
    uniform_sequence_length=None,
    *,
    compute="f32",
    num_threads=None,
):
    """fused_recurrent_kda_fwd from raw gates, with q and k normalised. Fused or not, the gates are the same."""
    return _recurrent(
        FUSED, q, k, v, raw_g, raw_beta, initial_state, True, A_log, dt_bias, lower_bound, cu_seqlens=cu_seqlens,
        ssm_state_indices=ssm_state_indices, num_accepted_tokens=num_accepted_tokens, use_qk_l2norm_in_kernel=True,
        o=out, beta_input="raw", compute=compute, num_threads=num_threads,
    )  # fmt: skip


def _recurrent(names, q, k, v, g, beta, pool, raw, A_log, dt_bias, lower_bound, **arguments):
    gate = dict(A_log=A_log, dt_bias=dt_bias, lower_bound=lower_bound) if raw else dict(gate_input="log")
    o = operator(
        names, q=q, k=k, v=v, a=g, b=beta, initial_state_source=pool, is_kda=True, preset="vllm_packed_decode", **gate,
        **arguments,
    )  # fmt: skip
    return o, pool


def fused_recurrent_kda_packed_decode(
    mixed_qkv,
    raw_g,
    raw_beta,
    A_log,
    dt_bias,
    lower_bound,
    initial_state,
    state_indices,
    scale=None,
    out=None,
    *,
    compute="f32",
    num_threads=None,
):
    """(out [1,B,HV,V], initial_state): a token for each row of mixed_qkv."""
    B, (HV, V) = mixed_qkv.shape[0], initial_state.shape[1:3]
    if out is None:
        out = new(known(mixed_qkv), (1, B, HV, V), "float64" if compute == "f64" else dtype_name(known(mixed_qkv)))
    packed_decode(
        PACKED, mixed_qkv, raw_g[0], raw_beta[0], A_log, dt_bias, scale, initial_state, out[0][:, None],
        state_indices, True, is_kda=True, lower_bound=lower_bound, preset="vllm_packed_decode", compute=compute,
        num_threads=num_threads,
    )  # fmt: skip
    return out, initial_state


__all__ = [
    "chunk_kda",
    "chunk_kda_with_fused_gate",
    "fused_kda_gate",
    "fused_recurrent_kda",
    "fused_recurrent_kda_fwd",
    "fused_recurrent_kda_packed_decode",
    "kda_recoverssm_verify",
]
