#!/usr/bin/env python3
"""Holds GPU kernels against the float64 oracle, over random calls; run.sh prepares and calls this.

    tests/gpu/compare.py --oracle GDN_ORACLE --kernels DIR [OPTION...]

To test a kernel of your own: give it a function from a case to (o, states, cache), as those in kernels.py, and add it
to the dict that kernels.load() returns. Everything else stays.
"""

import argparse
import collections
import concurrent.futures
import importlib.util
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

if {"-h", "--help"} & set(sys.argv[1:]) and importlib.util.find_spec("torch") is None:
    print(__doc__.strip() + "\n\nIts options are listed where PyTorch is installed.")
    sys.exit()

import numpy as np  # noqa: E402
import torch  # noqa: E402

import cases  # noqa: E402
import kernels  # noqa: E402

# Most that a result may be off, relative to the largest element of its array: the kernel under test, and this library's
# float32. A 16-bit result is rounded once more; Triton's interpreter truncates to bfloat16: up to twice that.
FLOAT32 = (5e-5, 2e-6)
ROUNDING = {torch.float32: 0, torch.bfloat16: 2**-8, torch.float16: 2**-11}
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
WORDS = {torch.float32: "f32", torch.float64: "f64", torch.bfloat16: "bf16", torch.float16: "f16",
         torch.int32: "i32", torch.int64: "i64"}


def oracle(program, case, compute, tmp):
    """Runs the case through gdn_oracle and returns (o, states, cache), in float64 throughout with compute f64."""
    folder, out = Path(tmp) / f"case_{compute}", Path(tmp) / f"out_{compute}"
    folder.mkdir()
    lines = [f"dtype_o {WORDS[case['q'].dtype]}"]
    for key, value in case.items():
        if not isinstance(value, torch.Tensor):
            lines.append(f"{key} {value if isinstance(value, str) else repr(value + 0)}")
            continue
        if compute == "f64" and key in ("initial_state", "intermediate_states"):
            value = value.double()  # so that the truth is not rounded to the pool's dtype
        lines.append(f"dtype_{key} {WORDS[value.dtype]}")
        if key == "intermediate_states":
            lines += [f"intermediate_rows {value.shape[0]}", f"intermediate_steps {value.shape[1]}"]
        else:
            if key == "initial_state":
                lines.append(f"num_states {value.shape[0]}")
            bits = value.view(torch.int16).numpy().view("<u2") if value.dtype == torch.bfloat16 else value.numpy()
            np.save(folder / f"{key}.npy", np.ascontiguousarray(bits))
    (folder / "case.txt").write_text("\n".join(lines) + "\n")
    subprocess.run([program, "run", folder, out, "--compute", compute], check=True)

    def read(name, dtype):
        path = out / f"{name}.npy"
        if not path.exists():
            return None
        x = np.load(path)
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16) if x.dtype == np.uint16 else torch.from_numpy(x)

    return read("o", None), read("final_state", None), read("intermediate_states", None)


def error(actual, truth):
    """Largest absolute error, relative to the largest element."""
    if truth is None or truth.numel() == 0:
        return None
    if not torch.isfinite(actual.double()).all():
        return float("inf")
    return float((actual.double() - truth).abs().max() / truth.abs().max().clamp_min(1e-300))


def compare(name, function, index, options):
    """One random call: its group, and for o, states and cache the dtype and the errors of the kernel and of float32."""
    group, case = cases.draw_case(name, index, options.seed, options.small)
    with tempfile.TemporaryDirectory() as tmp:
        truth = oracle(options.oracle, case, "f64", tmp)
        ours = oracle(options.oracle, case, "f32", tmp)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    on_gpu = {key: x.to(device) if isinstance(x, torch.Tensor) else x for key, x in case.items()}
    theirs = [x if x is None else x.cpu() for x in function(on_gpu)]
    results = []
    for what, gpu, cpu, exact in zip(("o", "state", "cache"), theirs, ours, truth):
        if exact is not None and exact.numel():
            results.append((what, gpu.dtype, error(gpu, exact), error(cpu, exact)))
    return name, group, index, results


