#!/usr/bin/env python3
"""A small random Qwen3-Next generates text as PyPI's transformers has it, and with this library's operator.

    pip install numpy torch transformers
    examples/python/qwen3_next.py

Exits with 1 where the tokens of the two differ, or their logits by more than 1e-4.
"""

import argparse
import sys
import time
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--prompt", type=int, default=500, help="tokens of each of the two prompts (default: 500)")
parser.add_argument("--steps", type=int, default=64, help="tokens generated after them (default: 64)")
arguments = parser.parse_args()  # before the imports: --help needs none of them

import torch  # noqa: E402
from transformers import Qwen3NextConfig, Qwen3NextForCausalLM  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parent))
from gdn_varlen.transformers import accelerate  # noqa: E402

torch.manual_seed(0)
model = Qwen3NextForCausalLM(Qwen3NextConfig(
    vocab_size=512, hidden_size=256, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=64,
    moe_intermediate_size=64, shared_expert_intermediate_size=64, num_experts=4, num_experts_per_tok=2,
    linear_num_key_heads=4, linear_num_value_heads=8, linear_key_head_dim=128, linear_value_head_dim=128,
)).eval()  # fmt: skip
prompts = torch.randint(512, (2, arguments.prompt))


def generate(system):
    begin = time.perf_counter()
    result = model.generate(prompts, max_new_tokens=arguments.steps, min_new_tokens=arguments.steps, do_sample=False,
                            output_logits=True, return_dict_in_generate=True)  # fmt: skip
    print(f"{system}: {time.perf_counter() - begin:.2f} s for 2 times {arguments.prompt} and {arguments.steps} tokens")
    return result.sequences, torch.stack(result.logits)


expected_tokens, expected = generate("transformers")
with accelerate(model):
    tokens, logits = generate("gdn_varlen")

if not torch.equal(tokens, expected_tokens):
    sys.exit("the tokens differ")
difference = (logits - expected).abs().max().item()
print(f"largest difference of the logits: {difference:.1e} (largest logit {expected.abs().max():.2g})")
if not difference <= 1e-4:
    sys.exit("more than 1e-4")
