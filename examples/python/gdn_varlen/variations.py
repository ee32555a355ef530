"""What a kernel may do instead of what is right: a table of variations of a call of the float64 oracle.

A variation changes the arguments of a call, the tokens or the slots of its sequences, the way in which one token is
computed, or the output. Several may be applied to one call: what the kernel does is then all of them.
"""

import functools

import numpy as np

from .operator import fused_sigmoid_gating_delta_rule_update


def rounded(x, dtype):
    """float64 numbers as `dtype` has them."""
    with np.errstate(over="ignore"):
        if dtype != "bfloat16":
            return x.astype(dtype).astype(np.float64)
        bits = np.ascontiguousarray(x, np.float32)
    bits = bits.view(np.uint32).astype(np.uint64)
    bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    return bits.astype(np.uint32).view(np.float32).astype(np.float64)


def narrowed(x, dtype):
    """The same as an array of `dtype`; numpy's bfloat16 is uint16."""
    x = rounded(x, dtype).astype(np.float32)
    return (x.view(np.uint32) >> 16).astype(np.uint16) if dtype == "bfloat16" else x.astype(dtype)


def rounded_inputs(options):
    """What is made of these inputs is rounded to their dtype."""
    rounding = {"round_qk": ("q", "k"), "round_q_scaled": ("q",), "round_beta": ("b",)}
    return sorted({name for option, names in rounding.items() if options.get(option) for name in names})


def oracle(dtype, arguments):
    """The operator, of float64 arrays; of those of `dtype` where that is what it rounds to."""
    names = (name for name in rounded_inputs(arguments) if arguments[name] is not None)
    narrow = {name: narrowed(arguments[name], dtype) for name in names}
    return fused_sigmoid_gating_delta_rule_update(**arguments | narrow)


