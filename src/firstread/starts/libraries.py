# SPDX-License-Identifier: Apache-2.0
"""Finds the shared libraries of a program as the dynamic linker of its image would. Pure.

Owns the order of the search: DT_RPATH, LD_LIBRARY_PATH, DT_RUNPATH, ``/etc/ld.so.cache``, the
standard directories of glibc and musl. Does not choose variants for newer processors
(``glibc-hwcaps``): the node's is unknown. Invariant: at most `MAX_OBJECTS` objects, each once,
`MAX_FILES` files that are read for them, and `MAX_PLACES` paths where they are looked for.

Source: ld.so(8); glibc ``sysdeps/generic/dl-cache.h``; musl ``ldso/dynlink.c``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from firstread.starts.elf import Elf, read_elf
from firstread.starts.treepaths import Found, TreePaths
from firstread.units import MiB

ReadFile = Callable[[bytes, int, int], bytes]  # (path, offset, length)

MAX_OBJECTS = 512
MAX_FILES = 2 * MAX_OBJECTS  # that are read: some are of another machine, or no ELF files
MAX_DIRECTORIES = 64  # of one search path
MAX_PLACES = 32768  # where libraries of one image are looked for; 500 objects need about 10,000
MAX_CACHE = 1 * MiB  # of ld.so.cache; a full desktop has 0.2
MAX_PATH = 512  # in ld.so.cache
CACHE = b"etc/ld.so.cache"

_CACHE_MAGIC = b"glibc-ld.so.cache1.1"
_CACHE_HEADER = struct.Struct("<20sII20x")
_CACHE_ENTRY = struct.Struct("<iIIIQ")
_TRIPLETS = {62: b"x86_64-linux-gnu", 183: b"aarch64-linux-gnu", 243: b"riscv64-linux-gnu"}
_STANDARD = (b"lib64", b"usr/lib64", b"lib", b"usr/local/lib", b"usr/lib")


class Object(NamedTuple):
    """An ELF file that a start maps."""

    file: Found
    elf: Elf


class _Loading(NamedTuple):
    """An object, and the DT_RPATH of those that asked for it."""

    object: Object
    rpaths: tuple[bytes, ...]


class Libraries:
    """The objects of an image.

    Args:
        paths: of the image.
        read: returns bytes of its files.
        library_path: LD_LIBRARY_PATH of the process.
    """

    def __init__(self, paths: TreePaths, read: ReadFile, library_path: bytes = b"") -> None:
        self._paths, self._read = paths, read
        self._library_path = _directories(library_path.replace(b";", b":"), b"")
        self._cache: dict[bytes, list[bytes]] | None = None
        self._places = MAX_PLACES  # left
        self._read_before: dict[int, Elf | None] = {}  # by id() of the node

    def open(self, file: Found) -> Object | None:
        """Return the ELF file in `file`; None if it is none, or if too many were read already."""
        key = id(file.node)
        if key not in self._read_before:
            if len(self._read_before) >= MAX_FILES:
                return None
            self._read_before[key] = read_elf(
                lambda start, size: self._read(file.path, start, size), file.node.size
            )
        elf = self._read_before[key]
        return Object(file, elf) if elf else None

    def objects(self, roots: Sequence[Object]) -> Iterator[Object]:
        """Yield `roots` and what they load, in the order of ld.so: breadth first, each once."""
        queue = [_Loading(root, ()) for root in roots]
        seen = {root.file.path for root in roots}
        names: set[bytes] = set()
        for loading in queue:  # grows
            yield loading.object
            elf = loading.object.elf
            here = (elf.runpath,) if elf.runpath and elf.inherited else ()
            rpaths = (*_own(loading.object, here), *loading.rpaths)[:MAX_DIRECTORIES]
            wanted = [elf.interpreter] if elf.interpreter else []
            for name in (*wanted, *elf.needed):
                if name in names or len(seen) >= MAX_OBJECTS:
                    continue
                found = self._find(name, loading.object, rpaths)
                if found and found.file.path not in seen:
                    seen.add(found.file.path)
                    queue.append(_Loading(found, rpaths))
                if found:
                    names.add(name)

    def _find(self, name: bytes, user: Object, rpaths: Sequence[bytes]) -> Object | None:
        for file in self._candidates(name, user, rpaths):
            found = self.open(file)
            if found and found.elf.machine == user.elf.machine:
                return found
        return None

    def _candidates(self, name: bytes, user: Object, rpaths: Sequence[bytes]) -> Iterator[Found]:
        if b"/" in name:
            places = [name]
        else:
            runpath = () if user.elf.inherited else _own(user, (user.elf.runpath,))
            searched = (*(() if runpath else rpaths), *self._library_path, *runpath)
            triplet = _TRIPLETS.get(user.elf.machine, b"")
            standard = [b"/lib/" + triplet, b"/usr/lib/" + triplet, *_STANDARD]
            places = [directory + b"/" + name for directory in searched]
            places += self._cached().get(name, [])
            places += [directory + b"/" + name for directory in standard]
        places = places[: self._places]
        for place in places:
            self._places -= 1
            if file := self._paths.file(place):
                yield file

    def _cached(self) -> dict[bytes, list[bytes]]:
        """Return what ld.so.cache says: paths by name."""
        if self._cache is None:
            file = self._paths.file(CACHE)
            size = min(file.node.size, MAX_CACHE) if file else 0
            self._cache = read_cache(self._read(file.path, 0, size)) if file else {}
        return self._cache


def read_cache(data: bytes) -> dict[bytes, list[bytes]]:
    """Return the paths of each library in the bytes of ``/etc/ld.so.cache``."""
    found: dict[bytes, list[bytes]] = {}
    start = max(0, data.find(_CACHE_MAGIC))  # older glibc has a table in the old format before it
    try:
        magic, count, _ = _CACHE_HEADER.unpack_from(data, start)
    except struct.error:
        return {}
    table = start + _CACHE_HEADER.size
    rows = data[table : table + min(count, MAX_CACHE) * _CACHE_ENTRY.size]
    if magic != _CACHE_MAGIC or len(rows) % _CACHE_ENTRY.size:
        return {}
    for _, name, path, _, variant in _CACHE_ENTRY.iter_unpack(rows):
        if not variant:
            found.setdefault(_text(data, start + name), []).append(_text(data, start + path))
    return found


def _text(data: bytes, start: int) -> bytes:
    return data[start : start + MAX_PATH].partition(b"\0")[0]


def _own(user: Object, runpaths: Sequence[bytes]) -> tuple[bytes, ...]:
    """Return the directories of the search paths that an object has."""
    return tuple(found for path in runpaths for found in _directories(path, user.file.directory))


def _directories(path: bytes, origin: bytes) -> tuple[bytes, ...]:
    for name in (b"$ORIGIN", b"${ORIGIN}"):
        path = path.replace(name, b"/" + origin)
    return tuple(part for part in path.split(b":") if part)[:MAX_DIRECTORIES]
