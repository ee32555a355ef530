"""FlashInfer. Its packages hold none of its tests of this operator, but descriptions of its functions with a reference
and with the inputs of its tests, and a reference of KDA: test_flashinfer.py compares with those."""

import importlib.util
import sys
import types

from plugin import on_the_cpu

INSTALL = ["flashinfer-python==0.7.4"]
TESTS = ["test_flashinfer.py"]
OTHER = {}


def install():
    on_the_cpu()
    # Its own __init__ wants a GPU's compiler: the folders without theirs.
    names = ["flashinfer", "flashinfer.trace", "flashinfer.trace.templates", "flashinfer.experimental"]
    names += ["flashinfer.experimental.b12x", (sequence := "flashinfer.experimental.b12x.sequence")]
    names += [f"{sequence}.kda_prefill", f"{sequence}._shared", f"{sequence}._shared.delta_prefill"]
    for name in names:
        package = types.ModuleType(name)
        parent, _, leaf = name.rpartition(".")
        places = sys.modules[parent].__path__ if parent else None
        package.__path__ = list(importlib.machinery.PathFinder.find_spec(name, places).submodule_search_locations)
        sys.modules[name] = package
