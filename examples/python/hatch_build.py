"""What a distribution gets from gdn_varlen.h: its version, the header itself, and in a wheel the compiled library.

Where there is no C compiler, or with GDN_VARLEN_PURE=1, the wheel is one for any platform, which compiles at the first
import. CC names the compiler; where it compiles for another machine, _PYTHON_HOST_PLATFORM names that, as it does for
Python's sysconfig: linux-aarch64.
"""

import importlib.util
import os
import sysconfig
import tempfile
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface


def header_module(root):
    """gdn_varlen/header.py without the package around it, which needs numpy."""
    spec = importlib.util.spec_from_file_location("header", Path(root) / "gdn_varlen" / "header.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class VersionOfTheHeader(MetadataHookInterface):
    def update(self, metadata):
        metadata["version"] = ".".join(map(str, header_module(self.root).VERSION))


class LibraryInTheWheel(BuildHookInterface):
    def initialize(self, version, build_data):
        header = header_module(self.root)
        if header.HEADER.parent != Path(self.root) / "gdn_varlen":  # as it is in an unpacked sdist
            build_data["force_include"][str(header.HEADER)] = "gdn_varlen/gdn_varlen.h"
        compiler = None if os.environ.get("GDN_VARLEN_PURE") == "1" else header.find_compiler()
        if self.target_name != "wheel" or version == "editable" or compiler is None:
            return
        self.folder = tempfile.TemporaryDirectory(prefix="gdn_varlen-")  # deleted with this object
        library = Path(self.folder.name) / header.library_name()
        header.compile_library(compiler, library)
        build_data["force_include"][str(library)] = f"gdn_varlen/{library.name}"
        build_data["pure_python"] = False
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"  # ctypes: no Python's ABI
