"""FLA. Its packages hold no tests: test_fla.py calls its functions as its tests do and compares with the references that
its package has. In a checkout of its repository there are the tests themselves (--tests fla=FOLDER)."""

import importlib

from plugin import on_the_cpu, public

INSTALL = ["fla-core==0.6.0", "einops"]
TESTS = ["test_fla.py"]
CHECKOUT = ["tests/ops/test_gdn.py", "tests/ops/test_kda.py"]
OTHER = {}


def install():
    from gdn_varlen import fla

    on_the_cpu()
    for name in ("gated_delta_rule", "kda"):
        theirs = importlib.import_module(f"fla.ops.{name}")
        modules = [theirs] + [importlib.import_module(f"{theirs.__name__}.{part}") for part in ("chunk", "fused_recurrent")]
        for module in modules:
            for function, ours in public(fla).items():
                if hasattr(module, function) and not function.startswith("naive"):
                    setattr(module, function, ours)
