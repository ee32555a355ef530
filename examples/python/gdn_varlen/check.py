"""Checks a kernel against the float64 oracle: where it first goes wrong, and what would explain it.

    gdn-check-kernel FILE.py:FUNCTION [--arrays torch|cuda|mlx] [--dtype bfloat16] ...  once gdn_varlen is installed
    examples/python/check_kernel.py FILE.py:FUNCTION ...                                from the source tree

FUNCTION takes the arguments of SGLang's fused_sigmoid_gating_delta_rule_update by name, returns `o` and updates the
pool in place; with --call, those of another function of a peer's, and returns what that does. It is called with small
random configurations, as arrays of numpy, torch or mlx. A kernel with arguments of its own needs an adaptor, such as

    from mine import delta_rule  # (q, k, v, a, b, A_log, dt_bias, states, starts, scale) -> o, new states

    def kernel(q, k, v, a, b, A_log, dt_bias, initial_state_source, initial_state_indices, cu_seqlens=None,
               scale=None, **_):
        pool, slots = initial_state_source, initial_state_indices  # None without states; a slot below 0 is padding
        states = None if pool is None else pool[slots]  # [sequences, HV, V, K] as preset sglang has it
        o, states = delta_rule(q, k, v, a, b, A_log, dt_bias, states, cu_seqlens, scale)
        if pool is not None:
            pool[slots[slots >= 0]] = states[slots >= 0]
        return o

The rest of what is passed: softplus_beta, softplus_threshold, use_qk_l2norm_in_kernel and, with --kda, is_kda.
--preset says whose conventions it is meant to follow, where not those of --call's owner. To see it find a fault:

    examples/python/check_kernel.py examples/python/tests/faulty_kernel.py:tiled_heads

Exit status: 0 where everything agrees, 1 where it does not, 2 where there is nothing to check.
"""

import argparse
import importlib
import importlib.util
import itertools
import re
import sys
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, tostring

import numpy as np

from .operator import prepare, presets
from .signatures import CALLS, Signature
from .variations import VARIATIONS, Call, narrowed, rounded, rounded_inputs

UNIT = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}  # largest relative error of one rounding
LARGEST = {"float32": 3.41e38, "float16": 65520.0, "bfloat16": 3.41e38}  # beyond which it is infinity
SMALLEST = {"float32": 2.0**-150, "float16": 2.0**-25, "bfloat16": 2.0**-134}  # and the absolute one of tiny numbers
NEAR = 2.0**-20  # relative; what float32 is off by, before such a rounding, is less


# ---- Configurations: each asks one question, and leaves the rest as usual

QUESTIONS = {
    "fixed length, no state": dict(batch=2, lengths=[6]),
    "packed, pool": dict(lengths=[3, 1, 7], pool=True),
    "K is not V": dict(lengths=[2, 5], pool=True, V=32),
    "small q and k": dict(lengths=[4, 3], pool=True, size=0.003),
    "without the L2 norm": dict(lengths=[4, 4], pool=True, size=0.2, use_qk_l2norm_in_kernel=False),
    "one long sequence": dict(lengths=[118], pool=True),  # no multiple of 4: chunks have a rest
    "decode": dict(lengths=[1] * 6, pool=True),
    "scale": dict(lengths=[3, 4], pool=True, scale=0.6),
    "softplus": dict(lengths=[5, 4], pool=True, softplus_beta=2.0, softplus_threshold=3.0),
    "a padded sequence and an empty one": dict(lengths=[2, 3, 0, 4, 2], pool=True, padded=[1], null=[4]),
}
OPTIONS = {"use_qk_l2norm_in_kernel", "scale", "softplus_beta"}  # asked for only where the kernel has the argument
DEFAULT_CALL = "sglang.fused_sigmoid_gating_delta_rule_update"


def near_ties(name, x, dtype, options):
    """Of q and k the rows, of b the elements that may be rounded up or down, as the last bits of float32 have it."""
    names = ("l2norm_form", "l2norm_eps", "use_qk_l2norm_in_kernel", "beta_input")
    scale = options.get("scale") if options.get("round_q_scaled") else 1
    y = prepare(**{name: x}, **{name: options[name] for name in names}, scale=scale, compute="f64")
    y = y.beta if name == "b" else getattr(y, name)
    near = rounded(y * (1 - NEAR), dtype) != rounded(y * (1 + NEAR), dtype)
    return near if name == "b" else near.any(-1)


