"""How the shared library comes to be: built once, shared by processes, replaced by an installed one."""

import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from gdn_varlen import header, library

SOURCE_TREE = Path(library.__file__).parents[1]
needs_compiler = pytest.mark.skipif(header.find_compiler() is None, reason="no C compiler")


def python(code, path=SOURCE_TREE, cwd="/", executable=sys.executable, **environment):
    """Runs `code` in a new interpreter; None removes a variable. Returns the Popen object."""
    variables = os.environ | {"PYTHONPATH": str(path)} | environment
    variables = {key: str(value) for key, value in variables.items() if value is not None}
    return subprocess.Popen([executable, "-c", code], env=variables, cwd=cwd, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip


def output(process):
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    return stdout.strip()


PRINT = "from gdn_varlen import library; print(library.PATH)"
FAST = dict(GDN_VARLEN_LIBRARY=None, CC="cc -DGDN_NO_SIMD")  # compiles in a second


@needs_compiler
def test_built_once_by_many_processes(tmp_path):
    processes = [python(PRINT, **FAST, GDN_VARLEN_CACHE=tmp_path) for _ in range(2)]
    said = [process.communicate() for process in processes]
    paths = {stdout.strip() for stdout, _ in said}
    assert len(paths) == 1
    lines = [line for _, stderr in said for line in stderr.splitlines()]
    assert lines and all(re.fullmatch(rf"gdn_varlen: compiled .* in \d+\.\d s: {re.escape(*paths)}", line) for line in lines)
    (built,) = (tmp_path / "gdn_varlen").iterdir()  # no temporary file is left
    assert paths == {str(built)}
    time = built.stat().st_mtime_ns
    again = python(PRINT, **FAST, GDN_VARLEN_CACHE=tmp_path).communicate()
    assert again == (f"{built}\n", "")
    assert built.stat().st_mtime_ns == time

    other = dict(FAST, CC="cc -DGDN_NO_SIMD -O1")
    assert output(python(PRINT, **other, GDN_VARLEN_CACHE=tmp_path)) != str(built)


@needs_compiler
def test_a_cache_that_cannot_be_written(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    path = output(python(PRINT, **FAST, GDN_VARLEN_CACHE=file))
    assert not Path(path).exists() and not Path(path).parent.exists()  # it went with the process


@needs_compiler
def test_another_header_in_the_working_directory(tmp_path):
    (tmp_path / "gdn_varlen.h").write_text("#error not this one\n")
    output(python(PRINT, cwd=tmp_path, **FAST, GDN_VARLEN_CACHE=tmp_path))


@needs_compiler
def test_a_compiler_that_fails(tmp_path):
    process = python(PRINT, **dict(FAST, CC="cc -ffast-math"), GDN_VARLEN_CACHE=tmp_path)
    _, stderr = process.communicate()
    assert process.returncode and "ImportError" in stderr and "fast-math" in stderr
    assert not list((tmp_path / "gdn_varlen").iterdir())


@needs_compiler
def test_an_installed_library(tmp_path):
    copy = tmp_path / "libgdn.so"
    copy.write_bytes(Path(library.PATH).read_bytes())
    assert output(python(PRINT, GDN_VARLEN_LIBRARY=copy)) == str(copy)


@needs_compiler
def test_a_library_of_another_version(tmp_path):
    source = SOURCE_TREE / "gdn_varlen"
    package = tmp_path / "gdn_varlen"
    package.mkdir()
    for file in source.glob("*.py"):
        (package / file.name).write_bytes(file.read_bytes())
    text = header.HEADER.read_text()
    assert "#define GDN_VERSION_MAJOR 0\n" in text
    (package / "gdn_varlen.h").write_text(text.replace("GDN_VERSION_MAJOR 0\n", "GDN_VERSION_MAJOR 7\n"))
    process = python(PRINT, path=tmp_path, GDN_VARLEN_LIBRARY=library.PATH)
    _, stderr = process.communicate()
    assert process.returncode and "ImportError" in stderr and "is 7." in stderr


needs_packaging = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("hatchling", "pip")), reason="hatchling or pip is missing"
)


def pip(*arguments, **environment):
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    subprocess.run(command, check=True, cwd="/", env=os.environ | environment, stdout=subprocess.DEVNULL)


def wheel(folder, source=SOURCE_TREE, **environment):
    """The path of a wheel of `source`, built in `folder`."""
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source, **environment)
    (path,) = folder.glob("*.whl")
    return path


@needs_packaging
@pytest.mark.parametrize("environment", [dict(GDN_VARLEN_PURE="1"), dict(PATH="", CC="")])
def test_a_wheel_without_the_library(environment, tmp_path):
    """It carries the header, is complete without the source tree, and compiles at the first import, which it says."""
    path = wheel(tmp_path / "wheels", **environment)
    assert path.name.endswith("-py3-none-any.whl")
    pip("install", "--no-deps", "--target", tmp_path / "here", path)
    code = "import gdn_varlen; print(gdn_varlen.library.HEADER, gdn_varlen.__version__)"
    installed = tmp_path / "here" / "gdn_varlen" / "gdn_varlen.h"
    version = ".".join(map(str, library.VERSION))
    assert output(python(code, path=tmp_path / "here", GDN_VARLEN_LIBRARY=library.PATH)) == f"{installed} {version}"
    assert list((tmp_path / "here").glob(f"gdn_varlen-{version}.dist-info"))


ONE_CALL = """
import numpy as np
from gdn_varlen import fused_sigmoid_gating_delta_rule_update, library

one = np.ones((1, 1, 1, 1), np.float32)
pool = np.ones_like(one)
o = fused_sigmoid_gating_delta_rule_update(None, None, None, 1, 20, one, one, 3 * one, None, pool, None, scale=1)
assert o.item() == pool.item() == 3
print(library.PATH, library.LIB.gdn_isa_selected())
"""


@needs_packaging
@needs_compiler
def test_a_wheel_with_the_library(tmp_path):
    """By way of an sdist; in a new environment it needs no compiler, and writes nothing into the cache."""
    from hatchling.builders.sdist import SdistBuilder

    (sdist,) = SdistBuilder(str(SOURCE_TREE)).build(directory=str(tmp_path), versions=["standard"])
    path = wheel(tmp_path / "wheels", sdist)
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert path.name.endswith(f"-py3-none-{platform}.whl")

    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    interpreter = environment / "bin" / "python"
    pip("--python", interpreter, "install", "--no-deps", path)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "numpy.pth").write_text(str(Path(importlib.util.find_spec("numpy").origin).parents[1]))
    (tmp_path / "nothing").mkdir()
    variables = dict(PATH=tmp_path / "nothing", PYTHONPATH=None, CC=None, GDN_VARLEN_LIBRARY=None)
    variables |= dict(GDN_VARLEN_CACHE=tmp_path / "cache", executable=interpreter)
    (brought,) = (packages / "gdn_varlen").glob("libgdn_varlen-*.so")
    assert output(python(ONE_CALL, **variables)) == f"{brought} {library.LIB.gdn_isa_selected()}"
    assert not (tmp_path / "cache").exists()

    # With another header beside it, it is not used.
    with open(packages / "gdn_varlen" / "gdn_varlen.h", "a") as file:
        file.write("\n")
    process = python(ONE_CALL, **variables)
    assert "a C compiler" in process.communicate()[1] and process.returncode
