"""Random calls of the operator: sizes, options and data as models have them."""

import math

import torch

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
HEADS = [(1, 1), (2, 2), (1, 3), (2, 4), (2, 8), (4, 8), (4, 12), (16, 16), (16, 32)]
DIMS = [(128, 128), (128, 128), (64, 64), (64, 128), (128, 64), (96, 192), (256, 256), (100, 60), (32, 32), (33, 65),
        (7, 5)]
MOST_WORK = 100_000_000  # T * HV * K * V


class Draw:
    """Seeded choices; the same seed gives the same case on every machine."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def below(self, n):
        return int(torch.randint(n, (), generator=self.generator))

    def chance(self, p):
        return float(torch.rand((), generator=self.generator)) < p

    def one_of(self, options):
        return options[self.below(len(options))]

    def normal(self, *shape):
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def uniform(self, low, high, *shape):
        return low + (high - low) * torch.rand(shape, generator=self.generator, dtype=torch.float64)

    def permutation(self, n):
        return torch.randperm(n, generator=self.generator)


def draw_case(kernel, index, seed, small=False):
    """Case `index` for the kernel of that name: (group in the table, case)."""
    d = Draw(seed * 1_000_003 + index)
    is_fla, later = kernel.startswith("FLA"), kernel.endswith("[V,K]")
    heads, dims = (HEADS[:4], DIMS[-3:]) if small else (HEADS, DIMS)
    H, HV = d.one_of(heads)
    K, V = d.one_of(dims)
    shape = d.one_of(["decode", "prefill", "varlen"])
    features = ["", "", "KDA"] if is_fla else [""]
    if later:
        features = ["", "", "KDA", "KDA lower bound", "verify", "verify tree"]
    feature = d.one_of(features)
    if feature.startswith("verify"):
        shape = "prefill"

    # Lengths of the sequences, as many tokens as the work allows.
    most = max(2, min(12 if small else 500, MOST_WORK // (HV * K * V)))
    if shape == "decode":
        lengths = [1] * (1 + d.below(4 if small else 64))
    elif feature.startswith("verify"):
        lengths = [2 + d.below(7)] * (1 + d.below(4))
    elif shape == "prefill":
        N = 1 + d.below(3)
        lengths = [max(1, (1 + d.below(most)) // N)] * N
    else:
        lengths = [d.one_of([0, 1, 2, 1 + d.below(max(1, most // 4))]) for _ in range(1 + d.below(8))]
        lengths[d.below(len(lengths))] += 1
    N = len(lengths)
    packed = shape == "varlen" or (shape == "decode" and d.chance(0.5))
    B, T = (1, sum(lengths)) if packed else (N, lengths[0])

    word = d.one_of(["f32", "f32", "bf16", "f16"])
    inputs = DTYPES[word]
    gates = d.one_of([inputs, torch.float32])
    is_kda = feature.startswith("KDA")
    case = {
        "B": B, "T": T, "N": N, "H": H, "HV": HV, "K": K, "V": V,
        "use_qk_l2norm": d.chance(0.75), "is_kda": is_kda, "gate_input": "raw", "beta_input": "raw",
        "allow_neg_eigval": False, "disable_state_update": False, "softplus_beta": 1.0, "softplus_threshold": 20.0,
        "state_layout": "vk" if later else "kv",
        "q": d.normal(B, T, H, K).to(inputs), "k": d.normal(B, T, H, K).to(inputs),
        "v": d.normal(B, T, HV, V).to(inputs), "a": d.normal(*(B, T, HV) + (K,) * is_kda).to(gates),
        "b": d.normal(B, T, HV).to(gates), "A_log": d.uniform(1, 16, HV).log().to(torch.float32),
    }
    # dt is log-uniform between 1e-3 and 1e-1, and dt_bias is what softplus turns into it.
    dt = d.uniform(math.log(1e-3), math.log(1e-1), *(HV,) + (K,) * is_kda).exp()
    case["dt_bias"] = torch.log(torch.expm1(dt)).to(gates)
    if not case["use_qk_l2norm"]:  # a model that does not ask for it has normalised before
        case["k"] = torch.nn.functional.normalize(case["k"].double(), dim=-1).to(inputs)
    if packed:
        case["cu_seqlens"] = torch.tensor([0] + lengths).cumsum(0)
    if d.chance(0.25):
        case["scale"] = 0.5

    if is_fla:
        fla_options(d, case, gates)
    else:
        sglang_options(d, case, feature)
    return feature or shape, case


def fla_options(d, case, gates):
    """FLA takes the log decay or the raw projection, beta or its logit, per head or column, and no pool."""
    B, T, N, HV, K, V = (case[x] for x in ("B", "T", "N", "HV", "K", "V"))
    if case["is_kda"] or d.chance(0.5):
        x = torch.nn.functional.softplus(case["a"].double() + case["dt_bias"].double())
        A = case.pop("A_log").double().exp()
        case["a"] = (-A.reshape((HV,) + (1,) * case["is_kda"]) * x).to(torch.float32)
        case["gate_input"] = "log"
        del case["dt_bias"]
    if d.chance(0.5):
        case["beta_input"] = "given"
        if d.chance(0.5):
            case["b"] = d.normal(B, T, HV, V)
        case["b"] = torch.sigmoid(case["b"].double()).to(gates)
    else:
        case["allow_neg_eigval"] = d.chance(0.25)
    case["state_layout"] = d.one_of(["kv", "vk"])
    if d.chance(0.8):
        case["initial_state"] = states(d, case, N).to(torch.float32)


def sglang_options(d, case, feature):
    """SGLang keeps states in a pool: any slot for any sequence, -1 for padding."""
    T, N, HV, K, V = (case[x] for x in ("T", "N", "HV", "K", "V"))
    if d.chance(0.2) and not case["is_kda"]:
        case["softplus_beta"], case["softplus_threshold"] = 2.0, 5.0
    if feature == "KDA lower bound":
        case["lower_bound"] = -5.0
    if d.chance(0.8):
        slots = N + d.below(4)
        case["initial_state"] = states(d, case, slots).to(d.one_of([torch.float32, torch.float32, torch.bfloat16]))
        indices = d.permutation(slots)[:N]
        if d.chance(0.3):
            indices[d.below(N)] = -1
        case["initial_state_indices"] = indices.to(d.one_of([torch.int32, torch.int64]))
    if feature.startswith("verify"):
        rows = N + d.below(3)
        case["disable_state_update"] = True
        case["intermediate_states"] = torch.zeros(rows, T, HV, V, K)
        indices = d.permutation(rows)[:N]
        if feature == "verify" and d.chance(0.3):
            indices[d.below(N)] = -1
        case["intermediate_state_indices"] = indices
        if feature == "verify tree":
            case["retrieve_parent_token"] = torch.tensor([[d.below(max(1, s)) for s in range(T)] for _ in range(N)])


def states(d, case, slots):
    inner = (case["V"], case["K"]) if case["state_layout"] == "vk" else (case["K"], case["V"])
    return d.normal(slots, case["HV"], *inner)
