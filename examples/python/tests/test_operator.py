"""The wrapper itself: what is refused, what is not copied, what stays the same."""

import threading
import time

import numpy as np
import pytest

import gdn_varlen
from gdn_varlen import GdnError, fused_sigmoid_gating_delta_rule_update, library

H, HV, K, V = 2, 4, 16, 8
LENGTHS = [3, 0, 5]


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def inputs(T=sum(LENGTHS), slots=5):
    """Positional arguments and cu_seqlens of a small packed call."""
    positional = dict(
        A_log=draw(HV), a=draw(1, T, HV), dt_bias=draw(HV, seed=1), softplus_beta=1.0, softplus_threshold=20.0,
        q=draw(1, T, H, K), k=draw(1, T, H, K, seed=1), v=draw(1, T, HV, V), b=draw(1, T, HV, seed=1),
        initial_state_source=draw(slots, HV, V, K), initial_state_indices=np.array([3, 1, 0], np.int32),
    )  # fmt: skip
    return positional | dict(use_qk_l2norm_in_kernel=True, cu_seqlens=np.cumsum([0, *LENGTHS]))


def call(**changes):
    arguments = inputs() | changes
    o = fused_sigmoid_gating_delta_rule_update(**arguments)
    return o, arguments["initial_state_source"]


def same(x, y):
    return x.tobytes() == y.tobytes()


def test_positional_order_is_the_triton_wrapper_s():
    import inspect

    names = list(inspect.signature(fused_sigmoid_gating_delta_rule_update).parameters)
    assert names[:17] == (
        "A_log a dt_bias softplus_beta softplus_threshold q k v b initial_state_source initial_state_indices scale "
        "use_qk_l2norm_in_kernel cu_seqlens is_kda lower_bound disable_state_update"
    ).split()


def test_pool_is_updated_in_place_and_nothing_else_is():
    arguments = inputs()
    before = {name: np.copy(value) for name, value in arguments.items()}
    o = fused_sigmoid_gating_delta_rule_update(**arguments)
    assert o.dtype == np.float32 and o.shape == arguments["v"].shape
    pool = arguments.pop("initial_state_source")
    changed = (pool != before["initial_state_source"]).any((1, 2, 3))
    assert changed.tolist() == [True, False, False, True, False]  # the sequence of slot 1 has no tokens
    for name, value in arguments.items():
        assert np.array_equal(value, before[name]), name


def test_the_formula():
    """One token from a zero state, by hand."""
    x = {name: np.full(shape, value, np.float32) for name, shape, value in [
        ("A_log", 1, 0), ("a", (1, 1, 1), 0), ("dt_bias", 1, 0), ("b", (1, 1, 1), 0),
        ("q", (1, 1, 1, 2), 1), ("k", (1, 1, 1, 2), 1), ("v", (1, 1, 1, 1), 3),
    ]}  # fmt: skip
    o = fused_sigmoid_gating_delta_rule_update(
        **x, softplus_beta=1, softplus_threshold=20, initial_state_source=None, initial_state_indices=None, scale=0.25
    )
    assert o.item() == 0.25 * 2 * (3 * 0.5)  # scale * (q . k) * (beta * v)


def more():
    """The inputs of few systems."""
    T = sum(LENGTHS)
    arrays = dict(k_read=draw(1, T, H, K, seed=2), erase=draw(1, T, HV, K), gv=-np.abs(draw(1, T, HV, V)))
    return arrays | dict(token_mask=np.arange(T)[None] % 3 != 1)


def recurrence(
    q, k, v, g, beta, state, k_read=None, erase=1.0, gv=None, token_mask=None, read_before_decay=False,
    round_state=lambda S: S,
):  # fmt: skip
    """One sequence of [T, HV, ...] with state [HV, V, K], in float64, by the formulas: (o, [state after a token])."""
    o, S, states = np.zeros(v.shape), state.astype(np.float64), []
    k_read = (k if k_read is None else k_read) * erase
    for t in range(len(q)):
        decayed = S * np.exp(g[t])[:, None, None] * (1 if gv is None else np.exp(gv[t])[..., None])
        read = ((S if read_before_decay else decayed) * k_read[t][:, None]).sum(-1)
        new = decayed + (beta[t][:, None] * (v[t] - read))[..., None] * k[t][:, None]
        if token_mask is None or token_mask[t]:
            S, o[t] = round_state(new), (new * q[t][:, None]).sum(-1)
        states.append(S)
    return o, states


