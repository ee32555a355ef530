"""FLA. Its packages hold no tests: test_fla.py calls its functions as its tests do and compares with the references
that its package has. In a checkout of its repository there are the tests themselves (--tests fla=FOLDER)."""

import importlib

from plugin import ForwardOnly, on_the_cpu, public

INSTALL = ["fla-core==0.6.0", "einops"]
TESTS = ["test_fla.py"]
CHECKOUT = ["tests/ops/test_gdn.py", "tests/ops/test_kda.py"]
OTHER = {}


def install():
    import torch

    from gdn_varlen import fla

    on_the_cpu()
    torch.set_grad_enabled(True)  # for the references; see forward_only()
    testing = importlib.import_module("fla.utils.testing")
    testing.assert_close = importlib.import_module("fla.utils").assert_close = up_to_gradients(testing.assert_close)
    for name in ("gated_delta_rule", "kda", "gdn2", "comba"):
        theirs = importlib.import_module(f"fla.ops.{name}")
        parts = ("chunk", "fused_recurrent", *(["gate"] if name in ("gated_delta_rule", "kda") else []))
        for module in [theirs, *(importlib.import_module(f"{theirs.__name__}.{part}") for part in parts)]:
            for function, ours in public(fla).items():
                if hasattr(module, function) and not function.startswith("naive"):
                    setattr(module, function, forward_only(ours))


def forward_only(function):
    """`function` for tensors that want gradients: it has none for them, and says so to no one but up_to_gradients()."""
    import functools
    import inspect

    import torch

    class Forward(torch.autograd.Function):
        @staticmethod
        def forward(context, options, names, *tensors):
            return function(**options, **dict(zip(names, tensors)))

        @staticmethod
        def backward(context, *gradients):
            return (None,) * (2 + len(context.needs_input_grad[2:]))

    @functools.wraps(function)
    def call(*arguments, **options):
        bound = inspect.signature(function).bind(*arguments, **options).arguments
        bound |= bound.pop("kwargs", {})
        tensors = {name: x for name, x in bound.items() if isinstance(x, torch.Tensor) and x.requires_grad}
        rest = {name: x for name, x in bound.items() if name not in tensors}
        return Forward.apply(rest, list(tensors), *tensors.values()) if tensors else function(**rest)

    return call


def up_to_gradients(assert_close):
    """Outputs and states are compared; at the first gradient the case is over, and has passed."""

    def call(prefix, ref, tri, *arguments, **options):
        if tri is None and prefix.startswith("d"):
            raise ForwardOnly
        return assert_close(prefix, ref, tri, *arguments, **options)

    return call
