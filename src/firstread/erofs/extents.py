# SPDX-License-Identifier: Apache-2.0
"""Where a range of a file lies: the extents of sectors that hold it.

Owns the walk over the chunk indexes of that range alone, so the cost follows the range and not
the file. Invariant: the extents of a range cover it in order, without gaps.
"""

from __future__ import annotations

from struct import unpack_from
from typing import NamedTuple

from firstread.erofs.chunks import chunk_size_of
from firstread.erofs.erofsimage import ErofsImage
from firstread.erofs.format import BLOCK_BITS, CHUNK_BASED, CHUNK_INDEX_SIZE, HOLE_INDEX
from firstread.erofs.inode import Inode
from firstread.errors import ImageError

NO_SLOT = -1  # zeros
METADATA_SLOT = -2  # the metadata in front of a flat image
_BATCH = 512  # indexes that are looked at together: what is searched for is often near


class Extent(NamedTuple):
    """Consecutive bytes of a file in one sector.

    Args:
        slot: device slot, `NO_SLOT` or `METADATA_SLOT`.
        start: first byte in the sector.
        length: bytes.
    """

    slot: int
    start: int
    length: int


def extents(image: ErofsImage, inode: Inode, offset: int, length: int) -> list[Extent]:
    """Return the extents of a range of a regular file, clipped to the file.

    Args:
        image: of the file.
        inode: the file.
        offset: first byte.
        length: bytes.

    Raises:
        ImageError: the range lies outside its device.
    """
    end = min(offset + length, inode.size)
    if inode.layout != CHUNK_BASED or offset >= end:
        return []
    chunk = chunk_size_of(inode.i_u)
    first, skipped = divmod(offset, chunk)
    if skipped + end - offset <= chunk:  # most reads of a start
        return [
            _piece(image, inode, _indexes(image, inode, first, first + 1)[0], skipped, end - offset)
        ]
    found: list[Extent] = []
    position = offset
    for index in _indexes(image, inode, first, (end - 1) // chunk + 1):
        skipped = position % chunk
        size = min(chunk - skipped, end - position)
        position += size
        piece = _piece(image, inode, index, skipped, size)
        slot = piece.slot
        last = found[-1] if found else None
        if last and last.slot == slot and (slot == NO_SLOT or last.start + last.length == piece[1]):
            found[-1] = last._replace(length=last.length + size)
        else:
            found.append(piece)
    return found


def next_data(image: ErofsImage, inode: Inode, offset: int, *, hole: bool) -> int | None:
    """Return where data, or a hole, begins from an offset on; None if there is none.

    The end of a file counts as a hole.

    Raises:
        ImageError: as `extents`.
    """
    if offset >= inode.size:
        return None
    if inode.layout == CHUNK_BASED:
        chunk = chunk_size_of(inode.i_u)
        first, count = offset // chunk, (inode.size - 1) // chunk + 1
        for batch in range(first, count, _BATCH):
            indexes = _indexes(image, inode, batch, min(batch + _BATCH, count))
            for number, index in enumerate(indexes, batch):
                if (index == HOLE_INDEX) is hole:
                    return max(offset, number * chunk)
    return inode.size if hole else None


def _indexes(image: ErofsImage, inode: Inode, first: int, end: int) -> tuple[int, ...]:
    offset = inode.indexes_offset + CHUNK_INDEX_SIZE * first
    return unpack_from(f"<{end - first}Q", image.data, offset)


def _piece(image: ErofsImage, inode: Inode, index: int, skipped: int, size: int) -> Extent:
    """Return where a part of a chunk lies."""
    if index == HOLE_INDEX:
        return Extent(NO_SLOT, 0, size)
    slot, start = (index >> 16 & 0xFFFF) - 1, ((index >> 32) << BLOCK_BITS) + skipped
    if index & 0xFFFF or not 0 <= slot < len(image.devices):
        raise ImageError(f"chunk index {index:#x} names no device")
    if start + size > image.devices[slot].blocks << BLOCK_BITS:
        raise ImageError(f"a chunk of inode {inode.nid} lies outside its device")
    return Extent(slot, start, size)
