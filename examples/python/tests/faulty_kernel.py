"""The operator in plain numpy, right or with one deliberate fault of a table: what check_kernel.py is tested on.

examples/python/check_kernel.py examples/python/tests/faulty_kernel.py:tiled_heads      FAULTS has the names
"""

import functools

import numpy as np


def as_float32(x):
    if x is not None and x.dtype == np.uint16:
        return (x.astype(np.uint32) << 16).view(np.float32)
    return None if x is None else x.astype(np.float32)


def rounded_like(x, kind):
    """float32 numbers in `kind`, still as float32 if it is a 16-bit one."""
    if kind == np.uint16:
        bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return x.astype(kind)


def bfloat16(x):
    return as_float32(rounded_like(np.asarray(x), np.uint16))


def update(S, k, v, beta):
    return S + np.outer(k, beta * (v - k @ S))


def read(S, q):
    return S, q @ S


def l2norm(x, eps=np.float32(1e-6)):
    return x / np.sqrt(x @ x + eps)


def softplus(x, beta, threshold):
    return np.where(beta * x > threshold, x, np.log1p(np.exp(np.minimum(beta * x, 80))) / beta)


def one_element(shape, place):
    return sum(np.indices(shape)[axis] == i for axis, i in enumerate(place)) == len(shape)


# What a kernel is made of. A fault is another function in the place of one of them, or of two.
RIGHT = dict(
    tokens=lambda n, begin, end, total: range(begin, end),  # of sequence n
    reads=lambda n, slots, size: slots[n],  # the slot of sequence n, below 0 for none; `size` of the pool
    writes=lambda n, slots, size: slots[n],
    load=lambda matrix: matrix.T,
    store=lambda S: S.T,
    skips=lambda slot: False,  # a sequence, whose output stays 0
    head=lambda hv, H, HV: hv // (HV // H),
    x=lambda a, dt_bias: a + dt_bias,
    softplus=softplus,
    g=lambda A_log, softplus, a: -np.exp(A_log) * softplus,
    decay=np.exp,
    beta=lambda b, kind: 1 / (1 + np.exp(-b)),
    norm_q=l2norm,
    norm_k=l2norm,
    scale=lambda scale, K, normed: K**-0.5 if scale is None else scale,
    token=lambda S, q, k, v, decay, beta: read(update(decay * S, k, v, beta), q),
    output=lambda o, given: o,
)

FAULTS = {
    "wrong layout": dict.fromkeys(("load", "store"), lambda matrix: matrix.reshape(matrix.shape[::-1])),
    "tiled heads": dict(head=lambda hv, H, HV: hv % H),
    "scale ignored": dict(scale=lambda scale, K, normed: K**-0.5),
    "no scale": dict(scale=lambda scale, K, normed: 1),
    "scale before the norm": dict(scale=lambda scale, K, normed: 1 if normed else K**-0.5 if scale is None else scale),
    # The norm
    "eps 1e-5": dict.fromkeys(("norm_q", "norm_k"), functools.partial(l2norm, eps=np.float32(1e-5))),
    "eps outside": dict.fromkeys(("norm_q", "norm_k"), lambda x: x / np.maximum(np.sqrt(x @ x), 1e-6)),
    "eps added to the norm": dict.fromkeys(("norm_q", "norm_k"), lambda x: x / (np.sqrt(x @ x) + np.float32(1e-6))),
    "eps of the mean": dict.fromkeys(("norm_q", "norm_k"), lambda x: x / np.sqrt(x @ x + np.float32(1e-6 * len(x)))),
    "root mean square": dict.fromkeys(("norm_q", "norm_k"), lambda x: x / np.sqrt(x @ x / len(x) + np.float32(1e-6))),
    "no norm of q": dict(norm_q=lambda x: x),
    "no norm of k": dict(norm_k=lambda x: x),
    # The gate
    "no dt bias": dict(x=lambda a, dt_bias: a),
    "log gate": dict(g=lambda A_log, softplus, a: a),
    "A log for A": dict(g=lambda A_log, softplus, a: -A_log * softplus),
    "no softplus": dict(softplus=lambda x, beta, threshold: x),
    "no softplus threshold": dict(softplus=lambda x, beta, threshold: softplus(x, beta, np.inf)),
    "no softplus beta": dict(softplus=lambda x, beta, threshold: softplus(x, 1, threshold)),
    "no gate": dict(decay=lambda g: np.exp(0 * g)),
    "no exp of g": dict(decay=lambda g: g),
    "two to the g": dict(decay=np.exp2),
    "exp of the binary g": dict(decay=lambda g: np.exp(g * np.float32(np.log2(np.e)))),
    "growth": dict(decay=lambda g: np.exp(-g)),
    # beta
    "no sigmoid": dict(beta=lambda b, kind: b),
    "no beta": dict(beta=lambda b, kind: 1),
    "beta rounded": dict(beta=lambda b, kind: as_float32(rounded_like(1 / (1 + np.exp(-b)), kind))),
    "beta twice": dict(beta=lambda b, kind: (1 / (1 + np.exp(-b))) ** 2),
    "beta on v alone": dict(
        token=lambda S, q, k, v, decay, beta: read(decay * S + np.outer(k, beta * v - k @ (decay * S)), q)
    ),
    # Slots
    "no initial state": dict(load=lambda matrix: 0 * matrix.T),
    "no final state": dict(writes=lambda n, slots, size: -1),
    "zero padding": dict(skips=lambda slot: slot < 0),
    "slots ignored": dict(reads=lambda n, slots, size: n, writes=lambda n, slots, size: n),
    "slot of the first": dict(reads=lambda n, slots, size: slots[0]),
    "slot of the next": dict(reads=lambda n, slots, size: slots[(n + 1) % len(slots)]),
    "last slot for padding": dict.fromkeys(("reads", "writes"), lambda n, slots, size: slots[n] % size),
    "slot 0 for padding": dict.fromkeys(("reads", "writes"), lambda n, slots, size: max(slots[n], 0)),
    "null slot written": dict(writes=lambda n, slots, size: max(slots[n], 0)),
    # Tokens
    "last token left out": dict(tokens=lambda n, begin, end, total: range(begin, end - 1)),
    "first token left out": dict(tokens=lambda n, begin, end, total: range(begin + 1, end)),
    "one token too many": dict(tokens=lambda n, begin, end, total: range(begin, min(end + 1, total))),
    "last token of all left out": dict(tokens=lambda n, begin, end, total: range(begin, min(end, total - 1))),
    "one sequence": dict(tokens=lambda n, begin, end, total: range(total) if n == 0 else ()),
    "partial chunk left out": dict(tokens=lambda n, begin, end, total: range(begin, end - (end - begin) % 32)),
    # The order within a token
    "state rounded": dict(
        token=lambda S, q, k, v, decay, beta: (
            bfloat16(update(decay * S, k, v, beta)),
            q @ update(decay * S, k, v, beta),
        )
    ),
    "decay last": dict(token=lambda S, q, k, v, decay, beta: read(decay * update(S, k, v, beta), q)),
    "decay after o": dict(
        token=lambda S, q, k, v, decay, beta: (decay * update(S, k, v, beta), q @ update(S, k, v, beta))
    ),
    "o before the update": dict(token=lambda S, q, k, v, decay, beta: (update(decay * S, k, v, beta), q @ (decay * S))),
    "o before the decay": dict(token=lambda S, q, k, v, decay, beta: (update(decay * S, k, v, beta), q @ S)),
    "delta of the undecayed": dict(
        token=lambda S, q, k, v, decay, beta: read(decay * S + np.outer(k, beta * (v - k @ S)), q)
    ),
    "no delta": dict(token=lambda S, q, k, v, decay, beta: read(decay * S + np.outer(k, beta * v), q)),
}

