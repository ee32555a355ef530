"""The operator in plain numpy, right or with one deliberate fault: what check_kernel.py is tested on.

examples/python/check_kernel.py examples/python/tests/faulty_kernel.py:tiled_heads
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


def kernel(A_log, a, dt_bias, softplus_beta, softplus_threshold, q, k, v, b, initial_state_source, initial_state_indices,
           scale=None, use_qk_l2norm_in_kernel=False, cu_seqlens=None, is_kda=False, fault=""):  # fmt: skip
    given = dict(q=q, b=b)
    A_log, a, dt_bias, q, k, v, b = map(as_float32, (A_log, a, dt_bias, q, k, v, b))
    B, T, H, K = q.shape
    HV, V = v.shape[2:]
    scale = K**-0.5 if scale is None or fault == "scale ignored" else scale
    o = np.zeros(v.shape, np.float32)
    if cu_seqlens is None:
        sequences = [(n, 0, T) for n in range(B)]
    else:
        sequences = [(0, begin, end) for begin, end in zip(cu_seqlens[:-1], cu_seqlens[1:])]
    for n, (row, begin, end) in enumerate(sequences):
        slot = -1 if initial_state_source is None else initial_state_indices[n]
        if slot < 0 and initial_state_source is not None and fault == "zero padding":
            continue
        for hv in range(HV):
            h = hv % H if fault == "tiled heads" else hv // (HV // H)
            S = np.zeros((K, V), np.float32)
            if slot >= 0 and fault != "no initial state":
                S = as_float32(initial_state_source[slot, hv]).copy()
                S = S.reshape(K, V) if fault == "wrong layout" else S.T.copy()
            for t in range(begin, end):
                qt, kt, x = q[row, t, h], k[row, t, h], a[row, t, hv] + dt_bias[hv]
                if fault == "no dt_bias":
                    x = a[row, t, hv]
                g = -np.exp(A_log[hv]) * np.where(
                    softplus_beta * x > softplus_threshold, x, np.log1p(np.exp(softplus_beta * x)) / softplus_beta
                )
                if fault == "log gate":
                    g = a[row, t, hv]
                beta = b[row, t, hv] if fault == "no sigmoid" else 1 / (1 + np.exp(-b[row, t, hv]))
                if fault == "beta rounded":
                    beta = as_float32(rounded_like(np.array([beta], np.float32), given["b"].dtype))[0]
                if use_qk_l2norm_in_kernel:
                    eps = np.float32(1e-5 if fault == "eps 1e-5" else 1e-6)
                    if fault == "eps outside":
                        qt, kt = (y / np.maximum(np.sqrt(y @ y), eps) for y in (qt, kt))
                    else:
                        qt, kt = (y / np.sqrt(y @ y + eps) for y in (qt, kt))
                if not (fault == "scale before the norm" and use_qk_l2norm_in_kernel):
                    qt = qt * np.float32(scale)
                S *= np.exp(g)[:, None] if is_kda else np.exp(g)
                d = beta * (v[row, t, hv] - kt @ S)
                if fault == "sign":
                    d = -d
                S += np.outer(kt, d)
                o[row, t, hv] = qt @ S
                if fault == "state rounded":
                    S = as_float32(rounded_like(S, np.uint16))
                if fault == "one wrong column" and hv == 1 and t == begin + 2 and V > 5:
                    o[row, t, hv, 5] += 1
            if slot >= 0 and fault != "no final state":
                S = S.reshape(V, K) if fault == "wrong layout" else S.T
                initial_state_source[slot, hv] = rounded_like(S, initial_state_source.dtype)
    if fault == "input written":
        given["q"][...] = 0
    if fault == "shape":
        return o[0]
    return rounded_like(o, given["q"].dtype)


tiled_heads = functools.partial(kernel, fault="tiled heads")
wrong_layout = functools.partial(kernel, fault="wrong layout")
