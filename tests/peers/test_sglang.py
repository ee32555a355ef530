"""SGLang's operators against the torch references of its attention tests, on the cases of those and at their bounds."""

from types import SimpleNamespace

import gdn_attention
import kda_attention
import pytest
import torch

from gdn_varlen import sglang

BOUND = dict(atol=gdn_attention.GDN_ATOL, rtol=gdn_attention.GDN_RTOL)
TREE = dict(atol=gdn_attention.GDN_TREE_ATOL, rtol=gdn_attention.GDN_TREE_ATOL)
HEADS = [(2, 2), (2, 4), (4, 12)]
DIMS = [(32, 32), (64, 32)]
GDN, KDA = gdn_attention.make_gdn_cases("triton"), kda_attention.make_kda_cases("triton")


def fixture(kit, kind, case, heads, dims, dtype, tree=None):
    """What the references look at, of the fixture of SGLang's tests."""
    torch.manual_seed(0)
    (H, HV), (K, V) = heads, dims
    case = SimpleNamespace(**{name: getattr(case, name) for name in ("input_lens", "num_input_tokens")}, num_k_heads=H,
                           num_v_heads=HV, mis_delimiter_indices=(), conv_history_weight=0.0)  # fmt: skip
    if tree:
        case.input_lens, case.num_input_tokens = tree, sum(tree)
    module = kind(num_k_heads=H, num_v_heads=HV, head_k_dim=K, head_v_dim=V, dtype=dtype, device="cpu")
    module.A_log.copy_(torch.randn(HV) * 0.5)
    module.dt_bias.copy_(torch.randn_like(module.dt_bias.float()) * 0.1)
    T, N = case.num_input_tokens, len(case.input_lens)
    slots = torch.randperm(N + 4)[:N] + 1
    gates = HV * (K if kit is kda_attention else 1)
    a, b = torch.randn(T, gates).to(dtype), torch.randn(T, HV).to(dtype)
    made = SimpleNamespace(
        case=case, reference_module=module, runner=SimpleNamespace(device="cpu"), a=a, b=b, a_raw=a, b_raw=b,
        mixed_qkv=torch.randn(T, module.mixed_qkv_dim).to(dtype), slots=slots,
        pool=torch.randn(N + 6, HV, V, K) * 0.1, ends=torch.tensor([0, *case.input_lens]).cumsum(0),
    )  # fmt: skip
    kit._cache_indices = lambda fixture: fixture.slots
    return made


def update(x, qkv, kda, **options):
    module = x.reference_module
    q, k, v = module.split_qkv(qkv)
    return sglang.fused_sigmoid_gating_delta_rule_update(
        module.A_log, x.a, module.dt_bias, 1.0, 20.0, q, k, v, x.b, x.pool, x.slots, use_qk_l2norm_in_kernel=True,
        cu_seqlens=x.ends, is_kda=kda, **options,
    )  # fmt: skip


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("case", GDN, ids=lambda case: case.name)
def test_gdn(case, dtype, heads, dims):
    x = fixture(gdn_attention, gdn_attention.ReferenceGDNAttention, case, heads, dims, dtype)
    before = x.pool.clone()
    expected = gdn_attention._pure_torch_gdn_reference(x, before)
    o = update(x, x.mixed_qkv, False)
    torch.testing.assert_close(o, expected.output, **BOUND)
    torch.testing.assert_close(x.pool, expected.final_states, **BOUND)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("case", GDN, ids=lambda case: case.name)
