"""FLA's operators against the references in its package, by its own measure and bounds.

The shapes, gates and bounds are those that its tests have; one sequence of the references' at a time where they know no
cu_seqlens, and their heads repeated where they know no groups.
"""

import pytest
import torch
import torch.nn.functional as F
from fla.ops.comba import chunk_comba, fused_recurrent_comba
from fla.ops.comba.naive import naive_chunk_comba
from fla.ops.gated_delta_rule import chunk_gated_delta_rule, fused_recurrent_gated_delta_rule
from fla.ops.gated_delta_rule.gate import fused_gdn_gate, naive_gdn_gate
from fla.ops.gated_delta_rule.naive import naive_chunk_gated_delta_rule, naive_recurrent_gated_delta_rule
from fla.ops.gdn2 import chunk_gdn2, fused_recurrent_gdn2
from fla.ops.gdn2.naive import naive_chunk_gdn2, naive_recurrent_gdn2
from fla.ops.kda import chunk_kda, fused_recurrent_kda
from fla.ops.kda.fused_recurrent import fused_recurrent_kda_fwd
from fla.ops.kda.gate import fused_kda_gate, naive_kda_gate, naive_kda_lowerbound_gate
from fla.ops.kda.naive import naive_chunk_kda, naive_recurrent_kda
from fla.utils.testing import assert_close

SHAPES = [  # B, T, H, HV, D
    (1, 63, 1, 1, 64),
    (2, 500, 4, 4, 60),
    (2, 1000, 2, 8, 128),
    (3, 1024, 2, 2, 128),
    (4, 1024, 3, 3, 128),
    (4, 2048, 4, 4, 64),
]
SHORT = [(1, 63, 1, 1, 64), (2, 100, 4, 4, 60), (2, 130, 2, 8, 128)]  # the reference is slow
LENGTHS = [[15], [256, 244, 500], [15, 85, 200]]
BOUND = {torch.float32: 0.002, torch.float16: 0.005, torch.bfloat16: 0.005}


def inputs(B, T, H, HV, D, dtype, kda=False, normalizer=1.0, seed=42, sequences=None):
    torch.manual_seed(seed)
    q, k = torch.rand(B, T, H, D, dtype=dtype), torch.rand(B, T, H, D, dtype=dtype)
    v, beta = torch.rand(B, T, HV, D, dtype=dtype), torch.rand(B, T, HV).sigmoid().to(dtype)
    g = F.logsigmoid(torch.rand(B, T, HV, *([D] if kda else []))) / normalizer
    return q, k, v, beta, g, torch.randn(sequences or B, HV, D, D)


def normalised(x):
    return F.normalize(x.float(), p=2, dim=-1).to(x.dtype)


