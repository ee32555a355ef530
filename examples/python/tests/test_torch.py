"""The custom operator."""

import inspect

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import gdn_varlen  # noqa: E402
from gdn_varlen.torch_op import fused_sigmoid_gating_delta_rule_update as operator  # noqa: E402

T, H, HV, K, V = 6, 2, 4, 16, 8
OPTIONS = dict(use_qk_l2norm_in_kernel=True, cu_seqlens=torch.tensor([0, 2, 6]))


def arguments(dtype=torch.float32, state_dtype=torch.float32):
    torch.manual_seed(0)
    draw = lambda *shape: torch.randn(shape).to(dtype)  # noqa: E731
    return (draw(HV), draw(1, T, HV), draw(HV), 1.0, 20.0, draw(1, T, H, K), draw(1, T, H, K), draw(1, T, HV, V),
            draw(1, T, HV), torch.randn(3, HV, V, K).to(state_dtype), torch.tensor([2, 0]))  # fmt: skip


def test_signature_is_the_function_s():
    function = inspect.signature(gdn_varlen.fused_sigmoid_gating_delta_rule_update).parameters.values()
    expected = [(p.name, p.default) for p in function if p.name not in ("isa", "o")]
    schema = torch.ops.gdn_varlen.fused_sigmoid_gating_delta_rule_update.default._schema
    actual = [(a.name, a.default_value if a.has_default_value() else inspect.Parameter.empty) for a in schema.arguments]
    assert actual == expected


def test_opcheck():
    torch.library.opcheck(operator, arguments(), OPTIONS)
    torch.library.opcheck(operator, arguments(torch.bfloat16, torch.bfloat16), OPTIONS | dict(compute="f64"))
    torch.library.opcheck(operator, arguments(), OPTIONS | dict(output_state_pool=torch.zeros(2, HV, V, K)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_compiled_graph(dtype):
    """One graph, no break; backend "eager": nothing here is about code generation."""
    one, two, three = arguments(dtype), arguments(dtype), arguments(dtype)
    expected = gdn_varlen.fused_sigmoid_gating_delta_rule_update(*one, **OPTIONS)
    assert expected.dtype == dtype
    assert torch.equal(operator(*two, **OPTIONS), expected) and torch.equal(two[9], one[9])
    compiled = torch.compile(lambda *x: operator(*x, **OPTIONS) + 1, backend="eager", fullgraph=True)
    assert torch.equal(compiled(*three), expected + 1) and torch.equal(three[9], one[9])


def test_other_devices_are_refused():
    meta = [x.to("meta") if isinstance(x, torch.Tensor) else x for x in arguments()]
    with pytest.raises(ValueError, match="CPU"):
        gdn_varlen.fused_sigmoid_gating_delta_rule_update(*meta, **OPTIONS)
    assert operator(*meta).shape == (1, T, HV, V)  # the fake one


def test_expanded_tensors_and_parameters():
    one = list(arguments())
    one[5] = one[5][:, :1].expand(1, T, H, K)
    one[0] = torch.nn.Parameter(one[0])
    two = [x.clone() if isinstance(x, torch.Tensor) else x for x in one]
    with torch.no_grad():
        assert torch.equal(
            gdn_varlen.fused_sigmoid_gating_delta_rule_update(*one, **OPTIONS),
            gdn_varlen.fused_sigmoid_gating_delta_rule_update(*two, **OPTIONS),
        )


def test_gradients_are_not_lost_in_silence():
    one = list(arguments())
    one[6].requires_grad_()
    with pytest.raises(gdn_varlen.GdnError, match="k: it requires gradients"):
        gdn_varlen.fused_sigmoid_gating_delta_rule_update(*one, **OPTIONS)


def test_output_has_the_dtype_of_v_in_fla():
    from gdn_varlen import fla

    q, k, v = arguments()[5:8]
    q, k, g, beta = q.bfloat16(), k.bfloat16(), -torch.rand(1, T, HV), torch.rand(1, T, HV)
    h0 = torch.randn(2, HV, K, V, dtype=torch.float16)
    o, ht = fla.chunk_gated_delta_rule(
        q, k, v, g, beta, initial_state=h0, output_final_state=True, cu_seqlens=torch.tensor([0, 2, 6])
    )
    assert o.dtype == torch.float32 and ht.dtype == torch.float32
    p, _ = fla.chunk_gated_delta_rule(q, k, v.bfloat16(), g, beta, initial_state=h0, cu_seqlens=torch.tensor([0, 2, 6]))
    assert p.dtype == torch.bfloat16
