"""gdn_varlen.h: where it is, its types and functions for ctypes, and how it is compiled. Nothing is loaded here: the
build hook of the wheel runs this file by itself."""

import ctypes
import hashlib
import os
import re
import shlex
import shutil
import subprocess
from ctypes import POINTER, Structure, c_bool, c_char_p, c_double, c_int, c_int64, c_size_t, c_ssize_t, c_uint, c_void_p
from pathlib import Path


def _find_header():
    """Beside this file once installed; at the top of the repository in its source tree."""
    here = Path(__file__).resolve().parent
    for folder in (here, *list(here.parents)[2:3]):  # no slices of parents before Python 3.10
        if (folder / "gdn_varlen.h").is_file():
            return folder / "gdn_varlen.h"
    raise ImportError(f"gdn_varlen.h is neither beside {__file__} nor at the top of its source tree")


HEADER = _find_header()
VERSION = tuple(
    int(re.search(rf"^#define GDN_VERSION_{part} +(\d+)$", HEADER.read_text("ascii"), re.MULTILINE)[1])
    for part in ("MAJOR", "MINOR", "PATCH")
)


# ---- Types. A library is built only if the C compiler agrees with every offset and number: see source().


class Error(Structure):
    _fields_ = [("status", c_int), ("argument", c_char_p), ("index", c_int64), ("other", c_int64)]


class Tensor(Structure):
    _fields_ = [
        ("data", c_void_p),
        ("dtype", c_int),
        ("batch_stride", c_ssize_t),
        ("token_stride", c_ssize_t),
        ("head_stride", c_ssize_t),
    ]


class StatePool(Structure):
    _fields_ = [
        ("data", c_void_p),
        ("dtype", c_int),
        ("num_states", c_ssize_t),
        ("slot_stride", c_ssize_t),
        ("head_stride", c_ssize_t),
    ]


class StateCache(Structure):
    _fields_ = [
        ("data", c_void_p),
        ("dtype", c_int),
        ("num_rows", c_ssize_t),
        ("num_steps", c_ssize_t),
        ("row_stride", c_ssize_t),
        ("step_stride", c_ssize_t),
        ("head_stride", c_ssize_t),
    ]


class Indices(Structure):
    _fields_ = [("data", c_void_p), ("dtype", c_int), ("num_columns", c_ssize_t), ("row_stride", c_ssize_t)]


class Mask(Structure):
    _fields_ = [("data", c_void_p), ("batch_stride", c_ssize_t), ("token_stride", c_ssize_t)]


class Params(Structure):
    _fields_ = [
        ("batch_size", c_ssize_t),
        ("seq_len", c_ssize_t),
        ("num_seqs", c_ssize_t),
        ("num_key_heads", c_ssize_t),
        ("num_value_heads", c_ssize_t),
        ("head_k_dim", c_ssize_t),
        ("head_v_dim", c_ssize_t),
        ("cu_seqlens", Indices),
        ("A_log", Tensor),
        ("a", Tensor),
        ("dt_bias", Tensor),
        ("q", Tensor),
        ("k", Tensor),
        ("v", Tensor),
        ("b", Tensor),
        ("k_read", Tensor),
        ("erase", Tensor),
        ("gv", Tensor),
        ("token_mask", Mask),
        ("o", Tensor),
        ("initial_state_source", StatePool),
        ("state_layout", c_int),
        ("initial_state_indices", Indices),
        ("output_state_indices", Indices),
        ("output_state_pool", StatePool),
        ("padding", c_int),
        ("has_null_slot", c_bool),
        ("null_slot", c_int64),
        ("disable_state_update", c_bool),
        ("step_interval", c_ssize_t),
        ("intermediate_states_buffer", StateCache),
        ("intermediate_state_indices", Indices),
        ("retrieve_parent_token", Indices),
        ("ssm_state_indices", Indices),
        ("num_accepted_tokens", Indices),
        ("scale", c_double),
        ("use_qk_l2norm_in_kernel", c_bool),
        ("l2norm_form", c_int),
        ("l2norm_eps", c_double),
        ("softplus_beta", c_double),
        ("softplus_threshold", c_double),
        ("is_kda", c_bool),
        ("has_lower_bound", c_bool),
        ("lower_bound", c_double),
        ("gate_input", c_int),
        ("beta_input", c_int),
        ("beta_per_column", c_bool),
        ("allow_neg_eigval", c_bool),
        ("head_map", c_int),
        ("read_before_decay", c_bool),
        ("rounding", c_uint),
        ("homogeneous", c_bool),
        ("compute", c_int),
        ("isa", c_int),
        ("scratch", c_void_p),
        ("scratch_size", c_size_t),
    ]


class Prepared(Structure):
    _fields_ = [(name, Tensor) for name in ("g", "decay", "beta", "q", "k", "k_read")]


STRUCTURES = {
    "gdn_error": Error,
    "gdn_tensor": Tensor,
    "gdn_output": Tensor,
    "gdn_state_pool": StatePool,
    "gdn_state_cache": StateCache,
    "gdn_mask": Mask,
    "gdn_indices": Indices,
    "gdn_params": Params,
    "gdn_prepared": Prepared,
}

