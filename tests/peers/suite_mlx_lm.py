"""mlx-lm's tests of its gated delta rule, from its source package: its reference stays, its kernel and the function
that its models call are ours."""

import importlib

PACKAGE = ("mlx-lm", "0.32.2")
INSTALL = ["mlx[cpu]", "mlx-lm==0.32.2"]
TESTS = ["tests/test_models.py", "tests/test_gated_delta.py"]
ONLY = "gated_delta and not ssm"  # test_models.py is about every model

OTHER = {
    "test_kill_switch": "which of its GPU kernels runs",
    "test_packed_matches_unpacked": "two of its GPU kernels compared",
    "test_explicit_tree": "two of its GPU kernels compared",
    "test_unsupported_shapes": "which of its GPU kernels runs",
}


def install():
    import mlx.core as mx

    from gdn_varlen import mlx_lm

    theirs = importlib.import_module("mlx_lm.models.gated_delta")
    theirs.gated_delta_kernel, theirs.gated_delta_update = mlx_lm.gated_delta_kernel, mlx_lm.gated_delta_update
    mx.default_device = lambda: mx.gpu  # the tests of the kernel run where this is so
