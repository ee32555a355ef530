"""A pytest plugin that runs a peer's own tests against this library: -p plugin --peer NAME --outcomes FILE.

The tests stay as they are. Behind their imports stands the peer's module of examples/python/gdn_varlen, "cuda" means
the CPU, and what only makes a GPU wait does nothing. Every case and what became of it goes to FILE, as lines of JSON.
"""

import importlib
import importlib.machinery
import json
import sys
import types
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "examples/python")]

from gdn_varlen import calls  # noqa: E402
from gdn_varlen.calls import NotExpressible, missing  # noqa: E402


class ForwardOnly(Exception):
    """Outputs and states have passed, and gradients follow."""


def pytest_addoption(parser):
    parser.addoption("--peer", required=True)
    parser.addoption("--outcomes", required=True)


def pytest_configure(config):
    config.suite = importlib.import_module(f"suite_{config.getoption('--peer')}")
    config.suite.install()
    config.outcomes = open(config.getoption("--outcomes"), "w", encoding="utf-8")
    config.unused = set(config.suite.OTHER)


def pytest_collection_modifyitems(config, items):
    """Cases that are about something else are not run, and say about what."""
    for item in items:
        for pattern, reason in config.suite.OTHER.items():
            if pattern in item.nodeid:
                config.unused.discard(pattern)
                item.add_marker(pytest.mark.skip(reason=reason))
                break


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if report.when == "call" and report.failed:
        report.not_expressible = _not_expressible(call.excinfo.value)
        if isinstance(call.excinfo.value, ForwardOnly):
            report.outcome, report.forward_only = "passed", True


def _not_expressible(error):
    while error is not None:
        if isinstance(error, NotExpressible):
            return str(error)
        error = error.__cause__ or error.__context__
    return None


def pytest_runtest_logreport(report):
    if report.when != "call" and report.passed:
        return
    outcome, reason = report.outcome, ""
    if report.skipped:
        reason = report.longrepr[2].removeprefix("Skipped: ")
    elif getattr(report, "forward_only", False):
        reason = "outputs and states agree; gradients are not computed"
    elif report.failed:
        if getattr(report, "not_expressible", None):
            outcome, reason = "not expressible", report.not_expressible
        else:
            crash = getattr(report.longrepr, "reprcrash", None)
            reason = crash.message.splitlines()[0] if crash else str(report.longrepr).splitlines()[-1]
    _config.outcomes.write(json.dumps([report.nodeid, outcome, reason]) + "\n")


def pytest_sessionstart(session):
    global _config
    _config = session.config


def pytest_sessionfinish(session):
    for pattern in session.config.unused:
        session.config.outcomes.write(json.dumps([pattern, "failed", "this line of OTHER matches no case"]) + "\n")
    session.config.outcomes.close()


# ---- What the suites share


def module(name, **contents):
    """A module of the peer's under its name, with its packages."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        path = ".".join(parts[:end])
        if path not in sys.modules:
            made = types.ModuleType(path)
            made.__path__ = []
            made.__spec__ = importlib.machinery.ModuleSpec(path, None, is_package=True)
            sys.modules[path] = made
            if end > 1:
                setattr(sys.modules[".".join(parts[: end - 1])], parts[end - 1], made)
    vars(sys.modules[name]).update(contents)
    return sys.modules[name]


def public(ours):
    """The functions of one of our modules, without what it imports."""
    shared = vars(calls)
    return {name: value for name, value in vars(ours).items() if callable(value) and shared.get(name) is not value}


def on_the_cpu():
    """torch takes "cuda" for "cpu"."""
    import torch
    from torch.overrides import TorchFunctionMode

    def cpu(x):
        if isinstance(x, torch.device):
            return torch.device("cpu") if x.type == "cuda" else x
        return "cpu" if isinstance(x, str) and (x == "cuda" or x.startswith("cuda:")) else x

    class OnTheCpu(TorchFunctionMode):
        def __torch_function__(self, function, kinds, arguments=(), options=None):
            options = {name: cpu(value) for name, value in (options or {}).items()}
            if getattr(function, "__name__", "") == "cuda":
                return arguments[0]
            return function(*map(cpu, arguments), **options)

    OnTheCpu().__enter__()
    generator = torch.Generator

    class Generator:
        def __new__(cls, device="cpu"):
            return generator(cpu(device))

    torch.Generator = Generator
    set_default_device = torch.set_default_device
    torch.set_default_device = lambda device: set_default_device(cpu(device))
    for where in (torch.cuda, torch.accelerator):
        where.synchronize = lambda *arguments: None
    torch.set_grad_enabled(False)  # no gradients are computed
    return torch


__all__ = ["missing", "module", "on_the_cpu", "public"]
