#!/usr/bin/env python3
"""The float64 oracle against the formulas in 40 digits, written from the manual and not from the C code.

    tests/accuracy/oracle_mpmath.py GDN_ORACLE [CASE_DIR...]

Each case (tests/golden/README.md says what a case is) is computed by `GDN_ORACLE run --compute f64` and again here with
mpmath, number by number. Without folders it takes the smaller ones of tests/golden and draws its own, over every
option. Exit status 77: mpmath or numpy is missing.
"""

import itertools
import random
import subprocess
import sys
import tempfile
from pathlib import Path

if {"-h", "--help"} & set(sys.argv[1:]):
    print(__doc__.strip())
    sys.exit()
try:
    import mpmath
    import numpy as np
except ImportError as missing:
    print(f"SKIPPED: {missing}; on Debian: apt-get install python3-mpmath python3-numpy")
    sys.exit(77)

mpmath.mp.dps = 40
mpf = mpmath.mpf
TOLERANCE = mpf("1e-13")  # of the largest element
ROUNDING = {"f64": 0, "f32": mpf(2) ** -24, "f16": mpf(2) ** -11, "bf16": mpf(2) ** -8}
# Bits of the significand, and the exponent of the smallest normal number.
FORMATS = {"f64": (53, -1022), "f32": (24, -126), "f16": (11, -14), "bf16": (8, -126)}
GOLDEN, MOST_WORK = Path(__file__).resolve().parents[1] / "golden", 60000
DEFAULTS = {
    "N": None, "num_states": "0", "state_layout": None, "intermediate_rows": "0", "intermediate_steps": "0",
    "disable_state_update": "0", "padding": "compute", "null_slot": "none", "use_qk_l2norm": "0",
    "l2norm_form": "sum_plus_eps", "l2norm_eps": "1e-6", "scale": "default", "softplus_beta": "1",
    "softplus_threshold": "20", "is_kda": "0", "lower_bound": "none", "gate_input": "raw", "beta_input": "raw",
    "allow_neg_eigval": "0", "head_map": "grouped", "step_interval": "1", "read_before_decay": "0", "round_qk": "0",
    "round_q_scaled": "0", "round_beta": "0", "round_state": "0",
}


# ==== a case in a folder ==============================================================================================

class Case:
    """The keys of case.txt as attributes, and the arrays: reals as mpf, indices as int."""

    def __init__(self, folder):
        lines = (line.split(None, 1) for line in (folder / "case.txt").read_text().splitlines() if line.strip())
        self.keys = {**DEFAULTS, **{key: value.strip() for key, value in lines}}
        for size in ("B", "T", "H", "HV", "K", "V", "num_states", "intermediate_rows", "intermediate_steps",
                     "step_interval"):
            setattr(self, size, int(self.keys[size]))
        self.N = int(self.keys["N"] or self.B)
        self.arrays, self.dtypes = {}, {}
        for path in folder.glob("*.npy"):
            x = np.load(path)
            self.dtypes[path.stem] = self.keys.get(f"dtype_{path.stem}", f"{x.dtype.kind}{8 * x.dtype.itemsize}")
            self.arrays[path.stem] = exact(x)

    def number(self, key):
        """As the program reads it: to the nearest float64."""
        return mpf(float(self.keys[key]))

    def flag(self, key):
        return self.keys[key] == "1"

    def get(self, name, *index):
        """An element of an array; None where there is no such array."""
        array = self.arrays.get(name)
        return None if array is None else array[index]


def exact(x):
    if x.dtype == np.uint16:  # the bits of bfloat16 (16-bit floats of the other kind are <f2)
        x = (x.astype(np.uint32) << 16).view(np.float32)
    if x.dtype.kind in "iub":
        return x.astype(object)
    return np.vectorize(lambda y: mpf(float(y)), otypes=[object])(x) if x.size else x.astype(object)


def rounded(x, dtype):
    """The nearest number of that dtype, of two the even one."""
    bits, smallest = FORMATS[dtype]
    unit = mpf(2) ** (max(mpmath.frexp(x)[1] - 1, smallest) - bits + 1)
    return mpmath.nint(x / unit) * unit


# ==== the operator ====================================================================================================

def sigmoid(x):
    return 1 / (1 + mpmath.exp(-x))


