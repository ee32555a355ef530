#!/usr/bin/env python3
"""Seeds of fuzz_case from the golden cases, shrunk to a few elements along each axis.

    tests/fuzz/seeds.py [CASE...]       writes tests/fuzz/seeds/case/CASE for each (default: the ones listed below)
"""
import ast
import struct
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
GOLDEN = HERE.parent / "golden"
CASES = ["seed_varlen_state_4_6_5", "kda_lower_bound", "decode_bf16_state_vk", "verify_tree", "fla_kda_step_slots",
         "ggml_tiled_vk", "prefill_f16", "linear_gate_tiled_no_beta_write_slots", "l2_mean_plus_eps",
         "fla_gdn2", "fla_comba", "fla_gv_channel_decay", "fla_chunk_states", "flashinfer_paged_prefill", "mlx_lm_mask",
         "sglang_round_state", "vllm_cpu_chunk_round_q"]
# In the order of the names in fuzz_case.c; the first is case.txt.
AXES = {"A_log": "HV", "a": "B T HV K", "dt_bias": "HV K", "q": "B T H K", "k": "B T H K", "v": "B T HV V",
        "b": "B T HV V", "cu_seqlens": "N+1", "initial_state": "slots HV X Y", "initial_state_indices": "N",
        "output_state_indices": "N", "intermediate_state_indices": "N", "retrieve_parent_token": "N steps",
        "ssm_state_indices": "N steps", "num_accepted_tokens": "N",
        "k_read": "B T H K", "erase": "B T HV K", "gv": "B T HV V", "token_mask": "B T"}


def read_npy(path):
    data = path.read_bytes()
    length = struct.unpack("<H", data[8:10])[0]
    header = ast.literal_eval(data[10:10 + length].decode())
    size = int(header["descr"][-1])
    body = data[10 + length:]
    return header["descr"], header["shape"], [body[i:i + size] for i in range(0, len(body), size)]


def shrink(shape, items, limits):
    """The first elements along each axis."""
    if not shape:
        return items
    step = len(items) // shape[0] if shape[0] else 0
    return [x for i in range(min(shape[0], limits[0]))
            for x in shrink(shape[1:], items[i * step:(i + 1) * step], limits[1:])]


def npy(descr, shape, items):
    header = "{'descr':'%s','fortran_order':False,'shape':%s}" % (descr, tuple(shape))
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + b"".join(items)


def seed(case):
    folder = GOLDEN / case
    options = dict(line.split(None, 1) for line in (folder / "case.txt").read_text().splitlines() if line.strip())
    options = {k: v.strip() for k, v in options.items() if "_rel_err_" not in k and k != "source"}
    group = int(options["HV"]) // int(options["H"])
    limits = {"B": 3, "T": 3, "H": 1, "HV": min(group, 2), "K": 3, "V": 2, "N": 99, "N+1": 99, "slots": 99, "steps": 99}
    limits["X"], limits["Y"] = (2, 3) if options.get("state_layout") == "vk" else (3, 2)
    arrays = {}
    for name, axes in AXES.items():
        path = folder / (name + ".npy")
        if path.exists():
            descr, shape, items = read_npy(path)
            most = [limits[axis] for axis in axes.split()][:len(shape)]
            arrays[name] = [descr, [min(s, m) for s, m in zip(shape, most)], shrink(list(shape), items, most)]
    if "cu_seqlens" in arrays:  # fewer tokens: later sequences become empty
        descr, _, items = arrays["cu_seqlens"]
        code = "<i" if descr[-1] == "4" else "<q"
        most = min(int(options["T"]), limits["T"])
        arrays["cu_seqlens"][2] = [struct.pack(code, min(struct.unpack(code, x)[0], most)) for x in items]
    for axis in ("B", "T", "H", "HV", "K", "V"):
        options[axis] = str(min(int(options[axis]), limits[axis]))
    if "step_interval" in options:
        options["step_interval"] = "2"
    text = "".join("%s %s\n" % item for item in options.items()).encode()
    files = [(0, text)] + [(1 + list(AXES).index(name), npy(*arrays[name])) for name in arrays]
    return b"".join(struct.pack("<BH", number, len(data)) + data for number, data in files)


if {"-h", "--help"} & set(sys.argv[1:]):
    print(__doc__.strip())
    sys.exit()
if unknown := [name for name in sys.argv[1:] if not (GOLDEN / name / "case.txt").exists()]:
    print(f"seeds.py: no case {' '.join(unknown)}\n\n{__doc__.strip()}", file=sys.stderr)
    sys.exit(2)
for name in sys.argv[1:] or CASES:
    target = HERE / "seeds" / "case" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(seed(name))
    print(target.stat().st_size, target.name)