def test_gdn_gates_ready(case, heads):
    """The functions that take g and beta, on a pool and with states of their own."""
    x = fixture(gdn_attention, gdn_attention.ReferenceGDNAttention, case, heads, DIMS[0], torch.bfloat16)
    before = x.pool.clone()
    expected = gdn_attention._pure_torch_gdn_reference(x, before)
    g, beta = gdn_attention._pure_torch_gdn_gating(x.reference_module, x.a, x.b)
    q, k, v = x.reference_module.split_qkv(x.mixed_qkv)
    arguments = dict(q=q, k=k, v=v, g=g[None], beta=beta[None], cu_seqlens=x.ends, use_qk_l2norm_in_kernel=True)
    pools = [x.pool, before.clone()]
    for pool, (function, source) in zip(pools, [
        (sglang.fused_recurrent_gated_delta_rule_update, "initial_state_source"),
        (sglang.chunk_gated_delta_rule, "initial_state"),
    ]):  # fmt: skip
        o = function(**arguments, **{source: pool}, initial_state_indices=x.slots)
        torch.testing.assert_close(o[0] if isinstance(o, tuple) else o, expected.output, **BOUND)
        torch.testing.assert_close(pool, expected.final_states, **BOUND)
    o, states = sglang.fused_recurrent_gated_delta_rule(
        **arguments, initial_state=before[x.slots], output_final_state=True
    )
    torch.testing.assert_close(o, expected.output, **BOUND)
    torch.testing.assert_close(states, expected.final_states[x.slots], **BOUND)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("case", [case for case in GDN if case.forward_mode.is_decode()], ids=lambda case: case.name)
def test_gdn_packed_decode(case, heads):
    x = fixture(gdn_attention, gdn_attention.ReferenceGDNAttention, case, heads, DIMS[0], torch.bfloat16)
    expected = gdn_attention._pure_torch_gdn_reference(x, x.pool.clone())
    module, T = x.reference_module, x.case.num_input_tokens
    out = torch.full((T, 1, heads[1], DIMS[0][1]), torch.nan, dtype=torch.bfloat16)
    sglang.fused_recurrent_gated_delta_rule_packed_decode(
        x.mixed_qkv, x.a, x.b, module.A_log, module.dt_bias, module.head_k_dim**-0.5, x.pool, out, x.slots, True
    )
    torch.testing.assert_close(out.transpose(0, 1), expected.output, **BOUND)
    torch.testing.assert_close(x.pool, expected.final_states, **BOUND)


@pytest.mark.parametrize("topk", [1, 2])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("kda", [False, True])
def test_verify(kda, heads, topk):
    """Drafts, in a line or as a tree, whose states go to the cache and not to the pool."""
    kit = kda_attention if kda else gdn_attention
    kind = kit.ReferenceKDAAttention if kda else kit.ReferenceGDNAttention
    x = fixture(kit, kind, (KDA if kda else GDN)[0], heads, DIMS[0], torch.bfloat16, tree=(3, 3, 3))
    inputs = dict(mixed_qkv=x.mixed_qkv, a=x.a, b=x.b, a_raw=x.a, b_raw=x.b)
    reference = kit.expected_kda_verify_output_from_inputs if kda else kit.expected_gdn_verify_output_from_inputs
    expected = reference(x, x.case, inputs, (None, x.pool), topk=topk)
    parents = torch.tensor([[-1, 0, 0]] * 3) if topk > 1 else None
    before = x.pool.clone()
    o = update(
        x, x.mixed_qkv, kda, disable_state_update=True, retrieve_parent_token=parents, cache_steps=3,
        intermediate_states_buffer=torch.zeros(3, 3, *x.pool.shape[1:]), intermediate_state_indices=torch.arange(3),
    )  # fmt: skip
    torch.testing.assert_close(o, expected, **TREE)
    assert torch.equal(x.pool, before)


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("case", KDA, ids=lambda case: case.name)
def test_kda(case, heads, dims):
    x = fixture(kda_attention, kda_attention.ReferenceKDAAttention, case, heads, dims, torch.bfloat16)
    before = x.pool.clone()
    expected = kda_attention._pure_torch_kda_reference(x, before)
    activated = torch.nn.functional.silu(x.mixed_qkv.float()).to(x.mixed_qkv.dtype)  # the layer's convolution
    o = update(x, activated, True)
    torch.testing.assert_close(o, expected.output, **BOUND)
    torch.testing.assert_close(x.pool, expected.final_states, **BOUND)

    q, k, v = x.reference_module.split_qkv(activated)
    g = x.a.view(1, -1, heads[1], dims[0])
    A_log, dt_bias = x.reference_module.A_log, x.reference_module.dt_bias
    pool = before.clone()
    o = sglang.chunk_kda(
        q, k, v, g, x.b[None], initial_state=pool, initial_state_indices=x.slots, use_qk_l2norm_in_kernel=True,
        cu_seqlens=x.ends, A_log=A_log, dt_bias=dt_bias, beta_is_raw=True,
    )  # fmt: skip
    torch.testing.assert_close(o, expected.output, **BOUND)
    torch.testing.assert_close(pool, expected.final_states, **BOUND)
    if case.forward_mode.is_decode():
        T = x.case.num_input_tokens
        pool, out = before.clone(), torch.empty(T, 1, heads[1], dims[1], dtype=torch.bfloat16)
        sglang.fused_recurrent_kda_packed_decode(
            activated, x.a, x.b, A_log, dt_bias, dims[0] ** -0.5, pool, out, x.slots, True
        )
        torch.testing.assert_close(out.transpose(0, 1), expected.output, **BOUND)
        torch.testing.assert_close(pool, expected.final_states, **BOUND)


