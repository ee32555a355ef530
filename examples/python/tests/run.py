#!/usr/bin/env python3
"""Runs the tests with the arguments of pytest; says what is missing and exits with 77 where they cannot run.

    examples/python/tests/run.py [ARGUMENT OF pytest...]        such as -k layout
"""

import importlib.util
import os
import sys

if {"-h", "--help"} & set(sys.argv[1:]):
    print(__doc__.strip())
    sys.exit()
missing = [name for name in ("numpy", "pytest") if importlib.util.find_spec(name) is None]
if missing:
    print(f"skipped: {sys.executable} has no {' and no '.join(missing)}: pip install {' '.join(missing)}")
    sys.exit(77)
for name in ("torch", "transformers", "hatchling"):
    if importlib.util.find_spec(name) is None:
        print(f"{sys.executable} has no {name}: the tests that need it are skipped")

import pytest  # noqa: E402

sys.dont_write_bytecode = True
sys.exit(pytest.main(["-q", "-rs", *sys.argv[1:], os.path.dirname(os.path.abspath(__file__))]))
