# SPDX-License-Identifier: Apache-2.0
"""Directory blocks: the split of names into blocks, and the bytes of one block.

Owns both directions; knows no inode. Invariant: names ascend bytewise through all blocks of a
directory, including ``.`` and ``..``, since the kernel finds a name by bisection.
Source: Linux ``fs/erofs/erofs_fs.h``, ``dir.c`` and ``namei.c``.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Sequence
from operator import lt
from struct import Struct

from firstread.erofs.format import BLOCK, DIRENT, DIRENT_SIZE, MAX_NAME
from firstread.errors import ImageError

Dirent = tuple[bytes, int, int]
"""Name, nid and file type."""

DOTS = (b".", b"..")
"""The names of a directory itself and of the one above it, which each directory has."""

_DOTS_SIZE = 2 * DIRENT_SIZE + len(b"".join(DOTS))


def check_names(names: Iterable[bytes]) -> None:
    """Check that `names` are valid for files.

    Raises:
        ImageError: one is not.
    """
    for name in names:
        if not 0 < len(name) <= MAX_NAME or b"/" in name or b"\0" in name or name in DOTS:
            raise ImageError(f"{name!r} cannot be the name of a file")


def with_dots(names: Iterable[bytes]) -> list[bytes]:
    """Return `names` in the order of a directory; ``.`` need not be the first."""
    return sorted([*DOTS, *names])


def block_bounds(names: Sequence[bytes]) -> list[tuple[int, int, int]]:
    """Return (first, end, bytes used) of each block of a directory that lists `names`."""
    bounds = []
    first = used = 0
    for number, name in enumerate(names):
        size = DIRENT_SIZE + len(name)
        if used + size > BLOCK:
            bounds.append((first, number, used))
            first, used = number, 0
        used += size
    bounds.append((first, len(names), used))
    return bounds


def directory_size(names: Collection[bytes]) -> int:
    """Return the ``i_size`` of a directory: whole blocks, then the used part of the last one.

    Args:
        names: in it, in any order, without ``.`` and ``..``.
    """
    size = _DOTS_SIZE + DIRENT_SIZE * len(names) + sum(map(len, names))
    if size > BLOCK:
        bounds = block_bounds(with_dots(names))
        size = (len(bounds) - 1) * BLOCK + bounds[-1][2]
    return size


def encode_block(names: Sequence[bytes], nids: Sequence[int], types: Sequence[int]) -> bytes:
    """Return one directory block, without padding."""
    offset = DIRENT_SIZE * len(names)
    parts = []
    for name, nid, file_type in zip(names, nids, types, strict=True):
        parts.append(DIRENT.pack(nid, offset, file_type, 0))
        offset += len(name)
    return b"".join([*parts, *names])


def first_name(data: bytes) -> bytes:
    """Return the first name of a directory block, and check nothing else of it.

    Raises:
        ImageError: it has none.
    """
    if len(data) < DIRENT_SIZE:
        raise ImageError("a directory block is cut off")
    first, end = DIRENT.unpack_from(data)[1], len(data)
    if first < DIRENT_SIZE or DIRENT_SIZE < first < 2 * DIRENT_SIZE or first > end:
        raise ImageError("a directory block has no valid table")
    if first > DIRENT_SIZE:
        end = DIRENT.unpack_from(data, DIRENT_SIZE)[1]
    return data[first:end].rstrip(b"\0")


def decode_block(data: bytes) -> list[Dirent]:
    """Return the entries of one directory block.

    Args:
        data: the used part of the block, at most 4096 bytes.

    Raises:
        ImageError: the block is malformed, its names do not ascend, or one is invalid.
    """
    if len(data) < DIRENT_SIZE:
        raise ImageError("a directory block is cut off")
    table_size = DIRENT.unpack_from(data)[1]
    count, rest = divmod(table_size, DIRENT_SIZE)
    if not count or rest or table_size >= len(data):
        raise ImageError("a directory block has no valid table")
    table = _table(count).unpack_from(data)
    nids, offsets, types, reserved = table[::4], table[1::4], table[2::4], table[3::4]
    text = data.rstrip(b"\0")  # the last name of a block ends at its first NUL
    ends = (*offsets[1:], len(text))
    if not all(map(lt, offsets, ends)) or any(reserved):
        raise ImageError("the names of a directory block are out of bounds")
    if text.find(b"\0", table_size) >= 0 or text.find(b"/", table_size) >= 0:
        raise ImageError("a directory has a name with NUL or a slash")
    names = [text[start:end] for start, end in zip(offsets, ends, strict=True)]
    is_long = len(text) - table_size > MAX_NAME and max(map(len, names)) > MAX_NAME
    if is_long or not all(map(lt, names, names[1:])):
        raise ImageError("the names of a directory are out of order or too long")
    return list(zip(names, nids, types, strict=True))


@functools.lru_cache(maxsize=BLOCK // DIRENT_SIZE)
def _table(count: int) -> Struct:
    """Return the layout of so many dirents, one behind the other."""
    return Struct("<" + DIRENT.format.removeprefix("<") * count)
