"""FLA's operators against the references in its package, by its own measure and bounds.

The shapes, gates and bounds are those that its tests have; one sequence of the references' at a time where they know no
cu_seqlens, and their heads repeated where they know no groups.
"""

import pytest
import torch
import torch.nn.functional as F
from fla.ops.gated_delta_rule import chunk_gated_delta_rule, fused_recurrent_gated_delta_rule
from fla.ops.gated_delta_rule.gate import naive_gdn_gate
from fla.ops.gated_delta_rule.naive import naive_chunk_gated_delta_rule, naive_recurrent_gated_delta_rule
from fla.ops.kda import chunk_kda, fused_recurrent_kda
from fla.ops.kda.fused_recurrent import fused_recurrent_kda_fwd
from fla.ops.kda.gate import naive_kda_gate, naive_kda_lowerbound_gate
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