def softplus(x, beta, threshold):
    return x if beta * x > threshold else mpmath.log1p(mpmath.exp(beta * x)) / beta


def decay(c, b, t, hv, i):
    """The factor on row i of the state."""
    channel = (i,) if c.flag("is_kda") else ()
    a = c.get("a", b, t, hv, *channel)
    if a is None:
        return mpf(1)
    if c.keys["gate_input"] == "decay":
        return a
    if c.keys["gate_input"] == "log":
        return mpmath.exp(a)
    x = a + (c.get("dt_bias", hv, *channel) or 0)
    A = mpmath.exp(c.get("A_log", hv) or 0)
    if c.keys["lower_bound"] != "none":
        return mpmath.exp(c.number("lower_bound") * sigmoid(A * x))
    return mpmath.exp(-A * softplus(x, c.number("softplus_beta"), c.number("softplus_threshold")))


def column_decay(c, b, t, hv, j):
    gv = c.get("gv", b, t, hv, j)
    return mpf(1) if gv is None else mpmath.exp(gv)


def beta(c, b, t, hv, column):
    if "b" not in c.arrays:
        y = mpf(1)
    else:
        y = c.get("b", b, t, hv, *((column,) if c.arrays["b"].ndim == 4 else ()))
        y = y if c.keys["beta_input"] == "given" else sigmoid(y)
        y = rounded(y, c.dtypes["b"]) if c.flag("round_beta") else y
    return 2 * y if c.flag("allow_neg_eigval") else y


def row(c, name, b, t, h):
    """A row of q, k or k_read."""
    x = l2norm(c, [c.get(name, b, t, h, i) for i in range(c.K)])
    scaled_q = name == "q" and c.flag("round_q_scaled")
    if c.flag("round_qk") and not scaled_q:
        x = [rounded(y, c.dtypes[name]) for y in x]
    if name == "q":
        scale = 1 / mpmath.sqrt(c.K) if c.keys["scale"] == "default" else c.number("scale")
        x = [scale * y for y in x]
    return [rounded(y, c.dtypes[name]) for y in x] if scaled_q else x


def l2norm(c, x):
    if not c.flag("use_qk_l2norm"):
        return x
    total, eps = sum(y * y for y in x), c.number("l2norm_eps")
    norm = {
        "sum_plus_eps": lambda: mpmath.sqrt(total + eps),
        "mean_plus_eps": lambda: mpmath.sqrt(total + c.K * eps),
        "max_norm_eps": lambda: max(mpmath.sqrt(total), eps),
        "norm_plus_eps": lambda: mpmath.sqrt(total) + eps,
    }[c.keys["l2norm_form"]]()
    return [y / norm for y in x]


def token(c, b, t, hv, S):
    """One step of the recurrence: S, a list of K rows, is changed in place; returns the row of o."""
    h = hv % c.H if c.keys["head_map"] == "tiled" else hv // (c.HV // c.H)
    K, V = range(c.K), range(c.V)
    q, k = row(c, "q", b, t, h), row(c, "k", b, t, h)
    reads = row(c, "k_read", b, t, h) if "k_read" in c.arrays else k
    if "erase" in c.arrays:
        reads = [c.get("erase", b, t, hv, i) * reads[i] for i in K]
    before = [sum(reads[i] * S[i][j] for i in K) for j in V]
    columns = [column_decay(c, b, t, hv, j) for j in V]
    for i in K:
        factor = decay(c, b, t, hv, i)
        S[i] = [factor * columns[j] * S[i][j] for j in V]
    for j in V:
        read = before[j] if c.flag("read_before_decay") else sum(reads[i] * S[i][j] for i in K)
        d = beta(c, b, t, hv, j) * (c.get("v", b, t, hv, j) - read)
        for i in K:
            S[i][j] += k[i] * d
    o = [sum(q[i] * S[i][j] for i in K) for j in V]
    for i in K:
        S[i] = [rounded(x, c.dtypes["initial_state"]) for x in S[i]] if c.flag("round_state") else S[i]
    return o


