# SPDX-License-Identifier: Apache-2.0
"""Reads of the disk of an image while its sectors are still coming.

Owns the choice of where the bytes of a piece come from: metadata, zeros, or a sector.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Final

from firstread.erofs.extents import METADATA_SLOT, NO_SLOT, Extent
from firstread.errors import FirstreadError, NodeError
from firstread.export.flatdisk import FlatDisk
from firstread.export.sectorfeed import SectorFeed, Told
from firstread.sectors.storelayout import doing
from firstread.units import MiB

STEP: Final = 1 * MiB  # bytes of the largest piece, and so what a connection holds in memory
MOST_OPEN: Final = 8  # files of a reader


class DiskReads:
    """The disk of an image, to read. Safe to use from several threads.

    Args:
        disk: its map.
        feed: its sectors.
    """

    def __init__(self, disk: FlatDisk, feed: SectorFeed) -> None:
        self.map, self.feed, self.size = disk, feed, disk.size

    def pieces(self, offset: int, length: int, *, holes: bool) -> Iterator[tuple[int, Extent]]:
        """Yield the pieces of a range with their offsets, in order, of `STEP` bytes at most.

        Args:
            offset: first byte.
            length: bytes.
            holes: give zeros as one piece, however long.
        """
        for start, extent in self.map.pieces(offset, length):
            if extent.length <= STEP or (holes and extent.slot == NO_SLOT):
                yield start, extent
                continue
            for skipped in range(0, extent.length, STEP):
                size = min(STEP, extent.length - skipped)
                yield start + skipped, Extent(extent.slot, extent.start + skipped, size)

    def is_here(self, offset: int, length: int) -> bool:
        """Return whether nothing of a range has to be fetched."""
        return all(
            piece.slot < 0 or self.feed.has(piece.slot, piece.start + piece.length)
            for _, piece in self.map.pieces(offset, length)
        )

    def ask(self, client: Hashable, offset: int, length: int, told: Told) -> None:
        """Have all of a range fetched.

        Args:
            client: see `SectorFeed.ask`.
            offset: first byte.
            length: bytes.
            told: called once; it must not block.
        """
        wanted = [piece for _, piece in self.map.pieces(offset, length) if piece.slot >= 0]
        waiting = _All(len(wanted) + 1, told)
        for piece in wanted:
            try:
                self.feed.ask(client, piece.slot, piece.start + piece.length, waiting.told)
            except FirstreadError as exc:
                waiting.told(exc)
        waiting.told(None)


class _All:
    """Waits for several parts, and tells the first failure of them."""

    def __init__(self, count: int, told: Told) -> None:
        self._left, self._told = count, told
        self._error: FirstreadError | None = None
        self._lock = threading.Lock()

    def told(self, error: FirstreadError | None) -> None:
        """Note that one part is here, or does not come."""
        with self._lock:
            self._left -= 1
            self._error = self._error or error
            is_last = not self._left
        if is_last:
            self._told(self._error)


class Reader:
    """Reads pieces that are here, and keeps some files open. For one thread at a time.

    Args:
        disk: which.
    """

    def __init__(self, disk: DiskReads) -> None:
        self._disk = disk
        self._files: OrderedDict[int, int] = OrderedDict()  # slot -> descriptor

    def read(self, piece: Extent, view: memoryview) -> None:
        """Fill `view` with a piece.

        Raises:
            NodeError: its file cannot be read.
        """
        if piece.slot == METADATA_SLOT:
            view[:] = self._disk.map.metadata(piece.start, piece.length)
        elif piece.slot == NO_SLOT:
            view[:] = bytes(piece.length)
        else:
            self._read(piece.slot, piece.start, view)

    def _read(self, slot: int, start: int, view: memoryview) -> None:
        fd = self._file(slot)
        with doing("cannot read a sector file"):
            while view:
                count = os.preadv(fd, [view], start)
                if not count:
                    raise NodeError("a sector file became shorter")
                start, view = start + count, view[count:]

    def _file(self, slot: int) -> int:
        if slot not in self._files:
            self._files[slot] = self._disk.feed.open(slot)
            if len(self._files) > MOST_OPEN:
                os.close(self._files.popitem(last=False)[1])
        self._files.move_to_end(slot)
        return self._files[slot]

    def close(self) -> None:
        """Close the files."""
        while self._files:
            os.close(self._files.popitem()[1])
