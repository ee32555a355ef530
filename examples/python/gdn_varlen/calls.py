"""What the modules under the peers' names share: a call of the operator in a peer's words.

A module is a table: the peer's functions with the peer's arguments, each of which says what its arguments are called in
the operator. All of them take `compute=` ("f32", or "f64": the oracle, whose new results are float64) and
`num_threads=` besides.
"""

import contextlib
import math

import numpy as np

from .arrays import dtype_name, filled, integers, known, new
from .operator import GdnError, fused_sigmoid_gating_delta_rule_update, prepare


class NotExpressible(GdnError, NotImplementedError):
    """An argument that asks for what the operator does not do."""

    def __init__(self, argument):
        super().__init__(MISSING[argument], argument, status="GDN_ERROR_VALUE")


# What the operator does not do, by the argument or the function that asks for it. To add one of them is to delete its
# line here, and the name where a module refuses it.
_REPLAY = "the inputs of the steps are not kept for a replay"
_CONVOLUTION = "the convolution before the operator is no part of it"
MISSING = {
    "cp_context": "one sequence is not spread over several processes",
    "head_first": "[batch, head, token, inner] was given up by its owners: transpose",
    "cache_ring": _REPLAY,
    "cache_replayssm": _REPLAY,
    "correction_cache": _REPLAY,
    "kg_cache": _REPLAY,
    "gated_delta_rule_replayssm_commit": _REPLAY,
    "kda_recoverssm_verify": _REPLAY,
    "match_cutedsl_decode": "another kernel's order of operations is not followed",
    "fused_gdn_decode_post_conv_mtp_triton": "the norm and the gate behind the operator are no part of it",
    "fused_kda_decode": _CONVOLUTION,
    "packed_fused_kda_decode": _CONVOLUTION,
}


def refuse(**arguments):
    """Those of MISSING that a call sets."""
    for argument, value in arguments.items():
        if value is not None and value is not False:
            raise NotExpressible(argument)


def missing(name):
    """A function of a peer's that is not there: its name, with a reason."""

    def function(*arguments, **options):
        raise NotExpressible(name)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"Not there: {MISSING[name]}."
    return function


DEFAULTS = dict.fromkeys(
    "A_log a dt_bias softplus_beta softplus_threshold b initial_state_source initial_state_indices".split()
)


@contextlib.contextmanager
def _in_their_words(names):
    """Errors by the peer's names of the arguments."""
    try:
        yield
    except GdnError as error:
        name = names.get(error.argument, error.argument)
        if name == error.argument:
            raise
        raise GdnError(error.text, name, error.index, error.other, error.status) from None


def operator(names, *, like=None, **arguments):
    """The operator. `names` is {its argument: the peer's}, for errors; a new `o` has the kind and dtype of `like`."""
    arguments = DEFAULTS | arguments
    with _in_their_words(names):
        if arguments.get("o") is None and like is not None and arguments["compute"] != "f64":
            arguments["o"] = new(known(like), tuple(arguments["v"].shape), dtype_name(known(like)))
        return fused_sigmoid_gating_delta_rule_update(**arguments)


def prepared(names, **arguments):
    """prepare(), in a peer's words."""
    with _in_their_words(names):
        return prepare(**arguments)


def in_new_states(names, initial_state, final, *, state_dtype="float32", cu_seqlens=None, **arguments):
    """(o, final states): initial_state [N, HV, matrix] is only read; the final states are new if `final`, else None."""
    q, initial_state = arguments["q"], None if initial_state is None else known(initial_state)
    N = q.shape[0] if cu_seqlens is None else len(cu_seqlens) - 1
    shape = _states_shape(N, **arguments)
    if initial_state is not None and tuple(initial_state.shape) != shape:
        name = names.get("initial_state_source", "initial_state_source")
        raise GdnError(f"its shape is {list(initial_state.shape)}, and {list(shape)} is needed", name)
    arguments |= dict(initial_state_source=initial_state, cu_seqlens=cu_seqlens)
    if not final:
        return operator(names, disable_state_update=True, **arguments), None
    states = new(q, shape, "float64" if arguments["compute"] == "f64" else state_dtype)
    o = operator(names, output_state_pool=states, **arguments)
    if initial_state is not None:  # a sequence without tokens has written nothing
        for n in np.flatnonzero(lengths_of(q, cu_seqlens) == 0):
            filled(states[n], initial_state[n])
    return o, states