class Config:
    """One call: what the kernel gets, exactly, in float64."""

    def __init__(self, question, seed, signature, dtype, state_dtype, kda):
        options, settings = dict(QUESTIONS[question]), signature.settings
        lengths, batch, pool = options.pop("lengths"), options.pop("batch", None), options.pop("pool", False)
        padded, null = options.pop("padded", []), options.pop("null", [])
        if signature.row.decode:
            lengths = [1] * len(lengths)
        if signature.always_packed and batch:
            lengths, batch = lengths * batch, None
        if not signature.has_slots:
            padded = null = []
        null = null if settings["null_slot"] >= 0 else []
        self.ignored = padded + null if settings["padding"] == "leave" else []
        K = 16
        V, size = options.pop("V", K), options.pop("size", 1.0)
        options = dict(use_qk_l2norm_in_kernel=True) | options | signature.row.fixed
        draw = np.random.default_rng(seed)
        H = int(draw.choice([2, 3]))
        HV = H * (int(draw.choice([2, 3])) if signature.row.grouped else 1)
        self.question, self.seed, self.dtype, self.state_dtype = question, seed, dtype, state_dtype
        self.layout = settings["state_layout"]
        B, T = (batch, lengths[0]) if batch else (1, sum(lengths))
        self.lengths = lengths * (batch or 1)
        N = len(self.lengths)

        normal = lambda *shape: rounded(draw.standard_normal(shape), dtype)  # noqa: E731
        gates = [K] if kda else []
        x = dict(
            A_log=rounded(np.log(draw.uniform(0.1, 2, HV)), dtype),
            a=rounded(draw.standard_normal((B, T, HV, *gates)) * 2, dtype),
            dt_bias=normal(HV, *gates),
            softplus_beta=1.0,
            softplus_threshold=20.0,
            q=rounded(draw.standard_normal((B, T, H, K)) * size, dtype),
            k=rounded(draw.standard_normal((B, T, H, K)) * size, dtype),
            v=normal(B, T, HV, V),
            b=normal(B, T, HV),
            initial_state_source=None,
            initial_state_indices=None,
        )
        if settings["gate_input"] != "raw":
            x["a"] = rounded(-np.abs(x["a"]) / 4, dtype)
            if settings["gate_input"] == "decay":
                x["a"] = rounded(np.exp(x["a"]), dtype)
        if settings["beta_input"] == "given":
            x["b"] = rounded(1 / (1 + np.exp(-x["b"])), dtype)
        if signature.row.fixed.get("use_qk_l2norm_in_kernel") is False:  # they come normalised
            for name in ("q", "k"):
                x[name] = rounded(x[name] / np.sqrt((x[name] ** 2).sum(-1, keepdims=True)), dtype)
        for name in rounded_inputs(settings) if dtype != "float32" else ():
            while (rows := near_ties(name, x[name], dtype, settings | options)).any():
                x[name][rows] = rounded(draw.standard_normal(x[name][rows].shape) * size, dtype)
        if pool or signature.row.states:
            slots = N + 3  # the first and the last are nobody's
            matrix = (K, V) if self.layout == "kv" else (V, K)
            x["initial_state_source"] = rounded(draw.standard_normal((slots, HV, *matrix)), state_dtype)
            indices = draw.permutation(np.arange(1, slots - 1))[:N]
            indices[padded], indices[null] = -1, settings["null_slot"]
            x["initial_state_indices"] = indices.astype(np.int64)
        if not batch:
            x["cu_seqlens"] = np.cumsum([0, *lengths])
        self.arguments = x | options | (dict(is_kda=True) if kda else {})
        self.sizes = f"H {H}, HV {HV}, K {K}, V {V}, lengths {self.lengths}"

    def truth(self, settings, variations=()):
        """The oracle's output and pool in float64, of a call with `variations`."""
        call = Call(self.arguments | settings | dict(compute="f64", num_threads=1), self.dtype)
        with np.errstate(all="ignore"):
            for variation in variations:
                variation(call)
            return call.results()

    def rows(self):
        """(sequence, token in it, batch row, token in that) in order."""
        fixed = "cu_seqlens" not in self.arguments
        begins = np.cumsum([0, *self.lengths])
        for n, length in enumerate(self.lengths):
            for t in range(length):
                yield (n, t, n, t) if fixed else (n, t, 0, begins[n] + t)


