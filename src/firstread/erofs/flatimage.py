# SPDX-License-Identifier: Apache-2.0
"""The flat form of an image: one device with the metadata in front and all sectors behind it. Pure.

Owns the metadata of that form, and the map from its bytes to sectors. Does not read sectors.
Invariant: the flat form shows the same tree as the image, to every kernel from Linux 5.15 on.

Facts about the flat form (Linux 5.15 to 7.3):

* An image with a device table is read right without ``device`` options only from 6.5 on. Earlier
  kernels open the tags of its slots as paths. So the flat form has no device table: each chunk
  index names device 0, and a block there.
* It is told by the superblock alone: no devices, and all blocks of the flat form.
* Holes keep their index.

Source: Linux ``fs/erofs/{super,data}.c``; byte tables in `firstread.erofs.format`.
"""

from __future__ import annotations

from bisect import bisect_right
from struct import Struct, error

from firstread.erofs.erofsimage import ErofsImage
from firstread.erofs.extents import METADATA_SLOT, NO_SLOT, Extent
from firstread.erofs.format import (
    BLOCK_BITS,
    BOOT_SIZE,
    CHUNK_INDEX_SIZE,
    HOLE_INDEX,
    MAX_BLOCKS,
    align,
)
from firstread.erofs.indexruns import IndexRuns
from firstread.erofs.validation import validate
from firstread.errors import ImageError

__all__ = ["METADATA_SLOT", "FlatImage"]

MIN_APART = 1 << 20  # bytes of a sector; less than that costs little to fetch
_INDEX = Struct("<Q")


class FlatImage:
    """The flat form of an image. It keeps 8 bytes for each file, not the metadata.

    Args:
        image: in the form of the registry; its chunk indexes were checked (`validation.validate`).
        gap: bytes of zeros behind the metadata, a multiple of 4096.
        apart: the same behind each sector of `MIN_APART` bytes or more.
        runs: of its chunk indexes; without them all inodes are looked at: 4 s for a million.

    Attributes:
        size: of the flat form, in bytes; a multiple of 4096.
        metadata_size: of the metadata in front, in bytes.

    Raises:
        ImageError: it is too large; or, without `runs`, the inodes of the image form no tree.
    """

    def __init__(
        self, image: ErofsImage, gap: int = 0, apart: int = 0, runs: IndexRuns | None = None
    ) -> None:
        self._data, self.metadata_size = image.data, image.size
        self._parts, self._slots = [0], [METADATA_SLOT]  # where they begin, and what they are
        self._bases = [MAX_BLOCKS + 1]  # by device id; an index must not name device 0
        at = self._after(image.size, gap)
        for slot, device in enumerate(image.devices):
            self._parts.append(at)
            self._slots.append(slot)
            self._bases.append(at >> BLOCK_BITS)
            size = device.blocks << BLOCK_BITS
            at = self._after(at + size, apart if size >= MIN_APART else 0)
        self.size = at
        self._parts.append(at)
        blocks = at >> BLOCK_BITS
        if blocks > MAX_BLOCKS:
            raise ImageError("the flat form of the image is larger than EROFS can address")
        self._superblock = image.superblock._replace(devices=0, blocks=blocks).pack()
        self._runs = validate(image).runs if runs is None else runs

    def _after(self, end: int, gap: int) -> int:
        """Return where the part begins that follows one, and note the gap between them."""
        if gap:
            self._parts.append(end)
            self._slots.append(NO_SLOT)
        return end + gap

    def extents(self, offset: int, length: int) -> list[Extent]:
        """Return the extents of a range of the flat form, clipped to its size, in order.

        Args:
            offset: first byte.
            length: bytes.

        Returns:
            extents of sectors, of the metadata (`METADATA_SLOT`) and of gaps (`NO_SLOT`).
        """
        end = min(offset + length, self.size)
        found: list[Extent] = []
        part = bisect_right(self._parts, offset) - 1
        while offset < end:
            stop = min(end, self._parts[part + 1])
            slot = self._slots[part]
            start = offset - self._parts[part] if slot != NO_SLOT else 0
            found.append(Extent(slot, start, stop - offset))
            offset, part = stop, part + 1
        return found

    def metadata(self, offset: int, length: int) -> bytearray:
        """Return a range of the metadata of the flat form, clipped to it.

        Args:
            offset: first byte.
            length: bytes.

        Raises:
            ImageError: a chunk index of the image is not valid.
        """
        end = min(offset + length, self.metadata_size)
        first, stop = offset & -CHUNK_INDEX_SIZE, align(end, CHUNK_INDEX_SIZE)  # whole indexes
        piece = bytearray(self._data[first:stop])
        _overlay(piece, first, BOOT_SIZE, self._superblock)
        bases = self._bases
        try:
            for at in self._runs.indexes(first, stop):
                (index,) = _INDEX.unpack_from(piece, at - first)
                if index != HOLE_INDEX:
                    block = (index >> 32) + bases[index >> 16 & 0xFFFF]
                    _INDEX.pack_into(piece, at - first, block << 32)
        except (IndexError, error) as exc:
            raise ImageError("a chunk index of the metadata names no block") from exc
        del piece[max(0, end - first) :]
        del piece[: offset - first]
        return piece


def _overlay(piece: bytearray, offset: int, at: int, data: bytes) -> None:
    """Put data that belongs at an offset into a piece that begins at another, where they meet."""
    first, stop = max(at, offset), min(at + len(data), offset + len(piece))
    if first < stop:
        piece[first - offset : stop - offset] = data[first - at : stop - at]
