# SPDX-License-Identifier: Apache-2.0
"""The planner: chooses the sector and block of each chunk of a layer's files.

Pure: sizes in, positions out; the packer obeys. It takes files one by one in the order of the layer
and never looks ahead, so one pass over a stream packs a layer, and a layer gets the same sectors in
every image. Invariants: a chunk never straddles a sector; a file of a sector or more fills whole
sectors of its own; its tail and all smaller files share packed sectors, each from the start of a
4 KiB block.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from itertools import chain, starmap
from typing import NamedTuple

from firstread.erofs.tree import HOLE, chunk_address
from firstread.errors import LimitError, SectorCountError
from firstread.sectors.format import BLOCK_SIZE
from firstread.units import format_size, round_up

MAX_CHUNKS_PER_FILE = 1 << 20  # 8 MiB of metadata for one file; 4 TiB in sectors of 4 MiB
MAX_CHUNKS = 1 << 22  # in one layer: 32 MiB of metadata before compression
MAX_CHUNK_SIZE = BLOCK_SIZE << 31  # erofs_fs.h: five bits for the shift of a block
CHUNK_INDEX_SIZE = 8  # bytes of struct erofs_inode_chunk_index

Span = tuple[int, int]
"""The first of a run of units (bytes, blocks, chunks), and the first one after it."""


class Piece(NamedTuple):
    """A run of a file's bytes, and its position.

    Args:
        sector: number of the sector within the layer, in order of first use.
        block: 4 KiB block within that sector.
        offset: of the run in the file, bytes.
        length: bytes of the run; at most a sector.
        whole: the sector belongs to this run alone.
    """

    sector: int
    block: int
    offset: int
    length: int
    whole: bool = False


class Placement(NamedTuple):
    """The position of a file: its chunk size, the address of every chunk, and the data to copy."""

    chunk_size: int
    chunks: array[int]
    pieces: Sequence[Piece]


NOTHING = Placement(0, array("Q"), ())


class Planner:
    """Places the files of one layer, in order.

    Args:
        sector_size: bytes of a sector, a power of two of at least `BLOCK_SIZE`.
    """

    def __init__(self, sector_size: int) -> None:
        self._sector_size = sector_size
        self._next_sector = 0
        self._open_sector = -1
        self._used = sector_size  # bytes used of the open packed sector; full: none is open
        self._chunks = self._small = 0  # all, and those that no larger sector would join

    def place(self, size: int, extents: Sequence[tuple[int, int]] | None = None) -> Placement:
        """Return the position of a file.

        Args:
            size: bytes of the file as ``stat`` shows them.
            extents: (offset, length) of the data of a sparse file, in order; None for other files.

        Raises:
            SectorCountError: the file, or the layer with it, needs more chunks than there may be.
            LimitError: likewise, and larger sectors would not help.
        """
        if size == 0:
            return NOTHING
        touched: Iterable[int]
        if extents is None:
            chunk_size = min(self._sector_size, _power_of_two(size))
            touched = range(-(-size // chunk_size))
        else:
            blocks = covered(((start, start + length) for start, length in extents), BLOCK_SIZE)
            chunk_size = self._sparse_chunk_size(size, blocks)
            touched = chain(*starmap(range, covered(blocks, chunk_size // BLOCK_SIZE)))
        count = -(-size // chunk_size)
        self._count(count, size, chunk_size)  # before it sizes anything
        chunks = array("Q", (HOLE,)) * count
        pieces = []
        for number in touched:
            offset = number * chunk_size
            piece = self._place_run(offset, min(chunk_size, size - offset))
            chunks[number] = chunk_address(piece.sector, piece.block)
            pieces.append(piece)
        return Placement(chunk_size, chunks, pieces)

    def _place_run(self, offset: int, length: int) -> Piece:
        if length == self._sector_size:
            self._next_sector += 1
            return Piece(self._next_sector - 1, 0, offset, length, whole=True)
        if self._used + length > self._sector_size:
            self._open_sector, self._used = self._next_sector, 0
            self._next_sector += 1
        piece = Piece(self._open_sector, self._used // BLOCK_SIZE, offset, length)
        self._used += -(-length // BLOCK_SIZE) * BLOCK_SIZE
        return piece

    def _count(self, chunks: int, size: int, chunk_size: int) -> None:
        self._chunks += chunks
        self._small += chunks if chunk_size < self._sector_size else 0
        if chunks > MAX_CHUNKS_PER_FILE:
            raise SectorCountError(
                f"a file of {format_size(size)} needs {chunks} chunks, {MAX_CHUNKS_PER_FILE} is"
                " the limit",
                excess=chunks / MAX_CHUNKS_PER_FILE,
                hint="convert with a larger --sector-size, or leave the file out of the image",
            )
        if self._chunks > MAX_CHUNKS:
            message = f"the layer's files need more than {MAX_CHUNKS} chunks"
            if self._small > MAX_CHUNKS:
                raise LimitError(message)
            raise SectorCountError(message, excess=self._chunks / MAX_CHUNKS)

    def _sparse_chunk_size(self, size: int, blocks: Sequence[Span]) -> int:
        """Return the chunk size with the fewest bytes of stored zeros and of index."""
        if not blocks:
            return min(_power_of_two(size), MAX_CHUNK_SIZE)
        best, best_cost = self._sector_size, -1
        chunk_size = min(_power_of_two(size), self._sector_size)
        while chunk_size >= BLOCK_SIZE and -(-size // chunk_size) <= MAX_CHUNKS_PER_FILE:
            spans = covered(blocks, chunk_size // BLOCK_SIZE)
            stored = chunk_size * sum(end - first for first, end in spans)
            stored -= max(0, spans[-1][1] * chunk_size - round_up(size, BLOCK_SIZE))
            cost = stored + CHUNK_INDEX_SIZE * -(-size // chunk_size)
            if best_cost < 0 or cost < best_cost:
                best, best_cost = chunk_size, cost
            chunk_size //= 2
        return best


def _power_of_two(size: int) -> int:
    """Return the smallest power of two that covers `size` bytes and is at least a block."""
    return max(BLOCK_SIZE, 1 << (size - 1).bit_length())


def covered(spans: Iterable[Span], unit: int) -> list[Span]:
    """Return the larger units of size `unit` that `spans` touch, joined where they meet.

    Args:
        spans: in order of their beginnings.
        unit: how many of the smaller units a larger one has.
    """
    touched: list[Span] = []
    for first, end in spans:
        start, stop = first // unit, -(-end // unit)
        if touched and start <= touched[-1][1]:
            start, last = touched.pop()
            stop = max(stop, last)
        touched.append((start, stop))
    return touched
