# SPDX-License-Identifier: Apache-2.0
"""Reads sectors and file contents of an image from a repository, without a mount.

For the commands that look at an image from outside: verify, extract, optimize. Invariant: every
byte that leaves is verified.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Self

from firstread.erofs.tree import HOLE, Node, split_address
from firstread.errors import FirstreadError, ImageError
from firstread.oci.repository import Repository
from firstread.sectors.format import BLOCK_SIZE
from firstread.sectors.image import BlockImage
from firstread.sectors.native import NativeSource
from firstread.sectors.source import Frame, Source, Span, Wanted, Window
from firstread.units import MiB

KEEP = 32 * MiB  # of sectors, for files that lie side by side
GAP = 2  # frames that cost less than one more request


def read_frames(source: Source[Any], sector: Wanted, numbers: Iterable[int]) -> Iterator[Frame]:
    """Yield some frames of a sector, and those of small gaps between them, in few requests.

    Args:
        source: has the sector.
        sector: which.
        numbers: of the frames; at least one.

    Raises:
        FirstreadError: they cannot be fetched or contradict the sector id; names the blob.
    """
    wanted: list[int] = []
    for number in sorted(numbers):
        if wanted and number - wanted[-1] <= GAP + 1:
            wanted.extend(range(wanted[-1] + 1, number))
        wanted.append(number)
    try:
        yield from source.frames(sector, wanted, few=2 * len(wanted) <= wanted[-1])
    except FirstreadError as exc:
        exc.about(layer=sector.blob.digest)
        raise


def read_sectors(source: Source[Any], sectors: Sequence[Wanted]) -> Iterator[tuple[int, Frame]]:
    """Yield all frames of sectors that lie side by side in one blob, in one request.

    Each comes with the place of its sector among these.

    Raises:
        FirstreadError: as `read_frames`.
    """
    first, last, window = sectors[0].span, sectors[-1].span, Window()
    try:
        with source.open(Span(first.blob, first.start, last.stop), window) as incoming:
            for place, sector in enumerate(sectors):
                for frame in source.decode(sector, source.begin(sector), incoming):
                    yield place, frame
    except FirstreadError as exc:
        exc.about(layer=first.blob.digest)
        raise


def wanted_sectors(image: BlockImage) -> list[Wanted]:
    """Return the sectors of a converted image, by device slot."""
    index, blobs = image.index, image.blobs
    return [Wanted(entry, blobs[entry.blob], index.geometry) for entry in index.sectors]


class _Kept(NamedTuple):
    """A sector in memory: its bytes, and which of its frames are among them."""

    data: memoryview
    frames: set[int]


class ContentReader:
    """Reads files from the sectors that hold them; keeps the sectors used last.

    Args:
        repository: where the sectors are.
        sectors: by the number that chunk addresses count.
        keep_bytes: of sectors; two are kept, however large they are.
    """

    def __init__(
        self, repository: Repository, sectors: Sequence[Wanted], keep_bytes: int = KEEP
    ) -> None:
        self._source = NativeSource(repository)
        self._sectors = sectors
        self._kept: OrderedDict[int, _Kept] = OrderedDict()
        largest = max((sector.geometry.sector_size for sector in sectors[:1]), default=KEEP)
        self._limit = max(2, keep_bytes // largest)

    @classmethod
    def of(cls, repository: Repository, image: BlockImage, keep_bytes: int = KEEP) -> Self:
        """Return a reader of a converted image."""
        return cls(repository, wanted_sectors(image), keep_bytes)

    def sector(self, slot: int) -> memoryview:
        """Return a sector, whole and verified.

        Raises:
            FirstreadError: it cannot be fetched or is not what its id says; names the blob.
        """
        return self._range(slot, 0, self._sectors[slot].entry.size)

    def data(self, node: Node) -> Iterator[tuple[int, memoryview]]:
        """Yield (offset, bytes) of each chunk of a regular file, in order, but for its holes."""
        for number, address in enumerate(node.chunks):
            offset = number * node.chunk_size
            if address != HOLE:
                yield offset, self.chunk(address, min(node.chunk_size, node.size - offset))

    def chunk(self, address: int, length: int) -> memoryview:
        """Return the first `length` bytes of the chunk at `address`."""
        slot, block = split_address(address)
        self.sector(slot)  # the rest of it is likely to be next
        return self._range(slot, block * BLOCK_SIZE, block * BLOCK_SIZE + length)

    def read(self, node: Node, offset: int, length: int) -> bytes:
        """Return a range of a regular file, cut at its end; fetch only the frames that have it."""
        data = bytearray(max(0, min(length, node.size - offset)) if node.chunks else 0)
        at = 0
        while at < len(data):
            number, skipped = divmod(offset + at, node.chunk_size)
            count = min(node.chunk_size - skipped, len(data) - at)
            if node.chunks[number] != HOLE:
                slot, block = split_address(node.chunks[number])
                start = block * BLOCK_SIZE + skipped
                data[at : at + count] = self._range(slot, start, start + count)
            at += count
        return bytes(data)

    def _range(self, slot: int, start: int, stop: int) -> memoryview:
        sector = self._sectors[slot]
        if stop > sector.entry.size:
            raise ImageError(f"a file lies outside sector {slot}")
        kept = self._kept.setdefault(slot, _Kept(memoryview(bytearray(sector.entry.size)), set()))
        self._kept.move_to_end(slot)
        if len(self._kept) > self._limit:
            self._kept.popitem(last=False)
        missing = set(self._source.covering(sector, start, stop)) - kept.frames
        if missing:
            for frame in read_frames(self._source, sector, missing):
                kept.data[frame.offset : frame.offset + len(frame.data)] = frame.data
                kept.frames.add(frame.number)
        return kept.data[start:stop].toreadonly()
