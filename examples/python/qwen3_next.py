#!/usr/bin/env python3
"""A tiny random Qwen3-Next whose linear-attention layers call gdn_varlen.h, beside the stock model.

    pip install torch transformers
    examples/python/qwen3_next.py

Builds the model of PyPI's transformers with random weights, runs prefill and cached decode with its own operators and
with torch.ops.gdn_varlen, checks that the logits agree within 1e-4 and prints the speed of both. Exits with 1 when they
do not agree.
"""

import argparse
import itertools
import statistics
import sys
import time
from pathlib import Path

try:
    import torch
    from transformers import Qwen3NextConfig, Qwen3NextForCausalLM
    from transformers.models.qwen3_next import modeling_qwen3_next as modeling
except ImportError as missing:
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__.strip())
        sys.exit()
    print(f"qwen3_next.py: {missing}: pip install torch transformers", file=sys.stderr)
    sys.exit(2)

sys.path.insert(0, str(Path(__file__).resolve().parent))
import gdn_varlen.torch_op  # noqa: E402, F401

# transformers' functions, which its layers call in prefill and in cached decode.
PREFILL, DECODE = "torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule"


def ours(
    query, key, value, g, beta, initial_state=None, output_final_state=False, use_qk_l2norm_in_kernel=False,
    cu_seqlens=None, **_,
):  # fmt: skip
    """What both compute: the states go in and come out as [B,HV,K,V]."""
    sequences = query.shape[0] if cu_seqlens is None else cu_seqlens.numel() - 1
    if initial_state is None:
        pool = torch.zeros(sequences, value.shape[2], key.shape[3], value.shape[3])
    else:
        pool = initial_state.clone()
    o = torch.ops.gdn_varlen.fused_sigmoid_gating_delta_rule_update(
        None, g, None, 1.0, 20.0, query, key, value, beta, pool, None,
        use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel, cu_seqlens=cu_seqlens, preset="transformers",
    )  # fmt: skip
    return o, pool if output_final_state else None


class Operators:
    """Puts functions in the place of transformers' own while it lasts, and keeps the seconds of every call."""

    def __init__(self, functions):
        self.functions, self.stock = functions, {name: getattr(modeling, name) for name in functions}
        self.seconds = {name: [] for name in functions}

    def __enter__(self):
        for name, function in self.functions.items():
            setattr(modeling, name, self._timed(function, self.seconds[name]))
        return self.seconds

    def __exit__(self, *_):
        for name, function in self.stock.items():
            setattr(modeling, name, function)

    @staticmethod
    def _timed(function, seconds):
        def timed(*arguments, **options):
            begin = time.perf_counter()
            result = function(*arguments, **options)
            seconds.append(time.perf_counter() - begin)
            return result

        return timed


def tiny_model(layers, heads, value_heads):
    torch.manual_seed(0)
    config = Qwen3NextConfig(
        vocab_size=512, hidden_size=256, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2,
        head_dim=64, intermediate_size=256, moe_intermediate_size=64, shared_expert_intermediate_size=64, num_experts=4,
        num_experts_per_tok=2, linear_num_key_heads=heads, linear_num_value_heads=value_heads,
        linear_key_head_dim=128, linear_value_head_dim=128, max_position_embeddings=4096,
    )  # fmt: skip
    return Qwen3NextForCausalLM(config).eval()


@torch.inference_mode()
def run(model, tokens, steps):
    """Logits of the prompt and of `steps` greedy tokens after it, and the seconds of each part."""
    begin = time.perf_counter()
    result = model(tokens, use_cache=True)
    logits, chosen = [result.logits], [tokens]
    prefilled = time.perf_counter()
    for _ in range(steps):
        chosen.append(result.logits[:, -1:].argmax(-1))
        result = model(chosen[-1], past_key_values=result.past_key_values, use_cache=True)
        logits.append(result.logits)
    return torch.cat(logits, 1), torch.cat(chosen, 1), prefilled - begin, time.perf_counter() - prefilled


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=4, help="every fourth has full attention (default: 4)")
    parser.add_argument("--key-heads", type=int, default=4)
    parser.add_argument("--value-heads", type=int, default=8)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=200, help="tokens of a prompt (default: 200)")
    parser.add_argument("--steps", type=int, default=16, help="tokens decoded after it (default: 16)")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()

    model = tiny_model(arguments.layers, arguments.key_heads, arguments.value_heads)
    tokens = torch.randint(512, (arguments.batch, arguments.prompt))
    linear = sum(kind == "linear_attention" for kind in model.config.layer_types)
    print(f"{linear} linear-attention layers of {arguments.layers}, {arguments.key_heads} key and "
          f"{arguments.value_heads} value heads of 128 x 128, batch {arguments.batch}, float32, tokens/s:")  # fmt: skip
    print(f"{'':16}{'model':>20}{'its operator alone':>24}\n{'':16}" + "   prefill    decode" * 2)
    stock = {name: getattr(modeling, name) for name in (PREFILL, DECODE)}
    results = []
    for system, functions in (("transformers", stock), ("gdn_varlen.h", dict.fromkeys(stock, ours))):
        times = []
        for _ in range(arguments.runs):
            with Operators(functions) as seconds:
                logits, chosen, *whole = run(model, tokens, arguments.steps)
            if [len(seconds[PREFILL]), len(seconds[DECODE])] != [linear, linear * arguments.steps]:
                sys.exit(f"the layers of this version of transformers do not call {PREFILL} and {DECODE}")
            times.append((*whole, sum(seconds[PREFILL]), sum(seconds[DECODE])))
        work = itertools.cycle((arguments.batch * arguments.prompt, arguments.batch * arguments.steps))
        speeds = [count / statistics.median(column) for count, column in zip(work, zip(*times))]
        print(f"{system:16}" + "".join(f"{speed:10.0f}" for speed in speeds))
        results.append((logits, chosen))
    (expected, expected_tokens), (logits, chosen) = results

    if not torch.equal(chosen, expected_tokens):
        sys.exit("the tokens differ")
    difference = (logits - expected).abs().max().item()
    print(f"largest difference of the logits: {difference:.1e} (largest logit {expected.abs().max():.2g})")
    if not difference <= 1e-4:
        sys.exit("more than 1e-4")


if __name__ == "__main__":
    main()
