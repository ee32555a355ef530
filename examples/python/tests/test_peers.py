"""The modules under the peers' names: their arguments, what they return and write, and what they refuse."""

import inspect
import re
from pathlib import Path

import numpy as np
import pytest

import gdn_varlen
from gdn_varlen import calls, fla, flashinfer, mlx_lm, sglang, vllm, vllm_kimi_k3
from gdn_varlen.calls import NotExpressible

B, T, H, HV, K, V = 2, 6, 2, 4, 16, 8
LENGTHS = [4, 0, 8]
ENDS = np.cumsum([0, *LENGTHS])


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def tensors(*lead):
    """q, k, v, a, b of a batch."""
    return dict(
        q=draw(*lead, H, K),
        k=draw(*lead, H, K, seed=1) / 4,
        v=draw(*lead, HV, V),
        a=draw(*lead, HV),
        b=draw(*lead, HV, seed=1),
    )


def same(x, y):
    return x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()


def operator(**arguments):
    return gdn_varlen.fused_sigmoid_gating_delta_rule_update(**(calls.DEFAULTS | arguments))


GATE = dict(A_log=draw(HV), dt_bias=draw(HV, seed=1))
x = tensors(B, T)
BETA = 1 / (1 + np.exp(-x["b"]))
G = -np.exp(x["a"])

# Their signatures, as far as they go by position. A * begins what they take by name only.
SIGNATURES = {
    fla.fused_recurrent_gated_delta_rule: "q k v g gk gv beta scale initial_state output_final_state "
    "use_qk_l2norm_in_kernel use_gate_in_kernel A_log dt_bias use_beta_sigmoid_in_kernel allow_neg_eigval "
    "state_v_first cu_seqlens",
    fla.chunk_gated_delta_rule: "q k v g beta scale initial_state output_final_state use_qk_l2norm_in_kernel "
    "use_beta_sigmoid_in_kernel allow_neg_eigval state_v_first cu_seqlens cu_seqlens_cpu chunk_indices cp_context",
    fla.fused_recurrent_kda: "q k v g beta A_log dt_bias scale initial_state output_final_state "
    "use_qk_l2norm_in_kernel use_gate_in_kernel use_beta_sigmoid_in_kernel allow_neg_eigval lower_bound state_v_first "
    "cu_seqlens",
    fla.chunk_kda: "q k v g beta scale initial_state output_final_state use_qk_l2norm_in_kernel use_gate_in_kernel "
    "use_beta_sigmoid_in_kernel allow_neg_eigval safe_gate lower_bound disable_recompute return_intermediate_states "
    "state_v_first cu_seqlens cu_seqlens_cpu cp_context use_graph max_num_seqs",
    fla.naive_recurrent_gated_delta_rule: "q k v beta g scale initial_state output_final_state",
    fla.naive_chunk_gated_delta_rule: "q k v g beta chunk_size scale initial_state output_final_state",
    fla.naive_recurrent_kda: "q k v g beta scale initial_state output_final_state",
    fla.naive_chunk_kda: "q k v g beta scale initial_state output_final_state chunk_size",
    vllm.fused_sigmoid_gating_delta_rule_update: "A_log a b dt_bias q k v beta threshold scale initial_state "
    "inplace_final_state cu_seqlens ssm_state_indices num_accepted_tokens use_qk_l2norm_in_kernel is_kda",
    vllm.fused_recurrent_gated_delta_rule: "q k v g beta scale initial_state inplace_final_state cu_seqlens "
    "ssm_state_indices num_accepted_tokens use_qk_l2norm_in_kernel",
    vllm.fused_recurrent_gated_delta_rule_packed_decode: "mixed_qkv a b A_log dt_bias scale initial_state out "
    "ssm_state_indices use_qk_l2norm_in_kernel",
    vllm.chunk_gated_delta_rule: "q k v g beta scale initial_state output_final_state cu_seqlens chunk_indices "
    "chunk_offsets use_qk_l2norm_in_kernel core_attn_out",
    vllm.chunk_gated_delta_rule_cpu: "query key value g beta initial_state output_final_state cu_seqlens head_first "
    "use_qk_l2norm_in_kernel initial_state_indices eps",
    vllm.fused_sigmoid_gating_delta_rule_update_cpu: "A_log dt_bias q k v a b initial_state_source "
    "initial_state_indices cu_seqlens use_qk_l2norm_in_kernel softplus_beta softplus_threshold",
    vllm.fused_sigmoid_gating_delta_rule_update_spec_cpu: "A_log dt_bias q k v a b initial_state_source "
    "spec_state_indices num_accepted_tokens cu_seqlens use_qk_l2norm_in_kernel softplus_beta softplus_threshold",
    sglang.fused_recurrent_gated_delta_rule: "q k v g beta scale initial_state output_final_state cu_seqlens "
    "use_qk_l2norm_in_kernel",
    sglang.fused_recurrent_gated_delta_rule_update: "q k v g beta scale initial_state_source initial_state_indices "
    "cu_seqlens use_qk_l2norm_in_kernel disable_state_update disable_output_calculation intermediate_states_buffer "
    "intermediate_state_indices cache_steps retrieve_parent_token",
    sglang.chunk_gated_delta_rule_cpu: "q k v g beta initial_state cu_seqlens head_first use_qk_l2norm_in_kernel "
    "initial_state_indices",
    flashinfer.gated_delta_rule_decode: "q k v state A_log a dt_bias b scale output use_qk_l2norm backend",
    flashinfer.gated_delta_rule_mtp: "q k v initial_state initial_state_indices A_log a dt_bias b scale output "
    "intermediate_states_buffer ssm_state_indices disable_state_update use_qk_l2norm output_state_indices "
    "cache_replayssm replayssm_rawv replayssm_rawk replayssm_g replayssm_beta",
    fla.fused_recurrent_gdn2: "q k v g b w A_log dt_bias scale initial_state output_final_state "
    "use_qk_l2norm_in_kernel use_gate_in_kernel lower_bound state_v_first cu_seqlens",
    fla.chunk_gdn2: "q k v g b w scale initial_state output_final_state use_qk_l2norm_in_kernel use_gate_in_kernel "
    "cu_seqlens cu_seqlens_cpu safe_gate lower_bound disable_recompute return_intermediate_states state_v_first "
    "cp_context",
    fla.fused_recurrent_comba: "q k p v g beta scale initial_state output_final_state use_qk_l2norm_in_kernel "
    "cu_seqlens",
    fla.chunk_comba: "q k v p g beta scale initial_state output_final_state use_qk_l2norm_in_kernel cu_seqlens "
    "cu_seqlens_cpu",
    fla.naive_recurrent_comba: "q k v p beta g scale initial_state output_final_state",
    fla.fused_gdn_gate: "g A_log dt_bias output_dtype",
    fla.fused_kda_gate: "g A_log dt_bias lower_bound output_dtype",
    vllm.fused_post_conv_prep: "conv_output a b A_log dt_bias num_k_heads head_k_dim head_v_dim apply_l2norm "
    "output_g_exp",
    vllm.fused_kda_gate: "g A head_k_dim g_bias beta threshold lower_bound",
    vllm.fused_gdn_gating_cpu: "A_log a b dt_bias",
    vllm_kimi_k3.fused_recurrent_kda: "q k v raw_g raw_beta A_log dt_bias lower_bound initial_state cu_seqlens "
    "ssm_state_indices num_accepted_tokens out fuse_gate uniform_sequence_length",
    vllm_kimi_k3.fused_recurrent_kda_packed_decode: "mixed_qkv raw_g raw_beta A_log dt_bias lower_bound initial_state "
    "state_indices scale out",
    sglang.fused_gdn_gating: "A_log a b dt_bias beta threshold",
    sglang.chunk_kda: "q k v g beta scale initial_state initial_state_indices use_qk_l2norm_in_kernel cu_seqlens A_log "
    "dt_bias lower_bound output_intermediate_states track_state track_chunk_idx beta_is_raw chunk_indices "
    "chunk_offsets",
    flashinfer.chunk_gated_delta_rule: "q k v g beta scale initial_state output_final_state cu_seqlens "
    "use_qk_l2norm_in_kernel output output_state state_checkpoints checkpoint_cu_starts checkpoint_every_n_tokens "
    "use_cp state_indices _cp_chunk_len backend max_seqlen",
    flashinfer.chunk_gated_delta_rule2: "q k v g beta w scale initial_state output_final_state cu_seqlens "
    "use_qk_l2norm_in_kernel output output_state",
    flashinfer.gated_delta_rule_decode_paged: "q k v A_log a dt_bias b scale output use_qk_l2norm",
    mlx_lm.compute_g: "A_log a dt_bias",
    mlx_lm.compute_lower_bound_g: "A_log a dt_bias lower_bound",
    mlx_lm.gated_delta_update: "q k v a b A_log dt_bias state mask",
    mlx_lm.gated_delta_kernel: "q k v g beta state mask",
}


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda function: f"{function.__module__}.{function.__name__}")
def test_signature(function):
    parameters = inspect.signature(function).parameters.values()
    assert [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD] == SIGNATURES[function].split()


