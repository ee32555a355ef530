"""check_kernel.py on kernels that are right, and on kernels with one known fault each."""

import functools
import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from faulty_kernel import FAULTS, kernel

import gdn_varlen
from gdn_varlen.check import Report
from gdn_varlen.signatures import CALLS

EXPLAINED = {
    # the fault of the kernel: words of the explanations, of which each has some
    "wrong layout": "preset 'sglang_kv'|the other state layout",
    "tiled heads": "tiled heads",
    "scale ignored": "scale ignored",
    "no scale": "no scale",
    "scale before the norm": "scale before the norm",
    "eps 1e-5": "L2 norm with eps 1e-5",
    "eps outside": "max_norm_eps|eps 1e-12",
    "eps added to the norm": "norm_plus_eps",
    "eps of the mean": "mean_plus_eps",
    "root mean square": "root mean square",
    "no norm of q": "q not normalised",
    "no norm of k": "k not normalised",
    "no dt bias": "dt_bias left out",
    "log gate": "gate_input 'log'",
    "A log for A": "A_log taken for A",
    "no softplus": "softplus left out",
    "no softplus threshold": "softplus_threshold ignored: never",
    "no softplus beta": "softplus_beta ignored",
    "no gate": "no gate",
    "no exp of g": "multiplied by g",
    "two to the g": "2^g",
    "exp of the binary g": "log2(e)",
    "growth": "other sign",
    "no sigmoid": "beta_input 'given'",
    "no beta": "beta left out",
    "beta twice": "beta applied twice",
    "beta on v alone": "beta on v alone",
    "no initial state": "initial states ignored",
    "no final state": "final states not stored",
    "zero padding": "packed_decode'|preset 'flashinfer_|preset 'vllm'|padding 'zero'",
    "slots ignored": "initial_state_indices ignored",
    "slot of the first": "first one's slot",
    "slot of the next": "slot of the next",
    "last slot for padding": "the last slot",
    "slot 0 for padding": "taken for slot 0",
    "null slot written": "slot 0 written",
    "last token left out": "last token of each",
    "first token left out": "first token of each",
    "one token too many": "goes on to the first token",
    "last token of all left out": "last token of the call",
    "one sequence": "cu_seqlens ignored",
    "partial chunk left out": "partial chunk of 32",
    "state rounded": "rounded to bfloat16 after every token",
    "decay last": "decay after the update, o of",
    "decay after o": "decay after the update and after o",
    "o before the update": "before the update",
    "o before the decay": "before decay and update",
    "delta of the undecayed": "before its decay",
    "no delta": "no k",
}

# Not here: an offset that does not fit 32 bits. It takes a pool of 2^31 elements, and these calls are small.


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16"])
def test_right(dtype, state_dtype):
    report = Report(kernel, dtype=dtype, state_dtype=state_dtype, rounds=1)
    assert not any(report.failed), "\n".join(report.lines())


def test_right_kda():
    assert not any(Report(kernel, kda=True, rounds=1).failed)


def test_every_fault_is_asked_for():
    assert set(EXPLAINED) == set(FAULTS) - {"beta rounded"}  # which takes inputs of 16 bits


@pytest.mark.parametrize("fault", EXPLAINED)
def test_fault_is_named(fault):
    report = Report(functools.partial(kernel, faults=[fault]), rounds=1)
    text = "\n".join(report.lines())
    assert any(report.failed) and report.explanations, text
    for share, names in report.explanations:  # nothing else is blamed
        assert share <= 0.02 and len(names) == 1 and any(word in names[0] for word in EXPLAINED[fault].split("|")), text


def test_beta_rounded_to_the_dtype():
    for dtype in ("float16", "bfloat16"):
        report = Report(functools.partial(kernel, faults=["beta rounded"]), dtype=dtype)
        assert report.explanations[0][1] == ["beta rounded to the dtype of the inputs"], "\n".join(report.lines())


@pytest.mark.parametrize("faults", [
    ("wrong layout", "tiled heads"),  # neither alone explains it
    ("no dt bias", "zero padding"),  # one alone explains nearly all of it
    ("decay last", "partial chunk left out"),
    ("state rounded", "slot of the next"),
])  # fmt: skip
def test_two_faults_at_once(faults):
    report = Report(functools.partial(kernel, faults=faults), rounds=1)
    text = "\n".join(report.lines())
    (share, names), *others = report.explanations
    assert share < 0.001 and len(names) == 2, text
    for fault in faults:
        assert any(word in name for word in EXPLAINED[fault].split("|") for name in names), text