class Call:
    """A call of the oracle, to be varied and then made. `dtype` is that of the inputs."""

    def __init__(self, arguments, dtype):
        self.arguments = {name: x.copy() if isinstance(x, np.ndarray) else x for name, x in arguments.items()}
        self.pool, self.dtype = self.arguments["initial_state_source"], dtype
        self._slots, self._steps, self._outputs = [], [], []

    def __getitem__(self, name):
        return self.arguments.get(name)

    def set(self, **values):
        self.arguments.update(values)

    def slots(self, change):
        """change(reads, writes, zeros) -> (reads, writes): the slots from which the sequences start and in which they
        leave their states. Below 0: padding, and nowhere. A sequence that reads slot `zeros` starts from zeros."""
        self._slots.append(change)

    def step(self, change):
        """change(token, run) -> o of the token; run() is what would be without it."""
        self._steps.append(change)

    def tokens(self, pick):
        """Sequence n computes the tokens pick(n, begin, end, total), of all in the order of memory."""
        total, ends = self["q"].shape[0] * self["q"].shape[1], self._ends()
        picked = [np.arange(total)[list(pick(n, *ends[n : n + 2], total))] for n in range(len(ends) - 1)]
        order, shape = np.concatenate(picked), self["v"].shape
        for name in ("q", "k", "v", "a", "b"):
            if self[name] is not None:
                self.set(**{name: self[name].reshape(1, total, *self[name].shape[2:])[:, order]})
        self.set(cu_seqlens=np.cumsum([0, *map(len, picked)]))

        def output(o):
            whole = np.zeros((total, *shape[2:]))
            whole[order] = o[0]
            return whole.reshape(shape)

        self._outputs.append(output)

    def results(self):
        """(o, the pool afterwards)"""
        store = self._gather() if self._slots or self._steps else lambda: None
        o = self._step_by_step() if self._steps else oracle(self.dtype, self.arguments)
        store()
        for output in reversed(self._outputs):
            o = output(o)
        return o, self.pool

    def _ends(self):
        B, T = self["q"].shape[:2]
        return np.arange(B + 1) * T if self["cu_seqlens"] is None else self["cu_seqlens"]

    def _gather(self):
        """The state of sequence n becomes slot n of a pool of its own; returns what puts them back."""
        pool = self["initial_state_source"]
        if pool is None:
            return lambda: None
        reads, N, zeros = self["initial_state_indices"], len(self._ends()) - 1, len(pool)
        reads = np.arange(N) if reads is None else np.where(reads == self["null_slot"], -1, reads)
        writes = reads
        for change in self._slots:
            reads, writes = change(reads, writes, zeros)
        reads = np.where((reads < 0) & (writes >= 0), zeros, reads)  # no padding: its state is wanted
        states = np.concatenate([pool, np.zeros_like(pool[:1])])[reads]
        self.set(initial_state_source=states, initial_state_indices=np.where(reads < 0, -1, np.arange(N)), null_slot=-1)

        def store():
            for state, slot, length in zip(states, writes, np.diff(self._ends())):
                if slot >= 0 and length:
                    pool[slot] = state

        return store

    def _step_by_step(self):
        o, ends = np.zeros(self["v"].shape), self._ends()
        states, slots, T = self["initial_state_source"], self["initial_state_indices"], self["q"].shape[1]
        for n in range(len(ends) - 1):
            if states is not None and slots[n] < 0 and self["padding"] != "compute":
                continue
            state = self._zero_state() if states is None or slots[n] < 0 else states[n : n + 1]
            for token in range(ends[n], ends[n + 1]):
                place = divmod(token, T)
                token = Token(self, place, state)
                run = token.run
                for change in self._steps:
                    run = functools.partial(change, token, run)
                o[place] = run()
        return o

    def _zero_state(self):
        (HV, V), K = self["v"].shape[2:], self["q"].shape[3]
        return np.zeros((1, HV, K, V) if self["state_layout"] == "kv" else (1, HV, V, K))

    # ---- Parts of the recurrence, as arguments of the call

    def gate(self, change=lambda g: g, A=None, softplus=True):
        """The gate becomes change(g), g the log decay in float64."""
        g = self["a"]
        if self["gate_input"] == "decay":
            with np.errstate(divide="ignore", invalid="ignore"):
                g = np.log(g)
        elif self["gate_input"] == "raw":
            rows = (slice(None), None) if self["is_kda"] else (slice(None),)
            g, beta = g if self["dt_bias"] is None else g + self["dt_bias"], self["softplus_beta"]
            linear = (beta * g > self["softplus_threshold"]) | (not softplus)
            g = np.where(linear, g, np.log1p(np.exp(np.where(linear, 0, beta * g))) / beta)
            g = -(np.exp(self["A_log"]) if A is None else A)[rows] * g
        self.set(a=change(g), gate_input="log")

    def beta(self, change):
        """beta becomes change(beta), in float64."""
        if self["b"] is not None:
            beta = 1 / (1 + np.exp(-self["b"])) if self["beta_input"] == "raw" else self["b"]
            if self["round_beta"]:
                beta = rounded(beta, self.dtype)
            self.set(b=change(beta), beta_input="given", round_beta=False)

    def norm(self, q=None, k=None):
        """In place of the L2 norm of both: functions of x and of its norm, eps in it as the call has it."""
        if self["use_qk_l2norm_in_kernel"]:
            for name, change in (("q", q), ("k", k)):
                if change is not None:
                    x, eps, form = self[name], self["l2norm_eps"], self["l2norm_form"]
                    squares = (x**2).sum(-1, keepdims=True)
                    inside = {"sum_plus_eps": eps, "mean_plus_eps": x.shape[-1] * eps}.get(form, 0)
                    norm = np.sqrt(squares + inside)
                    norm = np.maximum(norm, eps) if form == "max_norm_eps" else norm
                    norm = norm + eps if form == "norm_plus_eps" else norm
                    self.set(**{name: change(x, norm)})
            self.set(use_qk_l2norm_in_kernel=False)

    def other_layout(self):
        pool = self["initial_state_source"]
        layout = "kv" if self["state_layout"] == "vk" else "vk"
        if pool is not None:  # the same memory
            pool = pool.reshape(*pool.shape[:2], pool.shape[3], pool.shape[2])
        self.set(initial_state_source=pool, state_layout=layout)

    def system(self, settings):
        """Another system's conventions."""
        if settings["state_layout"] != self["state_layout"]:
            self.other_layout()
        self.set(**settings)


class Token:
    """One token of a call, and its sequence's state [1, HV, matrix], which is updated in place."""

    def __init__(self, call, place, state):
        row, t = place
        self.state, self.dtype, self.arguments = state, call.dtype, dict(call.arguments, cu_seqlens=None)
        self.set(initial_state_source=state, initial_state_indices=None, null_slot=-1)
        for name in ("q", "k", "v", "a", "b"):
            if call[name] is not None:
                self.set(**{name: call[name][row : row + 1, t : t + 1]})

    def set(self, **values):
        self.arguments.update(values)

    def run(self):
        """o; the state is updated."""
        return oracle(self.dtype, self.arguments)[0, 0]

    def take_decay(self):
        """The decay, as a factor of the state; the token has none any more. The gate is the log decay."""
        decay, vk = np.exp(self.arguments["a"][0, 0]), self.arguments["state_layout"] == "vk"
        self.set(a=np.zeros_like(self.arguments["a"]))
        if decay.ndim == 1:
            return decay[:, None, None]
        return decay[:, None, :] if vk else decay[:, :, None]

    def read(self):
        """q^T S, of the state as it is."""
        still = dict(a=None, A_log=None, dt_bias=None, gate_input="log", beta_input="given")
        still |= dict(b=np.zeros(self.arguments["v"].shape[:3]), disable_state_update=True)
        return oracle(self.dtype, self.arguments | still)[0, 0]


