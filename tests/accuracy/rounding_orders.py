#!/usr/bin/env python3
"""What the order of operations costs: the header's order in float32 and that of the Triton kernel, over random calls.

    tests/accuracy/rounding_orders.py GDN_ORACLE GOLDEN_DIR [--draws N] [CASE...]

One golden case is one draw of the rounding errors. For each case that is float32 throughout this
draws N calls of the same shape and options, with elements from the case's own arrays, and prints the error of o against
float64, relative to the largest element, of each order. The orders are written here in numpy, with fused multiply-adds
through float64; the header's is held against the program on the case itself. Triton's sums are taken as balanced trees,
the best that a GPU's can be.
Exit status 77: numpy is missing.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

try:
    import numpy as np
except ImportError as missing:
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__.strip())
        sys.exit()
    print(f"SKIPPED: {missing}; on Debian: apt-get install python3-numpy")
    sys.exit(77)

f32, f64 = np.float32, np.float64
TENSORS = ("A_log", "a", "dt_bias", "q", "k", "v", "b", "k_read", "erase", "gv", "o", "initial_state")


# ==== sums over the first axis ========================================================================================

def fma(x, y, z):
    return (x.astype(f64) * y.astype(f64) + z.astype(f64)).astype(f32)


def sum_in_order(x, y, rows):
    """One accumulator for every `rows` rows, these added up in order."""
    total = None
    for first in range(0, len(x), rows):
        acc = np.zeros(np.broadcast(x[0], y[0]).shape, f32)
        for i in range(first, min(first + rows, len(x))):
            acc = fma(x[i], y[i], acc)
        total = acc if total is None else total + acc
    return total


def sum16(x, y, fold=f32):
    """Sixteen partial sums in float32, folded by halves in `fold`."""
    part = [np.zeros(np.broadcast(x[0], y[0]).shape, f32) for _ in range(16)]
    for i in range(len(x)):
        part[i % 16] = fma(x[i], y[i], part[i % 16])
    part = [p.astype(fold) for p in part]
    for width in (8, 4, 2, 1):
        part = [part[i] + part[i + width] for i in range(width)]
    return part[0]


def sum_tree(x, y):
    z = x * y
    while len(z) > 1:
        if len(z) % 2:
            z = np.concatenate([z, np.zeros_like(z[:1])])
        z = z[:len(z) // 2] + z[len(z) // 2:]
    return z[0]


# ==== the operator in three arithmetics, for calls x with q, k [T,K,D,HV], v [T,D,HV,V], S [K,D,HV,V] =================

def options_of(keys):
    def number(key, default, absent=None):
        return absent if keys.get(key, absent) in (absent, "none", "default") else float(keys[key]) or default
    return SimpleNamespace(
        kda=keys.get("is_kda") == "1", l2=keys.get("use_qk_l2norm") == "1", vk=keys.get("state_layout") == "vk",
        form=keys.get("l2norm_form", "sum_plus_eps"), eps=float(keys.get("l2norm_eps", 1e-6)),
        scale=number("scale", 0) or int(keys["K"]) ** -0.5, lower=number("lower_bound", 0.0),
        beta=float(keys.get("softplus_beta", 1)), threshold=float(keys.get("softplus_threshold", 20)),
        gate=keys.get("gate_input", "raw"), given=keys.get("beta_input") == "given",
        double=keys.get("allow_neg_eigval") == "1", before=keys.get("read_before_decay") == "1")


def norm_factor(total, o, K):
    return {"sum_plus_eps": lambda: 1 / np.sqrt(total + o.eps), "mean_plus_eps": lambda: 1 / np.sqrt(total + K * o.eps),
            "max_norm_eps": lambda: 1 / np.maximum(np.sqrt(total), o.eps),
            "norm_plus_eps": lambda: 1 / (np.sqrt(total) + o.eps)}[o.form]()


def gates(x, o, t, number, exp, log1p):
    """Decay [K,D,HV,1] or [1,D,HV,1] and beta [D,HV,V or 1], with these functions on this type."""
    a = np.ones(x.v.shape[1:3] + (1,) * o.kda, number) if x.a is None else x.a[t].astype(number)
    if x.a is None:
        decay = a
    elif o.gate == "raw":
        y = a if x.dt_bias is None else a + x.dt_bias.astype(number)
        A = np.ones(a.shape[1:2], number) if x.A_log is None else exp(x.A_log.astype(number))
        A = A[..., None] if o.kda else A
        if o.lower is not None:
            g = number(o.lower) / (1 + exp(-(A * y)))
        else:
            by = number(o.beta) * y
            g = -A * np.where(by <= o.threshold, number(1 / o.beta) * log1p(exp(np.minimum(by, 80))), y)
        decay = exp(g)
    else:
        decay = exp(a) if o.gate == "log" else a
    if x.b is None:
        beta = np.ones(x.v[t].shape, number)
    else:
        beta = x.b[t].astype(number) if o.given else 1 / (1 + exp(-x.b[t].astype(number)))
        beta = beta * number(2) if o.double else beta
    decay = np.moveaxis(decay, -1, 0)[..., None] if o.kda else decay[None, ..., None]
    return decay, beta if beta.ndim == x.v[t].ndim else beta[..., None]


def tokens(x, S, out, steps):
    """The tokens that count, each with the state before it; the others repeat that state and have zeros as output."""
    for t in range(len(x.q)):
        S = steps[-1] if steps else S
        S = S if x.parents is None or t == 0 else steps[x.parents[t]]
        if x.mask is None or x.mask[t]:
            yield t, S
        else:
            steps.append(S)
            out.append(np.zeros(x.v.shape[1:], S.dtype))


def exact(x, o):
    steps, out = [], []
    for t, S in tokens(x, x.S.astype(f64), out, steps):
        q, k, v = x.q[t].astype(f64), x.k[t].astype(f64), x.v[t].astype(f64)
        reads = k if x.k_read is None else x.k_read[t].astype(f64)
        if o.l2:
            q, k, reads = (z * norm_factor((z * z).sum(0), o, len(z)) for z in (q, k, reads))
        reads = (reads if x.erase is None else reads * x.erase[t].astype(f64))[..., None]
        decay, beta = gates(x, o, t, f64, np.exp, np.log1p)
        before = (reads * S).sum(0)
        S = S * decay if x.gv is None else S * decay * np.exp(x.gv[t].astype(f64))
        d = beta * (v - (before if o.before else (reads * S).sum(0)))
        S = S + k[..., None] * d
        steps.append(S)
        out.append((o.scale * q[..., None] * S).sum(0))
    return np.array(out)


def header(x, o, fold=f64, rows=None):
    """NUMERICS of the header. With fold=f32 the norms and q.k are folded in float32; with rows, the sums of [K,V]
    states start anew every so many rows."""
    def scaled(z, factor):
        high = factor.astype(f32)
        return fma(z, high, z * (factor - high).astype(f32))

    total = sum16 if o.vk else (lambda y, z: sum_in_order(y, z, rows or len(y)))
    def normalised(z):
        return scaled(z, norm_factor(sum16(z, z, fold).astype(f64), o, len(z))) if o.l2 else z

    steps, out = [], []
    for t, S in tokens(x, x.S, out, steps):
        q, k, v = x.q[t], normalised(x.k[t]), x.v[t]
        reads = k if x.k_read is None else normalised(x.k_read[t])
        reads = (reads if x.erase is None else reads * x.erase[t])[..., None]
        q_factor = np.full(q.shape[1:], o.scale)
        if o.l2:
            q_factor = o.scale * norm_factor(sum16(q, q, fold).astype(f64), o, len(q))
        q = scaled(q, q_factor)
        qk = sum16(q, k, fold).astype(f32)[..., None]
        decay, beta = (z.astype(f32) for z in gates(x, o, t, f64, np.exp, np.log1p))
        p = f32(1) if o.kda else decay[0]
        S = S if x.gv is None else S * np.exp(x.gv[t].astype(f64)).astype(f32)
        kd = reads * decay if o.kda and not o.before else reads
        qd = q[..., None] * decay if o.kda else q[..., None]
        A, B = total(kd, S), total(qd, S)
        d = beta * fma(f32(-1) if o.before else -p, A, v)
        out.append(fma(qk, d, p * B))
        S = fma(k[..., None], d[None], decay * S)
        steps.append(S)
    return np.array(out)


def triton(x, o):
    def exp(y):  # the GPU's: 2 to the power of the rounded x * log2(e)
        return np.exp2((y * f32(1.4426950408889634)).astype(f64)).astype(f32)

    steps, out = [], []
    for t, S in tokens(x, x.S, out, steps):
        q, k, v = x.q[t], x.k[t], x.v[t]
        reads = k if x.k_read is None else x.k_read[t]
        if o.l2:
            q, k, reads = (z * norm_factor(sum_tree(z, z), o, len(z)).astype(f32) for z in (q, k, reads))
        q = q * f32(o.scale)
        reads = (reads if x.erase is None else reads * x.erase[t])[..., None]
        decay, beta = gates(x, o, t, f32, exp, lambda y: np.log(1 + y).astype(f32))
        before = sum_tree(S, reads) if o.before else None
        S = S * decay if x.gv is None else S * decay * exp(x.gv[t])
        d = (v - (before if o.before else sum_tree(S, reads))) * beta
        S = fma(k[..., None], d[None], S)
        steps.append(S)
        out.append(sum_tree(S, q[..., None]))
    return np.array(out)


# ==== calls ===========================================================================================================

def load(folder):
    """The options of a case, and its sequences as calls with D = 1; each knows its place in o.npy."""
    lines = (line.split(None, 1) for line in (folder / "case.txt").read_text().splitlines())
    keys = {key: value.strip() for key, value in lines}
    a = {path.stem: np.load(path) for path in folder.glob("*.npy")}
    B, T, H, HV, K, V = (int(keys[size]) for size in ("B", "T", "H", "HV", "K", "V"))
    heads = np.arange(HV) % H if keys.get("head_map") == "tiled" else np.arange(HV) // (HV // H)
    null = keys.get("null_slot", "none")
    sequences = []
    for n in range(int(keys.get("N", B))):
        at = (0, slice(*a["cu_seqlens"][n:n + 2])) if "cu_seqlens" in a else (n, slice(0, T))
        if a["v"][at].shape[0] == 0:
            continue
        S = np.zeros((HV, K, V), f32)
        if "initial_state" in a:
            slot = n
            if "initial_state_indices" in a:
                slot = a["initial_state_indices"][n]
            elif "ssm_state_indices" in a:
                slot = a["ssm_state_indices"][n, a["num_accepted_tokens"][n] - 1 if "num_accepted_tokens" in a else 0]
            padded = slot < 0 or (null != "none" and slot == int(null))
            if padded and keys.get("padding", "compute") != "compute":
                continue
            if not padded:
                S = a["initial_state"][slot]
                S = S.swapaxes(1, 2) if keys["state_layout"] == "vk" else S

        def rows(name):
            return a[name][at][:, heads].transpose(0, 2, 1)[:, :, None] if name in a else None

        def tensor(name):
            return a[name][at][:, None] if name in a else None

        sequences.append(SimpleNamespace(
            at=at, q=rows("q"), k=rows("k"), k_read=rows("k_read"), v=tensor("v"), a=tensor("a"), b=tensor("b"),
            erase=np.moveaxis(tensor("erase"), -1, 1) if "erase" in a else None, gv=tensor("gv"),
            mask=a["token_mask"][at] if "token_mask" in a else None, S=S.transpose(1, 0, 2)[:, None],
            A_log=a.get("A_log"), dt_bias=a.get("dt_bias"),
            parents=a["retrieve_parent_token"][n] if "retrieve_parent_token" in a else None, heads=heads))
    return keys, a, sequences


def redraw(x, a, draws, rng):
    """D = draws calls of the shape of x."""
    def pick(name, shape):
        return None if name not in a else rng.choice(a[name].ravel(), shape).astype(f32)

    T, K, _, HV = x.q.shape
    per_head = (draws, HV)
    gate = per_head + (() if x.a is None else x.a.shape[3:])
    values = (T,) + per_head + x.v.shape[3:]

    def rows(name):
        z = pick(name, (T, K, draws, HV))
        return None if z is None else z[..., x.heads]

    return SimpleNamespace(
        q=rows("q"), k=rows("k"), k_read=rows("k_read"), v=pick("v", values), a=pick("a", (T,) + gate),
        b=None if x.b is None else pick("b", (T,) + per_head + x.b.shape[3:]), erase=pick("erase", (T, K, draws, HV)),
        gv=pick("gv", values), mask=x.mask,
        S=pick("initial_state", (K,) + per_head + x.S.shape[3:]) if "initial_state" in a else
        np.zeros((K,) + per_head + x.S.shape[3:], f32),
        A_log=pick("A_log", per_head), dt_bias=pick("dt_bias", gate), parents=x.parents)


def errors(actual, truth):
    """Of each draw: the largest error over its sequences, relative to their largest element."""
    off = [np.abs(x - y).max(axis=(0, 2, 3)) for x, y in zip(actual, truth)]
    size = [np.abs(y).max(axis=(0, 2, 3)) for y in truth]
    return np.max(off, axis=0) / np.max(size, axis=0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("oracle")
    parser.add_argument("golden", type=Path)
    parser.add_argument("cases", nargs="*")
    parser.add_argument("--draws", type=int, default=200)
    options = parser.parse_args()
    orders = {"Triton": triton, "header": header, "folded in float32": lambda x, o: header(x, o, f32),
              "columns by 16 rows": lambda x, o: header(x, o, rows=16)}
    print("| case | draws | " + " | ".join(f"{name}: median | max" + (" | not above Triton" if name != "Triton" else "")
                                           for name in orders) + " |")
    print("|" + "---|" * (2 + 2 * len(orders) + len(orders) - 1))
    failures, wins = 0, []
    for folder in sorted(options.golden.iterdir()):
        if not (folder / "case.txt").exists() or (options.cases and folder.name not in options.cases):
            continue
        keys, arrays, sequences = load(folder)
        if any(keys.get(f"dtype_{name}", "f32") != "f32" for name in TENSORS):
            continue
        o = options_of(keys)
        with tempfile.TemporaryDirectory() as out:
            subprocess.run([options.oracle, "run", folder, out], check=True)
            actual = np.load(Path(out) / "o.npy")
        same = [header(x, o)[:, 0] == actual[x.at] for x in sequences]
        share = np.mean(np.concatenate([x.ravel() for x in same]))
        if share < 0.7:  # a decay that rounds the other way changes its sequence's bits, no more
            print(f"FAILED: {folder.name}: only {share:.0%} of o has the bits of the program: not the header's order")
            failures += 1
        # Large cases get fewer draws, in batches that fit into memory.
        size = sum(x.S.size * len(x.q) for x in sequences)
        draws = int(max(20, min(options.draws, 4e8 // size)))
        found = {name: [] for name in orders}
        rng = np.random.default_rng(1)
        for first in range(0, draws, 20):
            calls = [redraw(x, arrays, min(20, draws - first), rng) for x in sequences]
            truth = [exact(x, o) for x in calls]
            for name, order in orders.items():
                found[name].extend(errors([order(x, o) for x in calls], truth))
        row = []
        for name in orders:
            e = np.array(found[name])
            row += [f"{np.median(e):.1e}", f"{e.max():.1e}"]
            if name != "Triton":
                row.append(f"{np.mean(e <= found['Triton']):.0%}")
        wins.append([np.median(found[name]) <= np.median(found["Triton"]) for name in orders])
        print(f"| `{folder.name}` | {draws} | " + " | ".join(row) + " |", flush=True)
    print("\nMedian not above Triton's in " + ", ".join(
        f"{sum(w[i] for w in wins)} of {len(wins)} cases ({name})" for i, name in enumerate(orders) if i))
    return 1 if failures or not wins else 0


if __name__ == "__main__":
    sys.exit(main())