def operator(c):
    """o, the pool and the cache after the call, as arrays of mpf."""
    vk, zero = c.keys["state_layout"] == "vk", mpf(0)
    matrix = (c.V, c.K) if vk else (c.K, c.V)
    o = np.full((c.B, c.T, c.HV, c.V), zero, dtype=object)
    pool = c.arrays["initial_state"].copy() if c.num_states else None
    rows, steps = c.intermediate_rows, c.intermediate_steps
    cache = np.full((rows, steps, c.HV, *matrix), zero, dtype=object) if rows else None

    def slot(index):
        """None where no slot is meant."""
        null = c.keys["null_slot"]
        return None if index is None or index < 0 or (null != "none" and index == int(null)) else index

    def matrix_of(S):
        return np.array(S, dtype=object).T if vk else np.array(S, dtype=object)

    def state_of(stored):
        return (stored.T if vk else stored).tolist()

    for n, hv in itertools.product(range(c.N), range(c.HV)):
        b, first, last = n, 0, c.T
        if "cu_seqlens" in c.arrays:
            b, first, last = 0, c.get("cu_seqlens", n), c.get("cu_seqlens", n + 1)
        if first == last:
            continue
        read = write = None
        if pool is not None:
            if "initial_state_indices" in c.arrays:
                read = slot(c.get("initial_state_indices", n))
            elif "ssm_state_indices" in c.arrays:
                accepted = c.get("num_accepted_tokens", n)
                read = slot(c.get("ssm_state_indices", n, 0 if accepted is None else accepted - 1))
            else:
                read = slot(n)
            if "output_state_indices" in c.arrays:
                write = slot(c.get("output_state_indices", n))
            elif "ssm_state_indices" not in c.arrays:
                write = read
        padded = pool is not None and read is None
        if padded and c.keys["padding"] != "compute":
            continue
        writes = pool is not None and not padded and not c.flag("disable_state_update")
        cached = None
        if cache is not None:
            cached = c.get("intermediate_state_indices", n)
            cached = n if cached is None else cached if cached >= 0 else None

        S = [[zero] * c.V for _ in range(c.K)] if read is None else state_of(c.arrays["initial_state"][read, hv])
        for t in range(first, last):
            step = t - first
            if cached is not None and step > 0 and "retrieve_parent_token" in c.arrays:
                S = state_of(cache[cached, c.get("retrieve_parent_token", n, step), hv])
            if c.get("token_mask", b, t) != 0:
                o[b, t, hv] = token(c, b, t, hv, S)
            if (step + 1) % c.step_interval:
                continue
            step = step // c.step_interval
            if cached is not None:
                cache[cached, step, hv] = matrix_of(S)
            target = slot(c.get("ssm_state_indices", n, step))
            if writes and target is not None:
                pool[target, hv] = matrix_of(S)
        if writes and write is not None:
            pool[write, hv] = matrix_of(S)
    return {"o": o, "final_state": pool, "intermediate_states": cache}


# ==== cases over every option =========================================================================================

