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


def test_broadcast_inputs():
    q = np.broadcast_to(draw(1, 1, H, K), (1, sum(LENGTHS), H, K))
    assert same(call(q=q)[0], call(q=q.copy())[0])


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
