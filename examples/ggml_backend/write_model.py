#!/usr/bin/env python3
"""Writes a GGUF file with random weights, of the architecture qwen35 (Qwen3.5): Gated DeltaNet in three layers of four.

    write_model.py FILE [--shape small|0.8B]

`small` is for comparing logits, float32; `0.8B` has the shape of Qwen3.5-0.8B in Q4_0, 0.5 GB, for timing. Needs
`pip install gguf`.
"""
import argparse

SHAPES = {
    #         embd  ff    layers heads kv  head vocab   key heads, value heads
    "small": (256, 512, 4, 4, 2, 64, 512, 8, 16),
    "0.8B": (1024, 3584, 24, 8, 2, 256, 248320, 16, 16),
}
STATE_SIZE, CONV_KERNEL = 128, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--shape", choices=SHAPES, default="small")
    args = parser.parse_args()

    import gguf
    import numpy as np

    embd, ff, layers, heads, kv_heads, head, vocab, key_heads, value_heads = SHAPES[args.shape]
    quantized = args.shape != "small"
    key_dim, value_dim = key_heads * STATE_SIZE, value_heads * STATE_SIZE
    conv_dim = 2 * key_dim + value_dim
    random = np.random.default_rng(1)
    writer = gguf.GGUFWriter(args.file, "qwen35")

    def matrix(name: str, rows: int, columns: int) -> None:
        """Elements of variance 1 / columns. A block of Q4_0: a scale in float16, 32 numbers of 4 bits from -8 to 7."""
        deviation = columns**-0.5
        if quantized:
            blocks = random.integers(0, 256, (rows, columns // 32, 18), dtype=np.uint8)
            blocks[:, :, :2] = np.frombuffer(np.float16(deviation / 4.6).tobytes(), np.uint8)
            writer.add_tensor(name, blocks.reshape(rows, -1), raw_dtype=gguf.GGMLQuantizationType.Q4_0)
        else:
            writer.add_tensor(name, (deviation * random.standard_normal((rows, columns))).astype(np.float32))

    def vector(name: str, low: float, high: float, *shape: int) -> None:
        writer.add_tensor(name, random.uniform(low, high, shape).astype(np.float32))

    writer.add_block_count(layers)
    writer.add_context_length(4096)
    writer.add_embedding_length(embd)
    writer.add_feed_forward_length(ff)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e7)
    writer.add_rope_dimension_count(head // 4)
    writer.add_rope_dimension_sections([head // 16, head // 32, head // 32, 0])
    writer.add_vocab_size(vocab)
    writer.add_tokenizer_model("no_vocab")
    writer.add_ssm_conv_kernel(CONV_KERNEL)
    writer.add_ssm_inner_size(value_dim)
    writer.add_ssm_state_size(STATE_SIZE)
    writer.add_ssm_time_step_rank(value_heads)
    writer.add_ssm_group_count(key_heads)
    writer.add_uint32("qwen35.full_attention_interval", 4)

    matrix("token_embd.weight", vocab, embd)
    vector("output_norm.weight", 0.9, 1.1, embd)
    for layer in range(layers):
        name = f"blk.{layer}."
        vector(name + "attn_norm.weight", 0.9, 1.1, embd)
        vector(name + "post_attention_norm.weight", 0.9, 1.1, embd)
        if layer % 4 == 3:
            matrix(name + "attn_q.weight", 2 * heads * head, embd)  # with the gate
            matrix(name + "attn_k.weight", kv_heads * head, embd)
            matrix(name + "attn_v.weight", kv_heads * head, embd)
            matrix(name + "attn_output.weight", embd, heads * head)
            vector(name + "attn_q_norm.weight", 0.9, 1.1, head)
            vector(name + "attn_k_norm.weight", 0.9, 1.1, head)
        else:
            matrix(name + "attn_qkv.weight", conv_dim, embd)
            matrix(name + "attn_gate.weight", value_dim, embd)
            vector(name + "ssm_conv1d.weight", -0.5, 0.5, conv_dim, CONV_KERNEL)
            vector(name + "ssm_dt.bias", -4, 1, value_heads)
            vector(name + "ssm_a", -2, -0.01, value_heads)  # -exp(A_log)
            matrix(name + "ssm_beta.weight", value_heads, embd)
            matrix(name + "ssm_alpha.weight", value_heads, embd)
            vector(name + "ssm_norm.weight", 0.9, 1.1, STATE_SIZE)
            matrix(name + "ssm_out.weight", embd, value_dim)
        matrix(name + "ffn_gate.weight", ff, embd)
        matrix(name + "ffn_up.weight", ff, embd)
        matrix(name + "ffn_down.weight", embd, ff)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