OPTIONS = {
    "plain": {},
    "pool [K,V]": {"state_layout": "kv", "pool": True},
    "pool [V,K]": {"state_layout": "vk", "pool": True},
    "varlen": {"varlen": True, "state_layout": "kv", "pool": True},
    "varlen [V,K], padding zero": {"varlen": True, "state_layout": "vk", "pool": True, "padding": "zero"},
    "null slot, other slots written": {"state_layout": "kv", "pool": True, "null_slot": "0", "output_slots": True},
    "pool only read": {"state_layout": "vk", "pool": True, "disable_state_update": "1"},
    "slots for each step": {"state_layout": "kv", "pool": True, "step_slots": True},
    "cache": {"state_layout": "kv", "cache": True},
    "cache and tree": {"state_layout": "vk", "pool": True, "cache": True, "tree": True},
    "sum_plus_eps": {"use_qk_l2norm": "1"},
    "mean_plus_eps": {"use_qk_l2norm": "1", "l2norm_form": "mean_plus_eps", "l2norm_eps": "1e-3"},
    "max_norm_eps": {"use_qk_l2norm": "1", "l2norm_form": "max_norm_eps", "l2norm_eps": "1.5"},
    "norm_plus_eps": {"use_qk_l2norm": "1", "l2norm_form": "norm_plus_eps", "l2norm_eps": "0.1"},
    "no epsilon": {"use_qk_l2norm": "1", "l2norm_eps": "0"},
    "scale": {"scale": "0.37"},
    "softplus": {"softplus_beta": "2.5", "softplus_threshold": "1.5"},
    "steep gates": {"gate_size": 30},
    "kda": {"is_kda": "1"},
    "kda, lower bound": {"is_kda": "1", "lower_bound": "-5"},
    "lower bound": {"lower_bound": "-0.5"},
    "log gate": {"gate_input": "log"},
    "log gate, kda": {"gate_input": "log", "is_kda": "1"},
    "decay gate": {"gate_input": "decay"},
    "beta given": {"beta_input": "given"},
    "beta per column": {"beta_columns": True},
    "beta given per column": {"beta_input": "given", "beta_columns": True},
    "no beta": {"no_b": True},
    "negative eigenvalues": {"allow_neg_eigval": "1", "use_qk_l2norm": "1"},
    "tiled heads": {"head_map": "tiled"},
    "half types": {"dtype": "bf16"},
    "no gates": {"no_a": True},
    "no bias": {"no_dt_bias": True, "is_kda": "1"},
    "key that reads": {"k_read": True, "use_qk_l2norm": "1"},
    "erase": {"erase": True, "use_qk_l2norm": "1"},
    "key that reads, erase, kda": {"k_read": True, "erase": True, "is_kda": "1"},
    "read before the decay": {"read_before_decay": "1"},
    "read before the decay, kda": {"read_before_decay": "1", "k_read": True, "is_kda": "1"},
    "decays of columns": {"gv": True},
    "decays of columns, kda": {"gv": True, "is_kda": "1", "erase": True},
    "decays of columns alone": {"gv": True, "no_a": True},
    "mask": {"mask": True, "state_layout": "vk", "pool": True, "cache": True},
    "mask, tree": {"mask": True, "state_layout": "vk", "cache": True, "tree": True},
    "cache of two tokens": {"state_layout": "kv", "cache": True, "step_interval": "2"},
    "slots of two tokens": {"state_layout": "kv", "pool": True, "step_slots": True, "starts": True,
                            "output_slots": True, "step_interval": "2"},
    "slots of three, varlen": {"state_layout": "vk", "pool": True, "step_slots": True, "starts": True, "varlen": True,
                               "step_interval": "3"},
    "slots for each step and the end": {"state_layout": "kv", "pool": True, "step_slots": True, "output_slots": True},
    "q and k rounded": {"round_qk": "1", "use_qk_l2norm": "1", "dtype": "bf16", "k_read": True},
    "q rounded": {"round_q_scaled": "1", "use_qk_l2norm": "1", "dtype": "f16"},
    "q and k rounded, q scaled": {"round_qk": "1", "round_q_scaled": "1", "use_qk_l2norm": "1", "dtype": "bf16"},
    "q and k of float32 rounded": {"round_qk": "1", "use_qk_l2norm": "1", "scale": "0.3"},
    "beta rounded": {"round_beta": "1", "dtype": "bf16", "allow_neg_eigval": "1"},
    "beta rounded, per column": {"round_beta": "1", "dtype": "f16", "beta_columns": True},
    "small beta rounded": {"round_beta": "1", "dtype": "f16", "allow_neg_eigval": "1", "gate_size": 8},
    "states rounded to bf16": {"round_state": "1", "state_layout": "kv", "pool": True, "pool_dtype": "bf16",
                               "cache": True},
    "states rounded to f16": {"round_state": "1", "state_layout": "vk", "pool": True, "pool_dtype": "f16",
                              "is_kda": "1"},
    "float64": {"dtype": "f64"},
}
# Alternatives that go with everything else, for random combinations.
FREE = [
    [{}, {"use_qk_l2norm": "1"}, {"use_qk_l2norm": "1", "l2norm_form": "mean_plus_eps"},
     {"use_qk_l2norm": "1", "l2norm_form": "max_norm_eps", "l2norm_eps": "2"},
     {"use_qk_l2norm": "1", "l2norm_form": "norm_plus_eps"}],
    [{}, {"scale": "1.25"}],
    [{}, {"softplus_beta": "0.5"}, {"softplus_threshold": "1"}, {"lower_bound": "-3"}, {"gate_input": "log"},
     {"gate_input": "decay"}],
    [{}, {"is_kda": "1"}],
    [{}, {"beta_input": "given"}, {"no_b": True}, {"beta_columns": True}, {"allow_neg_eigval": "1"}],
    [{}, {"head_map": "tiled"}],
    [{}, {"varlen": True}],
    [{}, {"state_layout": "kv", "pool": True}, {"state_layout": "vk", "pool": True},
     {"state_layout": "vk", "pool": True, "output_slots": True}, {"state_layout": "kv", "pool": True, "cache": True},
     {"state_layout": "vk", "cache": True, "tree": True}, {"state_layout": "vk", "pool": True, "step_slots": True},
     {"state_layout": "vk", "pool": True, "step_slots": True, "starts": True, "output_slots": True,
      "step_interval": "2"}, {"state_layout": "kv", "pool": True, "pool_dtype": "bf16", "round_state": "1"}],
    [{}, {"dtype": "bf16"}, {"dtype": "f16"}, {"dtype": "f64"}],
    [{}, {"k_read": True}, {"erase": True}, {"gv": True}, {"k_read": True, "read_before_decay": "1"},
     {"k_read": True, "erase": True, "gv": True}],
    [{}, {}, {"mask": True}],
    [{}, {}, {"round_qk": "1"}, {"round_q_scaled": "1"}, {"round_qk": "1", "round_q_scaled": "1"}, {"round_beta": "1"}],
]


