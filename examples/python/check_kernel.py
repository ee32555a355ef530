#!/usr/bin/env python3
"""gdn_varlen.check from the source tree."""

import ast
import importlib.util
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent

if importlib.util.find_spec("numpy") is None:
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(ast.get_docstring(ast.parse((HERE / "gdn_varlen" / "check.py").read_text())))
        sys.exit()
    print(f"check_kernel.py: {sys.executable} has no numpy: pip install numpy", file=sys.stderr)
    sys.exit(2)

sys.path.insert(0, str(HERE))
from gdn_varlen.check import main  # noqa: E402

main()
