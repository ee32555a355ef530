"""Hugging Face models with the operator, beside the same models without it: small ones with random weights."""

import copy
import functools
import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
if importlib.util.find_spec("transformers") is None:
    pytest.skip("transformers is not installed", allow_module_level=True)

import transformers  # noqa: E402

import gdn_varlen.transformers as ours  # noqa: E402
from gdn_varlen import GdnError  # noqa: E402
from gdn_varlen.transformers import accelerate  # noqa: E402


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """The models are small: more threads would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


COMMON = dict(
    vocab_size=128, hidden_size=64, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=2,
    intermediate_size=96, initializer_range=0.1, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
GDN = COMMON | dict(
    linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=16, linear_value_head_dim=24, head_dim=32
)
GDN_MOE = GDN | dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, shared_expert_intermediate_size=32)
KDA_MOE = COMMON | dict(
    linear_head_dim=16, linear_num_heads=4, kv_lora_rank=16, q_lora_rank=None, qk_nope_head_dim=16, v_head_dim=16,
    num_experts_per_tok=2, moe_intermediate_size=32,
)  # fmt: skip
INDEXER = dict(indexer_n_heads=2, indexer_kv_heads=1, indexer_head_dim=32, indexer_budget=32, indexer_compress_ratio=4)

MODELS = {  # by the folder of transformers: what the classes' names begin with, the rest of the two, the configuration
    "qwen3_next": ("Qwen3Next", "ForCausalLM", "Config", GDN_MOE),
    "qwen3_5": ("Qwen3_5", "ForCausalLM", "TextConfig", GDN),
    "qwen3_5_moe": ("Qwen3_5Moe", "ForCausalLM", "TextConfig", GDN_MOE),
    "qwen4_exp": ("Qwen4Exp", "ForCausalLM", "TextConfig", GDN_MOE | INDEXER | dict(hc_count=2, hc_lowrank=8)),
    "olmo_hybrid": ("OlmoHybrid", "ForCausalLM", "Config", GDN | dict(linear_num_key_heads=4)),
    "lara_mini": ("LaraMini", "ForCausalLM", "Config", GDN_MOE),
    "kimi_linear": (
        "KimiLinear", "ForCausalLM", "Config",
        KDA_MOE | dict(num_local_experts=4, qk_rope_head_dim=8,
                       layer_types=["linear_attention"] * 3 + ["full_attention"]),
    ),
    "bailing_hybrid": (
        "BailingHybrid", "ForCausalLM", "Config",
        KDA_MOE | dict(num_local_experts=8, n_group=2, topk_group=1, qk_rope_head_dim=8, head_dim=16,
                       layer_group_size=4, num_mtp_layers=0),
    ),
    "glm5_next": (
        "Glm5Next", "ForConditionalGeneration", "Config",
        dict(text_config=KDA_MOE | dict(q_lora_rank=24, n_routed_experts=4, index_topk=32, index_head_dim=16,
                                        index_n_heads=2, index_kpool=4, hc_mult=2),
             vision_config=dict(depth=1, hidden_size=32, num_heads=2, out_hidden_size=64, intermediate_size=32,
                                projection_intermediate_size=32)),
    ),
}  # fmt: skip


@functools.cache
def model(name, dtype=torch.float32):
    """In float32, those of bfloat16's weights."""
    if dtype == torch.bfloat16:
        return copy.deepcopy(model(name)).to(dtype)
    family, rest, config, options = MODELS[name]
    if not hasattr(transformers, family + rest):
        pytest.skip(f"transformers {transformers.__version__} has no {family + rest}")
    torch.manual_seed(0)
    made = getattr(transformers, family + rest)(getattr(transformers, family + config)(**options)).eval()
    return made.to(torch.bfloat16).float()


def places(name):
    """Every dictionary in which something may be replaced."""
    return [vars(inspect.getmodule(type(model(name)))), *map(vars, model(name).modules())]


def replaced(name):
    return [x for place in places(name) for x in place.values() if isinstance(x, ours._Replacement)]


def draw_tokens(*shape):
    return torch.randint(3, 128, shape, generator=torch.Generator().manual_seed(1))


def left_padding():
    mask = torch.ones(2, 79, dtype=torch.long)
    mask[0, :9] = 0
    return mask