# ---- How one token is computed, in another order


def round_state(token, run, dtype):
    o = run()
    token.state[...] = rounded(token.state, dtype)
    return o


def decay_last(token, run, read_it):
    decay = token.take_decay()
    o = run()
    token.state *= decay
    return token.read() if read_it else o


def output_first(token, run, decayed):
    before = token.state.copy()
    if decayed:
        before *= Token.take_decay(token)
        token.state[...] = before
    o = token.read()
    run()
    return o


def delta_of_undecayed(token, run):
    decay, before = token.take_decay(), token.state.copy()
    run()
    token.state += (decay - 1) * before
    return token.read()


def no_delta(token, run):
    before = token.state * token.take_decay()
    token.state[...] = 0
    run()
    token.state += before
    return token.read()


# ---- The table. What is converted to a given gate or beta, or is computed token by token, stands behind what changes
# the raw one, as of two variations the first is applied first.


def sets(**values):
    return lambda call: call.set(**values)


def rounding(**values):
    """Float32 is no such rounding: every kernel has it."""
    return lambda call: call.set(**values) if call.dtype != "float32" else None


def slots(change):
    return lambda call: call.slots(change)


def tokens(pick):
    return lambda call: call.tokens(pick)


def steps(change, **options):
    def variation(call):
        call.gate()
        call.step(functools.partial(change, **options))

    return variation


def scale(power):
    """K^power for the default scale; who asks for another has that."""
    return lambda call: call.set(scale=call["scale"] or call["q"].shape[-1] ** power)


def without(name):
    return lambda call: call.set(**{name: None if call[name] is None else np.zeros_like(call[name])})


def if_raw(change):
    return lambda call: change(call) if call["gate_input"] == "raw" else None


def is_tail(chunk):
    return tokens(lambda n, begin, end, total: range(begin, end - (end - begin) % chunk))


def unit(x, norm):
    return x / norm


def root_mean_square(call):
    change = lambda x, norm: x / np.sqrt((x**2).mean(-1, keepdims=True) + call["l2norm_eps"])  # noqa: E731
    call.norm(q=change, k=change)