def grouped(x, HV):
    return x.repeat_interleave(HV // x.shape[2], 2)


def reference(q, k, v, beta, g, h0, **options):
    HV = v.shape[2]
    arguments = grouped(q, HV), grouped(k, HV), v, beta, g
    return naive_recurrent_gated_delta_rule(*arguments, initial_state=h0, output_final_state=True, **options)


def check(expected, actual, bound):
    for name, x, y in zip(("o", "ht"), expected, actual):
        assert_close(name, x, y, bound)


@pytest.mark.parametrize("shape, normalizer, scale", zip(SHAPES, [1, 0.1, 1, 0.1, 1, 10], [1, 1, 1, 0.1, None, 1]))
def test_fused_recurrent(shape, normalizer, scale):
    q, k, v, beta, g, h0 = inputs(*shape, torch.float32, normalizer=normalizer)
    expected = reference(q, normalised(k), v, beta, g, h0, scale=scale)
    actual = fused_recurrent_gated_delta_rule(
        q, normalised(k), v, g, beta=beta, scale=scale, initial_state=h0, output_final_state=True
    )
    check(expected, actual, 0.002)


@pytest.mark.parametrize("shape", SHORT)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("l2norm", [False, True])
@pytest.mark.parametrize("function", [chunk_gated_delta_rule, fused_recurrent_gated_delta_rule])
def test_half_types(function, shape, dtype, l2norm):
    q, k, v, beta, g, h0 = inputs(*shape, dtype)
    expected = reference(normalised(q), normalised(k), v, beta, g, h0)
    q, k = (q, k) if l2norm else (normalised(q), normalised(k))
    options = dict(initial_state=h0, output_final_state=True, use_qk_l2norm_in_kernel=l2norm)
    actual = function(q, k, v, g=g, beta=beta, **options)
    assert actual[0].dtype == dtype and actual[1].dtype == torch.float32
    check(expected, actual, 0.005)


@pytest.mark.parametrize("shape", SHORT)
def test_naive_chunk_agrees(shape):
    q, k, v, beta, g, h0 = inputs(*shape, torch.float32)
    HV = v.shape[2]
    expected = naive_chunk_gated_delta_rule(
        grouped(q, HV), grouped(normalised(k), HV), v, g, beta, initial_state=h0, output_final_state=True
    )
    check(
        expected, chunk_gated_delta_rule(q, normalised(k), v, g, beta, initial_state=h0, output_final_state=True), 0.002
    )


@pytest.mark.parametrize("shape", SHORT)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("function", [chunk_gated_delta_rule, fused_recurrent_gated_delta_rule])
def test_gate_in_kernel(function, shape, bias):
    q, k, v, beta, g, h0 = inputs(*shape, torch.float32)
    A_log, raw = torch.rand(shape[3]).mul(16).log(), torch.randn_like(g)
    dt_bias = torch.randn(shape[3]) if bias else None
    expected = reference(q, normalised(k), v, beta, naive_gdn_gate(raw, A_log, dt_bias), h0)
    options = dict(initial_state=h0, output_final_state=True, use_gate_in_kernel=True, A_log=A_log, dt_bias=dt_bias)
    check(expected, function(q, normalised(k), v, g=raw, beta=beta, **options), 0.002)


@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("function", [chunk_gated_delta_rule, fused_recurrent_gated_delta_rule])
def test_beta_sigmoid(function, negative):
    q, k, v, beta, g, h0 = inputs(*SHORT[2], torch.float32)
    raw = torch.randn_like(beta)
    expected = reference(q, normalised(k), v, raw.sigmoid() * (2 if negative else 1), g, h0)
    options = dict(use_beta_sigmoid_in_kernel=True, allow_neg_eigval=negative)
    actual = function(q, normalised(k), v, g=g, beta=raw, initial_state=h0, output_final_state=True, **options)
    check(expected, actual, 0.005)


@pytest.mark.parametrize("function", [chunk_gated_delta_rule, fused_recurrent_gated_delta_rule])
def test_state_v_first(function):
    q, k, v, beta, g, h0 = inputs(*SHORT[2], torch.float32)
    options = dict(g=g, beta=beta, output_final_state=True)
    o, ht = function(q, normalised(k), v, initial_state=h0, **options)
    turned = h0.transpose(-1, -2).contiguous()
    o_v, ht_v = function(q, normalised(k), v, initial_state=turned, state_v_first=True, **options)
    assert_close("o", o, o_v, 1e-4)
    assert_close("ht", ht, ht_v.transpose(-1, -2), 1e-4)


def in_parts(reference, lengths, tensors, h0):
    """One sequence of the packed tensors after the other."""
    parts = [reference(*(x[:, a : a + n] for x in tensors), h0[i : i + 1]) for i, (a, n) in enumerate(starts(lengths))]
    return [torch.cat([part[0] for part in parts], 1), torch.cat([part[1] for part in parts])]


def starts(lengths):
    return [(sum(lengths[:i]), n) for i, n in enumerate(lengths)]


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("H, HV, D", [(4, 4, 60), (2, 4, 128)])
@pytest.mark.parametrize("function", [chunk_gated_delta_rule, fused_recurrent_gated_delta_rule])
def test_varlen(function, lengths, H, HV, D):
    q, k, v, beta, g, h0 = inputs(1, sum(lengths), H, HV, D, torch.float16, sequences=len(lengths))
    expected = in_parts(reference, lengths, (q, normalised(k), v, beta, g), h0)
    ends = torch.tensor([0, *lengths]).cumsum(0)
    options = dict(initial_state=h0, output_final_state=True, cu_seqlens=ends)
    check(expected, function(q, normalised(k), v, g=g, beta=beta, **options), 0.005)


# ---- KDA


def kda_reference(q, k, v, beta, g, h0, **options):
    return naive_recurrent_kda(q, k, v, g, beta, initial_state=h0, output_final_state=True, **options)


@pytest.mark.parametrize("shape", SHORT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("l2norm", [False, True])
@pytest.mark.parametrize("function", [chunk_kda, fused_recurrent_kda])
def test_kda(function, shape, dtype, l2norm):
    q, k, v, beta, g, h0 = inputs(*shape, dtype, kda=True)
    expected = kda_reference(normalised(q), normalised(k), v, beta, g, h0)
    q, k = (q, k) if l2norm else (normalised(q), normalised(k))
    options = dict(initial_state=h0, output_final_state=True, use_qk_l2norm_in_kernel=l2norm)
    check(expected, function(q, k, v, g, beta, **options), BOUND[dtype])


@pytest.mark.parametrize("shape", [(2, 128, 2, 4, 64), (1, 192, 4, 4, 128)])
def test_kda_naive_chunk_agrees(shape):
    q, k, v, beta, g, h0 = inputs(*shape, torch.float32, kda=True)
    k = normalised(k)
    expected = naive_chunk_kda(q, k, v, g, beta, initial_state=h0, output_final_state=True)
    check(expected, chunk_kda(q, k, v, g, beta, initial_state=h0, output_final_state=True), 0.002)


@pytest.mark.parametrize(
    "lower_bound, A, bias", [(None, True, True), (None, True, False), (-5.0, True, True), (-5.0, False, False)]
)
@pytest.mark.parametrize("function", [chunk_kda, fused_recurrent_kda])
def test_kda_gate_in_kernel(function, lower_bound, A, bias):
    B, T, H, HV, D = 2, 150, 2, 4, 64
    q, k, v, beta, g, h0 = inputs(B, T, H, HV, D, torch.float32, kda=True)
    raw = torch.randn_like(g)
    A_log, dt_bias = torch.randn(HV) if A else None, torch.randn(HV * D) if bias else None
    if lower_bound is None:
        gate = naive_kda_gate(raw, A_log, dt_bias)
    else:
        gate = naive_kda_lowerbound_gate(raw, A_log, dt_bias, lower_bound)
    expected = kda_reference(q, normalised(k), v, beta, gate, h0)
    options = dict(use_gate_in_kernel=True, A_log=A_log, dt_bias=dt_bias, lower_bound=lower_bound)
    check(
        expected, function(q, normalised(k), v, raw, beta, initial_state=h0, output_final_state=True, **options), 0.002
    )


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("function", [chunk_kda, fused_recurrent_kda])
def test_kda_varlen(function, lengths):
    q, k, v, beta, g, h0 = inputs(1, sum(lengths), 2, 4, 64, torch.float16, kda=True, sequences=len(lengths))
    expected = in_parts(kda_reference, lengths, (q, normalised(k), v, beta, g), h0)
    ends = torch.tensor([0, *lengths]).cumsum(0)
    options = dict(initial_state=h0, output_final_state=True, cu_seqlens=ends)
    check(expected, function(q, normalised(k), v, g, beta, **options), 0.005)


@pytest.mark.parametrize("steps", [1, 3])
def test_kda_slots(steps):
    """A pool, a slot for each step, and drafts that were accepted."""
    N, H, D = 5, 4, 64
    q, k, v, beta, g, _ = inputs(N, steps, H, H, D, torch.float32, kda=True)
    k, pool = normalised(k), torch.randn(N * steps + 2, H, D, D)
    slots, accepted = torch.randperm(N * steps).view(N, steps), torch.randint(1, steps + 1, (N,))
    expected_pool, expected = pool.clone(), []
    for n in range(N):
        state = pool[slots[n, accepted[n] - 1]][None]
        for t in range(steps):
            o, state = kda_reference(*(x[n : n + 1, t : t + 1] for x in (q, k, v, beta, g)), state)
            expected.append(o)
            expected_pool[slots[n, t]] = state[0]
    o, same = fused_recurrent_kda_fwd(
        q, k, v, g, beta, initial_state=pool, ssm_state_indices=slots if steps > 1 else slots[:, 0],
        num_accepted_tokens=accepted if steps > 1 else None,
    )  # fmt: skip
    assert same is pool
    assert_close("o", torch.cat(expected, 1).view(o.shape), o, 0.002)
    assert_close("pool", expected_pool, pool, 0.002)


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("v_first", [False, True])
def test_kda_states_before_chunks(size, v_first):
    lengths = [15, 100, 64, 33]
    q, k, v, beta, g, h0 = inputs(1, sum(lengths), 2, 4, 64, torch.float32, kda=True, sequences=len(lengths))
    k, expected = normalised(k), []
    for i, (a, n) in enumerate(starts(lengths)):
        expected.append(h0[i])
        for end in range(size, n, size):
            tensors = (x[:, a : a + end] for x in (q, k, v, beta, g))
            expected.append(kda_reference(*tensors, h0[i : i + 1])[1][0])
    turn = (lambda x: x.transpose(-1, -2).contiguous()) if v_first else (lambda x: x)
    with torch.inference_mode():
        o, ht, h = chunk_kda(
            q, k, v, g, beta, initial_state=turn(h0), output_final_state=True, return_intermediate_states=True,
            state_v_first=v_first, cu_seqlens=torch.tensor([0, *lengths]).cumsum(0), chunk_size=size,
        )  # fmt: skip
    assert_close("h", torch.stack(expected)[None], turn(h), 0.002)
    check(in_parts(kda_reference, lengths, (q, k, v, beta, g), h0), (o, turn(ht)), 0.002)


# ---- The gates alone


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
def test_gdn_gate(dtype, bias):
    torch.manual_seed(0)
    g, A_log, dt_bias = torch.randn(3, 50, 8).to(dtype), torch.randn(8), torch.randn(8) if bias else None
    assert_close("g", naive_gdn_gate(g, A_log, dt_bias), fused_gdn_gate(g, A_log, dt_bias), 1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("lower_bound, A", [(None, True), (-5.0, True), (-5.0, False)])
def test_kda_gate(dtype, bias, lower_bound, A):
    torch.manual_seed(0)
    g, dt_bias = torch.randn(3, 50, 8, 60).to(dtype), torch.randn(480) if bias else None
    A_log = torch.randn(8) if A else None
    if lower_bound is None:
        expected = naive_kda_gate(g, A_log, dt_bias)
    else:
        expected = naive_kda_lowerbound_gate(g, A_log, dt_bias, lower_bound)
    assert_close("g", expected, fused_kda_gate(g, A_log, dt_bias, lower_bound=lower_bound), 1e-4)


# ---- GDN-2 and Comba


def gdn2_inputs(shape, dtype, **options):
    q, k, v, _, g, h0 = inputs(*shape, dtype, kda=True, **options)
    return q, k, v, g, torch.rand(*g.shape).sigmoid().to(dtype), torch.rand(*v.shape).sigmoid().to(dtype), h0


@pytest.mark.parametrize("shape", [(1, 63, 1, 1, 64), (2, 100, 4, 4, 60)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("l2norm", [False, True])
@pytest.mark.parametrize("function", [chunk_gdn2, fused_recurrent_gdn2])
def test_gdn2(function, shape, dtype, l2norm):
    q, k, v, g, b, w, h0 = gdn2_inputs(shape, dtype)
    options = dict(initial_state=h0, output_final_state=True)
    expected = naive_recurrent_gdn2(normalised(q), normalised(k), v, g, b, w, **options)
    q, k = (q, k) if l2norm else (normalised(q), normalised(k))
    check(expected, function(q, k, v, g, b, w, use_qk_l2norm_in_kernel=l2norm, **options), BOUND[dtype])


@pytest.mark.parametrize("lower_bound", [None, -5.0])
@pytest.mark.parametrize("function", [chunk_gdn2, fused_recurrent_gdn2])
def test_gdn2_gate_in_kernel(function, lower_bound):
    q, k, v, raw, b, w, h0 = gdn2_inputs((2, 128, 4, 4, 64), torch.float32)
    A_log, dt_bias = torch.randn(4), torch.randn(256)
    gate = naive_kda_gate if lower_bound is None else naive_kda_lowerbound_gate
    g = gate(raw, A_log, dt_bias, *([] if lower_bound is None else [lower_bound]))
    options = dict(initial_state=h0, output_final_state=True)
    expected = naive_chunk_gdn2(q, normalised(k), v, g, b, w, **options)
    options |= dict(use_gate_in_kernel=True, A_log=A_log, dt_bias=dt_bias, lower_bound=lower_bound)
    check(expected, function(q, normalised(k), v, raw, b, w, **options), 0.002)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("function", [chunk_gdn2, fused_recurrent_gdn2])
def test_gdn2_varlen(function, lengths):
    q, k, v, g, b, w, h0 = gdn2_inputs((1, sum(lengths), 2, 2, 64), torch.float16, sequences=len(lengths))
    k, ends = normalised(k), torch.tensor([0, *lengths]).cumsum(0)
    one = lambda q, k, v, g, b, w, h0: naive_recurrent_gdn2(  # noqa: E731
        q, k, v, g, b, w, initial_state=h0, output_final_state=True
    )
    expected = in_parts(one, lengths, (q, k, v, g, b, w), h0)
    options = dict(initial_state=h0, output_final_state=True, cu_seqlens=ends)
    check(expected, function(q, k, v, g, b, w, **options), 0.005)


def comba(function, q, k, v, p, g, beta, **options):
    """chunk_comba has v before p, fused_recurrent_comba p before v."""
    return function(q, k, *((v, p) if function is chunk_comba else (p, v)), g, beta, **options)


@pytest.mark.parametrize("shape", SHORT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("l2norm", [False, True])
@pytest.mark.parametrize("function", [chunk_comba, fused_recurrent_comba])
def test_comba(function, shape, dtype, l2norm):
    q, k, v, beta, g, h0 = inputs(*shape, dtype)
    p, HV, options = (torch.rand_like(k) - 0.5) * k, shape[3], dict(initial_state=h0, output_final_state=True)
    q, k, p = (q, k, p) if l2norm else (normalised(q), normalised(k), normalised(p))
    unit = (grouped(normalised(x), HV) for x in (q, k, p))
    q_unit, k_unit, p_unit = unit
    expected = naive_chunk_comba(q_unit, k_unit, v, p_unit, g, beta, **options)
    check(expected, comba(function, q, k, v, p, g, beta, use_qk_l2norm_in_kernel=l2norm, **options), BOUND[dtype])


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("function", [chunk_comba, fused_recurrent_comba])
def test_comba_varlen(function, lengths):
    q, k, v, beta, g, h0 = inputs(1, sum(lengths), 2, 2, 64, torch.float16, sequences=len(lengths))
    k, p, ends = normalised(k), normalised(k) * 0.7, torch.tensor([0, *lengths]).cumsum(0)
    one = lambda q, k, v, p, g, beta, h0: naive_chunk_comba(  # noqa: E731
        q, k, v, p, g, beta, initial_state=h0, output_final_state=True
    )
    expected = in_parts(one, lengths, (q, k, v, p, g, beta), h0)
    options = dict(initial_state=h0, output_final_state=True, cu_seqlens=ends)
    check(expected, comba(function, q, k, v, p, g, beta, **options), 0.005)
