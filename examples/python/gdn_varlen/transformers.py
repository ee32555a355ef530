"""The operator in Hugging Face models with Gated DeltaNet or KDA layers, on the CPU.

    from gdn_varlen.transformers import accelerate

    accelerate(model)          # until .undo() of what it returns; or while it lasts: with accelerate(model): ...

The functions that the model's layers call are replaced by those of this module, which have the signatures of
transformers' own, and compute= and num_threads= besides. They compute no gradients.
"""

import dis
import inspect
import sys
from collections import Counter

import torch

from .operator import GdnError
from .torch_op import fused_sigmoid_gating_delta_rule_update

# What the operator's arguments are called here.
NAMES = {"q": "query", "k": "key", "v": "value", "a": "g", "b": "beta", "initial_state_source": "initial_state"}


def _delta_rule(query, key, value, g, beta, initial_state, output_final_state, use_qk_l2norm_in_kernel, is_kda,
                compute, num_threads, cu_seqlens=None, **_):  # fmt: skip
    """All four: the output has the dtype of `query`, the states are [sequences,HV,K,V] and come out in float32.
    cu_seqlens, which layers pass to whatever takes it, packs sequences into a batch of 1."""
    inputs = dict(query=query, key=key, value=value, g=g, beta=beta, initial_state=initial_state)
    if torch.is_grad_enabled():
        for name, x in inputs.items():
            if x is not None and x.requires_grad:
                text = "it requires gradients, which are not computed: call under torch.no_grad()"
                raise GdnError(text, name, status="GDN_ERROR_COMBINATION")
    if compute != "f64":  # as transformers does it
        inputs = {name: x.float() if x is not None and x.dtype == torch.float64 else x for name, x in inputs.items()}
    sequences, states = len(query) if cu_seqlens is None else len(cu_seqlens) - 1, None
    shape = (sequences, value.shape[2], key.shape[3], value.shape[3])
    if initial_state is not None and tuple(initial_state.shape) != shape:
        raise GdnError(f"its shape is {list(initial_state.shape)}, and {list(shape)} is needed", "initial_state")
    if output_final_state:
        states = value.new_empty(shape, dtype=torch.float32)
        if cu_seqlens is not None or key.shape[1] == 0:  # a sequence without tokens writes nothing
            states[:] = 0 if initial_state is None else initial_state
    try:
        o = fused_sigmoid_gating_delta_rule_update(
            None, inputs["g"], None, 1.0, 20.0, inputs["query"], inputs["key"], inputs["value"], inputs["beta"],
            inputs["initial_state"], None, use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel, cu_seqlens=cu_seqlens,
            is_kda=is_kda, disable_state_update=not output_final_state, output_state_pool=states, preset="transformers",
            compute=compute, num_threads=num_threads,
        )  # fmt: skip
    except GdnError as error:
        argument = NAMES.get(error.argument, error.argument)
        raise GdnError(error.text, argument, error.index, error.other, error.status) from None
    return o.to(query.dtype), states


def torch_chunk_gated_delta_rule(
    query, key, value, g, beta, chunk_size=64, initial_state=None, output_final_state=False,
    use_qk_l2norm_in_kernel=False, *, compute="f32", num_threads=None, **kwargs,
):  # fmt: skip
    """q, k [B,T,H,K], v [B,T,HV,V], g (a logarithm) and beta [B,T,HV]: (o [B,T,HV,V], final state or None). There are
    no chunks: chunk_size does nothing. num_threads: at most; default torch.get_num_threads()."""
    return _delta_rule(query, key, value, g, beta, initial_state, output_final_state, use_qk_l2norm_in_kernel, False,
                       compute, num_threads, **kwargs)  # fmt: skip


def torch_recurrent_gated_delta_rule(
    query, key, value, g, beta, initial_state=None, output_final_state=False, use_qk_l2norm_in_kernel=False, *,
    compute="f32", num_threads=None, **kwargs,
):  # fmt: skip
    """The same."""
    return _delta_rule(query, key, value, g, beta, initial_state, output_final_state, use_qk_l2norm_in_kernel, False,
                       compute, num_threads, **kwargs)  # fmt: skip


def chunk_kimi_delta_attention(
    query, key, value, g, beta, chunk_size=64, initial_state=None, output_final_state=False,
    use_qk_l2norm_in_kernel=False, *, compute="f32", num_threads=None, **kwargs,
):  # fmt: skip
    """KDA: a gate for each K row, g [B,T,HV,K]."""
    return _delta_rule(query, key, value, g, beta, initial_state, output_final_state, use_qk_l2norm_in_kernel, True,
                       compute, num_threads, **kwargs)  # fmt: skip