def work(name, index, options):
    """In a process of the pool, which loads the kernels once."""
    if not hasattr(work, "kernels"):
        work.tmp = tempfile.TemporaryDirectory()
        work.kernels = kernels.load(options.kernels, work.tmp.name)
    return compare(name, work.kernels[name], index, options)


def print_table(results):
    print("| kernel | array | calls | n | its error: median | max | float32 here: median | max |")
    print("|---|---|---|---|---|---|---|---|")
    rows = collections.defaultdict(list)
    for name, group, _, arrays in results:
        for what, dtype, theirs, ours in arrays:
            # What is rounded to 16 bits is off by that rounding, whatever the call was.
            calls = group if dtype == torch.float32 else "all"
            rows[name, WORDS[dtype], what, calls].append((theirs, ours))
    for (name, dtype, what, calls), errors in sorted(rows.items()):
        theirs, ours = (sorted(x) for x in zip(*errors))
        middle = len(errors) // 2
        print(f"| {name} | {what}, {dtype} | {calls} | {len(errors)} | {theirs[middle]:.1e} | {theirs[-1]:.1e} "
              f"| {ours[middle]:.1e} | {ours[-1]:.1e} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--oracle", required=True, help="the program gdn_oracle")
    parser.add_argument("--kernels", required=True, help="folder with wheels of fla-core and sglang, or their files")
    parser.add_argument("--count", type=int, default=200, help="random calls for each kernel (default: 200)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="this one call, with its options")
    parser.add_argument("--small", action="store_true", help="small sizes, for Triton's interpreter")
    parser.add_argument("--jobs", type=int, default=max(1, min(12, (os.cpu_count() or 1) - 1)), help="processes")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this time, with what is done")
    options = parser.parse_args()
    deadline = time.monotonic() + options.seconds

    with tempfile.TemporaryDirectory() as tmp:
        names = sorted(kernels.load(options.kernels, tmp))
    if not names:
        sys.exit(f"compare.py: no kernel found in {options.kernels}")
    import triton
    if not (torch.cuda.is_available() or INTERPRETED):
        sys.exit("compare.py: no GPU here; set TRITON_INTERPRET=1 to run the kernels in Triton's interpreter")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU, Triton's interpreter"
    print(f"{gpu}; Python {platform.python_version()}, PyTorch {torch.__version__}, Triton {triton.__version__}; "
          f"seed {options.seed}, {options.count} calls for each kernel\n", flush=True)

    indices = range(options.count) if options.only is None else [options.only]
    results, failures = [], 0
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
        futures = {pool.submit(work, n, i, options): (n, i) for i in indices for n in names}
        for future in concurrent.futures.as_completed(futures):
            name, index = futures[future]
            try:
                results.append(future.result())
            except Exception as exception:  # a kernel that cannot be compiled or run is a failure of that call
                failures += 1
                print(f"FAILED: {name}, call {index}: {type(exception).__name__}: {exception}", flush=True)
                continue
            for what, dtype, *errors in results[-1][3]:
                for whose, size, float32 in zip(("the kernel", "float32 here"), errors, FLOAT32):
                    truncates = INTERPRETED and whose == "the kernel" and dtype == torch.bfloat16
                    bound = float32 + ROUNDING[dtype] * (2 if truncates else 1)
                    if not size <= bound:
                        failures += 1
                        print(f"FAILED: {name}, call {index} ({results[-1][1]}): {what} of {whose} is off by "
                              f"{size:.2e}, more than {bound:.2e}", flush=True)
            if options.only is not None:
                case = cases.draw_case(name, index, options.seed, options.small)[1]
                print(name, {k: tuple(x.shape) if isinstance(x, torch.Tensor) else x for k, x in case.items()},
                      *results[-1][3], "", sep="\n")
            if time.monotonic() > deadline:
                pool.shutdown(cancel_futures=True)
                break
    print_table(results)
    wins = sum(ours <= theirs for *_, arrays in results for _, _, theirs, ours in arrays)
    arrays = sum(len(arrays) for *_, arrays in results)
    print(f"\n{len(results)} of {len(futures)} calls; float32 here is at least as close to float64 as the kernel in "
          f"{wins} of {arrays} arrays; {failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