# Enumerations: the prefix of the C names, and the lower-case rest of them in the order of their numbers.
ENUMERATIONS = {
    "dtype": ("GDN_", ("dtype_not_set", "f32", "bf16", "f16", "f64")),
    "index_dtype": ("GDN_", ("index_not_set", "i32", "i64")),
    "state_layout": ("GDN_STATE_", ("layout_not_set", "kv", "vk")),
    "head_map": ("GDN_HEADS_", ("grouped", "tiled")),
    "gate_input": ("GDN_GATE_", ("raw", "log", "decay")),
    "beta_input": ("GDN_BETA_", ("raw", "given")),
    "l2norm_form": ("GDN_L2NORM_", ("sum_plus_eps", "mean_plus_eps", "max_norm_eps", "norm_plus_eps")),
    "padding": ("GDN_PADDING_", ("compute", "zero", "leave")),
    "compute": ("GDN_COMPUTE_", ("f32", "f64", "f32_chunks")),
    "isa": ("GDN_ISA_", ("auto", "plain", "avx2", "avx512", "neon")),
}

# The bits of `rounding`: the option's name here, the C name, its number.
ROUNDING = {
    "round_qk": ("GDN_ROUND_QK", 1),
    "round_q_scaled": ("GDN_ROUND_SCALED_Q", 2),
    "round_beta": ("GDN_ROUND_BETA", 4),
    "round_state": ("GDN_ROUND_STATE", 8),
}
BROADCAST = -(1 << (8 * ctypes.sizeof(c_ssize_t) - 1))  # GDN_BROADCAST, a stride

FUNCTIONS = {
    "gdn_validate": (c_int, [POINTER(Params), POINTER(Error)]),
    "gdn_validate_plan": (c_int, [POINTER(Params), POINTER(Error)]),
    "gdn_num_work_items": (c_ssize_t, [POINTER(Params)]),
    "gdn_scratch_size": (c_size_t, [POINTER(Params)]),
    "gdn_run_work_items": (c_int, [POINTER(Params), c_ssize_t, c_ssize_t, c_void_p, c_size_t]),
    "gdn_prepare": (c_int, [POINTER(Params), POINTER(Prepared), POINTER(Error)]),
    "gdn_preset": (c_int, [POINTER(Params), c_int]),
    "gdn_system_name": (c_char_p, [c_int]),
    "gdn_isa_supported": (c_bool, [c_int]),
    "gdn_isa_selected": (c_int, []),
    "gdn_isa_name": (c_char_p, [c_int]),
    "gdn_status_name": (c_char_p, [c_int]),
    "gdn_status_text": (c_char_p, [c_int]),
    "gdn_version": (c_int, []),
}


# ---- The shared library

FLAGS = ["-std=c11", "-O2", "-fPIC", "-shared"]


def source():
    """The library's C source: the implementation, and what this file believes about it for the compiler to check."""
    facts = [f"GDN_VERSION == {VERSION[0] * 10000 + VERSION[1] * 100 + VERSION[2]}"]
    for name, structure in STRUCTURES.items():
        facts.append(f"sizeof({name}) == {ctypes.sizeof(structure)}")
        for field in structure._fields_:
            place = getattr(structure, field[0])
            facts.append(f"offsetof({name}, {field[0]}) == {place.offset}")
            facts.append(f"sizeof((({name} *)0)->{field[0]}) == {place.size}")
    for prefix, names in ENUMERATIONS.values():
        facts += [f"{prefix}{name.upper()} == {number}" for number, name in enumerate(names)]
    facts += [f"{name} == {number}" for name, number in ROUNDING.values()]
    facts.append(f"GDN_BROADCAST == -{-1 - BROADCAST} - 1")
    lines = ["#define GDN_IMPLEMENTATION", "#include <gdn_varlen.h>"]  # quotes would look in the working directory
    return "\n".join(lines + [f'_Static_assert({fact}, "header.py: {fact}");' for fact in facts]) + "\n"


def find_compiler():
    """The command of a C compiler as a list ($CC, cc, gcc, clang), or None."""
    for command in (shlex.split(os.environ.get("CC", "")), ["cc"], ["gcc"], ["clang"]):
        if command and shutil.which(command[0]):
            return command
    return None


def library_name():
    """The file of a library that this package brings: another header or other types give another name."""
    return f"libgdn_varlen-{hashlib.sha256(HEADER.read_bytes() + source().encode()).hexdigest()[:32]}.so"


def compile_library(compiler, path):
    """The library at `path`, for the machine that the compiler compiles for."""
    command = [*compiler, *FLAGS, "-I", str(HEADER.parent), "-x", "c", "-", "-o", str(path), "-lm"]
    result = subprocess.run(command, input=source().encode(), capture_output=True)
    if result.returncode:
        raise ImportError(f"{shlex.join(command)} failed:\n{result.stderr.decode(errors='replace')}")
