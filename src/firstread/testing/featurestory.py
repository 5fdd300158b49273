# SPDX-License-Identifier: Apache-2.0
"""Tells what the layers of an image say, and beside it what a container must see.

Owns the form of both. Invariant: what is expected is written by hand, independent of the converter.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field

from firstread.testing.entries import (
    Block,
    Char,
    Dir,
    Entry,
    Fifo,
    File,
    Item,
    Sparse,
    Symlink,
    to_bytes,
)

BASE, SECOND, GNU, USTAR = range(4)
"""The layers from the lowest up; two in PAX format, the others as they are called."""


@dataclass(frozen=True)
class Expected:
    """The facts of one path that a container must see.

    Args:
        mode: type and permissions, as ``st_mode``.
        size: of a regular file.
        sha256: hexadecimal, of the content of a regular file.
        nlink: names of the inode; of a directory, 2 and one for each subdirectory.
        same_as: for a file with several names, the first of them in sorted order.
    """

    mode: int
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    mtime_nsec: int = 0
    size: int = 0
    sha256: str = ""
    nlink: int = 1
    target: bytes = b""
    rdev: tuple[int, int] = (0, 0)
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict)
    same_as: bytes = b""


class Story:
    """Collects what the layers say, and the tree that results."""

    def __init__(self) -> None:
        self.layers: list[list[Item]] = [[], [], [], []]
        self.tree: dict[bytes, Expected] = {}

    def say(self, layer: int, *items: Item) -> None:
        """Put `items` into a layer."""
        self.layers[layer] += items

    def see(self, *entries: Entry) -> None:
        """Expect each entry exactly as stated."""
        for entry in entries:
            self.tree[to_bytes(entry.path).strip(b"/")] = _as_stated(entry)

    def both(self, layer: int, *entries: Entry) -> None:
        """Say entries, and expect them exactly as stated."""
        self.say(layer, *entries)
        self.see(*entries)

    def see_links(self, entry: Entry, *paths: bytes) -> None:
        """Expect `paths` to be names of one file, which looks like `entry`."""
        expected = _as_stated(entry)
        for path in paths:
            self.tree[path] = dataclasses.replace(
                expected, nlink=len(paths), same_as=min(paths) if len(paths) > 1 else b""
            )


_MODES: dict[type[Entry], int] = {
    File: stat.S_IFREG,
    Sparse: stat.S_IFREG,
    Dir: stat.S_IFDIR,
    Symlink: stat.S_IFLNK,
    Char: stat.S_IFCHR,
    Block: stat.S_IFBLK,
    Fifo: stat.S_IFIFO,
}


def _as_stated(entry: Entry) -> Expected:
    expected = Expected(
        _MODES[type(entry)] | entry.mode,
        entry.uid,
        entry.gid,
        entry.mtime,
        entry.mtime_nsec,
        xattrs={to_bytes(name): value for name, value in entry.xattrs.items()},
    )
    if isinstance(entry, File | Sparse):
        digest = hashlib.sha256(entry.content).hexdigest()
        return dataclasses.replace(expected, size=len(entry.content), sha256=digest)
    if isinstance(entry, Symlink):
        return dataclasses.replace(expected, target=to_bytes(entry.target))
    if isinstance(entry, Char | Block):
        return dataclasses.replace(expected, rdev=(entry.major, entry.minor))
    return expected


def content(seed: str, size: int) -> bytes:
    """Return `size` bytes that depend on nothing but `seed`."""
    return random.Random(seed).randbytes(size)
