"""SGLang. Its packages hold no tests of this operator, but the kit of its attention tests: their cases, inputs and
references in torch, which test_sglang.py compares with."""

import enum
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from pathlib import Path
from unittest import mock

from plugin import on_the_cpu

INSTALL = ["sglang==0.5.23"]
TESTS = ["test_sglang.py"]
OTHER = {}


class ForwardMode(enum.Enum):
    EXTEND = 1
    DECODE = 2

    def is_decode(self):
        return self is ForwardMode.DECODE


class Engine(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """sglang.srt, the engine that the kit builds its layers of, and which is not run here: names without a meaning."""

    def find_spec(self, name, path, target=None):
        if name == "sglang.srt" or name.startswith("sglang.srt."):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        made = mock.MagicMock(name=spec.name)
        made.ForwardMode, made.ModelRunner = ForwardMode, object
        return made

    def exec_module(self, module):
        pass


def install():
    on_the_cpu()
    kits = "sglang/test/kits/attention_unittest/attention_methods"
    places = [Path(importlib.machinery.PathFinder.find_spec("sglang").submodule_search_locations[0]).parent / kits]
    sys.meta_path.insert(0, Engine())
    package = sys.modules["sglang"] = types.ModuleType("sglang")
    package.__path__ = []
    for name in ("gdn_attention", "kda_attention"):
        spec = importlib.util.spec_from_file_location(name, places[0] / f"{name}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
