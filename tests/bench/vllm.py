#!/usr/bin/env python3
"""Side by side with vLLM's CPU operator; vllm.sh fetches and builds what this needs, and starts it.

    vllm.py --source FOLDER --build FOLDER [--threads N] [--tokens N] [--rounds N] [--seconds S] [--case PATTERN]

--source: csrc/cpu/sgl-kernels of vLLM; --build: where its operator is compiled. The models' heads: 16 for q and k, 32
for v, 128 x 128. Two calls of theirs on the inputs that they take, which ours, through examples/python, reads where
they lie:

    vllm_prefill           chunk_gated_delta_rule_cpu: one sequence of --tokens (512), bfloat16, float32 state [K,V]
    vllm_decode_f32        fused_sigmoid_gating_delta_rule_update_cpu: 64 sequences of a token, float32 states
    vllm_decode_bf16       the same with bfloat16 states

One line for each case and each of our ways to compute, key=value pairs: ours_us and theirs_us of one call, the best and
the median of --rounds (5) rounds of --seconds (1) that lie apart, both sides in turn; ratio theirs over ours; the
errors of outputs and states against compute="f64": L2 norm of the difference over that of the truth. With one thread
the time is the processor's.
"""

import argparse
import fnmatch
import os
import resource
import statistics
import sys
import time
from pathlib import Path

H, HV, K, V = 16, 32, 128, 128
SEQUENCES = 64

# One source, as torch's headers take most of the time of a build.
GLUE = r"""
#include "fla.cpp"

#include <torch/library.h>

TORCH_LIBRARY(vllm_fla, m) {
    m.def("prefill", &chunk_gated_delta_rule_cpu);
    m.def("decode(Tensor A_log, Tensor dt_bias, Tensor q, Tensor k, Tensor v, Tensor a, Tensor b, Tensor(a!) states, "
          "Tensor slots, Tensor ends, bool l2norm, float softplus_beta, float softplus_threshold) -> Tensor",
          &fused_sigmoid_gating_delta_rule_update_cpu);
}
"""

# What vLLM's own build sets for a CPU with AMX.
FLAGS = ["-O2", "-DNDEBUG", "-fopenmp", "-DVLLM_CPU_EXTENSION", "-mf16c", "-mfma", "-mavx512f", "-mavx512vl", "-mavx512bw",
         "-mavx512dq", "-mamx-bf16", "-mamx-tile", "-mavx512bf16", "-mavx512vnni", "-DCPU_CAPABILITY_AMXBF16"]


def build(source, folder):
    import torch
    from torch.utils import cpp_extension

    glue = folder / "glue.cpp"
    if not glue.exists() or glue.read_text() != GLUE:
        glue.write_text(GLUE)
    cpp_extension.load(
        "vllm_fla", [str(glue)], extra_cflags=FLAGS, extra_ldflags=["-fopenmp"],
        extra_include_paths=[str(source), str(source.parent)], build_directory=str(folder), is_python_module=False)
    return torch.ops.vllm_fla


class Timings:
    """As gdn_bench: the best and the median of rounds; calls during which the kernel let another program run count
    only where there are no others, as the processor time of such a call may be too short."""

    def __init__(self, threads):
        self.clock = time.process_time if threads == 1 else time.perf_counter
        self.single = threads == 1
        self.bests, self.medians, self.round = [], [], []

    def interruptions(self):
        return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw if self.single else 0

    def run(self, seconds, call):
        end = time.perf_counter() + seconds
        while True:
            before, start = self.interruptions(), self.clock()
            call()
            spent = self.clock() - start
            self.round.append((self.interruptions() != before, spent))
            if time.perf_counter() >= end:
                return

    def end_round(self):
        calm = min(interrupted for interrupted, _ in self.round)
        spent = [seconds for interrupted, seconds in self.round if interrupted == calm]
        self.bests.append((calm, min(spent)))
        self.medians.append(statistics.median(spent))
        self.round = []

    def best(self):
        return min(self.bests)[1]


class Case:
    """One call: `theirs` and `ours` take states, which start as `states`, and update them; theirs returns both."""

    def __init__(self, name, tokens, shape, states, theirs, ours):
        self.name, self.tokens, self.shape = name, tokens, shape
        self.states, self.theirs, self.ours = states, theirs, ours


def gates(torch, random):
    """Flash Linear Attention's initialisation: A up to 16, time steps from 0.001 to 0.1."""
    A_log = torch.empty(HV).uniform_(1, 16, generator=random).log()
    step = torch.empty(HV).uniform_(-6.9078, -2.3026, generator=random).exp()
    return A_log, step.expm1().log()


def prefill(torch, extension, operator, threads, tokens):
    random = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(shape, generator=random).bfloat16()

    A_log, dt_bias = gates(torch, random)
    q, k, v = normal(1, tokens, H, K), normal(1, tokens, H, K), normal(1, tokens, HV, V)
    g = -A_log.exp() * torch.nn.functional.softplus(normal(1, tokens, HV).float() + dt_bias)
    beta = normal(1, tokens, HV).sigmoid()
    states = torch.randn((1, HV, K, V), generator=random)
    ends, slots = torch.tensor([0, tokens], dtype=torch.int32), torch.zeros(1, dtype=torch.int32)

    def theirs(states):
        return extension.prefill(q, k, v, g, beta, states, True, ends, False, True, slots, 1e-6)

    def ours(states, compute, o):
        return operator(
            None, g, None, 1.0, 20.0, q, k, v, beta, states, slots, use_qk_l2norm_in_kernel=True, cu_seqlens=ends,
            preset="vllm_recurrent", state_layout="kv", compute=compute, o=o, num_threads=threads)

    return Case("vllm_prefill", tokens, v.shape, states, theirs, ours)


