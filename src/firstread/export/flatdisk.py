# SPDX-License-Identifier: Apache-2.0
"""An image as one disk: which bytes are data, and where these lie.

Owns the map of the disk: the flat form of the image (`firstread.erofs.flatimage`), less the blocks
of sectors that no file refers to. Those are zeros here. So a whole copy neither fetches nor holds
files that upper layers replaced, or the first place of files that have hot copies. Reads no sector.

Invariant: the map depends on the metadata alone, so each copy of the disk has the same bytes.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator

from firstread.erofs.chunks import chunk_size_of
from firstread.erofs.erofsimage import ErofsImage
from firstread.erofs.extents import NO_SLOT, Extent
from firstread.erofs.flatimage import FlatImage
from firstread.erofs.format import BLOCK_BITS, CHUNK_BASED
from firstread.erofs.reader import scan
from firstread.erofs.tree import HOLE, split_address
from firstread.erofs.validation import validate


class FlatDisk:
    """The disk of an image.

    Args:
        erofs: its metadata, from anywhere: all of it is checked.

    Attributes:
        size: bytes, a multiple of 4096.

    Raises:
        ImageError: the metadata does not have the form that firstread writes.
    """

    def __init__(self, erofs: ErofsImage) -> None:
        self._flat = FlatImage(erofs, runs=validate(erofs).runs)
        self.size = self._flat.size
        runs = [(0, self._flat.metadata_size >> BLOCK_BITS), *_used(erofs)]
        joined = list(_joined(runs))
        self._starts = array("Q", (start << BLOCK_BITS for start, _ in joined))
        self._stops = array("Q", (stop << BLOCK_BITS for _, stop in joined))

    def pieces(self, offset: int, length: int) -> Iterator[tuple[int, Extent]]:
        """Yield each piece of a range, with its offset on the disk, in order and without gaps.

        Args:
            offset: first byte.
            length: bytes; the end of the disk cuts the range.

        Yields:
            extents of sectors, of the metadata (`METADATA_SLOT`), or of zeros (`NO_SLOT`).
        """
        for start, stop, is_data in self.runs(offset, length):
            if not is_data:
                yield start, Extent(NO_SLOT, 0, stop - start)
                offset = stop
                continue
            for extent in self._flat.extents(start, stop - start):
                yield offset, extent
                offset += extent.length

    def runs(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        """Yield (start, stop, whether it is data) of each run: data and zeros by turns."""
        end = min(offset + length, self.size)
        run = max(0, bisect_right(self._starts, offset) - 1)
        while offset < end:
            if run < len(self._starts) and self._stops[run] <= offset:
                run += 1
            start = self._starts[run] if run < len(self._starts) else self.size
            is_data = start <= offset
            stop = min(end, self._stops[run] if is_data else start)
            yield offset, stop, is_data
            offset = stop

    def metadata(self, offset: int, length: int) -> bytearray:
        """Return a range of the metadata in front."""
        return self._flat.metadata(offset, length)


def _used(erofs: ErofsImage) -> Iterator[tuple[int, int]]:
    """Yield the first block, and that behind the last, of each chunk with data."""
    bases = [device.mapped_blkaddr for device in erofs.devices]
    for inode, _ in scan(erofs):
        if inode.layout != CHUNK_BASED:
            continue
        chunk_blocks = chunk_size_of(inode.i_u) >> BLOCK_BITS
        left = -(-inode.size >> BLOCK_BITS)
        for address in erofs.chunks(inode):
            if address != HOLE:
                slot, block = split_address(address)
                start = bases[slot] + block
                yield start, start + min(chunk_blocks, left)
            left -= chunk_blocks


def _joined(runs: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield runs that do not touch, in order."""
    first, last = 0, 0
    for start, stop in sorted(runs):
        if start > last:
            yield first, last
            first = start
        last = max(last, stop)
    yield first, last