MODULES = [fla, vllm, vllm_kimi_k3, sglang, flashinfer, mlx_lm]


@pytest.mark.parametrize("module", MODULES)
def test_everything_takes_compute_and_threads(module):
    for name, function in vars(module).items():
        if not inspect.isfunction(function) or function.__module__ != module.__name__ or name.startswith("_"):
            continue
        if name.endswith("_slots"):  # indices alone
            continue
        parameters = inspect.signature(function).parameters
        assert {"compute", "num_threads"} <= set(parameters), name
        assert parameters["compute"].kind is parameters["num_threads"].kind is inspect.Parameter.KEYWORD_ONLY


def test_what_is_missing_is_in_one_table():
    sources = "".join(Path(module.__file__).read_text() for module in MODULES)
    for name in calls.MISSING:
        assert re.search(rf'refuse\([^)]*\b{name}=|missing\("{name}"\)', sources), name


# ---- FLA


@pytest.mark.parametrize("v_first", [False, True])
@pytest.mark.parametrize("function", [fla.fused_recurrent_gated_delta_rule, fla.chunk_gated_delta_rule])
def test_fla(function, v_first):
    h0 = draw(B, HV, V, K) if v_first else draw(B, HV, K, V)
    before, pool = h0.copy(), h0.copy()
    expected = operator(
        q=x["q"], k=x["k"], v=x["v"], a=G, b=BETA, initial_state_source=pool, preset="fla",
        state_layout="vk" if v_first else "kv",
    )  # fmt: skip
    arguments = dict(g=G, beta=BETA, initial_state=h0, state_v_first=v_first)
    o, ht = function(x["q"], x["k"], x["v"], output_final_state=True, **arguments)
    assert same(o, expected) and same(ht, pool) and same(h0, before)
    o, ht = function(x["q"], x["k"], x["v"], **arguments)
    assert same(o, expected) and ht is None and same(h0, before)


def test_fla_gates():
    arguments = dict(q=x["q"], k=x["k"], v=x["v"], output_final_state=True)
    raw = operator(**x, **GATE, allow_neg_eigval=True, state_layout="kv")
    options = dict(use_gate_in_kernel=True, use_beta_sigmoid_in_kernel=True, allow_neg_eigval=True)
    o, _ = fla.fused_recurrent_gated_delta_rule(**arguments, g=x["a"], beta=x["b"], **GATE, **options)
    assert same(o, raw)
    o, _ = fla.fused_recurrent_gated_delta_rule(**arguments, beta=BETA)  # no decay
    assert same(o, operator(q=x["q"], k=x["k"], v=x["v"], a=0 * G, b=BETA, preset="fla"))
    gk = -np.exp(draw(B, T, HV, K))
    o, _ = fla.fused_recurrent_gated_delta_rule(**arguments, gk=gk, beta=BETA)
    assert same(o, fla.chunk_kda(**arguments, g=gk, beta=BETA)[0])
    columns = np.repeat(BETA[..., None], V, -1)
    o, _ = fla.fused_recurrent_gated_delta_rule(**arguments, g=G, beta=columns)
    assert np.abs(o - fla.naive_recurrent_gated_delta_rule(x["q"], x["k"], x["v"], BETA, G)[0]).max() < 1e-5


def test_fla_kda_without_A_log_or_bias():
    g = draw(B, T, HV, K)
    arguments = dict(q=x["q"], k=x["k"], v=x["v"], beta=BETA, g=g, use_gate_in_kernel=True)
    zeros = dict(A_log=np.zeros(HV, np.float32), dt_bias=np.zeros(HV * K, np.float32))
    expected, _ = fla.fused_recurrent_kda(**arguments, lower_bound=-5.0, **zeros)
    assert same(fla.fused_recurrent_kda(**arguments, lower_bound=-5.0)[0], expected)
    with pytest.raises(ValueError, match="A_log"):
        fla.fused_recurrent_kda(**arguments)


def test_fla_varlen_and_half_types():
    y = tensors(1, sum(LENGTHS))
    half = {name: value.astype(np.float16) for name, value in y.items()}
    h0 = draw(3, HV, K, V)
    o, ht = fla.fused_recurrent_gated_delta_rule(
        half["q"], half["k"], y["v"], g=-np.exp(y["a"]), beta=half["b"], initial_state=h0.astype(np.float16),
        output_final_state=True, cu_seqlens=ENDS,
    )  # fmt: skip
    assert o.dtype == np.float32 and ht.dtype == np.float32  # v's, and float32
    assert same(ht[1], h0.astype(np.float16)[1].astype(np.float32))  # a sequence without tokens


@pytest.mark.parametrize("T", [6, 0])
def test_a_sequence_without_tokens_keeps_its_state(T):
    h0 = draw(B, HV, K, V).astype(np.float16)
    few = [x[name][:, :T] for name in "qkv"]
    o, ht = fla.chunk_gated_delta_rule(*few, g=G[:, :T], beta=BETA[:, :T], initial_state=h0, output_final_state=True)
    assert o.shape == (B, T, HV, V) and same(ht, h0.astype(np.float32)) == (T == 0)
    state = draw(B, HV, V, K).astype(np.float16)
    _, new = mlx_lm.gated_delta_kernel(*few, np.exp(G[:, :T]), BETA[:, :T], state)
    assert new is not state and new.dtype == np.float16 and same(new, state) == (T == 0)


def test_fla_slots():
    pool, slots = draw(9, HV, K, V), np.array([[3, 1, 8], [2, 5, 0]])
    other, before = pool.copy(), pool.copy()
    arguments = dict(q=x["q"][:, :3], k=x["k"][:, :3], v=x["v"][:, :3])
    g, beta = np.repeat(G[:, :3, :, None], K, -1), BETA[:, :3]
    o, same_pool = fla.fused_recurrent_kda_fwd(
        **arguments, g=g, beta=beta, initial_state=pool, ssm_state_indices=slots, num_accepted_tokens=[2, 1]
    )
    assert same_pool is pool
    expected = operator(
        **arguments, a=g, b=beta, is_kda=True, preset="fla", initial_state_source=other, ssm_state_indices=slots,
        num_accepted_tokens=[2, 1],
    )  # fmt: skip
    assert same(o, expected) and same(pool, other)
    # Elsewhere: from the same slots, the state after every token.
    p, states = fla.fused_recurrent_kda_fwd(
        **arguments, g=g, beta=beta, initial_state=before, ssm_state_indices=slots, num_accepted_tokens=[2, 1],
        inplace_final_state=False, output_final_state=True,
    )  # fmt: skip
    assert same(o, p) and same(states, pool[slots.ravel()]) and same(before, draw(9, HV, K, V))