def test_replay_rings():
    x = fixture(gdn_attention, gdn_attention.ReferenceGDNAttention, GDN[0], HEADS[0], DIMS[0], torch.bfloat16)
    update(x, x.mixed_qkv, False, cache_ring=True)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("function", [sglang.fused_gdn_gating, sglang.fused_gdn_gating_cpu])
def test_gates_alone(function, dtype, heads):
    x = fixture(gdn_attention, gdn_attention.ReferenceGDNAttention, GDN[0], heads, DIMS[0], dtype)
    g, beta = gdn_attention._pure_torch_gdn_gating(x.reference_module, x.a, x.b)
    actual, actual_beta = function(x.reference_module.A_log, x.a, x.b, x.reference_module.dt_bias)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual[0], g, rtol=1e-5, atol=1e-6)
    bound = 2**-7 if dtype == torch.bfloat16 else 1e-6  # a rounding to b's dtype
    torch.testing.assert_close(actual_beta[0].float(), beta.to(dtype).float(), rtol=bound, atol=0)


@pytest.mark.parametrize("kda", [False, True])
@pytest.mark.parametrize("heads", HEADS)
def test_states_before_chunks(heads, kda):
    """h is where a call of the tokens before it ends."""
    kit = kda_attention if kda else gdn_attention
    kind = kit.ReferenceKDAAttention if kda else kit.ReferenceGDNAttention
    x = fixture(kit, kind, GDN[0], heads, DIMS[0], torch.float32, tree=(150, 64, 20))
    q, k, v = x.reference_module.split_qkv(x.mixed_qkv)
    g = -torch.rand(1, sum(x.case.input_lens), heads[1], *([DIMS[0][0]] if kda else []))
    function = sglang.chunk_kda if kda else sglang.chunk_gated_delta_rule
    options = dict(initial_state_indices=x.slots, use_qk_l2norm_in_kernel=True)
    options |= dict(output_intermediate_states=True) if kda else {}
    beta, before = x.b[None].sigmoid(), x.pool.clone()
    *_, h = function(q, k, v, g, beta, initial_state=x.pool, cu_seqlens=x.ends, **options)
    row = 0
    for n, length in enumerate(x.case.input_lens):
        for end in range(0, length, 64):
            pool, rows = before.clone(), slice(x.ends[n], x.ends[n] + end)
            options["initial_state_indices"] = x.slots[n : n + 1]
            function(*(y[:, rows] for y in (q, k, v, g, beta)), initial_state=pool, **options)
            torch.testing.assert_close(h[0, row], pool[x.slots[n]], rtol=1e-5, atol=1e-5)
            row += 1
    assert row == h.shape[1] == 5