def write_case(folder, options, seed):
    """A small case with these options; words in quotes are keys of case.txt, the others are explained by their use."""
    rng, pick = np.random.default_rng(seed), random.Random(seed)
    H, K, V = pick.choice([1, 2]), pick.choice([1, 3, 4, 6]), pick.choice([1, 2, 5])
    HV = H * pick.choice([1, 2, 3])
    N, T = pick.choice([1, 2, 3]), pick.choice([1, 3, 5])
    lengths = [pick.choice([0, 1, 2, 4]) for _ in range(N)] if options.get("varlen") else [T] * N
    B, T = (1, sum(lengths) + 1) if options.get("varlen") else (N, T)
    steps = max(lengths + [1])
    keys = {"B": B, "T": T, "N": N, "H": H, "HV": HV, "K": K, "V": V}
    keys.update({key: value for key, value in options.items() if isinstance(value, str) and "dtype" not in key})
    dtype = options.get("dtype", "f32")

    def save(name, x, kind=dtype):
        keys[f"dtype_{name}"] = kind
        if kind == "bf16":
            x = (np.asarray(x, np.float32).view(np.uint32) >> 16).astype("<u2")  # truncated: any bits will do
        stored = {"f32": "<f4", "f64": "<f8", "f16": "<f2", "bf16": "<u2", "i64": "<i8", "i32": "<i4", "u8": "|u1"}
        np.save(folder / f"{name}.npy", np.ascontiguousarray(x, stored[kind]))

    gates = (HV, K) if "is_kda" in options else (HV,)
    save("q", rng.normal(size=(B, T, H, K)))
    save("k", rng.normal(size=(B, T, H, K)))
    save("v", rng.normal(size=(B, T, HV, V)))
    a = rng.normal(size=(B, T, *gates)) * options.get("gate_size", 1)
    gate = options.get("gate_input", "raw")
    if "no_a" not in options:
        save("a", a if gate == "raw" else -abs(a) if gate == "log" else np.exp(-abs(a)))
    if gate == "raw" and "no_a" not in options:
        save("A_log", rng.normal(size=HV))
        if "no_dt_bias" not in options:
            save("dt_bias", rng.normal(size=gates))
    if "k_read" in options:
        save("k_read", rng.normal(size=(B, T, H, K)))
    if "erase" in options:
        save("erase", rng.random(size=(B, T, HV, K)) * 2)
    if "gv" in options:
        save("gv", -abs(rng.normal(size=(B, T, HV, V))))
    if "mask" in options:
        save("token_mask", rng.integers(0, 3, size=(B, T)), "u8")
    if "no_b" not in options:
        b = rng.normal(size=(B, T, HV, V) if "beta_columns" in options else (B, T, HV))
        save("b", b * options.get("gate_size", 1) if options.get("beta_input") != "given" else abs(b) % 1)
    if options.get("varlen"):
        save("cu_seqlens", np.cumsum([0] + lengths), "i32")

    matrix = (V, K) if options.get("state_layout") == "vk" else (K, V)
    if options.get("pool"):
        per_sequence = steps if options.get("step_slots") else 2
        slots = keys["num_states"] = N * per_sequence + 1
        free = pick.sample(range(1, slots), slots - 1)  # slot 0 is never written
        save("initial_state", rng.normal(size=(slots, HV, *matrix)), options.get("pool_dtype", "f64"))
        if options.get("step_slots"):
            own = np.reshape(free[:N * steps], (N, steps))
            save("ssm_state_indices", own, "i32")
            if options.get("starts"):
                save("initial_state_indices", [pick.choice([0, -1, *own[n]]) for n in range(N)], "i64")
            else:
                save("num_accepted_tokens", [pick.randint(1, steps) for _ in range(N)], "i64")
            if options.get("output_slots"):
                save("output_state_indices", [pick.choice([-1, *own[n]]) for n in range(N)], "i64")
        else:
            read = [-1 if pick.random() < 0.25 else slot for slot in free[:N]]
            if options.get("null_slot"):
                read[0] = int(options["null_slot"])
            save("initial_state_indices", read, "i64")
            if options.get("output_slots"):
                save("output_state_indices", [-1 if pick.random() < 0.25 else slot for slot in free[N:2 * N]], "i32")
    if options.get("cache"):
        keys["intermediate_rows"], keys["intermediate_steps"] = N + 1, steps
        keys["dtype_intermediate_states"] = "f64"
        save("intermediate_state_indices", pick.sample(range(N + 1), N), "i32")
        if options.get("tree"):
            save("retrieve_parent_token", [[pick.randrange(max(1, s)) for s in range(steps)] for _ in range(N)], "i64")
    (folder / "case.txt").write_text("".join(f"{key} {value}\n" for key, value in keys.items()))