# ---- Comparison


def to_float64(x):
    """(numbers, dtype) of what a kernel returns."""
    if hasattr(x, "detach"):
        dtype = str(x.dtype).removeprefix("torch.")
        return x.detach().cpu().double().numpy(), dtype
    if type(x).__module__ == "mlx.core":
        import mlx.core as mx

        dtype = str(x.dtype).removeprefix("mlx.core.")
        return np.array(x if dtype.startswith("int") else x.astype(mx.float32)).astype(np.float64), dtype
    if x.dtype == np.uint16:
        return (x.astype(np.uint32) << 16).view(np.float32).astype(np.float64), "bfloat16"
    return x.astype(np.float64), x.dtype.name


def from_float64(x, dtype, arrays):
    """A kernel's argument, with numbers that `dtype` has."""
    if arrays == "mlx":
        import mlx.core as mx

        return mx.array(x if x.dtype.kind == "i" else x.astype(np.float32)).astype(getattr(mx, dtype))
    if arrays != "numpy":
        import torch

        return torch.from_numpy(x.copy()).to("cuda" if arrays == "cuda" else "cpu", getattr(torch, dtype))
    return x if x.dtype.kind == "i" else narrowed(x, dtype)


def wrong(actual, expected, dtype, tolerance):
    """Where `actual` is further from `expected` than its own rounding and `tolerance` of the largest element."""
    if actual is None or actual.shape != expected.shape:
        return np.ones(expected.shape, bool)
    with np.errstate(all="ignore"):
        rounding = np.maximum(np.abs(expected) * UNIT.get(dtype, 0), SMALLEST.get(dtype, 0))
        largest = [np.abs(x[np.isfinite(x)]).max(initial=0) for x in (actual, expected)]
        right = np.abs(actual - expected) <= rounding * 1.001 + tolerance * min(largest)
        return ~(right | (~np.isfinite(actual) & ~(np.abs(expected) <= LARGEST.get(dtype, np.inf))))


class Result:
    """What a kernel computed for one configuration."""

    def __init__(self, config, signature, kernel, arrays):
        self.config, self.problems = config, []
        x = config.arguments
        given = {}
        for name, value in x.items():
            if isinstance(value, np.ndarray):
                kind = config.state_dtype if name == "initial_state_source" else config.dtype
                kind = value.dtype.name if value.dtype.kind == "i" else kind
                given[name] = from_float64(value, kind, arrays)
            else:
                given[name] = value
        self.o, self.pool, self.o_dtype = None, None, config.dtype
        try:
            self.o, self.o_dtype = to_float64(signature.call(kernel, **given))
        except Exception as error:  # whatever a kernel throws is its answer to this configuration
            self.problems.append(f"raised {type(error).__name__}: {error}")
        if given["initial_state_source"] is not None:
            self.pool, _ = to_float64(given["initial_state_source"])
        for name, value in given.items():
            if isinstance(x[name], np.ndarray) and name != "initial_state_source":
                if not np.array_equal(to_float64(value)[0], x[name].astype(np.float64), equal_nan=True):
                    self.problems.append(f"its input {name} has been written")

    def compare(self, truth, tolerance):
        """(elements of o that are wrong, elements of the pool that are)."""
        o, pool = truth
        wrong_o = wrong(self.o, o, self.o_dtype, tolerance)
        owned = np.zeros(o.shape[:2], bool)
        for n, _, row, t in self.config.rows():
            owned[row, t] = n not in self.config.ignored
        wrong_o &= owned[:, :, None, None]
        wrong_pool = None if pool is None else wrong(self.pool, pool, self.config.state_dtype, tolerance)
        return wrong_o, wrong_pool

    def count(self, truth, tolerance):
        """How many elements are wrong; none where the kernel has given none."""
        if self.o is None:
            return 0
        return sum(int(part.sum()) for part in self.compare(truth, tolerance) if part is not None)

    def describe(self, truth, tolerance):
        """Lines that say where the first wrong elements are."""
        wrong_o, wrong_pool = self.compare(truth, tolerance)
        yield from self.problems
        if self.o is not None and self.o.shape != truth[0].shape:
            yield f"o has shape {self.o.shape}, and {truth[0].shape} is right"
        elif self.o is not None and wrong_o.any():
            for n, t, row, token in self.config.rows():
                if wrong_o[row, token].any():
                    hv, column = np.argwhere(wrong_o[row, token])[0]
                    break
            actual, expected = self.o[row, token, hv, column], truth[0][row, token, hv, column]
            yield (f"o: {wrong_o.sum()} of {wrong_o.size} elements; first in sequence {n}, token {t}, head {hv}, "
                   f"column {column}: {actual:.6g}, and {expected:.6g} is right")  # fmt: skip
        if wrong_pool is not None and wrong_pool.any():
            slots = self.config.arguments["initial_state_indices"].tolist()
            order = [slot for slot in slots if slot >= 0] + [slot for slot in range(len(truth[1])) if slot not in slots]
            slot = next(slot for slot in order if wrong_pool[slot].any())
            place = tuple(np.argwhere(wrong_pool[slot])[0])
            hv, i, j = place if self.config.layout == "kv" else (place[0], place[2], place[1])
            owner = f"sequence {slots.index(slot)}" if slot in slots else "no sequence of this call"
            yield (f"state: {wrong_pool.sum()} of {wrong_pool.size} elements; first in slot {slot} ({owner}), head {hv}, "
                   f"K row {i}, column {j}: {self.pool[slot][place]:.6g}, and {truth[1][slot][place]:.6g} is right")  # fmt: skip


