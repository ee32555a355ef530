import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the module and the scripts, from the source tree


def pytest_report_header():
    from gdn_varlen import library

    return f"gdn_varlen: {library.PATH}, {library.LIB.gdn_isa_name(library.LIB.gdn_isa_selected()).decode()}"
