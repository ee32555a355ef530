"""The compiled header through ctypes: found, or built once with this machine's compiler, and loaded."""

import ctypes
import ctypes.util
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .header import (
    ENUMERATIONS, FLAGS, FUNCTIONS, HEADER, VERSION, Params, compile_library, find_compiler, library_name, source,
)  # fmt: skip


def _cache_folder():
    """Where built libraries are kept; one that goes with the process where the user's cache cannot be written."""
    base = os.environ.get("GDN_VARLEN_CACHE") or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        folder = Path(base).expanduser() / "gdn_varlen"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
    except (OSError, RuntimeError):  # RuntimeError: no home directory
        pass
    global _temporary  # it is deleted with the object
    _temporary = tempfile.TemporaryDirectory(prefix="gdn_varlen-")
    return Path(_temporary.name)


def build(compiler):
    """The path of the library for this header, compiler and flags; built if it is not in the cache, which is said."""
    version = subprocess.run([*compiler, "--version"], capture_output=True, check=True).stdout
    key = repr((HEADER.read_bytes(), source(), compiler, version, FLAGS, platform.machine(), sys.platform))
    folder = _cache_folder()
    library = folder / f"libgdn_varlen-{hashlib.sha256(key.encode()).hexdigest()[:32]}.so"
    if not library.exists():
        handle, temporary = tempfile.mkstemp(dir=folder, suffix=".so")
        os.close(handle)
        try:
            begin = time.monotonic()
            compile_library(compiler, temporary)
            os.replace(temporary, library)  # atomic: another process sees all of it or nothing
            print(f"gdn_varlen: compiled {HEADER} in {time.monotonic() - begin:.1f} s: {library}", file=sys.stderr)
        finally:
            Path(temporary).unlink(missing_ok=True)
    return library


def find_library():
    """$GDN_VARLEN_LIBRARY; else the one that the wheel has brought, if it is of this header; else the library built
    here; else, without a compiler, one that the system has."""
    if path := os.environ.get("GDN_VARLEN_LIBRARY"):
        return path
    if (path := Path(__file__).with_name(library_name())).is_file():
        return str(path)
    if compiler := find_compiler():
        return str(build(compiler))
    if path := ctypes.util.find_library("gdn_varlen"):
        return path
    raise ImportError("a C compiler (apt-get install gcc), or GDN_VARLEN_LIBRARY with the path of the shared library")


def load(path):
    library = ctypes.CDLL(path)  # which releases the interpreter's lock during every call
    for name, (result, arguments) in FUNCTIONS.items():
        function = getattr(library, name, None)
        if function is None:
            raise ImportError(f"{path} has no {name}: it is not a library of {HEADER}")
        function.restype, function.argtypes = result, arguments
    number = library.gdn_version()
    if number != VERSION[0] * 10000 + VERSION[1] * 100 + VERSION[2]:
        raise ImportError(f"{path} has version {number}, and {HEADER} is {'.'.join(map(str, VERSION))}")
    return library


PATH = find_library()
LIB = load(PATH)


def _systems():
    names = {}
    while (name := LIB.gdn_system_name(len(names) + 1)) != b"?":
        names[name.decode()] = len(names) + 1
    return names


SYSTEMS = _systems()  # name: number, of what gdn_preset() knows


def preset(name):
    """What gdn_preset() sets for a system, as the keyword arguments of the operator that set the same."""
    params = Params()
    LIB.gdn_preset(ctypes.byref(params), SYSTEMS[name])
    names = ("state_layout", "head_map", "gate_input", "beta_input", "l2norm_form", "padding")
    settings = {field: ENUMERATIONS[field][1][getattr(params, field)] for field in names}
    return settings | {"l2norm_eps": params.l2norm_eps, "null_slot": params.null_slot if params.has_null_slot else -1}