@torch.inference_mode()
def run(model, mask=None):
    """Logits of a prompt of 70 tokens, of 3 more one by one, of 5 at once and of one; those of padding left out."""
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    tokens = draw_tokens(2, 79)
    logits, cache, begin = [], None, 0
    for length in (70, 1, 1, 1, 5, 1):
        end = begin + length
        options = {name: cache, "attention_mask": None if mask is None else mask[:, :end]}
        result = model(tokens[:, begin:end], use_cache=True, **options)
        logits.append(result.logits.float())
        cache, begin = result[name], end
    logits = torch.cat(logits, 1)
    return logits if mask is None else logits.masked_fill(mask[..., None] == 0, 0)


@functools.cache
def stock(name, dtype, padded):
    assert not replaced(name)
    return run(model(name, dtype), left_padding() if padded else None)


def test_every_family_of_transformers_is_here():
    found = set()
    for file in (Path(transformers.__file__).parent / "models").glob("*/modeling_*.py"):
        if re.search(r"^def \w*(delta_rule|delta_attention|kda)\(", file.read_text("utf-8"), re.MULTILINE):
            found.add(file.parent.name)
    assert found and found <= set(MODELS)


@pytest.mark.parametrize("padded", [False, True], ids=["", "left padding"])
@pytest.mark.parametrize("name", MODELS)
def test_float32(name, padded):
    expected = stock(name, torch.float32, padded)
    with accelerate(model(name)):
        logits = run(model(name), left_padding() if padded else None)
    assert (logits - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("name", MODELS)
def test_float32_notices_a_small_fault(name, monkeypatch):
    """Of the operator, in the prompt, in the single tokens and in the five: it is what was compared."""
    expected, right = stock(name, torch.float32, False), ours.fused_sigmoid_gating_delta_rule_update
    faulty = lambda A_log, a, *x, **y: right(A_log, 0.9 * a, *x, **y)  # noqa: E731
    monkeypatch.setattr(ours, "fused_sigmoid_gating_delta_rule_update", faulty)
    with accelerate(model(name)):
        difference = (run(model(name)) - expected).abs()
    assert all(part.max() > 1e-3 for part in difference.split([70, 3, 5, 1], 1))


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16(name):
    """No farther from the stock model than that is from itself in float32."""
    exact, expected = stock(name, torch.float32, True), stock(name, torch.bfloat16, True)
    with accelerate(model(name, torch.bfloat16)):
        logits = run(model(name, torch.bfloat16), left_padding())
    assert (logits - expected).abs().max() <= (expected - exact).abs().max()


@pytest.mark.parametrize("name", MODELS)
def test_every_class(name):
    """Also those with an image tower (of which nothing is asked here) and with other heads."""
    module, options = inspect.getmodule(type(model(name))), MODELS[name][3]
    compared = 0
    for class_name in module.__all__:
        config = getattr(module, class_name).config_class
        if re.search("PreTrained|Vision", class_name):
            continue
        if "text_config" in config.sub_configs:
            tower = dict(depth=1, hidden_size=32, num_heads=2, intermediate_size=32, out_hidden_size=64)
            config = config(**(dict(text_config=options, vision_config=tower, pad_token_id=0) | options))
        else:
            config = config(**options.get("text_config", options))
        torch.manual_seed(0)
        other = getattr(module, class_name)(config).eval()
        layers = config.get_text_config().layer_types.count("linear_attention")
        with torch.inference_mode():
            expected = other(draw_tokens(1, 20))[0]
            with accelerate(other) as acceleration:
                assert f"gdn_varlen: {layers} " in str(acceleration)
                difference = (other(draw_tokens(1, 20))[0] - expected).abs().max()
        assert expected.isfinite().all() and difference <= 1e-4
        compared += 1
    assert compared >= 2


@pytest.mark.parametrize("name", MODELS)
def test_generation(name):
    """64 greedy tokens, equal for as long as the stock model's choice does not hang on less than the error."""
    options = dict(max_new_tokens=64, min_new_tokens=64, do_sample=False, output_scores=True)
    options.update(return_dict_in_generate=True)
    expected = model(name).generate(draw_tokens(1, 12), **options)
    with accelerate(model(name)):
        result = model(name).generate(draw_tokens(1, 12), **options)
    assert result.sequences.shape == (1, 76)
    for step, (score, expected_score) in enumerate(zip(result.scores, expected.scores)):
        finite = expected_score.isfinite()
        error = (score - expected_score)[finite].abs().max()
        assert error <= 1e-4
        first, second = expected_score[0].topk(2).values
        if first - second <= 2 * error:
            break
        assert result.sequences[0, 12 + step] == expected.sequences[0, 12 + step]
    assert step >= 16


# ---- accelerate()


@pytest.mark.parametrize("name", MODELS)
def test_undo_restores_the_very_objects(name):
    before = [dict(place) for place in places(name)]
    acceleration = accelerate(model(name))
    assert places(name) != before
    acceleration.undo()
    acceleration.undo()
    with pytest.raises(KeyboardInterrupt), accelerate(model(name)):
        raise KeyboardInterrupt
    for place, then in zip(places(name), before):
        assert place.keys() == then.keys()
        assert all(place[key] is then[key] for key in then)


def test_what_is_said(capsys):
    with accelerate(model("qwen3_next")) as acceleration:
        said = capsys.readouterr()
        assert said.err == f"{acceleration}\n" and not said.out
        assert "3 Qwen3NextGatedDeltaNet (Gated DeltaNet)" in said.err
        assert "chunk_gated_delta_rule" in said.err and "recurrent_gated_delta_rule" in said.err
    accelerate(model("qwen3_next"), quiet=True).undo()
    assert capsys.readouterr().err == ""
    if "kimi_linear" in dir(transformers.models):
        with accelerate(model("kimi_linear")):
            assert "3 KimiLinearDeltaAttention (Kimi Delta Attention)" in capsys.readouterr().err


def test_two_models_of_one_module():
    """The replacements stay for as long as one of the two needs them, whichever ends first."""
    one, two = model("qwen3_next"), copy.deepcopy(model("qwen3_next"))
    for first in (0, 1):
        accelerations = [accelerate(one), accelerate(two)]
        accelerations[first].undo()
        with pytest.raises(GdnError, match="undo"):
            accelerate((two, one)[first], compute="f64")
        accelerations[1 - first].undo()
        assert not replaced("qwen3_next")
    with accelerate(one, compute="f64"), accelerate(one, compute="f64"):
        assert {x.users for x in replaced("qwen3_next")} <= {1, 2}
    assert not replaced("qwen3_next")


def test_options_reach_the_operator(monkeypatch):
    right, seen = ours.fused_sigmoid_gating_delta_rule_update, []
    spy = lambda *x, **y: seen.append((y["compute"], y["num_threads"])) or right(*x, **y)  # noqa: E731
    monkeypatch.setattr(ours, "fused_sigmoid_gating_delta_rule_update", spy)
    with accelerate(model("qwen3_next"), compute="f64", num_threads=1), torch.inference_mode():
        model("qwen3_next")(draw_tokens(1, 5))
    assert seen == 3 * [("f64", 1)]


class OwnAttributes(torch.nn.Module):
    """A layer as transformers 4.57 has it: the functions are attributes."""

    def __init__(self, function):
        super().__init__()
        self.chunk_gated_delta_rule = self.recurrent_gated_delta_rule = function

    def forward(self, *arguments):
        return self.chunk_gated_delta_rule(*arguments)


def test_attributes_of_layers(capsys):
    layers = torch.nn.ModuleList([OwnAttributes(print), torch.nn.Linear(2, 2), OwnAttributes(min)])
    with accelerate(layers):
        assert "2 OwnAttributes (Gated DeltaNet); replaced chunk_gated_delta_rule, recur" in capsys.readouterr().err
        inputs = list(delta_inputs().values())[:5]
        assert torch.equal(layers[0](*inputs)[0], ours.torch_chunk_gated_delta_rule(*inputs)[0])
        assert layers[0].recurrent_gated_delta_rule.function is ours.torch_recurrent_gated_delta_rule
    assert layers[0].chunk_gated_delta_rule is print and layers[2].recurrent_gated_delta_rule is min


def test_models_without_such_layers():
    config = transformers.LlamaConfig(**{key: COMMON[key] for key in COMMON if key != "initializer_range"})
    with pytest.raises(GdnError, match="no layer of LlamaForCausalLM calls any of torch_chunk_gated") as caught:
        accelerate(transformers.LlamaForCausalLM(config))
    assert caught.value.argument == "model"


def test_models_on_other_devices():
    layer = OwnAttributes(print)
    layer.named_parameters = lambda: [("A_log", SimpleNamespace(device=torch.device("cuda", 1)))]
    with pytest.raises(GdnError, match="A_log of its OwnAttributes is on cuda:1"):
        accelerate(layer)
    assert layer.chunk_gated_delta_rule is print


def test_a_model_outside_no_grad():
    with accelerate(model("qwen3_next")), pytest.raises(GdnError, match="^query: .*torch.no_grad"):
        model("qwen3_next")(draw_tokens(1, 5))


# ---- The functions

OLD = tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 18)