VARIATIONS = {
    "the other state layout ([V,K] for [K,V] or the reverse)": Call.other_layout,
    "tiled heads: key head hv % H (head_map 'tiled')": sets(head_map="tiled"),
    "grouped heads: key head hv / (HV/H) (head_map 'grouped')": sets(head_map="grouped"),
    "scale ignored: K^-0.5 always": sets(scale=None),
    "no scale": sets(scale=1.0),
    "scale before the norm, which undoes it": lambda call: call.set(
        scale=1.0 if call["use_qk_l2norm_in_kernel"] else call["scale"]
    ),
    "scale K^-1": scale(-1),
    "scale K^-0.25": scale(-0.25),
    # The norm
    "q and k not normalised (or expected normalised)": sets(use_qk_l2norm_in_kernel=False),
    "q and k always normalised": sets(use_qk_l2norm_in_kernel=True),
    "L2 norm with eps 1e-5": sets(l2norm_eps=1e-5),
    "L2 norm with eps 1e-12, or none": sets(l2norm_eps=1e-12),
    "L2 norm x / sqrt(sum + eps)": sets(l2norm_form="sum_plus_eps"),
    "L2 norm x / sqrt(sum + K*eps) ('mean_plus_eps')": sets(l2norm_form="mean_plus_eps"),
    "L2 norm x / max(norm, eps) ('max_norm_eps')": sets(l2norm_form="max_norm_eps"),
    "L2 norm x / (norm + eps) ('norm_plus_eps')": sets(l2norm_form="norm_plus_eps"),
    "q not normalised": lambda call: call.norm(k=unit),
    "k not normalised": lambda call: call.norm(q=unit),
    "q and k divided by their root mean square": root_mean_square,
    "normalised q and k rounded to the dtype of the inputs": rounding(round_qk=True),
    "normalised q and k not rounded": rounding(round_qk=False, round_q_scaled=False),
    # The gate
    "a taken for the log decay g (gate_input 'log')": sets(gate_input="log"),
    "a taken for the decay exp(g) (gate_input 'decay')": sets(gate_input="decay"),
    "dt_bias left out": without("dt_bias"),
    "softplus_beta and softplus_threshold ignored": sets(softplus_beta=1.0, softplus_threshold=20.0),
    "softplus_beta ignored": sets(softplus_beta=1.0),
    "softplus_threshold ignored: never linear": sets(softplus_threshold=700.0),
    "softplus left out": if_raw(lambda call: call.gate(softplus=False)),
    "A_log taken for A: no exp": if_raw(lambda call: call.gate(A=call["A_log"])),
    "no gate: the state does not decay": lambda call: call.gate(np.zeros_like),
    "the state multiplied by g, not by exp(g)": lambda call: call.gate() or call.set(gate_input="decay"),
    "decay 2^g for exp(g)": lambda call: call.gate(lambda g: g * np.log(2)),
    "decay exp(g * log2(e)), which 2 would have to be raised to": lambda call: call.gate(lambda g: g / np.log(2)),
    "the other sign of g: the state grows": lambda call: call.gate(np.negative),
    "the gate g rounded to the dtype of the inputs": lambda call: call.gate(lambda g: rounded(g, call.dtype)),
    # beta
    "b taken for beta: no sigmoid (beta_input 'given')": sets(beta_input="given"),
    "sigmoid of a beta that is given (beta_input 'raw')": sets(beta_input="raw"),
    "beta left out: 1": sets(b=None),
    "beta doubled (allow_neg_eigval)": sets(allow_neg_eigval=True),
    "beta rounded to the dtype of the inputs": rounding(round_beta=True),
    "beta not rounded": rounding(round_beta=False),
    "beta applied twice": lambda call: call.beta(np.square),
    "beta on v alone: beta*v - k^T S": lambda call: (
        call.beta(lambda beta: beta),
        call.set(v=call["v"] if call["b"] is None else call["v"] * call["b"][..., None], b=None),
    ),
    # Slots
    "initial states ignored": slots(lambda reads, writes, zeros: (np.where(reads < 0, reads, zeros), writes)),
    "final states not stored": slots(lambda reads, writes, zeros: (reads, np.full_like(writes, -1))),
    "initial_state_indices ignored: sequence n has slot n": slots(lambda reads, *_: (np.arange(len(reads)),) * 2),
    "every sequence starts from the first one's slot": slots(lambda reads, writes, _: (reads * 0 + reads[0], writes)),
    "a sequence starts from the slot of the next": slots(lambda reads, writes, _: (np.roll(reads, -1), writes)),
    "a sequence starts from the slot of the one before": slots(lambda reads, writes, _: (np.roll(reads, 1), writes)),
    "a negative index taken for the last slot": slots(
        lambda reads, writes, zeros: (np.where(reads < 0, zeros - 1, reads), np.where(writes < 0, zeros - 1, writes))
    ),
    "a negative index taken for slot 0": slots(lambda reads, writes, _: (np.maximum(reads, 0), np.maximum(writes, 0))),
    "slot 0 written for padding, from zero states": slots(lambda reads, writes, _: (reads, np.maximum(writes, 0))),
    "the null slot taken for any other": sets(null_slot=-1),
    "padded sequences give zeros (padding 'zero')": sets(padding="zero"),
    "padded sequences start from zero states (padding 'compute')": sets(padding="compute"),
    # Tokens
    "cu_seqlens ignored: one sequence": tokens(lambda n, begin, end, total: range(total) if n == 0 else ()),
    "the last token of each sequence left out": tokens(lambda n, begin, end, total: range(begin, max(begin, end - 1))),
    "the first token of each sequence left out": tokens(lambda n, begin, end, total: range(min(begin + 1, end), end)),
    "each sequence goes on to the first token of the next": tokens(
        lambda n, begin, end, total: range(begin, min(end + 1, total))
    ),
    "the last token of the call left out": tokens(lambda n, begin, end, total: range(begin, min(end, total - 1))),
    **{f"the last partial chunk of {size} left out": is_tail(size) for size in (2, 4, 8, 16, 32, 64)},
    # The order within a token
    "state rounded to bfloat16 after every token": steps(round_state, dtype="bfloat16"),
    "state rounded to float16 after every token": steps(round_state, dtype="float16"),
    "decay after the update, o of the decayed state": steps(decay_last, read_it=True),
    "decay after the update and after o": steps(decay_last, read_it=False),
    "o of the state before the update": steps(output_first, decayed=True),
    "o of the state before decay and update": steps(output_first, decayed=False),
    "k^T S of the state before its decay": steps(delta_of_undecayed),
    "no k^T S: beta*v is what is added": steps(no_delta),
}
