"""The operator as torch.ops.gdn_varlen.fused_sigmoid_gating_delta_rule_update, registered by importing this file.

It is the function of the same name with tensors for arrays: opaque to torch.compile, which calls it as it stands.
num_threads is torch.get_num_threads() by default.
"""

import inspect
from typing import Optional

import torch
from torch import Tensor

from . import operator


def _on_cpu(
    A_log: Optional[Tensor],
    a: Tensor,
    dt_bias: Optional[Tensor],
    softplus_beta: float,
    softplus_threshold: float,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    b: Optional[Tensor],
    initial_state_source: Optional[Tensor],
    initial_state_indices: Optional[Tensor],
    scale: Optional[float] = None,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: Optional[Tensor] = None,
    is_kda: bool = False,
    lower_bound: Optional[float] = None,
    disable_state_update: bool = False,
    intermediate_states_buffer: Optional[Tensor] = None,
    intermediate_state_indices: Optional[Tensor] = None,
    cache_steps: Optional[int] = None,
    retrieve_parent_token: Optional[Tensor] = None,
    preset: str = "sglang",
    state_layout: Optional[str] = None,
    head_map: Optional[str] = None,
    gate_input: Optional[str] = None,
    beta_input: Optional[str] = None,
    l2norm_form: Optional[str] = None,
    l2norm_eps: Optional[float] = None,
    padding: Optional[str] = None,
    null_slot: Optional[int] = None,
    allow_neg_eigval: bool = False,
    output_state_indices: Optional[Tensor] = None,
    output_state_pool: Optional[Tensor] = None,
    ssm_state_indices: Optional[Tensor] = None,
    num_accepted_tokens: Optional[Tensor] = None,
    step_interval: int = 1,
    k_read: Optional[Tensor] = None,
    erase: Optional[Tensor] = None,
    gv: Optional[Tensor] = None,
    token_mask: Optional[Tensor] = None,
    read_before_decay: bool = False,
    round_qk: bool = False,
    round_q_scaled: bool = False,
    round_beta: bool = False,
    round_state: bool = False,
    compute: str = "f32",
    num_threads: Optional[int] = None,
) -> Tensor:
    if num_threads is None:
        num_threads = torch.get_num_threads()
    return operator.fused_sigmoid_gating_delta_rule_update(**locals())


fused_sigmoid_gating_delta_rule_update = torch.library.custom_op(
    "gdn_varlen::fused_sigmoid_gating_delta_rule_update",
    _on_cpu,
    mutates_args=("initial_state_source", "output_state_pool", "intermediate_states_buffer"),
    device_types="cpu",
)


@fused_sigmoid_gating_delta_rule_update.register_fake
def _(*arguments, **options):
    call = inspect.signature(_on_cpu).bind(*arguments, **options).arguments
    dtype = torch.float64 if call.get("compute") == "f64" else call["q"].dtype
    return call["v"].new_empty(call["v"].shape, dtype=dtype)
