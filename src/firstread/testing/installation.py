# SPDX-License-Identifier: Apache-2.0
"""An installation of firstread that a test can upgrade and break."""

from __future__ import annotations

import re
import shutil
import site
import sys
from pathlib import Path

import firstread


class Installation:
    """A virtual environment with a copy of this package, and the libraries of the running one.

    Args:
        directory: an empty one.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.python = str(directory / "bin" / "python")
        minor = f"python{sys.version_info.major}.{sys.version_info.minor}"
        packages = directory / "lib" / minor / "site-packages"
        for folder in (packages, directory / "bin"):
            folder.mkdir(parents=True)
        Path(self.python).symlink_to(Path(sys.executable).resolve())
        home = Path(sys.executable).resolve().parent
        (directory / "pyvenv.cfg").write_text(f"home = {home}\n")
        lines = [str(directory / "current"), *site.getsitepackages()]
        (packages / "firstread.pth").write_text("\n".join(lines))
        self._count = 0
        self.install()

    def install(self, version: str = firstread.__version__, **changes: str) -> None:
        """Install a version, at once, in place of the one that is there.

        Args:
            version: what it says that it is.
            changes: source that is put at the end of a module, by its dotted name with ``__``.
        """
        self._count += 1
        tree = self._directory / f"tree{self._count}"
        ignored = shutil.ignore_patterns("__pycache__", "testing")
        shutil.copytree(Path(firstread.__file__).parent, tree / "firstread", ignore=ignored)
        init = tree / "firstread" / "__init__.py"
        init.write_text(re.sub('"[0-9.]+"', f'"{version}"', init.read_text()))
        for name, source in changes.items():
            path = tree / "firstread" / f"{name.replace('__', '/')}.py"
            text = path.read_text()
            end = text.find('\nif __name__ == "__main__":')
            end = len(text) if end < 0 else end
            path.write_text(f"{text[:end]}\n{source}\n{text[end:]}")
        link = self._directory / "new"
        link.symlink_to(tree.name)
        link.replace(self._directory / "current")
