"""gdn_varlen.h for Python: the Gated DeltaNet recurrence on CPUs, over numpy arrays and torch tensors.

from gdn_varlen import fused_sigmoid_gating_delta_rule_update
"""

from . import library
from .operator import GdnError, Prepared, fused_sigmoid_gating_delta_rule_update, prepare, presets

__version__ = ".".join(map(str, library.VERSION))
__all__ = ["GdnError", "Prepared", "fused_sigmoid_gating_delta_rule_update", "prepare", "presets"]