def recurrent_kimi_delta_attention(
    query, key, value, g, beta, initial_state, output_final_state, use_qk_l2norm_in_kernel=False, *,
    compute="f32", num_threads=None, **kwargs,
):  # fmt: skip
    """The same."""
    return _delta_rule(query, key, value, g, beta, initial_state, output_final_state, use_qk_l2norm_in_kernel, True,
                       compute, num_threads, **kwargs)  # fmt: skip


# By what layers call them: functions of their module, or (transformers 4.57 to 5.14) attributes of the layer.
GDN, KDA = "Gated DeltaNet", "Kimi Delta Attention"
REPLACEMENTS = {
    "torch_chunk_gated_delta_rule": (GDN, torch_chunk_gated_delta_rule),
    "torch_recurrent_gated_delta_rule": (GDN, torch_recurrent_gated_delta_rule),
    "chunk_gated_delta_rule": (GDN, torch_chunk_gated_delta_rule),
    "recurrent_gated_delta_rule": (GDN, torch_recurrent_gated_delta_rule),
    "chunk_kimi_delta_attention": (KDA, chunk_kimi_delta_attention),
    "recurrent_kimi_delta_attention": (KDA, recurrent_kimi_delta_attention),
}


class _Replacement:
    """Stands in the place of `stock` for as long as there are users: models of one class share their module."""

    def __init__(self, name, stock, options):
        self.function, self.stock, self.options, self.users = REPLACEMENTS[name][1], stock, options, 0

    def __call__(self, *arguments, **options):
        return self.function(*arguments, **self.options, **options)


def _with_decorated(function):
    """`function` and, where it is a decorator's, what that holds."""
    found, left = [], [function]
    while left:
        function = left.pop()
        if inspect.isfunction(function) and function not in found:
            found.append(function)
            left += [cell.cell_contents for cell in function.__closure__ or ()]
    return found


def _calls(layer):
    """(dictionary, name) of each replaceable function that `layer` calls: its own attributes, and the globals of the
    module that its forward() comes from."""
    found = [(vars(layer), name) for name in REPLACEMENTS if name in vars(layer)]
    for base in type(layer).__mro__:
        for function in _with_decorated(vars(base).get("forward")):
            used = {i.argval for i in dis.get_instructions(function) if i.opname == "LOAD_GLOBAL"}
            found += [(function.__globals__, name) for name in REPLACEMENTS if name in used]
    return [(place, name) for place, name in found if callable(place.get(name))]


class Acceleration:
    """What accelerate() did, in words (str) and with its undo()."""

    def __init__(self, replaced, text):
        self._replaced, self._text = replaced, text

    def __str__(self):
        return self._text

    def undo(self):
        """Puts the very objects back that were there before, once no other model needs their replacements."""
        while self._replaced:
            place, name, replacement = self._replaced.pop()
            replacement.users -= 1
            if not replacement.users:
                place[name] = replacement.stock

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.undo()


def accelerate(model, *, compute="f32", num_threads=None, quiet=False):
    """Lets the Gated DeltaNet and KDA layers of `model` compute prefill and decode by the operator, and says what was
    found (on stderr unless `quiet`). Returns an Acceleration, whose undo() ends it; it is a context manager too.

    Layers are found by what they call. Where that is a function of their module, the other models of that module in
    the process have the replacement too.
    """
    places, layers = {}, Counter()
    for layer in model.modules():
        calls = _calls(layer)
        places.update({(id(place), name): (place, name) for place, name in calls})
        if calls:
            layers[type(layer).__name__, REPLACEMENTS[calls[0][1]][0]] += 1
            for parameter, x in layer.named_parameters():
                if x.device.type not in ("cpu", "meta"):
                    text = f"{parameter} of its {type(layer).__name__} is on {x.device}, and this is for the CPU"
                    raise GdnError(text, "model", status="GDN_ERROR_COMBINATION")
    if not layers:
        text = f"no layer of {type(model).__name__} calls any of {', '.join(REPLACEMENTS)}"
        raise GdnError(text, "model", status="GDN_ERROR_COMBINATION")

    options = dict(compute=compute, num_threads=num_threads)
    for place, name in places.values():
        if isinstance(place[name], _Replacement) and place[name].options != options:
            text = f"{name} is replaced already, with {place[name].options}: undo that first"
            raise GdnError(text, "model", status="GDN_ERROR_COMBINATION")
    for place, name in places.values():
        if not isinstance(place[name], _Replacement):
            place[name] = _Replacement(name, place[name], options)
        place[name].users += 1

    kinds = ", ".join(f"{count} {layer} ({kind})" for (layer, kind), count in layers.items())
    owners = {place.get("__name__", "the layers").split(".")[-1] for place, _ in places.values()}
    names = ", ".join(dict.fromkeys(name for _, name in places.values()))
    text = f"gdn_varlen: {kinds}; replaced {names} of {', '.join(sorted(owners))}"
    if not quiet:
        print(text, file=sys.stderr)
    return Acceleration([(place, name, place[name]) for place, name in places.values()], text)