def test_place_of_the_first_wrong_element():
    report = Report(functools.partial(kernel, faults=["one wrong column"]), rounds=1)
    text = "\n".join(report.lines())
    assert "first in sequence 0, token 2, head 1, column 5" in text
    assert not report.explanations and "no known variation" in text


def test_unknown_faults_are_not_explained():
    report = Report(functools.partial(kernel, faults=["sign"]), rounds=1)
    assert all(report.failed) and not report.explanations


def test_other_misbehaviour():
    assert "input q has been written" in "\n".join(
        Report(functools.partial(kernel, faults=["input written"]), rounds=1).lines()
    )
    assert "o has shape" in "\n".join(Report(functools.partial(kernel, faults=["shape"]), rounds=1).lines())

    def raises(**_):
        raise RuntimeError("out of registers")

    report = Report(raises, rounds=1)
    assert all(report.failed) and "raised RuntimeError: out of registers" in "\n".join(report.lines())


@pytest.mark.parametrize("preset", gdn_varlen.presets())
def test_every_preset_agrees_with_itself(preset):
    """The module as the kernel: float32 against its own oracle."""
    function = functools.partial(gdn_varlen.fused_sigmoid_gating_delta_rule_update, preset=preset)
    assert not any(Report(function, preset=preset, rounds=1).failed)


def peer(name):
    module, function = name.split(".")
    return getattr(importlib.import_module(f"gdn_varlen.{module}"), function)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("arrays, dtype", [("numpy", "float32"), ("numpy", "bfloat16"), ("torch", "bfloat16")])
def test_every_call_agrees_with_its_module(call, arrays, dtype):
    """The inverse of the modules under the peers' names, which take the peers' arguments."""
    if arrays != "numpy":
        pytest.importorskip(arrays, reason="PyTorch is not installed")
    for kda in {False, CALLS[call].kda is None}:
        report = Report(peer(call), call=call, arrays=arrays, kda=kda, dtype=dtype, state_dtype=dtype, rounds=1)
        assert len(report.failed) > 6 and not any(report.failed), "\n".join(report.lines())