NAMES = {  # ours, and the model whose module has it
    "torch_chunk_gated_delta_rule": "qwen3_next",
    "torch_recurrent_gated_delta_rule": "qwen3_next",
    "chunk_kimi_delta_attention": "kimi_linear",
    "recurrent_kimi_delta_attention": "kimi_linear",
}
functions = pytest.mark.parametrize("name", NAMES)


def pair(name):
    return getattr(ours, name), getattr(inspect.getmodule(type(model(NAMES[name]))), name)


def delta_inputs(kda=False, dtype=torch.float32, B=2, T=70, K=16, V=8):
    H, HV = (4, 4) if kda else (2, 4)
    generator = torch.Generator().manual_seed(2)
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    inputs = dict(
        query=draw(B, T, H, K), key=draw(B, T, H, K), value=draw(B, T, HV, V),
        g=-draw(B, T, HV, K).abs() if kda else -draw(B, T, HV).abs(), beta=draw(B, T, HV).sigmoid(),
        initial_state=draw(B, HV, K, V), output_final_state=True, use_qk_l2norm_in_kernel=True,
    )  # fmt: skip
    return {key: x.to(dtype) if isinstance(x, torch.Tensor) else x for key, x in inputs.items()}


def describe(parameters):
    return [(p.name, p.kind, p.default) for p in parameters]