OPTIONS = {
    "k_read": dict(k_read=0),
    "erase": dict(erase=0),
    "both": dict(k_read=0, erase=0),
    "gv": dict(gv=0),
    "token_mask": dict(token_mask=0),
    "read_before_decay": dict(read_before_decay=True),
    "all but the last": dict(k_read=0, erase=0, gv=0, token_mask=0),
    "round_state": dict(round_state=True),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
@pytest.mark.parametrize("compute", ["f32", "f64"])
def test_options_by_their_formulas(options, compute):
    options = {name: more().get(name, value) for name, value in options.items()}
    half = "round_state" in options
    arguments, T = inputs(), sum(LENGTHS)
    g, beta = -np.abs(arguments["a"]), 1 / (1 + np.exp(-arguments["b"]))
    pool = arguments["initial_state_source"]
    pool = pool.astype(np.float16 if half else np.float64 if compute == "f64" else np.float32)
    before, cache = pool.astype(np.float64), np.zeros((3, 2, HV, V, K), pool.dtype)
    o, _ = call(
        **options, a=g, b=beta, gate_input="log", beta_input="given", initial_state_source=pool, compute=compute,
        use_qk_l2norm_in_kernel=False, intermediate_states_buffer=cache, step_interval=2, scale=1,
    )  # fmt: skip
    bound = dict(rtol=0, atol=1e-12 if compute == "f64" else 1e-4)
    if half:
        options["round_state"] = lambda S: S.astype(np.float16).astype(np.float64)
        bound["atol"] = 1e-12 if compute == "f64" else 0.02
    wide = dict(q=arguments["q"], k=arguments["k"], v=arguments["v"], g=g, beta=beta) | options
    wide = {name: x[0].astype(bool if x.dtype == bool else np.float64) if isinstance(x, np.ndarray) else x
            for name, x in wide.items()}  # fmt: skip
    for name in {"q", "k", "k_read"} & set(wide):
        wide[name] = np.repeat(wide[name], HV // H, 1)
    for n, (slot, begin, end) in enumerate(zip([3, 1, 0], [0, 3, 3], [3, 3, T])):
        part = {name: x[begin:end] if isinstance(x, np.ndarray) else x for name, x in wide.items()}
        expected, states = recurrence(**part, state=before[slot])
        np.testing.assert_allclose(o[0, begin:end], expected, **bound)
        np.testing.assert_allclose(pool[slot], (states or [before[slot]])[-1], **bound)
        for step in range((end - begin) // 2):  # the token that is left over belongs to no step
            np.testing.assert_allclose(cache[n, step], states[2 * step + 1], **bound)


def test_steps_in_slots_and_the_final_state():
    arguments = dict(initial_state_indices=[4, -1, 5], ssm_state_indices=[[0, -1], [-1, -1], [2, 3]])
    pool = draw(8, HV, V, K)
    cache = np.zeros((3, 2, HV, V, K), np.float32)
    expected, other = call(
        initial_state_indices=[4, -1, 5], initial_state_source=pool.copy(), intermediate_states_buffer=cache,
        step_interval=2, output_state_indices=[6, -1, 7],
    )  # fmt: skip
    o, states = call(**arguments, initial_state_source=pool, step_interval=2, output_state_indices=[6, -1, 7])
    assert same(o, expected) and same(states[6:], other[6:]) and same(states[[0, 2, 3]], cache[[0, 2, 2], [0, 0, 1]])
    assert same(states[[1, 4, 5]], other[[1, 4, 5]])


def test_masks():
    """Bools and bytes, [tokens] and [batch, token]; a row that is masked stays as it was."""
    mask = more()["token_mask"]
    o = np.full((1, sum(LENGTHS), HV, V), 7, np.float32)
    expected = call(token_mask=mask)
    pairs = {name: x.reshape((2, 4, *x.shape[2:])) for name, x in inputs().items() if name in "q k v a b".split()}
    o_pairs, _ = call(**pairs, token_mask=mask.reshape(2, 4))
    assert same(o_pairs, expected[0])
    for same_mask in (mask[0], mask.astype(np.uint8) * 3, np.repeat(mask, 2, 1)[:, ::2], mask[:, ::-1].copy()[:, ::-1]):
        assert all(map(same, call(token_mask=same_mask), expected))
    call(token_mask=mask, o=o)
    assert (o[~mask] == 7).all() and same(o[mask], expected[0][mask]) and not expected[0][~mask].any()
    for wrong in (mask[:, 1:].copy(), mask.astype(np.int32), mask.astype(np.float32)):
        with pytest.raises(GdnError, match="token_mask"):
            call(token_mask=wrong)


def to_bfloat16(x):
    """Its bits, rounded to nearest even."""
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bfloat16(x):
    return (x.astype(np.uint32) << 16).view(np.float32)


def test_rounding():
    """What is rounded inside is what is rounded before."""
    arguments = inputs()
    halves = {name: arguments[name].astype(np.float16) for name in ("q", "k", "b")}
    x = gdn_varlen.prepare(**halves, use_qk_l2norm_in_kernel=True, scale=1)
    q, k, beta = (y.astype(np.float16).astype(np.float32) for y in (x.q, x.k, x.beta))
    plain = dict(q=q, k=k, use_qk_l2norm_in_kernel=False)
    assert same(call(**halves, round_qk=True, o=np.zeros_like(arguments["v"]))[0], call(**plain, b=halves["b"])[0])
    scaled = (x.q * np.float32(0.3)).astype(np.float16).astype(np.float32)
    o, _ = call(**halves, round_qk=True, round_q_scaled=True, scale=0.3, o=np.zeros_like(arguments["v"]))
    np.testing.assert_allclose(o, call(**plain | dict(q=scaled), b=halves["b"], scale=1)[0], rtol=0, atol=1e-4)
    o, _ = call(b=halves["b"], round_beta=True)
    assert same(o, call(b=beta, beta_input="given")[0]) and not same(o, call(b=halves["b"])[0])
    with pytest.raises(GdnError, match="rounding"):
        call(initial_state_source=None, initial_state_indices=None, round_state=True)


# ---- The gates alone


@pytest.mark.parametrize("kda", [False, True])
@pytest.mark.parametrize("lower_bound", [None, -3.0])
def test_prepared_gates(kda, lower_bound):
    T, last = sum(LENGTHS), (K,) if kda else ()
    arguments = dict(A_log=draw(HV), a=draw(1, T, HV, *last), dt_bias=draw(HV, *last), b=draw(1, T, HV))
    x = gdn_varlen.prepare(**arguments, is_kda=kda, lower_bound=lower_bound)
    rate = np.exp(arguments["A_log"].astype(np.float64)).reshape(HV, *([1] if kda else []))
    raw = arguments["a"].astype(np.float64) + arguments["dt_bias"]
    g = -rate * np.log1p(np.exp(raw)) if lower_bound is None else lower_bound / (1 + np.exp(-rate * raw))
    np.testing.assert_allclose(x.g, g, rtol=1e-6)
    np.testing.assert_allclose(x.decay, np.exp(g), rtol=1e-6)
    np.testing.assert_allclose(x.beta, 1 / (1 + np.exp(-arguments["b"])), rtol=1e-6)
    assert x.g.dtype == x.beta.dtype == np.float32 and x.g.shape == arguments["a"].shape and x.q is x.k_read is None
    wide = gdn_varlen.prepare(**arguments, is_kda=kda, lower_bound=lower_bound, compute="f64")
    assert wide.g.dtype == np.float64 and np.abs(wide.g - g).max() < 1e-13


def test_prepared_gates_are_the_operator_s():
    arguments = inputs()
    names = ("A_log", "a", "dt_bias", "b", "q", "k")
    x = gdn_varlen.prepare(**{name: arguments[name] for name in names}, use_qk_l2norm_in_kernel=True, scale=1)
    expected, state = call(scale=1)
    given = dict(a=x.decay, b=x.beta, gate_input="decay", beta_input="given", scale=1)
    assert all(map(same, call(**given), (expected, state)))
    o, _ = call(**given, q=x.q, k=x.k, use_qk_l2norm_in_kernel=False)
    assert np.abs(o - expected).max() < 1e-6
    np.testing.assert_allclose((x.k**2).sum(-1), 1, rtol=1e-5)


def test_prepared_shapes_dtypes_and_refusals():
    b = draw(7, HV)
    x = gdn_varlen.prepare(b=b, allow_neg_eigval=True, dtypes=dict(beta="float16"))
    assert x.beta.shape == b.shape and x.beta.dtype == np.float16 and 1 < x.beta.max() < 2 and x.g is None
    q = draw(2, 3, H, K)
    keys = gdn_varlen.prepare(q=q, k=q, k_read=-q, use_qk_l2norm_in_kernel=True, dtypes=dict(k="bfloat16"))
    assert same(keys.k, to_bfloat16(-keys.k_read)) and keys.q.shape == q.shape
    np.testing.assert_allclose(keys.q * K**0.5, -keys.k_read, rtol=1e-6)
    assert same(from_bfloat16(keys.k), from_bfloat16(to_bfloat16(-keys.k_read)))
    decay = gdn_varlen.prepare(a=np.float32([[0.5, 1]]), gate_input="decay")
    assert decay.g is None and decay.decay.tolist() == [[0.5, 1]]
    assert gdn_varlen.prepare() == gdn_varlen.Prepared()
    for argument, arguments in {
        "A_log": dict(a=b),
        "b": dict(a=b, A_log=draw(HV), b=b[:3]),
        "q": dict(q=draw(K)),
        "a": dict(a=b.astype(np.int32), A_log=draw(HV)),
        "lower_bound": dict(a=b, A_log=draw(HV), lower_bound=1.0),
    }.items():
        with pytest.raises(GdnError) as caught:
            gdn_varlen.prepare(**arguments)
        assert caught.value.argument == argument


def test_two_pools():
    """States are read in a float16 pool and written to a float32 one, which holds what one float32 pool would."""
    pool = draw(5, HV, V, K).astype(np.float16)
    one, two = pool.astype(np.float32), np.zeros((3, HV, V, K), np.float32)
    slots = [3, 1, 0]
    in_place, _ = call(initial_state_source=one, initial_state_indices=slots)
    apart, _ = call(initial_state_source=pool.copy(), initial_state_indices=slots, output_state_pool=two)
    assert same(in_place, apart)
    assert same(one[[3, 0]], two[[0, 2]]) and not two[1].any()  # the sequence of slot 1 has no tokens
    none, _ = call(a=None, A_log=None, dt_bias=None)
    assert same(none, call(a=np.ones((1, 8, HV), np.float32), gate_input="decay")[0])


REFUSED = [
    # what, argument, index, other
    (dict(initial_state_indices=[3, 1, 3]), "initial_state_indices", 2, 0),
    (dict(initial_state_indices=[3, 1, 5]), "initial_state_indices", 2, -1),
    (dict(initial_state_indices=[3, 1]), "initial_state_indices", -1, -1),
    (dict(initial_state_indices=[0.5, 1, 2]), "initial_state_indices", -1, -1),
    (dict(cu_seqlens=[0, 3, 2, 8]), "cu_seqlens", 2, -1),
    (dict(cu_seqlens=[0, 3, 4, 9]), "cu_seqlens", 3, -1),
    (dict(k=draw(1, 8, H, K + 1)), "k", -1, -1),
    (dict(v=draw(1, 8, 3, V)), "num_value_heads", -1, -1),
    (dict(a=draw(1, 7, HV)), "a", -1, -1),
    (dict(A_log=draw(HV + 1)), "A_log", -1, -1),
    (dict(q=draw(1, 8, H, K).astype(np.int32)), "q", -1, -1),
    (dict(q=draw(1, 8, H, K).astype(np.float64)), "q", -1, -1),
    (dict(initial_state_source=draw(5, HV, K, V)), "initial_state_source", -1, -1),
    (dict(initial_state_source=draw(5, HV, V, 2 * K)[..., ::2]), "initial_state_source", -1, -1),
    (dict(scale=-1), "scale", -1, -1),
    (dict(scale=float("nan")), "scale", -1, -1),
    (dict(softplus_beta=0), "softplus_beta", -1, -1),
    (dict(lower_bound=1), "lower_bound", -1, -1),
    (dict(state_layout="hkv"), "state_layout", -1, -1),
    (dict(preset=None), "state_layout", -1, -1),
    (dict(preset="triton"), "preset", -1, -1),
    (dict(isa="layout_not_set"), "isa", -1, -1),
    (dict(o=draw(1, 8, HV, K)), "o", -1, -1),
    (dict(intermediate_states_buffer=draw(3, 5, HV, V, K), cache_steps=6), "cache_steps", -1, -1),
]


@pytest.mark.parametrize("changes, argument, index, other", REFUSED)
def test_refused(changes, argument, index, other):
    arguments = inputs() | changes
    if changes.get("v") is not None:  # what follows from it
        arguments.update(a=draw(1, 8, 3), b=draw(1, 8, 3), A_log=draw(3), dt_bias=draw(3), initial_state_source=None)
    pool = arguments["initial_state_source"]
    before = np.copy(pool)
    with pytest.raises(ValueError, match=argument) as caught:
        fused_sigmoid_gating_delta_rule_update(**arguments)
    error = caught.value
    assert isinstance(error, GdnError)
    assert (error.argument, error.index, error.other) == (argument, index, other)
    assert error.status.startswith("GDN_ERROR_")
    assert pool is None or np.array_equal(pool, before)


def test_read_only_memory_is_not_written():
    pool, o = inputs()["initial_state_source"], np.zeros((1, 8, HV, V), np.float32)
    pool.flags.writeable = o.flags.writeable = False
    with pytest.raises(ValueError, match="initial_state_source"):
        call(initial_state_source=pool)
    with pytest.raises(ValueError, match="^o: "):
        call(o=o)
    call(initial_state_source=pool, disable_state_update=True)


def test_views_are_used_where_they_lie():
    """A packed projection, a padded pool and a strided output give the bits of their contiguous copies."""
    T = sum(LENGTHS)
    packed = draw(1, T, 2 * H * K + HV * V + 2 * HV)
    q, k, v, a, b = np.split(packed, np.cumsum([H * K, H * K, HV * V, HV]), axis=-1)
    q, k, v = q.reshape(1, T, H, K), k.reshape(1, T, H, K), v.reshape(1, T, HV, V)
    assert all(np.shares_memory(x, packed) for x in (q, k, v, a, b))
    slots = draw(5, HV * V * K + 7)
    pool = slots[:, : HV * V * K].reshape(5, HV, V, K)
    assert np.shares_memory(pool, slots)
    copy = pool.copy()
    rows = np.zeros((1, T, HV, V + 3), np.float32)

    o, _ = call(q=q, k=k, v=v, a=a, b=b, initial_state_source=pool, o=rows[..., :V])
    expected, _ = call(**{n: x.copy() for n, x in dict(q=q, k=k, v=v, a=a, b=b).items()}, initial_state_source=copy)
    assert same(o.copy(), expected) and same(pool.copy(), copy)
    assert not rows[..., V:].any()


COPIED = {
    "fortran": np.asfortranarray,
    "strided": lambda x: np.repeat(x, 2, -1)[..., ::2],
    "reversed": lambda x: x[:, ::-1].copy()[:, ::-1],
    "byte order": lambda x: x.astype(x.dtype.newbyteorder()),
    "unaligned": lambda x: np.frombuffer(b" " + x.tobytes(), x.dtype, offset=1).reshape(x.shape),
}


@pytest.mark.parametrize("change", COPIED)
def test_inputs_that_must_be_copied(change):
    arguments = inputs()
    changed = {name: COPIED[change](arguments[name]) for name in ("q", "k", "v")}
    assert all(np.array_equal(changed[name], arguments[name]) for name in changed)
    assert same(call(**changed)[0], call()[0])


BROADCAST = [
    (name, axis) for name in ("q", "k", "v", "a", "b", "k_read", "erase", "gv") for axis in (1, 2)
] + [("A_log", 0), ("dt_bias", 0), ("token_mask", 1)]  # fmt: skip


@pytest.mark.parametrize("name, axis", BROADCAST)
def test_broadcast_inputs(name, axis, monkeypatch):
    """One element for all tokens, or all heads: the same bits as its copies, and none is made."""
    arrays = inputs() | more()
    shape = list(arrays[name].shape)
    x = np.broadcast_to(arrays[name].take([0], axis), shape)
    expected = call(**more() | {name: x.copy()})
    monkeypatch.setattr(gdn_varlen.arrays, "contiguous", None)
    assert all(map(same, call(**more() | {name: x}), expected))


@pytest.mark.parametrize("name, axis", BROADCAST)
def test_broadcast_tensors(name, axis, monkeypatch):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x = (inputs() | more())[name]
    one, o = x.take([0], axis), np.zeros_like(inputs()["v"])
    expected = call(**more() | {name: np.broadcast_to(one, x.shape).copy()})
    monkeypatch.setattr(gdn_varlen.arrays, "contiguous", None)
    assert all(map(same, call(**more() | {name: torch.from_numpy(one).expand(x.shape)}, o=o), expected))


def test_what_cannot_be_broadcast():
    """Columns are copied; what is written is refused."""
    v = np.broadcast_to(draw(1, sum(LENGTHS), HV, 1), (1, sum(LENGTHS), HV, V))
    assert same(call(v=v)[0], call(v=v.copy())[0])
    with pytest.raises(GdnError, match="initial_state_source"):
        call(initial_state_source=np.broadcast_to(draw(1, HV, V, K), (5, HV, V, K)))


def test_shapes_of_the_gates():
    arguments = inputs()
    expected, _ = call()
    assert same(call(a=arguments["a"][0], b=arguments["b"][0])[0], expected)
    T = sum(LENGTHS)
    a, dt_bias = draw(1, T, HV, K), draw(HV, K)
    kda, _ = call(a=a, dt_bias=dt_bias, is_kda=True)
    assert not same(kda, expected)
    assert same(call(a=a.reshape(T, HV * K), dt_bias=dt_bias.reshape(-1), is_kda=True)[0], kda)
    assert same(call(a=a.reshape(1, T, HV * K), dt_bias=dt_bias, is_kda=True)[0], kda)
    columns, _ = call(b=np.repeat(arguments["b"][..., None], V, -1))
    assert np.abs(columns - expected).max() < 1e-5


def test_adjacent_axes_may_be_one():
    arguments = inputs()
    T, expected = sum(LENGTHS), call()
    flat = {name: arguments[name].reshape(-1) for name in ("a", "b", "A_log", "dt_bias")}
    o, pool = call(**flat)
    assert same(o, expected[0]) and same(pool, expected[1])
    o, pool = call(A_log=arguments["A_log"][None, None, :, None])
    assert same(o, expected[0])
    rows = {name: arguments[name][0] for name in "qkv"}  # [tokens, ...]
    o, pool = call(**rows)
    assert o.shape == (T, HV, V) and same(o, expected[0][0]) and same(pool, expected[1])
    pairs = {name: arguments[name].reshape(2, T // 2, *arguments[name].shape[2:]) for name in "qkvab"}
    mine = np.zeros((2, T // 2, HV, V), np.float32)  # two rows, one behind the other
    o, pool = call(**pairs, o=mine)
    assert o is mine and same(o.reshape(1, T, HV, V), expected[0]) and same(pool, expected[1])
    with pytest.raises(GdnError, match="a copy would be written"):
        call(**pairs, o=np.zeros((2, T, HV, V), np.float32)[:, : T // 2])
    with pytest.raises(GdnError, match="a: "):
        call(a=arguments["a"].swapaxes(1, 2).copy())
    pool = arguments["initial_state_source"]
    for flat in (pool.reshape(5, -1).copy(), pool.reshape(5 * HV, V, K).copy(), pool.reshape(-1).copy()):
        o, changed = call(initial_state_source=flat)
        assert same(o, expected[0]) and changed is flat and flat.tobytes() == expected[1].tobytes()
    padded = np.zeros((5 * HV, V, 2 * K), np.float32)[..., :K]  # rows apart
    with pytest.raises(GdnError, match="initial_state_source"):
        call(initial_state_source=padded)


def test_what_may_be_left_out():
    arguments = inputs()
    assert same(call(dt_bias=None)[0], call(dt_bias=np.zeros(HV, np.float32))[0])
    assert same(call(A_log=None, lower_bound=-2.0)[0], call(A_log=np.zeros(HV, np.float32), lower_bound=-2.0)[0])
    zeros = np.zeros_like(arguments["a"])
    assert same(call(a=None, gate_input="decay")[0], call(a=zeros, gate_input="log")[0])
    assert same(call(scale=0)[0], call()[0])
    for missing in (dict(A_log=None), dict(a=None)):
        with pytest.raises(GdnError) as caught:
            call(**missing)
        assert caught.value.argument == next(iter(missing))


def test_one_slot_for_each_sequence():
    """ssm_state_indices with one axis: the final state alone, of any number of tokens."""
    expected = call()
    o, pool = call(initial_state_indices=None, ssm_state_indices=np.array([3, 1, 0]))
    assert same(o, expected[0]) and same(pool, expected[1])


class Foreign:
    """Another library's array: DLPack and a shape."""

    def __init__(self, x):
        self.x, self.shape = x, x.shape

    def __dlpack__(self, **options):
        return self.x.__dlpack__()

    def __dlpack_device__(self):
        return self.x.__dlpack_device__()


def test_arrays_of_other_libraries():
    arguments, expected = inputs(), call()
    names = ("q", "k", "v", "a", "b", "A_log", "dt_bias")
    o, pool = call(**{name: Foreign(arguments[name]) for name in names})
    assert same(o, expected[0]) and same(pool, expected[1])
    o, _ = call(**{name: memoryview(arguments[name]) for name in names})
    assert same(o, expected[0])
    strided = np.zeros((1, sum(LENGTHS), H, 3 * K), np.float32)[..., K : 2 * K]
    strided[...] = arguments["q"]
    assert same(call(q=Foreign(strided), initial_state_indices=Foreign(np.array([3, 1, 0])))[0], expected[0])
    with pytest.raises(GdnError, match="initial_state_source: it is written, and read-only"):
        call(initial_state_source=Foreign(arguments["initial_state_source"]))
    for wrong in (arguments["q"].tolist(), "q"):
        with pytest.raises(GdnError, match="q: an array in the CPU's memory is needed, and this is a (list|str)"):
            call(q=wrong)


def test_indices_of_any_integer_type():
    expected, pool = call()
    for kind in (np.int64, np.int16, np.uint8, list, tuple):
        convert = kind if kind in (list, tuple) else lambda x, kind=kind: np.asarray(x, kind)
        o, changed = call(initial_state_indices=convert([3, 1, 0]), cu_seqlens=convert([0, 3, 3, 8]))
        assert same(o, expected) and same(changed, pool)


def test_rows_of_no_sequence_are_zero():
    o, _ = call(cu_seqlens=[0, 1, 1, 4])
    assert o[:, :4].any() and not o[:, 4:].any()
    assert call(initial_state_indices=[-1, 1, 0])[0][:, :3].any()
    assert not call(initial_state_indices=[-1, 1, 0], padding="zero")[0][:, :3].any()
    assert not call(initial_state_indices=[0, 1, 2], preset="vllm")[0][:, :3].any()  # slot 0 is its null slot
    assert call(initial_state_indices=[0, 1, 2], preset="vllm", null_slot=-1)[0][:, :3].any()


def test_empty():
    o = call(q=draw(1, 0, H, K), k=draw(1, 0, H, K), v=draw(1, 0, HV, V), a=draw(1, 0, HV), b=draw(1, 0, HV),
             cu_seqlens=[0, 0, 0, 0])[0]  # fmt: skip
    assert o.shape == (1, 0, HV, V)


def test_float64_is_the_oracle():
    pool = inputs()["initial_state_source"]
    o, state = call()
    o64, state64 = call(compute="f64", initial_state_source=pool.astype(np.float64))
    assert o64.dtype == np.float64
    assert 0 < np.abs(o - o64).max() < 1e-6 * np.abs(o64).max()
    assert 0 < np.abs(state - state64).max() < 1e-6 * np.abs(state64).max()


def test_presets():
    """A preset is the same as its options one by one, and the options win."""
    assert {"sglang", "sglang_kv", "vllm", "fla", "ggml", "mlx_lm", "transformers"} <= set(gdn_varlen.presets())
    for name, options in gdn_varlen.presets().items():
        changes = dict(state_layout="kv") if options["state_layout"] == "vk" else dict(state_layout="vk")
        for x, y in ((dict(preset=name), options), (dict(preset=name) | changes, options | changes)):
            pools = [draw(5, HV, K, K)] * 2  # K = V
            v = draw(1, sum(LENGTHS), HV, K)
            results = [call(v=v, initial_state_source=pool.copy(), **z) for pool, z in zip(pools, (x, y))]
            assert all(map(same, *results)), name
    a = -np.abs(inputs()["a"])
    ggml, _ = call(preset="ggml", a=a, l2norm_eps=0.5)
    options = dict(state_layout="vk", head_map="tiled", gate_input="log", beta_input="given")
    assert same(ggml, call(preset=None, **options, a=a, l2norm_form="sum_plus_eps", l2norm_eps=0.5)[0])
    assert not same(ggml, call(preset="ggml", a=a, l2norm_eps=0.5, head_map="grouped")[0])
    pool = inputs()["initial_state_source"].swapaxes(-1, -2).copy()
    kv, state = call(preset="sglang_kv", initial_state_source=pool)
    expected, expected_state = call()
    np.testing.assert_allclose(kv, expected, atol=1e-6)
    np.testing.assert_allclose(state.swapaxes(-1, -2), expected_state, atol=1e-6)


def test_isa():
    plain = call(isa="plain")
    selected = library.LIB.gdn_isa_name(library.LIB.gdn_isa_selected()).decode()
    assert all(map(same, plain, call())) and all(map(same, plain, call(isa=selected)))
    other = {"neon", "avx512"} - {selected}
    with pytest.raises(GdnError, match="isa"):
        call(isa=other.pop())


def large(T=256):
    """A call of some milliseconds."""
    return dict(
        A_log=draw(16), a=draw(1, T, 16), dt_bias=draw(16), softplus_beta=1.0, softplus_threshold=20.0,
        q=draw(1, T, 8, 64), k=draw(1, T, 8, 64, seed=1), v=draw(1, T, 16, 64), b=draw(1, T, 16),
        use_qk_l2norm_in_kernel=True, initial_state_source=draw(3, 16, 64, 64),
        initial_state_indices=[2, 0], cu_seqlens=[0, T // 3, T],
    )  # fmt: skip


def test_threads_give_the_same_bits():
    results = []
    for threads in (1, 2, 3, 16, None):
        arguments = large()
        results.append((fused_sigmoid_gating_delta_rule_update(**arguments, num_threads=threads),
                        arguments["initial_state_source"]))  # fmt: skip
    assert all(same(x, y) for result in results for x, y in zip(result, results[0]))


def test_calls_from_several_threads():
    expected = fused_sigmoid_gating_delta_rule_update(**large())
    results = [None] * 4

    def work(i):
        results[i] = fused_sigmoid_gating_delta_rule_update(**large())

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same(o, expected) for o in results)


def test_the_interpreter_runs_meanwhile():
    """A single-threaded call of the oracle releases the interpreter's lock: this thread gets to count."""
    arguments = large(512)
    done = threading.Event()

    def work():
        fused_sigmoid_gating_delta_rule_update(**arguments, compute="f64", num_threads=1)
        done.set()

    begin = time.perf_counter()
    thread = threading.Thread(target=work)
    thread.start()
    longest, last = 0.0, time.perf_counter()
    while not done.is_set():
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    thread.join()
    assert longest < 0.5 * (time.perf_counter() - begin)


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="no fork() here")
def test_after_fork():
    """The pool's threads stay in the parent; a child starts its own."""
    import os

    expected = fused_sigmoid_gating_delta_rule_update(**large(), num_threads=2)
    child = os.fork()
    if child == 0:
        os._exit(0 if same(fused_sigmoid_gating_delta_rule_update(**large(), num_threads=2), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0
