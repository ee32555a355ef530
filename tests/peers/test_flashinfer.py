"""FlashInfer's operators against the references that its package describes them by, on the inputs of its tests.

The bounds are those that its package gives for the dtypes (bfloat16: 0.01), and 0.001 for float32 states, as its tests
have them. The references of decode and prefill do not normalise q.
"""

import pytest
import torch
from flashinfer.experimental.b12x.sequence.kda_prefill.reference import recurrent_kda
from flashinfer.trace.template import default_tolerances
from flashinfer.trace.templates import gdn, gdn2, kda

from gdn_varlen import flashinfer

HEADS = [(1, 1, 1), (3, 3, 3), (4, 4, 8), (2, 2, 4), (16, 16, 32), (16, 16, 64)]
PREFILL, PREFILL_GATES = gdn.gdn_prefill_trace.templates
GDN2, GDN2_POOL = gdn2.gdn2_prefill_trace.templates
SIZES = lambda q, k, v: dict(num_q_heads=q, num_k_heads=k, num_v_heads=v)  # noqa: E731


def close(actual, expected, bound=None):
    rtol, atol = bound or default_tolerances(expected.dtype)
    torch.testing.assert_close(actual.float(), expected.float(), rtol=rtol, atol=atol)


@pytest.mark.parametrize(
    "batch, heads", [*((1, heads) for heads in HEADS), (4, HEADS[2]), (5, HEADS[1]), (32, HEADS[0])]
)
@pytest.mark.parametrize("layout", ["pretranspose", "nontranspose", "pool"])
def test_decode(batch, heads, layout):
    trace = gdn.gated_delta_rule_decode_trace
    x = trace.init(batch_size=batch, **SIZES(*heads), device="cpu")
    o, state = trace.reference(**x, scale=None)
    given = x.pop("state")
    if layout == "pretranspose":
        actual, new = flashinfer.gated_delta_rule_decode_pretranspose(**x, state=given, use_qk_l2norm=False)
        assert new is given
    elif layout == "nontranspose":
        turned = given.transpose(-1, -2).contiguous()
        actual, new = flashinfer.gated_delta_rule_decode(**x, state=turned, use_qk_l2norm=False)
        assert new is turned
        new = new.transpose(-1, -2)
    else:
        pool, slots = torch.zeros(2 * batch + 1, *given.shape[1:]), torch.randperm(2 * batch)[:batch] + 1
        pool[slots] = given
        actual, new = flashinfer.gated_delta_rule_decode_pretranspose(
            **x, state=None, initial_state=pool, initial_state_indices=slots, use_qk_l2norm=False
        )
        assert new is pool
        rest = torch.ones(len(pool), dtype=torch.bool).index_fill(0, slots, False)
        assert not pool[rest].any()
        new = new[slots]
    assert actual.dtype == torch.bfloat16
    close(actual, o)
    close(new, state, (1e-3, 1e-3))


@pytest.mark.parametrize("padded", [[0], [1, 3], [0, 1, 2, 3]])
def test_decode_padding(padded):
    trace = gdn.gated_delta_rule_decode_trace
    x = trace.init(batch_size=4, device="cpu")
    o, state = trace.reference(**x, scale=None)
    pool, slots = x.pop("state"), torch.arange(4)
    before = pool.clone()
    slots[padded] = -1
    actual, _ = flashinfer.gated_delta_rule_decode_pretranspose(
        **x, state=None, initial_state=pool, initial_state_indices=slots, use_qk_l2norm=False
    )
    live = slots >= 0
    close(actual[live], o[live])
    close(pool[live], state[live], (1e-3, 1e-3))
    assert not actual[~live].any() and torch.equal(pool[~live], before[~live])


