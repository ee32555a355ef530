"""The ctypes declarations against the header. That offsets and numbers agree, the compiler checks at every build."""

import re

import pytest

from gdn_varlen import header, library


@pytest.mark.skipif(header.find_compiler() is None, reason="no C compiler")
@pytest.mark.parametrize("change", [
    ("ptrdiff_t batch_size, seq_len", "ptrdiff_t seq_len, batch_size"),
    ("    gdn_compute compute;", "    int extra;\n    gdn_compute compute;"),
    ("int64_t null_slot;", "int32_t null_slot;"),
    ("GDN_I32, GDN_I64 }", "GDN_I64, GDN_I32 }"),
    ("GDN_ROUND_BETA = 4", "GDN_ROUND_BETA = 16"),
    ("#define GDN_BROADCAST PTRDIFF_MIN", "#define GDN_BROADCAST (-1)"),
])  # fmt: skip
def test_a_header_that_disagrees_is_not_built(change, tmp_path, monkeypatch):
    text = header.HEADER.read_text()
    assert text.count(change[0]) == 1
    (tmp_path / "gdn_varlen.h").write_text(text.replace(*change))
    monkeypatch.setattr(header, "HEADER", tmp_path / "gdn_varlen.h")
    monkeypatch.setenv("GDN_VARLEN_CACHE", str(tmp_path))
    with pytest.raises(ImportError, match="header.py: "):
        library.build([*header.find_compiler(), "-DGDN_NO_SIMD", "-fsyntax-only"])


def declaration(kind, name):
    """The body of `typedef KIND NAME {...}` in the header, without comments."""
    body = re.search(rf"^typedef {kind} {name} \{{(.*?)\}} {name};", header.HEADER.read_text(), re.S | re.M)[1]
    return re.sub(r"/\*.*?\*/", "", body, flags=re.S)


@pytest.mark.parametrize("name", header.STRUCTURES)
def test_every_field_is_there_in_order(name):
    fields = [
        re.sub(r"^.*[ *]", "", declarator.strip())
        for statement in declaration("struct", name).split(";")
        for declarator in statement.split(",")
        if declarator.strip()
    ]
    assert fields == [field[0] for field in header.STRUCTURES[name]._fields_]


def test_every_rounding_is_there():
    declared = re.findall(r"(GDN_\w+) = (\d+)", declaration("enum", "gdn_rounding"))
    assert [(name, int(number)) for name, number in declared] == list(header.ROUNDING.values())


@pytest.mark.parametrize("name", header.ENUMERATIONS)
def test_every_number_is_there_in_order(name):
    prefix, names = header.ENUMERATIONS[name]
    body = declaration("enum", f"gdn_{name}")
    if listed := re.search(r"(\w+)\(GDN_\w+_CODE\)", body):  # its codes stand in a list of their own
        body = re.search(rf"#define {listed[1]}\(X\)(.*?[^\\])\n", header.HEADER.read_text(), re.S)[1]
        body = re.sub(r"/\*.*?\*/", "", body)
    declared = re.findall(r"\bGDN_\w+", body)
    assert [word for word in declared if not word.startswith("GDN_NUM_")] == [prefix + word.upper() for word in names]


def test_presets_are_those_of_the_header():
    table = re.search(r"#define GDN_SYSTEMS\(X\)(.*?[^\\])\n", header.HEADER.read_text(), re.S)[1]
    names = re.findall(r'"(\w+)"', table)
    assert names and list(library.SYSTEMS) == names