class Report:
    """Every configuration and, where some are wrong, what explains it."""

    def __init__(self, kernel, call=DEFAULT_CALL, preset=None, dtype="float32", state_dtype="float32", arrays="numpy",
                 kda=False, rounds=2, seed=0, tolerance=1e-5):  # fmt: skip
        signature = Signature(call, preset)
        settings = signature.settings
        kda = kda if signature.row.kda is None else signature.row.kda
        self.systems, self.tolerance = presets(), tolerance
        self.name = f"preset {preset or signature.row.preset!r}" if preset or call == DEFAULT_CALL else call
        questions = [name for name, options in QUESTIONS.items() if all(map(signature.takes, options.keys() & OPTIONS))]
        configs = [Config(question, [seed, i, len(question)], signature, dtype, state_dtype, kda)
                   for i in range(rounds) for question in questions]  # fmt: skip
        self.results = [Result(config, signature, kernel, arrays) for config in configs]
        self.truths = [config.truth(settings) for config in configs]
        self.counts = [result.count(truth, tolerance) for result, truth in zip(self.results, self.truths)]
        self.failed = [bool(count or result.problems) for count, result in zip(self.counts, self.results)]
        self.explanations = self._explain(settings) if sum(self.counts) else []

    def _left(self, settings, variations, enough):
        """The share of the wrong elements that is left if the variations are what the kernel does; 1 if beyond
        `enough`."""
        total, left = sum(self.counts), 0
        # The configurations with most wrong elements for each token first: most variations are ruled out by the first.
        for i in sorted(range(len(self.counts)), key=lambda i: -self.counts[i] / sum(self.results[i].config.lengths)):
            result = self.results[i]
            try:
                left += result.count(result.config.truth(settings, variations), self.tolerance)
            except ValueError:  # these variations exclude each other
                return 1
            if left > enough * total:
                return 1
        return left / total

    def _explain(self, settings, enough=0.02):
        """[(share left, names)] of what leaves at most `enough` of the wrong elements, in order."""
        single = {name: lambda call, system=system: call.system(system) for name, system in self.systems.items()}
        single = {f"preset {name!r}": change for name, change in single.items() if self.systems[name] != settings}
        single |= VARIATIONS
        found = [(self._left(settings, [change], enough), [name]) for name, change in single.items()]
        share, (name,) = min(found)
        if share > enough:
            pairs, rest = itertools.combinations(VARIATIONS, 2), enough
        else:  # what explains the rest too
            pairs, rest = (pair for pair in itertools.combinations(single, 2) if share and name in pair), 0
        for pair in pairs:
            share = self._left(settings, [single[name] for name in pair], rest)
            if share <= rest:
                found.append((share, list(pair)))
        best = min(share for share, _ in found)
        return sorted((share, names) for share, names in found if share <= (enough if best else 0))

    def lines(self):
        for result, lines in self.problems():
            yield f"{result.config.question}: {result.config.sizes}"
            yield from (f"    {line}" for line in lines)
        yield from self.summary()

    def problems(self):
        """(result, lines) of each configuration that is wrong."""
        for result, truth, failed in zip(self.results, self.truths, self.failed):
            if failed:
                yield result, list(result.describe(truth, self.tolerance))

    def summary(self):
        yield f"{sum(self.failed)} of {len(self.failed)} configurations are wrong, as {self.name} has it"
        for share, names in self.explanations:
            text = "explains all of it" if not share else f"explains all but {100 * share:.1g} % of the wrong elements"
            yield f"    {text}: {'; and '.join(names)}"
        if sum(self.counts) and not self.explanations:
            yield "    no known variation, nor two together, explains it"

    def junit(self, kernel):
        """The report as JUnit's XML: a test case for each configuration, the explanations with each that is wrong."""
        count, problems = len(self.results), dict(self.problems())
        suite = Element("testsuite", name=f"gdn-check-kernel {kernel}", tests=str(count), failures=str(len(problems)))
        for result in self.results:
            config = result.config
            case = SubElement(suite, "testcase", classname=kernel, name=f"{config.question} ({config.seed[1] + 1})")
            if result in problems:
                text = "\n".join([config.sizes, *problems[result], *self.summary()])
                text = re.sub(r"[^\t\n -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", text)  # not in XML
                SubElement(case, "failure", message=text.split("\n")[1]).text = text
        return tostring(suite, encoding="unicode")


