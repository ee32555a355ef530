"""The kernels under test: one function each, from a case to (o, states, cache), on the tensors of the GPU.

A case is a dict: tensors under the names of gdn_varlen.h, and options under the keys of tests/golden/README.md.
"""

import importlib.util
import re
import sys
import types
import zipfile
from pathlib import Path

import torch

SGLANG_FILE = "fused_sigmoid_gating_recurrent.py"


def extract(folder, into):
    """Unpacks what is needed of the wheels in `folder`; what lies there extracted already is taken as it is."""
    roots = [p for p in Path(folder).iterdir() if p.is_dir()]
    for wheel in sorted(Path(folder).glob("*.whl")):
        root = Path(into) / "-".join(wheel.name.split("-")[:2])
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
            if wheel.name.startswith("sglang"):
                names = [n for n in names if n.endswith("/" + SGLANG_FILE)]
            archive.extractall(root, names)
        roots.append(root)
    return roots


def load(folder, into):
    """{name: function} of every kernel found."""
    found = {}
    for root in extract(folder, into):
        if (root / "fla").is_dir():
            sys.path.insert(0, str(root))
            found[f"FLA {installed_version(root)}"] = fla(root)
        for path in root.rglob(SGLANG_FILE):
            if "hardware_backend" not in path.parts:
                # The transposed state came in March 2026 (0.5.10), and the arguments for KDA and verification with it.
                later = "is_kda" in path.read_text()
                found[f"SGLang {installed_version(root)} {'[V,K]' if later else '[K,V]'}"] = sglang(path, later)
    return found


def installed_version(root):
    return re.search(r"\d[\d.]*\d", root.name)[0]


def stub(name, **members):
    """A module that exists only so that a kernel's file can be imported without the rest of its package."""
    parent = ""
    for part in name.split("."):
        parent += ("." if parent else "") + part
        sys.modules.setdefault(parent, types.ModuleType(parent)).__path__ = []
    vars(sys.modules[name]).update(members)


def sglang(path, later):
    """SGLang's fused_sigmoid_gating_delta_rule_update, from its one file."""
    major, minor = torch.cuda.get_device_capability() if torch.cuda.is_available() else (0, 0)
    stub("sglang.kernels.jit.utils", is_arch_support_pdl=lambda: False)  # scheduling only
    stub("sglang.srt.layers.attention.fla.utils", input_guard=lambda f: f)  # makes its arguments contiguous
    stub("sglang.srt.utils", get_device_sm=lambda: major * 10 + minor, is_cuda=torch.cuda.is_available,
         is_hip=lambda: False, is_gfx95_supported=lambda: False, is_sm90_supported=lambda: major == 9)
    spec = importlib.util.spec_from_file_location("sglang_" + re.sub(r"\W", "_", str(path)), path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(case):
        more = {}
        if later:
            more = {"is_kda": case["is_kda"], "lower_bound": case.get("lower_bound"),
                    "disable_state_update": case["disable_state_update"],
                    "intermediate_states_buffer": case.get("intermediate_states"),
                    "intermediate_state_indices": case.get("intermediate_state_indices"),
                    "retrieve_parent_token": case.get("retrieve_parent_token")}
        states = case.get("initial_state")
        o = module.fused_sigmoid_gating_delta_rule_update(
            case["A_log"], case["a"], case["dt_bias"], case["softplus_beta"], case["softplus_threshold"],
            case["q"], case["k"], case["v"], case["b"], states, case.get("initial_state_indices"),
            scale=case.get("scale"), use_qk_l2norm_in_kernel=case["use_qk_l2norm"], cu_seqlens=case.get("cu_seqlens"),
            **more)
        return o, states, case.get("intermediate_states")

    return run


def fla(root):
    """FLA's fused_recurrent_gated_delta_rule, without the other operators that its packages import."""
    for package in ("fla.ops", "fla.ops.gated_delta_rule"):
        stub_package = types.ModuleType(package)
        stub_package.__path__ = [str(root / package.replace(".", "/"))]
        sys.modules[package] = stub_package
    from fla.ops.gated_delta_rule.fused_recurrent import fused_recurrent_gated_delta_rule

    def run(case):
        raw = case["gate_input"] == "raw"
        o, states = fused_recurrent_gated_delta_rule(
            case["q"], case["k"], case["v"], g=None if case["is_kda"] else case["a"],
            gk=case["a"] if case["is_kda"] else None, beta=case["b"], scale=case.get("scale"),
            initial_state=case.get("initial_state"), output_final_state="initial_state" in case,
            use_qk_l2norm_in_kernel=case["use_qk_l2norm"], use_gate_in_kernel=raw, A_log=case.get("A_log"),
            dt_bias=case.get("dt_bias"), use_beta_sigmoid_in_kernel=case["beta_input"] == "raw",
            allow_neg_eigval=case["allow_neg_eigval"], state_v_first=case["state_layout"] == "vk",
            cu_seqlens=case.get("cu_seqlens"))
        return o, states, None

    return run
