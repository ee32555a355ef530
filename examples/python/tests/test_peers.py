"""The modules under the peers' names: their arguments, what they return and write, and what they refuse."""

import inspect
import re
from pathlib import Path

import numpy as np
import pytest

import gdn_varlen
from gdn_varlen import calls, fla, flashinfer, mlx_lm, sglang, vllm
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
    mlx_lm.gated_delta_update: "q k v a b A_log dt_bias state mask",
    mlx_lm.gated_delta_kernel: "q k v g beta state mask",
}


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda function: f"{function.__module__}.{function.__name__}")
def test_signature(function):
    parameters = inspect.signature(function).parameters.values()
    assert [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD] == SIGNATURES[function].split()


@pytest.mark.parametrize("module", [fla, vllm, sglang, flashinfer, mlx_lm])
def test_everything_takes_compute_and_threads(module):
    for name, function in vars(module).items():
        if not inspect.isfunction(function) or function.__module__ != module.__name__ or name.startswith("_"):
            continue
        parameters = inspect.signature(function).parameters
        assert {"compute", "num_threads"} <= set(parameters), name
        assert parameters["compute"].kind is parameters["num_threads"].kind is inspect.Parameter.KEYWORD_ONLY


def test_what_is_missing_is_in_one_table():
    sources = "".join(Path(module.__file__).read_text() for module in (fla, vllm, sglang, flashinfer, mlx_lm))
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
    (fla.fused_recurrent_gated_delta_rule, dict(g=G, gv=draw(B, T, HV, V)), "gv"),
    (fla.fused_recurrent_gated_delta_rule, dict(g=G, gk=draw(B, T, HV, K)), "gk"),
    (fla.chunk_kda, dict(g=G, beta=BETA, return_intermediate_states=True), "return_intermediate_states"),
    (fla.fused_kda_gate, dict(), "fused_kda_gate"),
    (flashinfer.recurrent_kda, dict(g=G, beta=BETA, kg_cache=G), "kg_cache"),
    (flashinfer.chunk_gated_delta_rule2, dict(), "w"),
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
