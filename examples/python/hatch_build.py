"""The version of the package is that of gdn_varlen.h."""

import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface


class VersionOfTheHeader(MetadataHookInterface):
    def update(self, metadata):
        header = (Path(self.root) / "../../gdn_varlen.h").read_text("ascii")
        metadata["version"] = ".".join(re.findall(r"^#define GDN_VERSION_(?:MAJOR|MINOR|PATCH) +(\d+)$", header, re.M))