# ---- vLLM and SGLang


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_vllm_states_elsewhere(dtype):
    """inplace_final_state=False: the state after every token, in the pool's dtype; padding reads and writes none."""
    y, pool, ends = tensors(1, 8), draw(6, HV, V, K).astype(dtype), [0, 3, 4, 4, 8]
    before, slots = pool.copy(), np.array([4, 0, 3, 2])
    arguments = dict(**y, **GATE, cu_seqlens=ends, inplace_final_state=False)
    o, states = vllm.fused_sigmoid_gating_delta_rule_update(**arguments, initial_state=pool, ssm_state_indices=slots)
    assert states.shape == (8, HV, V, K) and states.dtype == dtype and same(pool, before)
    assert not o[0, 3].any() and not states[3].any()
    for n, slot in [(0, 4), (3, 2)]:
        for t in range(ends[n], ends[n + 1]):
            one = {name: value[:, ends[n] : t + 1] for name, value in y.items()}
            other = before.copy()
            expected = operator(**one, **GATE, initial_state_source=other, initial_state_indices=[slot])
            assert same(o[:, t], expected[:, -1]) and same(states[t], other[slot])
    starts = np.stack([slots * 0 + 5, slots], 1)  # the second was accepted
    arguments |= dict(ssm_state_indices=starts, initial_state=pool)
    p, _ = vllm.fused_sigmoid_gating_delta_rule_update(**arguments, num_accepted_tokens=[2, 2, 2, 2])
    assert same(o, p)
    with pytest.raises(gdn_varlen.GdnError, match="num_accepted_tokens.3"):
        vllm.fused_sigmoid_gating_delta_rule_update(**arguments, num_accepted_tokens=[2, 2, 2, 3])
    p, _ = vllm.fused_sigmoid_gating_delta_rule_update(**arguments | dict(ssm_state_indices=None))
    assert same(p[:, :3], operator(**{name: value[:, :3] for name, value in y.items()}, **GATE, state_layout="vk",
                                   initial_state_source=pool[:1].copy()))  # fmt: skip


def test_sglang_states_elsewhere():
    g, state = -np.exp(draw(B, T, HV, K)), draw(B, HV, V, K).astype(np.float16)
    other = state.copy()
    arguments = dict(q=x["q"], k=x["k"], v=x["v"], g=g, beta=BETA)
    o, new = sglang.fused_recurrent_kda(**arguments, initial_state=state, inplace_final_state=False)
    assert same(state, other)
    p, same_state = sglang.fused_recurrent_kda(**arguments, initial_state=other)
    assert same_state is other and same(o, p) and same(new, other)


def test_vllm_padding_and_slots():
    y, pool = tensors(1, 4), draw(6, HV, V, K)
    before = pool.copy()
    o, same_pool = vllm.fused_sigmoid_gating_delta_rule_update(
        **y, **GATE, initial_state=pool, cu_seqlens=np.arange(5), ssm_state_indices=np.array([4, 0, -1, 2]),
        use_qk_l2norm_in_kernel=True,
    )  # fmt: skip
    assert same_pool is pool and not o[0, 1:3].any() and o[0, 0].any()
    assert [bool((a != b).any()) for a, b in zip(pool, before)] == [False, False, True, False, True, False]
    g, beta = -np.exp(y["a"]), y["b"]
    one, two = before.copy(), before.copy()
    arguments = dict(q=y["q"], k=y["k"], v=y["v"], cu_seqlens=[0, 4])
    vllm.fused_recurrent_gated_delta_rule(
        **arguments, g=g, beta=beta, initial_state=one, ssm_state_indices=np.array([3])
    )
    operator(**arguments, a=g, b=beta, preset="vllm_recurrent", initial_state_source=two, initial_state_indices=[3])
    assert same(one, two)


@pytest.mark.parametrize("module, padding", [(vllm, [0, -1]), (sglang, [-1, -1])])
def test_packed_decode(module, padding):
    y, pool = tensors(4, 1), draw(6, HV, V, K)
    mixed = np.concatenate([y[name].reshape(4, -1) for name in "qkv"] + [draw(4, 5)], 1)[:, :-5]
    slots, other, out = (
        np.array([2, padding[0], 4, padding[1]]),
        pool.copy(),
        np.full((4, 1, HV, V), np.nan, np.float32),
    )
    result = module.fused_recurrent_gated_delta_rule_packed_decode(
        mixed, y["a"][:, 0], y["b"][:, 0], GATE["A_log"], GATE["dt_bias"], 0.3, pool, out, slots, True
    )
    assert result[0] is out and result[1] is pool and not out[1].any() and not out[3].any()
    expected = operator(
        **y, **GATE, scale=0.3, use_qk_l2norm_in_kernel=True, initial_state_source=other, padding="zero",
        initial_state_indices=np.where(slots > 0, slots, -1),
    )  # fmt: skip
    assert same(out, expected) and same(pool, other)


def test_cpu_operators():
    """Decode wants [1, batch, ...] and gives [batch, 1, ...]; both write the pool."""
    y, pool = tensors(1, 3), draw(5, HV, K, V)
    other, slots = pool.copy(), np.array([4, 0, 2], np.int32)
    o = vllm.fused_sigmoid_gating_delta_rule_update_cpu(
        GATE["A_log"], GATE["dt_bias"], y["q"], y["k"], y["v"], y["a"][0], y["b"][0], pool, slots, np.arange(4), True
    )
    assert o.shape == (3, 1, HV, V)
    expected = operator(
        **y, **GATE, initial_state_source=other, initial_state_indices=slots, cu_seqlens=np.arange(4),
        use_qk_l2norm_in_kernel=True, preset="vllm_cpu",
    )  # fmt: skip
    assert same(o[:, 0], expected[0]) and same(pool, other)
    arguments = dict(q=y["q"], k=y["k"], v=y["v"], cu_seqlens=np.array([0, 2, 3]), use_qk_l2norm_in_kernel=True)
    o, states, nothing = sglang.chunk_gated_delta_rule_cpu(
        **arguments,
        g=-np.exp(y["a"]),
        beta=y["b"],
        initial_state=pool,
        head_first=False,
        initial_state_indices=slots[:2],
    )
    expected = operator(
        **arguments, a=-np.exp(y["a"]), b=y["b"], initial_state_source=other, initial_state_indices=slots[:2],
        preset="sglang_cpu", gate_input="log", beta_input="given", l2norm_eps=1e-6,
    )  # fmt: skip
    assert nothing is None and states is pool and same(o, expected) and same(pool, other)
    rows = {name: y[name][0] for name in y}
    spec = vllm.fused_sigmoid_gating_delta_rule_update_spec_cpu(
        **rows, **GATE, initial_state_source=pool, spec_state_indices=np.array([[4, 1, 3]]), num_accepted_tokens=[0],
        cu_seqlens=[0, 3], use_qk_l2norm_in_kernel=True,
    )  # fmt: skip
    assert spec.shape == (3, HV, V)


def test_sglang():
    pool, other = draw(4, HV, V, K), draw(4, HV, V, K)
    slots = np.array([3, 1])
    o = sglang.fused_sigmoid_gating_delta_rule_update(
        GATE["A_log"], x["a"], GATE["dt_bias"], 1.0, 20.0, x["q"], x["k"], x["v"], x["b"], pool, slots
    )
    assert same(o, operator(**x, **GATE, initial_state_source=other, initial_state_indices=slots)) and same(pool, other)
    arguments = (x["q"], x["k"], x["v"], G, BETA)
    one, two, three = pool.copy(), pool.copy(), pool[slots]
    o = sglang.fused_recurrent_gated_delta_rule_update(
        *arguments, initial_state_source=one, initial_state_indices=slots
    )
    p, _, _ = sglang.chunk_gated_delta_rule(*arguments, initial_state=two, initial_state_indices=slots)
    r, states = sglang.fused_recurrent_gated_delta_rule(*arguments, initial_state=three, output_final_state=True)
    assert same(o, p) and same(o, r) and same(one, two) and same(one[slots], states) and same(three, pool[slots])


# ---- FlashInfer and mlx-lm


def test_flashinfer_decode():
    y, state = tensors(3, 1), draw(3, HV, V, K)
    turned, other = state.swapaxes(2, 3).copy(), state.copy()
    arguments = dict(**y, **GATE)
    o, same_state = flashinfer.gated_delta_rule_decode_pretranspose(**arguments, state=state)
    assert same_state is state
    assert same(o, operator(**arguments, initial_state_source=other, use_qk_l2norm_in_kernel=True)) and same(
        state, other
    )
    p, _ = flashinfer.gated_delta_rule_decode(**arguments, state=turned, scale=0)
    assert np.abs(p - o).max() < 1e-5 and np.abs(turned.swapaxes(2, 3) - state).max() < 1e-5