@functions
def test_signatures(name):
    our, their = (list(inspect.signature(function).parameters.values()) for function in pair(name))
    additional = [p for p in our if p.kind == inspect.Parameter.KEYWORD_ONLY]
    assert [(p.name, p.default) for p in additional] == [("compute", "f32"), ("num_threads", None)]
    if OLD:
        pytest.skip(f"transformers {transformers.__version__} has an older signature")
    assert describe(p for p in our if p not in additional) == describe(their)


OPTIONS = {
    "prefill": {},
    "decode": dict(T=1),
    "no state": dict(initial_state=None),
    "no final state": dict(output_final_state=False),
    "neither": dict(initial_state=None, output_final_state=False),
    "no norm": dict(use_qk_l2norm_in_kernel=False),
    "strided state": dict(state=lambda x: x.mT.contiguous().mT),
}


@functions
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("case", OPTIONS)
def test_return_values(name, dtype, case):
    """Are the stock function's: what kind, dtype, shape, value. Inputs are not written."""
    our, their = pair(name)
    if dtype.itemsize == 2 and OLD:
        pytest.skip(f"transformers {transformers.__version__} normalises q and k in their own dtype")
    options = dict(OPTIONS[case])
    arguments = delta_inputs("kimi" in name, dtype, T=options.pop("T", 70))
    arguments["initial_state"] = options.pop("state", torch.clone)(arguments["initial_state"])
    if case == "no norm":
        arguments["key"] = torch.nn.functional.normalize(arguments["key"], dim=-1)
    arguments.update(options)
    before = copy.deepcopy(arguments)
    o, state = our(**arguments)
    assert all(torch.equal(x, before[key]) for key, x in arguments.items() if isinstance(x, torch.Tensor))

    repeat = arguments["value"].shape[2] // arguments["key"].shape[2]  # older versions leave it to the layer
    arguments.update({key: arguments[key].repeat_interleave(repeat, 2) for key in ("query", "key")})
    expected, expected_state = their(**arguments)
    assert (o.dtype, o.shape) == (expected.dtype, expected.shape)
    tolerance = dict(rtol=0, atol=1e-5) if dtype.itemsize > 2 else dict(rtol=torch.finfo(dtype).eps, atol=1e-3)
    torch.testing.assert_close(o, expected, **tolerance)
    assert (state is None) == (expected_state is None)
    if state is not None:
        torch.testing.assert_close(state, expected_state, rtol=0, atol=1e-5)  # dtypes too


