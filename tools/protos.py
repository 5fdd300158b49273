# SPDX-License-Identifier: Apache-2.0
"""Compiles the .proto files of the package, whenever it is built or installed from its source.

The generated modules stand beside them, are ignored by git, and are part of the wheel.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from grpc_tools import protoc
from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Protos(BuildHookInterface[Any]):
    """A build hook of hatchling."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile them. Raises RuntimeError if one is wrong; protoc has told why."""
        source = Path(self.root) / "src"
        files = [str(path) for path in sorted(source.rglob("*.proto"))]
        outputs = [f"--python_out={source}", f"--pyi_out={source}"]
        well_known = str(Path(protoc.__file__).parent / "_proto")
        if protoc.main(["protoc", f"-I{source}", f"-I{well_known}", *outputs, *files]):
            raise RuntimeError("protoc failed")