def find_kernel(name):
    """The function of FILE.py:FUNCTION, or of MODULE:FUNCTION; what the file imports may lie beside it."""
    place, _, function = name.rpartition(":")
    if place.endswith(".py"):
        path = Path(place).resolve()
        sys.path.insert(0, str(path.parent))
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        sys.path.insert(0, "")
        module = importlib.import_module(place)
    return getattr(module, function)


def main():
    parser = argparse.ArgumentParser(usage="%(prog)s FILE.py:FUNCTION [OPTION...]",
                                     description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("kernel", metavar="FILE.py:FUNCTION", help="or MODULE:FUNCTION, looked for in this folder too")
    parser.add_argument("--call", default=DEFAULT_CALL, choices=CALLS, metavar="PEER.FUNCTION",
                        help=f"whose arguments it has: {', '.join(CALLS)} (default: {DEFAULT_CALL})")  # fmt: skip
    parser.add_argument("--preset", choices=presets(), help="what it is meant to follow; default: as --call's owner")
    parser.add_argument("--arrays", default="numpy", choices=("numpy", "torch", "cuda", "mlx"))
    parser.add_argument("--dtype", default="float32", choices=UNIT, help="of the inputs; numpy's bfloat16 is uint16")
    parser.add_argument("--state-dtype", default="float32", choices=UNIT)
    parser.add_argument("--kda", action="store_true", help="a gate for each K row")
    parser.add_argument("--rounds", type=int, default=2, help="times that every question is asked (default: 2)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tolerance", type=float, default=1e-5,
                        help="beside the rounding of the results, relative to the largest element (default: 1e-5)")  # fmt: skip
    parser.add_argument("--junit", metavar="FILE", help="write the report there too, as JUnit's XML")
    arguments = vars(parser.parse_args())
    name, junit = arguments.pop("kernel"), arguments.pop("junit")
    if ":" not in name:
        parser.error(f"{name} names no function: FILE.py:FUNCTION")
    if arguments["kda"] and CALLS[arguments["call"]].kda is False:
        parser.error(f"{arguments['call']} has no gate for each K row")
    try:
        kernel = find_kernel(name)
    except (AttributeError, OSError, ImportError) as error:
        parser.error(f"{name}: {error}")
    report = Report(kernel, **arguments)
    print("\n".join(report.lines()))
    if junit:
        try:
            Path(junit).write_text(report.junit(name) + "\n", encoding="utf-8")
        except OSError as error:
            parser.error(f"{junit}: {error}")
    sys.exit(any(report.failed))


if __name__ == "__main__":
    main()
