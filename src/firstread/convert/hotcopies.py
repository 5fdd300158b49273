# SPDX-License-Identifier: Apache-2.0
"""Copies hot chunks, and points every file that has them to the copies.

Owns the positions in hot sectors, the copy, and the new chunk maps. A read of a sector cannot tell
which of several files with this content it was for: a program that lies under two names is traced
as the first (`firstread.traces.filemap`). So a copy is known by the content that it was made of,
and all files of that content get it. Invariants: what is copied lies in hot sectors once, in the
order of `place`; an address that was not copied stays as it is.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from typing import NamedTuple

from firstread.convert.hotplan import HotRun
from firstread.erofs.tree import HOLE, Node, chunk_address, split_address, walk
from firstread.errors import ImageError
from firstread.sectors.content import read_frames, read_sectors
from firstread.sectors.format import BLOCK_SIZE
from firstread.sectors.native import NativeSource
from firstread.sectors.source import Wanted
from firstread.units import MiB, round_up

READERS = 4  # groups of sectors of layers that are read at a time
REQUEST = 8 * MiB  # of a blob, at most
MAX_TWIN_CHUNKS = 1 << 16  # more chunks for files that the start does not name: 512 KiB of indexes


class _Piece(NamedTuple):
    """A part of a sector of a layer, and its position in the hot data, all in bytes."""

    start: int
    length: int
    target: int


class _Group(NamedTuple):
    """Sectors that are fetched together, ordered by their first position in the hot data.

    Args:
        target: that position, in bytes.
        numbers: of sectors that lie side by side in their blob.
        frames: of the only one, if few are needed; none for all.
    """

    target: int
    numbers: list[int]
    frames: set[int]


class _Copy(NamedTuple):
    """The address of the copy of a block in hot sectors, and the bytes copied from there on."""

    address: int
    length: int


_NO_COPY = _Copy(HOLE, 0)


class HotCopies:
    """The hot data of an image.

    Args:
        sector_size: bytes of a sector.
        ids: of the sectors of all layers; equal ones have equal content.

    Attributes:
        sizes: bytes of each hot sector.
    """

    def __init__(self, sector_size: int, ids: Sequence[bytes]) -> None:
        self.sizes: list[int] = []
        self._sector_size = sector_size
        first: dict[bytes, int] = {}
        self._first = [first.setdefault(identity, number) for number, identity in enumerate(ids)]
        self._pieces: dict[int, list[_Piece]] = {}  # of sectors of layers, each by its first target
        self._copies: dict[int, _Copy] = {}  # by the address of the original, for each block
        self._cuts: dict[int, int] = {}  # address of a chunk in parts -> bytes of the smallest part
        self._files: dict[int, int] = {}  # id() of a file with hot chunks -> its new chunk size

    def place(self, run: HotRun) -> None:
        """Append the chunks of a run; one that does not fit begins the next sector."""
        node, size = run.node, run.chunk_size
        self._files[id(node)] = size
        ratio = node.chunk_size // size
        end = round_up(node.size, BLOCK_SIZE)
        for number in range(run.first, run.first + run.chunks):
            length = min(size, end - number * size)
            above, part = divmod(number, ratio)
            chunk = self._original(node.chunks[above])
            self._cuts[chunk] = min(size, self._cuts.get(chunk, size))
            address = chunk + part * (size // BLOCK_SIZE)
            if self._copies.get(address, _NO_COPY).length < length:
                self._append(address, length)

    def _append(self, address: int, length: int) -> None:
        """Have bytes copied to the end of the hot data."""
        if not self.sizes or self.sizes[-1] + length > self._sector_size:
            self.sizes.append(0)
        sector, at = len(self.sizes) - 1, self.sizes[-1]
        source, block = split_address(address)
        piece = _Piece(block * BLOCK_SIZE, length, sector * self._sector_size + at)
        self._pieces.setdefault(source, []).append(piece)
        self.sizes[-1] += length
        copy = chunk_address(len(self._first) + sector, at // BLOCK_SIZE)
        for number in range(length // BLOCK_SIZE):
            self._copies[address + number] = _Copy(copy + number, length - number * BLOCK_SIZE)

    def _original(self, address: int) -> int:
        """Return the first address with this content."""
        sector, block = split_address(address)
        return chunk_address(self._first[sector], block)

    def copy(
        self, source: NativeSource, sectors: Sequence[Wanted], out: int
    ) -> Generator[int, None, None]:
        """Fetch all pieces, and write them to the file `out`; yield each hot sector that is full.

        Nothing is written to `out` any more once the generator is closed.

        Args:
            source: has the sectors.
            sectors: of all layers.
            out: a descriptor; gets each hot sector at a multiple of the sector size.

        Raises:
            FirstreadError: the blobs cannot be read or contradict the records.
        """

        def fetch(group: _Group) -> None:
            wanted = [sectors[number] for number in group.numbers]
            pieces = [sorted(self._pieces[number]) for number in group.numbers]
            if not group.frames:
                found = read_sectors(source, wanted)
            else:
                found = zip(repeat(0), read_frames(source, wanted[0], group.frames), strict=False)
            for place, frame in found:
                _copy_frame(frame.offset, frame.data, pieces[place], out)

        # In the order in which they are needed: all before the next one's first piece is there.
        groups = sorted(self._groups(source, sectors))
        firsts = [group.target // self._sector_size for group in groups]
        done = 0
        with ThreadPoolExecutor(READERS, thread_name_prefix="hot") as pool:
            fetched = pool.map(fetch, groups)
            for _, until in zip(fetched, [*firsts[1:], len(self.sizes)], strict=True):
                yield from range(done, until)
                done = until

    def _groups(self, source: NativeSource, sectors: Sequence[Wanted]) -> list[_Group]:
        """Return the sectors that have pieces, in groups.

        Raises:
            ImageError: a piece lies outside its sector.
        """
        groups: list[_Group] = []
        start, end = 0, (-1, 0)  # of the last group: its offset, and blob and offset behind it
        for number in sorted(self._pieces, key=lambda number: _position(sectors[number])):
            sector, pieces, frames = sectors[number], self._pieces[number], set[int]()
            for piece in pieces:
                stop = piece.start + piece.length
                if stop > sector.entry.size:
                    raise ImageError(f"a file lies outside sector {number}")
                frames.update(source.covering(sector, piece.start, stop))
            is_whole = 2 * len(frames) >= len(source.covering(sector, 0, sector.entry.size))
            blob, offset = _position(sector)
            behind = offset + sector.entry.length
            if is_whole and end == (blob, offset) and behind - start <= REQUEST:
                target, numbers, _ = groups[-1]
                groups[-1] = _Group(min(target, pieces[0].target), [*numbers, number], set())
            else:
                groups.append(_Group(pieces[0].target, [number], set() if is_whole else frames))
                start = offset
            end = (blob, behind) if is_whole else (-1, 0)
        return groups

    def repoint(self, root: Node) -> None:
        """Give the files below `root` that have hot content their new chunk maps."""
        room, seen = MAX_TWIN_CHUNKS, set[int]()
        for _, node in walk(root):
            if not node.chunks or id(node) in seen:
                continue
            seen.add(id(node))
            chunks = (self._original(chunk) for chunk in node.chunks if chunk != HOLE)
            cuts = [self._cuts[chunk] for chunk in chunks if chunk in self._cuts]
            if not cuts:
                continue
            own = self._files.get(id(node), node.chunk_size)
            size = min(own, *cuts)
            more = -(-node.size // size) - -(-node.size // own)
            if more > room:
                size, more = own, 0
            room -= more
            self._cut(node, size)

    def _cut(self, node: Node, size: int) -> None:
        ratio, blocks = node.chunk_size // size, size // BLOCK_SIZE
        end = round_up(node.size, BLOCK_SIZE)
        chunks: list[int] = []
        for address in node.chunks:
            at = len(chunks)
            if address == HOLE:
                chunks += [HOLE] * ratio
                continue
            chunks += range(address, address + ratio * blocks, blocks)
            original = self._original(address)
            if original in self._cuts:
                for number in range(at, at + ratio):
                    copy = self._copies.get(original + (number - at) * blocks, _NO_COPY)
                    if copy.length >= min(size, end - number * size):
                        chunks[number] = copy.address
        del chunks[-(-node.size // size) :]
        node.chunks, node.chunk_size = chunks, size


def _position(sector: Wanted) -> tuple[int, int]:
    """Return the number of a sector's blob, and its offset there."""
    return sector.entry.blob, sector.entry.offset


def _copy_frame(offset: int, data: memoryview, pieces: Sequence[_Piece], out: int) -> None:
    """Write what a frame has of each piece; `offset` is the frame's in its sector."""
    end = offset + len(data)
    for piece in pieces:
        first, last = max(piece.start, offset), min(piece.start + piece.length, end)
        if first < last:
            os.pwrite(out, data[first - offset : last - offset], piece.target + first - piece.start)