@pytest.mark.parametrize("call", ["mlx_lm.gated_delta_update", "mlx_lm.gated_delta_kernel", "mlx_lm.gated_delta_ops"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_mlx(call, dtype):
    pytest.importorskip("mlx.core", reason="mlx is not installed")
    report = Report(peer(call), call=call, arrays="mlx", dtype=dtype, state_dtype=dtype, rounds=1)
    assert len(report.failed) > 6 and not any(report.failed), "\n".join(report.lines())


LEFT_OUT = {
    "gates, or slots, alone": """fla.fused_gdn_gate fla.fused_kda_gate fla.naive_kda_gate fla.naive_kda_lowerbound_gate
        fla.chunk_local_cumsum fla.gdn_gate_chunk_cumsum fla.kda_gate_chunk_cumsum sglang.fused_gdn_gating
        vllm.fused_gdn_gating_cpu vllm.fused_kda_gate vllm.fused_olmo_hybrid_gdn_gating vllm.fused_post_conv_prep
        flashinfer.gdn_paged_decode_slots flashinfer.gdn_paged_prefill_slots mlx_lm.compute_g
        mlx_lm.compute_lower_bound_g""",
    "GDN-2 and Comba: w and p are not drawn": """fla.fused_recurrent_gdn2 fla.chunk_gdn2 fla.naive_recurrent_gdn2
        fla.naive_chunk_gdn2 fla.fused_recurrent_comba fla.chunk_comba fla.naive_recurrent_comba fla.naive_chunk_comba
        flashinfer.chunk_gated_delta_rule2""",
    "several slots for a sequence": """vllm.fused_sigmoid_gating_delta_rule_update_spec_cpu
        flashinfer.chunk_gated_delta_rule_paged flashinfer.gated_delta_rule_decode_paged""",
}


def test_calls_are_the_functions_of_the_modules():
    names = set()
    for module in ("sglang", "vllm", "vllm_kimi_k3", "fla", "flashinfer", "mlx_lm"):
        for name, function in vars(importlib.import_module(f"gdn_varlen.{module}")).items():
            if inspect.isfunction(function) and function.__module__ == f"gdn_varlen.{module}" and name[0] != "_":
                names.add(f"{module}.{function.__name__}")
    names.add("sglang.fused_sigmoid_gating_delta_rule_update_cpu")  # vLLM's
    left_out = [name for functions in LEFT_OUT.values() for name in functions.split()]
    assert sorted([*CALLS, *left_out]) == sorted(names)


@pytest.mark.parametrize("call, change, words", [
    ("fla.chunk_gated_delta_rule", dict(scale=1.0), "no scale"),
    ("fla.chunk_kda", dict(state_v_first=True), "other state layout"),
    ("vllm.fused_recurrent_gated_delta_rule", dict(beta=None), "beta left out"),
    ("sglang.chunk_gated_delta_rule", dict(use_qk_l2norm_in_kernel=False), "not normalised"),
    ("flashinfer.gated_delta_rule_mtp", dict(disable_state_update=True), "final states not stored"),
    ("flashinfer.chunk_gated_delta_rule", dict(initial_state=None), "initial states ignored"),
    ("mlx_lm.gated_delta_update", dict(dt_bias=None), "dt_bias left out"),
])  # fmt: skip
def test_a_fault_of_a_kernel_with_a_peers_arguments(call, change, words):
    report = Report(lambda **arguments: peer(call)(**arguments | change), call=call, rounds=1)
    assert any(words in names[0] for _, names in report.explanations), "\n".join(report.lines())


@pytest.mark.parametrize("function, call, words", [
    ("sglang.chunk_kda", "sglang.chunk_kda_cpu", "normalised q and k rounded to the dtype of the inputs"),
    ("sglang.chunk_kda_cpu", "sglang.chunk_kda", "normalised q and k not rounded"),
    ("vllm.fused_recurrent_gated_delta_rule_packed_decode", "sglang.fused_recurrent_gated_delta_rule_packed_decode",
     "beta not rounded"),
])  # fmt: skip
def test_a_kernel_that_rounds_otherwise(function, call, words):
    report = Report(peer(function), call=call, dtype="bfloat16", rounds=1)
    assert report.explanations == [(0, [words])], "\n".join(report.lines())


def test_null_slot():
    """Of vLLM: a kernel that takes slot 0 for any other."""
    function = functools.partial(gdn_varlen.fused_sigmoid_gating_delta_rule_update, preset="vllm", null_slot=-1)
    report = Report(function, preset="vllm", rounds=1)
    assert any("null slot" in names[0] for _, names in report.explanations), "\n".join(report.lines())


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


@pytest.mark.parametrize("name, failures", [("kernel", 0), ("tiled_heads", 10), ("raises", 10)])
def test_junit(name, failures, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from faulty_kernel import kernel, tiled_heads\ndef raises(**_): raise ValueError('\\x1b[31mred <&')\n"
    )
    file = tmp_path / "report.xml"
    result = command(f"{tmp_path}/mine.py:{name}", "--rounds", "1", "--junit", file, PYTHONPATH=str(HERE))
    assert result.returncode == bool(failures), result.stderr
    suite = ElementTree.parse(file).getroot()
    cases = suite.findall("testcase")
    assert suite.tag == "testsuite" and suite.get("tests") == "10" and len(cases) == 10
    assert suite.get("failures") == str(failures) == str(len(suite.findall("testcase/failure")))
    assert len({(case.get("classname"), case.get("name")) for case in cases}) == 10
    words = {"tiled_heads": "explains all of it: tiled heads", "raises": "raised ValueError: ?[31mred <&"}
    assert all(words[name] in failure.text for failure in suite.findall("testcase/failure"))


def test_call_of_the_command():
    name = "fla.chunk_gated_delta_rule"
    result = command(f"gdn_varlen.{name.replace('.', ':')}", "--call", name, "--rounds", "1")
    assert result.returncode == 0 and f"0 of 9 configurations are wrong, as {name} has it" in result.stdout
    for wrong in (["--call", name, "--kda"], ["--call", "nobody.f"], ["--junit", "/nowhere/report.xml"]):
        result = command(str(HERE / "faulty_kernel.py") + ":kernel", "--rounds", "1", *wrong)
        assert result.returncode == 2 and "Traceback" not in result.stderr, result.stderr


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