def decode(torch, extension, operator, threads, dtype, name):
    random = torch.Generator().manual_seed(2)

    def normal(*shape):
        return torch.randn(shape, generator=random).bfloat16()

    N = SEQUENCES
    A_log, dt_bias = gates(torch, random)
    dt_bias = dt_bias.bfloat16()  # as the operator wants it
    q, k, v = normal(1, N, H, K), normal(1, N, H, K), normal(1, N, HV, V)
    a, b = normal(N, HV), normal(N, HV)
    states = torch.randn((N, HV, K, V), generator=random).to(dtype)
    ends = torch.arange(N + 1, dtype=torch.int32)
    slots = torch.arange(N, dtype=torch.int32) ^ 1  # neighbours swapped

    def theirs(states):
        o = extension.decode(A_log, dt_bias, q, k, v, a, b, states, slots, ends, True, 1.0, 20.0)
        return o.view(v.shape), states

    def ours(states, compute, o):
        return operator(
            A_log, a, dt_bias, 1.0, 20.0, q, k, v, b, states, slots, use_qk_l2norm_in_kernel=True, cu_seqlens=ends,
            preset="vllm_cpu", compute=compute, o=o, num_threads=threads)

    return Case(name, N, v.shape, states, theirs, ours)


def error(x, truth):
    return float((x.double() - truth.double()).norm() / truth.double().norm())


def measure(torch, case, computes, options):
    true_states = case.states.double()
    truth = case.ours(true_states, "f64", None)
    o = torch.empty(case.shape, dtype=torch.bfloat16)
    errors = {}
    their_pool, pools = case.states.clone(), {}
    their_o, their_states = case.theirs(their_pool)
    errors["theirs"] = error(their_o, truth), error(their_states, true_states)
    for compute in computes:
        pools[compute] = case.states.clone()
        case.ours(pools[compute], compute, o)
        errors[compute] = error(o, truth), error(pools[compute], true_states)

    timings = {name: Timings(options.threads) for name in ["theirs", *computes]}
    for _ in range(options.rounds):
        end = time.perf_counter() + options.seconds
        while time.perf_counter() < end:  # in turn: a machine that is slow for a while is slow for both
            timings["theirs"].run(0.03, lambda: case.theirs(their_pool))
            for compute in computes:
                timings[compute].run(0.03, lambda: case.ours(pools[compute], compute, o))
        for t in timings.values():
            t.end_round()
        yield None

    def figures(name):
        t = timings[name]
        return 1e6 * t.best() / case.tokens, 1e6 * statistics.median(t.medians) / case.tokens

    theirs = figures("theirs")
    for compute in computes:
        ours = figures(compute)
        ratios = [x / y for x, y in zip(timings["theirs"].medians, timings[compute].medians)]
        yield (
            f"case={case.name} compute={compute} threads={options.threads} tokens={case.tokens} "
            f"ours_us_per_token={ours[0]:.3f} ours_us_per_token_median={ours[1]:.3f} "
            f"theirs_us_per_token={theirs[0]:.3f} theirs_us_per_token_median={theirs[1]:.3f} "
            f"ratio={theirs[0] / ours[0]:.2f} ratio_median={statistics.median(ratios):.2f} "
            f"ours_o={errors[compute][0]:.1e} ours_state={errors[compute][1]:.1e} "
            f"theirs_o={errors['theirs'][0]:.1e} theirs_state={errors['theirs'][1]:.1e}"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--build", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--case", default="*")
    options = parser.parse_args()
    if min(options.threads, options.tokens, options.rounds) < 1 or options.seconds <= 0:
        parser.error("numbers are at least 1, and seconds above 0")
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # before torch: both copies of OpenMP read it

    import torch

    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "python"))
    import gdn_varlen

    extension = build(options.source, options.build)
    operator = gdn_varlen.fused_sigmoid_gating_delta_rule_update
    computes = [name for name in gdn_varlen.library.ENUMERATIONS["compute"][1] if name != "f64"]
    everything = {
        "vllm_prefill": lambda name: prefill(torch, extension, operator, options.threads, options.tokens),
        "vllm_decode_f32": lambda name: decode(torch, extension, operator, options.threads, torch.float32, name),
        "vllm_decode_bf16": lambda name: decode(torch, extension, operator, options.threads, torch.bfloat16, name),
    }
    runs = [
        measure(torch, make(name), computes, options)
        for name, make in everything.items() if fnmatch.fnmatchcase(name, options.case)
    ]
    if not runs:
        parser.error(f"no case is called {options.case}")
    for _ in range(options.rounds):
        for run in runs:
            next(run)
    for run in runs:
        for line in run:
            print(line, flush=True)


if __name__ == "__main__":
    main()
