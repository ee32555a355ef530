"""What other systems computed (tests/golden), through the module."""

import numpy as np
import pytest
from golden import CASES, Case, relative_error, to_float64

from gdn_varlen import fused_sigmoid_gating_delta_rule_update

UNIT = {np.dtype(np.float32): 2**-24, np.dtype(np.uint16): 2**-8, np.dtype(np.float16): 2**-11}  # one rounding


def test_there_are_cases():
    assert len(CASES) > 30


@pytest.mark.parametrize("name", CASES)
def test_float32(name):
    case = Case(name)
    positional, options = case.arguments()
    o = fused_sigmoid_gating_delta_rule_update(*positional, **options)
    assert o.dtype == case.outputs["o"].dtype
    # A 16-bit state that is read back makes two right answers differ by its rounding.
    bound = 1e-6 + UNIT[o.dtype]
    assert relative_error(o, case.outputs["o_f64"]) <= bound
    cache = options["intermediate_states_buffer"]
    for written, key in ((positional[9], "final_state"), (cache, "intermediate_states")):
        if case.outputs[key] is not None:
            assert relative_error(written, case.outputs[key]) <= 2e-6 + 2 * UNIT[written.dtype], key


@pytest.mark.parametrize("name", CASES)
def test_float64(name):
    case = Case(name)
    case.keys["dtype_intermediate_states"] = "f64"  # states that are read back keep their bits
    if "initial_state" in case.files and not case.flag("round_state"):  # that is to its dtype
        case.files["initial_state"] = to_float64(case.files["initial_state"])
    positional, options = case.arguments()
    o = fused_sigmoid_gating_delta_rule_update(*positional, **options, compute="f64")
    assert o.dtype == np.float64
    assert relative_error(o, case.outputs["o_f64"]) <= 1e-12


@pytest.mark.parametrize("name", CASES)
def test_torch(name):
    """The same memory as torch tensors gives the same bits, in place."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")

    def tensor(x):
        if not isinstance(x, np.ndarray):
            return x
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16) if x.dtype == np.uint16 else torch.from_numpy(x)

    case = Case(name)
    positional, options = case.arguments()
    o = fused_sigmoid_gating_delta_rule_update(*positional, **options)
    states = [positional[9], options["intermediate_states_buffer"]]
    positional, options = case.arguments()
    o_torch = fused_sigmoid_gating_delta_rule_update(
        *map(tensor, positional), **{key: tensor(value) for key, value in options.items()}
    )
    assert o_torch.shape == o.shape
    assert o_torch.view(torch.uint8).numpy().tobytes() == o.tobytes()
    for expected, actual in zip(states, [positional[9], options["intermediate_states_buffer"]]):
        assert expected is None or expected.tobytes() == actual.tobytes()