# ==== the comparison ==================================================================================================

def check(oracle, name, folder, out):
    """Prints the errors of one case, in units of its largest element; returns whether all are within the tolerance."""
    subprocess.run([oracle, "run", folder, out, "--compute", "f64"], check=True)
    case = Case(folder)
    good, report = True, []
    for array, expected in operator(case).items():
        if expected is None or expected.size == 0:
            continue
        actual = exact(np.load(out / f"{array}.npy"))
        if actual.shape != expected.shape:
            sys.exit(f"{name}: {array}.npy has shape {actual.shape}, not {expected.shape}")
        kept_in = {"o": "f64", "final_state": case.keys.get("dtype_initial_state", "f32"),
                   "intermediate_states": case.keys.get("dtype_intermediate_states", "f32")}[array]
        largest = max(abs(x) for x in expected.flat) or mpf(1)
        # What the rounding to the declared dtype cannot explain.
        excess = max(abs(x - y) - ROUNDING[kept_in] * abs(y) for x, y in zip(actual.flat, expected.flat))
        relative = max(excess, mpf(0)) / largest
        good = good and relative <= TOLERANCE
        report.append(f"{array} {float(relative):.1e}")
    print(f"{name:42} {', '.join(report)}{'' if good else '  FAILED'}", flush=True)
    return good


def is_small(folder):
    if not (folder / "case.txt").exists():
        return False
    c = dict(line.split(None, 1) for line in (folder / "case.txt").read_text().splitlines())
    return np.prod([int(c[size]) for size in ("B", "T", "HV", "K", "V")]) <= MOST_WORK


def main():
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        print(__doc__.strip(), file=sys.stderr)
        sys.exit(2)
    oracle, folders = sys.argv[1], [Path(folder) for folder in sys.argv[2:]]
    results = []
    with tempfile.TemporaryDirectory() as tmp:
        for folder in folders or [path for path in sorted(GOLDEN.iterdir()) if is_small(path)]:
            results.append(check(oracle, folder.name, folder, Path(tmp) / "out"))
        if not folders:
            drawn = [(name, options) for name, options in OPTIONS.items()]
            pick = random.Random(1)
            for i in range(100):
                chosen = {}
                for alternatives in FREE:
                    chosen.update(pick.choice(alternatives))
                if "lower_bound" in chosen and "gate_input" in chosen:
                    del chosen["lower_bound"]
                drawn.append((f"combination {i}", chosen))
            for seed, (name, options) in enumerate(drawn):
                folder = Path(tmp) / f"case{seed}"
                folder.mkdir()
                write_case(folder, options, seed)
                results.append(check(oracle, name, folder, Path(tmp) / f"out{seed}"))
    print(f"{sum(results)} of {len(results)} cases agree to {float(TOLERANCE):.0e}")
    return 0 if results and all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
