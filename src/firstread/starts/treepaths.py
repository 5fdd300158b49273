# SPDX-License-Identifier: Apache-2.0
"""Finds files of an image by the paths that its programs use. Pure.

Owns how a path resolves within a tree: symbolic links of the image stay inside it, as in a
container. Invariant: any path and any links end within `MAX_LINKS` steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import nsmallest
from typing import NamedTuple

from firstread.erofs.tree import MAX_PATH, Node

MAX_LINKS = 40  # MAXSYMLINKS of Linux


class Found(NamedTuple):
    """A file of an image: its path without symbolic links or a leading slash, and its inode."""

    path: bytes
    node: Node

    @property
    def directory(self) -> bytes:
        """The path of the directory that holds it."""
        return self.path.rpartition(b"/")[0]

    @property
    def name(self) -> bytes:
        """The last part of its path."""
        return self.path.rpartition(b"/")[2]


class Part(NamedTuple):
    """A range of a file: from byte `start` to before byte `end`."""

    file: Found
    start: int
    end: int


def head(file: Found, most: int) -> Part:
    """Return a file whole, or the first `most` bytes of a larger one."""
    return Part(file, 0, min(file.node.size, most))


class TreePaths:
    """The tree below `root` by path."""

    def __init__(self, root: Node) -> None:
        self._root = root

    def find(self, path: bytes, directory: bytes = b"") -> Found | None:
        """Return the file or directory that `path` names; None if there is none.

        Args:
            path: as a program in the image would open it.
            directory: for a relative path, without a leading slash.
        """
        if not path.startswith(b"/"):
            path = directory + b"/" + path
        pending = _parts(path)
        at: list[tuple[bytes, Node]] = []
        links = 0
        while pending:
            name = pending.pop()
            if name == b"..":
                del at[-1:]
                continue
            node = ((at[-1][1] if at else self._root).children or {}).get(name)
            if node is None:
                return None
            if not node.is_symlink:
                at.append((name, node))
                continue
            links += 1
            if links > MAX_LINKS:
                return None
            if node.target.startswith(b"/"):
                at.clear()
            pending += _parts(node.target)
        return Found(b"/".join(name for name, _ in at), at[-1][1] if at else self._root)

    def file(self, path: bytes, directory: bytes = b"") -> Found | None:
        """Return the regular file that `path` names, otherwise as `find`."""
        found = self.find(path, directory)
        return found if found and found.node.is_file else None

    def small_files(self, path: bytes, directory: bytes, most: int) -> Iterator[Found]:
        """Yield the regular files at and below `path`, those close to it first.

        Args:
            path: as for `find`.
            directory: as for `find`.
            most: names that are looked at.
        """
        pending = [(path, directory)]
        for place in pending:  # grows
            found = self.find(*place)
            if found and found.node.is_file:
                yield found
            if found:
                names = nsmallest(most - len(pending), found.node.children or ())
                pending += [(name, found.path) for name in names]


def _parts(path: bytes) -> list[bytes]:
    """Return the names in `path`, last first; none of a path that Linux cannot open."""
    if len(path) > MAX_PATH or b"\0" in path:
        return [b"\0"]
    return [part for part in reversed(path.split(b"/")) if part not in (b"", b".")]
