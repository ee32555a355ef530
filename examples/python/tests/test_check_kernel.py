"""check_kernel.py on kernels that are right, and on kernels with one known fault each."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from faulty_kernel import kernel
from gdn_varlen.check import CONVENTIONS, Report

FAULTS = {
    # the fault of the kernel: words of the first explanation
    "wrong layout": "preset 'sglang_kv'|the other state layout",
    "tiled heads": "tiled heads",
    "eps 1e-5": "L2 norm with eps 1e-5",
    "eps outside": "max_norm_eps|eps 1e-12",
    "scale before the norm": "scale before the norm",
    "scale ignored": "scale ignored",
    "no dt_bias": "dt_bias left out",
    "log gate": "gate_input 'log'",
    "no sigmoid": "beta_input 'given'",
    "state rounded": "rounded to bfloat16 after every token",
    "no initial state": "initial states ignored",
    "no final state": "final states not stored",
    "zero padding": "packed_decode'|preset 'flashinfer_|preset 'vllm'|padding 'zero'",
}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16"])
def test_right(dtype, state_dtype):
    report = Report(kernel, dtype=dtype, state_dtype=state_dtype, rounds=1)
    assert not any(report.failed), "\n".join(report.lines())


def test_right_kda():
    assert not any(Report(kernel, kda=True, rounds=1).failed)


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_named(fault):
    report = Report(functools.partial(kernel, fault=fault), rounds=1)
    text = "\n".join(report.lines())
    assert any(report.failed) and report.explanations, text
    for share, names in report.explanations:  # nothing else is blamed
        assert share <= 0.02 and any(word in names[0] for word in FAULTS[fault].split("|")), text


def test_beta_rounded_to_the_dtype():
    for dtype in ("float16", "bfloat16"):
        report = Report(functools.partial(kernel, fault="beta rounded"), dtype=dtype)
        assert report.explanations[0][1] == ["beta rounded to the dtype of the inputs"], "\n".join(report.lines())


def test_two_faults_at_once():
    """Tiled heads of a kernel whose caller passes the other layout: neither alone explains it."""

    def both(**arguments):
        pool = arguments["initial_state_source"]
        if pool is None:
            return kernel(**arguments, fault="tiled heads")
        swapped = pool.reshape(*pool.shape[:2], pool.shape[3], pool.shape[2]).swapaxes(-1, -2).copy()
        o = kernel(**arguments | dict(initial_state_source=swapped), fault="tiled heads")
        pool[...] = swapped.swapaxes(-1, -2).reshape(pool.shape)
        return o

    report = Report(both, rounds=1)
    assert [sorted(names) for _, names in report.explanations] == [
        sorted(name for name in CONVENTIONS if name.startswith(("the other state layout", "tiled heads")))
    ]


def test_place_of_the_first_wrong_element():
    report = Report(functools.partial(kernel, fault="one wrong column"), rounds=1)
    text = "\n".join(report.lines())
    assert "first in sequence 0, token 2, head 1, column 5" in text
    assert not report.explanations and "no known convention" in text


def test_unknown_faults_are_not_explained():
    report = Report(functools.partial(kernel, fault="sign"), rounds=1)
    assert all(report.failed) and not report.explanations


def test_other_misbehaviour():
    assert "input q has been written" in "\n".join(
        Report(functools.partial(kernel, fault="input written"), rounds=1).lines()
    )
    assert "o has shape" in "\n".join(Report(functools.partial(kernel, fault="shape"), rounds=1).lines())

    def raises(**_):
        raise RuntimeError("out of registers")

    report = Report(raises, rounds=1)
    assert all(report.failed) and "raised RuntimeError: out of registers" in "\n".join(report.lines())


@pytest.mark.parametrize("preset", ["sglang_kv", "ggml", "mlx_lm", "transformers", "vllm", "flashinfer_prefill"])
def test_every_preset_agrees_with_itself(preset):
    """The module as the kernel: float32 against its own oracle."""
    import gdn_varlen

    function = functools.partial(gdn_varlen.fused_sigmoid_gating_delta_rule_update, preset=preset)
    assert not any(Report(function, preset=preset, rounds=1).failed)


def test_torch():
    pytest.importorskip("torch", reason="PyTorch is not installed")
    from gdn_varlen import fused_sigmoid_gating_delta_rule_update as function

    assert not any(Report(function, arrays="torch", dtype="bfloat16", state_dtype="bfloat16", rounds=1).failed)


HERE = Path(__file__).parent


def command(*arguments, cwd="/", **environment):
    script = HERE.parent / "check_kernel.py"
    return subprocess.run([sys.executable, "-B", str(script), *arguments], capture_output=True, text=True, cwd=cwd,
                          env={**os.environ, **environment})  # fmt: skip


@pytest.mark.parametrize("name, status", [("kernel", 0), ("tiled_heads", 1)])
@pytest.mark.parametrize("place, cwd", [(str(HERE / "faulty_kernel.py"), "/"), ("faulty_kernel", HERE)])
def test_command(name, status, place, cwd):
    result = command(f"{place}:{name}", "--rounds", "1", cwd=cwd)
    assert result.returncode == status, result.stdout + result.stderr
    assert ("tiled heads" in result.stdout) == bool(status)


@pytest.mark.parametrize(
    "kernel, words",
    [("faulty_kernel", "names no function"), ("nowhere.py:f", "nowhere.py"), (f"{HERE / 'faulty_kernel.py'}:f", "'f'")],
)
def test_command_without_a_kernel(kernel, words):
    result = command(kernel)
    assert result.returncode == 2 and words in result.stderr and "Traceback" not in result.stderr


def test_help_shows_an_adaptor():
    """Which agrees when it is given the function that it stands in for."""
    text = command("--help").stdout
    lines = text[text.index("    def kernel(") : text.index("        return o\n")].splitlines() + ["        return o"]
    source = "\n".join(line[4:] for line in lines)

    def delta_rule(q, k, v, a, b, A_log, dt_bias, states, starts, scale):
        slots = None if states is None else np.arange(len(states))
        states = None if states is None else states.copy()
        o = kernel(A_log, a, dt_bias, 1.0, 20.0, q, k, v, b, states, slots, scale, True, starts)
        return o, states

    scope = {"delta_rule": delta_rule}
    exec(source, scope)
    report = Report(scope["kernel"], rounds=1)
    asked = {"softplus", "without the L2 norm", "a padded sequence and an empty one"}  # what this adaptor passes over
    wrong = {result.config.question for result, failed in zip(report.results, report.failed) if failed}
    assert wrong <= asked, "\n".join(report.lines())


def test_without_numpy(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'numpy' else find(name, *rest)\n"
    )
    result = command("a.py:f", PYTHONPATH=str(tmp_path))
    assert result.returncode == 2 and "pip install numpy" in result.stderr and result.stderr.count("\n") == 1
    result = command("--help", PYTHONPATH=str(tmp_path))
    assert result.returncode == 0 and "def kernel(" in result.stdout