# Not to be explained: of no known kind, or beside the operator.
FAULTS_UNKNOWN = {
    "sign": dict(token=lambda S, q, k, v, decay, beta: read(2 * decay * S - update(decay * S, k, v, beta), q)),
    "one wrong column": dict(output=lambda o, given: o + one_element(o.shape, (0, 2, 1, 5))),
    "input written": dict(output=lambda o, given: o if given["q"].fill(0) is None else o),
    "shape": dict(output=lambda o, given: o[0]),
}


@np.errstate(all="ignore")
def kernel(A_log, a, dt_bias, softplus_beta, softplus_threshold, q, k, v, b, initial_state_source, initial_state_indices,
           scale=None, use_qk_l2norm_in_kernel=False, cu_seqlens=None, is_kda=False, faults=()):  # fmt: skip
    do = dict(RIGHT)
    for fault in faults:
        do |= (FAULTS | FAULTS_UNKNOWN)[fault]
    given = dict(q=q, b=b)
    A_log, a, dt_bias, q, k, v, b = map(as_float32, (A_log, a, dt_bias, q, k, v, b))
    (B, T, H, K), (HV, V) = q.shape, v.shape[2:]
    factor = np.float32(do["scale"](scale, K, use_qk_l2norm_in_kernel))
    o = np.zeros(v.shape, np.float32)
    ends = np.arange(B + 1) * T if cu_seqlens is None else cu_seqlens
    pool = initial_state_source
    before = None if pool is None else pool.copy()  # as if all sequences began at once
    for n in range(len(ends) - 1):
        tokens, reads, writes = do["tokens"](n, ends[n], ends[n + 1], B * T), -1, -1
        if pool is not None:
            reads, writes = (do[name](n, initial_state_indices, len(pool)) for name in ("reads", "writes"))
        if len(tokens) == 0 or (pool is not None and do["skips"](reads)):
            continue
        for hv in range(HV):
            h = do["head"](hv, H, HV)
            S = np.zeros((K, V), np.float32)
            if reads >= 0:
                S = do["load"](as_float32(before[reads, hv]))
            for token in tokens:
                row, t = divmod(token, T)
                qt, kt, at = q[row, t, h], k[row, t, h], a[row, t, hv]
                x = do["softplus"](do["x"](at, dt_bias[hv]), softplus_beta, softplus_threshold)
                decay = do["decay"](do["g"](A_log[hv], x, at))
                beta = do["beta"](b[row, t, hv], given["b"].dtype)
                if use_qk_l2norm_in_kernel:
                    qt, kt = do["norm_q"](qt), do["norm_k"](kt)
                S, o[row, t, hv] = do["token"](
                    S, qt * factor, kt, v[row, t, hv], decay[:, None] if is_kda else decay, beta
                )
            if writes >= 0:
                pool[writes, hv] = rounded_like(do["store"](S), pool.dtype)
    return rounded_like(do["output"](o, given), given["q"].dtype)


def __getattr__(name):
    """tiled_heads is the kernel with the fault "tiled heads"."""
    fault = name.replace("_", " ")
    if fault not in FAULTS | FAULTS_UNKNOWN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return functools.partial(kernel, faults=[fault])