@pytest.mark.parametrize(
    "batch, steps, heads", [(1, 2, HEADS[4]), (1, 4, HEADS[3]), (4, 4, HEADS[2]), (8, 8, HEADS[0])]
)
@pytest.mark.parametrize("l2norm", [False, True])
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("disable", [False, True])
def test_mtp(batch, steps, heads, l2norm, cached, disable):
    trace = gdn.gdn_mtp_trace
    x = trace.init(batch_size=batch, seq_len=steps, pool_size=batch + 3, **SIZES(*heads), device="cpu")
    x["initial_state_indices"] = torch.randperm(batch + 3)[:batch].int()
    if batch > 3:
        x["initial_state_indices"][1] = -1
    options = dict(use_qk_l2norm=l2norm, disable_state_update=disable)
    shape = (batch, steps, *x["initial_state"].shape[1:])
    caches = [torch.zeros(shape) if cached else None for _ in range(2)]
    o, state = trace.reference(**x, intermediate_states_buffer=caches[0], **options)
    actual, pool = flashinfer.gated_delta_rule_mtp(**x, intermediate_states_buffer=caches[1], **options)
    assert pool is x["initial_state"]
    close(actual, o)
    close(pool, state, (1e-3, 1e-3))
    if cached:
        live = x["initial_state_indices"] >= 0
        close(caches[1][live], caches[0][live], (1e-3, 1e-3))


@pytest.mark.parametrize("steps", [2, 4])
def test_mtp_slots(steps):
    """The states after the steps in slots of their own, apart from the one that the sequence starts from."""
    trace = gdn.gdn_mtp_trace
    x = trace.init(batch_size=3, seq_len=steps, pool_size=3 + 3 * steps, device="cpu")
    cache = torch.zeros(3, steps, *x["initial_state"].shape[1:])
    o, _ = trace.reference(**x, intermediate_states_buffer=cache)
    slots = (torch.randperm(3 * steps) + 3).view(3, steps).int()
    actual, pool = flashinfer.gated_delta_rule_mtp(**x, ssm_state_indices=slots, disable_state_update=False)
    close(actual, o)
    close(pool[slots.long()], cache, (1e-3, 1e-3))


@pytest.mark.parametrize("total, sequences", [(64, 1), (31, 1), (91, 1), (251, 4)])
@pytest.mark.parametrize("heads", HEADS[:4])
@pytest.mark.parametrize("started", [False, True])
def test_prefill(total, sequences, heads, started):
    trace = PREFILL
    x = trace.init(total_seq_len=total, num_seqs=sequences, **SIZES(*heads), device="cpu")
    HV, D = heads[2], x["q"].shape[-1]
    raw = dict(
        A_log=0.1 * torch.randn(HV), a=torch.randn(total, HV), dt_bias=0.1 * torch.randn(HV), b=torch.randn(total, HV)
    )
    start = torch.randn(sequences, HV, D, D) if started else None
    tensors = {name: x[name] for name in ("q", "k", "v", "cu_seqlens")}
    o, state = trace.reference(**tensors, state=start, **raw, scale=None)
    # Its prefill takes the gates ready.
    decay = torch.exp(-raw["A_log"].exp() * torch.nn.functional.softplus(raw["a"] + raw["dt_bias"]))
    before = None if start is None else start.clone()
    actual, final = flashinfer.chunk_gated_delta_rule(
        **tensors, g=decay, beta=raw["b"].sigmoid(), initial_state=start, output_final_state=True
    )
    assert start is None or torch.equal(start, before)
    close(actual, o)
    close(final, state, (1e-3, 1e-3))


def test_prefill_on_a_pool():
    trace = PREFILL
    x = trace.init(total_seq_len=90, num_seqs=3, device="cpu")
    packed, states = flashinfer.chunk_gated_delta_rule(**x, output_final_state=True)
    pool, slots = torch.zeros(7, *states.shape[1:]), torch.tensor([5, 0, 2])
    o, same = flashinfer.chunk_gated_delta_rule(
        **x, initial_state=pool, output_state=pool, state_indices=slots, output_final_state=True
    )
    assert same is pool and torch.equal(o, packed) and torch.equal(pool[slots], states) and not pool[[1, 3, 4, 6]].any()


