# SPDX-License-Identifier: Apache-2.0
"""The file tree between a layer reader, the EROFS writer and the EROFS reader.

Owns the model only: no I/O, no byte layout. Invariants: a hard link is one `Node` under several
names, so link counts are computed and never stored; only directories have `children`; a tree holds
the addresses of file data (`chunks`), never the data.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from firstread.errors import LimitError

NO_XATTRS: Mapping[bytes, bytes] = MappingProxyType({})

MAX_PATH = 4095  # bytes: PATH_MAX without its NUL

HOLE = (1 << 64) - 1
"""A chunk without data: reads as zeros, and costs only its index."""


def chunk_address(sector: int, block: int) -> int:
    """Pack the position of a chunk into one integer: sector number, then 4 KiB block within it."""
    return sector << 32 | block


def split_address(address: int) -> tuple[int, int]:
    """Return (sector number, block within it) of a chunk that is not a `HOLE`."""
    return address >> 32, address & 0xFFFFFFFF


@dataclass(slots=True, eq=False)
class Node:
    """One inode.

    Args:
        mode: file type and permission bits, as ``st_mode``.
        mtime: whole seconds since 1970, may be negative.
        mtime_nsec: 0 … 999,999,999, counted forward from `mtime`.
        rdev: (major, minor) of a device node.
        size: bytes of a regular file.
        target: of a symbolic link.
        xattrs: full name (``b"security.capability"``) to value.
        children: names of a directory, without ``.`` and ``..``; None for other types.
        chunk_size: bytes that each of `chunks` covers; a power of two, at least 4096.
        chunks: `chunk_address` or `HOLE` for each chunk of a regular file in order. The last
            covers the rest. Empty for an empty file.
    """

    mode: int
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    mtime_nsec: int = 0
    rdev: tuple[int, int] = (0, 0)
    size: int = 0
    target: bytes = b""
    xattrs: Mapping[bytes, bytes] = field(default_factory=lambda: NO_XATTRS)
    children: dict[bytes, Node] | None = None
    chunk_size: int = 0
    chunks: Sequence[int] = ()

    @property
    def is_dir(self) -> bool:
        return self.children is not None

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def is_symlink(self) -> bool:
        return stat.S_ISLNK(self.mode)

    @property
    def is_device(self) -> bool:
        return stat.S_ISCHR(self.mode) or stat.S_ISBLK(self.mode)


def directory(mode: int = 0o755) -> Node:
    """Return an empty directory, like a parent that no layer names."""
    return Node(stat.S_IFDIR | mode, children={})


def walk(root: Node) -> Iterator[tuple[bytes, Node]]:
    """Yield (path, node) for `root` (path ``b""``) and all below it, names sorted, parents first.

    Paths have no leading slash. A hard link appears once for each of its names. Iteration and a
    limit keep the depth of a hostile image from costing stack, or memory that grows with the
    square of its paths.

    Raises:
        LimitError: the path of a directory with children is longer than Linux can open.
    """
    stack: list[tuple[bytes, Node]] = [(b"", root)]
    while stack:
        path, node = stack.pop()
        yield path, node
        if node.children:
            if len(path) > MAX_PATH:
                raise LimitError(f"a path of the image has more than {MAX_PATH} bytes")
            prefix = path + b"/" if path else b""
            children = sorted(node.children.items(), reverse=True)
            stack.extend((prefix + name, child) for name, child in children)


@dataclass(frozen=True, slots=True)
class Device:
    """One extra device of an EROFS image: one sector.

    Args:
        tag: sector id, 32 bytes of digest; written to the device slot as 64 hexadecimal digits.
        blocks: its 4 KiB blocks.
    """

    tag: bytes
    blocks: int


@dataclass(slots=True)
class LinkCounts:
    """Link counts, as ``st_nlink`` would show them.

    Args:
        counts: of the few nodes with more than one name, by ``id()``.
    """

    counts: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, root: Node) -> LinkCounts:
        """Count the names of every node below `root`."""
        counts: dict[int, int] = {}
        seen: set[int] = set()
        directories = [root]
        while directories:
            for child in (directories.pop().children or {}).values():
                if child.children is not None:
                    directories.append(child)
                elif id(child) in seen:
                    counts[id(child)] = counts.get(id(child), 1) + 1
                else:
                    seen.add(id(child))
        return cls(counts)

    def __getitem__(self, node: Node) -> int:
        """Return the number of names of `node`; a directory has 2, plus one per subdirectory."""
        if node.children is None:
            return self.counts.get(id(node), 1)
        return 2 + sum(child.children is not None for child in node.children.values())