def in_new_states_and_steps(names, initial_state, every, *, prefixes=None, cu_seqlens=None, **arguments):
    """(o, final states, [the states after each `every` tokens of a sequence]): in_new_states(), whose tokens count from
    those that `prefixes` says came before them, of each sequence."""
    lengths = lengths_of(arguments["q"], cu_seqlens)
    N = len(lengths)
    before = np.zeros(N, int) if prefixes is None else np.asarray(integers(prefixes))
    step = math.gcd(every, *before.tolist())
    slots, row = np.full((N, max(1, lengths.max(initial=0) // step)), -1), N
    for n, length in enumerate(lengths):
        after = np.arange(every - before[n] % every, length + 1, every)
        slots[n, after // step - 1] = range(row, row + len(after))
        row += len(after)
    shape = _states_shape(row, **arguments)
    if initial_state is not None and tuple(initial_state.shape) != (N, *shape[1:]):
        name = names.get("initial_state_source", "initial_state_source")
        raise GdnError(f"its shape is {list(initial_state.shape)}, and {[N, *shape[1:]]} is needed", name)
    states = new(known(arguments["q"]), shape, "float64" if arguments["compute"] == "f64" else "float32")
    o = operator(
        names, initial_state_source=initial_state, output_state_pool=states, output_state_indices=np.arange(N),
        ssm_state_indices=slots, step_interval=step, cu_seqlens=cu_seqlens, **arguments,
    )  # fmt: skip
    if initial_state is not None:
        for n in np.flatnonzero(lengths == 0):  # which have written nothing
            filled(states[n], initial_state[n])
    counts = (slots >= 0).sum(1)
    starts = N + np.cumsum(counts) - counts
    return o, states[:N], [states[start : start + count] for start, count in zip(starts, counts)]


def before_chunks(initial_state, states, size, q, cu_seqlens, dtype):
    """[chunks, HV, matrix]: the state before each chunk of `size` tokens, of the initial ones (None: zeros) and the
    states after each, sequence by sequence."""
    counts = -(-lengths_of(q, cu_seqlens) // size)
    h, row = new(known(q), (counts.sum(), *states[0].shape[1:]), dtype), 0
    for n, count in enumerate(counts):
        if count and initial_state is not None:
            filled(h[row], initial_state[n])
        if count > 1:
            filled(h[row + 1 : row + count], states[n][: count - 1])
        row += count
    return h


def gathered(names, pool, slots, N):
    """The states of N sequences, new: zeros where there is no pool, or a slot is negative."""
    if pool is None:
        return None
    slots = np.arange(N) if slots is None else np.asarray(integers(slots))
    states = new(pool, (N, *pool.shape[1:]), dtype_name(pool))
    for n, slot in enumerate(slots.tolist()):
        if slot >= len(pool):
            name = names.get("initial_state_indices", "initial_state_indices")
            raise GdnError(f"{slot} is none of the {len(pool)} slots", name, n, status="GDN_ERROR_INDEX")
        if slot >= 0:
            filled(states[n], pool[slot])
    return states


def scattered(pool, slots, states, lengths):
    """`states` of sequences with tokens into their slots of `pool`, but for the negative ones."""
    slots = range(len(states)) if slots is None else np.asarray(integers(slots)).tolist()
    for n, slot in enumerate(slots):
        if slot >= 0 and lengths[n]:
            filled(pool[slot], states[n])


def in_states_of_tokens(names, initial_state, slots, accepted, *, state_dtype, cu_seqlens=None, **arguments):
    """(o, states): the state after every token, new, [tokens, HV, matrix]. initial_state is only read: in the first of
    each sequence's `slots` (the last that was accepted, where that is given), or else in slot n."""
    q, ends = arguments["q"], _ends(arguments["q"], cu_seqlens)
    lengths = np.diff(ends)
    steps = np.arange(lengths.max(initial=1))
    if slots is not None:
        slots = np.asarray(integers(slots)).reshape(len(lengths), -1)
        last = np.zeros(len(lengths), int) if accepted is None else np.asarray(integers(accepted)) - 1
        for n in np.flatnonzero((last < 0) | (last >= slots.shape[1])):
            raise GdnError(f"is none of 1 .. {slots.shape[1]}", "num_accepted_tokens", n)
        slots = slots[np.arange(len(last)), last]
    shape = _states_shape(q.shape[0] * q.shape[1], **arguments)
    states = new(q, shape, "float64" if arguments["compute"] == "f64" else state_dtype)
    o = operator(
        names, initial_state_source=initial_state, initial_state_indices=slots, output_state_pool=states,
        ssm_state_indices=np.where(steps < lengths[:, None], ends[:-1, None] + steps, -1), cu_seqlens=cu_seqlens,
        **arguments,
    )  # fmt: skip
    return o, states


def lengths_of(q, cu_seqlens):
    """The number of tokens of each sequence."""
    return np.diff(_ends(q, cu_seqlens))


def _states_shape(count, q, v, state_layout, **_):
    HV, V, K = *v.shape[-2:], q.shape[-1]
    return (count, HV, K, V) if state_layout == "kv" else (count, HV, V, K)


def _ends(q, cu_seqlens):
    """cu_seqlens, of a fixed length too."""
    B, T = q.shape[:2]
    return np.arange(B + 1) * T if cu_seqlens is None else np.asarray(integers(cu_seqlens))


def packed_decode(
    names, mixed_qkv, a, b, A_log, dt_bias, scale, initial_state, out, ssm_state_indices, l2norm, **options
):
    """(out, initial_state): one token for each row of mixed_qkv [B, H*K + H*K + HV*V], on a pool [slots, HV, V, K]."""
    for argument, x, axes in (("mixed_qkv", mixed_qkv, 2), ("initial_state", initial_state, 4)):
        if len(x.shape) != axes:
            raise GdnError(f"its shape is {list(x.shape)}, and {axes} axes are needed", argument)
    B, (HV, V, K) = mixed_qkv.shape[0], initial_state.shape[1:]
    H, rest = divmod(mixed_qkv.shape[1] - HV * V, 2 * K)
    if H < 1 or rest or HV % H:
        raise GdnError(f"its rows of {mixed_qkv.shape[1]} hold no q, k and {HV} heads of {V}", "mixed_qkv")
    q, k, v = mixed_qkv[:, : H * K], mixed_qkv[:, H * K : 2 * H * K], mixed_qkv[:, 2 * H * K :]
    operator(
        names, q=q.reshape(B, 1, H, K), k=k.reshape(B, 1, H, K), v=v.reshape(B, 1, HV, V), a=a, b=b, A_log=A_log,
        dt_bias=dt_bias, scale=scale, initial_state_source=initial_state, initial_state_indices=ssm_state_indices,
        use_qk_l2norm_in_kernel=l2norm, o=out, **options,
    )  # fmt: skip
    return out, initial_state
