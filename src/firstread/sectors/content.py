# SPDX-License-Identifier: Apache-2.0
"""Reads sectors and file contents of an image from a repository, without a mount.

For the commands that look at an image from outside: verify, extract. Invariant: every byte that
leaves is verified.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from firstread.erofs.tree import HOLE, Node, split_address
from firstread.errors import FirstreadError
from firstread.oci.repository import Repository
from firstread.sectors.format import BLOCK_SIZE
from firstread.sectors.image import BlockImage
from firstread.sectors.native import NativeSource
from firstread.sectors.source import Wanted
from firstread.units import MiB

KEEP = 32 * MiB  # of sectors, for files that lie side by side


class ContentReader:
    """Reads files of `image` from `repository`; keeps the sectors used last."""

    def __init__(self, repository: Repository, image: BlockImage) -> None:
        self._source = NativeSource(repository)
        self._image = image
        self._kept: OrderedDict[int, memoryview] = OrderedDict()
        self._limit = max(2, KEEP // image.index.geometry.sector_size)

    def sector(self, slot: int) -> memoryview:
        """Return a sector, whole and verified.

        Raises:
            FirstreadError: it cannot be fetched or is not what its id says; names the blob.
        """
        if slot in self._kept:
            self._kept.move_to_end(slot)
            return self._kept[slot]
        self._kept[slot] = self._fetch(slot)
        if len(self._kept) > self._limit:
            self._kept.popitem(last=False)
        return self._kept[slot]

    def data(self, node: Node) -> Iterator[tuple[int, memoryview]]:
        """Yield (offset, bytes) of each chunk of a regular file, in order, but for its holes."""
        for number, address in enumerate(node.chunks):
            offset = number * node.chunk_size
            if address != HOLE:
                yield offset, self.chunk(address, min(node.chunk_size, node.size - offset))

    def chunk(self, address: int, length: int) -> memoryview:
        """Return the first `length` bytes of the chunk at `address`."""
        slot, block = split_address(address)
        start = block * BLOCK_SIZE
        return self.sector(slot)[start : start + length]

    def _fetch(self, slot: int) -> memoryview:
        index = self._image.index
        entry = index.sectors[slot]
        sector = Wanted(entry, self._image.blobs[entry.blob], index.geometry)
        data = memoryview(bytearray(entry.size))
        try:
            for frame in self._source.frames(sector, self._source.covering(sector, 0, entry.size)):
                data[frame.offset : frame.offset + len(frame.data)] = frame.data
        except FirstreadError as exc:
            exc.about(layer=sector.blob.digest)
            raise
        return data.toreadonly()