@functions
def test_compute_and_threads(name):
    our = getattr(ours, name)
    arguments = delta_inputs("kimi" in name)
    o, state = our(**arguments)
    for threads in (1, 2):
        assert all(map(torch.equal, our(**arguments, num_threads=threads), (o, state)))
    exact = {key: x.double() if isinstance(x, torch.Tensor) else x for key, x in arguments.items()}
    exact, _ = our(**exact, compute="f64")
    assert exact.dtype == torch.float64 and 0 < (exact - o).abs().max() < 1e-5
    rounded, _ = our(**arguments, compute="f64")
    assert torch.equal(rounded, exact.float()) and not torch.equal(rounded, o)


@functions
def test_packed_sequences(name):
    """cu_seqlens, which transformers' own functions refuse."""
    our = getattr(ours, name)
    arguments = delta_inputs("kimi" in name, B=1)
    arguments["initial_state"] = delta_inputs("kimi" in name, B=3)["initial_state"]
    o, states = our(**arguments, cu_seqlens=torch.tensor([0, 20, 50, 70]))
    for n, (begin, end) in enumerate([(0, 20), (20, 50), (50, 70)]):
        one = {key: arguments[key][:, begin:end] for key in ("query", "key", "value", "g", "beta")}
        part, state = our(**arguments | one | dict(initial_state=arguments["initial_state"][n : n + 1]))
        assert torch.equal(o[:, begin:end], part) and torch.equal(states[n], state[0])
    before = arguments["initial_state"].clone()
    _, states = our(**arguments, cu_seqlens=torch.tensor([0, 20, 20, 70]))  # the second keeps its state
    assert torch.equal(states[1], before[1]) and torch.equal(arguments["initial_state"], before)
    arguments["initial_state"] = None
    _, states = our(**arguments, cu_seqlens=torch.tensor([0, 20, 20, 70]))
    assert states.shape == before.shape and not states[1].any()


@functions
def test_states_of_inference_mode(name):
    """A cache that was made in it, and a step outside."""
    our = getattr(ours, name)
    arguments = delta_inputs("kimi" in name)
    expected = our(**arguments)
    with torch.inference_mode():
        arguments["initial_state"] = arguments["initial_state"].clone()
    with torch.no_grad():
        assert all(map(torch.equal, our(**arguments), expected))


@functions
def test_gradients_are_refused(name):
    our = getattr(ours, name)
    for argument in ("query", "key", "value", "g", "beta", "initial_state"):
        arguments = delta_inputs("kimi" in name, T=2)
        arguments[argument].requires_grad_()
        with pytest.raises(GdnError, match=f"^{argument}: .*gradients") as caught:
            our(**arguments)
        assert caught.value.argument == argument
        with torch.no_grad():
            assert not our(**arguments)[0].requires_grad


@functions
def test_refused_arguments_have_their_names_here(name):
    our = getattr(ours, name)
    for argument in ("key", "value", "g", "beta", "initial_state"):
        arguments = delta_inputs("kimi" in name)
        arguments[argument] = torch.cat([arguments[argument]] * 2)
        with pytest.raises(GdnError, match=f"^{argument}: its shape") as caught:
            our(**arguments)
        assert caught.value.argument == argument


@functions
def test_compiled_graph(name):
    our = getattr(ours, name)
    arguments = delta_inputs("kimi" in name)
    compiled = torch.compile(our, backend="eager", fullgraph=True)
    assert all(map(torch.equal, compiled(**arguments), our(**arguments)))


# ---- The scripts


def output(script, *arguments):
    command = [sys.executable, str(Path(__file__).parents[1] / script), *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_qwen3_next():
    assert "largest difference of the logits" in output("qwen3_next.py", "--prompt", "70", "--steps", "3")


@pytest.mark.skipif(OLD, reason=f"transformers {transformers.__version__} has another name for the cache")
def test_transformers_speed():
    options = "--models Qwen3Next --dtypes bfloat16 --prompt 4 --steps 2 --runs 1".split()
    table = output("transformers_speed.py", *options)
    for begin in ("| Qwen3Next | bfloat16 | whole |", "| | | operator |"):
        assert re.search(re.escape(begin) + r"( [\d.,]+ \| [\d.,]+ \([\d.,]+ x\) \|){2}$", table, re.MULTILINE)
