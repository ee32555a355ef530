"""vLLM's tests of its gated delta rule, from its source package."""

import types

from plugin import missing, module, on_the_cpu, public

PACKAGE = ("vllm", "0.33.0")
BUILD = {"VLLM_TARGET_DEVICE": "cpu", "VLLM_VERSION_OVERRIDE": "0.33.0"}  # pip asks the package for its version
TESTS = [
    "tests/kernels/fla/test_fused_recurrent_packed_decode.py",
    "tests/kernels/fla/test_fused_sigmoid_gating_delta_rule.py",
    "tests/kernels/fla/test_fused_gdn_post_conv.py",
    "tests/kernels/mamba/cpu/test_cpu_gdn_ops.py",
    "tests/models/glm5next/test_kda_recurrent.py",
    "tests/models/kimi_k3/test_kda.py",
]

OTHER = {
    "causal_conv1d": "the convolution before the operator",
    "test_conv_": "the convolution before the operator",
    "test_spec_forward_": "the convolution before the operator",
    "test_spec_decode_unpacked": "the convolution before the operator",
    "test_spec_aware_": "how the engine routes tokens",
    "test_batch_memcpy": "copies of the engine",
    "test_prefill_checkpoint_resumes": "a layer of the engine",
    "test_kda_warmup": "a layer of the engine",
    "test_resolve_kda_spec_decode_backend": "which kernel the engine takes",
    "test_kda_recoverssm_config_state_layout": "shapes of the engine's caches",
    "test_gather_initial_states_correctness": "copies of the engine",
    "test_fused_kda_decode_": "the convolution before the operator",
    "test_flashinfer_fused_kda_spec_decode_integration": "the convolution before the operator",
    "test_kda_prefill_": "kernels of other packages, as the engine calls them",
    "test_flashinfer_kda_prefill_breakable_graph": "kernels of other packages, as the engine calls them",
    "test_flashkda_checkpoint_correctness": "kernels of other packages, as the engine calls them",
    # A cache of tensors gives the same one for both where they have as many elements.
    "test_chunk_gated_delta_rule_cpu[bf16-representative-seq_lens3]": "v and the pool are the same memory",
    "test_chunk_gated_delta_rule_cpu[bf16-representative-seq_lens5]": "v and the pool are the same memory",
    "test_chunk_gated_delta_rule_cpu[bf16-representative-seq_lens6]": "v and the pool are the same memory",
    "rejects_unaddressable": "the kind of exception for strides that its kernel cannot follow, and this operator can",
}


# What the tests of Kimi-K3 name besides, where they are about something else.
ENGINE = {
    "compilation.breakable_cudagraph": "BreakableCUDAGraphCapture",
    "model_executor.layers.mamba.checkpoint": "MambaPrefillCheckpointMetadata",
    "model_executor.layers.mamba.kda_checkpoint": "FlashKDAPrefillCheckpointExporter",
    "model_executor.layers.mamba.mamba_utils": "MambaStateShapeCalculator",
    "model_executor.layers.mamba.ops.causal_conv1d": "causal_conv1d_update",
    "model_executor.layers.mamba.ops.gather_initial_states": "gather_initial_states",
    "models.kimi_k3.nvidia.kda": "KimiK3DeltaAttention _flashinfer_kda_prefill _flashkda_prefill "
    "is_flashinfer_fused_kda_decode_supported is_flashinfer_fused_kda_spec_decode_supported "
    "is_flashinfer_recurrent_kda_prefill_supported is_flashkda_supported is_fused_kda_decode_supported "
    "resolve_kda_spec_decode_backend",
    "models.kimi_k3.nvidia.kda_metadata": "KimiK3KDAMetadata",
    "models.kimi_k3.nvidia.model": "KimiLinearForCausalLM",
    "models.kimi_k3.nvidia.ops.recoverssm": "KDARecoverSSMCommitContext is_conv_state_dim_first",
    "utils.flashinfer": "flashinfer_fused_kda_decode",
    "v1.attention.backends.utils": "NULL_BLOCK_ID",
}


class Platform:
    device_type = "cpu"

    def __getattr__(self, name):  # is_cuda_alike(), has_device_capability(80), ...
        return lambda *arguments: not name.endswith(("rocm", "xpu"))


def set_random_seed(seed):
    import torch

    torch.manual_seed(seed)


def install():
    from gdn_varlen import vllm, vllm_kimi_k3

    torch = on_the_cpu()
    module("vllm.platforms", current_platform=Platform())
    module("vllm.utils.torch_utils", set_random_seed=set_random_seed)
    ops = "vllm.third_party.flash_linear_attention.ops"
    module(ops, **public(vllm))
    module(f"{ops}.fused_gdn_prefill_post_conv", fused_post_conv_prep=vllm.fused_post_conv_prep)
    name = "fused_gdn_decode_post_conv_mtp_triton"
    module(f"{ops}.fused_gdn_decode_post_conv_mtp", **{name: vllm.fused_gdn_decode_post_conv_mtp_triton})
    module(f"{ops}.layernorm_guard", rmsnorm_fn=missing(name))
    module("vllm._custom_ops", **public(vllm))
    module("vllm.models.glm5next.nvidia.ops.third_party.kda", fused_recurrent_kda=vllm.fused_recurrent_kda)
    for name, contents in ENGINE.items():
        module(f"vllm.{name}", **dict.fromkeys(contents.split()))
    for vendor in ("nvidia", "amd"):
        module(f"vllm.models.kimi_k3.{vendor}.ops.third_party.kda", **public(vllm_kimi_k3))
    records = types.SimpleNamespace(allocate=vllm_kimi_k3.kda_recoverssm_verify)
    module(
        "vllm.models.kimi_k3.nvidia.ops.recoverssm", KDARecoverSSMRecords=records,
        kda_recoverssm_verify=vllm_kimi_k3.kda_recoverssm_verify,
    )  # fmt: skip
    # The reference's.
    module(
        f"{ops}.l2norm",
        l2norm_fwd=lambda x: (x.float() / torch.sqrt(x.float().square().sum(-1, keepdim=True) + 1e-6)).to(x.dtype),
    )
    # Named by tests that are not about the operator.
    module("vllm.model_executor.layers.mamba.ops.cpu.gdn_attention", is_arm_bf16=lambda: False)
    module("vllm.v1.attention.backends.gdn_attn", GDNAttentionMetadata=None)
