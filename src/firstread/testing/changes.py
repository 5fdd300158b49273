# SPDX-License-Identifier: Apache-2.0
"""Changes of a tree that a test can make in two places, and a picture of the result."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

Change = Callable[[Path], None]
"""Changes the tree below a root."""


def write(path: str, text: str, mode: int = 0o644) -> Change:
    """Return the change that writes a file."""

    def apply(root: Path) -> None:
        (root / path).write_text(text)
        (root / path).chmod(mode)

    return apply


def make(*paths: str, mode: int = 0o700) -> Change:
    """Return the change that makes directories."""

    def apply(root: Path) -> None:
        for path in paths:
            (root / path).mkdir()
            (root / path).chmod(mode)

    return apply


def delete(*paths: str) -> Change:
    """Return the change that deletes files and trees."""

    def apply(root: Path) -> None:
        for path in paths:
            target = root / path
            shutil.rmtree(target) if target.is_dir() else target.unlink()

    return apply


def own(owner: int, *paths: str) -> Change:
    """Return the change of owner and group."""

    def apply(root: Path) -> None:
        for path in paths:
            os.chown(root / path, owner, owner)

    return apply


def rename(old: str, new: str) -> Change:
    """Return the change of a name."""

    def apply(root: Path) -> None:
        (root / old).rename(root / new)

    return apply


def link(old: str, new: str) -> Change:
    """Return the change that gives a file a second name."""
    return lambda root: (root / new).hardlink_to(root / old)


def tree(root: Path) -> dict[str, tuple[object, ...]]:
    """Return all that a container could tell of the entries below `root`."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else None
        links = status.st_nlink if content is not None else 0
        facts = (status.st_mode, status.st_uid, status.st_gid, links, content)
        found[str(path.relative_to(root))] = facts
    return found
