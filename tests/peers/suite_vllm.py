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
]

OTHER = {
    "causal_conv1d": "the convolution before the operator",
    "test_conv_": "the convolution before the operator",
    "test_spec_forward_": "the convolution before the operator",
    "test_spec_decode_unpacked": "the convolution before the operator",
    "test_spec_aware_": "how the engine routes tokens",
    "test_batch_memcpy": "copies of the engine",
    "test_prefill_checkpoint_resumes": "a layer of the engine",
    # A cache of tensors gives the same one for both where they have as many elements.
    "test_chunk_gated_delta_rule_cpu[bf16-representative-seq_lens3]": "v and the pool are the same memory",
    "test_chunk_gated_delta_rule_cpu[bf16-representative-seq_lens5]": "v and the pool are the same memory",
    "test_chunk_gated_delta_rule_cpu[bf16-representative-seq_lens6]": "v and the pool are the same memory",
    "rejects_unaddressable": "the kind of exception for strides that its kernel cannot follow, and this operator can",
}


class Platform:
    device_type = "cpu"

    def __getattr__(self, name):  # is_cuda_alike(), has_device_capability(80), ...
        return lambda *arguments: not name.endswith(("rocm", "xpu"))


def set_random_seed(seed):
    import torch

    torch.manual_seed(seed)


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
    # Named by tests that are not about the operator.
    module("vllm.model_executor.layers.mamba.ops.cpu.gdn_attention", is_arm_bf16=lambda: False)
    module("vllm.v1.attention.backends.gdn_attn", GDNAttentionMetadata=None)
