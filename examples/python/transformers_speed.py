#!/usr/bin/env python3
"""Tokens per second of Hugging Face models before and after gdn_varlen.transformers.accelerate().

    pip install numpy torch transformers
    examples/python/transformers_speed.py

Each model has the published widths, one block with linear attention and one with full attention, random weights and a
vocabulary of 1024; of the experts there are 16, with as many at work for each token as published. "operator" is what
the blocks with linear attention call, alone.
Prints a table in Markdown: the best prompt and the best step of several runs, the two in turn, by the time of one
processor on one thread.
"""

import argparse
import sys
import time
from pathlib import Path

WIDTHS = dict(num_hidden_layers=2, layer_types=["linear_attention", "full_attention"], vocab_size=1024,
              pad_token_id=0, bos_token_id=1, eos_token_id=2)  # fmt: skip
MODELS = {  # the configurations' defaults are the published widths
    "Qwen3Next": ("Config", dict(num_experts=16)),
    "Qwen3_5": ("TextConfig", {}),
    "OlmoHybrid": ("Config", {}),
    "KimiLinear": ("Config", dict(num_local_experts=16, mlp_layer_types=["sparse", "sparse"])),
}

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
parser.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
parser.add_argument("--prompt", type=int, default=512, help="tokens of the prompt (default: 512)")
parser.add_argument("--steps", type=int, default=32, help="tokens decoded after it (default: 32)")
parser.add_argument("--runs", type=int, default=2, help="of each (default: 2)")
arguments = parser.parse_args()  # before the imports: --help needs none of them

import torch  # noqa: E402
import transformers  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parent))
from gdn_varlen.transformers import REPLACEMENTS, accelerate  # noqa: E402


def cpu_name():
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), "unknown CPU")


def number(x):
    """Three digits, or all before the point."""
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


class Timed:
    """In the place of a function: keeps the seconds that it took."""

    seconds = 0.0

    def __init__(self, function):
        self.function = function

    def __call__(self, *args, **options):
        begin = time.process_time()
        result = self.function(*args, **options)
        Timed.seconds += time.process_time() - begin
        return result


@torch.inference_mode()
def run(model, best):
    """Lowers the best seconds a token: of the prompt, of a step after it, and of the operator in each. What else the
    machine does is not in them."""
    module = vars(sys.modules[type(model).__module__])
    functions = {name: module[name] for name in REPLACEMENTS if name in module}
    module.update({name: Timed(function) for name, function in functions.items()})
    cache = None
    for i, parts in enumerate(((tokens[:, : arguments.prompt],), tokens[:, arguments.prompt :].split(1, 1))):
        for part in parts:
            Timed.seconds, begin = 0.0, time.process_time()
            cache = model(part, cache=cache, use_cache=True).cache
            best[i] = min(best[i], (time.process_time() - begin) / part.shape[1])
            best[i + 2] = min(best[i + 2], Timed.seconds / part.shape[1])
    module.update(functions)


torch.set_num_threads(1)
print(f"{cpu_name()}, one thread; torch {torch.__version__}, transformers {transformers.__version__}; tokens/s:\n")
print(f"| widths of | dtype | | prefill {arguments.prompt} | after | decode | after |\n|---|---|---|---|---|---|---|")
tokens = torch.randint(3, 1024, (1, arguments.prompt + arguments.steps), generator=torch.Generator().manual_seed(0))
for name in arguments.models:
    suffix, options = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, name + suffix)(**WIDTHS, **options)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    for dtype in arguments.dtypes:
        model = model.to(getattr(torch, dtype))
        before, after = [float("inf")] * 4, [float("inf")] * 4
        for _ in range(arguments.runs):
            run(model, before)
            with accelerate(model, quiet=True):
                run(model, after)
        cells = [f" {number(1 / x)} | {number(1 / y)} ({number(x / y)} x) |" for x, y in zip(before, after)]
        print(f"| {name} | {dtype} | whole |{cells[0]}{cells[1]}\n| | | operator |{cells[2]}{cells[3]}", flush=True)