def test_flashinfer_mtp():
    pool, output = draw(8, HV, V, K), np.full((B, T, HV, V), 7, np.float32)
    before = pool.copy()
    arguments = dict(**x, **GATE, initial_state=pool, initial_state_indices=np.array([5, -1]), output=output)
    o, _ = flashinfer.gated_delta_rule_mtp(**arguments)
    assert o is output and (o[1] == 7).all() and (o[0] != 7).all() and same(pool, before)
    few = {name: value[:1, :3] for name, value in x.items()}
    slots = np.array([[0, 2, 4]])
    cache = np.zeros((1, 3, HV, V, K), np.float32)
    arguments = dict(**few, **GATE, initial_state=pool, initial_state_indices=np.array([5]))
    o, _ = flashinfer.gated_delta_rule_mtp(**arguments, intermediate_states_buffer=cache)
    p, _ = flashinfer.gated_delta_rule_mtp(**arguments, ssm_state_indices=slots, disable_state_update=False)
    assert same(o, p) and same(pool[slots[0]], cache[0])


def test_flashinfer_prefill():
    n = sum(LENGTHS)
    y = tensors(n)
    alpha, beta = np.exp(-np.exp(y["a"])), y["b"]
    arguments = dict(q=y["q"], k=y["k"], v=y["v"], g=alpha, beta=beta, cu_seqlens=ENDS, output_final_state=True)
    start = draw(3, HV, V, K)
    before, final = start.copy(), np.zeros((3, HV, V, K), np.float32)
    o, states = flashinfer.chunk_gated_delta_rule(**arguments, initial_state=start, output_state=final)
    assert states is final and same(start, before) and not final[1].any() and o.shape == (n, HV, V)
    pool, slots = np.zeros((6, HV, V, K), np.float32), np.array([5, 0, 3])
    pool[slots] = start
    p, _ = flashinfer.chunk_gated_delta_rule(**arguments, initial_state=pool, output_state=pool, state_indices=slots)
    assert same(o, p) and same(pool[slots][[0, 2]], final[[0, 2]]) and same(pool[0], start[1])
    # More query heads than value heads.
    queries, keys = draw(n, 4, K), draw(n, 2, K) / 4
    values, gates = draw(n, 2, V), np.repeat(alpha[:, :2], 2, 1)
    o = flashinfer.chunk_gated_delta_rule(queries, keys, values, gates, cu_seqlens=ENDS)
    each = [
        flashinfer.chunk_gated_delta_rule(
            queries[:, h : h + 1], keys[:, h // 2 : h // 2 + 1], values[:, h // 2 : h // 2 + 1], gates[:, h : h + 1],
            cu_seqlens=ENDS,
        )
        for h in range(4)
    ]  # fmt: skip
    assert same(o, np.concatenate(each, 1))


def test_flashinfer_prefill_from_pool_to_pool():
    """Of other sizes and dtypes; where nothing is written nothing is touched."""
    y, start, final = tensors(5), draw(9, HV, V, K), np.full((4, HV, V, K), 7, np.float16)
    before, expected = start.copy(), np.zeros((3, HV, V, K), np.float32)
    arguments = dict(q=y["q"], k=y["k"], v=y["v"], cu_seqlens=[0, 3, 3, 5], output_final_state=True)
    o, _ = flashinfer.chunk_gated_delta_rule(**arguments, initial_state=start[[2, 0, 3]], output_state=expected)
    slots = np.array([2, 0, 3])
    p, states = flashinfer.chunk_gated_delta_rule(
        **arguments, initial_state=start, output_state=final, state_indices=slots
    )
    assert states is final and same(o, p) and same(start, before) and (final[[0, 1]] == 7).all()
    assert same(final[slots][[0, 2]], expected[[0, 2]].astype(np.float16))
    final[:] = 7
    flashinfer.chunk_gated_delta_rule(**arguments, output_state=final, state_indices=np.array([-1, -1, 1]))
    assert (final[[0, 2, 3]] == 7).all() and (final[1] != 7).any()


def test_flashinfer_kda():
    few = {name: x[name][:, :3] for name in "qkv"}
    g, beta, pool = -np.exp(draw(B, 3, HV, K)), BETA[:, :3], draw(B * 3, HV, V, K)
    other = pool.copy()
    o, states = flashinfer.recurrent_kda(
        **few, g=g, beta=beta, initial_state=pool, num_spec_tokens=2, num_accepted_tokens=np.array([9, 1]),
        output_final_state=True,
    )  # fmt: skip
    assert states is pool
    expected = operator(
        **few, a=g, b=beta, is_kda=True, gate_input="log", beta_input="given", use_qk_l2norm_in_kernel=True,
        initial_state_source=other, ssm_state_indices=np.arange(6).reshape(2, 3), num_accepted_tokens=[3, 1],
    )  # fmt: skip
    assert same(o, expected) and same(pool, other)


@pytest.mark.parametrize("steps", [None, 3])
def test_flashinfer_kda_with_a_source(steps):
    """Read in one pool and written to another; a sequence that is padding in either does neither."""
    T, N = steps or 1, 4
    few, g, beta = tensors(N, T), -np.exp(draw(N, T, HV, K)), 1 / (1 + np.exp(-draw(N, T, HV)))
    source, pool = draw(6, HV, V, K), np.full((N * T, HV, V, K), 7, np.float32)
    slots, starts = np.arange(N * T).reshape(N, T), np.array([5, 0, 3, -1])
    slots[1] = -1
    arguments = dict(q=few["q"], k=few["k"], v=few["v"], g=g, beta=beta, output_final_state=True)
    before = source.copy()
    o, states = flashinfer.recurrent_kda(
        **arguments, initial_state=pool, ssm_state_indices=slots if steps else slots[:, 0],
        num_spec_tokens=steps and steps - 1, initial_state_source=source, initial_state_indices=starts,
    )  # fmt: skip
    assert states is pool and same(source, before)
    assert not o[[1, 3]].any() and (pool.reshape(N, T, -1)[[1, 3]] == 7).all()
    expected, last = flashinfer.recurrent_kda(**arguments, initial_state=source[[5, 0, 3, 0]])
    live = [0, 2]
    assert same(o[live], expected[live]) and same(pool[slots[live, -1]], last[live])
    p, nothing = flashinfer.recurrent_kda(
        **arguments, initial_state_source=source, initial_state_indices=starts, disable_state_update=True
    )
    assert same(p[live], expected[live]) and nothing is None and same(source, before)


def test_mlx_lm():
    state = draw(B, HV, V, K)
    before, pool = state.copy(), state.copy()
    y, new = mlx_lm.gated_delta_update(*(x[name] for name in "qkvab"), GATE["A_log"][:, None], GATE["dt_bias"], state)
    assert (
        same(y, operator(**x, **GATE, scale=1, initial_state_source=pool)) and same(new, pool) and same(state, before)
    )
    # Masked tokens leave the state alone.
    mask = np.array([[True, False, True, True, False, False], [False] * 6])
    y, new = mlx_lm.gated_delta_update(
        *(x[name] for name in "qkvab"), GATE["A_log"], GATE["dt_bias"], state, mask, compute="f64"
    )
    alone = [x[name][:1, [0, 2, 3]] for name in "qkvab"]
    expected, last = mlx_lm.gated_delta_update(*alone, GATE["A_log"], GATE["dt_bias"], state[:1], compute="f64")
    assert same(y[0, [0, 2, 3]], expected[0]) and same(new[:1], last) and np.array_equal(new[1], state[1])
    assert y.dtype == new.dtype == np.float64


# ---- Few systems' options


def test_fla_decays_of_heads_rows_and_columns():
    arguments, h0 = dict(q=x["q"], k=x["k"], v=x["v"], beta=BETA, output_final_state=True), draw(B, HV, K, V)
    gk, gv = -np.exp(draw(B, T, HV, K)), -np.exp(draw(B, T, HV, V))
    o, ht = fla.fused_recurrent_gated_delta_rule(**arguments, g=G, gk=gk, gv=gv, initial_state=h0, compute="f64")
    state, expected = h0.astype(np.float64), np.zeros((B, T, HV, V))
    for t in range(T):
        q, k = (np.repeat(x[name][:, t].astype(np.float64), HV // H, 1) for name in "qk")
        state *= np.exp(G[:, t, :, None, None]) * np.exp(gk[:, t, :, :, None]) * np.exp(gv[:, t, :, None])
        new = BETA[:, t, :, None] * (x["v"][:, t] - np.einsum("bhk,bhkv->bhv", k, state))
        state += k[..., None] * new[:, :, None]
        expected[:, t] = np.einsum("bhk,bhkv->bhv", q, state) * K**-0.5
    assert np.abs(o - expected).max() < 1e-6 and np.abs(ht - state).max() < 1e-6  # g + gk in float32
    raw, _ = fla.fused_recurrent_gated_delta_rule(**arguments, g=x["a"], gk=gk, use_gate_in_kernel=True, **GATE)
    alone = fla.fused_gdn_gate(x["a"], GATE["A_log"], GATE["dt_bias"])
    assert same(raw, fla.fused_recurrent_gated_delta_rule(**arguments, g=alone, gk=gk)[0])


def test_gdn2():
    """With b = w = beta it is KDA; the norm comes before b; FlashInfer's is FLA's."""
    g, ones = -np.exp(draw(B, T, HV, K)), np.ones((B, T, HV, 1), np.float32)
    b, w = BETA[..., None] * np.ones(K, np.float32), BETA[..., None] * np.ones(V, np.float32)
    arguments = dict(q=x["q"], k=x["k"], v=x["v"], g=g, use_qk_l2norm_in_kernel=True, initial_state=draw(B, HV, K, V))
    for two, one in [(fla.fused_recurrent_gdn2, fla.fused_recurrent_kda), (fla.chunk_gdn2, fla.chunk_kda)]:
        o, ht = two(**arguments, b=b, w=w, output_final_state=True)
        expected, h = one(**arguments, beta=BETA, output_final_state=True)
        assert np.abs(o - expected).max() < 1e-5 and np.abs(ht - h).max() < 1e-5
    b, w = draw(B, T, HV, K) * ones, draw(B, T, HV, V) * ones
    o, ht = fla.fused_recurrent_gdn2(**arguments, b=b, w=w, output_final_state=True)
    rows = {name: value[0] for name, value in (arguments | dict(beta=b, w=w)).items() if isinstance(value, np.ndarray)}
    rows["initial_state"] = rows["initial_state"][None].swapaxes(2, 3).copy()
    p, states = flashinfer.chunk_gated_delta_rule2(
        **rows, use_qk_l2norm_in_kernel=True, cu_seqlens=[0, T], output_final_state=True
    )
    assert np.abs(p - o[0]).max() < 1e-5 and np.abs(states[0].swapaxes(1, 2) - ht[0]).max() < 1e-5
    pool, out = np.zeros((4, HV, V, K), np.float32), np.full((4, HV, V, K), 7, np.float32)
    pool[2] = rows.pop("initial_state")[0]
    r, same_out = flashinfer.chunk_gated_delta_rule2(
        **rows, use_qk_l2norm_in_kernel=True, cu_seqlens=[0, T], output_final_state=True, initial_state=pool,
        output_state=out, state_indices=[2],
    )  # fmt: skip
    assert same(r, p) and same_out is out and same(out[2], states[0]) and (out[[0, 1, 3]] == 7).all()


def test_comba():
    """With p = k and no decay it is the delta rule; the kernels read before the decay, the naive recurrence after."""
    arguments, p = dict(q=x["q"], k=x["k"], v=x["v"], beta=BETA), draw(B, T, H, K, seed=2) / 4
    zeros = 0 * G
    expected, _ = fla.chunk_gated_delta_rule(**arguments, g=zeros)
    assert np.abs(fla.chunk_comba(**arguments, p=None, g=zeros)[0] - expected).max() < 1e-5
    before, after = fla.naive_chunk_comba(**arguments, p=p, g=G)[0], fla.naive_recurrent_comba(**arguments, p=p, g=G)[0]
    assert same(fla.fused_recurrent_comba(**arguments, p=p, g=G)[0], before)
    assert np.abs(before - after).max() > 1e-3
    wanted = operator(q=x["q"], k=x["k"], v=x["v"], a=G, b=BETA, k_read=p, read_before_decay=True, preset="fla")
    assert same(before, wanted)


def test_fla_states_before_chunks():
    T, lengths = 150, [70, 0, 64, 16]
    y, ends = tensors(1, T), np.cumsum([0, *lengths])
    g, beta, h0 = -np.exp(draw(1, T, HV, K)), 1 / (1 + np.exp(-y["b"])), draw(4, HV, K, V)
    arguments = dict(q=y["q"], k=y["k"], v=y["v"], g=g, beta=beta)
    o, ht, h = fla.chunk_kda(
        **arguments, initial_state=h0, output_final_state=True, return_intermediate_states=True, cu_seqlens=ends
    )
    assert h.shape == (1, 4, HV, K, V) and h.dtype == np.float32
    plain, final = fla.chunk_kda(**arguments, initial_state=h0, output_final_state=True, cu_seqlens=ends)
    assert same(o, plain) and same(ht, final) and same(ht[1], h0[1])
    first = {name: value[:, :64] for name, value in arguments.items()}
    _, state = fla.chunk_kda(**first, initial_state=h0[:1], output_final_state=True)
    assert same(h[0], np.stack([h0[0], state[0], h0[2], h0[3]]))
    halves = {name: value.astype(np.float16) if name in "qk" else value for name, value in arguments.items()}
    _, none, h = fla.chunk_gdn2(
        **{name: value[:, :100].repeat(2, 0) for name, value in halves.items() if name != "beta"},
        b=np.ones((2, 100, HV, K), np.float32), w=y["v"][:, :100].repeat(2, 0), return_intermediate_states=True,
        chunk_size=32,
    )  # fmt: skip
    assert none is None and h.shape == (2, 4, HV, K, V) and h.dtype == np.float16
    assert not h[:, 0].any() and h[:, 1:].any()


def test_sglang_states_before_chunks():
    lengths, slots = [130, 64], np.array([3, -1])
    y, ends = tensors(1, sum(lengths)), np.cumsum([0, *lengths])
    g, beta = -np.exp(y["a"]), 1 / (1 + np.exp(-y["b"]))
    pool = draw(5, HV, V, K)
    before, other = pool.copy(), pool.copy()
    arguments = dict(q=y["q"], k=y["k"], v=y["v"], g=g, beta=beta, cu_seqlens=ends)
    o, nothing, h = sglang.chunk_gated_delta_rule(**arguments, initial_state=pool, initial_state_indices=slots)
    expected = sglang.fused_recurrent_gated_delta_rule_update(
        **arguments, initial_state_source=other, initial_state_indices=slots
    )
    assert nothing is None and same(o, expected) and same(pool, other)
    part = {name: value[:, :64] for name, value in arguments.items() if name != "cu_seqlens"}
    _, one = sglang.fused_recurrent_gated_delta_rule(**part, initial_state=before[3:4], output_final_state=True)
    part = {name: value[:, 64:128] for name, value in arguments.items() if name != "cu_seqlens"}
    _, two = sglang.fused_recurrent_gated_delta_rule(**part, initial_state=one, output_final_state=True)
    assert h.shape == (1, 4, HV, V, K) and same(h[0, :3], np.stack([before[3], one[0], two[0]])) and not h[0, 3].any()
    # One state of each sequence.
    arguments["g"] = np.repeat(g[..., None], K, -1)
    track = np.full((2, HV, V, K), 7, np.float32)
    for function in (sglang.chunk_kda, sglang.chunk_kda_cpu):
        o, all_states = function(
            **arguments, initial_state=before.copy(), initial_state_indices=slots, output_intermediate_states=True,
            track_state=track, track_chunk_idx=np.array([2, -1]),
        )  # fmt: skip
        assert same(track[0], all_states[0, 2]) and (track[1] == 7).all()
        assert np.abs(all_states - h).max() < 1e-5
        alone = function(**arguments, initial_state=before.copy(), initial_state_indices=slots)
        assert same(alone, o)


def test_flashinfer_checkpoints():
    """After every n tokens, in rows one behind another or of a pool; from absolute positions with prefixes."""
    lengths, every, prefixes = [130, 64, 30], 64, np.array([0, 5, 100])
    ends = np.cumsum([0, *lengths])
    y, start = tensors(sum(lengths)), draw(3, HV, V, K)
    arguments = dict(q=y["q"], k=y["k"], v=y["v"], g=np.exp(-np.exp(y["a"])), beta=1 / (1 + np.exp(-y["b"])))

    def after(n, tokens):
        rows = {name: value[ends[n] : ends[n] + tokens] for name, value in arguments.items()}
        return flashinfer.chunk_gated_delta_rule(
            **rows, initial_state=start[n : n + 1], output_final_state=True, cu_seqlens=[0, tokens]
        )[1][0]

    arguments_of_all = arguments | dict(initial_state=start, cu_seqlens=ends, output_final_state=True)
    expected, last = flashinfer.chunk_gated_delta_rule(**arguments_of_all)
    rows = np.full((4, HV, V, K), 7, np.float32)
    o, final = flashinfer.chunk_gated_delta_rule(
        **arguments_of_all, state_checkpoints=rows, checkpoint_cu_starts=np.array([0, 2, 3, 3]),
        checkpoint_every_n_tokens=every,
    )  # fmt: skip
    assert same(o, expected) and same(final, last)
    assert same(rows[:3], np.stack([after(0, 64), after(0, 128), after(1, 64)])) and (rows[3] == 7).all()
    rows[:] = 7
    o, final = flashinfer.chunk_gated_delta_rule(
        **arguments_of_all, state_checkpoints=rows, checkpoint_cu_starts=np.array([0, 2, 3]),
        checkpoint_every_n_tokens=every, checkpoint_state_indices=np.array([3, -1, 0, 2]), prefix_lens=prefixes,
    )  # fmt: skip
    assert same(o, expected) and same(final, last)
    assert same(rows[[3, 0, 2]], np.stack([after(0, 64), after(1, 59), after(2, 28)])) and (rows[1] == 7).all()


def test_flashinfer_reads_and_writes_apart():
    y, pool = tensors(6), draw(5, HV, V, K)
    before = pool.copy()
    arguments = dict(q=y["q"], k=y["k"], v=y["v"], g=-np.exp(y["a"]), cu_seqlens=[0, 2, 4, 6], gate_domain="log")
    start = np.concatenate([0 * pool[:1], before[[4, 4]]])
    expected, last = flashinfer.chunk_gated_delta_rule(**arguments, initial_state=start, output_final_state=True)
    o, same_pool = flashinfer.chunk_gated_delta_rule(
        **arguments, initial_state=pool, output_state=pool, state_indices=np.array([-1, 4, 4]),
        output_state_indices=np.array([0, 2, -1]), output_final_state=True,
    )  # fmt: skip
    assert same_pool is pool and same(o, expected) and same(pool[[0, 2]], last[:2])
    assert same(pool[[1, 3, 4]], before[[1, 3, 4]])
    # Gates in the kernel.
    raw = dict(q=y["q"], k=y["k"], v=y["v"], cu_seqlens=[0, 6])
    x16 = y["b"].astype(np.float16)
    beta = (1 / (1 + np.exp(-x16.astype(np.float64)))).astype(np.float16).astype(np.float32)
    o = flashinfer.chunk_gated_delta_rule(
        **raw, g=y["a"], beta=x16, use_gate_in_kernel=True, beta_is_logit=True, **GATE
    )
    decay = fla.fused_gdn_gate(y["a"], **GATE)
    assert np.abs(o - flashinfer.chunk_gated_delta_rule(**raw, g=decay, gate_domain="log", beta=beta)).max() < 1e-6
    for changes, name in [
        (dict(gate_domain="log2"), "gate_domain"),
        (dict(beta_is_logit=True), "beta"),
        (dict(A_log=GATE["A_log"]), "A_log"),
        (dict(checkpoint_every_n_tokens=64), "state_checkpoints"), (dict(prefix_lens=[0]), "prefix_lens"),
        (dict(output_state_indices=[0]), "output_state_indices"),
        (dict(state_indices=[5], output_state_indices=[0], initial_state=pool, output_state=pool,
              output_final_state=True), "state_indices"),
    ]:  # fmt: skip
        with pytest.raises(gdn_varlen.GdnError) as caught:
            flashinfer.chunk_gated_delta_rule(**raw, **changes)
        assert caught.value.argument == name


def test_flashinfer_pages():
    """A sequence in two calls, over pages, is the sequence in one."""
    T, size = 100, 16
    y, pool = tensors(T), np.full((9, HV, V, K), 7, np.float32)
    arguments = dict(g=np.exp(-np.exp(y["a"])), beta=1 / (1 + np.exp(-y["b"])), **{name: y[name] for name in "qkv"})
    expected, last = flashinfer.chunk_gated_delta_rule(**arguments, cu_seqlens=[0, T], output_final_state=True)
    pages = np.array([3, 8, 1, 0, 5, 7, 2], np.int32)
    outputs = []
    for begin, end in [(0, 40), (40, 64), (64, 64), (64, 100)]:
        count = -(-end // size)
        outputs.append(flashinfer.chunk_gated_delta_rule_paged(
            **{name: value[begin:end] for name, value in arguments.items()}, cu_seqlens=[0, end - begin],
            page_size=size, state_pool=pool, page_indices=pages[:count], page_indptr=[0, count],
            last_page_len=[end - (count - 1) * size],
        ))  # fmt: skip
    assert same(np.concatenate(outputs), expected) and same(pool[2], last[0]) and (pool[[4, 6]] == 7).all()
    for i in range(6):
        n = (i + 1) * size
        _, state = flashinfer.chunk_gated_delta_rule(
            **{name: value[:n] for name, value in arguments.items()}, cu_seqlens=[0, n], output_final_state=True
        )
        assert same(pool[pages[i]], state[0])
    # A token that opens a page, and one that does not.
    few, before = tensors(2, 1), pool.copy()
    table = dict(page_indices=[3, 4, 8], page_indptr=[0, 2, 3], last_page_len=[1, 9])
    o = flashinfer.gated_delta_rule_decode_paged(**few, **GATE, **table, state_pool=pool)
    p, state = flashinfer.gated_delta_rule_decode_pretranspose(**few, **GATE, state=before[[3, 8]])
    assert same(o, p) and same(pool[[4, 8]], state) and same(pool[3], before[3])


@pytest.mark.parametrize("pool", [False, True])
def test_flashinfer_kda_checkpoints(pool):
    lengths, every = [70, 32], 32
    y, ends = tensors(1, sum(lengths)), np.cumsum([0, *lengths])
    g, beta, start = -np.exp(draw(1, sum(lengths), HV, K)), 1 / (1 + np.exp(-y["b"])), draw(2, HV, V, K)
    arguments = dict(q=y["q"], k=y["k"], v=y["v"], g=g, beta=beta, cu_seqlens=ends, output_final_state=True)
    states = start.copy()
    expected, last = flashinfer.recurrent_kda(**arguments, initial_state=states)
    rows, states = np.full((6, HV, V, K), 7, np.float32), start.copy()
    changes = dict(state_checkpoints=rows, checkpoint_cu_starts=[0, 2, 3], checkpoint_state_indices=[5, 0, 2])
    o, final, kept = flashinfer.recurrent_kda(
        **arguments, initial_state=states, checkpoint_every_n_tokens=every, **(changes if pool else {})
    )
    assert same(o, expected) and final is states and same(final, last)

    def after(n, tokens):
        part = {name: arguments[name][:, ends[n] : ends[n] + tokens] for name in "q k v g beta".split()}
        return flashinfer.recurrent_kda(**part, initial_state=start[n : n + 1].copy(), output_final_state=True)[1][0]

    if pool:
        assert kept is rows and same(rows[[5, 0, 2]], np.stack([after(0, 32), after(0, 64), after(1, 32)]))
        assert (rows[[1, 3, 4]] == 7).all()
    else:
        assert same(kept, np.stack([start[0], after(0, 32), after(0, 64), start[1]]))


def test_gates_alone():
    a, half = x["a"][0], x["b"][0].astype(np.float16)
    wide = {name: np.asarray(value, np.float64) for name, value in GATE.items()}
    g = -np.exp(wide["A_log"]) * np.log1p(np.exp(a + wide["dt_bias"]))
    beta = 1 / (1 + np.exp(-np.asarray(half, np.float64)))
    rounded = beta.astype(np.float16)
    close = lambda actual, expected: np.testing.assert_allclose(actual, expected, rtol=1e-6)  # noqa: E731
    for module in (sglang, vllm):
        actual, actual_beta = module.fused_gdn_gating_cpu(b=half, a=a, **GATE)
        assert actual.shape == actual_beta.shape == (1, T, HV) and same(actual_beta[0], rounded)
        close(actual[0], g)
    actual, actual_beta = sglang.fused_gdn_gating(GATE["A_log"], a, half, GATE["dt_bias"])
    assert actual_beta.dtype == np.float32 and same(actual_beta[0], rounded.astype(np.float32))
    close(actual[0], g)
    actual, actual_beta = vllm.fused_olmo_hybrid_gdn_gating(GATE["A_log"], a, half, GATE["dt_bias"], True)
    close(actual_beta[0], 2 * beta)
    close(fla.fused_gdn_gate(a, **GATE), g)
    assert fla.fused_gdn_gate(a, **GATE, output_dtype=np.float16).dtype == np.float16
    close(mlx_lm.compute_g(GATE["A_log"], a, GATE["dt_bias"]), np.exp(g))
    # KDA, with a lower bound and without; a rate for each K row in mlx-lm.
    raw, bias, rates = draw(T, HV, K), draw(HV, K), draw(HV, K, seed=1)
    y = raw + np.asarray(bias, np.float64)
    soft, rate = np.log1p(np.exp(y)), np.exp(wide["A_log"])[:, None]
    close(fla.fused_kda_gate(raw, GATE["A_log"], bias.reshape(-1)), -rate * soft)
    close(fla.naive_kda_lowerbound_gate(raw, None, bias.reshape(-1)), -5 / (1 + np.exp(-y)))
    bounded = -3 / (1 + np.exp(-rate * y))
    close(vllm.fused_kda_gate(raw.reshape(T, -1), GATE["A_log"], K, bias.reshape(-1), lower_bound=-3.0), bounded)
    close(mlx_lm.compute_lower_bound_g(GATE["A_log"][:, None], raw, bias, -3.0), np.exp(bounded))
    close(mlx_lm.compute_g(rates, raw, bias), np.exp(-np.exp(rates) * soft))
    few = [x[name] for name in "qkv"] + [np.stack([raw, raw]), x["b"]]
    o, _ = mlx_lm.gated_delta_update(*few, rates, bias)
    p, _ = mlx_lm.gated_delta_kernel(*few[:3], mlx_lm.compute_g(rates, few[3], bias), BETA, None)
    assert np.abs(o - p).max() < 1e-6


def test_sums_of_chunks():
    g, ends = draw(1, 10, HV, K), [0, 3, 3, 10]
    pieces = [slice(0, 3), slice(3, 7), slice(7, 10)]
    expected = np.concatenate([g[0, piece].cumsum(0) for piece in pieces]) * np.float32(1.5)
    assert same(fla.chunk_local_cumsum(g, 4, scale=1.5, cu_seqlens=ends)[0], expected)
    back = np.concatenate([g[0, piece][::-1].cumsum(0)[::-1] for piece in pieces])
    assert same(fla.chunk_local_cumsum(g, 4, reverse=True, cu_seqlens=ends)[0], back)
    rows = x["a"].reshape(B, T, HV)
    gates = fla.fused_gdn_gate(rows, **GATE)
    sums = fla.gdn_gate_chunk_cumsum(rows, GATE["A_log"], 4, dt_bias=GATE["dt_bias"], output_dtype="float16")
    assert same(sums, np.concatenate([gates[:, :4].cumsum(1), gates[:, 4:].cumsum(1)], 1).astype(np.float16))
    kda = fla.kda_gate_chunk_cumsum(g, GATE["A_log"], 16, lower_bound=-5.0)
    assert same(kda[0], fla.fused_kda_gate(g, GATE["A_log"], lower_bound=-5.0)[0].cumsum(0))


@pytest.mark.parametrize("l2norm", [False, True])
def test_post_conv_prep(l2norm):
    rows = draw(T, 2 * H * K + HV * V + 3).astype(np.float16)[:, :-3]
    a, b = x["a"][0], x["b"][0]
    q, k, v, g, beta = vllm.fused_post_conv_prep(rows, a, b, **GATE, num_k_heads=H, head_k_dim=K, head_v_dim=V,
                                                 apply_l2norm=l2norm)  # fmt: skip
    parts = [rows[:, : H * K], rows[:, H * K : 2 * H * K], rows[:, 2 * H * K :]]
    for actual, part in zip((q, k, v), parts):
        expected = part.reshape(actual.shape).astype(np.float64)
        if l2norm and actual is not v:
            expected /= np.sqrt((expected**2).sum(-1, keepdims=True) + 1e-6)
        assert actual.dtype == np.float16 and np.abs(actual - expected).max() <= 2**-11 * np.abs(expected).max()
    assert same(g, fla.fused_gdn_gate(a, **GATE)) and np.abs(beta - 1 / (1 + np.exp(-b))).max() < 1e-6
    sizes = dict(num_k_heads=H, head_k_dim=K, head_v_dim=V)
    decay = vllm.fused_post_conv_prep(rows, a, b, **GATE, **sizes, output_g_exp=True)[3]
    assert np.abs(decay - np.exp(g)).max() < 1e-6


ROUNDED = {
    "fla.chunk_gated_delta_rule": lambda q, k, o: fla.chunk_gated_delta_rule(
        q, k, x["v"], G, BETA, use_qk_l2norm_in_kernel=o),
    "fla.chunk_kda": lambda q, k, o: fla.chunk_kda(
        q, k, x["v"], np.repeat(G[..., None], K, -1), BETA, use_qk_l2norm_in_kernel=o),
    "vllm.chunk_gated_delta_rule": lambda q, k, o: vllm.chunk_gated_delta_rule(
        q, k, x["v"], G, BETA, use_qk_l2norm_in_kernel=o),
    "sglang.chunk_gated_delta_rule": lambda q, k, o: sglang.chunk_gated_delta_rule(
        q, k, x["v"], G, BETA, use_qk_l2norm_in_kernel=o),
}  # fmt: skip


@pytest.mark.parametrize("name", ROUNDED)
def test_chunks_round_q_and_k_after_the_norm(name):
    q, k = x["q"].astype(np.float16), x["k"].astype(np.float16)
    unit = gdn_varlen.prepare(
        q=q, k=k, scale=1, use_qk_l2norm_in_kernel=True, dtypes=dict(q="float16", k="float16")
    )
    assert same(ROUNDED[name](q, k, True)[0], ROUNDED[name](unit.q, unit.k, False)[0])


def test_roundings_of_decode_and_of_the_cpu():
    """beta in SGLang's packed decode and in mlx-lm, not in vLLM's; q after the scale in the chunks of the CPU."""
    y, pool = tensors(4, 1), draw(6, HV, V, K)
    mixed, b = np.concatenate([y[name].reshape(4, -1) for name in "qkv"], 1), y["b"].astype(np.float16)
    for module, rounded in ((sglang, True), (vllm, False)):
        out, states = np.zeros((4, 1, HV, V), np.float32), pool.copy()
        module.fused_recurrent_gated_delta_rule_packed_decode(
            mixed, y["a"][:, 0], b[:, 0], GATE["A_log"], GATE["dt_bias"], 0.3, states, out, np.array([2, 1, 4, 3])
        )
        expected, other = [], []
        for round_beta in (rounded, not rounded):
            o = operator(**y | dict(b=b), **GATE, scale=0.3, initial_state_source=pool.copy(), round_beta=round_beta,
                         initial_state_indices=[2, 1, 4, 3])  # fmt: skip
            (other if expected else expected).append(o)
        assert same(out, expected[0]) and not same(out, other[0])
    few = [x[name] for name in "qkva"]
    o, _ = mlx_lm.gated_delta_update(*few, x["b"].astype(np.float16), **GATE)
    assert same(o, operator(**x | dict(b=x["b"].astype(np.float16)), **GATE, scale=1, round_beta=True))
    halves = dict(query=x["q"].astype(np.float16), key=x["k"].astype(np.float16), value=x["v"])
    arguments = (G, BETA, None, False, None, False, True, None)
    o, _ = vllm.chunk_gated_delta_rule_cpu(*halves.values(), *arguments)
    unit = gdn_varlen.prepare(
        q=halves["query"], k=halves["key"], use_qk_l2norm_in_kernel=True, preset="vllm_cpu_chunk",
        dtypes=dict(q="float16", k="float16"),
    )  # fmt: skip
    p = operator(q=unit.q, k=unit.k, v=x["v"], a=G, b=BETA, scale=1, gate_input="log", beta_input="given")
    assert same(o, p)


def test_kimi_k3():
    N, steps = 3, 2
    y, pool = tensors(1, N * steps), draw(8, HV, V, K)
    g, bias, other = draw(1, N * steps, HV, K), draw(HV, K), pool.copy()
    A_log, slots = GATE["A_log"], np.array([[1, 2], [0, 5], [4, 3]])
    ends = np.arange(N + 1) * steps
    q = np.repeat(y["q"], HV // H, 2)
    arguments = dict(q=q, k=q[:, ::-1], v=y["v"])
    o, same_pool = vllm_kimi_k3.fused_recurrent_kda(
        **arguments, raw_g=g, raw_beta=y["b"], A_log=A_log, dt_bias=bias, lower_bound=-5.0, initial_state=pool,
        cu_seqlens=ends, ssm_state_indices=slots, num_accepted_tokens=[2, 1, 1],
    )  # fmt: skip
    assert same_pool is pool and not o[:, 2:4].any() and o[:, 4:].any()
    gate = vllm_kimi_k3.fused_kda_gate(g.reshape(N * steps, -1), A_log, K, bias, lower_bound=-5.0)[None]
    beta = gdn_varlen.prepare(b=y["b"]).beta
    p, _ = vllm_kimi_k3.fused_recurrent_kda_fwd(
        **arguments, g=gate, beta=beta, initial_state=other, cu_seqlens=ends, ssm_state_indices=slots,
        num_accepted_tokens=[2, 1, 1],
    )  # fmt: skip
    assert np.abs(o - p).max() < 1e-6 and np.abs(pool - other).max() < 1e-6
    start = draw(N, HV, V, K)
    o, last = vllm_kimi_k3.chunk_kda_with_fused_gate(
        **arguments, raw_g=g, raw_beta=y["b"], A_log=A_log, g_bias=bias, initial_state=start, output_final_state=True,
        cu_seqlens=ends, use_qk_l2norm_in_kernel=True,
    )  # fmt: skip
    gate = vllm_kimi_k3.fused_kda_gate(g.reshape(N * steps, -1), A_log, K, bias)[None]
    p, final = vllm_kimi_k3.chunk_kda(
        **arguments, g=gate, beta=beta, initial_state=start, output_final_state=True, cu_seqlens=ends,
        use_qk_l2norm_in_kernel=True,
    )  # fmt: skip
    assert np.abs(o - p).max() < 1e-6 and np.abs(last - final).max() < 1e-6
    rows = np.concatenate([value[0].reshape(N * steps, -1) for value in arguments.values()], 1)
    pool = draw(8, HV, V, K)
    one, two, slots = pool.copy(), pool.copy(), np.array([3, 0, 5, 1, 2, 4])
    o, _ = vllm_kimi_k3.fused_recurrent_kda_packed_decode(rows, g, y["b"], A_log, bias, None, one, slots)
    p, _ = vllm_kimi_k3.fused_recurrent_kda(
        **arguments, raw_g=g, raw_beta=y["b"], A_log=A_log, dt_bias=bias, lower_bound=None, initial_state=two,
        cu_seqlens=np.arange(N * steps + 1), ssm_state_indices=slots,
    )  # fmt: skip
    assert same(o, p) and same(one, two) and not o[0, 1].any()


# ---- What is refused


REFUSED = [
    # function, arguments, the peer's name of what is at fault
    (fla.fused_recurrent_gated_delta_rule, dict(g=G[:, :2], beta=BETA), "g"),
    (fla.fused_recurrent_gated_delta_rule, dict(g=G, beta=BETA[..., :1]), "beta"),
    (fla.fused_recurrent_gated_delta_rule, dict(g=G, initial_state=draw(1, HV, K, V)), "initial_state"),
    (fla.fused_recurrent_gated_delta_rule, dict(g=G, allow_neg_eigval=True), "allow_neg_eigval"),
    (fla.fused_recurrent_gated_delta_rule, dict(g=G, use_gate_in_kernel=True), "A_log"),
    (fla.fused_recurrent_gated_delta_rule, dict(g=G, scale=0), "scale"),
    (fla.fused_recurrent_gated_delta_rule, dict(g=G, cu_seqlens=[0, 6, 12]), "cu_seqlens"),
    (fla.fused_recurrent_gated_delta_rule, dict(g=G, gates=G), "gates"),
    (vllm.fused_recurrent_gated_delta_rule, dict(g=G), "initial_state"),
    (vllm.fused_recurrent_gated_delta_rule, dict(g=G, initial_state=draw(4, HV, V, K)), "ssm_state_indices"),
    (vllm.fused_recurrent_gated_delta_rule,
     dict(g=G, initial_state=draw(4, HV, V, K), ssm_state_indices=np.array([2, 9])), "ssm_state_indices"),
    (flashinfer.recurrent_kda, dict(g=G, beta=BETA), "g"),
]  # fmt: skip


@pytest.mark.parametrize("function, changes, argument", REFUSED)
def test_refused(function, changes, argument):
    with pytest.raises(gdn_varlen.GdnError) as caught:
        function(**(dict(q=x["q"], k=x["k"], v=x["v"]) | changes))
    assert caught.value.argument == argument and str(caught.value).startswith(argument)


MISSING = [
    (fla.chunk_gated_delta_rule, dict(g=G, beta=BETA, cp_context=object()), "cp_context"),
    (sglang.chunk_gated_delta_rule, dict(g=G, beta=BETA, head_first=True), "head_first"),
    (flashinfer.recurrent_kda, dict(g=G, beta=BETA, kg_cache=G), "kg_cache"),
    (flashinfer.fused_kda_decode, dict(), "fused_kda_decode"),
    (vllm.fused_gdn_decode_post_conv_mtp_triton, dict(), "fused_gdn_decode_post_conv_mtp_triton"),
]


@pytest.mark.parametrize("function, changes, argument", MISSING)
def test_not_expressible(function, changes, argument):
    with pytest.raises(NotImplementedError) as caught:
        function(**(dict(q=x["q"], k=x["k"], v=x["v"]) | changes))
    assert isinstance(caught.value, NotExpressible) and caught.value.argument == argument
    assert str(caught.value) == f"{argument}: {calls.MISSING[argument]}"


def test_float64():
    o, ht = fla.fused_recurrent_gated_delta_rule(
        x["q"], x["k"], x["v"], g=G, beta=BETA, output_final_state=True, compute="f64", num_threads=1
    )
    assert o.dtype == ht.dtype == np.float64
    p, h = fla.naive_recurrent_gated_delta_rule(x["q"], x["k"], x["v"], BETA, G, output_final_state=True)
    assert 0 < np.abs(o - p).max() < 1e-5 and 0 < np.abs(ht - h).max() < 1e-5
    chunks, _ = fla.chunk_gated_delta_rule(x["q"], x["k"], x["v"], G, BETA, compute="f32_chunks")
    assert chunks.dtype == np.float32 and np.abs(o - chunks).max() < 1e-5
