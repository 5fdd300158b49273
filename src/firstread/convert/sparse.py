# SPDX-License-Identifier: Apache-2.0
"""Maps of sparse files, in the four forms that GNU tar has written.

Owns the positions of a sparse file's stored data. Invariant: the extents are in order, apart, not
empty, inside the file, and together as long as the data that the archive stores. Follows "Storing
Sparse Files" in the GNU tar manual:

========  =================================================================================
old GNU   type ``S``; four pairs in the header, 21 in each extension block before the data
0.0       PAX records, two per extent (joined to the form of 0.1 by `pax.parse_records`)
0.1       one PAX record ``GNU.sparse.map``
1.0       decimal numbers, one per line, in whole blocks before the data and counted with it
========  =================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping

from firstread.convert.entry import TarEntry, TarLimits
from firstread.convert.header import BLOCK, number
from firstread.convert.pax import SPARSE_MAP, SPARSE_NAME, decimal
from firstread.convert.stream import Feed
from firstread.errors import ImageError, LimitError

_REAL_SIZES = (b"GNU.sparse.size", b"GNU.sparse.realsize")
_PAIR = 24  # bytes of offset and length, 12 each
_HEADER_MAP = 386, 4, 482  # offset of the pairs, their number, offset of the "more" flag
_EXTENSION_MAP = 0, 21, 504
_REAL_SIZE = slice(483, 495)


def read_map(
    entry: TarEntry,
    block: bytes,
    records: Mapping[bytes, bytes],
    feed: Feed,
    limits: TarLimits,
) -> int:
    """Set size and extents of `entry`, if it is sparse.

    Args:
        entry: a regular file; its size is the stored one.
        block: its header block.
        records: its PAX records.
        feed: at the first byte after the headers; skips a map there.
        limits: of extents, and of bytes of a map.

    Returns:
        The bytes of file data that follow in `feed`.

    Raises:
        ImageError: the map is damaged.
        LimitError: it has too many extents.
    """
    stored = entry.size
    if block[156:157] == b"S":
        numbers = _old_map(block, feed, limits)
        entry.size = number(block[_REAL_SIZE])
    elif (version := _version(records)) is not None:
        _rename(entry, records)
        start = feed.position
        if version == (b"1", b"0"):
            numbers = _line_map(feed, stored, limits)
        else:
            numbers = [decimal(value) for value in records[SPARSE_MAP].split(b",")]
        stored -= feed.position - start
    else:
        return stored
    if len(numbers) > 2 * limits.extents:
        raise LimitError(f"the sparse map has more than {limits.extents} extents")
    entry.extents = _extents(numbers, entry.size, stored)
    return stored


def _rename(entry: TarEntry, records: Mapping[bytes, bytes]) -> None:
    """Set the real name and size, which the header of a PAX sparse file does not have."""
    entry.path = records.get(SPARSE_NAME, entry.path)
    for key in _REAL_SIZES:
        if key in records:
            entry.size = decimal(records[key])


def _version(records: Mapping[bytes, bytes]) -> tuple[bytes, bytes] | None:
    """Return (major, minor) of the sparse format; None if the records name none."""
    if SPARSE_MAP in records:
        return (b"0", b"1")
    stated = (records.get(b"GNU.sparse.major", b""), records.get(b"GNU.sparse.minor", b""))
    return stated if stated == (b"1", b"0") else None


def _old_map(block: bytes, feed: Feed, limits: TarLimits) -> list[int]:
    numbers: list[int] = []
    start, pairs, more = _HEADER_MAP
    while True:
        for at in range(start, start + pairs * _PAIR, _PAIR):
            if not block[at] and not block[at + 12]:  # unused
                break
            numbers += (number(block[at : at + 12]), number(block[at + 12 : at + 24]))
        if not block[more]:
            return numbers
        if len(numbers) > 2 * limits.extents:
            raise LimitError(f"the sparse map has more than {limits.extents} extents")
        block = feed.exact(BLOCK)
        start, pairs, more = _EXTENSION_MAP


def _line_map(feed: Feed, stored: int, limits: TarLimits) -> list[int]:
    """Read a map of version 1.0: the number of extents, then offset and length of each."""
    most = min(stored, limits.header_bytes)
    blocks: list[bytes] = []
    lines = wanted = 0
    while lines <= wanted:
        if (len(blocks) + 1) * BLOCK > most:
            raise ImageError(f"the sparse map does not end within {most} bytes")
        blocks.append(feed.exact(BLOCK))
        if not lines:
            wanted = 2 * decimal(blocks[0].partition(b"\n")[0])
            if not 0 <= wanted <= 2 * limits.extents:
                raise LimitError(f"the sparse map has more than {limits.extents} extents")
        lines += blocks[-1].count(b"\n")
    return [decimal(line) for line in b"".join(blocks).split(b"\n", wanted + 1)[1:-1]]


def _extents(numbers: list[int], size: int, stored: int) -> tuple[tuple[int, int], ...]:
    """Return pairs of offset and length that satisfy the module's invariant."""
    if len(numbers) % 2:
        raise ImageError("the sparse map has an offset without a length")
    pairs = list(zip(numbers[::2], numbers[1::2], strict=True))
    ends = [0]
    for offset, length in pairs:
        if offset < ends[-1] or length < 0:
            raise ImageError(f"the sparse map is out of order at offset {offset}")
        ends.append(offset + length)
    if ends[-1] > size:
        raise ImageError(f"the sparse map ends at {ends[-1]}, the file at {size}")
    if sum(numbers[1::2]) != stored:
        raise ImageError(f"the sparse map does not describe the {stored} bytes stored")
    return tuple(pair for pair in pairs if pair[1])
