"""How the shared library comes to be: built once, shared by processes, replaced by an installed one."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gdn_varlen import library

SOURCE_TREE = Path(library.__file__).parents[1]
needs_compiler = pytest.mark.skipif(library.find_compiler() is None, reason="no C compiler")


def python(code, path=SOURCE_TREE, cwd="/", **environment):
    """Runs `code` in a new interpreter; None removes a variable. Returns the Popen object."""
    variables = os.environ | {"PYTHONPATH": str(path)} | environment
    variables = {key: str(value) for key, value in variables.items() if value is not None}
    return subprocess.Popen([sys.executable, "-c", code], env=variables, cwd=cwd, text=True,
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
    paths = {output(process) for process in processes}
    assert len(paths) == 1
    (built,) = (tmp_path / "gdn_varlen").iterdir()  # no temporary file is left
    assert paths == {str(built)}
    time = built.stat().st_mtime_ns
    assert output(python(PRINT, **FAST, GDN_VARLEN_CACHE=tmp_path)) == str(built)
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
    header = library.HEADER.read_text()
    assert "#define GDN_VERSION_MAJOR 0\n" in header
    (package / "gdn_varlen.h").write_text(header.replace("GDN_VERSION_MAJOR 0\n", "GDN_VERSION_MAJOR 7\n"))
    process = python(PRINT, path=tmp_path, GDN_VARLEN_LIBRARY=library.PATH)
    _, stderr = process.communicate()
    assert process.returncode and "ImportError" in stderr and "is 7." in stderr


@pytest.mark.skipif(importlib.util.find_spec("hatchling") is None, reason="hatchling is not installed")
@pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="pip is not installed")
def test_pip_install(tmp_path):
    """The wheel carries the header, and is complete without the source tree."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation",
               "--disable-pip-version-check", "--target", str(tmp_path), str(SOURCE_TREE)]  # fmt: skip
    subprocess.run(command, check=True, cwd="/")
    code = "import gdn_varlen; print(gdn_varlen.library.HEADER, gdn_varlen.__version__)"
    header = tmp_path / "gdn_varlen" / "gdn_varlen.h"
    version = ".".join(map(str, library.VERSION))
    assert output(python(code, path=tmp_path, GDN_VARLEN_LIBRARY=library.PATH)) == f"{header} {version}"
    assert list(tmp_path.glob(f"gdn_varlen-{version}.dist-info"))
