"""Reads the folders of tests/golden as arguments of the operator."""

from pathlib import Path

import numpy as np

from gdn_varlen import header

FOLDER = Path(__file__).resolve().parents[3] / "tests" / "golden"
CASES = sorted(path.parent.name for path in FOLDER.glob("*/case.txt"))


class Case:
    def __init__(self, name):
        folder = FOLDER / name
        self.keys = dict(line.split(maxsplit=1) for line in (folder / "case.txt").read_text().splitlines() if line)
        self.files = {path.stem: np.load(path) for path in folder.glob("*.npy")}
        self.outputs = {
            stem: self.files.pop(stem, None) for stem in ("o", "o_f64", "final_state", "intermediate_states")
        }

    def flag(self, key):
        return self.keys.get(key, "0") != "0"

    def number(self, key, default):
        text = self.keys.get(key, default)
        return None if text in (None, "none", "default") else float(text)

    def dtype(self, name, default="f32"):
        kind = self.keys.get(f"dtype_{name}", default)
        return {"f32": np.float32, "bf16": np.uint16, "f16": np.float16, "f64": np.float64}[kind]

    def arguments(self):
        """(positional, keyword) arguments of a call, with their own copies of what it writes."""
        file = self.files.get
        pool = self.files["initial_state"].copy() if "initial_state" in self.files else None
        sizes = [int(self.keys[key]) for key in ("HV", "K", "V")]
        layout = self.keys.get("state_layout")
        cache = None
        if self.flag("intermediate_rows"):
            matrix = sizes if layout == "kv" else [sizes[0], sizes[2], sizes[1]]
            outer = [int(self.keys["intermediate_rows"]), int(self.keys["intermediate_steps"])]
            cache = np.zeros(outer + matrix, self.dtype("intermediate_states"))
        names = "A_log a dt_bias softplus_beta softplus_threshold q k v b".split()
        values = [
            self.number("softplus_beta", "1") if name == "softplus_beta"
            else self.number("softplus_threshold", "20") if name == "softplus_threshold"
            else file(name)
            for name in names
        ]  # fmt: skip
        null_slot = self.keys.get("null_slot", "none")
        return (*values, pool, file("initial_state_indices")), dict(
            scale=self.number("scale", None),
            use_qk_l2norm_in_kernel=self.flag("use_qk_l2norm"),
            cu_seqlens=file("cu_seqlens"),
            is_kda=self.flag("is_kda"),
            lower_bound=self.number("lower_bound", None),
            disable_state_update=self.flag("disable_state_update"),
            intermediate_states_buffer=cache,
            intermediate_state_indices=file("intermediate_state_indices"),
            retrieve_parent_token=file("retrieve_parent_token"),
            state_layout=layout,
            head_map=self.keys.get("head_map", "grouped"),
            gate_input=self.keys.get("gate_input", "raw"),
            beta_input=self.keys.get("beta_input", "raw"),
            l2norm_form=self.keys.get("l2norm_form", "sum_plus_eps"),
            l2norm_eps=self.number("l2norm_eps", "1e-6"),
            padding=self.keys.get("padding", "compute"),
            null_slot=-1 if null_slot == "none" else int(null_slot),
            allow_neg_eigval=self.flag("allow_neg_eigval"),
            output_state_indices=file("output_state_indices"),
            ssm_state_indices=file("ssm_state_indices"),
            num_accepted_tokens=file("num_accepted_tokens"),
            step_interval=int(self.keys.get("step_interval", 1)),
            read_before_decay=self.flag("read_before_decay"),
            **{name: self.flag(name) for name in header.ROUNDING},
            **{name: file(name) for name in ("k_read", "erase", "gv", "token_mask")},
        )


def to_float64(x):
    """Any array of the operator; uint16 is the bits of bfloat16."""
    if x.dtype == np.uint16:
        x = (x.astype(np.uint32) << 16).view(np.float32)
    return x.astype(np.float64)


def relative_error(actual, expected):
    """The largest difference, relative to the largest element."""
    actual, expected = to_float64(actual), to_float64(expected)
    largest = np.abs(expected).max(initial=0)
    return np.abs(actual - expected).max(initial=0) / (largest or 1)
