"""vLLM's tests of its gated delta rule, from its source package."""

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
    "test_resolve_kda": "a layer of the engine",
    "test_kda_recoverssm": "a layer of the engine",
    "test_gather_initial": "copies of the engine",
    "test_fused_kda_decode_": "the convolution before the operator",
    "kimi_k3/test_kda.py::test_flash": "which of the GPU kernels runs",
    "test_kda_prefill_": "which of the GPU kernels runs",
    "rejects_unaddressable": "the kind of exception for strides that its kernel cannot follow, and this operator can",
}


# Kimi's own signatures. Their tests need the gates alone before them.
KIMI = """chunk_kda_with_fused_gate fused_kda_gate fused_recurrent_kda fused_recurrent_kda_fwd
    fused_recurrent_kda_packed_decode"""

NAMED = {
    "vllm.compilation.breakable_cudagraph": "BreakableCUDAGraphCapture",
    "vllm.model_executor.layers.mamba.checkpoint": "MambaPrefillCheckpointMetadata",
    "vllm.model_executor.layers.mamba.kda_checkpoint": "FlashKDAPrefillCheckpointExporter",
    "vllm.model_executor.layers.mamba.mamba_utils": "MambaStateShapeCalculator",
    "vllm.model_executor.layers.mamba.ops.causal_conv1d": "causal_conv1d_update",
    "vllm.model_executor.layers.mamba.ops.gather_initial_states": "gather_initial_states",
    "vllm.models.kimi_k3.nvidia.kda": "KimiK3DeltaAttention _flashinfer_kda_prefill _flashkda_prefill "
    "is_flashinfer_fused_kda_decode_supported is_flashinfer_fused_kda_spec_decode_supported "
    "is_flashinfer_recurrent_kda_prefill_supported is_flashkda_supported is_fused_kda_decode_supported "
    "resolve_kda_spec_decode_backend",
    "vllm.models.kimi_k3.nvidia.kda_metadata": "KimiK3KDAMetadata",
    "vllm.models.kimi_k3.nvidia.model": "KimiLinearForCausalLM",
    "vllm.models.kimi_k3.nvidia.ops.recoverssm": "KDARecoverSSMCommitContext KDARecoverSSMRecords "
    "kda_recoverssm_verify",
    "vllm.utils.flashinfer": "flashinfer_fused_kda_decode",
    "vllm.v1.attention.backends.utils": "NULL_BLOCK_ID",
}


class Platform:
    device_type = "cpu"

    def __getattr__(self, name):  # is_cuda_alike(), has_device_capability(80), ...
        return lambda *arguments: not name.endswith(("rocm", "xpu"))


def set_random_seed(seed):
    import torch

    torch.manual_seed(seed)


def l2norm_fwd(x):
    """A helper of the kernels that the tests of Kimi's KDA put into their reference."""
    import torch

    return (x.float() * torch.rsqrt(x.float().square().sum(-1, keepdim=True) + 1e-6)).to(x.dtype)


def install():
    from gdn_varlen import vllm

    on_the_cpu()
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
    module(f"{ops}.l2norm", l2norm_fwd=l2norm_fwd)
    # Named by tests that are not about the operator.
    for name, contents in NAMED.items():
        module(name, **dict.fromkeys(contents.split()))
    for kind in ("amd", "nvidia"):
        kda = module(f"vllm.models.kimi_k3.{kind}.ops.third_party.kda", chunk_kda=vllm.chunk_kda)
        for name in KIMI.split():
            setattr(kda, name, vllm.fused_kda_gate)
    module("vllm.model_executor.layers.mamba.ops.cpu.gdn_attention", is_arm_bf16=lambda: False)
    module("vllm.v1.attention.backends.gdn_attn", GDNAttentionMetadata=None)
