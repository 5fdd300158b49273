# SPDX-License-Identifier: Apache-2.0
"""Reads of the disk of an image while its sectors are still coming.

Owns the choice of where the bytes of a piece come from: metadata, zeros, or a sector. Runs in the
event loop.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from firstread.erofs.extents import Extent
from firstread.export.flatdisk import METADATA_SLOT, NO_SLOT, FlatDisk
from firstread.export.sectorfeed import SectorFeed
from firstread.units import MiB

STEP: Final = 1 * MiB  # bytes of the largest piece, and so what a connection holds in memory


class DiskReads:
    """The disk of an image, to read.

    Args:
        disk: its map.
        feed: its sectors.
    """

    def __init__(self, disk: FlatDisk, feed: SectorFeed) -> None:
        self._disk, self._feed = disk, feed
        self.size = disk.size
        self.runs = disk.runs

    def pieces(self, offset: int, length: int, *, holes: bool) -> Iterator[tuple[int, Extent]]:
        """Yield the pieces of a range with their offsets, in order, of `STEP` bytes at most.

        Args:
            offset: first byte.
            length: bytes.
            holes: give zeros as one piece, however long.
        """
        for start, extent in self._disk.pieces(offset, length):
            if holes and extent.slot == NO_SLOT:
                yield start, extent
                continue
            for skipped in range(0, extent.length, STEP):
                size = min(STEP, extent.length - skipped)
                yield start + skipped, Extent(extent.slot, extent.start + skipped, size)

    def is_here(self, piece: Extent) -> bool:
        """Return whether nothing of a piece has to be fetched."""
        return piece.slot < 0 or self._feed.has(piece.slot, piece.start + piece.length)

    async def cover(self, piece: Extent) -> None:
        """Wait until all of a piece is here.

        Raises:
            FirstreadError: it cannot be had.
        """
        if piece.slot >= 0:
            await self._feed.cover(piece.slot, piece.start + piece.length)

    async def read(self, piece: Extent, view: memoryview) -> None:
        """Fill `view` with a piece that is here.

        Raises:
            NodeError: its file cannot be read.
        """
        if piece.slot == METADATA_SLOT:
            view[:] = self._disk.metadata(piece.start, piece.length)
        elif piece.slot == NO_SLOT:
            view[:] = bytes(piece.length)
        else:
            await self._feed.read(piece.slot, piece.start, view)