@pytest.mark.parametrize("total, sequences", [(31, 1), (91, 3)])
@pytest.mark.parametrize("heads", [HEADS[2], (4, 2, 2)])
@pytest.mark.parametrize("gate", ["linear", "log", "raw"])
@pytest.mark.parametrize("l2norm, logit", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("pool", [False, True])
def test_prefill_gates(total, sequences, heads, gate, l2norm, logit, pool):
    rows = sequences + 3 if pool else sequences
    x = PREFILL_GATES.init(
        total_seq_len=total, num_seqs=sequences, state_pool_rows=rows, **SIZES(*heads), device="cpu"
    )
    x["initial_state"] = 0.1 * torch.randn_like(x["initial_state"])
    x |= dict(use_gate_in_kernel=gate == "raw", beta_is_logit=logit, use_qk_l2norm_in_kernel=l2norm)
    if l2norm:
        x |= dict(q=x["q"] * 3, k=x["k"] * 5)
    if gate != "raw":
        x |= dict(A_log=None, dt_bias=None, g=x["g"].sigmoid() if gate == "linear" else -x["g"].abs(), gate_domain=gate)
    if not logit:
        x["beta"] = x["beta"].float().sigmoid()
    renamed = {"g": "a", "beta": "b", "initial_state": "state"}
    o, state = PREFILL_GATES.reference(**{renamed.get(name, name): y for name, y in x.items()}, scale=None)
    actual, final = flashinfer.chunk_gated_delta_rule(**x)
    close(actual, o)
    close(final, state, (1e-3, 1e-3))


@pytest.mark.parametrize("heads", HEADS[1:4])
@pytest.mark.parametrize("total", [200, 700])
def test_prefill_on_pages(total, heads):
    trace = gdn.gdn_prefill_paged_trace
    x = trace.init(total_seq_len=total, num_q_heads=heads[0], num_v_heads=heads[2], device="cpu")
    expected = x["state_pool"].clone()
    o, _ = trace.reference(**(x | dict(state_pool=expected)))
    actual = flashinfer.chunk_gated_delta_rule_paged(**x)
    close(actual, o)
    close(x["state_pool"], expected, (1e-3, 1e-3))
    slots = flashinfer.gdn_paged_prefill_slots(
        *(x[name] for name in ("cu_seqlens", "page_indices", "page_indptr", "page_size", "last_page_len"))
    )
    assert all(y.dtype == torch.int32 for y in slots)


@pytest.mark.parametrize("heads", HEADS[1:4])
@pytest.mark.parametrize("batch", [1, 7])
def test_decode_on_pages(batch, heads):
    trace = gdn.gdn_decode_paged_trace
    x = trace.init(batch_size=batch, num_q_heads=heads[0], num_v_heads=heads[2], device="cpu")
    x.pop("page_size", None)
    expected = x["state_pool"].clone()
    o, _ = trace.reference(**(x | dict(state_pool=expected)))
    close(flashinfer.gated_delta_rule_decode_paged(**x), o)
    close(x["state_pool"], expected, (1e-3, 1e-3))


@pytest.mark.parametrize("every", [64, 128])
def test_prefill_checkpoints(every):
    """The states after so many tokens are those that the reference ends with after them."""
    x = PREFILL.init(total_seq_len=500, num_seqs=3, device="cpu")
    ends, heads = x["cu_seqlens"].tolist(), x["v"].shape[1]
    g, beta = 0.9 + 0.1 * torch.rand(500, heads), torch.rand(500, heads)
    counts = [(b - a) // every for a, b in zip(ends, ends[1:])]
    rows = torch.zeros(sum(counts), heads, x["v"].shape[2], x["q"].shape[2])
    tensors = {name: x[name] for name in "qkv"} | dict(g=g, beta=beta)
    flashinfer.chunk_gated_delta_rule(
        **tensors, cu_seqlens=x["cu_seqlens"], state_checkpoints=rows, checkpoint_every_n_tokens=every,
        checkpoint_cu_starts=torch.tensor([0, *counts]).cumsum(0),
    )  # fmt: skip
    expected = []
    for begin, count in zip(ends, counts):
        for tokens in range(every, count * every + 1, every):
            part = {name: y[begin : begin + tokens] for name, y in tensors.items()}
            part |= dict(a=part.pop("g"), b=part.pop("beta"), A_log=None, dt_bias=None, state=None, scale=None)
            part["cu_seqlens"] = torch.tensor([0, tokens])
            expected.append(PREFILL_GATES.reference(**part, output_final_state=True)[1][0])
    close(rows, torch.stack(expected), (1e-3, 1e-3))


@pytest.mark.parametrize("total, sequences", [(31, 1), (150, 4)])
@pytest.mark.parametrize("heads", [(4, 4, 4), (4, 4, 8), (8, 4, 4)])
def test_gdn2(total, sequences, heads):
    x = GDN2.init(total_seq_len=total, num_seqs=sequences, **SIZES(*heads), device="cpu")
    states = 0.1 * torch.randn(sequences, max(heads), x["v"].shape[2], x["q"].shape[2])
    o, state = GDN2.reference(**x, initial_state=states, scale=None)
    actual, final = flashinfer.chunk_gated_delta_rule2(**x, initial_state=states, output_final_state=True)
    close(actual, o)
    close(final, state, (1e-3, 1e-3))


@pytest.mark.parametrize("l2norm", [False, True])
def test_gdn2_on_a_pool(l2norm):
    x = GDN2.init(total_seq_len=90, num_seqs=3, device="cpu")
    pool = 0.1 * torch.randn(7, x["v"].shape[1], x["v"].shape[2], x["q"].shape[2])
    x |= dict(initial_state=pool, state_indices=torch.tensor([5, 0, 2]), output_state=pool.clone())
    x |= dict(output_final_state=True, use_qk_l2norm_in_kernel=l2norm)
    o, expected = GDN2_POOL.reference(**x, scale=None)
    actual, final = flashinfer.chunk_gated_delta_rule2(**x)
    assert final is x["output_state"]
    close(actual, o)
    close(final, expected, (1e-3, 1e-3))


@pytest.mark.parametrize("lengths", [[1] * 5, [16], [3, 0, 40], [64, 31]])
@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("lower_bound", [-5.0, -1.0])
def test_kda(lengths, pool, lower_bound):
    torch.manual_seed(0)
    T, N, H, D = sum(lengths), len(lengths), 4, 128
    q, k, v, g = (torch.randn(1, T, H, D).bfloat16() for _ in range(4))
    beta, A_log, dt_bias = torch.randn(1, T, H).bfloat16(), 0.5 * torch.randn(H), 0.1 * torch.randn(H, D)
    slots = torch.randperm(N + 3)[:N].int() if pool else torch.arange(N)
    states = 0.1 * torch.randn(N + 3 if pool else N, H, D, D)
    ends = torch.tensor([0, *lengths]).cumsum(0)
    o, expected = torch.empty_like(v), states.clone()
    for n, slot in enumerate(slots.tolist()):
        rows = slice(ends[n], ends[n + 1])
        tensors = (x[0, rows] for x in (q, k, v, g, beta))
        options = dict(lower_bound=lower_bound, initial_state=states[slot])
        o[0, rows], expected[slot], _ = recurrent_kda(*tensors, A_log, dt_bias, **options)
    actual, final = flashinfer.recurrent_kda(
        q, k, v, g, beta, A_log, dt_bias, initial_state=states, output_final_state=True, use_gate_in_kernel=True,
        lower_bound=lower_bound, cu_seqlens=ends, ssm_state_indices=slots if pool else None, beta_is_logit=True,
    )  # fmt: skip
    assert final is states
    close(actual, o)
    close(final, expected, (1e-3, 1e-3))


@pytest.mark.parametrize("every", [32, 64])
@pytest.mark.parametrize("pool", [False, True])
def test_kda_checkpoints(every, pool):
    """Before every block, or after the whole ones where indices say into which rows."""
    torch.manual_seed(0)
    lengths, H, D = [100, 64, 20], 2, 128
    T, N = sum(lengths), len(lengths)
    q, k, v, g = (torch.randn(1, T, H, D).bfloat16() for _ in range(4))
    beta, A_log, dt_bias = torch.randn(1, T, H).bfloat16(), 0.5 * torch.randn(H), 0.1 * torch.randn(H, D)
    states, ends = 0.1 * torch.randn(N, H, D, D), torch.tensor([0, *lengths]).cumsum(0)
    expected, counts = [], []
    for n, length in enumerate(lengths):
        count = len(expected)
        for end in range(every if pool else 0, length + 1 if pool else length, every):
            rows = slice(ends[n], ends[n] + end)
            tensors = (x[0, rows] for x in (q, k, v, g, beta))
            options = dict(lower_bound=-5.0, initial_state=states[n])
            expected.append(recurrent_kda(*tensors, A_log, dt_bias, **options)[1] if end else states[n].clone())
        counts.append(len(expected) - count)
    rows = torch.randperm(len(expected))
    kept = torch.zeros(len(expected) + 2, H, D, D) if pool else None
    *_, actual = flashinfer.recurrent_kda(
        q, k, v, g, beta, A_log, dt_bias, initial_state=states, output_final_state=True, use_gate_in_kernel=True,
        lower_bound=-5.0, cu_seqlens=ends, beta_is_logit=True, checkpoint_every_n_tokens=every,
        state_checkpoints=kept, checkpoint_cu_starts=torch.tensor([0, *counts]).cumsum(0),
        checkpoint_state_indices=rows if pool else None,
    )  # fmt: skip
    close(actual[rows] if pool else actual, torch.stack(expected), (1e-3, 1e-3))


@pytest.mark.parametrize("heads", [1, 12])
def test_packed_kda_decode(heads):
    """The same in one row for each sequence, without a lower bound."""
    torch.manual_seed(0)
    B, D = 5, 128
    rows, g = torch.randn(B, 3 * heads * D).bfloat16(), torch.randn(B, heads * D).bfloat16()
    beta = torch.randn(B, heads)
    A_log, dt_bias, states = 0.5 * torch.randn(heads), torch.randn(heads * D), torch.randn(B + 1, heads, D, D)
    slots, other = torch.randperm(B + 1)[:B].int(), states.clone()
    o = flashinfer.packed_kda_decode(rows, g, beta, A_log, dt_bias, states, slots)
    q, k, v = (x.reshape(B, 1, heads, D) for x in rows.split(heads * D, 1))
    expected, _ = flashinfer.recurrent_kda(
        q, k, v, g.view(B, 1, heads, D), beta.view(B, 1, heads), A_log, dt_bias, initial_state=other,
        ssm_state_indices=slots, use_gate_in_kernel=True, beta_is_logit=True,
    )  # fmt: skip
    assert torch.equal(o, expected) and torch.equal(states, other)


@pytest.mark.parametrize("name", ["fused_kda_decode", "packed_fused_kda_decode"])
def test_fused_kda_decode(name):
    assert getattr(kda, f"{name}_trace").inputs
    getattr(flashinfer, name)()


def test_fused_decode():
    assert gdn.gdn_fused_decode_trace.inputs
    flashinfer.fused_kda_decode()


@pytest.mark.parametrize("steps", [4, 8])
def test_replayssm(steps):
    x = gdn.gdn_mtp_trace.init(batch_size=2, seq_len=steps, device="cpu")
    flashinfer.gated_delta_rule_mtp(**x, cache_replayssm=True)
